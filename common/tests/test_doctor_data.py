"""make doctor: what is said of data that are absent, half there, damaged, or whole."""

import gzip
import hashlib
import json
import zipfile

import numpy as np
import pytest
from torchvision import datasets

from common.data.npz import load_npz
from common.data.splits import DataSet
from common.data.vision import SOURCES
from common.doctor import data, fingerprints, npz_heads
from common.doctor.findings import NOTE, OK, PROBLEM
from common.errors import UserError
from common.tests.fabricate import DATA, fabricate
from common.tests.test_doctor_machine import kinds, only


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


BATCH, ARCHIVE = b"batch" * 100, b"archive" * 100
KNOWN = {"cifar10": {"archives": {"c.tar.gz": {"bytes": len(ARCHIVE), "md5": md5(ARCHIVE)}},
                     "files": {"c/one": {"md5": md5(BATCH)}, "c/two": {"md5": md5(BATCH)}}},
         "mnist": {"archives": {f"M/raw/{name}.gz": {"bytes": 3, "md5": md5(b"abc")} for name in "ab"},
                   "files": {"M/raw/a": {"bytes": 10}, "M/raw/b": {"bytes": 10}}}}


def look(folder, *asked, **options):
    return data.check_data(folder, asked, known=KNOWN, **options)


def arrays(n=6, side=4, **changes):
    whole = {"train_images": np.zeros((n, side, side, 3), np.uint8), "train_labels": np.arange(n) % 2,
             "test_images": np.zeros((3, side, side, 3), np.uint8), "test_labels": np.array([0, 1, 0])}
    return {key: value for key, value in {**whole, **changes}.items() if value is not None}


def test_the_checksums_are_those_that_torchvision_checks():
    known = data.known_files()
    assert set(known) == set(SOURCES)
    for name, source in SOURCES.items():
        cls = getattr(datasets, source.cls)
        archives = {path: one["md5"] for path, one in known[name]["archives"].items()}
        if hasattr(cls, "resources"):
            assert archives == {f"{source.archives}/{file}": digest for file, digest in cls.resources}
            assert {f"{path}.gz" for path in known[name]["files"]} == set(archives)
            sizes = sorted(one["bytes"] for one in known[name]["files"].values())
            assert sizes == sorted(start + each * count for start, each in ((16, 784), (8, 1))
                                   for count in (source.train, source.test))
        else:
            assert archives == {cls.filename: cls.tgz_md5}
            listed = [*cls.train_list, *cls.test_list, (cls.meta["filename"], cls.meta["md5"])]
            assert known[name]["files"] == {f"{source.folder}/{file}": {"md5": digest} for file, digest in listed}


def test_an_empty_folder_says_how_each_is_fetched(tmp_path):
    found = look(tmp_path)
    assert kinds(found) == ["absent", "tiny-absent"] and kinds(found, PROBLEM) == []
    absent = only(found, "absent")
    assert "cifar10, mnist" in absent.what and "load('cifar10', data_dir=" in absent.type
    assert only(found, "tiny-absent").type == f"bash data/TinyImageNet-200.sh {tmp_path}"
    assert kinds(look(tmp_path / "nowhere")) == ["absent", "tiny-absent"] and not (tmp_path / "nowhere").exists()


def test_what_is_asked_for_must_be_there(tmp_path):
    assert kinds(look(tmp_path, "mnist", "tiny-imagenet"), PROBLEM) == ["absent", "tiny-absent"]
    assert kinds(look(tmp_path, "digits"), PROBLEM) == []
    strange = look(tmp_path, "cifra10", "npz:nowhere.npz", "folder:nowhere", "zip:a")
    assert kinds(strange, PROBLEM) == ["unknown"] * 4
    assert "nowhere.npz is not there" in " ".join(one.what for one in strange)


def test_a_whole_a_half_and_a_damaged_download(tmp_path):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "one").write_bytes(BATCH)
    half = only(look(tmp_path), "half")
    assert half.level == PROBLEM and "missing two" in half.what and "load('cifar10'" in half.type
    (tmp_path / "c" / "two").write_bytes(BATCH[:-1])
    assert "damaged two" in only(look(tmp_path), "half").what
    (tmp_path / "c" / "two").write_bytes(BATCH)
    assert "2 files, md5 right" in only(look(tmp_path), "whole").what
    (tmp_path / "M" / "raw").mkdir(parents=True)
    for name in ("a", "b"):
        (tmp_path / "M" / "raw" / name).write_bytes(bytes(10))
    assert [one.what for one in look(tmp_path) if one.kind == "whole"][1] == "mnist is complete: 2 files, sizes right"
    (tmp_path / "M" / "raw" / "b").write_bytes(bytes(9))
    assert "damaged b" in only(look(tmp_path), "half").what


def test_archives_that_are_cut_off_or_changed(tmp_path):
    archive = tmp_path / "c.tar.gz"
    archive.write_bytes(ARCHIVE[:300])
    cut = only(look(tmp_path), "archive")
    assert cut.level == PROBLEM and "300 bytes of 700 bytes" in cut.what and cut.type.startswith(f"rm {archive} && ")
    archive.write_bytes(ARCHIVE[:-1] + b"!")
    assert "md5 differs" in only(look(tmp_path), "archive").what
    archive.write_bytes(ARCHIVE)
    assert only(look(tmp_path), "archive").level == OK
    (tmp_path / "M" / "raw").mkdir(parents=True)
    (tmp_path / "M" / "raw" / "a.gz").write_bytes(b"abc")
    parts = [one for one in look(tmp_path) if one.kind == "archive"]
    assert parts[1].level == NOTE and "the rest is downloaded" in parts[1].what


def test_left_over_downloads_and_caches(tmp_path, monkeypatch):
    (tmp_path / ".download-x").mkdir()
    (tmp_path / ".download-x" / "part").write_bytes(bytes(2000))
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "a.npz").write_bytes(bytes(3000))
    found = look(tmp_path)
    assert "2.0 kB" in only(found, "download").what and only(found, "download").type == f"rm -r {tmp_path}/.download-x"
    assert only(found, "cache").level == OK and "3.0 kB" in only(found, "cache").what
    monkeypatch.setattr(data, "MUCH", 3000)
    assert only(look(tmp_path), "cache").type == f"rm -r {tmp_path}/.cache"


# -- npz files -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_files_of_both_layouts(tmp_path, save):
    save(tmp_path / "mine.npz", **arrays())
    save(tmp_path / "more.npz", image=np.zeros((7, 4, 4, 3), np.uint8), label=np.zeros(7, np.int64))
    save(tmp_path / "val.npz", val_images=np.zeros((2, 4, 4), np.uint8), val_labels=np.zeros(2, np.int8),
         train_images=np.zeros((5, 4, 4), np.uint8), train_labels=np.zeros(5, np.int32))
    said = [one.what for one in look(tmp_path, full=True) if one.kind == "npz"]
    assert [text.partition(": ")[2] for text in said] == [
        "6 training and 3 test images 4x4x3, checksums right", "7 additional images 4x4x3, checksums right",
        "5 training and 2 test images 4x4, checksums right"]


@pytest.mark.parametrize(("changes", "word"), [
    ({"train_images": None}, "no train_images"), ({"test_labels": None}, "no test_labels"),
    ({"train_images": np.zeros((6, 4, 4, 3), np.float32)}, "f4"),
    ({"train_images": np.zeros((6, 3, 4, 4), np.uint8)}, "the shape (6, 3, 4, 4)"),
    ({"train_labels": np.zeros(6)}, "train_labels is f8"), ({"train_labels": np.zeros(5, int)}, "for each of 6"),
    ({"train_labels": np.zeros((6, 1), int)}, "for each of 6"),
    ({"test_images": np.zeros((3, 5, 5, 3), np.uint8)}, "differ in size"),
    ({"train_images": np.zeros((0, 4, 4, 3), np.uint8), "train_labels": np.zeros(0, int)}, "the shape (0, 4, 4, 3)"),
    ({"train_labels": np.array([0, 1, None, 1, 0, 1])}, "train_labels is O")])
def test_npz_files_that_training_would_refuse(tmp_path, changes, word):
    path = tmp_path / "mine.npz"
    np.savez(path, **arrays(**changes))
    found = data.check_npz(path)
    assert (found.level, found.kind) == (PROBLEM, "npz-unfit") and word in found.what and f"npz:{path}" in found.type
    with pytest.raises(UserError):
        load_npz(path)


def test_npz_files_that_are_damaged(tmp_path):
    path = tmp_path / "cifar10.npz"
    np.savez(path, **arrays(side=64))
    whole = path.read_bytes()
    for content in (b"", whole[:len(whole) // 2], b"PK" + bytes(100), gzip.compress(whole)):
        path.write_bytes(content)
        assert only(look(tmp_path, "cifar10"), "npz-damaged").level == PROBLEM
    at = 50_000
    path.write_bytes(whole[:at] + b"\1" + whole[at + 1:])
    assert kinds(look(tmp_path), PROBLEM) == []                  # headers alone cannot tell
    assert only(look(tmp_path, full=True), "npz-damaged").level == PROBLEM


def test_a_header_that_claims_too_much_is_not_believed(tmp_path):
    head = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000, 32, 32, 3), }\n"
    with zipfile.ZipFile(tmp_path / "big.npz", "w") as archive:
        archive.writestr("train_images.npy", b"\x93NUMPY\1\0" + len(head).to_bytes(2, "little") + head + bytes(10))
    assert "3072000000000000 bytes" in only(look(tmp_path), "npz-damaged").what


@pytest.mark.parametrize("array", [np.zeros((2, 3), np.uint8), np.arange(5), np.zeros(3, ">f4"), np.array(["ab", "c"]),
                                   np.zeros((), bool), np.zeros((3, 0), np.complex64), np.array([b"abc"]),
                                   np.zeros(2, "M8[s]"), np.asfortranarray(np.zeros((2, 3)))])
def test_heads_are_those_of_numpy(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    if array.dtype.kind == "M":
        with pytest.raises(npz_heads.BROKEN):
            npz_heads.head_of_npy(tmp_path / "a.npy")
    else:
        head = npz_heads.head_of_npy(tmp_path / "a.npy")
        assert (head.dtype, head.shape, head.bytes) == (array.dtype.str, array.shape, array.nbytes)


# -- folders ---------------------------------------------------------------------------------------------------------

def test_tiny_imagenet_in_all_states(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "TINY_IMAGES", {"train": 4, "val": 2})
    (tmp_path / "tiny-imagenet-200.zip.part").write_bytes(bytes(1000))
    assert "1.0 kB of 248 MB" in only(look(tmp_path), "tiny-part").what
    root = tmp_path / "tiny-imagenet-200"
    for number, name in enumerate(["train/a/images", "train/b", "val/images"]):
        (root / name).mkdir(parents=True)
        for image in range(2):
            (root / name / f"{number}_{image}.JPEG").write_bytes(b"x")
    (root / "val" / "val_annotations.txt").write_text("")
    assert only(look(tmp_path, "tiny-imagenet"), "tiny").level == OK
    (root / "train" / "b" / "1_0.JPEG").unlink()
    part = only(look(tmp_path), "tiny-part")
    assert part.level == NOTE and "has 3 of" in part.what and "?subset" in part.what
    assert part.type.startswith(f"mv {root} {root}.old && bash")
    assert only(look(tmp_path, "tiny-imagenet"), "tiny-part").level == PROBLEM
    assert only(look(tmp_path, "tiny-imagenet?subset"), "tiny-part").level == NOTE
    (root / "train" / "b" / "1_1.JPEG").write_bytes(b"")
    assert "1 image" in only(look(tmp_path), "tiny-empty").what and only(look(tmp_path), "tiny-empty").level == PROBLEM


def test_corrupted_test_images(tmp_path):
    folder = tmp_path / "CIFAR-10-C"
    folder.mkdir()
    np.save(folder / "labels.npy", np.zeros(10, np.int64))
    for name in ("fog", "frost"):
        np.save(folder / f"{name}.npy", np.zeros((10, 4, 4, 3), np.uint8))
    assert "2 corruptions of 2 test images" in only(look(tmp_path), "corrupted").what
    (folder / "fog.npy").write_bytes((folder / "fog.npy").read_bytes()[:200])
    np.save(folder / "frost.npy", np.zeros((5, 4, 4, 3), np.uint8))
    bad = only(look(tmp_path), "corrupted")
    assert bad.level == PROBLEM and "fog.npy" in bad.what and "frost.npy" in bad.what
    assert bad.type == f"tar -xf CIFAR-10-C.tar -C {tmp_path}"


def test_folders_of_images(tmp_path):
    for name in ("train/cat", "train/dog", "test/cat"):
        (tmp_path / "pets" / name).mkdir(parents=True)
    spec = f"folder:{tmp_path / 'pets'}?size=64"
    assert "2 in train and 1 in test" in only(look(tmp_path, spec), "folder").what
    (tmp_path / "pets" / "test" / "dog").mkdir()
    assert only(look(tmp_path, spec), "folder").level == OK


# -- fingerprints ----------------------------------------------------------------------------------------------------

@pytest.mark.slow
def test_data_are_compared_with_those_of_the_records(tmp_path):
    path = tmp_path / "cifar10.npz"
    np.savez(path, **arrays(side=8))
    loaded: DataSet = load_npz(path)
    spec, results = f"npz:{path}", tmp_path / "results"
    say = lambda: only(fingerprints.check_fingerprints([spec], tmp_path, results), "fingerprint")  # noqa: E731
    assert "no recorded run used cifar10" in say().what
    fabricate(results, seed=1, data=loaded.describe())
    assert "those of 1 recorded run" in say().what and say().level == OK
    fabricate(results, seed=2, data=DATA)
    assert "those of 1 recorded run; 1 used other or changed images" in say().what
    np.savez(path, **arrays(side=8, test_labels=np.array([1, 1, 1])))
    other = say()
    assert other.level == NOTE and "the 2 recorded runs on cifar10 had others" in other.what
    path.write_bytes(b"PK")
    broken = only(fingerprints.check_fingerprints([spec], tmp_path, results), "unloadable")
    assert broken.level == PROBLEM and "cut off" in broken.what
    assert json.loads((next(results.rglob("run.json"))).read_text())["data"]
