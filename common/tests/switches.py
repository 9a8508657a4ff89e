"""torch's switches for deterministic computation belong to the process; tests put them back."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def switches_kept() -> Iterator[None]:
    """They stand afterwards as before."""
    cudnn = torch.backends.cudnn
    before = (torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision(),
              (cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32))
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.set_float32_matmul_precision(before[1])
        cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32 = before[2]
