"""What a pickle in a checkpoint says, found out without running any of it.

torch's own reader runs no code either, but it believes what a file says of its tensors: how many bytes a storage has,
how often a size is repeated.  Here the file is held against that before and after.
"""

import math
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NoReturn

import torch
from torch import Tensor

from common.errors import UserError
from common.npz_files import MAX_MEMBERS, check_member_name

MAGIC = 0x1950a86a20f9469cfc6c                # of files from before torch 1.6
# Of a number in torch's kinds of storage; 1 in others.
BYTES = {"ShortStorage": 2, "HalfStorage": 2, "BFloat16Storage": 2, "IntStorage": 4, "FloatStorage": 4,
         "LongStorage": 8, "DoubleStorage": 8, "ComplexFloatStorage": 8, "ComplexDoubleStorage": 16}
MAX_DEPTH, MAX_ENTRIES = 32, 1_000_000        # of a checkpoint's nested dicts and lists
# Tensors may share memory, so that a file's can show more than it holds: averaged and plain weights, say.
SHARED, SMALL = 16, 1 << 26
DTYPES = {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.bfloat16,
          torch.float32, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16, torch.uint32,
          torch.uint64}


class Inert:
    """Stands for whatever a pickle names: takes every call, does nothing."""

    said = ""

    def __new__(cls, *_: Any, **__: Any) -> "Inert":
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any):
        pass

    def __call__(self, *_: Any, **__: Any) -> "Inert":
        return Inert()

    def __setstate__(self, _: Any) -> None:
        pass

    def __setitem__(self, _: Any, __: Any) -> None:
        pass

    append = extend = add = update = __setstate__


class Survey(pickle._Unpickler):
    """Goes through a pickle in pure Python, with `Inert` in the place of all that it names.

    storages: what it says of its storages, by key: the bytes they should have.
    """

    def __init__(self, stream: IO[bytes]):
        super().__init__(stream, encoding="utf-8")
        self.storages: dict[str, int] = {}

    def find_class(self, module: str, name: str) -> type[Inert]:
        return type("Named", (Inert,), {"said": f"{module}.{name}"})

    def get_extension(self, code: int) -> None:
        raise ValueError(f"extension {code}")

    def persistent_load(self, pid: Any) -> Inert:
        if pid[0] == "module":                 # of files from before torch 1.6, which torch refuses for its class
            return Inert()
        kind, storage, key, _, count = pid[:5]
        if kind != "storage" or type(count) is not int or count < 0:
            raise ValueError("an unknown kind of storage")
        nbytes = count * BYTES.get(storage.said.rpartition(".")[2], 1)
        self.storages[str(key)] = max(nbytes, self.storages.get(str(key), 0))
        return Inert()


def check_zipped(path: Path, archive: zipfile.ZipFile) -> None:
    """UserError for a zip file that torch would believe: compressed, of two members of one name, with storages that are
    not as long as it says.  What torch refuses by itself passes."""
    infos, size = archive.infolist(), path.stat().st_size
    names = [info.filename for info in infos]
    for name in names:
        check_member_name(path, name)
    folder = names[0].partition("/")[0] if names else ""
    if f"{folder}/constants.pkl" in names:
        raise UserError(f"{path} holds code (TorchScript), not only tensors: refused, and none of it was run; save the "
                        "network's state_dict() with torch.save and give that file", code="E-PICKLE")
    if len(infos) > MAX_MEMBERS or sum(info.file_size for info in infos) > size or any(
            info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size for info in infos):
        _refuse(path, "is packed, or says it holds more than it has, which torch's files do not")
    # torch looks names up without regard to case, and would take the first.
    if len({name.lower() for name in names}) < len(names):
        _refuse(path, "holds two members of one name")
    if f"{folder}/data.pkl" not in names:
        return
    try:
        with archive.open(f"{folder}/data.pkl") as stream:
            survey = Survey(stream)
            survey.load()
    except Exception:  # a pickle that is not whole makes the unpickler raise errors of every kind
        _refuse(path, "has a table of contents that cannot be gone through")
    sizes = {info.filename: info.file_size for info in infos}
    for key, nbytes in survey.storages.items():
        if sizes.get(f"{folder}/data/{key}", -1) < nbytes:
            _refuse(path, f"says that storage {key[:40]!a} has {nbytes} bytes, more than it has")


def check_unzipped(path: Path) -> None:
    """UserError for a file from before torch 1.6 whose storages are larger than itself, for torch would make room for
    them; what torch refuses by itself passes."""
    with open(path, "rb") as stream:
        if _started(stream) != MAGIC:
            return
        try:
            for _ in range(2):                 # protocol and byte order
                Survey(stream).load()
            survey = Survey(stream)
            survey.load()
        except Exception:  # as above
            _refuse(path, "has a table of contents that cannot be gone through")
        if sum(survey.storages.values()) > path.stat().st_size:
            _refuse(path, f"says that its storages have {sum(survey.storages.values())} bytes, more than it has")


def _started(stream: IO[bytes]) -> Any:
    """The first value of a pickle; None if it is none."""
    try:
        return Survey(stream).load()
    except Exception:  # any file may be named on the command line
        return None


def check_tree(path: Path, tree: Any) -> None:
    """UserError for what a checkpoint may not hold after all: containers without end, names that cannot be printed,
    tensors of odd kinds, or which show far more than the file holds."""
    shown, size = 0, path.stat().st_size
    for tensor in _tensors(path, tree):
        if (tensor.layout != torch.strided or tensor.device.type == "meta" or tensor.is_quantized or tensor.is_nested
                or tensor.dtype not in DTYPES or type(tensor) not in (Tensor, torch.nn.Parameter)):
            _odd(path, f"a tensor of another kind ({tensor.layout}, {tensor.dtype}, {tensor.device.type})")
        # Not numel(), which overflows.
        shown += math.prod(tensor.shape) * tensor.element_size()
        if shown > SHARED * size + SMALL:
            _refuse(path, f"has {size} bytes and tensors of {shown}")


def _tensors(path: Path, tree: Any) -> Iterator[Tensor]:
    """All tensors in dicts, lists and tuples; one that stands in two places comes twice."""
    left, entries = [(tree, 0)], 0
    while left:
        value, depth = left.pop()
        entries += 1
        if depth > MAX_DEPTH or entries > MAX_ENTRIES:
            _odd(path, "dicts or lists without end")
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, Mapping):
            for key, inner in value.items():
                if isinstance(key, str) and not key.isprintable():
                    _odd(path, f"an entry named {key[:40]!a}")
                left.append((inner, depth + 1))
        elif isinstance(value, list | tuple):
            left += [(inner, depth + 1) for inner in value]


def _odd(path: Path, what: str) -> NoReturn:
    raise UserError(f"{path} holds {what}, which no network's weights have: save the network's state_dict() with "
                    "torch.save and give that file", code="E-CHECKPOINT-ENTRY")


def _refuse(path: Path, what: str) -> NoReturn:
    raise UserError(f"{path} is no checkpoint that torch can read: damaged, cut short or another kind of file (it "
                    f"{what}); fetch it or save it again", code="E-CHECKPOINT-DAMAGED")
