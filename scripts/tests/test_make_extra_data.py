"""The two commands that make data from data: an extra-data file, and Tiny-ImageNet's folders."""

import re

import numpy as np
import pytest

from common.data import load
from common.data.ddpm import load_extra
from common.data.splits import fixed_order
from common.errors import UserError
from scripts import make_extra_data, make_tiny_layout


def data_file(path, side=64, **other):
    """12 training images (in no order of classes) and 5 test images of 3 classes."""
    rng = np.random.default_rng(0)
    arrays = {"train_images": rng.integers(0, 256, (12, side, side, 3), dtype=np.uint8),
              "train_labels": np.array([0, 1, 2] * 4), "val_labels": np.array([2, 0, 1, 1, 2]),
              "val_images": rng.integers(0, 256, (5, side, side, 3), dtype=np.uint8), **other}
    np.savez(path, **arrays)
    return arrays


def run(module, monkeypatch, *words):
    monkeypatch.setattr("sys.argv", [module.__name__, *map(str, words)])
    module.main()


def test_the_images_that_a_run_leaves_out_become_extra_data(tmp_path, monkeypatch, capsys):
    arrays = data_file(tmp_path / "d.npz", side=8)
    out = tmp_path / "sub/rest.npz"
    run(make_extra_data, monkeypatch, "--data", f"npz:{tmp_path}/d.npz", "--skip", 5, "--take", 6, "--out", out)
    with np.load(out, allow_pickle=False) as file:
        assert sorted(file.files) == ["image", "label", "source"]
        assert np.array_equal(file["image"], arrays["train_images"][5:11]) and file["image"].flags.c_contiguous
        assert np.array_equal(file["label"], arrays["train_labels"][5:11])
        assert str(file["source"]) == ("real images, not generated: training images 5 to 10 of npz:d.npz (val_ taken "
                                       "as test)")
    extra = load_extra([out], classes=3, image_shape=(3, 8, 8), cache=tmp_path / "cache")
    assert "real images, not generated: training images 5 to 10" in extra.describe()["source"]
    assert not (tmp_path / "cache").exists()              # it is stored, and mapped where it lies
    assert "rest.npz: 6 images, 2 to 2 of each of 3 classes" in capsys.readouterr().out
    run(make_extra_data, monkeypatch, "--data", f"npz:{tmp_path}/d.npz", "--skip", 10, "--out", out)
    assert len(load_extra([out], classes=3, image_shape=(3, 8, 8))) == 2
    assert "a class has no image" in capsys.readouterr().out
    assert [path.name for path in out.parent.iterdir()] == ["rest.npz"]


@pytest.mark.parametrize(("words", "says"), [
    (["--skip", 12], "--skip 12 and --take all ask for training images 12 to 12, but .* has 12, 0 to 11"),
    (["--skip", 5, "--take", 8], "--skip 5 and --take 8 ask for training images 5 to 12, but"),
    (["--skip", 5, "--out", "rest.npy"], "--out rest.npy: name a file that ends in .npz"),
    (["--skip", 0], "--skip: '0' must be at least 1")])
def test_what_cannot_be_left_out(tmp_path, monkeypatch, words, says):
    data_file(tmp_path / "d.npz", side=8)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=says):
        run(make_extra_data, monkeypatch, "--data", "npz:d.npz", "--out", "rest.npz", *words)
    assert [path.name for path in tmp_path.iterdir()] == ["d.npz"]


@pytest.mark.parametrize("wnids", [["n01443537", "n01629819", "n02002000"], None])
def test_the_official_layout_gives_the_images_back(tmp_path, monkeypatch, wnids):
    other = {} if wnids is None else {"wnids": np.array(wnids), "class_names": np.array(["a, b", "c", "d"])}
    arrays = data_file(tmp_path / "d.npz", **other)
    root = tmp_path / "data/tiny-imagenet-200"
    run(make_tiny_layout, monkeypatch, "--data", f"npz:{tmp_path}/d.npz", "--out", root)
    folders = wnids or ["n00000000", "n00000001", "n00000002"]
    assert sorted(path.name for path in (root / "train").iterdir()) == folders
    assert (root / f"train/{folders[1]}/images/{folders[1]}_00003.png").is_file()
    lines = (root / "val/val_annotations.txt").read_text().splitlines()
    assert len(lines) == 5 and re.fullmatch(rf"val_00000.png\t{folders[2]}(\t\d+){{4}}", lines[0])
    data = load("tiny-imagenet?subset", data_dir=tmp_path / "data")
    for part, split in (("train", data.train), ("val", data.test)):
        order = np.argsort(arrays[f"{part}_labels"], kind="stable")
        order = order[fixed_order(len(order))]
        assert split.labels.tolist() == arrays[f"{part}_labels"][order].tolist()
        assert np.array_equal(split.images.permute(0, 2, 3, 1).numpy(), arrays[f"{part}_images"][order])
    assert data.class_names == (("a, b", "c", "d") if wnids else ("0", "1", "2"))
    assert data.source.endswith("17 images are PNG copies") and "a subset: 3 of 200 classes" in data.source
    assert sorted(path.name for path in root.parent.iterdir()) == [".cache", root.name]


def test_layouts_that_cannot_be_written(tmp_path, monkeypatch):
    def refused(says, name, out="new"):
        with pytest.raises(UserError, match=says):
            run(make_tiny_layout, monkeypatch, "--data", f"npz:{tmp_path}/{name}", "--out", tmp_path / out)
        assert not (tmp_path / "new").exists()

    data_file(tmp_path / "small.npz", side=8)
    data_file(tmp_path / "mixed.npz", wnids=np.array(["n2", "n1", "n3"]))
    data_file(tmp_path / "good.npz")
    refused(r"images of shape \(3, 8, 8\), not \(3, 64, 64\)", "small.npz")
    refused("wnids are not 3 different names in sorted order", "mixed.npz")
    refused("is there already: name a new folder", "good.npz", out="small.npz")
    (tmp_path / "file").touch()
    refused("cannot write .*file/new: ", "good.npz", out="file/new")

    def full(*given):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(make_tiny_layout, "write_layout", full)
    refused("no space left while writing", "good.npz")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "good.npz", "mixed.npz", "small.npz"]
