"""The rows of a batch shared out among the processor's threads.

A network on a CPU gains less from several threads within each of its operations, which wait for one another, than from
each thread taking its own images through the whole of it.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Barrier
from typing import Any

import torch
from torch import Tensor

FEWEST = 4                     # rows of a share, below which it does not pay


def _alone() -> None:
    """One thread within an operation, for operations that this thread calls."""
    torch.get_num_threads()               # sets the thread up, once, with the number of all: only then it may differ
    torch.set_num_threads(1)


@cache
def _workers(count: int) -> ThreadPoolExecutor:
    """That many threads, which use one thread each within an operation."""
    pool, all_there = ThreadPoolExecutor(count, initializer=_alone), Barrier(count)
    list(pool.map(lambda _: all_there.wait(), range(count)))
    torch.set_num_threads(count)          # some libraries keep one number for all threads, which the workers changed
    return pool


def by_rows(function: Callable[..., Any], *tensors: Tensor) -> Any:
    """function(*tensors), which is a tensor or a tuple of tensors, each with the rows (B,...) of `tensors`.

    The function must treat each row by itself; it is called from several threads at a time.  On a device, with one
    thread, or with few rows it is called once.  Raises what the function raises.
    """
    count, rows = torch.get_num_threads(), len(tensors[0])
    if tensors[0].device.type != "cpu" or count == 1 or rows < count * FEWEST:
        return function(*tensors)
    with_gradient = torch.is_grad_enabled()                       # each thread has a mode of its own

    def work(share: tuple[Tensor, ...]) -> Any:
        with torch.set_grad_enabled(with_gradient):
            return function(*share)

    parts = list(_workers(count).map(work, zip(*(tensor.tensor_split(count) for tensor in tensors), strict=True)))
    if isinstance(parts[0], Tensor):
        return torch.cat(parts)
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))
