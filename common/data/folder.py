"""Data sets that are folders of images: train/CLASS/... and test/CLASS/... (or val/), decoded once and cached."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.data import folder_cache
from common.data.decode import check_pixels, in_parallel, opened
from common.data.npz import slug
from common.data.splits import DataSet, in_fixed_order
from common.errors import UserError
from common.inputs import cannot_read, check_memory, refuse_way_out

ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".pbm", ".tif", ".tiff", ".webp", ".gif"}
GREY = {"1", "L", "LA"}
DEEP = {"I", "F", "I;16", "I;16L", "I;16B", "I;16N"}          # Pillow's modes of more than 8 bits per channel


@dataclass(frozen=True)
class Part:
    """The image files of one split: paths sorted by class, then by name; labels number the sorted classes."""

    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]


def load_folder(spec: str, *, data_dir: Path) -> DataSet:
    """The data set in the folder `spec`, "PATH" or "PATH?size=S".

    Layout: train/CLASS/..., test/CLASS/... (or val/, taken as test, which `source` says); images may lie in folders
    below CLASS; hidden files and other endings than ENDINGS are left out.  Classes are the sorted folder names, the
    same in both.  All images must have one size, unless size=S: then the shorter side becomes S (bilinear with
    antialiasing), and the centre S x S is cut out.  One colour image in either split makes all RGB; else all are grey.
    The images stand in a fixed random order (`splits.fixed_order`), so that the first N are a sample of all classes.
    Transparency is dropped, EXIF rotation is not applied.  Decoded arrays are cached in data_dir/.cache.
    Raises UserError for anything that is missing or unreadable, naming the file.
    """
    root, size = _parsed(spec)
    try:
        train, test, second = _scan(root)
    except (OSError, RuntimeError) as error:               # no permission, a name too long, links in circles
        cannot_read(root, error)
    parts = {"train": train, second: test}
    key = folder_cache.key([path for part in parts.values() for path in part.paths], root, f"size={size}")
    cache = Path(data_dir) / ".cache" / f"{slug(root.resolve().name)}-{key[:16]}.npz"
    images = folder_cache.read(cache, key, [len(part.paths) for part in parts.values()])
    if images is None:
        images = _decoded(root, [*parts.values()], size)
        folder_cache.write(cache, key, images)
    splits = [in_fixed_order(array, part.labels) for array, part in zip(images, parts.values(), strict=True)]
    name = slug(root.resolve().name)
    source = f"folder:{name}" + (f"?size={size}" if size else "") + (" (val taken as test)" if second == "val" else "")
    return DataSet(name, splits[0], splits[1], len(train.classes), train.classes, source)


def _parsed(spec: str) -> tuple[Path, int | None]:
    """(folder, size or None) of "PATH?size=S"."""
    match = re.fullmatch(r"(.+)\?(\w+)=([^?/]*)", spec)
    if match is None:
        return Path(spec), None
    path, option, value = match.groups()
    if option != "size":
        raise UserError(f"folder:{spec} has the unknown option {option!r}: there is only size, folder:{path}?size=64",
                        code="E-DATASET")
    if not re.fullmatch(r"[1-9]\d{0,3}", value):
        raise UserError(f"folder:{spec} has the size {value!r}: give the side in pixels, 1 to 9999, "
                        f"folder:{path}?size=64", code="E-DATASET")
    return Path(path), int(value)


def _scan(root: Path) -> tuple[Part, Part, str]:
    """The files of the training and the second part, and the second's name: "test" or "val"."""
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "does not exist"
        raise UserError(f"folder {root} {what}: check the path (relative ones start at {Path.cwd()})",
                        code="E-DATA-MISSING")
    second = next((name for name in ("test", "val") if (root / name).is_dir()), None)
    if second is None or not (root / "train").is_dir():
        found = ", ".join(sorted(path.name + "/" for path in root.iterdir() if path.is_dir())[:12]) or "no folder"
        raise UserError(f"{root} has no {'test/ or val/' if (root / 'train').is_dir() else 'train/'}: found {found}; "
                        "wanted train/CLASS/ and test/CLASS/ (or val/CLASS/) with the images", code="E-FOLDER-LAYOUT")
    train, test = _part(root, "train"), _part(root, second)
    for here, there, classes in (("train", second, set(train.classes) - set(test.classes)),
                                 (second, "train", set(test.classes) - set(train.classes))):
        if classes:
            raise UserError(f"{root}: {there}/ has no class folder {', '.join(sorted(classes)[:8])}, which {here}/ "
                            "has: both need the same classes", code="E-FOLDER-LAYOUT")
    return train, test, second


def _part(root: Path, name: str) -> Part:
    inside = root.resolve()
    refuse_way_out(root / name, inside)
    folders = sorted((path for path in (root / name).iterdir() if not path.name.startswith(".") and path.is_dir()),
                     key=lambda path: path.name)
    if not folders:
        raise UserError(f"{root / name} has no class folder: put the images into {root / name}/CLASS/",
                        code="E-FOLDER-LAYOUT")
    if odd := next((path.name for path in folders if not path.name.isprintable()), None):
        raise UserError(f"{root / name} has a class folder named {odd!a}, which cannot be printed: rename it",
                        code="E-FILE-NAME")
    paths: list[Path] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
        files = _images_below(folder, inside, above=())
        if not files:
            raise UserError(f"class folder {folder} has no image ({', '.join(sorted(ENDINGS))}): "
                            "fill it or remove it", code="E-NO-IMAGE")
        paths += files
        labels += [label] * len(files)
    return Part(tuple(paths), tuple(labels), tuple(folder.name for folder in folders))


def _images_below(folder: Path, inside: Path, above: tuple[Path, ...]) -> list[Path]:
    """Image files in `folder` and below, sorted by name level by level."""
    refuse_way_out(folder, inside)
    here = folder.resolve()
    if here in above:
        raise UserError(f"{folder} is a link to a folder that holds it: remove it", code="E-LINK")
    files: list[Path] = []
    try:
        with os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"cannot read the folder {folder}: {error.strerror or error}", code="E-READ") from error
    for entry in entries:
        path = Path(entry.path)
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            files += _images_below(path, inside, (*above, here))
        elif path.suffix.lower() in ENDINGS:
            if entry.is_symlink():
                refuse_way_out(path, inside)
            files.append(path)
    return files


def _decoded(root: Path, parts: list[Part], size: int | None) -> list[np.ndarray]:
    """uint8 (N,C,H,W) for each part: first all headers, which say size and colour, then all pixels."""
    paths = [path for part in parts for path in part.paths]
    headers: list[tuple[tuple[int, int], str]] = [((0, 0), "")] * len(paths)

    def read_header(position: int) -> None:
        headers[position] = opened(paths[position], lambda image: (image.size, image.mode))

    in_parallel(read_header, range(len(paths)), "reading headers")
    for path, (_, mode) in zip(paths, headers, strict=True):
        if mode in DEEP:
            raise UserError(f"{path} has more than 8 bits per channel (mode {mode}): convert it to 8 bits",
                            code="E-IMAGE")
    width, height = headers[0][0]
    if size is None:
        for path, (found, _) in zip(paths, headers, strict=True):
            if found != (width, height):
                raise UserError(f"{path} is {found[0]}x{found[1]} (width x height) but {paths[0]} is {width}x{height}: "
                                f"all images must have one size; folder:{root}?size={min(width, height)} resizes them",
                                code="E-IMAGE-SIZE")
    else:
        width = height = size
        for path, (found, _) in zip(paths, headers, strict=True):
            check_pixels(path, size * size * max(found) // max(1, min(found)))
    colour = any(mode not in GREY for _, mode in headers)
    check_memory(len(paths) * (3 if colour else 1) * height * width, f"{root}, decoded,")
    out = np.empty((len(paths), 3 if colour else 1, height, width), np.uint8)

    def decode(position: int) -> None:
        def pixels(image: Any) -> np.ndarray:
            return np.asarray(_resized(image.convert("RGB" if colour else "L"), size)).reshape(height, width, -1)

        out[position] = opened(paths[position], pixels).transpose(2, 0, 1)

    in_parallel(decode, range(len(paths)), "decoding images")
    return np.split(out, np.cumsum([len(part.paths) for part in parts])[:-1])


def _resized(image: Any, size: int | None) -> Any:
    """Shorter side to `size` (bilinear, antialiased), then the centre size x size."""
    if size is None or image.size == (size, size):
        return image
    from PIL import Image

    width, height = image.size
    short = min(width, height)
    width, height = round(width * size / short), round(height * size / short)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))
