"""Reported against ours: verdicts where one protocol stands on both sides, else the reason why there is none."""

import re

import pytest

from common import reported
from common.against import grid, incomparable, interval, judged, number
from common.cells import Cell
from common.environment import ROOT
from common.records import read_runs
from common.render import comma_separated, latex, markdown
from common.report import build
from common.reported import Reported
from common.runs import BUDGETS, Column, Row, Table
from common.stats import wilson
from common.tests.fabricate import DATA, fabricate

WHOLE = DATA | {"n_train": 50_000}
TABLE = Table(
    title="A paper", reported_paper="Paper", reported_models={"cifar10": ("net",)},
    reported_datasets={"cifar10": "CIFAR-10"},
    rows=(Row(method="A", variant="plain", label="A", reported=(("A", "*"),)),
          Row(method="A", variant="plain", label="A, last", reported=(("A", "*"),), suffix=" last")),
    columns=(Column(evaluator="clean", title="clean", reported=("clean", "clean in code")),
             Column(evaluator="aa", title="AutoAttack", reported=("AA",))))


def said(metric="clean", value="80.0", **changes):
    return Reported(**{"source_class": "A", "paper": "Paper", "table": "T1", "dataset": "CIFAR-10", "model": "net",
                       "method": "A", "variant": "", "norm": "Linf", "eps": "8/255", "metric": metric, "value": value,
                       "checkpoint": "last", "source": "a.org"} | changes)


def line(results, known, *, budget="full", measuring=(), **changes):
    fabricate(results, **{"method": "A", "budget": budget, "accuracies": {"clean": 0.8}, "n": 10_000,
                          "data": WHOLE} | changes)
    return build(TABLE, read_runs(results), known, "cifar10", budget, measuring).against[0]


@pytest.mark.parametrize(("value", "verdict"), [
    ("80.0", "within"), ("80.7", "within"), ("79.3", "within"), ("80.9", "below"), ("79.1", "above"),
    ("80.9+-0.2", "within"), ("81.2+-0.2", "below")])
def test_the_verdict_is_where_our_interval_lies(tmp_path, value, verdict):
    found = line(tmp_path, [said(value=value)])
    assert (found["verdict"], found["reason"]) == (verdict, None)
    low, high = wilson(8000, 10_000)
    assert (found["low"], found["high"]) == pytest.approx((100 * low, 100 * high))
    assert found["difference"] == pytest.approx(80 - float(value[:4]))


def test_a_number_read_off_a_figure_has_half_a_point_of_room():
    assert number(said(value="83.1", source_class="D")) == (83.1, 0.5) and number(said(value="83.1")) == (83.1, 0.0)
    assert number(said(value="47.63+-0.08")) == (47.63, 0.08) == number(said(value="47.63±0.08"))
    assert judged(79.0, 80.0, 80.4, 0.5)[0] == "within" and judged(79.0, 80.0, 80.4, 0.3)[0] == "below"
    assert judged(None, None, 80.0, 0.0) == ("not comparable", "ours has no interval: one seed")


def test_a_wide_interval_says_that_it_says_little():
    assert judged(70.0, 80.0, 75.0, 0.0) == ("within", "but the interval is ±5.0 points wide: more seeds would tell")


@pytest.mark.parametrize("budget", [budget for budget in BUDGETS if budget != "full"])
def test_no_other_budget_is_ever_comparable(tmp_path, budget):
    found = line(tmp_path, [said()], budget=budget)
    assert found["verdict"] == "not comparable" and found["reason"] == f"budget {budget}, not the paper's training"


@pytest.mark.parametrize(("other", "ours", "reason"), [
    ({}, {"data": DATA}, "trained on 5,000 of 50,000 images"),
    ({"paper": "yardstick"}, {}, r"reported by other work \(yardstick\), after its own training"),
    ({"checkpoint": "best on the test set"}, {}, "weights: reported best on the test set; ours last"),
    ({"variant": "+10M synthetic (EDM) images"}, {}, "reported with .*synthetic.*, ours without"),
    ({}, {"data": WHOLE | {"extra": {"n": 9, "source": "s", "fingerprint": "e" * 64}}}, "ours with, reported without"),
    ({"variant": "20M EDM"}, {"data": WHOLE | {"extra": {"n": 1_000_000, "source": "s", "fingerprint": "e" * 64}}},
     "reported with 20M EDM, ours with 1,000,000"),
    ({}, {"measuring": ("momentum-reset",)}, "measured with the quirk momentum-reset"),
    ({"metric": "clean in code"}, {}, r"as the released code measures \(clean in code\), ours without its quirk")])
def test_another_protocol_is_not_comparable(tmp_path, other, ours, reason):
    found = line(tmp_path, [said(**other)], **ours)
    assert found["verdict"] == "not comparable" and re.search(reason, found["reason"])
    assert found["difference"] is not None


def test_what_the_code_measures_is_comparable_with_its_quirk(tmp_path):
    found = line(tmp_path, [said(metric="clean in code")], measuring=("momentum-reset",))
    assert (found["verdict"], found["reason"]) == ("within", None)


def test_held_out_images_are_no_other_protocol(tmp_path):
    assert line(tmp_path, [said()], data=WHOLE | {"n_train": 48_976})["verdict"] == "within"


def test_seeds_widen_the_interval():
    one = Cell((1, 2, 3), (7900, 8000, 8100), 10_000, (), {})
    low, high = interval(one)
    assert high - 0.8 == pytest.approx(4.3027 * 0.01 / 3 ** 0.5, rel=1e-3) and low + high == pytest.approx(1.6)


def test_every_number_of_ours_has_a_line_with_all_that_is_known(tmp_path):
    for seed in (1, 2):
        fabricate(tmp_path, method="A", budget="full", seed=seed, n=10_000, data=WHOLE,
                  accuracies={"clean": 0.80 + seed / 1000, "clean last": 0.81, "aa": 0.5})
    built = build(TABLE, read_runs(tmp_path), [said(), said("AA", "49.0", paper="other")], "cifar10", "full")
    assert [(one["method"], one["evaluator"], one["verdict"]) for one in built.against] == [
        ("A", "clean", "within"), ("A", "AutoAttack", "not comparable"), ("A, last", "clean last", "above")]
    first = built.against[0]
    assert (first["n"], first["epochs"], first["seeds"], first["selected_on"], first["quirks"]) == (
        10_000, "10", "1 2", "last", "momentum-reset")
    assert first["reported_class"] == "A" and first["reported_source"] == "a.org"
    assert "a_full_s1/eval-adarat.json" in first["records"] and first["sd"] == pytest.approx(0.0707, rel=1e-2)
    assert incomparable(TABLE, "cifar10", "full", read_runs(tmp_path), TABLE.rows[0], said()) is None


def test_the_table_is_written_in_three_ways(tmp_path):
    found = line(tmp_path, [said(value="79.1+-0.1", source_class="D")])
    table = grid("T: reported against ours", [found])
    text = markdown([table])
    assert ("| cifar10 | full | A | clean | 10,000 | 10 | 1 | last | momentum-reset | 80.00 | [79.2, 80.8] | "
            "79.1 ± 0.5 (r1) | D | +0.90 | within |") in text
    assert "- Counts: within 1, below 0, above 0, not comparable 0, nothing reported 0." in text
    assert "r1: Paper, T1; weights: last; a.org" in text and r"79.1 $\pm$ 0.5 (r1)" in latex([table])
    assert comma_separated([found]).startswith("dataset,budget,method,evaluator,n,epochs,seeds,selected_on,quirks,ours")


def test_numbers_without_a_report_say_so(tmp_path):
    found = line(tmp_path, [])
    assert (found["verdict"], found["reason"], found["difference"]) == ("nothing reported", None, None)


def test_every_number_in_the_files_can_be_read():
    for path in sorted((ROOT / "results" / "reported").glob("*.csv")):
        rows = reported.read(path)
        assert rows and all(number(row)[1] >= 0 for row in rows)
