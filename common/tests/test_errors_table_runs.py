"""docs/errors.md, runs and records: each row's line, exit status 2, nothing lost."""

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from common.changed import check_corruptions
from common.checkpoint import save_state
from common.data.unchanged import Seen
from common.evaluation import Evaluator, Plan
from common.files import read_json, write_json
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
    script,
    two_runs,
)

CASES = Cases()
of = CASES.of
MINE = rows("Runs and records")
MADE: dict[str, Path] = {}                   # what `make` made, once for all rows
FAST = ("--model", "small", "--width", "4", "--device", "cpu", "--precision", "fp32", "--batch_size", "8",
        "--n_train", "22", "--n_epoch_test", "8")
RPAT = (*FAST, "--epochs", "1", "--n_iters", "1", "--save_step", "0", "--val", "--run", "r_run")


def make(folder: Path) -> None:
    """A finished run of AdaRAT's and one of RPAT's, on a small npz file, all in `folder`."""
    from adarat.flags import main as adarats
    from rpat.flags import main as rpats
    spec = npz(folder)
    with pytest.MonkeyPatch.context() as patch:
        for main, words in ((lambda: adarats("PGD-AT", "cifar10"), (*SHORT, "--n_epoch_test", "8", "--run", "a_run")),
                            (rpats, RPAT)):
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


def stopped(at, name="a_run", paper="adarat") -> Path:
    """The weights of a run that is not trained to its end."""
    folder = run_in(at, name, paper)
    (folder / "train.json").unlink()
    return at / "weights" / paper / "a" / name


def gone_on_with(at, monkeypatch, *words):
    """The command of the run of AdaRAT's."""
    return adarat(at, monkeypatch, "--data", f"npz:{at}/a.npz", "--n_epoch_test", "8", "--run", "a_run", *words)


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
    return gone_on_with(at, monkeypatch, "--learning_rate", "0.2")


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
    path = stopped(at) / "resume.pt"
    torch.save({**torch.load(path, weights_only=True), "identity": "another"}, path)
    return gone_on_with(at, monkeypatch)


@of("E-RESUME")
def a_damaged_state(at, monkeypatch):
    state = stopped(at) / "resume.pt"
    state.write_bytes(state.read_bytes()[:2000])
    return gone_on_with(at, monkeypatch)


@of("E-RESUME")
def best_weights_gone(at, monkeypatch):
    from rpat.flags import main
    (stopped(at, "r_run", "rpat") / "best.pt").unlink()
    return command(monkeypatch, main, *RPAT, "--data", f"npz:{at}/a.npz", *places(at))


@of("E-RESUME")
def metrics_gone(at, monkeypatch):
    stopped(at)
    (at / "results/adarat/a/a_run/metrics.jsonl").write_text("")
    return gone_on_with(at, monkeypatch)


@of("E-DATA-CHANGED")
def other_training_images(at, monkeypatch):
    stopped(at)
    npz(at, train_images=arrays()["train_images"] // 2)
    return gone_on_with(at, monkeypatch)


@of("E-DATA-CHANGED")
def other_corrupted_images(at, monkeypatch):
    def fog(digest):
        return Evaluator("fog 1", "corruption-file", settings={"corruption": "fog", "severity": 1, "set": "CIFAR-10-C",
                                                               "sha256": digest * 64})
    write_json(at / "eval-c.json", {"weights_sha256": "w", "results": [{"name": "fog 1", "settings":
                                                                         dict(fog("a").settings)}]})
    return function(lambda: check_corruptions(at / "eval-c.json", Plan("c", (fog("b"),)), "w"))


@of("E-DATA-CHANGED")
def replaced_while_it_is_read(at, monkeypatch):
    npz(at)
    seen = Seen.now(at / "a.npz")
    npz(at, test_images=arrays(size=9)["test_images"])
    return function(seen.check)


def held(path) -> Callable[[], None]:
    """Lock a file as another process does; what frees it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_RDWR | os.O_CREAT)
    fcntl.flock(file, fcntl.LOCK_EX)
    return lambda: os.close(file)


def meanwhile(run, free):
    """The command, and after it the lock's end."""
    def both():
        try:
            run()
        finally:
            free()
    return both


@of("E-BUSY")
def two_jobs_on_one_run(at, monkeypatch):
    free = held(at / "weights/adarat/a/.new.lock")
    return meanwhile(adarat(at, monkeypatch, "--data", npz(at), "--run", "new"), free)


@of("E-BUSY")
def two_downloads(at, monkeypatch):
    free = held(at / "data/cifar-10-python.tar.gz.part")
    return meanwhile(adarat(at, monkeypatch, "--data", "cifar10"), free)


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


def described_as(at, model) -> None:
    """Edit the description of the network in the run of AdaRAT's; None takes it out."""
    path = run_in(at) / "run.json"
    record = read_json(path)
    config = {key: value for key, value in record["config"].items() if key != "model"}
    write_json(path, record | {"config": config | ({"model": record["config"]["model"] | model} if model else {})})


@of("E-RECORD")
def record_without_a_network(at, monkeypatch):
    described_as(at, None)
    return evaluated(at, monkeypatch)


@of("E-RECORD")
def record_with_a_slip(at, monkeypatch):
    described_as(at, {"widht": 4})
    return evaluated(at, monkeypatch)


@of("E-METRICS")
def broken_metrics(at, monkeypatch):
    (run_in(at) / "metrics.jsonl").write_text("clean_loss 1.2\n{}\n")
    return adarat(at, monkeypatch, "--data", f"npz:{at}/a.npz", "--FixRAT", "True", "--AdaRAT", "True",
                  "--limits_from", "a_run")


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
