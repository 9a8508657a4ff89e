"""What tables make of two accuracies, and rows about other weights of the same runs."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.cells import combination, together
from common.records import read_runs
from common.render import markdown
from common.report import build
from common.reported import Reported
from common.runs import Column, Row, Table
from common.stats import FORMULAS, Paired, combined, mean, newcombe, nrr, wilson
from common.tests.fabricate import fabricate

COLUMNS = (Column(evaluator="clean", title="clean", reported=("clean",)), Column(evaluator="aa", title="AA"),
           Column(evaluator="clean", beside="aa", formula="mean", title="mean"),
           Column(evaluator="clean", beside="aa", formula="NRR", title="NRR", reported=("NRR",)))
TABLE = Table(title="T", columns=COLUMNS, compare=(("rpat", "plain"),), rows=tuple(
    Row(method="A", variant=variant, label=f"A {variant}{suffix}", suffix=suffix,
        reported=() if suffix else (("A", variant),))
    for suffix in ("", " last") for variant in ("plain", "rpat")))
counts = st.tuples(*[st.integers(0, 60)] * 4).filter(lambda four: sum(four) > 0).map(lambda four: Paired(*four))


def report(results, known=(), **changes):
    table = Table(**{key: getattr(TABLE, key) for key in Table.__dataclass_fields__} | changes)
    built = build(table, read_runs(results), known, "cifar10", "short")
    return built, {row[0]: dict(zip(built.grids[0].header, row, strict=True)) for row in built.grids[0].rows}


# -- intervals -------------------------------------------------------------------------------------------------------

@given(counts, st.sampled_from(sorted(FORMULAS)))
def test_the_interval_holds_the_value_and_lies_between_the_limits(table, formula):
    low, high = combined(table, formula)
    value = FORMULAS[formula](*table.accuracies)
    assert 0 <= low <= value <= high <= 1
    (low_a, high_a), (low_b, high_b) = (wilson(round(one * table.n), table.n) for one in table.accuracies)
    # Never wider than if both fell to their limits at once, however they hang together.
    apart = [abs(FORMULAS[formula](*ends) - value) for ends in (
        (low_a, table.accuracies[1]), (table.accuracies[0], low_b), (high_a, table.accuracies[1]),
        (table.accuracies[0], high_b))]
    assert value - low <= apart[0] + apart[1] + 1e-12 and high - value <= apart[2] + apart[3] + 1e-12


@given(counts.filter(lambda table: table.both * table.neither >= table.only_a * table.only_b))
def test_the_interval_of_a_mean_is_newcombes(table):
    # (a + b)/2 = (a - (1 - b))/2 + 1/2; turned round, such flags go against each other, which Newcombe leaves as it is.
    turned = Paired(both=table.only_a, only_a=table.both, only_b=table.neither, neither=table.only_b)
    assert combined(table, "mean") == pytest.approx(tuple((end + 1) / 2 for end in newcombe(turned)))


def test_flags_that_hang_together_leave_a_wider_interval():
    together_, apart = Paired(50, 0, 0, 50), Paired(25, 25, 25, 25)
    for formula in FORMULAS:
        wide, narrow = combined(together_, formula), combined(apart, formula)
        assert wide[0] < narrow[0] and wide[1] > narrow[1]
    assert combined(together_, "mean") == pytest.approx(wilson(50, 100))       # the same flags twice


@pytest.mark.parametrize(("correlated", "formula"), [(0.2, "mean"), (0.8, "NRR"), (0.0, "NRR")])
def test_the_interval_covers_the_truth(correlated, formula):
    generator, n, a, b = np.random.default_rng(3), 200, 0.7, 0.4
    hits = []
    for _ in range(400):
        shared = generator.random(n) < correlated
        common = generator.random(n)
        first = np.where(shared, common, generator.random(n)) < a
        second = np.where(shared, common, generator.random(n)) < b
        low, high = combined(Paired(int((first & second).sum()), int((first & ~second).sum()),
                                    int((~first & second).sum()), int((~first & ~second).sum())), formula)
        hits.append(low <= FORMULAS[formula](a, b) <= high)
    assert 0.92 <= np.mean(hits) <= 0.99


def test_formulas_are_what_their_names_say():
    assert mean(0.8, 0.5) == pytest.approx(0.65) and nrr(0.8, 0.5) == pytest.approx(0.8 / 1.3)
    assert dict(FORMULAS) == {"mean": mean, "NRR": nrr}


# -- in a table ------------------------------------------------------------------------------------------------------

def shorten(folder, evaluator, n):
    """Let one evaluator have judged the first n images only."""
    from common.files import sha256_of, write_json
    path = next(folder.glob("eval-*.json"))
    record = json.loads(path.read_text())
    with np.load(folder / record["flags"]) as stored:
        flags = dict(stored)
    flags[evaluator] = flags[evaluator][:n]
    np.savez(folder / record["flags"], **flags)
    record["flags_sha256"] = sha256_of(folder / record["flags"])
    for result in record["results"]:
        if result["name"] == evaluator:
            result |= {"n": n, "robust": int(flags[evaluator].sum()), "survivors": {}}
    write_json(path, record)
    return flags


def test_both_are_counted_on_the_images_that_both_were_run_on(tmp_path):
    flags = shorten(fabricate(tmp_path, method="A", accuracies={"clean": 0.8, "aa": 0.4}), "aa", 50)
    run, = read_runs(tmp_path)
    (seed, table, files), = together([run], "clean", "aa")
    assert (seed, table.n, len(files)) == (1, 50, 1)
    assert table.accuracies == (flags["clean"][:50].mean(), flags["aa"].mean())
    found = combination([run], "clean", "aa", "NRR")
    assert found.accuracies == [nrr(*table.accuracies)] and found.interval == combined(table, "NRR")
    _, main = report(tmp_path)
    low, high = found.interval
    assert main["A plain"]["NRR (n=50)"] == f"{100 * found.accuracies[0]:.2f} [{100 * low:.1f}, {100 * high:.1f}]"
    assert main["A plain"]["clean (n=200)"].startswith("80.00") and "mean (n=50)" in main["A plain"]


def test_over_seeds_the_value_of_each_seed_is_taken_first(tmp_path):
    for seed, (clean, robust) in enumerate(((0.8, 0.4), (0.6, 0.5)), start=1):
        fabricate(tmp_path, method="A", seed=seed, accuracies={"clean": clean, "aa": robust})
    built, main = report(tmp_path)
    values = [100 * nrr(0.8, 0.4), 100 * nrr(0.6, 0.5)]
    assert main["A plain"]["NRR (n=200)"] == f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}"
    row = next(row for row in built.values if row["evaluator"] == "NRR" and row["variant"] == "plain")
    assert float(row["mean"]) == pytest.approx(np.mean(values) / 100, abs=1e-6) and row["robust"] is None
    assert row["seeds"] == "1 2" and row["n"] == 200 and row["wilson_low"] is None
    assert "NRR: of clean and aa on the same images: 2ab/(a+b)" in markdown(built.grids)


def test_a_number_reported_for_it_stands_beside(tmp_path):
    fabricate(tmp_path, method="A", accuracies={"clean": 0.8, "aa": 0.4})
    known = [Reported("A", "P", "T1", "CIFAR-10", "net", "A", "plain", "Linf", eps, "NRR", value, "best", "a.org")
             for eps, value in (("8/255", "59.8"), ("128/255", "70.1"))]
    about = {"reported_models": {"cifar10": ("net",)}, "reported_datasets": {"cifar10": "CIFAR-10"}}
    _, main = report(tmp_path, known, **about)
    assert main["A plain"]["NRR (n=200)"].endswith("/ 59.8 (r1)")
    _, main = report(tmp_path, known, reported_sizes={"cifar10": "128/255"}, **about)
    assert main["A plain"]["NRR (n=200)"].endswith("/ 70.1 (r1)")


def test_one_accuracy_alone_makes_nothing(tmp_path):
    fabricate(tmp_path, method="A", accuracies={"clean": 0.8})
    built, main = report(tmp_path)
    assert main["A plain"]["NRR"] == main["A plain"]["mean"] == "—" and "2ab" not in markdown(built.grids)


@pytest.mark.parametrize("change", [{"weights_sha256": "9" * 64}, {"data": {"name": "c", "test_fingerprint": "x"}}])
def test_accuracies_of_other_weights_or_images_make_nothing_together(tmp_path, change):
    folder = fabricate(tmp_path, method="A", accuracies={"clean": 0.8}, plan="one")
    train = json.loads((folder / "train.json").read_text())
    train["weights"] |= {"other": {"file": "o.pt", "sha256": "9" * 64}}
    record = json.loads((folder / "eval-one.json").read_text())
    for path in (folder / "train.json", folder / "eval-one.json"):
        path.unlink()
    flags = np.load(folder / "flags-one.npz")
    np.savez(folder / "flags-two.npz", index=flags["index"], aa=flags["clean"])
    from common.files import sha256_of, write_json
    write_json(folder / "train.json", train)
    write_json(folder / "eval-one.json", record)
    other = {**record, "plan": "two", "flags": "flags-two.npz", "flags_sha256": sha256_of(folder / "flags-two.npz"),
             "results": [{**record["results"][0], "name": "aa"}]}
    write_json(folder / "eval-two.json", other)
    assert together(read_runs(tmp_path), "clean", "aa")[0][1].only_a == 0
    write_json(folder / "eval-two.json", {**other, **change,
                                          **({"checkpoint": "other"} if "weights_sha256" in change else {})})
    with pytest.raises(ValueError, match="other weights or images"):
        together(read_runs(tmp_path), "clean", "aa")


def test_rows_of_other_weights_take_the_evaluators_that_end_so(tmp_path):
    for variant, gain in (("plain", 0.0), ("rpat", 0.1)):
        fabricate(tmp_path, method="A", variant=variant, accuracies={
            "clean": 0.6 + gain, "aa": 0.3 + gain, "clean last": 0.7 + gain, "aa last": 0.2 + gain})
    built, main = report(tmp_path)
    assert list(main) == ["A plain", "A rpat", "A plain last", "A rpat last"]
    assert [main[name]["AA (n=200)"][:5] for name in main] == ["30.00", "40.00", "20.00", "30.00"]
    assert main["A plain last"]["weights"] == "last" and main["A plain last"]["mean (n=200)"].startswith("45.00")
    assert [row[:2] for row in built.grids[1].rows] == [
        (f"A rpat{suffix} − A plain{suffix}", title) for suffix in ("", " last") for title in ("clean", "AA")]
    names = [row["evaluator"] for row in built.values if row["variant"] == "plain"]
    assert names == ["clean", "aa", "mean", "NRR", "clean last", "aa last", "mean last", "NRR last"]
    assert TABLE.labels() == {("A", "plain"): "A plain", ("A", "rpat"): "A rpat"}


def test_a_row_of_other_weights_that_none_has_is_left_out(tmp_path):
    fabricate(tmp_path, method="A", accuracies={"clean": 0.6})
    assert list(report(tmp_path)[1]) == ["A plain"]


def test_alarms_of_a_training_are_noted_under_its_table(tmp_path):
    folder = fabricate(tmp_path, method="A", accuracies={"clean": 0.8})
    assert "Alarms" not in markdown(report(tmp_path)[0].grids)                 # a record from before there were any
    path = folder / "train.json"
    alarm = {"kind": "robust-overfitting", "state": "begins", "epoch": 7, "text": "robust overfitting in epoch 7: ..."}
    path.write_text(json.dumps({**json.loads(path.read_text()), "alarms": [alarm]}))
    assert f"Alarms while {folder.name} trained: robust overfitting from epoch 7 on." in markdown(
        report(tmp_path)[0].grids)
