"""What the plans measure, by name; curves and medians from records."""

from dataclasses import replace

import pytest

from brainreg.plans import boundary_medians, boundary_names, curve, plan_named, plan_of_run, settings_of_run, strengths
from brainreg.settings import Settings
from common.errors import UserError
from common.evaluation.plans import plan_sha256

SOURCE = "ab" * 32
MNIST, CIFAR = Settings(task="mnist"), Settings(task="cifar10", rgb=True)


def of_kind(plan, kind):
    return [one for one in plan.evaluators if one.kind == kind]


def test_the_papers_attacks_in_the_released_order():
    plan = plan_named("paper-brainreg", MNIST, source=SOURCE)
    attacks = [one.name.rpartition(" ")[0] or one.name for one in plan.evaluators]
    assert attacks == ["clean", *["Gaussian"] * 10, *["Uniform"] * 10, *["SaltPepper"] * 10, *["TransferredFGSM"] * 10,
                       *["BoundaryAttack"] * 5]
    assert {one.n for one in plan.evaluators[:-5]} == {None} and {one.n for one in plan.evaluators[-5:]} == {1000}
    assert plan.chunk == 500 and not plan.test_crop
    skipped = plan_named("paper-brainreg", MNIST)
    assert skipped.evaluators == (*plan.evaluators[:31], *plan.evaluators[41:])


@pytest.mark.parametrize(("task", "tops"), [
    ("mnist", (0.5, 0.5, 0.3, 0.5)), ("fashion-mnist", (0.5, 0.5, 0.3, 0.5)), ("cifar10", (0.1, 0.1, 0.1, 0.02)),
    ("cifar100", (0.1, 0.1, 0.1, 0.005)), ("digits", (0.5, 0.5, 0.3, 0.5))])
def test_the_strengths_of_each_task(task, tops):
    """Evenly spaced, 0 and the top included."""
    plan = plan_named("paper-brainreg", Settings(task=task), source=SOURCE)
    for kind, top in zip(("gaussian-noise", "uniform-range-noise", "salt-pepper-noise", "transferred-fgsm"), tops,
                         strict=True):
        sizes = [one.eps for one in of_kind(plan, kind)]
        assert sizes == pytest.approx([top * step / 9 for step in range(10)]) and sizes[-1] == top and sizes[0] == 0


def test_names_are_stable_and_tell_strengths_apart():
    names = list(strengths("Gaussian", MNIST))
    assert names == ["Gaussian 0", "Gaussian 0.0556", "Gaussian 0.111", "Gaussian 0.167", "Gaussian 0.222",
                     "Gaussian 0.278", "Gaussian 0.333", "Gaussian 0.389", "Gaussian 0.444", "Gaussian 0.5"]
    assert list(strengths("TransferredFGSM", Settings(task="cifar100")))[1] == "TransferredFGSM 0.000556"
    assert list(strengths("SaltPepper", Settings(task="cifar10", num_epsilons=3))) == [
        "SaltPepper 0", "SaltPepper 0.05", "SaltPepper 0.1"]
    many = strengths("Uniform", replace(MNIST, num_epsilons=2001))
    assert len(many) == 2001 and "Uniform 0.00025" in many and "Uniform 0.2502" in many


def test_numbers_of_images_and_strengths_in_a_name():
    plan = plan_named("paper-brainreg-200-30", CIFAR)
    assert {one.n for one in plan.evaluators[:-5]} == {200} and plan.chunk == 100
    assert [one.n for one in of_kind(plan, "boundary")] == [30] * 5
    assert [one.n for one in of_kind(plan_named("paper-brainreg-200", CIFAR), "boundary")] == [200] * 5
    assert [one.n for one in of_kind(plan_named("paper-brainreg-5000", CIFAR), "boundary")] == [1000] * 5
    assert [one.n for one in of_kind(plan_named("paper-brainreg", CIFAR, n_test=360), "boundary")] == [360] * 5
    assert of_kind(plan_named("paper-brainreg-200-0", CIFAR), "boundary") == []
    assert len(plan_named("paper-brainreg-200-0-e3", CIFAR).evaluators) == 1 + 3 * 3
    assert len(plan_named("paper-brainreg-e2", replace(CIFAR, num_epsilons=7)).evaluators) == 1 + 3 * 2 + 5
    assert len(plan_named("paper-brainreg", replace(CIFAR, num_epsilons=7)).evaluators) == 1 + 3 * 7 + 5


def test_the_range_of_the_test_images_and_the_boundary_attacks_numbers():
    plan = plan_named("paper-brainreg", replace(CIFAR, quirks=("first-channel",)), low=0.1, high=0.9, source=SOURCE)
    for one in plan.evaluators:
        if one.kind in ("gaussian-noise", "uniform-range-noise", "salt-pepper-noise", "boundary"):
            assert (one.setting("low"), one.setting("high")) == (0.1, 0.9)
    assert {one.setting("source") for one in of_kind(plan, "transferred-fgsm")} == {SOURCE}
    boundary = of_kind(plan, "boundary")
    assert tuple(one.name for one in boundary) == boundary_names() and len(boundary) == 5
    assert (boundary[0].norm, boundary[0].eps) == ("l2", 0.0)
    wanted = {"against": "prediction", "iterations": 50, "directions": 1000, "blends": 50, "spherical_step": 0.01,
              "source_step": 0.01, "first_channel": True}
    assert wanted.items() <= dict(boundary[0].settings).items()
    assert not of_kind(plan_named("paper-brainreg", CIFAR), "boundary")[0].setting("first_channel")


def test_corruptions_of_the_channels_that_the_network_takes():
    colour, grey = (plan_named("corruptions-brainreg-50", one) for one in (CIFAR, MNIST))
    assert colour.name == "corruptions-brainreg-50" and len(colour.evaluators) == 1 + 15 * 5
    assert len(grey.evaluators) == 1 + 14 * 5 and {one.n for one in grey.evaluators} == {50}
    assert grey.evaluators[0].kind == "clean" and "own fog 5" in {one.name for one in grey.evaluators}
    assert plan_named("corruptions-brainreg", MNIST).evaluators[0].n is None


def test_small_eps_of_the_task():
    plan = plan_named("small-eps-400-20", CIFAR)
    assert [(one.name, one.n) for one in plan.evaluators] == [
        ("clean", 400), ("PGD-20 0.5 of 255", 400), ("PGD-20 1 of 255", 400), ("PGD-20 2 of 255", 400),
        ("PGD-20 4 of 255", 400), ("AutoAttack 1 of 255", 20)]
    attacks = plan.evaluators[1:5]
    assert [one.eps * 255 for one in attacks] == pytest.approx([0.5, 1, 2, 4])
    assert {(one.kind, one.norm, one.steps, one.setting("random_start")) for one in attacks} == {
        ("pgd", "linf", 20, True)}
    assert [one.step_size for one in attacks] == pytest.approx([one.eps / 8 for one in attacks])
    assert plan.evaluators[5].kind == "autoattack" and plan.evaluators[5].eps == 1 / 255
    digits = plan_named("small-eps-400", MNIST)
    assert [(one.name, one.eps, one.n) for one in digits.evaluators[1:]] == [
        ("PGD-20 0.02", 0.02, 400), ("PGD-20 0.05", 0.05, 400), ("PGD-20 0.1", 0.1, 400), ("PGD-20 0.2", 0.2, 400),
        ("AutoAttack 0.05", 0.05, 400), ("AutoAttack 0.1", 0.1, 400)]
    none = plan_named("small-eps-400-0", MNIST)
    assert none.evaluators == digits.evaluators[:5]
    assert [plan_named(f"small-eps-2000-{n}", MNIST).chunk for n in (0, 20, 2000)] == [500] * 3
    assert {one.n for one in plan_named("small-eps", MNIST).evaluators} == {None}


def test_another_search_has_its_own_names():
    plain, quick = plan_named("small-eps-400-20", MNIST), plan_named("small-eps-400-20-fast", MNIST)
    assert quick.name == "small-eps-400-20-fast" and quick.evaluators[:5] == plain.evaluators[:5] and quick.chunk == 100
    assert [(one.name, one.kind, one.eps, one.n) for one in quick.evaluators[5:]] == [
        ("AA (fast search) 0.05", "fast-autoattack", 0.05, 20), ("AA (fast search) 0.1", "fast-autoattack", 0.1, 20)]
    finished = plan_of_run("small-eps-400-fast-float32", RUN).evaluators[5]
    assert finished.name == "AutoAttack (fast first) 1 of 255" and finished.setting("finish") is True
    for name in ("paper-brainreg-fast", "corruptions-brainreg-5-fast", "small-eps-400-0-fast"):
        with pytest.raises(UserError, match=f"plan {name.removesuffix('-fast')} has no AutoAttack"):
            plan_named(name, MNIST)


@pytest.mark.parametrize(("name", "message"), [
    ("paper-rpat", r"unknown plan 'paper-rpat': give paper-brainreg, paper-brainreg-N"),
    ("paper-brainreg-x", "unknown plan"), ("paper-brainreg-1-2-3", "unknown plan"), ("small-eps-e3", "unknown plan"),
    ("corruptions-brainreg-5-5", "unknown plan"), ("paper-brainreg-e1", "1 strength is eps 0 alone"),
    ("paper-brainreg-0", "n must be a whole number of at least 1")])
def test_unknown_plans_are_refused(name, message):
    with pytest.raises(UserError, match=message):
        plan_named(name, MNIST)


RUN = {"config": {**replace(CIFAR, reg_data="cifar10", reg_alpha=10.0, reg_thresh=0.8).config(), "low": 0.0,
                  "high": 0.996078431, "model": {"channels": 3}, "data": {}},
       "quirks": ["first-channel", "pair-bn"], "needs": {"unregularised_short_s1000": SOURCE}, "data": {"n_test": 70}}


def test_the_plan_of_a_run_is_made_of_its_record():
    settings = settings_of_run(RUN)
    assert settings == replace(CIFAR, reg_data="cifar10", reg_alpha=10.0, reg_thresh=0.8,
                               quirks=("first-channel", "pair-bn"))
    plan = plan_of_run("paper-brainreg-60", RUN)
    assert plan_sha256(plan) == plan_sha256(plan_named("paper-brainreg-60", settings, low=0.0, high=0.996078431,
                                                       n_test=70, source=SOURCE))
    assert [one.n for one in of_kind(plan_of_run("paper-brainreg", RUN), "boundary")] == [70] * 5
    assert of_kind(plan_of_run("paper-brainreg", {**RUN, "needs": {}}), "transferred-fgsm") == []


def test_curves_and_medians_of_a_record():
    results = [{"name": "clean", "kind": "clean", "eps": 0.0, "robust": 9, "n": 10, "values": {}}]
    results += [{"name": name, "kind": "salt-pepper-noise", "eps": eps, "robust": robust, "n": 10}
                for name, eps, robust in (("b", 0.2, 5), ("a", 0.0, 9), ("c", 0.1, 7))]
    found = {"median": 0.25, "q10": 0.0, "q25": 0.0, "q75": 1.0, "q90": 1.0}
    for median in (0.25, 0.5, None):
        square = {**found, "median": median} if median else None
        results.append({"name": f"B{median}", "kind": "boundary", "eps": 0.0, "robust": 1, "n": 10,
                        "values": {"mean_square": square}})
    assert curve(results, "SaltPepper") == [(0.0, 9, 10), (0.1, 7, 10), (0.2, 5, 10)]
    assert curve(results, "Gaussian") == []
    assert boundary_medians(results) == (0.375, [0.25, 0.5]) and boundary_medians(results[:2]) == (None, [])


def test_plans_need_no_torch(run_without_torch):
    assert run_without_torch("from brainreg.plans import plan_named\nfrom brainreg.settings import Settings\n"
                             "import brainreg.evaluation\n"
                             "print(len(plan_named('paper-brainreg', Settings()).evaluators))").strip() == "36"
