"""Arrays of npz files: nothing is unpickled, and no memory taken on the word of a header.  No torch here."""

import lzma
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from common.errors import UserError
from common.inputs import check_is_file, check_memory

# What damaged zip files and headers raise in zipfile, zlib and numpy.
UNREADABLE = (OSError, EOFError, ValueError, RuntimeError, NotImplementedError, KeyError, SyntaxError, TypeError,
              IndexError, AttributeError, OverflowError, struct.error, tokenize.TokenError, zipfile.BadZipFile,
              zlib.error, lzma.LZMAError)
MAX_MEMBERS = 100_000
DEFLATE = 1032                 # to so many bytes can deflate blow one up
# An archive that unpacks to more than so many bytes, and to so many times its size, holds no images: they pack to a
# third at best, digits to a tenth, and sets of constant images are small.
LARGE, RATIO = 1 << 31, 100


class Header(NamedTuple):
    """What stands in front of an array's values; begin: how many bytes that is."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype
    begin: int

    @property
    def nbytes(self) -> int:
        """Of the values."""
        return math.prod(self.shape) * self.dtype.itemsize


def is_zip(path: Path) -> bool:
    """Whether a file has the end of a zip file."""
    try:
        return zipfile.is_zipfile(path)
    except UNREADABLE:         # an end that says it is one of several disks'
        return False


def check_archive(path: Path, archive: zipfile.ZipFile) -> None:
    """UserError for a zip file that is no honest npz: a bomb, or members whose names lead elsewhere."""
    infos, size = archive.infolist(), path.stat().st_size
    if len(infos) > MAX_MEMBERS:
        bomb(path, f"holds {len(infos)} members")
    for info in infos:
        check_member_name(path, info.filename)
        possible = {zipfile.ZIP_STORED: info.compress_size, zipfile.ZIP_DEFLATED: info.compress_size * DEFLATE + 64}
        if info.file_size > possible.get(info.compress_type, info.file_size) or info.compress_size > size:
            bomb(path, f"says that {info.filename[:60]!r} unpacks to {info.file_size} bytes, more than it can")
    total = sum(info.file_size for info in infos)
    if total > LARGE and total > RATIO * size:
        bomb(path, f"has {size} bytes and unpacks to {total}")


def bomb(path: Path, what: str) -> None:
    """Raise the UserError for an archive that would fill memory or disk."""
    raise UserError(f"{path} {what}: refused, nothing of it was unpacked; write it anew with numpy.savez",
                    code="E-NPZ-BOMB")


def check_member_name(path: Path, name: str) -> None:
    """UserError for a member of an archive whose name leads out of it."""
    if name.startswith(("/", "\\")) or ".." in PurePosixPath(name.replace("\\", "/")).parts or "\0" in name:
        raise UserError(f"{path} holds a member named {name[:60]!a}, which leads out of the archive: refused, nothing "
                        "of it was unpacked; get the file from another source", code="E-ARCHIVE-NAME")


def header(path: Path, key: str, info: zipfile.ZipInfo, archive: zipfile.ZipFile) -> Header:
    """The header of an array, which fits what the archive says of it; UserError for objects and structured values, an
    error of UNREADABLE where it is damaged."""
    with archive.open(info) as stream:
        version = np.lib.format.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"{key} has a header of version {version}")
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        try:
            shape, fortran, dtype = read(stream)
        except MemoryError:
            raise ValueError(f"{key} has a damaged header") from None      # Python's parser, of too many brackets
        found = Header(shape, fortran, dtype, stream.tell())
    if dtype.hasobject:
        raise UserError(f"{path}: {key} holds Python objects, which are never loaded, for that could run code: "
                        "save plain arrays of numbers (class_names: of strings)", code="E-NPZ-OBJECTS")
    if dtype.kind not in "biufcUS" or dtype.itemsize == 0:
        raise UserError(f"{path}: {key} is of type {str(dtype)[:60]}: save plain arrays of numbers",
                        code="E-NPZ-DTYPE")
    # numpy lets True be a length, and a shape with a 0 may say anything else beside it.
    whole = all(type(side) is int and 0 <= side < 2 ** 48 for side in shape)
    if not whole or found.begin + found.nbytes != info.file_size:
        raise ValueError(f"{key} should have the shape {str(shape)[:60]} but has {info.file_size - found.begin} bytes")
    return found


def mapped_npy(path: Path) -> np.ndarray:
    """The array of a .npy file as a memory map; an error of UNREADABLE where it is damaged or another kind of file."""
    with open(path, "rb") as stream:
        np.lib.format.read_magic(stream)       # numpy would also open an archive or a pickle
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except MemoryError:
        raise ValueError("its header is damaged") from None


def read_arrays(path: Path, wanted: Callable[[str], bool] = lambda key: True, *, present: bool = False
                ) -> dict[str, np.ndarray]:
    """The arrays of an npz file whose key is `wanted`, in memory.

    present: the other keys are there too, with None's place taken by an array of length 0.  UserError for what is
    refused whoever asks (bombs, objects, pipes, arrays larger than the memory); ValueError, which names the key, where
    the file is damaged; FileNotFoundError and other OSErrors as they come.
    """
    check_is_file(path)
    arrays: dict[str, np.ndarray] = {}
    key = "the list of arrays"
    try:
        with open(path, "rb") as stream, zipfile.ZipFile(stream) as archive:
            check_archive(path, archive)
            entries = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            total = 0
            for key in filter(wanted, entries):
                total += header(path, key, entries[key], archive).nbytes
            check_memory(total, f"{path}, unpacked,")
            for key, info in entries.items():
                if wanted(key):
                    with archive.open(info) as values:
                        arrays[key] = np.lib.format.read_array(values, allow_pickle=False)
                        values.read(1)         # makes zipfile compare the checksum
                elif present:
                    arrays[key] = np.empty(0)
    except (FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except UNREADABLE as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise ValueError(f"{key!r} cannot be read ({reason})") from error
    return arrays
