"""Splits, fingerprints, hold-out, npz files and the digits."""

import hashlib
import json
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.data import NAMED, DataSet, Split, hold_out, load
from common.errors import UserError


def arrays(train: int = 12, test: int = 6, shape: tuple[int, ...] = (5, 4, 3), classes: int = 3,
           second: str = "test") -> dict[str, np.ndarray]:
    rng = np.random.default_rng(train)
    return {"train_images": rng.integers(0, 256, (train, *shape), dtype=np.uint8),
            "train_labels": np.arange(train) % classes,
            f"{second}_images": rng.integers(0, 256, (test, *shape), dtype=np.uint8),
            f"{second}_labels": np.arange(test) % classes}


def split_of(count: int = 10) -> Split:
    images = torch.randint(0, 256, (count, 3, 4, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(count))
    return Split(images, torch.arange(count))


# --- npz

@pytest.mark.parametrize(("shape", "want"), [((5, 4, 3), (3, 5, 4)), ((5, 4, 1), (1, 5, 4)), ((5, 4), (1, 5, 4)),
                                             ((3, 3, 3), (3, 3, 3)), ((1, 28, 3), (3, 1, 28))])
def test_npz_images_become_channels_first(tmp_path, shape, want):
    content = arrays(shape=shape)
    np.savez(tmp_path / "some set.npz", **content)
    data = load(f"npz:{tmp_path}/some set.npz")
    assert data.name == "some-set" and data.source == "npz:some set.npz" and data.image_shape == want
    assert data.classes == 3 and data.class_names == ("0", "1", "2")
    images = content["train_images"].reshape(12, want[1], want[2], want[0])
    for channel in range(want[0]):
        assert np.array_equal(data.train.images[:, channel].numpy(), images[..., channel])
    assert data.train.images.is_contiguous()
    assert np.array_equal(data.test.labels.numpy(), content["test_labels"]) and data.test.labels.dtype == torch.int64


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int32", "uint64", ">i4"])
def test_npz_labels_of_any_integer_type(tmp_path, dtype):
    content = arrays()
    np.savez(tmp_path / "a.npz", **{**content, "train_labels": content["train_labels"].astype(dtype)})
    assert load(f"npz:{tmp_path}/a.npz").train.labels.tolist() == content["train_labels"].tolist()


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_npz_compressed_in_any_way(tmp_path, method):
    content = arrays()
    with zipfile.ZipFile(tmp_path / "a.npz", "w", method) as archive:
        for key, array in content.items():
            with archive.open(f"{key}.npy", "w") as stream:
                np.lib.format.write_array(stream, array)
    np.savez(tmp_path / "plain.npz", **content)
    first, second = load(f"npz:{tmp_path}/a.npz"), load(f"npz:{tmp_path}/plain.npz")
    assert first.train.fingerprint == second.train.fingerprint and first.test.fingerprint == second.test.fingerprint


def test_npz_val_stands_in_for_test_and_the_source_says_so(tmp_path):
    np.savez(tmp_path / "a.npz", **arrays(second="val"))
    data = load(f"npz:{tmp_path}/a.npz")
    assert len(data.test) == 6 and data.source == "npz:a.npz (val_ taken as test)"
    both = {**arrays(), "val_images": np.zeros(3), "val_labels": np.zeros(3)}
    np.savez(tmp_path / "b.npz", **both)
    assert "val" not in load(f"npz:{tmp_path}/b.npz").source


def test_npz_extra_keys_are_ignored_and_class_names_used(tmp_path):
    np.savez(tmp_path / "a.npz", **arrays(), wnids=np.array([{"no": "pickle"}], dtype=object),
             class_names=np.array(["cat", "dog", "eel", "fly"]), train_exact=np.arange(12) > 1)
    data = load(f"npz:{tmp_path}/a.npz")
    assert data.classes == 4 and data.class_names == ("cat", "dog", "eel", "fly")
    assert data.source == "npz:a.npz (2 training and 0 test images not exact)"


def test_a_prepared_npz_in_the_data_folder_is_used_instead_of_a_download(tmp_path):
    np.savez(tmp_path / "cifar10.npz", **arrays())
    data = load("cifar10", data_dir=tmp_path)
    assert data.name == "cifar10" and data.source == "npz file cifar10.npz in the data folder"
    assert [path.name for path in tmp_path.iterdir()] == ["cifar10.npz"]


# --- digits

def test_digits_are_the_same_everywhere():
    from sklearn.datasets import load_digits

    data = load("digits", data_dir=Path("nowhere"))
    assert (len(data.train), len(data.test), data.image_shape, data.classes) == (1397, 400, (1, 8, 8), 10)
    assert data.train.fingerprint == "24f8c450f3c4fc7da4d4d61355ea76526a764c90b0c771632e7fb93c998b81af"
    assert data.test.fingerprint == "1f6f3bf39cea02b13aacc3c83c58c46bfdda01ba6bda83a23240b4de282def54"
    together = torch.bincount(torch.cat((data.train.labels, data.test.labels)))
    assert ((torch.bincount(data.test.labels) - together * 400 / 1797).abs() < 1).all()      # stratified
    ours = {(image.numpy().tobytes(), int(label)) for part in (data.train, data.test)
            for image, label in zip(part.images, part.labels, strict=True)}
    theirs = load_digits()
    assert ours == {(np.rint(image * 255 / 16).astype(np.uint8).tobytes(), int(label))
                    for image, label in zip(theirs.images, theirs.target, strict=True)}


# --- fingerprints

def test_the_fingerprint_is_the_documented_hash():
    split = split_of(2)
    content = (b"u1 (2, 3, 4, 5)\n" + split.images.numpy().tobytes()
               + b"<i8 (2,)\n" + split.labels.numpy().astype("<i8").tobytes())
    assert split.fingerprint == hashlib.sha256(content).hexdigest()


@settings(max_examples=40, deadline=None)
@given(position=st.integers(0, 10 * 60 - 1), bit=st.integers(0, 7))
def test_the_fingerprint_changes_with_any_bit_of_any_pixel(position, bit):
    split = split_of()
    images = split.images.clone()
    images.view(-1)[position] ^= 1 << bit
    assert Split(images, split.labels).fingerprint != split.fingerprint


@settings(max_examples=20, deadline=None)
@given(position=st.integers(0, 9), label=st.integers(0, 99))
def test_the_fingerprint_changes_with_any_label(position, label):
    split = split_of()
    labels = split.labels.clone()
    labels[position] = label
    assert (Split(split.images, labels).fingerprint == split.fingerprint) == (label == position)


def test_the_fingerprint_sees_shape_and_order_but_not_memory_layout():
    split = split_of()
    assert Split(split.images.view(10, 3, 5, 4), split.labels).fingerprint != split.fingerprint
    assert split.subset(torch.arange(9, -1, -1)).fingerprint != split.fingerprint
    last = Split(split.images.contiguous(memory_format=torch.channels_last), split.labels)
    assert last.fingerprint == split.fingerprint
    assert split.to("cpu").fingerprint == split.fingerprint


def test_the_fingerprint_travels_to_the_device_without_being_computed_there():
    split = split_of()
    assert split.to("meta").fingerprint == split.fingerprint      # the meta device holds no data to hash


def test_the_fingerprint_of_60000_cifar_images_takes_less_than_a_second():
    split = Split(torch.zeros(60_000, 3, 32, 32, dtype=torch.uint8), torch.zeros(60_000, dtype=torch.int64))
    started = time.process_time()                  # not the wall clock: other processes may run
    assert len(split.fingerprint) == 64
    assert time.process_time() - started < 1


# --- parts of splits

def test_subsets_take_the_first_or_the_named_and_say_so():
    split = split_of()
    first = split.subset(4)
    assert torch.equal(first.images, split.images[:4]) and first.note == "first 4 of 10"
    assert first.fingerprint == Split(split.images[:4].clone(), split.labels[:4].clone()).fingerprint
    chosen = split.subset(torch.tensor([7, 0, 7]))
    assert chosen.labels.tolist() == [7, 0, 7] and chosen.note == "3 chosen of 10"
    assert split.subset(split.labels > 6).labels.tolist() == [7, 8, 9]
    assert split.subset(10) is split
    assert first.subset(2).note == "first 2 of 4 (first 4 of 10)"


@pytest.mark.parametrize(("which", "says"), [
    (0, "first 0 images of a split of 10: give a number from 1 to 10"), (11, "first 11 images"), (-1, "first -1"),
    (torch.tensor([0, 10]), "position 10 is outside .* from 0 to 9"), (torch.tensor([-1]), "position -1"),
    (torch.tensor([1.0]), "float32"), (torch.zeros(10, dtype=torch.bool), "no image chosen"),
    (torch.ones(9, dtype=torch.bool), "mask of shape"), (torch.tensor([[1]]), "list of integers")])
def test_subsets_that_do_not_exist(which, says):
    with pytest.raises(UserError, match=says):
        split_of().subset(which)


@settings(max_examples=50, deadline=None)
@given(count=st.integers(2, 30), data=st.data(), seed=st.integers(0, 99))
def test_hold_out_by_size_cuts_in_two(count, data, seed):
    split = split_of(count)
    size = data.draw(st.integers(1, count - 1))
    rest, held = hold_out(split, size=size, seed=seed)
    assert len(held) == size
    assert sorted(rest.labels.tolist() + held.labels.tolist()) == list(range(count))
    assert rest.labels.tolist() == sorted(rest.labels.tolist())
    assert torch.equal(held.images, split.images[held.labels]) and torch.equal(rest.images, split.images[rest.labels])
    assert hold_out(split, size=size, seed=seed)[1].fingerprint == held.fingerprint


def test_hold_out_draws_from_the_seed():
    held = [tuple(hold_out(split_of(1000), size=10, seed=seed)[1].labels.tolist()) for seed in range(20)]
    assert len(set(held)) == 20
    assert 400 < np.mean(held) < 600        # not the first ones


def test_hold_out_by_positions_keeps_their_order():
    rest, held = hold_out(split_of(), indices=[8, 1, 5])
    assert held.labels.tolist() == [8, 1, 5] and rest.labels.tolist() == [0, 2, 3, 4, 6, 7, 9]
    assert held.note == "3 of 10, held out by given positions" and "3 held out" in rest.note


@pytest.mark.parametrize(("how", "says"), [
    ({"size": 10}, "cannot hold out 10 of 10 images: give a number from 1 to 9"), ({"size": 0}, "cannot hold out 0"),
    ({"size": -3}, "-3"), ({"indices": [1, 2, 1]}, "position 1 is held out more than once"),
    ({"indices": [10]}, "position 10 is outside"), ({"indices": [-1]}, "position -1"), ({"indices": []}, "integers"),
    ({"indices": range(10)}, "nothing would be left")])
def test_hold_outs_that_cannot_be(how, says):
    with pytest.raises(UserError, match=says):
        hold_out(split_of(), **how)


def test_programmers_mistakes_are_value_errors():
    with pytest.raises(ValueError, match="either"):
        hold_out(split_of(), size=1, indices=[1])
    with pytest.raises(ValueError, match="uint8"):
        Split(torch.zeros(1, 1, 2, 2), torch.zeros(1, dtype=torch.int64))
    with pytest.raises(ValueError, match="int64"):
        Split(torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64))


# --- data sets

def test_a_record_describes_the_arrays_and_where_they_come_from():
    data = DataSet("ours", split_of(10), split_of(6), 10, tuple("abcdefghij"), "npz:ours.npz")
    described = data.describe()
    assert described == {"name": "ours", "source": "npz:ours.npz", "train_fingerprint": data.train.fingerprint,
                         "test_fingerprint": data.test.fingerprint, "n_train": 10, "n_test": 6, "classes": 10,
                         "image_shape": [3, 4, 5]}
    assert json.loads(json.dumps(described)) == described
    part = data.take(train=5, test=2).describe()
    assert part["source"] == "npz:ours.npz; train: first 5 of 10; test: first 2 of 6"
    assert (part["n_train"], part["n_test"]) == (5, 2)
    assert part["train_fingerprint"] == data.train.subset(5).fingerprint != described["train_fingerprint"]


def test_a_new_name_is_one_entry(monkeypatch):
    digits = load("digits")
    monkeypatch.setitem(NAMED, "mine", lambda data_dir: digits)
    assert load("mine") is digits
