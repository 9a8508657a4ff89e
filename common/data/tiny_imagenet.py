"""Tiny-ImageNet (200 classes, 64x64), read as its authors' archive unpacks, or with the images sorted into classes."""

import hashlib
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.data import folder_cache
from common.data.decode import in_parallel, opened
from common.data.splits import DataSet, in_fixed_order
from common.errors import UserError
from common.inputs import cannot_read, check_is_file, refuse_way_out

NAME = "tiny-imagenet"
FOLDERS = ("tiny-imagenet-200", "tiny-imagenet")       # looked for below the data folder, in this order
CLASSES, SIDE = 200, 64
PER_CLASS = {"train": 500, "val": 50}
# Ending -> what the file must be.  The official files are JPEGs; PNG copies lose nothing, so they may stand in.
FORMATS = {".jpeg": "JPEG", ".jpg": "JPEG", ".png": "PNG"}


@dataclass(frozen=True)
class Part:
    """The image files of one split, sorted by class, then by name; labels number the sorted training classes."""

    name: str                  # "train" or "val"
    paths: list[Path]
    labels: list[int]


def load_tiny_imagenet(data_dir: Path, *, subset: bool = False) -> DataSet:
    """Tiny-ImageNet below `data_dir`, in tiny-imagenet-200/ or tiny-imagenet/: uint8 (N,3,64,64); test is its val/.

    train/<wnid>/images/*.JPEG or train/<wnid>/*.JPEG; val/images/*.JPEG with val/val_annotations.txt, or
    val/<wnid>/*.JPEG.  The order is torchvision's ImageFolder's (sorted wnids, then sorted file names) under a fixed
    permutation (`splits.fixed_order`), so that the first N images are a sample of all classes.  Grey images become
    RGB.  PNG copies (.png) are accepted, and `source` counts them.  Class names are those of words.txt.  There must be
    200 classes with 500 training and 50 validation images each; subset=True takes a part of it, and `source` says how
    much there is.  Decoded arrays are cached in data_dir/.cache.  Raises UserError.
    """
    root = Path(data_dir)
    try:
        root = _root(root)
        classes = _classes(root, subset)
        train = _sorted_into_classes(root, "train", classes)
        annotated = _has_images(root / "val" / "images", root)
        val = _annotated(root, classes) if annotated else _sorted_into_classes(root, "val", classes)
        names = _class_names(root, classes)
    except (OSError, RuntimeError) as error:               # no permission, links in circles
        cannot_read(root, error)
    whole = len(classes) == CLASSES and all(_counts_off(part, len(classes)) is None for part in (train, val))
    if not whole:
        _check_part(root, [train, val], classes, subset)
    arrays = _pixels(root, [train, val], Path(data_dir))
    splits = []
    for array, part in zip(arrays, (train, val), strict=True):
        splits.append(in_fixed_order(array, part.labels))
    source = f"Tiny-ImageNet, {'as unpacked' if annotated else 'sorted into class folders'} (val taken as test)"
    if not whole:
        source += (f"; a subset: {len(classes)} of {CLASSES} classes, {len(train.paths)} of "
                   f"{CLASSES * PER_CLASS['train']} training and {len(val.paths)} of {CLASSES * PER_CLASS['val']} "
                   "validation images")
    copies = sum(_format(path) == "PNG" for part in (train, val) for path in part.paths)
    if copies:
        source += f"; {copies} images are PNG copies"
    return DataSet(NAME, splits[0], splits[1], len(classes), names, source)


def _root(data_dir: Path) -> Path:
    command = "bash data/TinyImageNet-200.sh"
    there = [data_dir / name for name in FOLDERS if (data_dir / name).is_dir()]
    if not there:
        raise UserError(f"no Tiny-ImageNet in {data_dir} (looked for {' and '.join(FOLDERS)}): fetch it with "
                        f"`{command} {data_dir}`, or name the folder that holds it with --data_dir",
                        code="E-DATA-MISSING")
    for root in there:
        if all((root / part).is_dir() for part in PER_CLASS):
            return root
    lacking = " and ".join(f"{part}/" for part in PER_CLASS if not (there[0] / part).is_dir())
    raise UserError(f"{there[0]} has no {lacking}: remove it and fetch Tiny-ImageNet again with `{command} {data_dir}`",
                    code="E-TINY-IMAGENET")


def _classes(root: Path, subset: bool) -> list[str]:
    """The sorted wnids of the training folders, which must be those of wnids.txt if that is there."""
    classes = sorted(entry.name for entry in _entries(root / "train", root) if entry.is_dir())
    if not classes:
        raise UserError(f"{root / 'train'} has no class folder: remove {root} and fetch Tiny-ImageNet again",
                        code="E-TINY-IMAGENET")
    if (root / "wnids.txt").is_file():
        listed = set(_lines(root / "wnids.txt", root))
        strange = [name for name in classes if name not in listed]
        if strange:
            raise UserError(f"{root / 'train' / strange[0]} is no class of {root / 'wnids.txt'}: remove one of both",
                            code="E-TINY-IMAGENET")
        absent = sorted(listed.difference(classes))
        if absent and not subset:
            raise UserError(f"{root / 'train'} has no folder {absent[0]}, which wnids.txt lists ({len(absent)} of "
                            f"{len(listed)} are missing): {_mend(root)}", code="E-TINY-IMAGENET")
    return classes


def _sorted_into_classes(root: Path, part: str, classes: list[str]) -> Part:
    """The images of PART/<wnid>/ and PART/<wnid>/images/."""
    folders = sorted(entry.name for entry in _entries(root / part, root) if entry.is_dir() and entry.name != "images")
    if part == "val" and not folders:
        raise UserError(f"{root / part} has neither images/ nor class folders: {_mend(root)}", code="E-TINY-IMAGENET")
    strange = [name for name in folders if name not in classes]
    if strange:
        raise UserError(f"{root / part / strange[0]} is no class of {root / 'train'}: remove it",
                        code="E-TINY-IMAGENET")
    labels = {name: label for label, name in enumerate(classes)}
    files = [(labels[name], path) for name in folders for path in _images(root / part / name, root)]
    return Part(part, [path for _, path in files], [label for label, _ in files])


def _annotated(root: Path, classes: list[str]) -> Part:
    """The images of val/images/, with the classes that val/val_annotations.txt gives them."""
    table, folder = root / "val" / "val_annotations.txt", root / "val" / "images"
    if not table.is_file():
        raise UserError(f"{table} is missing, and without it the images in {folder} have no classes: {_mend(root)}",
                        code="E-TINY-IMAGENET")
    labels = {name: label for label, name in enumerate(classes)}
    files = {path.name: path for path in _images(folder, root)}
    found: dict[str, int] = {}
    for number, line in enumerate(_lines(table, root), start=1):
        name, *rest = line.split("\t")
        if not rest or not name or "/" in name:
            raise UserError(f"{table}, line {number}: {line[:60]!r} is not a file name, a tab, and a class: "
                            f"{_mend(root)}", code="E-TINY-IMAGENET")
        if rest[0] not in labels:
            raise UserError(f"{table}, line {number}: {rest[0][:60]!r} is no class of {root / 'train'}: remove the "
                            "line and its image, or add the class", code="E-TINY-IMAGENET")
        if name in found:
            raise UserError(f"{table}, line {number}: {name} has a class already: remove one of both lines",
                            code="E-TINY-IMAGENET")
        if name not in files:
            raise UserError(f"{table}, line {number}: {name[:60]!r} is not in {folder}: {_mend(root)}",
                            code="E-TINY-IMAGENET")
        found[name] = labels[rest[0]]
    if len(found) < len(files):
        nameless = min(files.keys() - found.keys())
        raise UserError(f"{table} has no line for {nameless} ({len(files) - len(found)} images have none): "
                        f"{_mend(root)}", code="E-TINY-IMAGENET")
    ordered = sorted(found, key=lambda name: (found[name], name))
    return Part("val", [files[name] for name in ordered], [found[name] for name in ordered])


def _images(folder: Path, root: Path, *, deepest: bool = False) -> list[Path]:
    """Image files of `folder` and of its folder images/, each sorted by name; text and hidden files are left out."""
    entries = _entries(folder, root)
    deeper = [] if deepest else [entry for entry in entries if entry.is_dir()]
    paths = []
    for entry in entries:
        ending = os.path.splitext(entry.name)[1].lower()
        if ending in FORMATS and entry.is_file():
            paths.append(Path(entry.path))
        elif ending != ".txt" and (entry not in deeper or entry.name != "images"):
            raise UserError(f"{entry.path} is no JPEG and has no business here: remove it (PNG copies of images are "
                            "accepted as .png)", code="E-TINY-IMAGENET")
    return paths + [path for entry in deeper for path in _images(Path(entry.path), root, deepest=True)]


def _has_images(folder: Path, root: Path) -> bool:
    return folder.is_dir() and any(os.path.splitext(entry.name)[1].lower() in FORMATS
                                   for entry in _entries(folder, root))


def _entries(folder: Path, root: Path) -> list[os.DirEntry]:
    """What lies in `folder`, sorted by name; hidden files are left out.  UserError for links out of `root`."""
    refuse_way_out(folder, root.resolve())
    try:
        with os.scandir(folder) as listing:
            found = sorted((entry for entry in listing if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"cannot read the folder {folder}: {error.strerror or error}", code="E-READ") from error
    for entry in found:
        if entry.is_symlink():
            refuse_way_out(Path(entry.path), root.resolve())
    return found


def _counts_off(part: Part, classes: int) -> int | None:
    """The first class that has not its number of images, or None."""
    counts = Counter(part.labels)
    return next((label for label in range(classes) if counts[label] != PER_CLASS[part.name]), None)


def _check_part(root: Path, parts: list[Part], classes: list[str], subset: bool) -> None:
    """UserError if what is not the whole data set cannot be used, or was not asked for."""
    for part in parts:
        off = _counts_off(part, len(classes))
        if off is not None and not subset:
            raise UserError(f"class {classes[off]} has {part.labels.count(off)} images in {root / part.name}, not "
                            f"{PER_CLASS[part.name]}: {_mend(root)}", code="E-TINY-IMAGENET")
    if not subset:
        raise UserError(f"{root / 'train'} has {len(classes)} classes, not {CLASSES}: {_mend(root)}",
                        code="E-TINY-IMAGENET")
    train, val = parts
    empty = set(range(len(classes))).difference(train.labels)
    if empty:
        raise UserError(f"class folder {root / 'train' / classes[min(empty)]} has no image: fill it or remove it",
                        code="E-NO-IMAGE")
    if not val.paths:
        raise UserError(f"{root / 'val'} has no image: at least one is needed to measure anything", code="E-NO-IMAGE")


def _mend(root: Path) -> str:
    return (f"remove {root} and fetch it again with `bash data/TinyImageNet-200.sh`, or use what is there with "
            f"--data {NAME}?subset")


def _pixels(root: Path, parts: list[Part], data_dir: Path) -> list[np.ndarray]:
    """uint8 (N,3,64,64) of each part, from the cache if nothing has changed."""
    paths = [path for part in parts for path in part.paths]
    # The order comes from val_annotations.txt, which may change while the files do not.
    order = hashlib.sha256("\n".join(path.relative_to(root).as_posix() for path in paths)
                           .encode(errors="surrogateescape")).hexdigest()
    key = folder_cache.key(paths, root, f"{NAME} order={order}")
    cache = data_dir / ".cache" / f"{NAME}-{key[:16]}.npz"
    arrays = folder_cache.read(cache, key, [len(part.paths) for part in parts])
    if arrays is not None and all(array.shape[1:] == (3, SIDE, SIDE) for array in arrays):
        return arrays
    out = np.empty((len(paths), 3, SIDE, SIDE), np.uint8)

    def decode(position: int) -> None:
        out[position] = opened(paths[position], lambda image: _rgb(image, paths[position])).transpose(2, 0, 1)

    in_parallel(decode, range(len(paths)), "decoding images")
    arrays = np.split(out, [len(parts[0].paths)])
    folder_cache.write(cache, key, arrays)
    return arrays


def _rgb(image: Any, path: Path) -> np.ndarray:
    """uint8 (64,64,3) of an open Pillow image."""
    if image.format != _format(path):
        raise UserError(f"{path} is no {_format(path)} (but {image.format}): replace or remove it", code="E-IMAGE")
    if image.size != (SIDE, SIDE):
        raise UserError(f"{path} is {image.width}x{image.height} (width x height), not {SIDE}x{SIDE}: "
                        "replace or remove it", code="E-IMAGE")
    return np.asarray(image.convert("RGB"))


def _format(path: Path) -> str:
    return FORMATS[path.suffix.lower()]


def _class_names(root: Path, classes: list[str]) -> tuple[str, ...]:
    """The words for each wnid, where words.txt has them."""
    words: dict[str, str] = {}
    if (root / "words.txt").is_file():
        words = dict(line.split("\t", 1) for line in _lines(root / "words.txt", root) if "\t" in line)
    return tuple(words.get(name, name) for name in classes)


def _lines(path: Path, root: Path) -> list[str]:
    """The lines of a text file below `root` that are not empty."""
    refuse_way_out(path, root.resolve())
    check_is_file(path)
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        cannot_read(path, error)
    return [line for line in text.splitlines() if line.strip()]
