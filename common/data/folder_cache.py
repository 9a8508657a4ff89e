"""The cache of decoded folders: one npz per state of a folder, named by a hash of its files' names, sizes and times."""

import hashlib
import sys
from pathlib import Path

import numpy as np

from common.errors import UserError
from common.files import replacing
from common.inputs import check_mode
from common.npz_files import read_arrays

VERSION = 1                    # raise when decoding changes


def key(paths: list[Path], root: Path, options: str) -> str:
    """sha256 (hex) over the relative paths, sizes and modification times (ns) of the files in any order, and `options`,
    which says all else that decides the arrays."""
    digest = hashlib.sha256(f"decoded {VERSION} {options}\n".encode())
    lines = []
    for path in paths:
        try:
            status = path.stat()
        except OSError as error:
            raise UserError(f"cannot read the image {path} ({error.strerror or error}): "
                            "replace or remove it", code="E-READ") from error
        check_mode(path, status.st_mode)
        lines.append(f"{path.relative_to(root).as_posix()!r} {status.st_size} {status.st_mtime_ns}\n")
    digest.update("".join(sorted(lines)).encode())
    return digest.hexdigest()


def read(path: Path, key: str, counts: list[int]) -> list[np.ndarray] | None:
    """uint8 (N,C,H,W) of each part; None if there is no file, or one that is torn, of another key, or misshapen."""
    try:
        if str(read_arrays(path, "key".__eq__).get("key")) != key:
            return None
        arrays = read_arrays(path)
        parts = [arrays[f"images_{number}"] for number in range(len(counts))]
    except (OSError, ValueError, KeyError, UserError):
        return None            # decoding again mends every one of these
    for part, count in zip(parts, counts, strict=True):
        if part.dtype != np.uint8 or part.ndim != 4 or len(part) != count or part.shape[1:] != parts[0].shape[1:]:
            return None
    return parts


def write(path: Path, key: str, parts: list[np.ndarray]) -> None:
    """Write the cache, whole or not at all.  Where that fails the data are used all the same, and a note says so."""
    try:
        with replacing(path) as temporary, open(temporary, "wb") as stream:
            np.savez(stream, key=np.array(key), **{f"images_{number}": part for number, part in enumerate(parts)})
    except UserError as error:
        print(f"note: the images will be decoded again next time: {error}", file=sys.stderr)
