"""Extra images from npz files: mapped where they lie, unpacked once where they are compressed, checked before use."""

import hashlib
import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from common.data import Split, ddpm, npz_member
from common.data.ddpm import ExtraImages, load_extra
from common.errors import UserError

SHAPE = (3, 5, 4)              # (C,H,W)


def made(path: Path, count: int = 20, seed: int = 0, save=np.savez, **other) -> dict[str, np.ndarray]:
    """Write a file of random images; its arrays."""
    rng = np.random.default_rng(seed)
    arrays = {"image": rng.integers(0, 256, (count, 5, 4, 3), dtype=np.uint8),
              "label": rng.integers(0, 10, count)} | other
    save(path, **arrays)
    return arrays


def load(*paths: Path, classes: int = 10, **options) -> ExtraImages:
    return load_extra(paths, classes=classes, image_shape=SHAPE, cache=paths[0].parent / "cache", **options)


def gathered(extra: ExtraImages, which: list[int]) -> tuple[np.ndarray, np.ndarray]:
    out = np.zeros((len(which), 5, 4, 3), np.uint8)
    labels = extra.gather(np.array(which, np.int64), out)
    assert labels.dtype == np.int64
    return out, labels


METHODS = {"stored": zipfile.ZIP_STORED, "deflate": zipfile.ZIP_DEFLATED, "bzip2": zipfile.ZIP_BZIP2,
           "lzma": zipfile.ZIP_LZMA}


@pytest.mark.parametrize("method", METHODS)
def test_images_are_mapped_however_they_are_packed(tmp_path, method):
    arrays = made(tmp_path / "plain.npz")
    with zipfile.ZipFile(tmp_path / "plain.npz") as old, zipfile.ZipFile(tmp_path / "extra.npz", "w",
                                                                        METHODS[method]) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    extra = load(tmp_path / "extra.npz")
    images, labels = gathered(extra, [7, 0, 19, 7])
    assert np.array_equal(images, arrays["image"][[7, 0, 19, 7]])
    assert np.array_equal(labels, arrays["label"][[7, 0, 19, 7]])
    (part,) = extra.parts
    assert isinstance(part.base, np.memmap) and not part.flags.writeable
    assert Path(part.base.filename).name == "extra.npz" if method == "stored" else part.base.filename.suffix == ".npy"
    assert extra.labels.dtype == np.uint8 and (len(extra), extra.image_shape) == (20, SHAPE)


def test_what_is_compressed_is_unpacked_once(tmp_path, capsys):
    path = tmp_path / "extra.npz"
    arrays = made(path, save=np.savez_compressed)
    load(path)
    (unpacked,) = (tmp_path / "cache/.cache").iterdir()
    assert "image is compressed; unpacking it once into" in capsys.readouterr().out
    first = unpacked.stat().st_mtime_ns
    load(path)
    assert unpacked.stat().st_mtime_ns == first and not capsys.readouterr().out
    unpacked.write_bytes(unpacked.read_bytes()[:-1])                       # torn: made again
    assert np.array_equal(gathered(load(path), [19])[0], arrays["image"][19:])
    before = path.stat()
    other = made(path, seed=1, save=np.savez_compressed, label=arrays["label"])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))            # another file that looks alike
    assert path.stat().st_size == before.st_size
    assert np.array_equal(gathered(load(path), [3])[0], other["image"][3:4])


@pytest.mark.parametrize(("key", "method"), [("image", "deflate"), ("image", "bzip2"), ("image", "lzma"),
                                             *(("label", method) for method in METHODS)])
def test_checksums_are_compared_wherever_all_is_read(tmp_path, key, method):
    arrays = made(tmp_path / "plain.npz")
    with zipfile.ZipFile(tmp_path / "a.npz", "w", METHODS[method]) as file:
        for name in arrays:
            stream = io.BytesIO()
            np.save(stream, arrays[name])
            file.writestr(f"{name}.npy", stream.getvalue())
    content = bytearray((tmp_path / "a.npz").read_bytes())
    entry = content.rindex(f"{key}.npy".encode()) - 46                     # in the list at the end
    assert content[entry:entry + 4] == b"PK\x01\x02"
    content[entry + 16] ^= 1
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(UserError, match="Bad CRC-32"):
        load(tmp_path / "a.npz")
    assert not list(tmp_path.glob("cache/.cache/*image*"))


def test_stored_images_cost_no_second_copy(tmp_path):
    path = tmp_path / "extra.npz"
    made(path)
    load(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["extra.npz"]


def test_several_files_are_numbered_through(tmp_path):
    first, second = made(tmp_path / "a.npz", 3), made(tmp_path / "b.npz", 4, seed=1, source=np.array("made of  noise"))
    extra = load(tmp_path / "a.npz", tmp_path / "b.npz")
    images, labels = gathered(extra, [6, 2, 3, 0])
    assert np.array_equal(images, np.concatenate((first["image"], second["image"]))[[6, 2, 3, 0]])
    assert labels.tolist() == [second["label"][3], first["label"][2], second["label"][0], first["label"][0]]
    assert extra.source == "npz:a.npz; npz:b.npz (made of noise)"
    assert [(file["name"], file["n"]) for file in extra.files] == [("a.npz", 3), ("b.npz", 4)]


@pytest.mark.parametrize(("index", "want"), [
    (np.arange(20) % 3 == 1, [1, 4, 7, 10, 13, 16, 19]), (np.array([5, 0, 5], np.int32), [5, 0, 5]),
    (np.array([19], np.uint64), [19])])
def test_an_index_chooses(tmp_path, index, want):
    arrays = made(tmp_path / "a.npz")
    np.save(tmp_path / "index.npy", index)
    extra = load(tmp_path / "a.npz", index=tmp_path / "index.npy")
    images, labels = gathered(extra, list(range(len(want))))
    assert np.array_equal(images, arrays["image"][want]) and np.array_equal(labels, arrays["label"][want])
    assert len(extra) == len(want) and extra.source == f"npz:a.npz; {len(want)} of 20 chosen by index.npy"
    assert extra.fingerprint != load(tmp_path / "a.npz").fingerprint


def test_the_fingerprint_is_the_documented_hash(tmp_path, monkeypatch):
    monkeypatch.setattr(ddpm, "SPREAD", 4)
    arrays = made(tmp_path / "a.npz", 10)
    np.save(tmp_path / "index.npy", [3, 1])
    extra = load(tmp_path / "a.npz", index=tmp_path / "index.npy")
    want = hashlib.sha256(b"extra (10, 5, 4, 3)\n" + arrays["image"][[0, 2, 5, 7]].tobytes() + b"labels (10,)\n"
                          + arrays["label"].astype("<i8").tobytes() + b"chosen (2,)\n"
                          + np.array([3, 1], "<i8").tobytes())
    assert extra.fingerprint == want.hexdigest()
    described = json.loads(json.dumps(extra.describe()))
    assert (described["n"], described["fingerprint"]) == (2, want.hexdigest())
    # however it is packed and whatever the file is called
    np.savez_compressed(tmp_path / "b.npz", **arrays)
    assert load(tmp_path / "b.npz").fingerprint == load(tmp_path / "a.npz").fingerprint


def test_any_label_and_any_image_of_a_small_file_changes_the_fingerprint(tmp_path):
    arrays = made(tmp_path / "a.npz", 10)
    seen = {load(tmp_path / "a.npz").fingerprint}
    for key in ("image", "label"):
        for position in range(10):
            changed = arrays[key].copy()
            changed[position] = 9 - changed[position]
            np.savez(tmp_path / "a.npz", **{**arrays, key: changed})
            seen.add(load(tmp_path / "a.npz").fingerprint)
    assert len(seen) == 21 - int((arrays["label"] * 2 == 9).sum())


def test_images_of_a_split_serve_as_extra_images():
    import torch

    images = torch.randint(0, 256, (6, 3, 5, 4), dtype=torch.uint8)
    extra = ExtraImages.of_split(Split(images, torch.arange(6), "last 6 of 9"), "left out")
    got, labels = gathered(extra, [4, 1])
    assert torch.equal(torch.from_numpy(got), images[[4, 1]].permute(0, 2, 3, 1)) and labels.tolist() == [4, 1]
    assert extra.image_shape == SHAPE and extra.source == "left out (last 6 of 9)"
    assert np.shares_memory(extra.parts[0], images.numpy())
    assert len(extra.fingerprint) == 64 and extra.describe()["files"] == []


GOOD = {"image": np.zeros((4, 5, 4, 3), np.uint8), "label": np.array([0, 1, 2, 9])}
WRONG = {
    "no label": ({"image": GOOD["image"], "y": GOOD["label"]}, r"has no label: found image, y; .*label \(M,\)"),
    "neither": ({"x": np.zeros(1)}, r"has no image and no label: found x"),
    "floats": ({**GOOD, "image": np.zeros((4, 5, 4, 3), np.float32)}, r"image is float32, not uint8: multiply"),
    "int64 images": ({**GOOD, "image": np.zeros((4, 5, 4, 3), np.int64)}, r"image is int64, not uint8: give values"),
    "channels first": ({**GOOD, "image": np.zeros((4, 3, 5, 4), np.uint8)}, r"\(4, 3, 5, 4\), but .*\(M,5,4,3\)"),
    "another size": ({**GOOD, "image": np.zeros((4, 8, 8, 3), np.uint8)}, r"\(4, 8, 8, 3\), but"),
    "flat": ({**GOOD, "image": np.zeros((4, 60), np.uint8)}, r"image has shape \(4, 60\), but"),
    "no image": ({"image": np.zeros((0, 5, 4, 3), np.uint8), "label": np.zeros(0, int)}, r"has no image: give"),
    "fewer labels": ({**GOOD, "label": np.arange(3)}, r"label has shape \(3,\), not \(4,\)"),
    "label columns": ({**GOOD, "label": np.zeros((4, 1), int)}, r"label has shape \(4, 1\), not \(4,\)"),
    "float labels": ({**GOOD, "label": np.zeros(4)}, r"label is float64, not integers: give class numbers 0 to 9"),
    "bool labels": ({**GOOD, "label": np.zeros(4, bool)}, r"label is bool, not integers"),
    "class 10": ({**GOOD, "label": np.array([0, 1, 10, 3])}, r"label has 10 at position 2, but there are 10 classes"),
    "class -1": ({**GOOD, "label": np.array([0, -1, 1, 3])}, r"label has -1 at position 1, but"),
    "Fortran order": ({**GOOD, "image": np.asfortranarray(np.ones((4, 5, 4, 3), np.uint8))}, r"image .*Fortran order"),
    "object labels": ({**GOOD, "label": np.array([0, 1, 2, None])}, r"label holds Python objects"),
}


def refused(says: str, *paths: Path, **options) -> None:
    with pytest.raises(UserError, match=says) as caught:
        load(*paths, **options)
    assert "\n" not in str(caught.value) and not (paths[0].parent / "cache").exists()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("what", WRONG)
def test_wrong_arrays(tmp_path, what, save):
    arrays, says = WRONG[what]
    save(tmp_path / "a.npz", **arrays)
    refused(says, tmp_path / "a.npz")


@pytest.mark.parametrize(("index", "says"), [
    (np.ones(19, bool), "is a mask of 19 entries for 20 images"), (np.zeros(20, bool), "chooses no image"),
    (np.array([0, 20]), "names position 20, but there are 20 images, 0 to 19"), (np.array([-1]), "names position -1"),
    (np.array([0.5]), "is float64 of shape"), (np.zeros((2, 2), int), r"is int64 of shape \(2, 2\)"),
    (np.array([None]), "cannot be read")])
def test_wrong_index_files(tmp_path, index, says):
    made(tmp_path / "a.npz")
    np.save(tmp_path / "index.npy", index)
    refused(says, tmp_path / "a.npz", index=tmp_path / "index.npy")


def test_index_files_that_are_none(tmp_path):
    made(tmp_path / "a.npz")
    (tmp_path / "text.npy").write_text("1 2 3")
    (tmp_path / "huge.npy").write_bytes(headed((10**15,), "<i8"))
    refused("does not exist", tmp_path / "a.npz", index=tmp_path / "no.npy")
    refused("text.npy cannot be read", tmp_path / "a.npz", index=tmp_path / "text.npy")
    refused("huge.npy cannot be read", tmp_path / "a.npz", index=tmp_path / "huge.npy")
    refused("with numpy.save, as .npy", tmp_path / "a.npz", index=tmp_path / "a.npz")


def headed(shape: tuple[int, ...], descr: str, content: bytes = b"\0" * 240) -> bytes:
    """An npy file whose header says what it likes."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": descr, "fortran_order": False, "shape": shape})
    return stream.getvalue() + content


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("shape", [(10**15, 5, 4, 3), (2**62, 5, 4, 3), (-4, 5, 4, 3), (3, 5, 4, 3), (5, 5, 4, 3)])
def test_shapes_that_the_file_does_not_hold_allocate_nothing(tmp_path, shape, method):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", method) as file:
        file.writestr("image.npy", headed(shape, "|u1"))
        file.writestr("label.npy", headed((4,), "<i8", b"\0" * 32))
    refused(r"cannot be read \(image should have the shape", tmp_path / "a.npz")


def test_more_than_the_disk_holds_is_not_unpacked(tmp_path, monkeypatch):
    made(tmp_path / "a.npz", save=np.savez_compressed)
    monkeypatch.setattr(npz_member.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 100}))
    with pytest.raises(UserError, match=r"image is compressed and needs 0.0 GB in .*, where 0.0 GB are free"):
        load(tmp_path / "a.npz")
    assert not list((tmp_path / "cache/.cache").iterdir())


class Trap:
    def __reduce__(self):
        return os.mkdir, ("unpickled",)


def test_objects_are_never_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        file.writestr("image.npy", headed((4, 5, 4, 3), "|O", pickle.dumps(Trap())))
        file.writestr("label.npy", headed((4,), "<i8", b"\0" * 32))
    refused("image holds Python objects, which are never loaded", tmp_path / "a.npz")
    assert not (tmp_path / "unpickled").exists()


def test_files_that_are_none(tmp_path):
    (tmp_path / "empty.npz").touch()
    (tmp_path / "text.npz").write_text("no zip")
    refused("no.npz does not exist", tmp_path / "no.npz")
    refused("empty.npz is empty", tmp_path / "empty.npz")
    refused("text.npz is not an npz file", tmp_path / "text.npz")
    refused("is a folder", tmp_path)
    with pytest.raises(UserError, match="an empty file name"):
        load_extra(["", "a.npz"], classes=10, image_shape=SHAPE)


@settings(max_examples=40, deadline=None)
@given(share=st.floats(0.01, 0.99), compressed=st.booleans())
def test_a_file_cut_off_anywhere(tmp_path_factory, share, compressed):
    folder = tmp_path_factory.mktemp("cut")
    made(folder / "a.npz", save=np.savez_compressed if compressed else np.savez)
    whole = (folder / "a.npz").read_bytes()
    (folder / "a.npz").write_bytes(whole[:int(len(whole) * share)])
    refused("is cut off|is not an npz file|is empty", folder / "a.npz")


@settings(max_examples=200, deadline=None)
@example(position=0.0, value=1, compressed=False)
@given(position=st.floats(0, 1, exclude_max=True), value=st.integers(1, 255), compressed=st.booleans())
def test_a_damaged_byte_is_one_line_or_changes_some_pixels(tmp_path_factory, position, value, compressed):
    folder = tmp_path_factory.mktemp("bit")
    arrays = made(folder / "a.npz", save=np.savez_compressed if compressed else np.savez)
    content = bytearray((folder / "a.npz").read_bytes())
    content[int(len(content) * position)] ^= value
    (folder / "a.npz").write_bytes(content)
    try:
        extra = load(folder / "a.npz")
    except UserError as error:
        assert "\n" not in str(error)
        return
    images, labels = gathered(extra, list(range(20)))
    assert np.array_equal(labels, arrays["label"])
    # The checksum of stored images is not computed, for that would read all of a large file: one byte may differ.
    assert (images != arrays["image"]).sum() <= (0 if compressed else 1)
