"""Names of measurements: what each stands for, and that other versions of AutoAttack go by other names."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import UserError
from common.evaluation.plans import Plan
from dyart.plans import attack_plan, eps_text, plan_named, radius
from dyart.settings import Settings

CUSTOM, PLUS = "apgd-ce+apgd-t+fab-t", "apgd-ce+apgd-dlr+fab+square+apgd-t+fab-t"


def test_the_papers_plan():
    plan = plan_named("paper-dyart-2000-500", Settings(attack_eps=6 / 255, attack_step=1 / 255))
    clean, pgd, *attacks = plan.evaluators
    assert (plan.name, plan.chunk, clean.name, clean.kind, clean.n) == ("paper-dyart-2000-500", 100, "clean", "clean",
                                                                        2000)
    assert (pgd.name, pgd.kind, pgd.norm, pgd.steps, pgd.eps, pgd.step_size, pgd.restarts, pgd.n) == (
        "PGD-40", "pgd", "linf", 40, 6 / 255, 1 / 255, 1, 2000)
    assert dict(pgd.settings) == {"loss": "margin", "random_start": True}
    assert [(one.name, one.kind, one.norm, one.eps, one.n) for one in attacks] == [
        (f"AutoAttack eps={eps}", "autoattack", "linf", eps / 255, 500) for eps in (2, 4, 8, 12, 16)]


def test_how_many_images_a_plan_takes():
    def counts(name):
        plan = plan_named(name, Settings())
        return [one.n for one in plan.evaluators][1:3], plan.chunk
    assert counts("paper-dyart") == ([None, None], 500)
    assert counts("paper-dyart-300") == ([300, 300], 100)
    assert counts("paper-dyart-10000-1000") == ([10000, 1000], 500)


def test_an_l2_training_is_judged_in_l2():
    plan = plan_named("paper-dyart", Settings(attack="l2-pgd", attack_eps=0.5, attack_step=0.1))
    assert (plan.evaluators[1].norm, plan.evaluators[1].eps) == ("l2", 0.5)
    assert {one.norm for one in plan.evaluators[2:]} == {"linf"}


def test_the_measuring_quirk_has_another_name():
    plan = plan_named("paper-dyart-10", Settings(quirks=("one-restart-aa", "scalar-alpha")))
    assert [(one.name, one.kind) for one in plan.evaluators[2:]] == [
        (f"{CUSTOM} eps={eps}", "custom-autoattack") for eps in (2, 4, 8, 12, 16)]
    # A plan that names its version is that version.
    assert plan_named("aa-linf-8", Settings(quirks=("one-restart-aa",))).evaluators[0].kind == "autoattack"


@pytest.mark.parametrize(("name", "expected"), [
    ("aa-linf-8", [("AutoAttack Linf eps=8", "autoattack", "linf", 8 / 255, None)]),
    ("aa-linf-8-100", [("AutoAttack Linf eps=8", "autoattack", "linf", 8 / 255, 100)]),
    ("aa-linf-2_8.5", [(f"AutoAttack Linf eps={eps}", "autoattack", "linf", eps / 255, None) for eps in (2, 8.5)]),
    ("aa-l2-0.5-1000", [("AutoAttack L2 eps=0.5", "autoattack", "l2", 0.5, 1000)]),
    ("custom-linf-8", [(f"{CUSTOM} Linf eps=8", "custom-autoattack", "linf", 8 / 255, None)]),
    ("plus-l2-1-20", [(f"{PLUS} L2 eps=1", "plus-autoattack", "l2", 1.0, 20)]),
    ("aa-linf-4-50-train", [("AutoAttack Linf eps=4 train", "autoattack", "linf", 4 / 255, 50)])])
def test_a_single_attack(name, expected):
    plan = plan_named(name, Settings())
    assert plan.name == name
    assert [(one.name, one.kind, one.norm, one.eps, one.n) for one in plan.evaluators] == expected


@pytest.mark.parametrize(("name", "message"), [
    ("paper-adarat", "unknown plan 'paper-adarat': give paper-dyart"), ("paper-dyart-", "unknown plan"),
    ("aa-linf-", "unknown plan"), ("aa-l1-8", "unknown plan"), ("rand-linf-8", "unknown plan"),
    ("paper-dyart-0", "n must be"), ("aa-linf-300", "eps 300: in L-inf it is counted in 255ths"),
    ("aa-l2-8", "eps 8: in L2 it is taken as it is"), ("aa-linf-0", "must be above 0"), ("aa-linf-8_8", "two eval")])
def test_names_that_stand_for_no_plan(name, message):
    with pytest.raises(UserError, match=message):
        plan_named(name, Settings())


@given(st.integers(1, 255 * 8), st.sampled_from(["linf", "l2"]), st.sampled_from(["standard", "custom", "plus"]))
def test_a_name_gives_its_plan_back(eighths, norm, version):
    eps = float(Fraction(eighths, 8 * 255)) * (1 if norm == "linf" else 4)
    text = eps_text(norm, eps)
    assert radius(norm, text) == pytest.approx(eps, rel=1e-12, abs=0)
    plan = attack_plan(version, norm, [text], n=7)
    assert plan_named(plan.name, Settings()) == plan == Plan.from_json(plan.to_json())


def test_whole_255ths_are_exact():
    assert all(eps_text("linf", eps / 10 / 255) == f"{eps / 10:g}" for eps in range(1, 2551))
    assert all(radius("linf", str(eps)) == eps / 255 for eps in range(1, 256))
    assert [eps_text("linf", 8 / 255), eps_text("linf", 0.5 / 255), eps_text("l2", 0.5)] == ["8", "0.5", "0.5"]
    assert radius("l2", eps_text("l2", 128 / 255)) == 128 / 255 and eps_text("l2", 1e-5) == "0.00001"
    with pytest.raises(UserError, match="above 0"):
        eps_text("linf", 0.0)


def test_mistakes_are_told_before_torch_is_loaded(run_without_torch):
    code = ("from common.errors import UserError\nfrom dyart import evaluation\n"
            "for words in ([], ['--fname_input', 'nowhere'], ['--eps', '8']):\n    try:\n"
            "        evaluation.run(words)\n"
            "    except UserError as error:\n        print(error)")
    said = run_without_torch(code).splitlines()
    assert [line.split(":")[0] for line in said] == ["--fname_input", "--fname_input nowhere", "unknown flag --eps"]


def test_another_search_has_its_own_names():
    plan, plain = plan_named("paper-dyart-300-fast", Settings()), plan_named("paper-dyart-300", Settings())
    assert plan.name == "paper-dyart-300-fast" and plan.evaluators[:2] == plain.evaluators[:2] and plan.chunk == 100
    assert [(one.name, one.kind, one.eps, one.n) for one in plan.evaluators[2:]] == [
        (f"AA (fast search) eps={eps}", "fast-autoattack", eps / 255, 300) for eps in (2, 4, 8, 12, 16)]
    finished, = plan_named("aa-l2-0.5-fast-float32", Settings()).evaluators
    assert finished.name == "AutoAttack (fast first) L2 eps=0.5" and finished.setting("finish") is True
    with pytest.raises(UserError, match="plan plus-linf-8 has no AutoAttack"):
        plan_named("plus-linf-8-fast", Settings())
