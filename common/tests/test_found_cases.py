"""What fuzzing found, each as the smallest file or line that shows it: all of it ended in a traceback once.

What was found by thinking stands in test_hostile_*.py.
"""

import hashlib
import io
import json
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from common import records, report
from common.checkpoint import load_tree
from common.data import load
from common.data.corruption_files import CorruptionFiles
from common.data.ddpm import load_extra
from common.errors import UserError
from common.evaluation.receipts import check_counts, digest, read_receipt
from common.files import write_json
from common.fuzz.data import make_corruptions, make_extra, make_npz
from common.fuzz.records import make_receipt, write_receipt
from common.runs import Column, Row, Table
from common.tests.fabricate import fabricate

# numpy reads headers with Python's tokenizer and parser, and lets their errors pass.
HEADERS = {"bracket": b"{'descr': '|u1', 'fortran_order': False, 'shape': (4, 4, 4, 3, }",
           "quotes": b"{'descr': '''|u1, 'fortran_order': False, 'shape': (4, 4, 4, 3), }",
           "list as a key": b"{[]: '|u1', 'fortran_order': False, 'shape': (4, 4, 4, 3), }",
           "many brackets": b"(" * 3000}


def npy(head: bytes) -> bytes:
    """An array with this header."""
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(head) + 1) + head + b"\n" + bytes(192)


def exchanged(path: Path, member: str, content: bytes) -> None:
    """Another content for a member of an archive, its checksum right."""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, values in (members | {member: content}).items():
            archive.writestr(name, values)


@pytest.mark.parametrize("head", HEADERS.values(), ids=HEADERS)
def test_headers_of_arrays_that_pythons_parser_refuses(tmp_path, head):
    make_npz(tmp_path)
    exchanged(tmp_path / "a.npz", "train_images.npy", npy(head))
    with pytest.raises(UserError, match="'train_images' cannot be read"):
        load(f"npz:{tmp_path}/a.npz")
    make_extra(tmp_path)
    exchanged(tmp_path / "a.npz", "image.npy", npy(head))
    with pytest.raises(UserError, match="the file is damaged"):
        load_extra([tmp_path / "a.npz"], classes=2, image_shape=(3, 4, 4))
    make_corruptions(tmp_path)
    (tmp_path / "fog.npy").write_bytes(npy(head))
    with pytest.raises(UserError, match="cannot be read as an array"):
        CorruptionFiles(tmp_path, "CIFAR-10-C", ("fog",))
    make_receipt(tmp_path)
    exchanged(tmp_path / "a.npz", "clean.npy", npy(head))
    with pytest.raises(UserError, match="is no receipt of"):
        read_receipt(tmp_path / "a.npz")


def saved(path: Path) -> bytes:
    torch.save({"a": torch.zeros(3)}, path)
    return path.read_bytes()


def test_a_name_in_an_archive_that_is_no_text(tmp_path):
    content = saved(tmp_path / "a.pt")
    at = content.index(b"PK\1\2")
    flag = struct.pack("<H", struct.unpack_from("<H", content, at + 8)[0] | 0x800)         # "names are UTF-8"
    (tmp_path / "a.pt").write_bytes(content[:at + 8] + flag + content[at + 10:at + 46] + b"\xff" + content[at + 47:])
    with pytest.raises(UserError, match="is damaged"):
        load_tree(tmp_path / "a.pt")


@pytest.mark.parametrize("suffix", ["pt", "npz"])
def test_an_archive_that_says_it_is_one_of_several_disks(tmp_path, suffix):
    content = saved(tmp_path / "a.pt")
    end = content.index(b"PK\5\6")
    locator = b"PK\6\7" + struct.pack("<IQI", 0, end, 7)
    (tmp_path / f"b.{suffix}").write_bytes(content[:end] + locator + content[end:])
    with pytest.raises(UserError, match=r"cut (short|off)"):
        load_tree(tmp_path / "b.pt") if suffix == "pt" else load(f"npz:{tmp_path}/b.npz")


@pytest.mark.parametrize("line", ['{"epoch": 1, "loss": 1' + "0" * 400 + "}", '{"epoch": 1' + "0" * 40 + "}",
                                  '{"epoch": true, "loss": 1}'])
def test_numbers_in_metrics_that_no_array_holds(tmp_path, line):
    folder = fabricate(tmp_path, metrics=[{"epoch": 1, "loss": 2.0}])
    (folder / "metrics.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl line 1"):
        records.read_run(folder)


def flags(folder: Path, content: bytes) -> records.EvalRecord:
    """The evaluation of a run, other bytes in the place of its flags, their hash right."""
    (folder / "flags-adarat.npz").write_bytes(content)
    record = json.loads((folder / "eval-adarat.json").read_text())
    write_json(folder / "eval-adarat.json", {**record, "flags_sha256": hashlib.sha256(content).hexdigest()})
    return records.read_run(folder).evals["adarat"]


def test_flags_that_are_damaged_though_their_hash_is_right(tmp_path):
    folder = fabricate(tmp_path, accuracies={"clean": 0.5}, n=10)
    whole = (folder / "flags-adarat.npz").read_bytes()
    checksum = whole.index(b"PK\1\2") + 16
    for content in (b"no archive", whole[:-30], whole.replace(b"index.npy", b"\0\0\0\0\0.npy", 1),
                    whole[:checksum] + bytes(4) + whole[checksum + 4:]):
        with pytest.raises(UserError, match="is damaged"):
            assert flags(folder, content).arrays
    without = io.BytesIO()
    np.savez(without, index=np.arange(10))
    with pytest.raises(UserError, match="does not hold the verdicts"):
        assert flags(folder, without.getvalue()).arrays


def test_a_record_that_names_a_file_of_five_thousand_letters(tmp_path):
    folder = fabricate(tmp_path, accuracies={"clean": 0.5})
    record = json.loads((folder / "eval-adarat.json").read_text())
    write_json(folder / "eval-adarat.json", {**record, "flags": "x" * 5000})
    with pytest.raises(UserError, match="'flags' is 'xxx"):
        records.read_run(folder)


@pytest.mark.parametrize("meta", [{"format": 1, "arrays": 5}, {"format": 1, "arrays": {}},
                                  {"format": 1, "arrays": {}, "evaluators": ["text"]}])
def test_a_receipt_that_says_nothing(tmp_path, meta):
    write_receipt(tmp_path / "a.npz", meta, {})
    with pytest.raises(UserError, match="is no receipt of"):
        check_counts(*read_receipt(tmp_path / "a.npz"))


@pytest.mark.parametrize(("name", "array"), [
    ("labels", np.array(0)), ("flags/FGSM", np.array(0)), ("flags/FGSM", np.array(["a", "b", "c"])),
    ("clean", np.zeros((3, 3), np.uint8)), ("adversarial/FGSM", np.zeros(3))])
def test_a_receipt_of_other_arrays_whose_hashes_are_right(tmp_path, name, array):
    make_receipt(tmp_path)
    with np.load(tmp_path / "a.npz") as stored:
        arrays = {key: stored[key] for key in stored.files}
    meta = json.loads(str(arrays.pop("meta")))
    arrays[name], meta["arrays"][name] = array, digest(array)
    write_receipt(tmp_path / "a.npz", meta, arrays)
    with pytest.raises(UserError, match="is no receipt of"):
        check_counts(*read_receipt(tmp_path / "a.npz"))


def test_a_table_of_two_protocols(tmp_path):
    for seed, epochs in ((1, 10), (2, 11)):
        fabricate(tmp_path, seed=seed, config={"epochs": epochs})
    table = Table(title="T", rows=(Row(method="PGD-AT", variant="plain", label="a"),),
                  columns=(Column(evaluator="clean", title="clean"),))
    with pytest.raises(UserError, match="one cell, two protocols") as caught:
        report.build(table, records.read_runs(tmp_path), [], "cifar10", "short")
    assert caught.value.code == "E-TWO-PROTOCOLS"
