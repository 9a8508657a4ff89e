"""Extra training images, 1 M to 50 M of them, drawn from npz files that stay on disk.

The files hold `image` (M,H,W,C) uint8 and `label` (M,), such as the samples of diffusion models that Rebuffi et al.
(2021) and Wang et al. (2023) published for CIFAR-10.  Shape letters: M images of a file or of all, R of a request.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from common.data.npz_member import Member, mapped, names_in, open_members, pieces
from common.data.splits import Split
from common.data.unchanged import Seen, file_of
from common.environment import ROOT
from common.errors import UserError
from common.inputs import check_is_file
from common.npz_files import UNREADABLE, mapped_npy

SPREAD = 2048                  # images per file that the fingerprint looks at
MAX_NOTE = 4096                # bytes of a note in the file that are read
LAYOUT = "image (M,H,W,3) uint8 and label (M,) integers, written by numpy.savez"


@dataclass(frozen=True, eq=False)
class ExtraImages:
    """Extra images in one or several parts, numbered through.

    parts: uint8 (M,H,W,C) each, usually memory maps; labels: integers (M,) over all parts; chosen: the positions in
    use, int64, in that order, or None for all; source says in words where they come from; opened: the files that the
    parts are maps of.
    """

    parts: tuple[np.ndarray, ...]
    labels: np.ndarray
    source: str
    chosen: np.ndarray | None = None
    files: tuple[dict[str, Any], ...] = field(default=())
    opened: tuple[Seen, ...] = field(default=())

    @classmethod
    def of_split(cls, split: Split, source: str) -> "ExtraImages":
        """Those of a split, without a copy if it is on the CPU."""
        text = f"{source} ({split.note})" if split.note else source
        return cls((split.images.cpu().numpy().transpose(0, 2, 3, 1),), split.labels.cpu().numpy(), text)

    def __len__(self) -> int:
        return len(self.labels if self.chosen is None else self.chosen)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C,H,W), as a DataSet has it."""
        height, width, channels = self.parts[0].shape[1:]
        return channels, height, width

    def check_unchanged(self) -> None:
        """UserError where a file on disk is no longer the one that was opened."""
        for file in self.opened:
            file.check()

    def gather(self, which: np.ndarray, out: np.ndarray) -> np.ndarray:
        """Copy the images `which` (R,), each 0..len-1, into `out`, uint8 (R,H,W,C); returns their labels, int64 (R,).

        Reads in the order of the file, for the sake of disks.
        """
        positions = which if self.chosen is None else self.chosen[which]
        order = np.argsort(positions, kind="stable")
        ends = np.cumsum([len(part) for part in self.parts])
        cuts = np.searchsorted(positions[order], ends)
        begin = 0
        for part, end, cut in zip(self.parts, ends, cuts, strict=True):
            rows = order[begin:cut]
            out[rows] = part[positions[rows] - (end - len(part))]
            begin = cut
        return self.labels[positions].astype(np.int64)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 (hex) that identifies the images without reading all: over each part's shape and SPREAD of its images
        (number floor(i*M/SPREAD) for i = 0, 1, ...; all where there are no more), then all labels and the chosen
        positions, both as little-endian int64.  Two sets that differ in none of these have the same fingerprint.
        """
        digest = hashlib.sha256()
        for part in self.parts:
            count = min(len(part), SPREAD)
            digest.update(f"extra {part.shape}\n".encode())
            for number in range(count):
                digest.update(np.ascontiguousarray(part[number * len(part) // count]).data)
        for name, numbers in (("labels", self.labels), ("chosen", self.chosen)):
            digest.update(f"{name} {None if numbers is None else numbers.shape}\n".encode())
            for start in range(0, 0 if numbers is None else len(numbers), 1 << 20):
                digest.update(numbers[start:start + (1 << 20)].astype("<i8").data)
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """What a record says of them; JSON-able."""
        return {"source": self.source, "n": len(self), "fingerprint": self.fingerprint,
                "fingerprint_covers": f"shapes, labels, chosen positions, and {SPREAD} images of each part",
                "files": [dict(file) for file in self.files]}


def load_extra(paths: Sequence[str | Path], *, classes: int, image_shape: tuple[int, int, int],
               index: str | Path | None = None, cache: str | Path | None = None) -> ExtraImages:
    """The images of npz files with `image` (M,H,W,C) uint8 and `label` (M,) in 0..classes-1, numbered through.

    image_shape: (C,H,W) that they must have.  index: npy file that chooses from all of them: bool (M,), or integer
    positions, repeats allowed.  cache: the folder where compressed images are unpacked once, into .cache (default:
    data/ of the repository); stored ones are used where they lie.  A file's `source`, a string, goes into the source
    text.  Raises UserError.
    """
    folder = Path(cache) if cache else ROOT / "data"
    if not paths or not all(str(path) for path in paths):
        raise UserError("extra data: an empty file name; name npz files, separated by commas", code="E-FLAG-VALUE")
    found = [_open(Path(path), classes, image_shape) for path in paths]
    labels = np.concatenate([_labels(member["label"], classes) for member in found])
    parts = tuple(mapped(member["image"], folder) for member in found)
    opened = tuple(Seen.now(path) for part in parts if (path := file_of(part)))
    sources = [f"npz:{member['image'].path.name}{_note(member)}" for member in found]
    chosen = None if index is None else _chosen(Path(index), len(labels))
    text = "; ".join(sources)
    if chosen is not None:
        text += f"; {len(chosen)} of {len(labels)} chosen by {Path(index).name}"
    files = tuple({"name": member["image"].path.name, "n": member["image"].shape[0],
                   "bytes": member["image"].path.stat().st_size} for member in found)
    return ExtraImages(parts, labels, text, chosen, files, opened)


def _open(path: Path, classes: int, image_shape: tuple[int, int, int]) -> dict[str, Member]:
    """The members `image`, `label` and perhaps `source`, their headers checked."""
    found = open_members(path, ("image", "label", "source"))
    missing = [key for key in ("image", "label") if key not in found]
    if missing:
        there = ", ".join(name if name.isprintable() else repr(name) for name in names_in(path)[:12]) or "nothing"
        raise UserError(f"{path} has no {' and no '.join(missing)}: found {there}; extra data are {LAYOUT}",
                        code="E-NPZ-KEYS")
    image, label = found["image"], found["label"]
    if image.dtype != np.uint8:
        mend = ('multiply images in [0,1] by 255, round, and cast: (image * 255).round().astype("uint8")'
                if image.dtype.kind == "f" else 'give values 0..255 and cast with .astype("uint8")')
        raise UserError(f"{path}: image is {image.dtype}, not uint8: {mend}", code="E-NPZ-DTYPE")
    channels, height, width = image_shape
    if len(image.shape) != 4 or image.shape[1:] != (height, width, channels):
        raise UserError(f"{path}: image has shape {image.shape}, but the training images ask for "
                        f"(M,{height},{width},{channels}): extra data are {LAYOUT}, of the training images' size",
                        code="E-NPZ-SHAPE")
    if image.shape[0] == 0:
        raise UserError(f"{path} has no image: give at least one", code="E-NO-IMAGE")
    if label.dtype.kind not in "iu":
        raise UserError(f"{path}: label is {label.dtype}, not integers: give class numbers 0 to {classes - 1}",
                        code="E-LABELS")
    if label.shape != image.shape[:1]:
        raise UserError(f"{path}: label has shape {label.shape}, not {image.shape[:1]}: "
                        "give one class number per image", code="E-LABELS")
    return found


def _labels(member: Member, classes: int) -> np.ndarray:
    """All labels in the smallest integer type, checked piece by piece."""
    kept, done = [], 0
    for piece in pieces(member, f"labels of {member.path.name}"):
        wrong = (piece < 0) | (piece >= classes)
        if wrong.any():
            position = int(wrong.argmax())
            raise UserError(f"{member.path}: label has {piece[position]} at position {done + position}, but there are "
                            f"{classes} classes, 0 to {classes - 1}: is this extra data for another data set?",
                            code="E-LABELS")
        kept.append(piece.astype(np.min_scalar_type(classes - 1)))
        done += len(piece)
    return np.concatenate(kept)


def _note(found: dict[str, Member]) -> str:
    """" (what the file says of itself)", or nothing."""
    member = found.get("source")
    if member is None or member.dtype.kind != "U" or not 0 < member.nbytes <= MAX_NOTE:
        return ""
    words = " ".join(str(word) for piece in pieces(member, "source") for word in piece).split()
    return f" ({' '.join(words)})" if words and " ".join(words).isprintable() else ""


def _chosen(path: Path, count: int) -> np.ndarray:
    """The positions (int64) that an index file names, of `count` images."""
    check_is_file(path)
    try:
        index = mapped_npy(path)
    except FileNotFoundError as error:
        raise UserError(f"the index file {path} does not exist: check the path", code="E-INDEX-FILE") from error
    except UNREADABLE as error:
        raise UserError(f"the index file {path} cannot be read: save a mask or positions with numpy.save, "
                        "as .npy", code="E-INDEX-FILE") from error
    if index.ndim != 1 or index.dtype.kind not in "biu":
        raise UserError(f"the index file {path} is {index.dtype} of shape {index.shape}: give a mask, bool ({count},), "
                        "or a list of positions", code="E-INDEX-FILE")
    if index.dtype == bool:
        if len(index) != count:
            raise UserError(f"the index file {path} is a mask of {len(index)} entries for {count} images: "
                            "make one for these files", code="E-INDEX-FILE")
        index = np.flatnonzero(index)
    if len(index) == 0:
        raise UserError(f"the index file {path} chooses no image", code="E-INDEX-FILE")
    low, high = int(index.min()), int(index.max())
    if low < 0 or high >= count:
        raise UserError(f"the index file {path} names position {low if low < 0 else high}, but there are {count} "
                        f"images, 0 to {count - 1}", code="E-INDEX-FILE")
    return np.array(index, np.int64)
