"""Data sets by name, as uint8 tensors: load("cifar10"), load("digits"), load("npz:PATH"), load("folder:PATH")."""

import difflib
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from common.data.batches import Batches, augment
from common.data.digits import load_digits
from common.data.folder import load_folder
from common.data.npz import load_npz
from common.data.splits import DataSet, Split, hold_out, to_float
from common.data.tiny_imagenet import load_tiny_imagenet
from common.data.vision import SOURCES, load_vision
from common.errors import UserError

__all__ = ["NAMED", "Batches", "DataSet", "Split", "augment", "hold_out", "load", "to_float"]

# Name -> loader(data_dir).  A new data set is a line here.
NAMED: dict[str, Callable[[Path], DataSet]] = {
    **{name: partial(load_vision, name) for name in SOURCES},
    "digits": lambda data_dir: load_digits(),
    "tiny-imagenet": load_tiny_imagenet,
    "tiny-imagenet?subset": partial(load_tiny_imagenet, subset=True),
}


def load(spec: str, *, data_dir: Path = Path("data")) -> DataSet:
    """The data set that `spec` names: a name in NAMED, npz:PATH, or folder:PATH (folder:PATH?size=64 resizes,
    tiny-imagenet?subset takes what there is of it).

    What must be downloaded or cached goes into `data_dir`; data/README.md has the layouts.  Raises UserError with one
    line for anything that is missing, damaged, or not as it should be.
    """
    data_dir = Path(data_dir)
    kind, colon, path = spec.partition(":")
    if colon and kind in ("npz", "folder"):
        if not path:
            raise UserError(f"{spec!r} names no path: write {kind}:PATH", code="E-DATASET")
        return load_npz(Path(path)) if kind == "npz" else load_folder(path, data_dir=data_dir)
    if spec in NAMED:
        return NAMED[spec](data_dir)
    names = ", ".join([*NAMED, "npz:PATH", "folder:PATH"])
    raise UserError(f"unknown data set {spec!r}{_suggestion(spec)}; there are: {names}", code="E-DATASET")


def _suggestion(spec: str) -> str:
    if spec.endswith(".npz"):
        return f": did you mean npz:{spec}?"
    if os.path.isdir(spec):                  # False, not an error, for what can be no path
        return f": did you mean folder:{spec}?"
    plain = {name.replace("-", ""): name for name in NAMED}
    close = difflib.get_close_matches(spec.lower().replace("-", "").replace("_", ""), plain, n=1)
    return f": did you mean {plain[close[0]]}?" if close else ""
