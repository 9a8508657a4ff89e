"""make doctor: run folders, each fault planted in records that were whole."""

import fcntl
import json
import os
import shutil
import subprocess

import numpy as np
import pytest
import torch

from common import records
from common.checkpoint import save_state, save_tree
from common.doctor import leftovers, runs
from common.doctor.findings import NOTE, PROBLEM
from common.environment import ROOT
from common.files import sha256_of, write_json
from common.tests.fabricate import curves, fabricate
from common.tests.test_doctor_machine import kinds, only

ACCURACIES = {"clean": 0.8, "PGD-20": 0.5}
COMMAND = "python adarat/train/PGD_AT/train_cifar10.py"


@pytest.fixture
def results(tmp_path):
    return tmp_path / "results"


@pytest.fixture
def weights(tmp_path):
    return tmp_path / "weights"


@pytest.fixture
def folder(results):
    """A finished and judged run."""
    return fabricate(results, metrics=curves(10), accuracies=ACCURACIES)


@pytest.fixture
def look(results, weights):
    return lambda **options: runs.check_runs(results, weights, **options)


def change(path, **fields):
    write_json(path, {**json.loads(path.read_text()), **fields})


def tree(root):
    return {str(path.relative_to(root)): path.is_file() and path.read_bytes() for path in root.rglob("*")}


def test_whole_runs_are_counted_and_left_as_they_are(look, folder, tmp_path):
    before = tree(tmp_path)
    found = look()
    assert kinds(found) == ["absent"] and "1 finished run" in only(found, "absent").what
    assert "1 run and 1 evaluation in" in only(found, "counted").what
    assert "400 flags count what" in only(found, "counted").what and tree(tmp_path) == before


def test_the_records_of_this_repository_are_whole():
    found = runs.check_runs(ROOT / "results", ROOT / "no-weights")
    assert [one.what for one in found if one.level == PROBLEM] == []
    count = len(list((ROOT / "results").rglob("run.json")))
    assert count and only(found, "counted").what.startswith(f"{count} runs")


def test_a_run_that_is_not_finished_says_how_far_it_is_and_how_it_goes_on(look, folder, weights):
    (folder / "train.json").unlink()
    records.truncate_metrics(folder / "metrics.jsonl", 3)
    for path in folder.glob("*-adarat.*"):
        path.unlink()
    found = only(look(), "unfinished")
    assert found.level == NOTE and "3 of 10 epochs are done" in found.what and "it begins anew" in found.what
    assert found.type.endswith("python adarat/train/PGD_AT/train_cifar10.py") and "just now" in found.what
    twin = weights / folder.relative_to(folder.parents[2])
    save_tree(twin / "resume.pt", {"identity": json.loads((folder / "run.json").read_text())["config_sha256"]})
    with open(folder / "metrics.jsonl", "a") as stream:
        stream.write('{"epoch": 4, "lo')
    found = only(look(), "unfinished")
    assert "anew" not in found.what and "torn, the command mends it" in found.what and "runs now" not in found.what
    with open(twin.with_name(f".{twin.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "; it runs now" in only(look(), "unfinished").what
    for path in (folder, folder / "metrics.jsonl", twin / "resume.pt"):
        os.utime(path, (0, 0))
    assert "just now" not in only(look(), "unfinished").what and kinds(look(), PROBLEM) == []


def test_the_path_that_a_command_lost_is_pointed_out(look, folder):
    (folder / "train.json").unlink()
    for path in folder.glob("*-adarat.*"):
        path.unlink()
    change(folder / "run.json", command=f"{COMMAND} --data npz:.../mine.npz")
    found = only(look(), "unfinished")
    assert "fill in" in found.what and "--data npz:.../mine.npz" in found.type


def test_a_broken_line_of_a_run_that_is_not_finished_is_left_to_its_command(look, folder):
    for path in (folder / "train.json", *folder.glob("*-adarat.*")):
        path.unlink()
    (folder / "metrics.jsonl").write_text('{"epoch": 1}\n{"epo\n')
    found = only(look(), "metrics")
    assert found.level == PROBLEM and "line 2" in found.what and found.type.endswith("train_cifar10.py")
    assert "unfinished" not in kinds(look())


def test_an_evaluated_run_without_its_training(look, folder):
    (folder / "train.json").unlink()
    assert "train.json is gone" in only(look(), "record").what and "unfinished" not in kinds(look())


@pytest.mark.parametrize("name", ["run.json", "train.json", "eval-adarat.json", "metrics.jsonl"])
@pytest.mark.parametrize("content", ["", "[]", "{}", '{"schema": 1', "\0\n"])
def test_records_that_cannot_be_read(look, folder, name, content):
    (folder / name).write_text(content + "\n" * (name == "metrics.jsonl"))
    found = [one for one in look() if one.level == PROBLEM]
    assert {one.kind for one in found} == {"record"} and name in found[0].what
    assert found[0].type == f"mkdir -p weights/broken && mv {folder} weights/broken/{folder.name}"


def test_what_git_keeps_is_given_back_by_git(look, folder, results):
    for words in (("init", "-q"), ("add", "."), ("-c", "user.name=a", "-c", "user.email=b", "commit", "-qm", "c")):
        subprocess.run(("git", *words), cwd=results, check=True)
    (folder / "train.json").write_text("{}")
    assert only(look(), "record").type == f"git restore -- {folder / 'train.json'}"
    subprocess.run(("git", "checkout", "-q", "."), cwd=results, check=True)
    (folder / "flags-adarat.npz").write_bytes(b"PK")
    assert only(look(), "flags").type == f"git restore -- {folder / 'flags-adarat.npz'}"
    (folder / "run.json").unlink()
    lost = only(look(), "no-run")
    assert lost.level == PROBLEM and lost.type == f"git restore -- {folder / 'run.json'}"


def test_a_configuration_that_was_edited(look, folder):
    record = json.loads((folder / "run.json").read_text())
    change(folder / "run.json", config={**record["config"], "tao": 0.5})
    assert "changed by hand" in only(look(), "record").what
    digest = records.config_sha256({**record["config"], "tao": 0.5})
    change(folder / "run.json", config={**record["config"], "tao": 0.5}, config_sha256=digest)
    assert "of two configurations" in only(look(), "record").what


def test_a_run_in_another_folder(look, folder, results):
    (results / "adarat" / "mnist").mkdir()
    shutil.move(folder, results / "adarat" / "mnist" / folder.name)
    place = only(look(), "place")
    assert place.level == PROBLEM and place.type.endswith(f"{results / 'adarat' / 'cifar10' / folder.name}")
    shutil.move(results / "adarat" / "mnist" / folder.name, results / "adarat" / "mnist" / "renamed")
    assert "it is of run" in only(look(), "record").what


@pytest.mark.parametrize(("text", "word"), [
    ("", "0 lines"), ('{"epoch": 1}\n', "1 line,"), ('{"epoch": 1}\n' * 10 + '{"ep', "torn")])
def test_a_curve_that_is_not_that_of_the_training(look, folder, text, word):
    (folder / "metrics.jsonl").write_text(text)
    found = only(look(), "record")
    assert word in found.what and "train.json says 10 epochs" in found.what


def test_flags_that_count_something_else(look, folder):
    path, record = folder / "flags-adarat.npz", json.loads((folder / "eval-adarat.json").read_text())
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files}

    def written(**changes):
        np.savez(path, **{name: array for name, array in {**arrays, **changes}.items() if array is not None})
        change(folder / "eval-adarat.json", flags_sha256=sha256_of(path))
        return only(look(), "flags")

    flipped = arrays["clean"].copy()
    flipped[0] = ~flipped[0]
    found = written(clean=flipped)
    assert found.level == PROBLEM and "counts 160 robust images of clean, its flags 1" in found.what
    assert found.type.endswith("-m scripts.evaluate")
    assert "no 200 flags of clean" in written(clean=arrays["clean"][:-1]).what
    assert "no 200 flags of clean" in written(clean=arrays["clean"].astype(np.int64)).what
    assert "no 200 flags of PGD-20" in written(**{"PGD-20": None}).what
    assert "no index" in written(index=None).what
    assert "cannot be read" in written(clean=np.array([None, 1])).what
    path.write_bytes(b"not an npz")
    change(folder / "eval-adarat.json", flags_sha256=sha256_of(path))
    assert "cannot be read" in only(look(), "flags").what
    change(folder / "eval-adarat.json", flags_sha256=record["flags_sha256"])
    assert "its sha256 differs" in only(look(), "flags").what
    path.unlink()
    assert "missing" in only(look(), "flags").what
    change(folder / "eval-adarat.json", flags="../../flags-adarat.npz")
    assert "../../flags-adarat.npz" in only(look(), "record").what


def test_an_evaluation_of_other_weights(results, look):
    fabricate(results, metrics=curves(10), accuracies=ACCURACIES, judged="f" * 64)
    found = only(look(), "judged")
    assert found.level == PROBLEM and found.type.endswith("-m scripts.evaluate")


def test_flags_without_a_record(look, folder):
    (folder / "eval-adarat.json").unlink()
    assert only(look(), "orphan").type == f"rm {folder / 'flags-adarat.npz'}"


def test_weights_are_compared_with_the_record(look, folder, weights, monkeypatch):
    twin = weights / "adarat" / "cifar10" / folder.name
    digest = save_state(twin / "last.pt", {"a": torch.ones(3)})
    assert "sha256" in only(look(), "weights").what and only(look(), "weights").level == PROBLEM
    files = {"last": {"file": "last.pt", "sha256": digest}, "best": {"file": "best.pt", "sha256": digest}}
    change(folder / "train.json", weights=files)
    change(folder / "eval-adarat.json", weights_sha256=digest)
    found = look()
    assert kinds(found) == ["weights-part"] and "lacks best.pt" in only(found, "weights-part").what
    assert "1 file of weights with the recorded hash" in only(found, "counted").what
    monkeypatch.setattr(runs, "MOST_READ", 10)
    assert "1 file of weights were not compared" in only(look(), "unread").what and only(look(), "unread").level == NOTE
    assert "unread" not in kinds(look(full=True))


def test_weights_of_the_checks_stand_without_that_word(results, weights, look):
    folder = fabricate(results / "checks" / "fast-search", metrics=curves(10))
    digest = save_state(weights / "fast-search" / "adarat" / "cifar10" / folder.name / "last.pt", {"a": torch.ones(3)})
    change(folder / "train.json", weights={"last": {"file": "last.pt", "sha256": digest}})
    found = look()
    assert kinds(found) == [] and "1 run and" in only(found, "counted").what
    assert kinds(leftovers.check_leftovers(results, weights, results, results)) == []


def test_a_resume_file_of_another_configuration(look, folder, weights):
    twin = weights / "adarat" / "cifar10" / folder.name
    save_tree(twin / "resume.pt", {"identity": "0" * 64, "parts": {"model": {"a": torch.ones(2)}}})
    assert only(look(), "resume").level == NOTE and "another configuration" in only(look(), "resume").what
    (folder / "train.json").unlink()
    (folder / "eval-adarat.json").unlink()
    assert only(look(), "resume").level == PROBLEM and only(look(), "resume").type.endswith("resume.pt.old")
    whole = (twin / "resume.pt").read_bytes()
    (twin / "resume.pt").write_bytes(whole[:len(whole) // 2])
    assert "damaged" in only(look(), "resume").what


def test_runs_of_code_that_was_not_committed(look, folder):
    record = json.loads((folder / "train.json").read_text())
    change(folder / "train.json", environment={**record["environment"], "dirty": True})
    assert only(look(), "dirty").level == NOTE and folder.name in only(look(), "dirty").what


def test_folders_that_are_no_runs(look, results, folder):
    (results / "adarat" / "cifar10" / "empty").mkdir()
    (results / "tables" / "a" / "b").mkdir(parents=True)
    assert only(look(), "no-run").type == f"rmdir {results / 'adarat' / 'cifar10' / 'empty'}"
    (results / "adarat" / "cifar10" / "empty" / "train.json").write_text("{}")
    assert "it holds train.json" in only(look(), "no-run").what and only(look(), "no-run").level == NOTE


# -- what is left over -----------------------------------------------------------------------------------------------

def test_files_of_killed_writes_and_of_older_plans(folder, results, weights, tmp_path):
    def left():
        return leftovers.check_leftovers(results, weights, tmp_path / "data", tmp_path / "build", tmp_path)

    assert left() == []
    dead = subprocess.run(("sh", "-c", "echo $$"), capture_output=True, text=True, check=True).stdout.strip()
    (folder / f".train.json.{dead}.tmp").write_text("{")
    (folder / f".eval.json.{os.getpid()}.tmp").write_text("{")               # being written now
    assert only(left(), "temporary").type == f"rm {folder}/.train.json.{dead}.tmp"
    twin = weights / "adarat" / "cifar10" / folder.name
    save_state(twin / "last.pt", {"a": torch.ones(3)})
    save_state(twin.with_name("x.before-12345678") / "weights" / "last.pt", {"a": torch.ones(3)})
    assert "1 run of plans that have changed" in only(left(), "retired").what and "weights" not in kinds(left())
    (twin / "evaluations").mkdir()
    (twin / "evaluations" / "progress-paper-1000.json").write_text("{}")
    assert only(left(), "evaluation").type.endswith(f"scripts.evaluate {folder} --plan paper-1000")
    shutil.rmtree(folder)
    assert f"{twin}" in only(left(), "weights").what and "evaluation" not in kinds(left())


def test_rules_that_are_older_than_their_plan(tmp_path):
    (tmp_path / "build").mkdir()
    (tmp_path / "rpat").mkdir()
    rules, plan = tmp_path / "build" / "rules-rpat-cifar10-l2.mk", tmp_path / "rpat" / "runs.py"
    rules.touch()
    plan.touch()
    look = lambda: kinds(leftovers._stale_rules(tmp_path / "build", tmp_path))  # noqa: E731
    os.utime(rules, (1000, 1000))
    os.utime(plan, (999, 999))
    assert look() == []
    os.utime(plan, (1001, 1001))
    assert look() == ["rules"]
    plan.unlink()
    assert look() == ["rules"]


