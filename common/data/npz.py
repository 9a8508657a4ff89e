"""Data sets in one npz file, and the checks that arrays from anywhere must pass to become splits."""

import re
from pathlib import Path

import numpy as np
import torch

from common.data.splits import DataSet, Split
from common.errors import UserError
from common.inputs import cannot_read, check_is_file
from common.npz_files import is_zip, read_arrays

# More than any data set has: labels beyond are a mistake, and would make the network's last layer huge.
MAX_CLASSES = 100_000
USED = re.compile(r"(train|test|val)_(images|labels|exact)|class_names")


def slug(text: str) -> str:
    """`text` as a name for a data set, fit for a folder: anything but letters, digits, ".", "_", "-" becomes "-"."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "data"


def load_npz(path: Path, *, name: str | None = None, source: str | None = None) -> DataSet:
    """The data set in the npz file `path`.

    Keys: train_images, train_labels, test_images, test_labels; val_images, val_labels where there is no test_*, which
    `source` then says.  Images uint8, NHWC with 1 or 3 channels, or NHW; labels integers from 0 on, (N,).  Optional:
    class_names (K,), strings; train_exact, test_exact (N,), bool: `source` counts the images that are not exact.
    Other keys are ignored.  K is max(train label)+1, or more if class_names has more.  Raises UserError.
    """
    path = Path(path)
    arrays = _read(path)
    second = "test" if "test_images" in arrays or "test_labels" in arrays else "val"
    wanted = [f"{part}_{what}" for part in ("train", second) for what in ("images", "labels")]
    missing = [key for key in wanted if key not in arrays]
    if missing:
        found = ", ".join(key if key.isprintable() else repr(key) for key in sorted(arrays)[:12]) or "nothing"
        raise UserError(f"{path} has no {', '.join(missing)}: found {found}; wanted train_images, train_labels, "
                        "test_images, test_labels (val_ is accepted for test_)", code="E-NPZ-KEYS")
    train = checked_split(arrays["train_images"], arrays["train_labels"], f"{path}: train_")
    test = checked_split(arrays[f"{second}_images"], arrays[f"{second}_labels"], f"{path}: {second}_")
    if train.images.shape[1:] != test.images.shape[1:]:
        raise UserError(f"{path}: train_images are {_size(train)} but {second}_images {_size(test)}: "
                        "bring them to one size", code="E-NPZ-SHAPE")
    names = _class_names(arrays.get("class_names"), train, path)
    check_labels(test, len(names), f"{path}: {second}_labels")
    source = source or f"npz:{path.name}"
    if second == "val":
        source += " (val_ taken as test)"
    inexact = [_inexact(arrays.get(f"{part}_exact"), split) for part, split in (("train", train), (second, test))]
    if any(inexact):
        source += f" ({inexact[0]} training and {inexact[1]} test images not exact)"
    return DataSet(name or slug(path.stem), train, test, len(names), names, source)


def checked_split(images: np.ndarray, labels: np.ndarray, where: str) -> Split:
    """A split from uint8 NHWC or NHW images and integer labels (N,); `where` + "images" names the array in errors."""
    images = _checked_images(images, f"{where}images")
    if labels.dtype.kind not in "iu":
        raise UserError(f"{where}labels are {_kind(labels)}, not integers: give class numbers from 0 on, "
                        'labels.astype("int64")', code="E-LABELS")
    if labels.ndim != 1:
        raise UserError(f"{where}labels have shape {labels.shape}, not ({len(images)},): "
                        "give one class number per image", code="E-LABELS")
    if len(labels) != len(images):
        raise UserError(f"{where}labels has {len(labels)} labels for {len(images)} images: give one per image",
                        code="E-LABELS")
    if labels.min() < 0:
        raise UserError(f"{where}labels has the label {labels.min()}, at position {labels.argmin()}: "
                        "number the classes from 0 on", code="E-LABELS")
    if labels.max() >= MAX_CLASSES:
        raise UserError(f"{where}labels has the label {labels.max()}, at position {labels.argmax()}: "
                        "number the classes from 0 on, without large gaps", code="E-LABELS")
    nchw = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    return Split(torch.from_numpy(nchw), torch.from_numpy(labels.astype(np.int64)))


def check_labels(split: Split, classes: int, where: str) -> None:
    """UserError if the test labels of `split` leave 0..classes-1."""
    if int(split.labels.max()) >= classes:
        raise UserError(f"{where} has the label {int(split.labels.max())}, at position {int(split.labels.argmax())}, "
                        f"but the training split has only {classes} classes, 0 to {classes - 1}: "
                        "number both alike, or add class_names", code="E-LABELS")


def check_is_npz(path: Path) -> None:
    """UserError unless `path` is a zip file with its end; what is in it is not looked at."""
    check_is_file(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder, not an npz file: use folder:{path} for a folder of images", code="E-NPZ")
    try:
        with open(path, "rb") as stream:
            start = stream.read(2)
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist: check the path (relative ones start at {Path.cwd()})",
                        code="E-DATA-MISSING") from error
    except OSError as error:
        cannot_read(path, error)
    if start != b"PK":
        raise UserError(f"{path} is {'empty' if not start else 'not an npz file'}: "
                        "write one with numpy.savez (data/README.md gives the layout)", code="E-NPZ")
    if not is_zip(path):
        raise UserError(f"{path} is cut off, its end is missing: copy or download it again", code="E-DATA-DAMAGED")


def _read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of the file that matter to us, without ever unpickling."""
    check_is_npz(path)
    try:
        return read_arrays(path, USED.fullmatch, present=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {_reason(error)}: the file is damaged; copy or download it again",
                        code="E-DATA-DAMAGED") from error


def _checked_images(images: np.ndarray, where: str) -> np.ndarray:
    """`images` as uint8 NHWC, or UserError."""
    if images.dtype != np.uint8:
        mend = ("multiply images in [0,1] by 255, round, and cast: (images * 255).round().astype(\"uint8\")"
                if images.dtype.kind == "f" else "give values 0..255 and cast with .astype(\"uint8\")")
        raise UserError(f"{where} is {_kind(images)}, not uint8: {mend}", code="E-NPZ-DTYPE")
    if images.ndim not in (3, 4) or 0 in images.shape[1:]:
        raise UserError(f"{where} has shape {images.shape}: give (N,H,W,3), (N,H,W,1) or (N,H,W)", code="E-NPZ-SHAPE")
    if len(images) == 0:
        raise UserError(f"{where} has no image: give at least one", code="E-NO-IMAGE")
    if images.ndim == 3:
        return images[..., None]
    if images.shape[3] in (1, 3):
        return images
    if images.shape[1] in (1, 3):
        raise UserError(f"{where} has shape {images.shape}, channels first: put them last, "
                        "images.transpose(0, 2, 3, 1)", code="E-NPZ-SHAPE")
    raise UserError(f"{where} has {images.shape[3]} channels, shape {images.shape}: give (N,H,W,3), (N,H,W,1) "
                    "or (N,H,W)", code="E-NPZ-SHAPE")


def _class_names(names: np.ndarray | None, train: Split, path: Path) -> tuple[str, ...]:
    classes = int(train.labels.max()) + 1
    if names is None:
        return tuple(str(label) for label in range(classes))
    if names.dtype.kind not in "US" or names.ndim != 1:
        raise UserError(f"{path}: class_names is {_kind(names)} of shape {names.shape}: give a list of strings",
                        code="E-LABELS")
    if len(names) < classes:
        raise UserError(f"{path}: class_names has {len(names)} names but train_labels go up to {classes - 1}: "
                        "give a name per class", code="E-LABELS")
    return tuple(name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name) for name in names)


def _inexact(exact: np.ndarray | None, split: Split) -> int:
    """How many images the file says are not exact copies of the original's."""
    if exact is None or exact.dtype != bool or exact.shape != (len(split),):
        return 0
    return int(len(split) - exact.sum())


def _size(split: Split) -> str:
    channels, height, width = split.images.shape[1:]
    return f"{height}x{width}x{channels}"


def _kind(array: np.ndarray) -> str:
    return {"U": "text", "S": "bytes", "b": "bool"}.get(array.dtype.kind, str(array.dtype))


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
