"""The same seed gives the same bits, with --deterministic and on a CPU without it; what records say of it."""

import os
from functools import partial
from pathlib import Path

import pytest
import torch

import adarat.flags
import brainreg.flags
import dyart.flags
import experiments.flags
import rpat.flags
import rpat.sota_flags
from common import determinism
from common.checkpoint import read_state
from common.engine import Engine
from common.errors import UserError, exit_cleanly
from common.evaluation.ledger import ledger_path
from common.evaluation.plans import Evaluator, Plan
from common.experiment import build_network, load_data
from common.records import read_record
from common.tests.switches import switches_kept
from common.verdicts import judge

DIGITS = "--data digits --budget smoke --device cpu --n_train 64 --n_epoch_test 20 --run it"
UNTESTED = "--final_test False"
# A command of each trainer, and its flags for a training of seconds; in bf16 where attacks have a fast path.
TRAININGS = {
    "adarat": (partial(adarat.flags.main, "PGD-AT", "cifar10"), "--model small --epoch 2 --batch_size 32 --FixRAT True "
               "--AdaRAT True --precision bf16"),
    "adarat-generalist": (partial(adarat.flags.main, "Generalist", "cifar10"), "--model small --epochs 2 "
                          "--precision fp32"),
    "dyart": (dyart.flags.main, "--model small --width 8 --epochs 2 --batch-size 32 --iter_FAB 2 --attack-iter 1 "
              "--precision fp32"),
    "rpat": (rpat.flags.main, "--model small --width 4 --epochs 2 --batch_size 32 --n_iters 2 --save_step 0 --RA "
             "--precision bf16"),
    "rpat-sotas": (partial(rpat.sota_flags.main, "RPAT++"), "--model small --width 4 --epochs 2 --warmup-epochs 1 "
                   "--stage1 1 --stage2 2 --batch-size 16 --attack-iters 1 --precision fp32"),
    "brainreg": (brainreg.flags.main, "--base_channels 4 --epoch_num 2 --resnet_batch_size 32 --reg_alpha 2 "
                 "--reg_image_num 40 --reg_batch_size 4 --reg_thresh 0.3 --precision fp32 --attack False"),
    "experiments": (experiments.flags.main, "--model small --width 4 --epochs 2 --batch_size 32 --n_iters 1 "
                    "--save_step 0 --precision fp32"),
}


@pytest.fixture(autouse=True)
def switches(monkeypatch):
    """torch's switches, which belong to the process, and the environment stand afterwards as before."""
    monkeypatch.delenv(determinism.WORKSPACE, raising=False)
    with switches_kept():
        yield



def start(folder: Path, trainer: str, more: str = "") -> int | str | None:
    """The exit status of a trainer's command, run in this process."""
    main, flags = TRAININGS[trainer]
    words = f"{DIGITS} {flags} {UNTESTED} {more}".split()
    with pytest.raises(SystemExit) as end:
        main([*words, "--results", str(folder / "results"), "--weights", str(folder / "weights")])
    return end.value.code


def trained(folder: Path, trainer: str, more: str = "") -> tuple[dict, dict[str, torch.Tensor]]:
    """(train.json, the last weights) of a training."""
    assert start(folder, trainer, more) == 0
    path, = folder.glob("results/*/digits/it/train.json")
    weights, = folder.glob("weights/*/digits/it/last.pt")
    return read_record(path, "train"), read_state(weights)


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# --- the same seed, the same bits ---

@pytest.mark.parametrize("trainer", TRAININGS)
def test_one_seed_gives_the_same_bits_and_a_record_says_how(tmp_path, trainer):
    plain, weights = trained(tmp_path / "a", trainer)
    again, same = trained(tmp_path / "b", trainer)
    assert equal(weights, same)
    assert plain["environment"]["engine"]["deterministic"] is again["environment"]["engine"]["deterministic"] is False
    flagged, forced = trained(tmp_path / "c", trainer, "--deterministic")
    assert flagged["environment"]["engine"]["deterministic"] is True
    assert equal(trained(tmp_path / "d", trainer, "--deterministic")[1], forced)
    # How numbers are computed, not which: the flag is no part of the configuration.
    assert flagged["config_sha256"] == plain["config_sha256"]


def test_another_seed_gives_other_bits(tmp_path):
    assert not equal(trained(tmp_path / "a", "adarat")[1], trained(tmp_path / "b", "adarat", "--seed 2")[1])


# --- what records say ---

def stopped_after_an_epoch(folder: Path, monkeypatch, more: str = "") -> None:
    """A training that ends behind its first epoch as a killed one does."""
    from common.journal import Journal
    whole = Journal.close_epoch

    def close(self, *args, **options):
        whole(self, *args, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "close_epoch", close)
        assert start(folder, "adarat", more) == 130


@pytest.mark.parametrize(("first", "then", "said"), [("--deterministic", "--deterministic", True),
                                                     ("", "--deterministic", False), ("--deterministic", "", False)])
def test_a_run_of_two_sittings_is_deterministic_if_both_were(tmp_path, monkeypatch, capsys, first, then, said):
    stopped_after_an_epoch(tmp_path, monkeypatch, first)
    torch.use_deterministic_algorithms(False)
    record, _ = trained(tmp_path, "adarat", then)
    assert record["epochs"] == 2 and record["environment"]["engine"]["deterministic"] is said
    assert ("begun without --deterministic" in capsys.readouterr().err) == (then != "" and not said)


@pytest.mark.parametrize("flagged", [False, True])
def test_an_evaluation_says_whether_it_was(tmp_path, flagged):
    trained(tmp_path, "adarat")
    engine = Engine.choose("cpu", "fp32", deterministic=flagged)
    data = load_data("digits", None)
    plan = Plan("small", (Evaluator("clean", "clean", n=20), Evaluator("PGD-2", "pgd", steps=2, n=20)), chunk=10)
    path = judge(folder=tmp_path / "results/adarat/digits/it", weights=tmp_path / "weights/adarat/digits/it", plan=plan,
                 test=data.test, data=data.describe(), engine=engine)
    assert read_record(path, "eval")["environment"]["deterministic"] is flagged


def test_chunks_judged_without_it_are_judged_again(tmp_path, capsys):
    from common.evaluation import evaluate
    network, data = build_network({"name": "small", "classes": 10, "channels": 1}), load_data("digits", None)
    plan = Plan("small", (Evaluator("clean", "clean", n=20),), chunk=10)
    options = {"seed": 1, "device": "cpu", "work": tmp_path}
    evaluate(network, data.test, plan, **options)
    before = ledger_path(tmp_path, plan).read_bytes()
    evaluate(network, data.test, plan, **options)
    assert ledger_path(tmp_path, plan).read_bytes() == before
    determinism.switch_on()
    evaluate(network, data.test, plan, **options)
    assert ledger_path(tmp_path, plan).read_bytes() != before
    assert "starting afresh" in capsys.readouterr().err


# --- the switch ---

def test_the_switch_and_what_it_sets():
    torch.backends.cudnn.benchmark = torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("high")
    assert Engine.choose("cpu").deterministic is False and not determinism.is_on()
    assert determinism.WORKSPACE not in os.environ
    engine = Engine.choose("cpu", deterministic=True)
    assert engine.deterministic and engine.describe()["deterministic"] and determinism.is_on()
    assert os.environ[determinism.WORKSPACE] == ":4096:8"
    assert torch.backends.cudnn.deterministic and not torch.backends.cudnn.benchmark
    assert not torch.backends.cudnn.allow_tf32 and torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize(("given", "refused"), [(":16:8", False), (":4096:8", False), (":0:0", True)])
def test_a_workspace_of_the_users_own(monkeypatch, given, refused):
    monkeypatch.setenv(determinism.WORKSPACE, given)
    if refused:
        with pytest.raises(UserError, match=f"{determinism.WORKSPACE}={given}.*unset it") as caught:
            Engine.choose("cpu", deterministic=True)
        assert caught.value.code == "E-DETERMINISTIC" and not determinism.is_on()
    else:
        Engine.choose("cpu", deterministic=True)
    assert os.environ[determinism.WORKSPACE] == given


def test_an_operation_without_a_deterministic_version_is_one_line(capsys):
    """put_ without accumulate has none on a CPU either."""
    def main() -> None:
        Engine.choose("cpu", deterministic=True)
        torch.zeros(3).put_(torch.tensor([1, 1]), torch.tensor([1.0, 2.0]))

    with pytest.raises(SystemExit) as end:
        exit_cleanly(main)
    said = capsys.readouterr().err
    assert end.value.code == 2 and len(said.splitlines()) == 1 and said.rstrip().endswith("[E-DETERMINISTIC]")
    assert "deterministic version of put_ on" in said and "leave --deterministic out" in said


@pytest.mark.parametrize(("error", "name"), [
    (RuntimeError("cumsum_cuda_kernel does not have a deterministic implementation, but you set 'x'"),
     "cumsum_cuda_kernel"),
    (RuntimeError("Deterministic behavior was enabled with either `a` or `b`, but this operation is not deterministic "
                  "because it uses CuBLAS and you have CUDA >= 10.2."), "a matrix product of cuBLAS"),
    (RuntimeError("shapes cannot be multiplied"), None), (ValueError("does not have a deterministic implementation"),
                                                          None)])
def test_only_what_torch_says_of_determinism_is_put_in_words(error, name):
    found = determinism.in_words(error)
    assert found is None if name is None else f"deterministic version of {name} on" in str(found)


def test_other_errors_keep_their_traceback():
    def main() -> None:
        raise RuntimeError("a defect of ours")

    with pytest.raises(RuntimeError, match="a defect of ours"):
        exit_cleanly(main)


# --- the fast path ---

def test_the_fast_attack_path_stays_on(tmp_path):
    record, _ = trained(tmp_path, "adarat", "--deterministic")
    engine = record["environment"]["engine"]
    assert engine["deterministic"] and engine["fast_attacks"] and engine["precision"] == "bf16"
    assert not any("plain path: " in note for note in engine["notes"])
