"""docs/errors.md, what is typed: each row's line, exit status 2, and nothing written."""

import pytest
import torch

from common import determinism, engine
from common.data import load
from common.engine import Engine
from common.environment import ROOT
from common.files import sha256_of
from common.tests.errors_table import (
    SMALL,
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
from common.tests.switches import switches_kept

CASES = Cases()
of = CASES.of
MINE = rows("Flags", "make")


@pytest.mark.parametrize("row", MINE, ids=str)
def test_the_row_is_what_happens(row, tmp_path, monkeypatch, capfd):
    check(row, CASES, tmp_path, monkeypatch, capfd)


def test_every_case_has_its_row():
    assert {code: len(some) for code, some in CASES.items()} == {row.code: row.number for row in MINE}


@pytest.mark.parametrize("script", ["adarat", "dyart", "rpat", "sotas"])
def test_a_plan_for_more_images_than_there_are_is_refused_before_training(script, tmp_path, monkeypatch, capfd):
    from adarat.flags import main as adarats
    from dyart.flags import main as dyarts
    from rpat.flags import main as rpats
    from rpat.sota_flags import main as sotas
    main, plan = {"adarat": (lambda: adarats("PGD-AT", "cifar10"), "paper-adarat-500"),
                  "dyart": (dyarts, "paper-dyart-500"), "rpat": (rpats, "paper-rpat-500"),
                  "sotas": (lambda: sotas("RPAT++"), "paper-sotas-500")}[script]
    spec = npz(tmp_path, **arrays(classes=5))
    run = command(monkeypatch, main, "--data", spec, *SMALL, *places(tmp_path), "--final_test", "True", "--plan", plan)
    with pytest.raises(SystemExit) as left:
        run()
    said = capfd.readouterr().err
    assert left.value.code == 2 and said.endswith(" [E-PLAN-DATA]\n") and "the test set has 12" in said
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def rules(at, monkeypatch, *words):
    """What make calls."""
    from scripts.make_rules import main
    monkeypatch.chdir(ROOT)
    return command(monkeypatch, main, *words, bare=True)


@of("E-FLAG")
def unknown_flag(at, monkeypatch):
    return adarat(at, monkeypatch, "--epsilonn", "8/255")


@of("E-FLAG-VALUE")
def eight(at, monkeypatch):
    return adarat(at, monkeypatch, "--epsilon", "8")


@of("E-FLAG-VALUE")
def perhaps(at, monkeypatch):
    return adarat(at, monkeypatch, "--FixRAT", "perhaps")


@of("E-FLAG-MISSING")
def no_plan(at, monkeypatch):
    from scripts.evaluate import main
    return command(monkeypatch, main, "w.pt", bare=True)


@of("E-FLAG-MISSING")
def no_data(at, monkeypatch):
    return evaluate(at, monkeypatch, weights(at)[0], "--model", "small")


@of("E-FLAG-PAIR")
def ratio_of_nothing(at, monkeypatch):
    return adarat(at, monkeypatch, "--FixRAT", "True", "--epsilon", "0")


@of("E-FLAG-PAIR")
def eps_of_a_papers_plan(at, monkeypatch):
    return evaluate(at, monkeypatch, *weights(at), "--plan", "paper-adarat", "--eps", "4/255")


@of("E-FLAG-DATA")
def other_classes(at, monkeypatch):
    return adarat(at, monkeypatch, "--data", npz(at), "--class_num", "10")


@of("E-RADIUS")
def zero(at, monkeypatch):
    return evaluate(at, monkeypatch, *weights(at), "--eps", "0")


@of("E-RADIUS")
def eight_in_linf(at, monkeypatch):
    from rpat.flags import main
    return command(monkeypatch, main, "--dataset", "cifar10", "--epsilon", "8", *places(at))


@of("E-NORM")
def l1_of_trades(at, monkeypatch):
    from rpat.flags import main
    return command(monkeypatch, main, "--dataset", "cifar10", "--mode", "adv_trades", "--distance", "L1", *places(at))


@of("E-QUIRK")
def unknown_quirk(at, monkeypatch):
    return adarat(at, monkeypatch, "--quirks", "momentum")


@of("E-DEVICE")
def unknown_device(at, monkeypatch):
    return adarat(at, monkeypatch, "--device", "gpu")


@of("E-SPEEDUPS")
def unknown_speedup(at, monkeypatch):
    return adarat(at, monkeypatch, "--speedups", "turbo")


def deterministic(device="cpu", **more):
    """The choice of a deterministic engine."""
    def run():
        with switches_kept():
            Engine.choose(device, "fp32", deterministic=True, **more)
    return function(run)


@of("E-DETERMINISTIC")
def kernels_that_win_a_race(at, monkeypatch):
    monkeypatch.setenv(determinism.WORKSPACE, determinism.BUFFERS)
    monkeypatch.setattr(engine, "find_device", torch.device)              # this machine may have no GPU
    return deterministic("cuda", speedups="compile")


@of("E-DETERMINISTIC")
def cublas_set_otherwise(at, monkeypatch):
    monkeypatch.setenv(determinism.WORKSPACE, ":0:0")
    return deterministic()


@of("E-DETERMINISTIC")
def only_at_random(at, monkeypatch):
    monkeypatch.setenv(determinism.WORKSPACE, determinism.BUFFERS)

    def run():
        with switches_kept():
            determinism.switch_on()
            torch.zeros(3).put_(torch.tensor([1, 1]), torch.tensor([1.0, 2.0]))
    return function(run)


@of("E-PLAN")
def unknown_plan(at, monkeypatch):
    return adarat(at, monkeypatch, "--data", npz(at), "--final_test", "True", "--plan", "best")


@of("E-PLAN")
def unknown_plan_of_rpat(at, monkeypatch):
    from rpat.flags import main
    return command(monkeypatch, main, "--data", npz(at), "--epochs", "1", *SMALL, *places(at), "--final_test", "True",
                   "--plan", "best")


@of("E-PLAN-DATA")
def more_images_than_there_are(at, monkeypatch):
    return evaluate(at, monkeypatch, *weights(at), "--plan", "quick-100")


@of("E-SEARCH")
def search_without_autoattack(at, monkeypatch):
    return evaluate(at, monkeypatch, *weights(at), "--search", "fast")


@of("E-EVALUATOR")
def no_steps(at, monkeypatch):
    from common.evaluation.plans import Evaluator
    return function(lambda: Evaluator("PGD-0", "pgd", steps=0))


@of("E-ALLOW")
def allow_what(at, monkeypatch):
    return evaluate(at, monkeypatch, *weights(at), "--allow", "E-EVERYTHING")


@of("E-OUT")
def receipt_of_another_kind(at, monkeypatch):
    return evaluate(at, monkeypatch, *weights(at), "--receipt", at / "r.zip")


@of("E-OUT")
def a_file_in_the_place_of_a_folder(at, monkeypatch):
    return adarat(at, monkeypatch, "--data", npz(at), "--weights", at / "a.npz")


@of("E-MODEL")
def unknown_network(at, monkeypatch):
    return adarat(at, monkeypatch, "--data", npz(at), "--model", "resnet19")


@of("E-NORMALISE")
def no_normalisation(at, monkeypatch):
    return evaluate(at, monkeypatch, *weights(at), "--normalise", "cifar11")


@of("E-BUILDER")
def no_module(at, monkeypatch):
    return evaluate(at, monkeypatch, weights(at)[0], "--model", "their_models:network", "--data", npz(at))


@of("E-BUILDER")
def no_function(at, monkeypatch):
    return evaluate(at, monkeypatch, "math:pi", "--data", npz(at))


@of("E-BUILDER")
def a_record_that_names_a_function(at, monkeypatch):
    file, spec = weights(at)[0], npz(at)
    model = {"builder": "os:system", "command": f"touch {at}/run"}
    kept = at / "weights" / "adarat" / "cifar10"
    folder = fabricate(at / "results", weights=sha256_of(file), config={"model": model},
                       data=load(spec).describe())
    (kept / folder.name).mkdir(parents=True)
    file.rename(kept / folder.name / "last.pt")
    return evaluate(at, monkeypatch, folder, "--data", spec)


@of("E-AUGMENT")
def images_too_small_to_mirror(at, monkeypatch):
    from rpat.sota_flags import main
    small = arrays(size=4)
    return command(monkeypatch, lambda: main("RPAT++"), "--data", npz(at, **small), *SMALL, *places(at))


@of("E-BATCH-SIZE")
def no_whole_batch(at, monkeypatch):
    return adarat(at, monkeypatch, "--data", npz(at), "--batch_size", "128", "--drop_last", "True")


# -- make ------------------------------------------------------------------------------------------------------------

@of("E-PAPER")
def unknown_paper(at, monkeypatch):
    return rules(at, monkeypatch, "trades", "cifar10")


@of("E-TARGET")
def unknown_data_set(at, monkeypatch):
    return rules(at, monkeypatch, "adarat", "imagenet", "--budget", "short")


@of("E-TARGET")
def unknown_budget(at, monkeypatch):
    return rules(at, monkeypatch, "adarat", "cifar10", "--budget", "long")


@of("E-METHOD")
def unknown_method(at, monkeypatch):
    return rules(at, monkeypatch, "adarat", "cifar10", "--budget", "short", "--methods", "PGD")


@of("E-SEEDS")
def no_seeds(at, monkeypatch):
    return rules(at, monkeypatch, "adarat", "cifar10", "--budget", "short", "--seeds", "1,1")


@of("E-EXTRA")
def no_additional_data(at, monkeypatch):
    return rules(at, monkeypatch, "adarat", "cifar10", "--budget", "short", "--extra", "more.npz")
