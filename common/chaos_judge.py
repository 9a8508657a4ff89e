"""What a run that was killed has lost, beside the same run that nobody touched.  Places are folders (common.chaos)."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from common import records
from common.chaos import files_of
from common.errors import UserError
from common.files import sha256_of

# Not of the work done, but of the clock, and of the checkout, which somebody may edit meanwhile.
OF_THE_MOMENT = ("seconds", "images_per_second", "started", "commit", "dirty")
GOES_ON = "resume.pt"                # says how long the sittings took, and is read by nobody once training ended


def timeless(value: Any) -> Any:
    """JSON without what the clock and the checkout say, at any depth."""
    if isinstance(value, dict):
        return {key: timeless(inner) for key, inner in value.items() if key not in OF_THE_MOMENT}
    return [timeless(inner) for inner in value] if isinstance(value, list) else value


def torn(place: Path, reference: Path | None = None) -> list[str]:
    """The files of a killed job that are not whole, a line each; a temporary is none of them, nor the last line of
    metrics.jsonl.  A cache must besides be the very file of the reference.
    """
    found = []
    for name in sorted(files_of(place)):
        path = place / name
        if name.endswith(".tmp"):
            continue
        try:
            READERS.get(path.suffix, lambda path: None)(path)
        except Exception as error:                        # whatever a reader says of it: it is not whole
            found.append(f"{name} is not whole: {type(error).__name__}: {' '.join(str(error).split())[:120]}")
            continue
        cached = reference is not None and ".cache" in path.parts
        if cached and (not (reference / name).is_file() or sha256_of(reference / name) != sha256_of(path)):
            found.append(f"{name} is a cache that differs from the undisturbed one")
    return found


def losses(reference: Path, place: Path) -> list[str]:
    """What is wrong with a place in which the job has ended, a line each; empty if it is as the reference."""
    ours, theirs = set(files_of(place)), set(files_of(reference))
    found = [f"{name} is missing" for name in sorted(theirs - ours)]
    found += [f"{name} is left over" for name in sorted(ours - theirs)]
    for name in sorted(ours & theirs):
        path = place / name
        if path.name == GOES_ON:
            continue
        try:
            read = READERS.get(path.suffix)
            same = equal(read(reference / name), read(path)) if read else sha256_of(reference / name) == sha256_of(path)
            found += [] if same else [f"{name} differs from the undisturbed run's"]
        except Exception as error:
            found.append(f"{name} is not whole: {type(error).__name__}: {' '.join(str(error).split())[:120]}")
    return found + list(invalid(place))


def invalid(place: Path) -> Iterator[str]:
    """The records in a place that the readers of tables would refuse."""
    for path in sorted(place.rglob("run.json")):
        try:
            for record in records.read_run(path.parent).evals.values():
                _ = record.arrays
        except UserError as error:
            yield f"{path.relative_to(place).parent} is refused: {error}"


def equal(one: Any, other: Any) -> bool:
    """Whether two trees of dictionaries, lists, arrays, tensors and plain values are the same to the last bit."""
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(equal(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return isinstance(other, list | tuple) and len(one) == len(other) and all(map(equal, one, other))
    if hasattr(one, "numpy"):
        return hasattr(other, "numpy") and one.dtype == other.dtype and equal(bits(one), bits(other))
    if isinstance(one, np.ndarray):
        return (isinstance(other, np.ndarray) and one.dtype == other.dtype and one.shape == other.shape
                and one.tobytes() == other.tobytes())
    return type(one) is type(other) and one == other


def bits(tensor: Any) -> np.ndarray:
    """A tensor's bytes with its shape, as an array, whatever its type."""
    import torch

    flat = tensor.detach().cpu().contiguous()
    shape = np.array(flat.shape, np.int64)
    return np.concatenate([shape.view(np.uint8), flat.reshape(-1).view(torch.uint8).numpy()])


def _arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _array(path: Path) -> np.ndarray:
    return np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)


def _tensors(path: Path) -> Any:
    from common.checkpoint import load_tree

    return load_tree(path)


def _picture(path: Path) -> np.ndarray:
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image)


READERS: dict[str, Callable[[Path], Any]] = {
    ".json": lambda path: timeless(json.loads(path.read_text(encoding="utf-8"))),
    ".jsonl": lambda path: timeless(records.read_metrics(path)),
    ".npz": _arrays, ".npy": _array, ".pt": _tensors, ".png": _picture,
}
