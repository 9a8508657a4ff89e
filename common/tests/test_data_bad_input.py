"""What a user can get wrong with data: one clear line each, and nothing written."""

import io
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from common.data import load
from common.errors import UserError


def good() -> dict[str, np.ndarray]:
    return {"train_images": np.zeros((6, 5, 4, 3), np.uint8), "train_labels": np.arange(6) % 3,
            "test_images": np.zeros((3, 5, 4, 3), np.uint8), "test_labels": np.arange(3)}


def without(*keys: str) -> dict[str, np.ndarray]:
    return {key: array for key, array in good().items() if key not in keys}


def files(folder: Path) -> dict[str, tuple[int, int]]:
    """Everything below `folder`, with size and time."""
    return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in folder.rglob("*")}


def refused(tmp_path: Path, spec: str) -> str:
    """The one line that load(spec) gives, having written nothing."""
    before = files(tmp_path)
    with pytest.raises(UserError) as caught:
        load(spec, data_dir=tmp_path / "data")
    assert files(tmp_path) == before
    line = str(caught.value)
    assert "\n" not in line and len(line) < 1000
    return line


IMAGES, LABELS = good()["train_images"], good()["train_labels"]

WRONG_ARRAYS = {
    "no key": ({}, ["found nothing", "wanted train_images, train_labels, test_images"]),
    "missing": ({**without("train_labels"), "odd": np.zeros(1)}, ["no train_labels", "found odd, test_images"]),
    "no test": (without("test_images", "test_labels"), ["val_ is accepted for test_"]),
    "half test": (without("test_labels"), ["no test_labels"]),
    "floats": ({**good(), "train_images": IMAGES / 255}, ["train_images is float64", "multiply", "255", "uint8"]),
    "int32": ({**good(), "test_images": np.zeros((3, 5, 4, 3), np.int32)}, ["test_images is int32", "uint8"]),
    "flat": ({**good(), "train_images": np.zeros((6, 60), np.uint8)}, ["shape (6, 60)", "(N,H,W,3)"]),
    "five": ({**good(), "train_images": np.zeros((6, 5, 4, 3, 1), np.uint8)}, ["shape (6, 5, 4, 3, 1)"]),
    "no height": ({**good(), "train_images": np.zeros((6, 0, 4, 3), np.uint8)}, ["shape (6, 0, 4, 3)"]),
    "channels first": ({**good(), "train_images": np.zeros((6, 3, 5, 4), np.uint8)},
                       ["channels first", "transpose(0, 2, 3, 1)"]),
    "two channels": ({**good(), "train_images": np.zeros((6, 5, 4, 2), np.uint8)}, ["2 channels"]),
    "empty train": ({**good(), "train_images": IMAGES[:0], "train_labels": LABELS[:0]}, ["train_images has no image"]),
    "empty test": ({**good(), "test_images": IMAGES[:0], "test_labels": LABELS[:0]}, ["test_images has no image"]),
    "other size": ({**good(), "test_images": np.zeros((3, 5, 5, 3), np.uint8)}, ["5x4x3", "5x5x3", "one size"]),
    "other channels": ({**good(), "test_images": np.zeros((3, 5, 4), np.uint8)}, ["5x4x3", "5x4x1"]),
    "short labels": ({**good(), "train_labels": LABELS[:5]}, ["train_labels has 5 labels for 6 images"]),
    "labels 2d": ({**good(), "train_labels": LABELS[:, None]}, ["train_labels have shape (6, 1)", "(6,)"]),
    "float labels": ({**good(), "train_labels": LABELS.astype(float)}, ["float64, not integers", "astype"]),
    "bool labels": ({**good(), "train_labels": LABELS > 1}, ["bool, not integers"]),
    "text labels": ({**good(), "train_labels": np.array(list("abcabc"))}, ["text, not integers"]),
    "negative": ({**good(), "test_labels": np.array([0, -1, 2])}, ["test_labels has the label -1, at position 1"]),
    "huge": ({**good(), "train_labels": LABELS * 10**6}, ["label 2000000, at position 2", "from 0"]),
    "wrapped": ({**good(), "train_labels": np.full(6, 2**64 - 1, np.uint64)}, ["label 18446744073709551615"]),
    "unseen": ({**good(), "test_labels": np.array([0, 1, 3])}, ["test_labels has the label 3, at position 2",
                                                                "only 3 classes, 0 to 2"]),
    "few names": ({**good(), "class_names": np.array(["a", "b"])}, ["class_names has 2 names", "go up to 2"]),
    "odd names": ({**good(), "class_names": np.zeros(3)}, ["class_names", "list of strings"]),
    "object images": ({**good(), "train_images": np.array([{}], dtype=object)}, ["train_images holds Python objects"]),
    "object names": ({**good(), "class_names": np.array(["a", 1, None], dtype=object)}, ["class_names holds Python"]),
}


@pytest.mark.parametrize("case", WRONG_ARRAYS)
def test_wrong_arrays(tmp_path, case):
    content, says = WRONG_ARRAYS[case]
    np.savez(tmp_path / "a.npz", **content)
    line = refused(tmp_path, f"npz:{tmp_path}/a.npz")
    assert str(tmp_path / "a.npz") in line
    for part in says:
        assert part in line


def test_objects_in_an_npz_are_never_unpickled(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for key, array in without("train_images").items():
            buffer = io.BytesIO()
            np.save(buffer, array)
            archive.writestr(f"{key}.npy", buffer.getvalue())
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "|O", "fortran_order": False, "shape": (1,)})
        archive.writestr("train_images.npy", header.getvalue() + pickle.dumps(Bomb()))
    assert "never loaded" in refused(tmp_path, f"npz:{tmp_path}/a.npz")


def test_files_that_are_no_whole_npz(tmp_path):
    path = tmp_path / "a.npz"
    spec = f"npz:{path}"
    assert f"{path} does not exist" in refused(tmp_path, spec)
    path.write_bytes(b"")
    assert f"{path} is empty" in refused(tmp_path, spec)
    path.write_bytes(b"some text")
    assert f"{path} is not an npz file" in refused(tmp_path, spec)
    np.save(tmp_path / "b.npy", np.zeros(3))
    assert "not an npz file" in refused(tmp_path, f"npz:{tmp_path}/b.npy")
    (tmp_path / "folder").mkdir()
    assert f"use folder:{tmp_path}/folder" in refused(tmp_path, f"npz:{tmp_path}/folder")
    with zipfile.ZipFile(path, "w") as archive:
        for key in good():
            archive.writestr(f"{key}.npy", b"not an array")
    assert "train_images" in refused(tmp_path, spec)


@settings(max_examples=60, deadline=None)
@given(share=st.floats(0.01, 0.99))
def test_an_npz_cut_off_anywhere(tmp_path_factory, share):
    folder = tmp_path_factory.mktemp("cut")
    np.savez_compressed(folder / "a.npz", **good())
    whole = (folder / "a.npz").read_bytes()
    (folder / "a.npz").write_bytes(whole[:max(2, int(len(whole) * share))])
    assert "cut off" in refused(folder, f"npz:{folder}/a.npz")


@settings(max_examples=300, deadline=None)
@example(position=0.984375, value=36, compressed=False)            # a line break in the name of an array
@given(position=st.floats(0, 1, exclude_max=True), value=st.integers(1, 255), compressed=st.booleans())
def test_a_damaged_byte_never_gives_a_traceback(tmp_path_factory, position, value, compressed):
    """Either it did no harm, or there is one line that names the file."""
    path = tmp_path_factory.getbasetemp() / "damaged.npz"
    (np.savez_compressed if compressed else np.savez)(path, **good())
    content = bytearray(path.read_bytes())
    content[int(position * len(content))] ^= value
    path.write_bytes(bytes(content))
    try:
        load(f"npz:{path}")
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error)


@pytest.mark.parametrize(("spec", "says"), [
    ("cifar", "did you mean cifar10?"), ("CIFAR10", "did you mean cifar10?"), ("CIFAR-100", "did you mean cifar100?"),
    ("fashionmnist", "did you mean fashion-mnist?"), ("imagenet-22k-full", "unknown data set 'imagenet-22k-full';"),
    ("some/where.npz", "did you mean npz:some/where.npz?"), ("npz:", "names no path: write npz:PATH"),
    ("folder:", "names no path"), ("tinyimagenet", "did you mean tiny-imagenet?"),
    ("zip:a", "unknown data set 'zip:a'"), ("", "unknown data set ''")])
def test_unknown_data_sets(tmp_path, spec, says):
    line = refused(tmp_path, spec)
    assert says in line
    if "unknown" in line:
        assert ("cifar10, cifar100, mnist, fashion-mnist, digits, tiny-imagenet, tiny-imagenet?subset, npz:PATH, "
                "folder:PATH") in line


# --- folders

def image_folder(root: Path, parts: tuple[str, ...] = ("train", "test"), classes: str = "ab") -> Path:
    for part in parts:
        for name in classes:
            (root / part / name).mkdir(parents=True)
            Image.new("RGB", (4, 4), (9, 9, 9)).save(root / part / name / "1.png")
    return root


def test_folders_of_the_wrong_layout(tmp_path):
    spec = f"folder:{tmp_path}/f"
    assert f"{tmp_path}/f does not exist" in refused(tmp_path, spec)
    (tmp_path / "file").touch()
    assert "is a file" in refused(tmp_path, f"folder:{tmp_path}/file")
    image_folder(tmp_path / "f", ("train",))
    assert "no test/ or val/: found train/" in refused(tmp_path, spec)
    (tmp_path / "f/test").mkdir()
    assert f"{tmp_path}/f/test has no class folder" in refused(tmp_path, spec)
    (tmp_path / "f/train").rename(tmp_path / "f/training")
    assert "no train/: found test/, training/" in refused(tmp_path, spec)


def test_class_folders_that_are_empty_or_differ(tmp_path):
    root = image_folder(tmp_path / "f")
    (root / "train/c").mkdir()
    (root / "train/c/notes.txt").touch()
    assert f"class folder {root}/train/c has no image" in refused(tmp_path, f"folder:{root}")
    (root / "train/a/1.png").rename(root / "train/c/1.png")
    (root / "train/a").rmdir()
    line = refused(tmp_path, f"folder:{root}")
    assert "train/ has no class folder a, which test/ has" in line or "test/ has no class folder c, which" in line


def test_images_that_cannot_be_read_are_named(tmp_path):
    root = image_folder(tmp_path / "f")
    bad = root / "test/b/1.png"
    whole = bad.read_bytes()
    for content in (b"", b"text", whole[:40], whole[:-30]):
        bad.write_bytes(content)
        assert f"cannot read the image {bad} (" in refused(tmp_path, f"folder:{root}")
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(bad)
    line = refused(tmp_path, f"folder:{root}")
    assert str(bad) in line and "8 bits" in line


def test_images_of_two_sizes_are_named(tmp_path):
    root = image_folder(tmp_path / "f")
    Image.new("RGB", (4, 6)).save(root / "test/a/2.png")
    line = refused(tmp_path, f"folder:{root}")
    assert f"{root}/test/a/2.png is 4x6 (width x height) but {root}/train/a/1.png is 4x4" in line
    assert f"folder:{root}?size=4 resizes" in line
    assert "size '0'" in refused(tmp_path, f"folder:{root}?size=0")
    assert "size 'big'" in refused(tmp_path, f"folder:{root}?size=big")
    assert "unknown option 'crop'" in refused(tmp_path, f"folder:{root}?crop=3")


@pytest.mark.parametrize("link", ["train/a/2.png", "train/b/deep", "test/c", "test"])
def test_links_out_of_the_folder_are_refused(tmp_path, link):
    root = image_folder(tmp_path / "f")
    outside = image_folder(tmp_path / "outside", ("train", "test", "c"))
    target = outside / "test/a/1.png" if link.endswith("png") else outside / ("test" if link == "test" else "c/a")
    if link == "test":
        (root / "test").rename(tmp_path / "was")
    (root / link).symlink_to(target)
    line = refused(tmp_path, f"folder:{root}")
    assert f"{root / link} is a link out of the folder, to {target}" in line


def test_links_in_circles_or_to_nowhere(tmp_path):
    root = image_folder(tmp_path / "f")
    (root / "train/a/loop").symlink_to(root / "train/a")
    assert f"{root}/train/a/loop is a link to a folder that holds it" in refused(tmp_path, f"folder:{root}")
    (root / "train/a/loop").unlink()
    (root / "train/a/gone.png").symlink_to(root / "gone.png")
    assert "gone.png, which does not exist" in refused(tmp_path, f"folder:{root}")
