"""Checkpoints: files that hold tensors and plain values only, written whole or not at all, read without running code.

`save_state`, `read_state`, `load_weights`: a network's weights, ours or other people's (see weight_names.py).
`save_tree`, `load_tree`: what a run needs to go on.
"""

import argparse
import errno
import pickletools
import re
import shutil
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common.errors import UserError
from common.files import replacing, sha256_of, write_json
from common.safetensor_files import read_tensors
from common.signals import held
from common.weight_names import Part, listed, misfit, pick_part, rename, strip_prefixes, why_unused

COUNTER = "num_batches_tracked"
INPUT = ("normalise.mean", "normalise.std")              # a model's input normalisation
SECOND = "it acts behind another one, which is not in the file; the model keeps its own, which must be both"
CALLS = {"GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "REDUCE", "NEWOBJ", "NEWOBJ_EX"}    # opcodes of pickles


@dataclass(frozen=True)
class LoadReport:
    """What `load_weights` did.  str() gives it in one line.

    part: the key of the container that the weights came from (None: a bare state dict); prefixes: taken off the names;
    renamed: {name in the file: name in the model} where they differ beyond that.  missing: entries of the model that
    a file need not hold; unexpected: entries of the file that no forward pass reads; any others are errors.
    """

    path: Path
    sha256: str
    part: str | None
    prefixes: tuple[str, ...]
    renamed: dict[str, str]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        said = [f"{self.path} (sha256 {self.sha256[:12]})"]
        if self.part is not None:
            said.append(f"part {self.part}")
        if self.prefixes:
            said.append(f"without the prefix {' '.join(self.prefixes)}")
        if self.renamed:
            said.append("renamed " + listed([f"{old} -> {new}" for old, new in self.renamed.items()]))
        return "; ".join([*said, *self.notes])


def save_state(path: Path, tensors: Mapping[str, Tensor], *, note: Mapping[str, Any] | None = None) -> str:
    """Write a state dict, tensors only; return the sha256 of the file.

    Tensors are written contiguous, so equal values give equal files whatever the device and the memory format.  `note`
    (JSON values) goes into a .json beside it, with the sha256.  No space left is a UserError and keeps the former file.
    """
    if not all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in tensors.items()):
        raise TypeError("a state dict holds names and tensors only")
    path = Path(path)
    _write(path, {name: _portable(tensor) for name, tensor in tensors.items()})
    digest = sha256_of(path)
    if note is not None:
        write_json(path.with_suffix(".json"), {**note, "sha256": digest})
    return digest


def save_tree(path: Path, tree: Any) -> None:
    """Write nested dicts, lists and tuples of tensors, numbers, strings, booleans and None, as `save_state` does."""
    _write(Path(path), _portable(tree))


def load_tree(path: Path, map_location: torch.device | str = "cpu") -> Any:
    """Read what `save_tree` wrote; a missing, damaged or foreign file is a UserError."""
    return _read(Path(path), map_location)


def read_state(path: Path, *, part: str | None = None) -> dict[str, Tensor]:
    """The state dict in a file, on the CPU, without the prefixes of wrappers; tensors of their own memory.

    A container is unwrapped: `part` names the key (dotted where nested), else weight_names.PARTS is the order of
    preference.  A file that is missing, damaged, no checkpoint, or holds code is a UserError.
    """
    taken = _part_of(Path(path), part)
    plain = _explained(path, strip_prefixes, taken.tensors)
    return {plain.names[name]: tensor.clone() for name, tensor in taken.tensors.items()}


def load_weights(model: nn.Module, path: Path, *, part: str | None = None) -> LoadReport:
    """Load a file's weights into `model`, all of them or none.

    Prefixes are taken off and known other names translated (weight_names.py); everything that happened is in the
    report.  An entry that is missing, unexpected or of another shape is a UserError, and so is an input normalisation
    that only the file has: nothing is loaded then.  Where only the model has one, it keeps it, and the report says so.
    (One that its authors kept in their code leaves no trace in a file, or the prefix `1.` at most: build the model with
    it, and with both in one where the file holds another that acts after it.)
    """
    path = Path(path)
    taken = _part_of(path, part)
    wanted = model.state_dict()
    if set(taken.tensors) == set(wanted):
        plain, prefixes, behind = {name: name for name in wanted}, (), False
    else:
        plain, prefixes, behind = _explained(path, strip_prefixes, taken.tensors)
    to_model = _explained(path, rename, plain.values(), wanted)
    tensors = {to_model[plain[name]]: tensor for name, tensor in taken.tensors.items()}

    normalises = "normalise.mean" in wanted
    for name in INPUT:
        if name in tensors and name in wanted and tensors[name].numel() == wanted[name].numel():
            tensors[name] = tensors[name].reshape(wanted[name].shape)
    _refuse_normalisation(path, tensors, wanted, behind)
    unused = {name: reason for name in tensors if name not in wanted and (reason := why_unused(name))}
    if behind:
        unused |= {name: SECOND for name in INPUT if name in tensors}
    left = {name: tensor for name, tensor in tensors.items() if name not in unused}
    # Files from before torch 0.4.1 have no such counters; nothing but a momentum of None reads them.
    spared = {name: torch.zeros_like(value) for name, value in wanted.items() if name.endswith(COUNTER)}
    if any(name.endswith(COUNTER) for name in left):
        spared = {}
    if normalises and not set(INPUT) & set(left):
        spared |= {name: wanted[name] for name in INPUT}
    if said := misfit(_shapes(left), {name: shape for name, shape in _shapes(wanted).items() if name not in spared}):
        raise UserError(f"{path} {said}; nothing was loaded")

    model.load_state_dict(left | spared, strict=True)
    return LoadReport(path, sha256_of(path), taken.name, prefixes,
                      {old: new for old, new in to_model.items() if old != new}, tuple(spared), tuple(unused),
                      _notes(taken, unused, spared, left))


def _notes(taken: Part, unused: Mapping[str, str], spared: Mapping[str, Tensor],
           left: Mapping[str, Tensor]) -> tuple[str, ...]:
    notes = []
    if taken.others:
        notes.append(f"not taken: {listed(taken.others)}")
    for reason in dict.fromkeys(unused.values()):
        notes.append(f"left out {listed([name for name, why in unused.items() if why == reason])}: {reason}")
    counters = [name for name in spared if name.endswith(COUNTER)]
    if counters:
        notes.append(f"{len(counters)} {COUNTER} are not in the file, set to 0")
    if len(counters) < len(spared) and INPUT[0] not in unused:
        notes.append("the file holds no input normalisation, the model keeps its own")
    elif "normalise.mean" in left:
        notes.append(f"input normalisation from the file: {_pair(left)}")
    kinds = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in left.values()
                    if tensor.is_floating_point() and tensor.dtype != torch.float32})
    if kinds:
        notes.append(f"stored as {', '.join(kinds)}")
    return tuple(notes)


def _refuse_normalisation(path: Path, tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor],
                          behind: bool) -> None:
    """Raise where the file's network sees images that are normalised in another way than the model's would be."""
    normalises, inside = set(INPUT) <= set(wanted), set(INPUT) <= set(tensors)
    # The pair of a model that a user built for such a file differs from the file's: it holds both steps.
    both = normalises and inside and any(not torch.equal(tensors[name], wanted[name].cpu()) for name in INPUT)
    if inside and behind and not both:
        raise UserError(f"{path} normalises its input with {_pair(tensors)} behind a first normalisation that is not "
                        "in the file (its names start with 1.): build the model with both in one, normalise="
                        "(first mean + first std * mean, first std * std); nothing was loaded")
    if normalises:
        return
    if inside:
        raise UserError(f"{path} normalises its input and the model does not: build it with "
                        f"normalise={_pair(tensors)}; nothing was loaded")
    if behind:
        raise UserError(f"the network in {path} stands behind something that is not in the file (its names start with "
                        "1.), most likely an input normalisation: build the model with normalise=(mean, std), or with "
                        "means 0 and deviations 1 if it saw raw images; nothing was loaded")


def _pair(tensors: Mapping[str, Tensor]) -> str:
    mean, std = ([round(value, 6) for value in tensors[f"normalise.{name}"].flatten().tolist()]
                 for name in ("mean", "std"))
    return f"({mean}, {std})"


def _part_of(path: Path, part: str | None) -> Part:
    return _explained(path, pick_part, _read(path, "cpu", mmap=True), part)


def _explained(path: Path, function: Any, *arguments: Any) -> Any:
    """function(*arguments), whose UserError gets the file's name in front."""
    try:
        return function(*arguments)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


# ------------------------------------------------------------------------------------------------------------ writing

def _portable(value: Any) -> Any:
    """The tree with its tensors on the CPU, contiguous, each with no more memory than it shows."""
    if isinstance(value, Tensor):
        tensor = value.detach().to("cpu").contiguous()
        return tensor.clone() if tensor.untyped_storage().nbytes() != tensor.numel() * tensor.element_size() else tensor
    if isinstance(value, Mapping):
        return {_plain(key): _portable(inner) for key, inner in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(_portable, value))
    return _plain(value)


def _plain(value: Any) -> Any:
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(f"a checkpoint holds tensors and plain values only, not a {type(value).__name__}")


def _write(path: Path, tree: Any) -> None:
    # A signal within torch's writer would be taken for a disk that fails.
    with held(), replacing(path) as temporary, open(temporary, "wb") as stream:
        # Through a stream, since torch writes the name of a path into the file and equal trees should give equal files.
        try:
            torch.save(tree, stream)
        except RuntimeError as error:
            if "PytorchStreamWriter" in str(error) or "inline_container" in str(error):
                raise _disk_failure(path, error) from error
            raise


def _disk_failure(path: Path, error: RuntimeError) -> OSError:
    """The OSError behind a failure of torch's zip writer, which complains of the archive that it could not close."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    full = shutil.disk_usage(path.parent).free < 2 ** 20
    return cause or OSError(errno.ENOSPC if full else errno.EIO, str(error).splitlines()[0])


# ------------------------------------------------------------------------------------------------------------ reading

def _plain_globals() -> list[tuple[Any, str]]:
    """Constructors that are data, not code, and stand in many people's checkpoints: numpy numbers and arrays (a best
    accuracy, say) under the names of numpy 1 and 2, and parsed arguments."""
    scalar, array = np.float64(0).__reduce__()[0], np.zeros(0).__reduce__()[0]
    kinds = {type(np.dtype(code)) for code in "?bBhHiIlLqQefd"}
    return [*((function, f"numpy.{core}.multiarray.{name}") for core in ("core", "_core")
              for function, name in ((scalar, "scalar"), (array, "_reconstruct"))),
            (np.ndarray, "numpy.ndarray"), (np.dtype, "numpy.dtype"), (argparse.Namespace, "argparse.Namespace"),
            *((kind, f"{kind.__module__}.{kind.__qualname__}") for kind in kinds)]


def _read(path: Path, map_location: torch.device | str, *, mmap: bool = False) -> Any:
    """torch.load without code, with one UserError for everything that can be wrong with the file.

    `mmap`: do not read what is not looked at; for callers that copy what they keep.
    """
    if path.suffix == ".safetensors":
        return read_tensors(path)
    try:
        with open(path, "rb") as stream:
            zipped = zipfile.is_zipfile(stream)
            if not zipped and stream.seek(0, 2) == 0:
                raise UserError(f"{path} is empty: fetch it or save it again")
        if zipped and (damaged := _damaged(path)):
            raise UserError(f"{path} is damaged (the checksum of {damaged} fails): fetch it or save it again")
    except FileNotFoundError as error:
        raise UserError(f"there is no checkpoint {path}") from error
    except OSError as error:
        raise UserError(f"cannot read the checkpoint {path}: {error.strerror or error}") from error
    try:
        # Warnings of torch about odd files say less than the errors below.
        with torch.serialization.safe_globals(_plain_globals()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location=map_location, weights_only=True, mmap=mmap and zipped)
    except MemoryError:
        raise
    except Exception as error:  # a file that is no checkpoint makes the unpickler raise errors of every kind
        if (code := _code_in(path, error)) is not None:
            raise UserError(f"{path} holds code{code}, not only tensors: refused, and none of it was run; save the "
                            "network's state_dict() with torch.save and give that file") from error
        said = f" ({str(error).splitlines()[0][:120]})" if isinstance(error, RuntimeError) and str(error) else ""
        raise UserError(f"{path} is no checkpoint that torch can read: damaged, cut short or another kind of file"
                        f"{said}") from error


def _damaged(path: Path) -> str | None:
    """The first member of a zip file that differs from what was written; None if all are whole."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip()
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        return f"its directory: {error}"


def _code_in(path: Path, error: Exception) -> str | None:
    """What code a refused file holds, such as ` (posix.system)`; None if it holds none.  Nothing is run."""
    if "TorchScript" in str(error):
        return " (TorchScript)"
    if found := re.search(r"GLOBAL (\S+)", str(error)):
        return f" ({found[1]})"
    # A pickle that Python wrote without torch: torch stops at its first opcodes, so read it through and look for calls.
    try:
        with open(path, "rb") as stream:
            opcodes = {opcode.name for opcode, _, _ in pickletools.genops(stream)}
    except ValueError:
        return None
    return " (a pickle that torch did not write)" if opcodes & CALLS else None
