"""python -m scripts.evaluate --search: which plan is measured."""

from types import SimpleNamespace

import pytest

from common.errors import UserError
from scripts import evaluate

RUN = {"paper": "adarat", "dataset": "digits", "run": "r", "seed": 3, "quirks": [], "model": {"name": "small"},
       "config": {"method": "PGD-AT", "dataset": "digits", "model": {"channels": 3}},
       "data": {"test_fingerprint": "f", "source": "s"}}


@pytest.fixture
def asked(monkeypatch):
    """Call the command with flags; what it would have measured."""
    found = SimpleNamespace(test=None, describe=lambda: {"test_fingerprint": "f"})
    monkeypatch.setattr(evaluate, "read_record", lambda *_: RUN)
    monkeypatch.setattr("common.experiment.load_data", lambda *_: found)
    monkeypatch.setattr("common.verdicts.judge", lambda **given: given["plan"])
    monkeypatch.setattr("common.verdicts.print_results", lambda plan: plans.append(plan))
    plans = []

    def call(*flags):
        monkeypatch.setattr("sys.argv", ["evaluate", "results/adarat/digits/r", *flags])
        evaluate.main()
        return plans.pop()
    return call


def test_the_plan_and_its_record_are_named_after_the_search(asked):
    plain, fast = asked("--plan", "paper-adarat-20-4"), asked("--plan", "paper-adarat-20-4", "--search", "fast")
    assert [one.name for one in plain.evaluators][-1] == "AutoAttack" and plain.name == "paper-adarat-20-4"
    assert [one.name for one in fast.evaluators][-1] == "AA (fast search)" and fast.name == "paper-adarat-20-4-fast"
    assert fast.evaluators[:-1] == plain.evaluators[:-1] and fast.evaluators[-1].n == 4
    assert asked("--plan", "paper-adarat-20-4-fast") == fast
    assert asked("--plan", "paper-adarat-20-4", "--search", "float32") == plain


def test_a_search_that_is_none(asked):
    with pytest.raises(UserError, match="invalid choice: 'slow'"):
        asked("--plan", "paper-adarat-20-4", "--search", "slow")
    with pytest.raises(UserError, match="plan paper-adarat-20-4-fast has no AutoAttack"):
        asked("--plan", "paper-adarat-20-4-fast", "--search", "fast")
