"""What the plans measure, by name; that a name and its plan stand for each other."""

from dataclasses import replace

import pytest

from common.errors import UserError
from common.evaluation.plans import plan_sha256
from rpat.plans import MODES, mode_name, plan_named, settings_of_run
from rpat.settings import Settings

LINF = Settings()
L2 = Settings(distance="L2", epsilon=128 / 255, alpha=15 / 255)
FGSM = Settings(adv_method="fgsm")


def only(name, settings=LINF):
    plan = plan_named(name, settings)
    assert plan.name == name
    evaluator, = plan.evaluators
    return evaluator


def test_the_papers_columns_in_the_runs_norm_and_radius():
    plan = plan_named("paper-rpat-1000-200", L2)
    assert [(one.name, one.kind, one.norm, one.n) for one in plan.evaluators] == [
        ("clean", "clean", "linf", 1000), ("PGD-10", "pgd", "l2", 1000), ("PGD-20", "pgd", "l2", 1000),
        ("AutoAttack", "autoattack", "l2", 200)]
    assert {one.eps for one in plan.evaluators[1:]} == {128 / 255} and plan.chunk == 100
    assert [(one.steps, one.step_size) for one in plan.evaluators[1:3]] == [(10, 15 / 255), (20, 15 / 255)]
    whole = plan_named("paper-rpat", LINF)
    assert {one.n for one in whole.evaluators} == {None} and whole.chunk == 500
    assert whole.evaluators[3].eps == 8 / 255
    assert [one.n for one in plan_named("paper-rpat-50", LINF).evaluators] == [50] * 4
    last = plan_named("paper-rpat-1000-200-last", L2)
    assert [one.name for one in last.evaluators] == ["clean last", "PGD-10 last", "PGD-20 last", "AutoAttack last"]
    assert [replace(one, name="x") for one in last.evaluators] == [replace(one, name="x") for one in plan.evaluators]


@pytest.mark.parametrize(("name", "settings", "kind", "norm", "eps", "n"), [
    ("test-clean-acc", LINF, "clean", "linf", 0, None), ("test-adv-acc", L2, "pgd", "l2", 128, None),
    ("test-adv-acc-n30", LINF, "pgd", "linf", 8, 30), ("test-adv-acc-mse", LINF, "perception-pgd", "linf", 8, None),
    ("test-random", L2, "uniform-noise", "linf", 8, None), ("test-random-mse", L2, "perception-noise", "linf", 8, None),
    ("test-auto-attack", L2, "autoattack", "l2", 128, None),
    ("test-auto-attack-l1-2000-n7", LINF, "autoattack", "l1", 2000, 7),
    ("test-cw-attack", LINF, "cw", "linf", 8, 100), ("test-cw-attack-n5", L2, "cw-l2", "l2", 128, 5),
    ("test-boundary-attack", LINF, "boundary", "l2", 128, 100), ("test-boundary-attack-l2-64", LINF, "boundary", "l2",
                                                                 64, 100),
    ("test-hopskipjump-attack", LINF, "hopskipjump", "linf", 8, 100),
    ("test-adv-acc-weak-w2", LINF, "weak-pgd", "linf", 8, None)])
def test_each_mode(name, settings, kind, norm, eps, n):
    found = only(name, settings)
    assert (found.kind, found.norm, found.n) == (kind, norm, n) and found.eps * 255 == pytest.approx(eps)


def test_numbers_in_a_name_take_the_place_of_the_runs():
    found = only("test-adv-acc-l2-64-7.5-20")
    assert (found.norm, found.eps, found.step_size, found.steps) == ("l2", 64 / 255, 7.5 / 255, 20)
    assert found.name == "PGD-20 L2 eps=64 step=7.5" and found.setting("random_start")
    assert only("test-adv-acc-l2-64").step_size == 15 / 255                   # another norm's: not the run's step
    assert only("test-adv-acc-linf-4").step_size == 2 / 255
    assert only("test-adv-acc-weak-w2").setting("share") == 0.25


@pytest.mark.parametrize("settings", [LINF, FGSM])
def test_fgsm_is_one_step_of_length_eps_and_has_to_be_asked_for(settings):
    fast, slow = only("test-adv-acc-fgsm", settings), only("test-adv-acc", settings)
    assert (fast.steps, fast.step_size, fast.eps, fast.setting("random_start")) == (1, 8 / 255, 8 / 255, False)
    assert (slow.steps, slow.step_size) == (10, 2 / 255) and fast.name == "FGSM Linf eps=8"
    mse = only("test-adv-acc-mse-fgsm", settings)
    assert (mse.kind, mse.steps, mse.setting("random_start")) == ("perception-pgd", 1, False)


@pytest.mark.parametrize("asked", [LINF, L2, FGSM, replace(LINF, epsilon=0.031), replace(L2, alpha=0.0625, n_iters=20),
                                   Settings(distance="L1", epsilon=12, alpha=1 / 3)])
@pytest.mark.parametrize("usual", [LINF, L2])
@pytest.mark.parametrize("mode", MODES)
def test_a_name_says_all_in_which_a_measurement_differs_from_the_runs_own(mode, asked, usual):
    if asked.distance == "L1" and ("cw" in mode or "boundary" in mode or "hopskipjump" in mode):
        with pytest.raises(UserError, match="no search in L1"):
            plan_named(mode_name(mode, asked, usual), usual)
        return
    weak = 3 if mode == "test_adv_acc_weak" else None
    name = mode_name(mode, asked, usual, weak=weak)
    got, want = plan_named(name, usual), plan_named(mode_name(mode, asked, asked, weak=weak), asked)
    plain = mode.lower().replace("_", "-") + ("-w3" if weak else "")
    assert name == plain if asked == usual else name.startswith(plain.removesuffix("-w3"))
    for one, other in zip(got.evaluators, want.evaluators, strict=True):
        assert (one.name, one.kind, one.norm, one.steps, one.n, one.settings) == (
            other.name, other.kind, other.norm, other.steps, other.n, other.settings)
        assert (one.eps, one.step_size) == pytest.approx((other.eps, other.step_size), rel=1e-8)
    own = plan_named(plain, usual)
    assert name != plain or plan_sha256(got) == plan_sha256(own)
    assert got.evaluators == own.evaluators or name != plain


def test_no_mode_shares_an_evaluators_name_with_the_papers_plan_or_another_mode():
    modes = [only(mode_name(mode, LINF, LINF, weak=4 if "weak" in mode else None)) for mode in MODES]
    others = [one for plan in ("paper-rpat", "paper-rpat-last", "perception-rpat")
              for one in plan_named(plan, LINF).evaluators]
    names = [one.name for one in (*modes, *others)]
    assert len(set(names)) == len(names)


def test_perception_and_corruptions_have_plans():
    found = plan_named("perception-rpat-20", L2).evaluators
    assert [(one.name, one.kind, one.norm, one.steps, one.n) for one in found] == [
        ("perception PGD-20", "perception-pgd", "l2", 20, 20), ("perception noise", "perception-noise", "linf", 0, 20)]
    assert found[1].eps == 8 / 255
    own = plan_named("own-corruptions-20", LINF)
    assert {one.kind for one in own.evaluators} == {"corruption"} and {one.n for one in own.evaluators} == {20}


@pytest.mark.parametrize(("name", "said"), [
    ("paper", "unknown plan 'paper'"), ("paper-rpat-", "unknown plan"), ("test-mce", "unknown plan"),
    ("test-clean-acc-linf-8", "takes no numbers"), ("test-auto-attack-fgsm", "takes threat"),
    ("test-auto-attack-l2-128-15-10", "takes threat"), ("test-adv-acc-w2", "belongs to test-adv-acc-weak"),
    ("test-adv-acc-weak", "belongs to"), ("test-adv-acc-weak-w9", "give 0"),
    ("test-auto-attack-linf-300", "300/255 is larger than 1"), ("test-adv-acc-l1-8-x", "unknown plan"),
    ("test-hopskipjump-attack-l1-2000", "no search in L1")])
def test_what_is_no_plan(name, said):
    with pytest.raises(UserError, match=said):
        plan_named(name, LINF)


def test_the_settings_of_a_run_come_back():
    config = {**replace(L2, quirks=("test-selected",), n_train=5).config(), "precision": "fp32",
              "model": {"name": "small", "classes": 10}, "data": {"protocol": "cifar10"}}
    found = settings_of_run({"config": config, "quirks": ["test-selected"]})
    assert found == replace(L2, quirks=("test-selected",), n_train=5, model="small", precision="fp32")


def test_another_search_has_its_own_names():
    fast, plain = plan_named("paper-rpat-50-last-fast", L2), plan_named("paper-rpat-50-last", L2)
    assert fast.name == "paper-rpat-50-last-fast" and fast.evaluators[:3] == plain.evaluators[:3]
    found = fast.evaluators[3]
    assert (found.name, found.kind, found.norm, found.n) == ("AA (fast search) last", "fast-autoattack", "l2", 50)
    assert only("test-auto-attack-fast").name == "AA (fast search) Linf eps=8"
    with pytest.raises(UserError, match="plan test-adv-acc has no AutoAttack"):
        plan_named("test-adv-acc-fast", LINF)
