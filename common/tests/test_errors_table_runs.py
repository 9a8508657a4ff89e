"""docs/errors.md, checkpoints, runs and what happens while they run: each row's line, status 2, nothing lost."""

import errno
import importlib
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch

from common import group
from common.checkpoint import save_state
from common.files import read_json, write_json
from common.models import build
from common.tests.errors_table import (
    SHORT,
    Cases,
    adarat,
    arrays,
    check,
    command,
    evaluate,
    function,
    npz,
    places,
    rows,
    weights,
)
from common.tests.fabricate import fabricate

CASES = Cases()
of = CASES.of
MINE = rows("Checkpoints", "Runs and records", "While it runs")
MADE: dict[str, Path] = {}                   # what `make` made, once for all rows
FAST = ("--model", "small", "--width", "4", "--device", "cpu", "--precision", "fp32", "--batch_size", "8",
        "--n_train", "24", "--n_epoch_test", "8")


def make(folder: Path) -> None:
    """A finished run of AdaRAT's and one of RPAT's, on a small npz file, all in `folder`."""
    from adarat.flags import main as adarats
    from rpat.flags import main as rpats
    spec = npz(folder)
    with pytest.MonkeyPatch.context() as patch:
        for main, words in ((lambda: adarats("PGD-AT", "cifar10"), (*SHORT, "--n_epoch_test", "8", "--run", "a_run")),
                            (rpats, (*FAST, "--epochs", "1", "--n_iters", "1", "--save_step", "0", "--run", "r_run"))):
            with pytest.raises(SystemExit) as left:
                command(patch, main, *words, "--data", spec, *places(folder))()
            assert not left.value.code
    MADE["all"] = folder


@pytest.fixture(scope="module", autouse=True)
def made(tmp_path_factory):
    make(tmp_path_factory.mktemp("made"))


@pytest.mark.parametrize("row", MINE, ids=str)
def test_the_row_is_what_happens(row, tmp_path, monkeypatch, capfd):
    check(row, CASES, tmp_path, monkeypatch, capfd)


def test_every_case_has_its_row():
    assert {code: len(some) for code, some in CASES.items()} == {row.code: row.number for row in MINE}


def run_in(at, name="a_run", paper="adarat") -> Path:
    """The folder of one of the two runs, copied with its weights and data."""
    for folder in ("results", "weights"):
        shutil.copytree(MADE["all"] / folder / paper, at / folder / paper)
    shutil.copy(MADE["all"] / "a.npz", at)
    return at / "results" / paper / "a" / name


def kept(at) -> Path:
    return at / "weights" / "adarat" / "a" / "a_run" / "last.pt"


def evaluated(at, monkeypatch, *words):
    """scripts/evaluate.py on the run of AdaRAT's."""
    return evaluate(at, monkeypatch, at / "results/adarat/a/a_run", "--data", f"npz:{at}/a.npz", *words)


def script(monkeypatch, name, *words):
    """A command of scripts/ that leaves errors to its caller."""
    return command(monkeypatch, importlib.import_module(f"scripts.{name}").main, *words, bare=True)


# -- checkpoints -----------------------------------------------------------------------------------------------------

@of("E-CHECKPOINT-MISSING")
def no_checkpoint(at, monkeypatch):
    return evaluate(at, monkeypatch, at / "none.pt", *weights(at)[1:])


@of("E-CHECKPOINT-DAMAGED")
def cut_short(at, monkeypatch):
    file, *words = weights(at)
    file.write_bytes(file.read_bytes()[:2000])
    return evaluate(at, monkeypatch, file, *words)


@of("E-CHECKPOINT-FIT")
def another_width(at, monkeypatch):
    return evaluate(at, monkeypatch, *weights(at), "--width", "8")


@of("E-CHECKPOINT-PART")
def several_networks(at, monkeypatch):
    file, *words = weights(at)
    state = torch.load(file, weights_only=True)
    torch.save({"student": state, "teacher": {name: value + 1 for name, value in state.items()}}, file)
    return evaluate(at, monkeypatch, file, *words)


@of("E-CHECKPOINT-NORMALISE")
def normalised_in_the_file(at, monkeypatch):
    file, *words = weights(at)
    save_state(file, build("small", classes=3, width=4, normalise=([0.5] * 3, [0.25] * 3)).state_dict())
    return evaluate(at, monkeypatch, file, *words)


@of("E-PICKLE")
def whole_network(at, monkeypatch):
    file, *words = weights(at)
    torch.save(build("small", classes=3, width=4), file)
    return evaluate(at, monkeypatch, file, *words)


@of("E-PACKAGE")
def no_safetensors(at, monkeypatch):
    file, *words = weights(at)
    file.rename(at / "w.safetensors")
    for name in ("safetensors", "safetensors.torch"):
        monkeypatch.setitem(sys.modules, name, None)
    return evaluate(at, monkeypatch, at / "w.safetensors", *words)


# -- runs and records ------------------------------------------------------------------------------------------------

@of("E-NO-RUN")
def no_run(at, monkeypatch):
    (at / "empty").mkdir()
    return evaluate(at, monkeypatch, at / "empty")


@of("E-NOT-TRAINED")
def not_trained(at, monkeypatch):
    (run_in(at) / "train.json").unlink()
    return evaluated(at, monkeypatch)


@of("E-RUN-FINISHED")
def nothing_to_resume(at, monkeypatch):
    from rpat.flags import main
    folder = run_in(at, "r_run", "rpat")
    write_json(folder / "run.json", read_json(folder / "run.json") | {"command": "python rpat/benchmarks/train.py"})
    return command(monkeypatch, main, "--resume_path", folder)


@of("E-RUN-OTHER-CONFIG")
def another_step(at, monkeypatch):
    run_in(at)
    return adarat(at, monkeypatch, "--data", f"npz:{at}/a.npz", "--n_epoch_test", "8", "--run", "a_run",
                  "--learning_rate", "0.2")


@of("E-RUN-OTHER-SCRIPT")
def of_another_paper(at, monkeypatch):
    from rpat.flags import main
    return command(monkeypatch, main, "--resume_path", run_in(at))


@of("E-RUN-CHECKPOINT")
def best_was_not_kept(at, monkeypatch):
    run_in(at)
    return evaluated(at, monkeypatch, "--checkpoint", "best")


@of("E-RUN-DATA")
def other_test_images(at, monkeypatch):
    from rpat.evaluation import main
    folder = run_in(at, "r_run", "rpat")
    spec = npz(at, test_images=arrays()["test_images"] // 2)
    return command(monkeypatch, main, "--load_path", folder, "--mode", "test_clean_acc", "--data", spec,
                   "--device", "cpu")


@of("E-RESUME")
def nothing_to_go_on_from(at, monkeypatch):
    from rpat.sota_flags import main
    return command(monkeypatch, lambda: main("RPAT++"), "--data", npz(at), "--model", "small", "--width", "4",
                   "--device", "cpu", "--batch-size", "8", "--resume", "3", "--run", "new", *places(at))


@of("E-RESUME")
def a_state_of_another_run(at, monkeypatch):
    folder = run_in(at)
    (folder / "train.json").unlink()
    state = torch.load(kept(at).with_name("resume.pt"), weights_only=True)
    torch.save({**state, "identity": "another"}, kept(at).with_name("resume.pt"))
    return adarat(at, monkeypatch, "--data", f"npz:{at}/a.npz", "--n_epoch_test", "8", "--run", "a_run")


@of("E-WEIGHTS-MISSING")
def weights_gone(at, monkeypatch):
    run_in(at)
    kept(at).unlink()
    return evaluated(at, monkeypatch)


@of("E-WEIGHTS-CHANGED")
def weights_changed(at, monkeypatch):
    run_in(at)
    save_state(kept(at), {name: value + 1 for name, value in torch.load(kept(at), weights_only=True).items()})
    return evaluated(at, monkeypatch)


@of("E-TEACHER")
def no_teacher(at, monkeypatch):
    return adarat(at, monkeypatch, "--data", npz(at), method="KD-AT")


@of("E-BURN-IN")
def no_burn_in(at, monkeypatch):
    from dyart.flags import main
    return command(monkeypatch, main, "--data", npz(at), "--model", "small", "--width", "4", "--device", "cpu",
                   "--pretrained", "auto", *places(at))


@of("E-LIMITS")
def no_base_run(at, monkeypatch):
    return adarat(at, monkeypatch, "--data", npz(at), "--FixRAT", "True", "--AdaRAT", "True", "--limits_from", "base")


@of("E-SOURCE")
def no_source(at, monkeypatch):
    from brainreg.flags import main
    return command(monkeypatch, main, "--data", npz(at), "--task", "CIFAR10", "--base_channels", "4", "--device", "cpu",
                   "--valid_portion", "0.2", "--transfer_id", "plain", *places(at))


@of("E-RECORD")
def broken_record(at, monkeypatch):
    (run_in(at) / "run.json").write_text('{"paper": "ada')
    return evaluated(at, monkeypatch)


@of("E-RECORD")
def record_without_a_key(at, monkeypatch):
    folder = run_in(at)
    record = read_json(folder / "train.json")
    del record["weights"]
    write_json(folder / "train.json", record)
    return evaluated(at, monkeypatch)


@of("E-METRICS")
def broken_metrics(at, monkeypatch):
    (run_in(at) / "metrics.jsonl").write_text("clean_loss 1.2\n{}\n")
    return adarat(at, monkeypatch, "--data", f"npz:{at}/a.npz", "--FixRAT", "True", "--AdaRAT", "True",
                  "--limits_from", "a_run")


def two_runs(at, second="TRADES", **more):
    """The folders of two fabricated runs with evaluations."""
    judged = {"clean": 0.8, "pgd": 0.4}
    return [fabricate(at / "results", accuracies=judged),
            fabricate(at / "results", method=second, **{"accuracies": judged, **more})]


@of("E-FLAGS-FILE")
def no_verdicts(at, monkeypatch):
    runs = two_runs(at)
    (runs[0] / "flags-adarat.npz").unlink()
    return script(monkeypatch, "compare", *runs)


@of("E-RECEIPT")
def no_receipt(at, monkeypatch):
    npz(at)
    return script(monkeypatch, "verify", at / "a.npz")


@of("E-NOT-JUDGED")
def not_judged(at, monkeypatch):
    return script(monkeypatch, "compare", *two_runs(at, accuracies=None))


@of("E-COMPARE")
def nothing_in_common(at, monkeypatch):
    return script(monkeypatch, "compare", *two_runs(at, accuracies={"noise": 0.5}))


@of("E-RESULTS")
def no_results(at, monkeypatch):
    return script(monkeypatch, "report", "--results", at / "results")


@of("E-REPORTED")
def no_table(at, monkeypatch):
    two_runs(at)
    (at / "results/reported").mkdir()
    (at / "results/reported/adarat.csv").write_text("method,accuracy\nPGD-AT,50\n")
    return script(monkeypatch, "report", "--results", at / "results", "--paper", "adarat")


# -- while it runs ---------------------------------------------------------------------------------------------------

@of("E-NOT-FINITE")
def diverging(at, monkeypatch):
    diverging.writes = {"results/adarat/a/hot/run.json"}
    return adarat(at, monkeypatch, "--data", npz(at), "--learning_rate", "1e30", "--run", "hot")


@of("E-DISK-FULL")
def no_space(at, monkeypatch):
    def full(number):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    runs = two_runs(at)
    monkeypatch.setattr(os, "fsync", full)
    return script(monkeypatch, "compare", *runs, "--out", at / "table.md")


@of("E-WRITE")
def a_folder_of_that_name(at, monkeypatch):
    (at / "table.md").mkdir()
    return script(monkeypatch, "compare", *two_runs(at), "--out", at / "table.md")


@of("E-PROCESSES")
def third_of_two(at, monkeypatch):
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    return adarat(at, monkeypatch, "--data", npz(at))


@of("E-PROCESSES")
def two_on_one_mac(at, monkeypatch):
    monkeypatch.setattr(group, "_here", [group.Group(0, 2)])
    return function(lambda: group.settle(torch.device("mps")))


@of("E-STEP-FAILED")
def a_training_fails(at, monkeypatch):
    from adarat.limits import main
    (at / "train.py").write_text("raise SystemExit(2)\n")
    return command(monkeypatch, main, "--script", at / "train.py", "--out", at / "limits.json", "--work", at / "work",
                   bare=True)
