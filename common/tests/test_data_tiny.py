"""Tiny-ImageNet in both layouts, small: 3 classes of 12 training and 2 validation images."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

from common.data import Split, load, tiny_imagenet
from common.data.splits import fixed_order
from common.errors import UserError

WNIDS = ["n01443537", "n01629819", "n02002000"]
# In the archive's order, which is not sorted.
LISTED = [WNIDS[2], WNIDS[0], WNIDS[1]]


def sorted_back(split: Split) -> Split:
    """A split without its fixed permutation: in ImageFolder's order."""
    return split.subset(torch.from_numpy(np.argsort(fixed_order(len(split)))))


def save(path: Path, seed: int, mode: str = "RGB", side: int = 64) -> None:
    """A smooth random JPEG, or what the ending says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(small).resize((side, side)).convert(mode).save(path)


def official(root: Path) -> Path:
    """The layout of the archive, with grey images and a CMYK one among them."""
    modes = {3: "L", 5: "CMYK"}
    for label, wnid in enumerate(WNIDS):
        for number in range(12):
            save(root / f"train/{wnid}/images/{wnid}_{number}.JPEG", 100 * label + number, modes.get(number, "RGB"))
        (root / f"train/{wnid}/{wnid}_boxes.txt").write_text("boxes\n")
    lines = []
    for number, label in enumerate([2, 0, 1, 1, 0, 2]):
        save(root / f"val/images/val_{number}.JPEG", 1000 + number, "L" if number == 4 else "RGB")
        lines.append(f"val_{number}.JPEG\t{WNIDS[label]}\t0\t1\t2\t3\n")
    (root / "val/val_annotations.txt").write_text("".join(lines))
    (root / "wnids.txt").write_text("".join(f"{wnid}\n" for wnid in LISTED))
    (root / "words.txt").write_text("n00000001\tthing\nn01443537\tgoldfish, Carassius auratus\n")
    (root / "test/images").mkdir(parents=True)
    return root


def sorted_by_class(root: Path) -> Path:
    """What the released download script makes of the archive: images moved into class folders."""
    for wnid in WNIDS:
        for path in (root / f"train/{wnid}/images").iterdir():
            path.rename(path.parents[1] / path.name)
        (root / f"train/{wnid}/images").rmdir()
        (root / f"train/{wnid}/{wnid}_boxes.txt").unlink()
    for line in (root / "val/val_annotations.txt").read_text().splitlines():
        name, wnid = line.split("\t")[:2]
        (root / f"val/{wnid}").mkdir(exist_ok=True)
        (root / f"val/images/{name}").rename(root / f"val/{wnid}/{name}")
    (root / "val/images").rmdir()
    return root


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(tiny_imagenet, "CLASSES", 3)
    monkeypatch.setattr(tiny_imagenet, "PER_CLASS", {"train": 12, "val": 2})


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    return official(tmp_path_factory.mktemp("archive") / "tiny-imagenet-200")


@pytest.fixture
def data_dir(tmp_path, archive, small) -> Path:
    """A data folder with the archive's layout, to be changed at will."""
    shutil.copytree(archive, tmp_path / "tiny-imagenet-200")
    return tmp_path


@pytest.mark.parametrize("name", ["tiny-imagenet-200", "tiny-imagenet"])
def test_both_layouts_give_imagefolders_images_under_one_permutation(data_dir, name):
    first = load("tiny-imagenet", data_dir=data_dir)
    root = sorted_by_class((data_dir / "tiny-imagenet-200").rename(data_dir / name))
    second = load("tiny-imagenet", data_dir=data_dir)
    for part, split in (("train", second.train), ("val", second.test)):
        folder, split = ImageFolder(root / part), sorted_back(split)
        assert split.labels.tolist() == folder.targets
        for position in range(len(folder)):
            assert np.array_equal(split.images[position].permute(1, 2, 0).numpy(), np.asarray(folder[position][0]))
    assert (first.train.fingerprint, first.test.fingerprint) == (second.train.fingerprint, second.test.fingerprint)
    assert first.image_shape == (3, 64, 64) and (first.classes, len(first.train), len(first.test)) == (3, 36, 6)
    assert first.class_names == ("goldfish, Carassius auratus", WNIDS[1], WNIDS[2])
    assert (first.name, first.source) == ("tiny-imagenet", "Tiny-ImageNet, as unpacked (val taken as test)")
    assert second.source == "Tiny-ImageNet, sorted into class folders (val taken as test)"
    # No file was moved, and the cache serves both.
    assert {path.name for path in data_dir.iterdir()} == {".cache", name}


def test_grey_and_four_colour_images_become_rgb(data_dir):
    # Names sort as text: 0, 1, 10, 11, 2, 3.
    grey = sorted_back(load("tiny-imagenet", data_dir=data_dir).train).images[5]
    assert torch.equal(grey[0], grey[1]) and torch.equal(grey[0], grey[2])
    assert grey.float().std() > 1


def test_a_part_of_it_is_taken_only_on_request_and_marked(data_dir):
    whole = load("tiny-imagenet", data_dir=data_dir)
    assert load("tiny-imagenet?subset", data_dir=data_dir).describe() == whole.describe()
    root = data_dir / "tiny-imagenet-200"
    shutil.rmtree(root / "train" / WNIDS[1])
    for number in (0, 1, 3, 4):
        (root / f"val/images/val_{number}.JPEG").unlink()
    (root / f"train/{WNIDS[0]}/images/{WNIDS[0]}_0.JPEG").unlink()
    text = f"val_5.JPEG\t{WNIDS[2]}\nval_2.JPEG\t{WNIDS[0]}\n"
    (root / "val/val_annotations.txt").write_text(text)
    with pytest.raises(UserError, match=rf"has no folder {WNIDS[1]}, which wnids.txt lists \(1 of 3.*\?subset"):
        load("tiny-imagenet", data_dir=data_dir)
    part = load("tiny-imagenet?subset", data_dir=data_dir)
    train, test = sorted_back(part.train), sorted_back(part.test)
    assert (part.classes, train.labels.tolist(), test.labels.tolist()) == (2, [0] * 11 + [1] * 12, [0, 1])
    assert torch.equal(train.images[11:], sorted_back(whole.train).images[24:])
    assert part.describe()["source"].endswith("; a subset: 2 of 3 classes, 23 of 36 training and 2 of 6 validation "
                                              "images")


def test_png_copies_stand_in_for_jpegs_and_are_counted(data_dir):
    whole = load("tiny-imagenet", data_dir=data_dir)
    path = data_dir / f"tiny-imagenet-200/train/{WNIDS[0]}/images/{WNIDS[0]}_7.JPEG"
    with Image.open(path) as image:
        image.save(path.with_suffix(".png"))
    path.unlink()
    copied = load("tiny-imagenet", data_dir=data_dir)
    assert copied.train.fingerprint == whole.train.fingerprint
    assert copied.source == whole.source + "; 1 images are PNG copies"


def test_decoded_images_are_cached_and_other_classes_for_the_same_files_are_seen(data_dir, monkeypatch):
    first, decoded = load("tiny-imagenet", data_dir=data_dir), []
    original = tiny_imagenet.in_parallel
    monkeypatch.setattr(tiny_imagenet, "in_parallel", lambda *given: decoded.append(1) or original(*given))
    assert load("tiny-imagenet", data_dir=data_dir).describe() == first.describe() and not decoded
    table = data_dir / "tiny-imagenet-200/val/val_annotations.txt"
    lines = table.read_text().splitlines()
    swapped = [lines[1].replace("val_1", "val_0"), lines[0].replace("val_0", "val_1"), *lines[2:]]
    table.write_text("\n".join(swapped) + "\n")
    second = load("tiny-imagenet", data_dir=data_dir)
    assert len(decoded) == 1 and second.train.fingerprint == first.train.fingerprint
    # By class, then by name: val_1 and val_4 were of class 0, now val_0 and val_4 are.
    first, second = sorted_back(first.test), sorted_back(second.test)
    assert torch.equal(second.images[0], first.images[4])
    assert torch.equal(second.images[1], first.images[1])
    assert torch.equal(second.images[4], first.images[0])


IMAGE = f"train/{WNIDS[1]}/images/{WNIDS[1]}_3"
JPEG = f"{IMAGE}.JPEG"


def edit(root: Path, line: int, old: str, new: str) -> None:
    """Replace `old` in one line (from 0) of the annotations."""
    table = root / "val/val_annotations.txt"
    lines = table.read_text().splitlines()
    lines[line] = lines[line].replace(old, new)
    table.write_text("\n".join(lines) + "\n")


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def drop_class(root: Path) -> None:
    """The third class goes, from everywhere."""
    shutil.rmtree(root / "train" / WNIDS[2])
    (root / "wnids.txt").unlink()
    for number in (0, 5):
        (root / f"val/images/val_{number}.JPEG").unlink()
    table = root / "val/val_annotations.txt"
    table.write_text("".join(line for line in table.read_text().splitlines(keepends=True) if WNIDS[2] not in line))


def png_inside(root: Path) -> None:
    save(root / "a.png", 0)
    (root / "a.png").rename(root / JPEG)


BROKEN = {
    "no annotations": (lambda root: (root / "val/val_annotations.txt").unlink(), r"val_annotations.txt is missing"),
    "absent file": (lambda root: (root / "val/images/val_3.JPEG").unlink(), r"line 4: 'val_3.JPEG' is not in .*images"),
    "unnamed file": (lambda root: save(root / "val/images/val_9.JPEG", 0), r"no line for val_9.JPEG \(1 images"),
    "no tab": (lambda root: edit(root, 2, "\t", " "), r"line 3: 'val_2.* is not a file name"),
    "a path": (lambda root: edit(root, 2, "val", "../val"), r"line 3: '\.\./.* is not a file name"),
    "unknown class": (lambda root: edit(root, 0, WNIDS[2], "n9"), r"line 1: 'n9' is no class of .*/train"),
    "named twice": (lambda root: edit(root, 1, "val_1", "val_0"), r"line 2: val_0.JPEG has a class already"),
    "too few in train": (lambda root: (root / JPEG).unlink(), rf"{WNIDS[1]} has 11 images in .*/train, not 12"),
    "too many in train": (lambda root: save(root / f"{IMAGE}x.JPEG", 0), rf"{WNIDS[1]} has 13 images in .*/train"),
    "too many in val": (lambda root: edit(root, 0, WNIDS[2], WNIDS[1]), rf"{WNIDS[1]} has 3 images in .*/val, not 2"),
    "no class folder": (lambda root: shutil.rmtree(root / "train" / WNIDS[1]), rf"no folder {WNIDS[1]}, which wnids"),
    "strange class": (lambda root: save(root / "train/n7/images/a.JPEG", 0), r"train/n7 is no class of .*wnids.txt"),
    "too few classes": (drop_class, r"train has 2 classes, not 3: remove .* or use what is there with .*\?subset"),
    "not an image": (lambda root: (root / JPEG).write_text("<html>"), rf"cannot read the image .*{JPEG}"),
    "cut off": (lambda root: os.truncate(root / JPEG, 400), rf"cannot read the image .*{JPEG}"),
    "a PNG inside": (png_inside, rf"{JPEG} is no JPEG \(but PNG\)"),
    "another format": (lambda root: save(root / "val/images/val_9.gif", 0), r"val_9.gif is no JPEG"),
    "wrong size": (lambda root: save(root / JPEG, 0, side=32), rf"{JPEG} is 32x32 .*not 64x64"),
    "no val": (lambda root: shutil.rmtree(root / "val"), r"has no val/: remove it"),
    "empty val": (lambda root: empty(root / "val"), r"val has neither images/ nor class folders"),
    "empty train": (lambda root: empty(root / "train"), r"train has no class folder"),
    "empty class": (lambda root: empty(root / "train" / WNIDS[1]), rf"{WNIDS[1]} has (no image|0 images in .*/train)"),
}
NOT_EVEN_A_SUBSET = ["no annotations", "absent file", "unnamed file", "no tab", "unknown class", "named twice",
                     "cut off", "wrong size", "a PNG inside", "empty class"]


def refused(data_dir: Path, spec: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        load(spec, data_dir=data_dir)
    assert "\n" not in str(caught.value) and not (data_dir / ".cache").exists()


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_wrong_is_said_in_one_line(data_dir, what):
    breaking, says = BROKEN[what]
    breaking(data_dir / "tiny-imagenet-200")
    refused(data_dir, "tiny-imagenet", says)
    if what in NOT_EVEN_A_SUBSET:
        refused(data_dir, "tiny-imagenet?subset", says)


def test_a_missing_folder_names_the_command_that_fetches_it(tmp_path):
    refused(tmp_path, "tiny-imagenet", rf"no Tiny-ImageNet in .*`bash data/TinyImageNet-200.sh {tmp_path}`")
    (tmp_path / "tiny-imagenet").mkdir()
    refused(tmp_path, "tiny-imagenet", r"has no train/ and val/")


def test_the_real_numbers_are_asked_for(tmp_path, archive):
    shutil.copytree(archive, tmp_path / "tiny-imagenet")
    refused(tmp_path, "tiny-imagenet", f"class {WNIDS[0]} has 12 images in .*train, not 500")
    assert "3 of 200 classes, 36 of 100000 training and 6 of 10000" in load("tiny-imagenet?subset",
                                                                             data_dir=tmp_path).source


def test_the_released_split():
    """Golden: numpy's legacy generator of seed 13 over 100,000 images."""
    order = fixed_order(100_000)
    assert order.dtype == np.int64 and np.array_equal(np.sort(order), np.arange(100_000))
    assert order[:4].tolist() == [72031, 27978, 55639, 51955]
    assert order[-4:].tolist() == [33634, 98378, 47280, 98642]
    state = np.random.get_state()[1].copy()
    fixed_order(50)
    assert np.array_equal(np.random.get_state()[1], state)
    assert fixed_order(10, seed=1).tolist() == [2, 9, 6, 4, 0, 3, 1, 7, 8, 5]
