"""Training from flags to records on the embedded digits: every method, resuming, kills, quirks, mistakes."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import adarat.train
from adarat import flags, limits
from adarat.method import GATE
from common import records
from common.checkpoint import read_state
from common.environment import ROOT
from common.errors import UserError
from common.files import sha256_of

SMALL = ["--data", "digits", "--model", "small", "--augment", "False", "--n_train", "128", "--n_epoch_test", "50",
         "--precision", "fp32"]
TEST = ["--plan", "paper-adarat-20-4"]
UNTESTED = ["--final_test", "False"]
ADARAT = ["--FixRAT", "True", "--AdaRAT", "True"]


class Place:
    """Folders of records and weights, and the scripts' commands in them."""

    def __init__(self, root: Path):
        self.root = root

    def places(self):
        return ["--results", str(self.root / "results"), "--weights", str(self.root / "weights")]

    def start(self, method, *argv, dataset="cifar10", epochs=1):
        """The exit status of a script, run in this process."""
        flag = "--epochs" if method == "Generalist" else "--epoch"
        with pytest.raises(SystemExit) as end:
            flags.main(method, dataset, [*SMALL, flag, str(epochs), *self.places(), *argv])
        return end.value.code

    def record(self, run):
        return records.read_run(self.root / "results/adarat/digits" / run)

    def weights(self, run, name="last"):
        return self.root / "weights/adarat/digits" / run / f"{name}.pt"

    def contents(self):
        return {path: path.read_bytes() for path in self.root.rglob("*") if path.is_file()}


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


def counters(path):
    return {int(value) for name, value in read_state(path).items() if name.endswith("num_batches_tracked")}


def timeless(rows):
    return [{key: value for key, value in row.items() if key not in ("seconds", "images_per_second")} for row in rows]


# --- one run ---

def test_a_run_leaves_whole_records_and_is_done_once(place, capsys):
    assert place.start("PGD-AT", *ADARAT, *UNTESTED, epochs=2) == 0
    run = place.record("pgd-at-adarat_custom_s1")
    assert (run.run["method"], run.run["variant"], run.run["budget"], run.run["seed"]) == (
        "PGD-AT", "adarat", "custom", 1)
    config = run.run["config"]
    assert (config["beta"], config["up_lim"], config["down_lim"], config["epoch"]) == (0.04, 1.1, 0.4, 2)
    assert config["precision"] == "fp32" and config["model"] == {"name": "small", "classes": 10, "channels": 1}
    assert run.run["quirks"] == config["quirks"] and "momentum-reset" in run.run["quirks"]
    assert run.run["data"]["n_train"] == 128 and run.run["data"]["classes"] == 10
    assert (run.train["epochs"], run.train["steps"], run.train["selected_on"]) == (2, 2, None)
    assert run.train["weights"]["last"]["sha256"] == sha256_of(place.weights("pgd-at-adarat_custom_s1"))
    assert not run.evals and str(place.root) not in json.dumps([run.run, run.train])
    assert [row["epoch"] for row in run.metrics] == [1, 2] and run.train["final"] == run.metrics[-1]
    for row in run.metrics:
        assert {"loss", "clean_loss", "adversarial_loss", "barrier", "ratio_term", "gated", "lr", "seconds"} <= set(row)
        assert row["n_validation"] == 50 and row["gated"] == 1.0 and row["loss"] == row["clean_loss"]
        for name in ("clean", "fgsm", "pgd"):
            assert round(50 * row[f"test_{name}_accuracy"], 4) % 1 == 0 and row[f"test_{name}_loss"] > 0

    before = place.contents()
    capsys.readouterr()
    assert place.start("PGD-AT", *ADARAT, *UNTESTED, epochs=2) == 0
    assert "pgd-at-adarat_custom_s1 is already trained" in capsys.readouterr().out
    assert place.contents() == before

    assert place.start("PGD-AT", *ADARAT, *UNTESTED, "--beta", "0.1", "--quirks", "none", epochs=2) == 2
    said = capsys.readouterr().err
    assert "pgd-at-adarat_custom_s1 holds a run of another configuration (beta 0.04 there, 0.1 here; quirks" in said
    assert place.contents() == before
    assert place.start("PGD-AT", *ADARAT, *UNTESTED, "--n_train", "64", epochs=2) == 2
    assert "n_train 128 there, 64 here" in capsys.readouterr().err
    assert place.contents() == before


@pytest.mark.parametrize(("method", "argv", "passes"), [
    ("ST", [], 1), ("PGD-AT", [], 12), ("PGD-AT", ["--quirks", "none"], 1), ("PGD-AT", ["--quirks", "clean-pass"], 2),
    ("PGD-AT", ["--quirks", "attack-train-bn"], 11), ("PGD-AT", ["--quirks", "none", "--FixRAT", "True"], 2),
    ("FAT", [], 12), ("DAT", [], 13), ("TRADES", [], 13), ("TRADES", ["--quirks", "none"], 2),
    ("PGD-AT", ["--step_num", "3"], 5)])
def test_passes_in_train_mode_per_batch(place, method, argv, passes):
    """The paper file's constants: they show which quirks were at work."""
    assert place.start(method, *argv, *UNTESTED, "--run", "counted", "--n_epoch_test", "1") == 0
    assert counters(place.weights("counted")) == {passes}


def test_momentum_and_seed_and_switches_reach_the_weights(place):
    """Each change of settings changes the outcome; the same settings do not."""
    outcomes = {}
    for name, argv in {"first": [], "same": [], "seed": ["--seed", "2"], "lr": ["--learning_rate", "0.05"],
                       "momentum": ["--quirks", "attack-train-bn,clean-pass"], "fixrat": ["--FixRAT", "True"],
                       "augmented": ["--augment", "True"]}.items():
        assert place.start("PGD-AT", *argv, *UNTESTED, "--run", name, "--step_num", "2", "--batch_size", "64",
                           "--n_epoch_test", "1", epochs=2) == 0
        outcomes[name] = sha256_of(place.weights(name))
    assert outcomes["first"] == outcomes.pop("same")
    assert len(set(outcomes.values())) == len(outcomes)


def test_a_checkpoint_of_another_architecture_is_no_teacher(place, capsys):
    assert place.start("PGD-AT", *UNTESTED, "--run", "wide", "--width", "8") == 0
    before = place.contents()
    assert place.start("KD-AT", *UNTESTED, "--teacher_robust_name", "wide", "--teacher_standard_name", "wide") == 2
    assert "nothing was loaded" in capsys.readouterr().err
    assert place.contents() == before


def test_another_teacher_is_another_configuration(place, capsys):
    for seed in ("1", "2"):
        assert place.start("ST", "--seed", seed, "--run", f"teacher{seed}", "--n_epoch_test", "1") == 0

    def student(robust):
        return place.start("KD-AT", *UNTESTED, "--teacher_robust_name", robust, "--teacher_standard_name", "teacher1",
                           "--step_num", "1", "--n_epoch_test", "1")

    assert student("teacher2") == 0
    run = place.record("kd-at_custom_s1").run
    digests = {name: sha256_of(place.weights(name)) for name in ("teacher1", "teacher2")}
    assert run["needs"] == digests
    assert run["config"]["teachers"] == {"robust": digests["teacher2"], "standard": digests["teacher1"]}
    assert student("teacher1") == 2
    assert "another configuration (teachers.robust" in capsys.readouterr().err
    assert student("teacher2") == 0


# --- all of them ---

@pytest.mark.slow
def test_every_method_and_variant_from_flags_to_the_final_test(place, capsys):
    """Teachers first; KD-AT and IAD find them by the default names; ST is not tested."""
    clean = {}
    for method in ("ST", "PGD-AT", "FAT", "DAT", "TRADES", "KD-AT", "IAD", "Generalist"):
        for variant, argv in (("", []), ("-fixrat", ["--FixRAT", "True"]), ("-adarat", ADARAT)):
            if method == "ST" and variant:
                continue
            judges = TEST if variant == "-adarat" or method == "ST" else UNTESTED
            # Else KD-AT and IAD train alike: before `begin`, and above the gate.
            more = ["--begin", "0"] if method == "IAD" else []
            more += ["--up_lim", "5", "--down_lim", "0.1"] if variant == "-adarat" else []
            assert place.start(method, *argv, *judges, *more) == 0, (method, variant)
            run = place.record(f"{method.lower()}{variant}_custom_s1")
            assert (run.run["method"], run.run["variant"]) == (method, variant[1:] or "plain")
            assert len(run.metrics) == 1 and "test_pgd_accuracy" in run.metrics[0]
            clean[method, variant] = run.train["weights"]["last"]["sha256"]
            if method == "ST" or judges is UNTESTED:
                assert not run.evals
                continue
            evaluation = run.evals["paper-adarat-20-4"]
            assert list(evaluation.results) == ["clean", "FGSM", "PGD-10", "PGD-20", "PGD-50", "CW-20", "AutoAttack"]
            assert {result["n"] for result in evaluation.results.values()} == {20, 4}
            assert evaluation.record["weights_sha256"] == clean[method, variant]
            eps = 0.031 if method == "Generalist" else 8 / 255
            assert {result["eps"] for name, result in evaluation.results.items() if name != "clean"} == {eps}
    assert len(set(clean.values())) == len(clean)
    for method in ("kd-at", "iad-fixrat"):
        needs = place.record(f"{method}_custom_s1").run["needs"]
        assert needs == {"pgd-at_custom_s1": clean["PGD-AT", ""], "st_custom_s1": clean["ST", ""]}
    assert "custom_s1, paper-adarat-20-4, last weights:" in capsys.readouterr().out


@pytest.mark.slow
def test_measuring_quirks_change_what_is_measured_and_never_the_training(place):
    quirks = "default,test-crop,aa-ten-steps,fat-test-eps"
    for name, argv in (("plain", []), ("quirky", ["--quirks", quirks])):
        assert place.start("FAT", *TEST, *argv, "--epsilon", "0.1", "--run", name) == 0
    plain, quirky = place.record("plain"), place.record("quirky")
    assert plain.train["weights"]["last"]["sha256"] == quirky.train["weights"]["last"]["sha256"]
    assert plain.metrics[0]["loss"] == quirky.metrics[0]["loss"]
    assert plain.metrics[0]["test_clean_loss"] != quirky.metrics[0]["test_clean_loss"]
    plain, quirky = (run.evals["paper-adarat-20-4"].results for run in (plain, quirky))
    assert plain["PGD-10"]["eps"] == 0.1 and quirky["PGD-10"]["eps"] == 8 / 255
    assert plain["AutoAttack"]["eps"] == 0.1 and "AutoAttack" not in quirky
    assert quirky["torchattacks-AA 10 steps"]["eps"] == 8 / 255


@pytest.mark.slow
def test_generalists_measuring_quirks(place):
    runs = {}
    for quirk in ("default", "generalist-saves-at", "generalist-columns", "generalist-batch-mean"):
        assert place.start("Generalist", *UNTESTED, "--run", quirk, "--quirks", f"default,{quirk}", "--n_epoch_test",
                           "200", epochs=2) == 0
        runs[quirk] = place.record(quirk)
        assert set(runs[quirk].train["weights"]) == {"last", "at", "st"}
    digests = {name: {key: entry["sha256"] for key, entry in run.train["weights"].items()}
               for name, run in runs.items()}
    plain = digests["default"]
    assert len(set(plain.values())) == 3
    assert digests["generalist-saves-at"] == {"last": plain["at"], "at": plain["at"], "st": plain["st"]}
    assert digests["generalist-columns"] == digests["generalist-batch-mean"] == plain
    first = runs["default"].metrics[1]
    assert {"mixing_weight", "st_loss", "st_clean_accuracy", "clean_loss"} <= set(first)
    assert not any(key.startswith("st_average") for key in first)
    columns = runs["generalist-columns"].metrics[1]
    assert {"st_average_clean_accuracy", "st_average_pgd_accuracy"} <= set(columns)
    assert columns["test_clean_loss"] == first["test_clean_loss"]
    assert runs["generalist-saves-at"].metrics[1]["test_clean_loss"] != first["test_clean_loss"]
    means = runs["generalist-batch-mean"].metrics[1]
    assert means["test_clean_loss"] != first["test_clean_loss"]
    assert means["test_clean_loss"] == pytest.approx(first["test_clean_loss"], rel=0.2)


@pytest.mark.slow
def test_generalist_resumes_exactly_and_tests_saved_weights(place, monkeypatch, capsys):
    argv = [*UNTESTED, "--n_epoch_test", "20", *ADARAT]
    assert place.start("Generalist", *argv, "--run", "whole", epochs=3) == 0
    validate, calls = adarat.train.validate_generalist, []

    def stop(*given):
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return validate(*given)

    monkeypatch.setattr(adarat.train, "validate_generalist", stop)
    assert place.start("Generalist", *argv, "--run", "cut", epochs=3) == 130
    assert place.start("Generalist", *argv, "--run", "cut", "--resume", "True", epochs=3) == 2
    assert "cut is not trained to its end" in capsys.readouterr().err
    assert place.start("Generalist", *argv, "--run", "cut", epochs=3) == 0
    whole, cut = place.record("whole"), place.record("cut")
    assert whole.train["weights"] == cut.train["weights"]
    assert timeless(whole.metrics) == timeless(cut.metrics)
    assert place.start("Generalist", *ADARAT, "--n_epoch_test", "20", "--run", "cut", "--resume", "True", *TEST,
                       epochs=3) == 0
    assert "paper-adarat-20-4" in place.record("cut").evals


# --- kills ---

class Started:
    """A train script in a process of its own, and what it has printed so far."""

    def __init__(self, place, name):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, "train_cifar10.py", *SMALL, "--n_train", "256", "--batch_size", "32", "--epoch", "4",
                   "--step_num", "5", *ADARAT, *TEST, "--run", name, *place.places()]
        self.process = subprocess.Popen(command, cwd=ROOT / "adarat/train/PGD_AT", env=environment, text=True,
                                        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)

    def wait_for(self, text):
        """Until a line holds `text`; the time of that moment."""
        for line in self.process.stdout:
            if text in line:
                return time.monotonic()
        return time.monotonic()

    def finish(self):
        with self.process.stdout as told:
            told.read()
        assert self.process.wait(300) == 0
        return time.monotonic()

    def kill_within(self, seconds):
        """SIGKILL after a random part of `seconds`; whether it was still running."""
        try:
            self.process.wait(random.uniform(0, seconds))
        except subprocess.TimeoutExpired:
            os.kill(self.process.pid, signal.SIGKILL)
        self.process.stdout.close()
        return self.process.wait(60) == -signal.SIGKILL


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_with_the_same_bits_and_verdicts(place):
    whole = Started(place, "whole")
    trains = whole.wait_for(" 4 epochs, fp32 on ")
    tested = whole.wait_for("epoch 4/4")
    spent, judging = tested - trains, whole.finish() - tested
    killed = 0
    for _ in range(2):
        cut = Started(place, "cut")
        cut.wait_for(" 4 epochs, fp32 on ")
        killed += cut.kill_within(0.5 * spent)
    cut = Started(place, "cut")
    cut.wait_for("epoch 4/4")
    killed += cut.kill_within(0.8 * judging)
    Started(place, "cut").finish()
    assert killed                           # a fast machine may finish before one of the moments comes
    assert sha256_of(place.weights("whole")) == sha256_of(place.weights("cut"))
    ours, theirs = place.record("cut"), place.record("whole")
    assert timeless(ours.metrics) == timeless(theirs.metrics)
    ours, theirs = (run.evals["paper-adarat-20-4"] for run in (ours, theirs))
    assert set(ours.arrays) == set(theirs.arrays)
    assert all(np.array_equal(ours.arrays[name], theirs.arrays[name]) for name in ours.arrays)
    assert {name: result["survivors"] for name, result in ours.results.items()} == {
        name: result["survivors"] for name, result in theirs.results.items()}


def test_records_without_weights_are_trained_again(place):
    argv = [*UNTESTED, "--step_num", "1", "--n_epoch_test", "1"]
    assert place.start("PGD-AT", *argv) == 0
    before = place.record("pgd-at_custom_s1")
    shutil.rmtree(place.root / "weights")
    assert place.start("PGD-AT", *argv) == 0
    after = place.record("pgd-at_custom_s1")
    assert after.train["weights"] == before.train["weights"] and timeless(after.metrics) == timeless(before.metrics)


# --- floor and ceiling ---

CURVE = [2.1, 1.4, 1.19, 0.98, 0.9, 0.8]


@pytest.mark.parametrize(("gate_at", "floor_share", "expected"), [
    (1 / 6, 0.9, (3.0, 0.72)), (1 / 3, 0.9, (2.0, 0.72)), (1 / 2, 0.5, (1.7, 0.4)), (0.0, 1.0, (3.0, 0.8))])
def test_a_candidate_puts_the_gate_on_the_base_runs_curve(gate_at, floor_share, expected):
    up_lim, down_lim = limits.candidate(CURVE, gate_at, floor_share)
    assert (up_lim, down_lim) == expected
    assert GATE == limits.GATE and GATE * up_lim == pytest.approx(CURVE[max(0, round(6 * gate_at) - 1)], rel=0.03)


def test_limits_are_taken_from_a_finished_base_run(place, capsys):
    argv = [*UNTESTED, "--step_num", "1", "--n_epoch_test", "1"]
    assert place.start("PGD-AT", *argv, *ADARAT, "--limits_from", "pgd-at_custom_s1") == 2
    assert "--limits_from pgd-at_custom_s1: " in capsys.readouterr().err
    assert place.start("PGD-AT", *argv, epochs=3) == 0
    assert place.start("PGD-AT", *argv, *ADARAT, "--limits_from", "pgd-at_custom_s1") == 0
    losses = [row["clean_loss"] for row in place.record("pgd-at_custom_s1").metrics]
    config = place.record("pgd-at-adarat_custom_s1").run["config"]
    assert (config["up_lim"], config["down_lim"]) == (float(f"{losses[0] / 0.7:.2g}"), float(f"{0.9 * losses[-1]:.2g}"))


def metrics(epochs=6, clean=0.8, pgd=0.4, barrier=1.5, gated=0.0):
    return [{"epoch": epoch, "clean_loss": loss, "test_clean_accuracy": clean * epoch / epochs,
             "test_pgd_accuracy": pgd * epoch / epochs, "barrier": barrier if epoch > 4 else 9.0,
             "gated": gated if epoch > 4 else 1.0} for epoch, loss in enumerate(CURVE, start=1)]


def test_a_score_is_of_the_last_epoch_and_of_the_last_third_of_training():
    assert limits.score(metrics()) == pytest.approx({
        "clean_accuracy": 0.8, "pgd_accuracy": 0.4, "score": 0.6, "barrier": 1.5, "gated": 0.0})
    assert limits.score(metrics()[:1])["barrier"] == 9.0


def search(monkeypatch, tmp_path, outcome):
    """Run the command with made-up trainings: outcome(number of the candidate) -> keywords of `metrics`."""
    asked = []

    def trained(script, folder, name, given):
        asked.append((name, given))
        return metrics(**outcome(len(asked) - 1)) if len(asked) > 1 else metrics(barrier=0.0, gated=1.0)

    monkeypatch.setattr(limits, "trained", trained)
    monkeypatch.setattr(sys, "argv", ["limits", "--out", str(tmp_path / "out.json"), "--work", str(tmp_path / "work"),
                                      "--", "--data", "digits"])
    limits.main()
    return asked, json.loads((tmp_path / "out.json").read_text())


def test_the_best_candidate_with_a_barrier_at_work_is_taken(monkeypatch, tmp_path):
    asked, chosen = search(monkeypatch, tmp_path, lambda number: [
        {}, {"clean": 0.99, "barrier": 0.0}, {"clean": 0.9}, {"clean": 0.98, "gated": 1.0}, {"clean": 0.7}][number])
    assert asked[0] == ("base", ["--data", "digits"])
    name, given = asked[2]
    assert given == ["--data", "digits", "--FixRAT", "True", "--AdaRAT", "True", "--up_lim", str(chosen["up_lim"]),
                     "--down_lim", str(chosen["down_lim"])]
    assert name == f"up{chosen['up_lim']}-down{chosen['down_lim']}"
    assert len(chosen["tried"]) == len(asked) - 1 >= 3
    assert "held-out" in chosen["chosen_on"] and chosen["base_clean_loss"] == CURVE


def test_a_search_without_a_barrier_at_work_says_so(monkeypatch, tmp_path):
    with pytest.raises(UserError, match="no candidate has its barrier at work in the last third of training"):
        search(monkeypatch, tmp_path, lambda number: {"barrier": 0.0})
    assert not (tmp_path / "out.json").exists()


@pytest.mark.slow
def test_a_search_trains_on_held_out_training_images(tmp_path):
    place, script = Place(tmp_path), ROOT / "adarat/train/PGD_AT/train_cifar10.py"
    folder = tmp_path / "results/adarat/digits"
    rows = limits.trained(script, folder, "base", [*SMALL, "--n_epoch_test", "20", "--epoch", "1"])
    assert len(rows) == 1
    run = place.record("base")
    assert (run.run["data"]["n_train"], run.run["data"]["n_test"]) == (102, 26)
    assert "held-out training images as test" in run.run["data"]["source"] and run.run["config"]["hold_out"] == 0.2
    with pytest.raises(UserError, match="the run bad failed"):
        limits.trained(script, folder, "bad", ["--epsilon", "8"])


def test_limits_of_a_base_run_whose_loss_did_not_fall_are_refused(tmp_path):
    (tmp_path / "train.json").write_text("{}")
    rows = [{"epoch": epoch + 1, "clean_loss": loss} for epoch, loss in enumerate((0.5, 0.6, 0.9, 1.4))]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match="did not fall"):
        limits.from_base_run(tmp_path)
