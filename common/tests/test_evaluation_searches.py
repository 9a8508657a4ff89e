"""Names of searches, of the plans and evaluators that use them, and their own columns in tables.  No torch."""

from dataclasses import replace

import pytest

from common.cells import cell, result_of
from common.errors import UserError
from common.evaluation import Evaluator, Plan
from common.evaluation.searches import (
    LENGTH,
    SEARCHES,
    called,
    columns_of,
    search_of,
    searchable,
    searched,
    split_name,
    suffix,
)
from common.records import read_runs
from common.render import DASH
from common.report import build
from common.runs import Column, Row, Table
from common.tests.fabricate import fabricate

OTHERS = [search for search in SEARCHES if search != "float32"]
PLAN = Plan("paper", (Evaluator("clean", "clean"), Evaluator("PGD", "pgd"), Evaluator("AutoAttack eps=8", "autoattack"),
                      Evaluator("custom", "custom-autoattack")), chunk=50)


def fast(search="fast", **changes):
    return Evaluator(**{"name": SEARCHES[search].title, "kind": "fast-autoattack",
                        "settings": SEARCHES[search].settings, **changes})


@pytest.mark.parametrize("search", OTHERS)
def test_a_plan_with_another_search(search):
    plan = searched(PLAN, search)
    assert plan.name == "paper-" + search.replace("+", "-") and plan.chunk == 50
    assert [each.name for each in plan.evaluators] == [
        "clean", "PGD", f"{SEARCHES[search].title} eps=8", "custom"]
    assert plan.evaluators[:2] == PLAN.evaluators[:2] and plan.evaluators[3] == PLAN.evaluators[3]
    changed = plan.evaluators[2]
    assert changed.kind == "fast-autoattack" and dict(changed.settings) == {**LENGTH, **SEARCHES[search].settings}
    assert (changed.norm, changed.eps, changed.n) == ("linf", 8 / 255, None)
    assert search_of(changed.kind, dict(changed.settings)) == search
    assert Plan.from_json(plan.to_json()) == plan
    assert split_name(plan.name) == ("paper", search)
    assert searchable(lambda name: Plan(name, PLAN.evaluators, chunk=50))(plan.name) == plan


def test_in_float32_a_plan_stays_as_it_is():
    assert searched(PLAN, "float32") is PLAN and suffix("float32") == ""
    assert split_name("paper-last") == ("paper-last", "float32") and split_name("fast") == ("fast", "float32")
    assert searchable(lambda name: Plan(name, PLAN.evaluators, chunk=50))("paper") == PLAN


def test_a_plan_without_autoattack_cannot_search_otherwise():
    for plan in (Plan("p", PLAN.evaluators[:2]), Plan("p", PLAN.evaluators[3:]), searched(PLAN, "fast")):
        with pytest.raises(UserError, match=r"plan p.* has no AutoAttack .*: fast changes nothing in it; leave"):
            searched(plan, "fast")


@pytest.mark.parametrize("name", ["AutoAttack", "AA", "auto-attack 8", "AA (fast)", "AA (fast searches)", "AA fast",
                                  "AutoAttack (fast first)", "AA (fast search tf32)"])
def test_what_searched_in_bf16_alone_has_one_name(name):
    with pytest.raises(UserError, match=r"is called AutoAttack; give this one the name AA \(fast search\)"):
        fast(name=name)
    assert fast(name="AA (fast search) last").name == "AA (fast search) last"
    assert fast(name="something else").name == "something else"


@pytest.mark.parametrize("search", OTHERS)
def test_no_other_attack_has_the_name_of_a_search(search):
    title = SEARCHES[search].title
    assert fast(search).name == title
    others = [{"kind": "autoattack"}, {"kind": "pgd"}, {"kind": "custom-autoattack"}, {"kind": "fast-autoattack",
              "settings": {**SEARCHES[search].settings, "queries": 10}}]
    others += [{"kind": "fast-autoattack", "settings": SEARCHES[other].settings} for other in OTHERS if other != search]
    for other in others:
        with pytest.raises(UserError, match="only the standard version of the official attacks is called AutoAttack"):
            Evaluator(**{"name": title, **other})


@pytest.mark.parametrize(("name", "search", "expected"), [
    ("AutoAttack", "fast", "AA (fast search)"), ("AutoAttack half last", "fast", "AA (fast search) half last"),
    ("AA", "fast+float32", "AutoAttack (fast first)"), ("AutoAttack", "float32", "AutoAttack"),
    ("short-AA", "fast", "short-AA (fast search)"), ("short", "fast-tf32+float32", "short (fast first tf32)")])
def test_names_of_evaluators(name, search, expected):
    assert called(name, search) == expected


@pytest.mark.parametrize(("settings", "message"), [
    ({"arithmetic": "fp8"}, "arithmetic is one of bf16, tf32, not 'fp8'"), ({"finish": 1}, "finish is True or False"),
    ({"iterations": 0}, "iterations must be"), ({"targets": 0}, "targets must be"),
    ({"steps": 3}, "no setting 'steps'")])
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        Evaluator("x", "fast-autoattack", settings=settings)


# -- tables ----------------------------------------------------------------------------------------------------------

TABLE = Table(title="T", rows=tuple(Row(method="A", variant="plain", label=f"A{suffix}", suffix=suffix)
                                    for suffix in ("", " last")), columns=(
    Column(evaluator="clean", title="clean"), Column(evaluator="AutoAttack", title="AutoAttack", reported=("AA",)),
    Column(evaluator="clean", beside="AutoAttack", formula="NRR", title="NRR", reported=("NRR",))))


def run_with(folder, **plans):
    """A run with a record per plan, NAME={evaluator: accuracy}; what a name says of the search stands in the record."""
    titles = {search.title: {"kind": "fast-autoattack", "settings": {**LENGTH, **search.settings}}
              for search in SEARCHES.values() if search.settings}
    for plan, accuracies in plans.items():
        said = {name: known for name in accuracies for title, known in titles.items() if name.startswith(title)}
        fabricate(folder, method="A", plan=plan.replace("_", "-"), accuracies=accuracies, said=said)
    return read_runs(folder)


def table_of(runs, table=TABLE):
    grid = build(table, runs, (), "cifar10", "short").grids[0]
    return {row[0]: dict(zip(grid.header[4:], [text.split(" ")[0] for text in row[4:]], strict=True))
            for row in grid.rows}


def test_columns_of_searches_that_were_run():
    titles = [column.title for column in columns_of(TABLE.columns, ("", " last"), {"clean", "AutoAttack"})]
    assert titles == ["clean", "AutoAttack", "NRR"]
    found = columns_of(TABLE.columns, ("", " last"), {"clean", "AA (fast search) last", "AutoAttack (fast first) eps"})
    assert [column.title for column in found] == [
        "clean", "AutoAttack", "AA (fast search)", "NRR", "NRR (AA (fast search))"]
    assert found[2].evaluator == found[4].beside == "AA (fast search)" and found[4].evaluator == "clean"
    assert found[2].reported == found[4].reported == () and found[1].reported == ("AA",)


def test_a_fast_search_has_a_column_of_its_own(tmp_path):
    runs = run_with(tmp_path, paper={"clean": 0.8, "AutoAttack": 0.4}, paper_last={"AutoAttack last": 0.3},
                    paper_fast={"clean": 0.8, "AA (fast search)": 0.42})
    rows = table_of(runs)
    assert list(rows["A"]) == ["clean (n=200)", "AutoAttack (n=200)", "AA (fast search) (n=200)", "NRR (n=200)",
                               "NRR (AA (fast search)) (n=200)"]
    assert list(rows["A"].values())[:3] == ["80.00", "40.00", "42.00"]
    assert list(rows["A last"].values())[1:3] == ["30.00", DASH]


def test_the_plan_itself_counts_before_one_that_repeats_it_with_another_search(tmp_path):
    run, = run_with(tmp_path, paper_fast={"clean": 0.7, "AA (fast search)": 0.42},
                    paper_fast_float32={"clean": 0.6, "AutoAttack (fast first)": 0.41})
    assert result_of(run, "clean")[0].plan == "paper-fast-float32"
    run, = run_with(tmp_path, paper={"clean": 0.8, "AutoAttack": 0.4})
    assert result_of(run, "clean")[0].plan == "paper" and result_of(run, "clean")[1]["robust"] == 160
    assert result_of(run, "AA (fast search)")[0].plan == "paper-fast"
    run, = run_with(tmp_path, again={"clean": 0.9})
    with pytest.raises(ValueError, match="two plans judge clean"):
        result_of(run, "clean")


def test_an_order_of_plans_goes_before_the_search(tmp_path):
    run, = run_with(tmp_path, paper_fast={"clean": 0.7, "AA (fast search)": 0.42}, small={"clean": 0.8})
    assert [result_of(run, "clean", plans)[0].plan for plans in (("paper*", "*"), ("small*", "*"), ("*",))] == [
        "paper-fast", "small", "small"]
    some = replace(TABLE, plans=("small*",))
    assert "AA (fast search) (n=200)" in table_of([run])["A"]
    assert "AA (fast search) (n=200)" not in table_of([run], some)["A"]
    assert "AA (fast search) (n=200)" in table_of([run], replace(TABLE, plans=("small", "paper*")))["A"]


def test_a_cell_never_holds_two_searches(tmp_path):
    known = {"kind": "fast-autoattack", "settings": {**LENGTH, **SEARCHES["fast"].settings}}
    fabricate(tmp_path, method="A", seed=1, accuracies={"x": 0.4}, said={"x": known})
    fabricate(tmp_path, method="A", seed=2, accuracies={"x": 0.4}, said={"x": {"kind": "autoattack",
                                                                              "settings": LENGTH}})
    with pytest.raises(ValueError, match="two protocols"):
        cell(read_runs(tmp_path), "x")
