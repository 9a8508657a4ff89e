"""Plans: bad ones are refused in one line, equal measurements are equal records, torch is not needed."""

import json

import pytest

from common.errors import UserError
from common.evaluation import Evaluator, Plan, plan_sha256

CLEAN = Evaluator("clean", "clean")
SEVERAL = (CLEAN, Evaluator("FGSM", "fgsm", eps=0.01), Evaluator("PGD-5", "pgd", eps=0.01, step_size=0.0025, steps=5),
           Evaluator("CW-5", "cw", eps=0.01, step_size=0.0025, steps=5))


@pytest.mark.parametrize(("given", "message"), [
    ({"eps": 8}, r"'PGD': eps 8 is larger than the whole range \[0,1\]; 8 looks like 8/255: give 8/255 or 0\.0314"),
    ({"eps": -0.1}, "eps must be a number of at least 0, not -0.1"),
    ({"eps": float("nan")}, "eps must be a number"),
    ({"eps": "8/255"}, "eps must be a number of at least 0, not '8/255'"),
    ({"step_size": 2}, "step_size 2 is larger"),
    ({"step_size": 0.0}, "never leaves the start"),
    ({"kind": "apgd"}, "unknown kind 'apgd'; give one of clean, fgsm, pgd, cw, autoattack, torchattacks-autoattack"),
    ({"norm": "l0"}, "no norm 'l0'; give one of linf, l2, l1"),
    ({"kind": "torchattacks-autoattack", "norm": "l1"}, "no norm 'l1'; give one of linf, l2"),
    ({"kind": "autoattack", "eps": 0.0}, "eps must be above 0"),
    ({"steps": 0}, "steps must be a whole number of at least 1, not 0"),
    ({"steps": 2.5}, "steps must be a whole number"),
    ({"restarts": 0}, "restarts must be"),
    ({"n": 0}, "n must be"),
    ({"n": True}, "n must be"),
    ({"settings": {"los": "dlr"}}, "no setting 'los'; it has loss, random_start"),
    ({"settings": {"loss": "dlrr"}}, "unknown loss 'dlrr'; give one of cross-entropy, dlr, margin"),
    ({"settings": {"random_start": 1}}, "random_start is True or False"),
    ({"kind": "cw", "settings": {"confidence": "50"}}, "confidence must be a number"),
    ({"kind": "autoattack", "settings": {"queries": 0}}, "queries must be"),
    ({"name": "a/b"}, "a name has letters"),
    ({"name": "AutoAttack"}, "only the standard version"),
    ({"name": "AA (fast)"}, "only the standard version"),
    ({"name": "AA [fast]"}, "a name has letters, digits, spaces and"),
    ({"name": "autoattack-10", "kind": "torchattacks-autoattack"}, "only the standard version"),
    ({"name": "AA", "kind": "autoattack", "settings": {"iterations": 10}}, "only the standard version"),
])
def test_bad_evaluators_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        Evaluator(**{"name": "PGD", "kind": "pgd"} | given)


def test_bad_plans_are_refused():
    for plan, message in [({"evaluators": ()}, "no evaluators"), ({"evaluators": (CLEAN, CLEAN)}, "two evaluators"),
                          ({"chunk": 0}, "chunk must be"), ({"name": "A/b"}, "it names files")]:
        with pytest.raises(UserError, match=message):
            Plan(**{"name": "p", "evaluators": (CLEAN,)} | plan)


def test_plans_survive_json_and_hash_what_matters():
    plan = Plan("p", (*SEVERAL, Evaluator("AutoAttack", "autoattack", "l2", 0.5, n=10)), chunk=7, test_crop=True)
    again = Plan.from_json(json.loads(json.dumps(plan.to_json())))
    assert again == plan and hash(again) == hash(plan) and plan_sha256(again) == plan_sha256(plan)
    others = [Plan("p", plan.evaluators, 8, True), Plan("p", plan.evaluators, 7, False), Plan("p", SEVERAL, 7, True)]
    halved = Plan("p", plan.evaluators, 7, True, half_inputs=True)
    assert Plan.from_json(json.loads(json.dumps(halved.to_json()))) == halved
    assert len({plan_sha256(each) for each in (plan, halved, *others)}) == 5
    assert "half_inputs" not in plan.to_json()          # the hash of older records


def test_numbers_that_a_kind_does_not_use_do_not_count():
    assert Evaluator("clean", "clean", "l2", eps=0.3, steps=7) == CLEAN
    assert Evaluator("F", "fgsm", steps=3, step_size=0.1) == Evaluator("F", "fgsm")
    assert Evaluator("P", "pgd", settings={"loss": "cross-entropy"}) == Evaluator("P", "pgd")
    assert Evaluator("P", "pgd", settings={"loss": "dlr"}) != Evaluator("P", "pgd")
    assert Evaluator("AA", "autoattack", settings={"queries": 5000}).setting("iterations") == 100


def test_plans_need_no_torch(run_without_torch):
    run_without_torch("from common.evaluation import Evaluator, Plan, plan_sha256\n"
                      "plan_sha256(Plan('p', [Evaluator('c', 'clean')]))")
