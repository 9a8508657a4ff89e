"""Image files, decoded by threads: what folders of images and Tiny-ImageNet have in common."""

import os
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from common.errors import UserError
from common.inputs import check_is_file

# What a file may be, whatever its name says.  Others than these run programs (EPS) or come from far fewer hands.
FORMATS = ("JPEG", "PNG", "BMP", "PPM", "TIFF", "WEBP", "GIF")
MAX_PIXELS = 1 << 26           # of an image: 8192 x 8192
CHUNK = 64                     # images that a thread takes at a time
T = TypeVar("T")


def opened(path: Path, use: Callable[[Any], T]) -> T:
    """use(the Pillow image in `path`); UserError that names the file if it is not an image, a damaged or huge one."""
    from PIL import Image

    check_is_file(path)
    try:
        with Image.open(path, formats=FORMATS) as image:
            check_pixels(path, image.width * image.height)
            return use(image)
    except (UserError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        check_pixels(path, None)
    except Exception as error:  # damaged files make Pillow's decoders raise errors of every kind
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"cannot read the image {path} ({reason[:160]}): replace or remove it",
                        code="E-IMAGE") from error


def check_pixels(path: Path, pixels: int | None) -> None:
    """UserError for an image of more than MAX_PIXELS, or of too many for Pillow (None) to say how many."""
    if pixels is None or pixels > MAX_PIXELS:
        raise UserError(f"{path} has {pixels or 'far too many'} pixels, more than {MAX_PIXELS}: not decoded; replace, "
                        "shrink or remove it", code="E-IMAGE-BOMB")


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

    with (warnings.catch_warnings(), ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool,
          tqdm(total=len(positions), desc=what, unit="image", disable=None, delay=1) as bar):
        # A module's filters are all threads' own; Pillow's word for a bomb is a warning at first.
        warnings.filterwarnings("error", message="Image size .* exceeds limit")
        pending = [pool.submit(work_off, chunk) for chunk in chunks]
        try:
            for future in pending:
                bar.update(future.result())
        finally:
            for future in pending:
                future.cancel()
