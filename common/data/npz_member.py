"""One array of an npz file as a memory map, however large: nothing is unpickled, and nothing allocated on its word.

An array that numpy.savez stored is mapped where it lies in the file.  A compressed one is decoded once, piece by piece,
into a .npy beside other caches, and that is mapped.
"""

import hashlib
import shutil
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from tqdm import tqdm

from common.data.npz import check_is_npz, slug
from common.errors import UserError
from common.files import replacing
from common.npz_files import UNREADABLE, check_archive, header

LOCAL_HEADER = struct.Struct("<4s5H3I2H")      # of a zip file's member; its name and an extra field follow
PIECE = 1 << 24                # bytes read at a time
VERSION = 1                    # raise when decoding changes


@dataclass(frozen=True)
class Member:
    """An array in an npz file, known by its header alone.

    begin: bytes before its values, within the member.  info: its entry in the zip file.
    """

    path: Path
    key: str
    shape: tuple[int, ...]
    dtype: np.dtype
    begin: int
    info: zipfile.ZipInfo

    @property
    def nbytes(self) -> int:
        return self.info.file_size - self.begin

    @property
    def stored(self) -> bool:
        """Whether its bytes stand in the file as they are."""
        return self.info.compress_type == zipfile.ZIP_STORED


def open_members(path: Path, keys: tuple[str, ...]) -> dict[str, Member]:
    """Those of `keys` that the npz file has.  Only headers are read; UserError for a file that is damaged or holds
    Python objects under one of the keys."""
    check_is_npz(path)
    try:
        with zipfile.ZipFile(path) as archive:
            check_archive(path, archive)
            entries = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            return {key: _member(path, key, entries[key], archive) for key in keys if key in entries}
    except UNREADABLE as error:
        _damaged(path, error)


def names_in(path: Path) -> list[str]:
    """The names of a file's arrays, sorted."""
    with zipfile.ZipFile(path) as archive:
        return sorted(name.removesuffix(".npy") for name in archive.namelist())


def mapped(member: Member, cache: Path) -> np.ndarray:
    """The array, read-only, on disk until touched; a compressed one is decoded into `cache`/.cache first."""
    if member.stored:
        return np.memmap(member.path, member.dtype, "r", _place(member), member.shape).view(np.ndarray)
    return _decoded(member, cache)


def pieces(member: Member, what: str) -> Iterator[np.ndarray]:
    """The values in C order as flat arrays, one piece after another, with a bar named `what`."""
    step = max(1, PIECE // member.dtype.itemsize) * member.dtype.itemsize
    left = member.nbytes
    try:
        with (zipfile.ZipFile(member.path) as archive, archive.open(member.info) as stream,
              tqdm(total=left, desc=what, unit="B", unit_scale=True, disable=None, delay=1) as bar):
            stream.read(member.begin)
            while left:
                piece = stream.read(min(step, left))
                if not piece or len(piece) % member.dtype.itemsize:
                    raise EOFError(f"{member.key} ends {left} bytes too early")
                left -= len(piece)
                bar.update(len(piece))
                yield np.frombuffer(piece, member.dtype)
            stream.read(1)             # makes zipfile compare the checksum
    except UNREADABLE as error:
        _damaged(member.path, error)


def _member(path: Path, key: str, info: zipfile.ZipInfo, archive: zipfile.ZipFile) -> Member:
    shape, fortran, dtype, begin = header(path, key, info, archive)
    member = Member(path, key, shape, dtype, begin, info)
    if fortran and len(shape) > 1:
        raise UserError(f"{path}: {key} is saved in Fortran order: save numpy.ascontiguousarray({key})",
                        code="E-NPZ-SHAPE")
    if member.stored and _place(member) + member.nbytes > path.stat().st_size:
        raise EOFError(f"{key} ends beyond the file's end")
    return member


def _place(member: Member) -> int:
    """Where in the file the values of a stored member start."""
    with open(member.path, "rb") as stream:
        stream.seek(member.info.header_offset)
        head = LOCAL_HEADER.unpack(stream.read(LOCAL_HEADER.size))
    if head[0] != b"PK\x03\x04":
        raise zipfile.BadZipFile(f"{member.key} is not where it should be")
    return member.info.header_offset + LOCAL_HEADER.size + head[-2] + head[-1] + member.begin


def _decoded(member: Member, cache: Path) -> np.ndarray:
    """A compressed member as a memory map of its decoded copy, which is made if it is not there."""
    status = member.path.stat()
    identity = (VERSION, member.path.name, status.st_size, status.st_mtime_ns, member.info.CRC, member.key,
                member.shape, member.dtype.str)
    digest = hashlib.sha256(repr(identity).encode()).hexdigest()
    target = cache / ".cache" / f"{slug(member.path.stem)}-{slug(member.key)}-{digest[:16]}.npy"
    if (there := _opened_cache(target, member)) is not None:
        return there
    with replacing(target) as temporary:
        free = shutil.disk_usage(temporary.parent).free
        if free < member.nbytes:
            raise UserError(f"{member.path}: {member.key} is compressed and needs {member.nbytes / 1e9:.1f} GB in "
                            f"{target.parent}, where {free / 1e9:.1f} GB are free: make room, name another folder "
                            "with --data_dir, or save it anew with numpy.savez, which is used as it is",
                            code="E-DISK-FULL")
        tqdm.write(f"{member.path.name}: {member.key} is compressed; unpacking it once into {target} "
                   f"({member.nbytes / 1e9:.2f} GB)")
        with open(temporary, "wb") as stream:
            np.lib.format.write_array_header_1_0(stream, {"descr": np.lib.format.dtype_to_descr(member.dtype),
                                                          "fortran_order": False, "shape": member.shape})
            for piece in pieces(member, f"unpacking {member.path.name}"):
                stream.write(piece.data)
    if (there := _opened_cache(target, member)) is None:
        raise UserError(f"{target} was written but cannot be read back: check that disk", code="E-WRITE")
    return there


def _opened_cache(path: Path, member: Member) -> np.ndarray | None:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except UNREADABLE:
        return None            # decoding again mends every one of these
    return array.view(np.ndarray) if (array.shape, array.dtype) == (member.shape, member.dtype) else None


def _damaged(path: Path, error: Any) -> NoReturn:
    reason = " ".join(str(error).split())[:120] or type(error).__name__
    raise UserError(f"{path} cannot be read ({reason}): the file is damaged; copy or download it again",
                    code="E-DATA-DAMAGED") from error
