"""Records from strangers: paths that lead elsewhere, values of other types, JSON that is too deep or no JSON."""

import hashlib
import json
import os

import numpy as np
import pytest

from common import files, inputs, records
from common.errors import UserError
from common.evaluation.receipts import digest, read_receipt
from common.files import read_json, sha256_of
from common.fuzz import limit
from common.fuzz.records import make_receipt
from common.reported import read
from common.tests.fabricate import fabricate


def changed(tmp_path, file: str, keys: tuple, value: object):
    """A run, one value of one of its records replaced."""
    path = fabricate(tmp_path, metrics=[{"epoch": 1, "loss": 2.0}], accuracies={"clean": 0.5, "FGSM": 0.2}, n=10) / file
    record = inner = json.loads(path.read_text())
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_text(json.dumps(record))
    return path


@pytest.mark.parametrize(("file", "keys"), [
    ("run.json", ("run",)), ("run.json", ("paper",)), ("run.json", ("dataset",)),
    ("train.json", ("weights", "last", "file")), ("eval-adarat.json", ("flags",)), ("eval-adarat.json", ("plan",))])
@pytest.mark.parametrize("value", ["../../../etc/passwd", "/etc/passwd", "..", ".", "a/b", "a\\b", "a\0b", "", "a\nb",
                                   "\ud800"])
def test_names_that_lead_out_of_the_folder(tmp_path, file, keys, value):
    path = changed(tmp_path, file, keys, value)
    with pytest.raises(UserError) as caught:
        records.read_runs(tmp_path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value) and str(caught.value).isprintable()
    assert caught.value.code == "E-RECORD" or "\ud800" in value


@pytest.mark.parametrize(("file", "keys", "value"), [
    ("run.json", ("command",), "python 'unclosed"), ("run.json", ("command",), "a\x1b[2Jb"),
    ("run.json", ("seed",), 2**60), ("run.json", ("quirks",), [1]), ("run.json", ("quirks",), [["a"]]),
    ("run.json", ("config",), {"data": []}), ("run.json", ("config",), {"model": "x"}),
    ("run.json", ("data", "extra"), 3), ("run.json", ("data", "source"), ["a"]),
    ("train.json", ("weights", "last"), None), ("train.json", ("final",), []),
    ("train.json", ("environment",), "x"), ("eval-adarat.json", ("results", 0), 7),
    ("eval-adarat.json", ("results", 0, "survivors"), ["clean"]),
    ("eval-adarat.json", ("results", 0, "survivors"), {"clean": "10"}),
    ("eval-adarat.json", ("results", 0, "survivors"), {"clean": True}),
    ("eval-adarat.json", ("results", 0, "n"), True), ("eval-adarat.json", ("results", 0, "n"), 0),
    ("eval-adarat.json", ("results", 0, "values"), 5), ("eval-adarat.json", ("results", 0, "name"), "FGSM"),
    ("eval-adarat.json", ("results", 0, "settings"), None)])
def test_values_of_other_types_than_those_that_are_used(tmp_path, file, keys, value):
    path = changed(tmp_path, file, keys, value)
    with pytest.raises(UserError, match="is not a whole") as caught:
        records.read_runs(tmp_path)
    assert str(path) in str(caught.value) and caught.value.code == "E-RECORD" and "\n" not in str(caught.value)


def test_a_value_of_many_characters_is_cut_short(tmp_path):
    changed(tmp_path, "run.json", ("seed",), "x" * 100_000)
    with pytest.raises(UserError, match="'seed' is 'xxx") as caught:
        records.read_runs(tmp_path)
    assert len(str(caught.value)) < 600


BAD_JSON = {
    "deep list": "[" * 200_000, "closed": "[" * 5000 + "]" * 5000, "a bit deep": "[" * 101 + "]" * 101,
    "deep object": '{"a":' * 100_000, "NaN": '{"a": NaN}', "infinity": '{"a": -Infinity}',
    "beyond floats": '{"a": 1e999}', "many digits": "9" * 10_000,
    "beyond 64 bits": str(2**63), "half a character": '"\\ud800"', "BOM": "\ufeff{}",
    "cut": '{"a": ', "two": "{}{}", "NUL": "\0", "empty": ""}


@pytest.mark.parametrize("case", BAD_JSON)
def test_what_is_no_json_of_ours(tmp_path, case):
    (tmp_path / "a.json").write_text(BAD_JSON[case], encoding="utf-8")
    with pytest.raises(UserError, match=r"a\.json is not readable JSON") as caught, limit(60):
        read_json(tmp_path / "a.json")
    assert "\n" not in str(caught.value) and str(caught.value).isprintable() and len(str(caught.value)) < 400
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1}\n' + BAD_JSON[case] + "\n", encoding="utf-8")
    with pytest.raises(UserError, match="line 2"), limit(60):
        records.read_metrics(tmp_path / "metrics.jsonl")


def test_what_is_json_all_the_same(tmp_path):
    for value in ({"a": [1, -2.5, None, "é\U0001f600\n"]}, 2**63 - 1, [[1]] * 5):
        (tmp_path / "a.json").write_text(json.dumps(value))
        assert read_json(tmp_path / "a.json") == value


def test_json_of_a_size_that_no_record_has(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs.read_text, "__defaults__", (1 << 20,))
    (tmp_path / "a.json").write_text("[" + "1," * 600_000 + "1]")
    with pytest.raises(UserError, match="larger than 1 MiB"):
        read_json(tmp_path / "a.json")


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "a.json").write_bytes(b'{"a": "\xff\xfe"}')
    with pytest.raises(UserError, match="is not readable JSON"):
        read_json(tmp_path / "a.json")


def test_pipes_in_the_place_of_records(tmp_path):
    folder = fabricate(tmp_path, accuracies={"clean": 0.5}, metrics=[{"epoch": 1}])
    for name in ("metrics.jsonl", "train.json", "flags-adarat.npz"):
        content = (folder / name).read_bytes()
        (folder / name).unlink()
        os.mkfifo(folder / name)
        with pytest.raises(UserError, match="a named pipe, not a file") as caught, limit(60):
            for run in records.read_runs(tmp_path):
                assert [record.arrays for record in run.evals.values()]
        assert caught.value.code == "E-NOT-A-FILE"
        (folder / name).unlink()
        (folder / name).write_bytes(content)
    os.mkfifo(tmp_path / "a")
    for reader in (read_json, sha256_of, read, read_receipt):
        with pytest.raises(UserError, match="a named pipe, not a file"), limit(60):
            reader(tmp_path / "a")


@pytest.mark.parametrize(("arrays", "says"), [
    ({"index": np.arange(10), "clean": np.ones(10, np.int64)}, "does not hold the verdicts"),
    ({"index": np.arange(10), "clean": np.ones(9, bool)}, "does not hold the verdicts"),
    ({"index": np.arange(9), "clean": np.ones(10, bool)}, "does not hold the verdicts"),
    ({"clean": np.ones(10, bool)}, "does not hold the verdicts"),
    ({"index": np.arange(10)}, "does not hold the verdicts"),
    ({"index": np.arange(10), "clean": np.array([object()] * 10)}, "holds Python objects")])
def test_flags_of_another_shape_whose_hash_is_right(tmp_path, arrays, says):
    folder = fabricate(tmp_path, accuracies={"clean": 0.5}, n=10)
    np.savez(folder / "flags-adarat.npz", **arrays)
    record = json.loads((folder / "eval-adarat.json").read_text())
    record["flags_sha256"] = hashlib.sha256((folder / "flags-adarat.npz").read_bytes()).hexdigest()
    files.write_json(folder / "eval-adarat.json", record)
    with pytest.raises(UserError, match=says):
        assert records.read_run(folder).evals["adarat"].arrays


@pytest.mark.parametrize(("keys", "value"), [
    (("model",), "resnet"), (("model",), {}), (("weights",), None), (("weights", "file"), 3), (("evaluators",), 3),
    (("evaluators",), [3]), (("evaluators", 0, "name"), "other"), (("evaluators", 0, "n"), 4),
    (("evaluators", 0, "eps"), None), (("evaluators", 0, "norm"), "l7"), (("arrays",), 3), (("arrays",), None)])
def test_receipts_that_say_what_cannot_be(tmp_path, keys, value):
    make_receipt(tmp_path)
    with np.load(tmp_path / "a.npz") as stored:
        arrays = {name: stored[name] for name in stored.files}
    meta = inner = json.loads(str(arrays.pop("meta")))
    assert meta["arrays"]["clean"] == digest(arrays["clean"])
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    np.savez(tmp_path / "a.npz", meta=np.array(json.dumps(meta)), **arrays)
    with pytest.raises(UserError, match="is no receipt of"):
        read_receipt(tmp_path / "a.npz")
