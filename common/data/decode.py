"""Image files, decoded by threads: what folders of images and Tiny-ImageNet have in common."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from common.errors import UserError

CHUNK = 64                     # images that a thread takes at a time
T = TypeVar("T")


def opened(path: Path, use: Callable[[Any], T]) -> T:
    """use(the Pillow image in `path`); UserError that names the file if it is not an image, or a damaged one."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return use(image)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"cannot read the image {path} ({reason[:160]}): replace or remove it",
                        code="E-IMAGE") from error


def in_parallel(work: Callable[[int], None], positions: Iterable[int], what: str) -> None:
    """work(position) for all positions, with a bar named `what` if that takes over a second.

    Threads suffice: Pillow decodes outside the interpreter's lock.  The first failure in order is raised.
    """
    positions = list(positions)
    chunks = [positions[start:start + CHUNK] for start in range(0, len(positions), CHUNK)]

    def work_off(chunk: list[int]) -> int:
        for position in chunk:
            work(position)
        return len(chunk)

    with (ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool,
          tqdm(total=len(positions), desc=what, unit="image", disable=None, delay=1) as bar):
        pending = [pool.submit(work_off, chunk) for chunk in chunks]
        try:
            for future in pending:
                bar.update(future.result())
        finally:
            for future in pending:
                future.cancel()
