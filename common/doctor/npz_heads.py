"""What an npz or npy file says that it holds, read from headers alone: no numpy, no torch, nothing allocated."""

import ast
import math
import re
import struct
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO, NamedTuple

BROKEN = (OSError, EOFError, ValueError, KeyError, TypeError, SyntaxError, RuntimeError, NotImplementedError,
          MemoryError, RecursionError, struct.error, zipfile.BadZipFile, zlib.error)
LONGEST = 1 << 16              # bytes of a header that are read


class Head(NamedTuple):
    """dtype as numpy writes it ("|u1", "<i8"); bytes: of the values that should follow."""

    dtype: str
    shape: tuple[int, ...]
    bytes: int

    @property
    def integers(self) -> bool:
        return self.dtype[1:2] in ("i", "u")

    def __str__(self) -> str:
        return f"{self.dtype.lstrip('|<>=')} {self.shape}"


def read_head(stream: BinaryIO) -> tuple[Head, int]:
    """The head of an npy stream, and how many bytes it took.  Raises one of BROKEN."""
    start = stream.read(8)
    if start[:6] != b"\x93NUMPY" or start[6:7] not in (b"\1", b"\2", b"\3"):
        raise ValueError("it is no array of numpy")
    form, width = ("<H", 2) if start[6:7] == b"\1" else ("<I", 4)
    (length,) = struct.unpack(form, stream.read(width))
    if length > LONGEST:
        raise ValueError(f"its header has {length} bytes")
    said = ast.literal_eval(stream.read(length).decode("latin1"))
    dtype, shape = said["descr"], said["shape"]
    item = re.fullmatch(r"[|<>=]([biufcUSVO])(\d*)", dtype) if isinstance(dtype, str) else None
    if item is None or not all(isinstance(side, int) and side >= 0 for side in shape):
        raise ValueError("its header is not one of plain numbers")
    each = int(item[2] or 8) * (4 if item[1] == "U" else 1)
    return Head(dtype, tuple(shape), math.prod(shape) * each), 8 + width + length


def heads_of_npz(path: Path) -> dict[str, Head]:
    """Key -> head, of every array in an npz file; sizes that do not fit the file raise ValueError, others of BROKEN."""
    found = {}
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            with archive.open(info) as stream:
                head, begin = read_head(stream)
            if "O" not in head.dtype and begin + head.bytes != info.file_size:
                raise ValueError(f"{info.filename} should have {head.bytes} bytes, but has {info.file_size - begin}")
            found[info.filename.removesuffix(".npy")] = head
    return found


def head_of_npy(path: Path) -> Head:
    """The head of an npy file; a length that does not fit is a ValueError, others of BROKEN."""
    with open(path, "rb") as stream:
        head, begin = read_head(stream)
        there = path.stat().st_size
    if begin + head.bytes != there:
        raise ValueError(f"it should have {begin + head.bytes} bytes, but has {there}")
    return head


def reason(error: BaseException) -> str:
    """One of BROKEN in a few words."""
    return " ".join(str(error).split())[:120] or type(error).__name__


def unfit(heads: dict[str, Head]) -> str:
    """Why these are neither a data set (train_images, ...) nor extra images (image, label); empty if they are."""
    if "image" in heads and "label" in heads:
        pairs = [("image", "label")]
    else:
        second = "test" if "test_images" in heads else "val"
        pairs = [(f"{part}_images", f"{part}_labels") for part in ("train", second)]
    for images, labels in pairs:
        for key in (images, labels):
            if key not in heads:
                return f"it has no {key}"
        one, other = heads[images], heads[labels]
        if one.dtype[1:] != "u1":
            return f"{images} is {one}, not uint8 (u1)"
        if len(one.shape) not in (3, 4) or (len(one.shape) == 4 and one.shape[3] not in (1, 3)) or 0 in one.shape:
            return f"{images} has the shape {one.shape}, not (N,H,W,3), (N,H,W,1) or (N,H,W)"
        if not other.integers or other.shape != one.shape[:1]:
            return f"{labels} is {other}, not one integer for each of {one.shape[0]} images"
    if len({heads[images].shape[1:] for images, _ in pairs}) > 1:
        return "training and test images differ in size"
    return ""


def holds(heads: dict[str, Head]) -> str:
    """What a fit file holds, in words."""
    def side(head: Head) -> str:
        return "x".join(map(str, head.shape[1:]))

    if "image" in heads:
        return f"{heads['image'].shape[0]:,} additional images {side(heads['image'])}"
    second = heads.get("test_images") or heads["val_images"]
    return f"{heads['train_images'].shape[0]:,} training and {second.shape[0]:,} test images {side(second)}"
