"""Records: whole or refused, exact after a kill, free of this machine's paths."""

import ast
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from common import environment as surroundings
from common import records
from common.environment import ROOT, environment, portable, relative_command
from common.errors import UserError
from common.record_fields import FIELDS
from common.tests.fabricate import DATA, MADE, fabricate, result


def test_a_run_comes_back_as_it_was_written(tmp_path):
    rows = [{"epoch": 1, "loss": 2.0}, {"epoch": 2, "loss": 1.5}]
    folder = fabricate(tmp_path, metrics=rows, accuracies={"clean": 0.8, "pgd-20": 0.5}, n=10)
    run, = records.read_runs(tmp_path, "adarat", "cifar10")
    assert (run.folder, run.name, run.run["seed"], run.train["epochs"]) == (folder, folder.name, 1, 10)
    assert run.metrics == rows
    assert run.curve("loss")[0].tolist() == [1, 2] and run.curve("loss")[1].tolist() == [2.0, 1.5]
    judged = run.evals["adarat"]
    assert judged.results["pgd-20"]["robust"] == 5 == judged.arrays["pgd-20"].sum()
    assert judged.arrays["index"].tolist() == list(range(10))


def test_runs_of_other_papers_and_data_sets_are_left_aside(tmp_path):
    for paper, dataset in (("adarat", "cifar10"), ("adarat", "cifar100"), ("rpat", "cifar10")):
        fabricate(tmp_path, paper=paper, dataset=dataset)
    assert len(records.read_runs(tmp_path)) == 3
    assert len(records.read_runs(tmp_path, "adarat")) == 2
    assert len(records.read_runs(tmp_path, "rpat", "cifar10")) == 1
    assert records.read_runs(tmp_path / "nothing") == []


@pytest.mark.parametrize(("file", "change", "named"), [
    ("run.json", {"seed": "one"}, "seed"), ("run.json", {"config": None}, "config"),
    ("run.json", {"schema": 2}, "schema"), ("run.json", {"run": "other"}, "other"),
    ("run.json", {"dataset": "mnist"}, "another folder"),
    ("train.json", {"alarms": {}}, "alarms"), ("train.json", {"alarms": [{"kind": "collapse"}]}, "epoch"),
    ("train.json", {"weights": {"last": "last.pt"}}, "weights"), ("train.json", {"epochs": True}, "epochs"),
    ("eval-adarat.json", {"results": [result("clean", 11, 10)]}, "11"),
    ("eval-adarat.json", {"results": [{"name": "clean"}]}, "kind")])
def test_a_broken_record_is_named(tmp_path, file, change, named):
    path = fabricate(tmp_path, accuracies={"clean": 0.5}) / file
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=named) as caught:
        records.read_runs(tmp_path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 1}'])
def test_a_record_cut_short_is_named(tmp_path, text):
    path = fabricate(tmp_path) / "train.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"train\.json"):
        records.read_runs(tmp_path)


def test_a_record_that_is_not_whole_is_never_written(tmp_path):
    with pytest.raises(ValueError, match="'seed' is missing"):
        records.write_run(tmp_path, {"paper": "adarat"} | {key: "" for key in FIELDS["run"] if key != "seed"}
                          | {"schema": 1, "config": {}, "quirks": [], "needs": {}, "data": {}, "model": {}})
    assert list(tmp_path.iterdir()) == []


def evaluation(**changes):
    record = {"paper": "p", "dataset": "d", "run": "r", "plan": "x", "spec_sha256": None, "plan_sha256": "1",
              "checkpoint": "last", "weights_sha256": "2", "data": DATA, "seed": 1, "chunk": 10,
              "results": [result("clean", 2, 3)], "environment": MADE, "command": "python"}
    return record | changes


@pytest.mark.parametrize(("flags", "index", "why"), [
    ({"clean": np.array([True, False, False])}, np.arange(3), "counts 2"),
    ({"clean": np.array([1, 1, 0])}, np.arange(3), "must be bool"),
    ({"clean": np.array([True, True])}, np.arange(3), "must be bool"),
    ({"pgd": np.array([True, True, False])}, np.arange(3), "same evaluators"),
    ({"clean": np.array([True, True, False])}, np.arange(2), "must be bool"),
    ({"clean": np.array([True, True, False])}, np.array([0, 2, 1]), "increasing"),
    ({"clean": np.array([True, True, False])}, np.arange(3, dtype=np.int32), "int64")])
def test_flags_must_agree_with_counts(tmp_path, flags, index, why):
    with pytest.raises(ValueError, match=why):
        records.write_eval(tmp_path, evaluation(), flags, index)
    assert list(tmp_path.iterdir()) == []


def test_a_result_of_fewer_images_has_flags_for_the_first_of_them(tmp_path):
    flags = {"clean": np.array([True, True, False]), "aa": np.array([True])}
    path = records.write_eval(tmp_path / "r", evaluation(results=[result("clean", 2, 3), result("aa", 1, 1)]), flags,
                              np.array([4, 7, 9]))
    arrays = records.EvalRecord(path, records.read_record(path, "eval")).arrays
    assert arrays["aa"].tolist() == [True] and arrays["index"].tolist() == [4, 7, 9]


def test_flags_of_another_evaluation_are_refused(tmp_path):
    folder = fabricate(tmp_path, accuracies={"clean": 0.5})
    with open(folder / "flags-adarat.npz", "ab") as stream:
        stream.write(b"x")
    run, = records.read_runs(tmp_path)
    with pytest.raises(UserError, match="evaluate the run again"):
        _ = run.evals["adarat"].arrays
    (folder / "flags-adarat.npz").unlink()
    with pytest.raises(UserError, match="is missing"):
        _ = records.read_runs(tmp_path)[0].evals["adarat"].arrays


def test_the_same_evaluation_gives_the_same_bytes(tmp_path):
    first, second = (fabricate(tmp_path / name, accuracies={"clean": 0.5, "pgd": 0.2}) for name in "ab")
    for file in ("flags-adarat.npz", "eval-adarat.json", "run.json", "train.json"):
        assert (first / file).read_bytes() == (second / file).read_bytes()


# -- metrics ---------------------------------------------------------------------------------------------------------

def test_a_torn_last_line_is_ignored_and_cut_off_by_the_next_epoch(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for epoch in (1, 2):
        records.append_metrics(path, {"epoch": epoch})
    whole = path.read_bytes()
    for cut in range(len(whole) // 2 + 1, len(whole)):
        path.write_bytes(whole[:cut])
        assert records.read_metrics(path) == [{"epoch": 1}]
        records.append_metrics(path, {"epoch": 2})
        assert path.read_bytes() == whole


def test_a_first_line_torn_leaves_nothing(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"epoch": 1')
    assert records.read_metrics(path) == []
    records.append_metrics(path, {"epoch": 1})
    assert records.read_metrics(path) == [{"epoch": 1}]


@pytest.mark.parametrize("line", ["{", "7", '{"loss": 1}', ""])
def test_a_broken_line_inside_is_a_user_error(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"epoch": 1}\n' + line + '\n{"epoch": 3}\n')
    with pytest.raises(UserError, match="line 2"):
        records.read_metrics(path)


def test_truncation_keeps_the_epochs_done(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert records.truncate_metrics(path, 3) == [] and not path.exists()
    for epoch in (1, 2, 3):
        records.append_metrics(path, {"epoch": epoch, "loss": 0.1 * epoch})
    with open(path, "a") as stream:
        stream.write('{"epoch": 4, "lo')
    assert [row["epoch"] for row in records.truncate_metrics(path, 2)] == [1, 2]
    assert [row["epoch"] for row in records.read_metrics(path)] == [1, 2]
    assert path.read_text().endswith("\n")


def test_nan_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(ValueError):
        records.append_metrics(tmp_path / "metrics.jsonl", {"epoch": 1, "loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_clear_line():
    with pytest.raises(UserError, match=r"no space left.*/dev/full"):
        records.append_metrics("/dev/full", {"epoch": 1})


# -- environment and commands ----------------------------------------------------------------------------------------

def git(folder, *words):
    subprocess.run(("git", "-C", folder, "-c", "user.name=n", "-c", "user.email=e@x", *words), check=True,
                   capture_output=True)


def test_dirty_is_about_code_not_results(tmp_path):
    git(tmp_path, "init")
    (tmp_path / "code.py").write_text("a = 1\n")
    assert environment("cpu", "fp32", root=tmp_path)["commit"] is None          # no commit yet
    git(tmp_path, "add", "code.py")
    git(tmp_path, "commit", "-m", "m")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "x.json").write_text("{}")
    made = environment("cpu", "bf16", threads=3, root=tmp_path)
    assert made["dirty"] is False and len(made["commit"]) == 40
    assert (made["device"], made["precision"], made["threads"]) == ("cpu", "bf16", 3)
    (tmp_path / "code.py").write_text("a = 2\n")
    assert environment("cpu", "fp32", root=tmp_path)["dirty"] is True


def test_a_commit_made_while_a_job_runs_is_not_its_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(surroundings, "_BEGUN", {})
    git(tmp_path, "init")
    (tmp_path / "code.py").write_text("a = 1\n")
    git(tmp_path, "add", "code.py")
    git(tmp_path, "commit", "-m", "one")
    surroundings.begin(tmp_path)
    first = environment("cpu", "fp32", root=tmp_path)
    git(tmp_path, "commit", "--allow-empty", "-m", "two")
    surroundings.begin(tmp_path)
    (tmp_path / "code.py").write_text("a = 2\n")
    assert environment("cpu", "fp32", root=tmp_path) == first and first["dirty"] is False
    monkeypatch.setattr(surroundings, "_BEGUN", {})
    now = environment("cpu", "fp32", root=tmp_path)
    assert now["dirty"] is True and now["commit"] != first["commit"]


def test_what_writes_a_record_takes_the_commit_down_when_it_begins():
    """Else a job of hours names what was committed while it ran.  Receipts are written by the judges, who begin."""
    tops = ("adarat", "brainreg", "common", "dyart", "experiments", "rpat", "scripts")
    calls = {path: {node.func.id for node in ast.walk(ast.parse(path.read_text()))
                    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
             for top in tops for path in (ROOT / top).rglob("*.py") if "tests" not in path.parts}
    writers = {path.relative_to(ROOT).as_posix() for path, names in calls.items() if "environment" in names}
    silent = {name for name in writers if "begin" not in calls[ROOT / name]}
    assert len(writers) > 5 and silent == {"common/evaluation/receipts.py"}


def test_environment_without_git_or_a_checkout(tmp_path, monkeypatch):
    monkeypatch.setattr(surroundings, "_BEGUN", {})
    assert environment("cpu", "fp32", root=tmp_path / "none")["commit"] is None
    monkeypatch.setenv("PATH", str(tmp_path))
    made = environment("cpu", "fp32")
    assert made["commit"] is None and made["dirty"] is None and made["numpy"] == np.__version__
    json.dumps(made, allow_nan=False)


def test_threads_follow_the_variable(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert environment("cpu", "fp32")["threads"] == 5
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert environment("cpu", "fp32")["threads"] == surroundings.processors() >= 1


@pytest.mark.parametrize(("text", "wanted"), [
    (f"{ROOT}/data/x.npz", "data/x.npz"), ("npz:/home/me/data/c10.npz", "npz:.../c10.npz"), ("8/255", "8/255"),
    (f"--a={ROOT}/b c /x/y/z", "--a=b c .../z"), ("cifar10", "cifar10"), ("results/a/b", "results/a/b"),
    ("see https://github.com/a/b", "see https://github.com/a/b")])
def test_portable_paths(text, wanted):
    assert portable(text) == wanted
    assert portable({"k": [text, 1]}) == {"k": [wanted, 1]}
    assert portable(portable(text)) == wanted


def test_records_hold_no_path_of_this_machine(tmp_path):
    folder = fabricate(tmp_path, config={"dataset_path": str(tmp_path / "data" / "c.npz")}, data=DATA | {
        "source": f"npz:{tmp_path}/c.npz"})
    assert str(tmp_path) not in (folder / "run.json").read_text()


def test_command_of_a_script_started_in_its_own_folder(tmp_path, monkeypatch):
    folder = tmp_path / "adarat" / "train"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    argv = ["train.py", "--FixRAT", "True", "--dataset_path", "../../data", "--data=npz:/far/away/c 10.npz"]
    assert relative_command(argv, root=tmp_path) == (
        "python adarat/train/train.py --FixRAT True --dataset_path data '--data=npz:.../c 10.npz'")
    assert relative_command(["/x/e.py", "--n", "5"], root=tmp_path, module="scripts.e") == "python -m scripts.e --n 5"


def test_command_of_a_module(tmp_path):
    (tmp_path / "tool.py").write_text("from common.environment import relative_command\nprint(relative_command())\n")
    done = subprocess.run((sys.executable, "-m", "tool", "--x", "1"), cwd=tmp_path, capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}, check=True)
    assert done.stdout == "python -m tool --x 1\n"
