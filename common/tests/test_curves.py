"""Cells made of several evaluators or of measured values, and reported numbers that are points of curves."""

import json

import numpy as np
import pytest

from common.cells import group, result_of
from common.curves import averaged, difference, measured, number, per_image, standard_error
from common.records import read_run, read_runs
from common.report import build
from common.reported import Reported, at, best
from common.runs import Column, Row, Table
from common.tests.fabricate import DATA, fabricate

NAMES = ("noise 0", "noise 1", "noise 2")
ACCURACIES = dict(zip(NAMES, (0.9, 0.6, 0.3), strict=True))
MEAN = Column(evaluator="noise mean", title="noise, mean", over=NAMES)


def made(results, method="A", shift=0.0, **more):
    return fabricate(results, method=method, accuracies={name: value + shift for name, value in ACCURACIES.items()},
                     **more)


def with_values(folder, values):
    """The record in `folder`, with `values` for its evaluators in order."""
    path = folder / "eval-adarat.json"
    record = json.loads(path.read_text())
    for result, one in zip(record["results"], values, strict=False):
        result["values"] = one
    path.write_text(json.dumps(record))


def curve_point(norm, eps, value, **more):
    return Reported(**{"source_class": "D", "paper": "P", "table": "Fig. 1", "dataset": "cifar10", "model": "net",
                       "method": "A", "variant": "", "norm": norm, "eps": eps, "metric": "accuracy", "value": value,
                       "checkpoint": "mean", "source": "figure"} | more)


# -- means over evaluators -------------------------------------------------------------------------------------------

def test_a_mean_over_evaluators_is_of_each_images_share(tmp_path):
    run = read_run(made(tmp_path))
    flags = run.evals["adarat"].arrays
    shares = per_image(run, NAMES)
    assert np.array_equal(shares, (flags["noise 0"] * 1.0 + flags["noise 1"] + flags["noise 2"]) / 3)
    cell = averaged([run], NAMES)
    half = 1.96 * shares.std(ddof=1) / 200 ** 0.5
    assert cell.accuracies == (pytest.approx(0.6),) and cell.n == 200
    assert cell.interval == pytest.approx((0.6 - half, 0.6 + half))
    assert cell.text() == f"60.00 [{60 - 100 * half:.1f}, {60 + 100 * half:.1f}]"
    assert averaged([run], (*NAMES, "noise 3")) is None and averaged([run], ()) is None
    assert standard_error(np.array([0.5])) == 0


def test_over_seeds_it_is_a_mean_and_a_standard_deviation(tmp_path):
    runs = [read_run(made(tmp_path, seed=seed, shift=shift)) for seed, shift in ((1, 0.0), (2, 0.02), (3, 0.04))]
    cell = averaged(runs, NAMES)
    assert cell.seeds == (1, 2, 3) and cell.interval is None and cell.text() == "62.00 ± 2.00"


def test_a_mean_never_mixes_protocols_or_images(tmp_path):
    runs = [read_run(made(tmp_path, seed=1)), read_run(made(tmp_path, seed=2, n=100))]
    with pytest.raises(ValueError, match=r"one cell \(noise 0\), two protocols"):
        averaged(runs, NAMES)
    folder = made(tmp_path / "two", method="A", plan="other")
    record = json.loads((folder / "eval-other.json").read_text())
    made(tmp_path / "two", method="A", n=100)
    assert record["results"][0]["n"] == 200
    with pytest.raises(ValueError, match="two plans judge noise 0"):
        per_image(read_run(folder), NAMES)


def test_the_difference_of_two_means_is_image_by_image(tmp_path):
    for method, shift in (("A", 0.1), ("B", 0.0)):
        for seed in (1, 2):
            made(tmp_path, method, shift, seed=seed)
    found = {method: group(read_runs(tmp_path), method, "plain") for method in "AB"}
    assert difference(found["A"], found["B"], NAMES) == (200, (1, 2), "+10.00 ± 0.00")
    shares = per_image(found["A"][0], NAMES) - per_image(found["B"][0], NAMES)
    half = 196 * shares.std(ddof=1) / 200 ** 0.5
    assert difference(found["A"][:1], found["B"], NAMES) == (200, (1,), f"+10.00 [{10 - half:+.1f}, {10 + half:+.1f}]")
    assert difference(found["A"][:1], found["B"][1:], NAMES) is None
    other = [read_run(made(tmp_path / "n", "B", n=100))]
    with pytest.raises(ValueError, match="one comparison, two protocols"):
        difference(found["A"], other, NAMES)


# -- measured values -------------------------------------------------------------------------------------------------

def test_a_measured_value_is_the_mean_over_its_evaluators(tmp_path):
    for seed, shift in ((1, 0.0), (2, 1.0)):
        with_values(made(tmp_path, seed=seed), [{"size": {"median": value + shift}} for value in (1.0, 2.0, 6.0)])
    cell = measured(read_runs(tmp_path), NAMES, "size.median", 10)
    assert cell.accuracies == (30.0, 40.0) and cell.interval is None and cell.text() == "35.00 ± 7.07"
    assert measured(read_runs(tmp_path)[:1], NAMES[:1], "size.median").text() == "1.00"


@pytest.mark.parametrize("values", [[], [{"size": None}], [{"size": {}}], [{"size": {"median": None}}],
                                    [{"size": 2.0}]])
def test_a_run_without_the_value_is_passed_over(tmp_path, values):
    with_values(made(tmp_path), values)
    assert measured(read_runs(tmp_path), NAMES[:1], "size.median") is None
    with_values(tmp_path / "adarat/cifar10/a_short_s1", [{"size": {"median": 1.0}}, *values])
    assert measured(read_runs(tmp_path), NAMES[:2], "size.median") is None
    assert number({"values": {"a": {"b": 2}}}, "a.b") == 2 and number({}, "a.b") is None
    assert number({"values": {"a": {"b": float("nan")}}}, "a.b") is None


# -- tables ----------------------------------------------------------------------------------------------------------

TABLE = Table(title="T", rows=tuple(Row(method=method, variant="plain", label=method, reported=((method, ""),))
                                    for method in "AB"),
              columns=(Column(evaluator="noise 1", title="noise 1", reported=("accuracy",), points=(("noise", 1 / 3),)),
                       MEAN, Column(evaluator="noise 0", title="size", value="size", factor=2)),
              compare_rows=((("A", "plain"), ("B", "plain")),), reported_points=True, sources=(9,),
              reported_models={"cifar10": ("net",)}, special_columns={"other": (MEAN,)})


def test_a_table_shows_means_values_and_points(tmp_path):
    for method, shift in (("A", 0.1), ("B", 0.0)):
        with_values(made(tmp_path, method, shift), [{"size": 4.0}])
    made(tmp_path, "A", seed=9, shift=-0.3)                                # a source: no row counts it
    listed = [curve_point("noise", "0.33333", "55.5"), curve_point("noise", "0.66667", "44.4"),
              curve_point("blur", "0.33333", "33.3")]
    main, compared, reported = build(TABLE, read_runs(tmp_path), listed, "cifar10", "short").grids
    row = dict(zip(main.header, main.rows[0], strict=True))
    assert row["seeds"] == "1" and row["noise 1 (n=200)"].endswith("/ 55.5 (r1)") and row["size (n=200)"] == "8.00"
    assert row["noise, mean (n=200)"].startswith("70.00 [")
    assert any(note.startswith("noise, mean: mean of the accuracies under noise 0, noise 1, noise 2,")
               for note in main.notes)
    assert "size: no accuracy, but size of noise 0, times 2." in main.notes
    assert [row[:2] for row in compared.rows] == [("A − B", "noise 1"), ("A − B", "noise, mean")]
    assert compared.rows[1][4].startswith("+10.00 [") and compared.rows[1][5:] == ("—", "—", "—")
    assert dict(zip(reported.header, reported.rows[0], strict=True))["noise"] == "0.33333: 55.5; 0.66667: 44.4"


def test_a_data_set_may_have_columns_of_its_own(tmp_path):
    made(tmp_path, "A", dataset="other")
    values = build(TABLE, read_runs(tmp_path), [], "other", "short").values
    assert [(one["evaluator"], one["mean"]) for one in values] == [("noise, mean", "0.600000")]


def test_a_point_is_of_its_norm_and_its_eps():
    point = curve_point("noise", "0.16667", "1")
    assert at(point, ("noise", 1 / 6)) and not at(point, ("blur", 1 / 6)) and not at(point, ("noise", 0.1667))
    assert not at(point, ("noise", None)) and at(curve_point("size", "", "1"), ("size", None))
    assert not at(curve_point("size", "", "1"), ("size", 0.0)) and at(curve_point("noise", "0.0", "1"), ("noise", 0.0))
    column = Column(evaluator="clean", title="clean", reported=("accuracy",), points=(("noise", 0.0), ("blur", 0.0)))
    assert best([curve_point("noise", "0.1", "1"), curve_point("blur", "0.0", "2")], column, TABLE).value == "2"


# -- what may differ between seeds, or stand in two plans -------------------------------------------------------------

def test_training_images_may_be_drawn_by_the_seed(tmp_path):
    for seed in (1, 2):
        made(tmp_path, seed=seed, data=DATA | {"train_fingerprint": str(seed) * 64})
    with pytest.raises(ValueError, match="two protocols"):
        group(read_runs(tmp_path), "A", "plain")
    assert len(group(read_runs(tmp_path), "A", "plain", ("train_fingerprint",))) == 2
    made(tmp_path, seed=3, data=DATA | {"train_fingerprint": "3" * 64, "n_train": 7})
    with pytest.raises(ValueError, match="two protocols"):
        group(read_runs(tmp_path), "A", "plain", ("train_fingerprint",))


def test_of_two_plans_the_one_that_the_table_names_first_counts(tmp_path):
    for plan in ("paper-9", "small-9", "other"):
        folder = fabricate(tmp_path / plan, method="A", accuracies={"clean": 0.9}, plan=plan)
    for path in tmp_path.glob("*/*/*/*/*-*.*"):
        (folder / path.name).write_bytes(path.read_bytes())
    run = read_run(folder)

    def judged(*plans):
        return result_of(run, "clean", plans)[0].plan

    assert judged("paper-*", "*") == judged("p*") == "paper-9" and judged("small-*", "paper-*") == "small-9"
    assert judged("small-9") == "small-9" and result_of(run, "clean", ("none", "none-*")) is None
    for plans in ((), ("*",), ("paper-9", "other"), ("new-*", "*")):
        with pytest.raises(ValueError, match="two plans judge clean"):
            judged(*plans)
