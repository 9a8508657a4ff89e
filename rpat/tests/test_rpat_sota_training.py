"""Part 2's runs on the digits: what they leave, how they go on, what is tested, and what stops them."""

import json
from itertools import count

import pytest
import torch

from common import models
from common.checkpoint import read_state, save_state
from common.errors import UserError
from common.evaluation.plans import Evaluator, Plan
from common.records import read_metrics
from rpat import sota_evaluation, sota_training
from rpat.sota_flags import parser, settings_of
from rpat.sota_validation import SotaValidation

SMALL = ("--data digits --model small --width 4 --epochs 3 --warmup-epochs 1 --stage1 1 --stage2 2 --n_train 48 "
         "--n_epoch_test 16 --batch-size 16 --attack-iters 1 --precision fp32 --budget smoke --device cpu --seed 1")
NAME = "{}-small_smoke_s1"


def parsed(folder, line="", method="RPAT++"):
    args = parser(method).parse_args([*f"{SMALL} {line}".split(), "--save-path", str(folder)])
    return settings_of(method, args), args


def run(folder, line="", method="RPAT++"):
    settings, args = parsed(folder, line, method)
    (sota_evaluation.test if args.eval else sota_training.train)(settings, args)


def place(folder, root, method="RPAT++"):
    name = NAME.format({"RPAT++": "rpatpp", "ReBAT": "rebat"}[method])
    return folder / root / "rpat/digits" / name


def record(folder, kind, method="RPAT++"):
    return json.loads((place(folder, "results", method) / f"{kind}.json").read_text())


def weights(folder, name, method="RPAT++"):
    return read_state(place(folder, "weights", method) / f"{name}.pt")


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def written(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and "eval" not in path.parts}


@pytest.fixture(autouse=True)
def short_plan(monkeypatch):
    """The final test without AutoAttack, whose searches take seconds."""
    def plan(name, settings):
        return Plan(name, (Evaluator("clean", "clean", n=8), Evaluator("PGD-2", "pgd", steps=2, n=8)), chunk=8)
    monkeypatch.setattr(sota_evaluation, "plan_named", plan)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with a best epoch and snapshots, tested at its end."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sota_evaluation, "plan_named", lambda name, settings: Plan(
            name, (Evaluator("clean", "clean", n=8),), chunk=8))
        run(folder, "--val --chkpt-iters 2 --eval-train-robust")
    return folder


# -- what a run leaves -----------------------------------------------------------------------------------------------

def test_a_run_leaves_its_weights_records_and_tests_of_the_average(trained):
    left, made = record(trained, "train"), record(trained, "run")
    assert set(left["weights"]) == {"last", "average", "best", "best-online", "1"} and left["steps"] == 9
    assert left["selected_on"] == "PGD accuracy after each epoch on held-out training images"
    assert (made["method"], made["variant"], made["config"]["warmup_epochs"]) == ("RPAT++", "plain", 1)
    assert "normalise" not in made["model"]                      # grey images
    tested = {plan: record(trained, f"eval-{plan}")["checkpoint"] for plan in ("paper-sotas", "paper-sotas-last")}
    assert tested == {"paper-sotas": "best", "paper-sotas-last": "average"}


def test_the_metrics_tell_model_and_average_apart_from_the_warm_ups_end_on(trained):
    first, second, third = read_metrics(place(trained, "results") / "metrics.jsonl")
    for kind in ("clean", "pgd"):
        assert first[f"val_{kind}_accuracy"] == first[f"val_wa_{kind}_accuracy"]
        assert f"train_wa_{kind}_accuracy" not in first and f"train_wa_{kind}_accuracy" in third
    assert first["beta"] == first["divergence_term"] == 0 and second["beta"] == 1 and second["divergence_term"] > 0
    assert [line["lr"] for line in (first, second, third)] == pytest.approx([0.1 / 1.5, 0.1 / 2.25, 0.1 / 2.25])
    assert first["n_val"] == 16 and "test_clean_accuracy" not in first


def test_the_average_is_the_model_until_the_warm_up_ends(tmp_path, trained, capsys):
    assert not equal(weights(trained, "last"), weights(trained, "average"))
    counters = [name for name in weights(trained, "last") if name.endswith("num_batches_tracked")]
    assert counters and all(weights(trained, "last")[name] == weights(trained, "average")[name] for name in counters)
    run(tmp_path, "--epochs 1 --warmup-epochs 1")
    assert equal(weights(tmp_path, "last"), weights(tmp_path, "average"))
    assert "the average is the model" in capsys.readouterr().out


def test_each_selection_keeps_the_network_that_it_measures(tmp_path, monkeypatch):
    """The average is best in the second epoch, the model in the third."""
    measured, models_then = [(0.1, 0.1), (0.2, 0.9), (0.5, 0.3), (0.4, 0.3)], []

    def numbers(self, average):
        model, wa = measured[len(models_then)]
        models_then.append({name: tensor.clone() for name, tensor in self.model.state_dict().items()})
        return {"val_pgd_accuracy": model, "val_wa_pgd_accuracy": wa}
    monkeypatch.setattr(SotaValidation, "__call__", numbers)
    run(tmp_path, "--val --epochs 4 --chkpt-iters 1 --final_test false")
    assert equal(weights(tmp_path, "best"), weights(tmp_path, "1"))                 # N.pt is the average
    assert equal(weights(tmp_path, "best-online"), models_then[2])
    assert not equal(models_then[2], weights(tmp_path, "2"))


@pytest.mark.parametrize(("method", "line", "moves"), [
    ("RPAT++", "", 13), ("ReBAT", "", 13), ("RPAT++", "--cutmix", 23), ("RPAT++", "--quirks none", 1),
    ("ReBAT", "--quirks clean-forward", 2), ("ReBAT", "--attack none", 2)])
def test_batch_norm_moves_as_often_as_released(tmp_path, method, line, moves):
    """10 steps, two passes each under CutMix; the end's pass, x', and x after the step.  Without quirks x' alone."""
    run(tmp_path, f"{line} --epochs 1 --n_train 32 --attack-iters 10 --final_test false --run {NAME.format('rebat')}",
        method)
    counters = [value for name, value in weights(tmp_path, "last", "ReBAT").items() if name.endswith("batches_tracked")]
    assert set(map(int, counters)) == {2 * moves}


def test_without_val_nothing_is_chosen_but_by_the_measuring_quirk(tmp_path, capsys):
    run(tmp_path, "--epochs 1 --chkpt-iters 0", "ReBAT")
    left = record(tmp_path, "train", "ReBAT")
    assert set(left["weights"]) == {"last", "average"} and left["selected_on"] is None
    assert "no best epoch is chosen" in capsys.readouterr().out
    assert record(tmp_path, "eval-paper-sotas", "ReBAT")["checkpoint"] == "average"
    run(tmp_path, "--epochs 1 --quirks default,test-selected --eval-online --run rpatpp-small_smoke_s1")
    left = record(tmp_path, "train")
    assert {"best", "best-online"} <= set(left["weights"]) and "test images" in left["selected_on"]
    assert "test_pgd_accuracy" in left["final"]
    tested = {plan: record(tmp_path, f"eval-{plan}")["checkpoint"]
              for plan in ("paper-sotas-online", "paper-sotas-online-last")}
    assert tested == {"paper-sotas-online": "best-online", "paper-sotas-online-last": "last"}


# -- going on, and testing again ------------------------------------------------------------------------------------

def test_a_stopped_run_goes_on_and_ends_with_the_same_weights(tmp_path, trained, monkeypatch):
    line, measure, calls = "--val --chkpt-iters 2 --eval-train-robust", SotaValidation.__call__, count(1)

    def stopping(self, average):
        if next(calls) == 3:
            raise KeyboardInterrupt
        return measure(self, average)
    monkeypatch.setattr(SotaValidation, "__call__", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, line)
    for wrong, said in (("--resume 1", "has 2 whole epochs"), ("--resume 2 --load-folder elsewhere", "--load-folder"),
                        ("--resume 2 --beta 2", "another configuration (beta 1.0 there, 2.0 here)")):
        before = written(tmp_path)
        with pytest.raises(UserError) as caught:
            run(tmp_path, f"{line} {wrong}")
        assert said in str(caught.value) and written(tmp_path) == before
    run(tmp_path, f"{line} --resume 2 --final_test false")
    for name in ("last", "average", "best", "best-online"):
        assert equal(weights(tmp_path, name), weights(trained, name))


def test_a_run_without_epochs_is_not_resumed(tmp_path):
    with pytest.raises(UserError, match="no whole epoch"):
        run(tmp_path, "--resume 2")
    assert written(tmp_path) == {}


@pytest.mark.parametrize("where", ["", "--load-folder {}/results/rpat/digits/rpatpp-small_smoke_s1",
                                   "--load-folder {}/weights/rpat/digits/rpatpp-small_smoke_s1 --epochs 7"])
def test_eval_tests_a_trained_run_again(trained, where, capsys):
    before = record(trained, "train")
    run(trained, f"--val --chkpt-iters 2 --eval-train-robust --eval --eval-online --eval-last-only "
                 f"{where.format(trained)}")
    said = capsys.readouterr().out
    assert "paper-sotas-online-last, last weights" in said and "best" not in said
    assert record(trained, "train") == before


@pytest.mark.parametrize(("line", "said"), [
    ("--eval", "was trained with chkpt_iters 2, not 10; eval_train_robust True"),
    ("--eval --run other", "there is no run"), ("--eval --load-folder nowhere", "nowhere is no run"),
    ("--eval --eval-last-only --eval-best-only", "exclude each other"), ("--eval-best-only --run x", "give --val"),
    ("--eval --val --chkpt-iters 2 --eval-train-robust --quirks none", "was trained with quirks"),
    ("--num-classes 100 --run x", "digits has 10 classes"), ("--model vgg --run x", "vgg"),
    ("--n_train 5000 --run x", "5000"), ("--val --lr-max 0.2", "another configuration")])
def test_what_stops_a_command_writes_nothing(trained, line, said):
    before = written(trained)
    with pytest.raises(UserError) as caught:
        run(trained, f"--val {line}" if line == "--eval" else line)
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert written(trained) == before


# -- folders of the original -----------------------------------------------------------------------------------------

def original(folder, *names, classes=10):
    """Checkpoints as the original's, whose network does not normalise."""
    folder.mkdir(exist_ok=True)
    network = models.build("small", classes=classes, channels=1, width=4)
    for name in names:
        save_state(folder / name, network.state_dict())
    return folder


def test_a_folder_of_the_original_is_tested(tmp_path, capsys):
    folder = original(tmp_path / "exps", "wa_model_2.pth", "wa_model_best.pth", "model_2.pth")
    run(tmp_path, f"--eval --load-folder {folder}")
    said = capsys.readouterr().out
    assert "last:" in said and "best:" in said and "wa_model_2.pth" in said and "PGD-2" in said
    assert not (tmp_path / "results").exists()


def test_an_average_that_had_not_begun_is_the_model_and_said(tmp_path, capsys):
    folder = original(tmp_path / "exps", "model_2.pth")
    run(tmp_path, f"--eval --eval-last-only --load-folder {folder}")
    said = capsys.readouterr().out
    assert "there is no wa_model_2.pth" in said and "model_2.pth is tested" in said and "PGD-2" in said


@pytest.mark.parametrize(("line", "said"), [
    ("--epochs 9 --eval-last-only", "has no wa_model_8.pth; there are model_2.pth, wa_model_2.pth"),
    ("--eval-best-only", "has no wa_model_best.pth"), ("--eval-last-only", "nothing was loaded")])
def test_checkpoints_that_are_not_there_or_have_other_classes(tmp_path, line, said):
    folder = original(tmp_path / "exps", "model_2.pth", "wa_model_2.pth", classes=100)
    with pytest.raises(UserError) as caught:
        run(tmp_path, f"--eval --load-folder {folder} {line}")
    assert said in str(caught.value)
