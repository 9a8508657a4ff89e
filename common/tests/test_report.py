"""Tables: ours beside reported numbers, one protocol per cell, the same bytes twice."""

import csv
import dataclasses
import io
import json

import pytest

from common import reported
from common.environment import ROOT
from common.errors import UserError
from common.records import read_runs
from common.render import Grid, comma_separated, latex, markdown
from common.report import build, group
from common.runs import Column, Row, Table
from common.tests.fabricate import DATA, fabricate

TABLE = Table(
    title="A paper", reported_paper="Paper", reported_models={"cifar10": ("ResNet-18",)},
    reported_datasets={"cifar10": "CIFAR-10"}, budget_notes={"short": "Not the paper's protocol."},
    rows=(Row(method="PGD-AT", variant="plain", label="PGD-AT", reported=(("PGD-AT", "*"),)),
          Row(method="PGD-AT", variant="adarat", label="PGD-AT + AdaRAT", reported=(("PGD-AT", "adarat"),)),
          Row(method="ST", variant="plain", label="ST")),
    columns=(Column(evaluator="clean", title="clean", reported=("clean",)),
             Column(evaluator="pgd-20", title="PGD-20", reported=("PGD-20",)),
             Column(evaluator="aa", title="AA", reported=("AA",))),
    compare=(("adarat", "plain"),))
HEADER = "source_class,paper,table,dataset,model,method,variant,norm,eps,metric,value,checkpoint,source\n"
LISTED = HEADER + """\
E,other,T1,CIFAR-10,ResNet-18,PGD-AT,,Linf,8/255,clean,84.7,last,a.org
A,other,T2,CIFAR-10,ResNet-18,PGD-AT,,Linf,8/255,clean,82.0,best,b.org
D,Paper,F1,CIFAR-10,ResNet-18,PGD-AT,base,Linf,8/255,clean,83.1,last (epoch 120),c.org
A,other,T2,CIFAR-10,ResNet-18,PGD-AT,,Linf,8/255,AA,47.6,best,b.org
E,other,T1,CIFAR-10,ResNet-18,PGD-AT,,Linf,8/255,AA,41.2,last,a.org
A,other,T2,CIFAR-10,WRN-34-10,PGD-AT,,Linf,8/255,AA,99.1,last,b.org
A,other,T2,CIFAR-100,ResNet-18,PGD-AT,,Linf,8/255,AA,99.2,last,b.org
A,other,T2,CIFAR-10,ResNet-18,PGD-AT,,Linf,4/255,AA,99.3,last,b.org
A,other,T2,CIFAR-10,ResNet-18,TRADES,,Linf,8/255,AA,99.4,last,b.org
"""


def listed(tmp_path, text=LISTED):
    path = tmp_path / "reported.csv"
    path.write_text(text)
    return reported.read(path)


def report(results, known=(), budget="short"):
    return build(TABLE, read_runs(results), known, "cifar10", budget)


def cells(built, label):
    """Column title -> text of one row of the main table."""
    grid = built.grids[0]
    row, = (row for row in grid.rows if row[0] == label)
    return dict(zip(grid.header, row, strict=True))


def test_one_seed_has_wilsons_interval_and_several_a_standard_deviation(tmp_path):
    fabricate(tmp_path, variant="plain", accuracies={"clean": 0.8, "pgd-20": 0.485})
    for seed, accuracy in ((1, 0.5), (2, 0.52), (3, 0.54)):
        fabricate(tmp_path, variant="adarat", seed=seed, accuracies={"clean": 0.8, "pgd-20": accuracy})
    built = report(tmp_path)
    plain, adarat = cells(built, "PGD-AT"), cells(built, "PGD-AT + AdaRAT")
    assert plain["PGD-20 (n=200)"] == "48.50 [41.7, 55.4]"          # scipy: 0.41668, 0.55388
    assert (plain["seeds"], plain["epochs"], plain["weights"], plain["AA"]) == ("1", "10", "last", "—")
    assert adarat["PGD-20 (n=200)"] == "52.00 ± 2.00" and adarat["seeds"] == "1, 2, 3"
    assert "ST" not in [row[0] for row in built.grids[0].rows]      # neither run nor reported


def test_reported_numbers_stand_beside_ours_with_their_source(tmp_path):
    fabricate(tmp_path, accuracies={"clean": 0.8, "aa": 0.4})
    built = report(tmp_path, listed(tmp_path))
    row = cells(built, "PGD-AT")
    assert row["clean (n=200)"].endswith(" / 83.1 (r1)")            # the paper's own before others' last weights
    assert row["AA (n=200)"].endswith(" / 41.2 (r2)")               # last weights before class A of the best ones
    assert row["PGD-20"] == "—"
    text = markdown(built.grids)
    assert "r1: reported by Paper, F1: clean" in text and "class D (read off a figure): c.org" in text
    assert "compare our rows with each other" in text and "Not the paper's protocol." in text
    assert not any(f"99.{k}" in text for k in (1, 2, 3, 4))          # other network, data set, eps, method
    assert {"84.7", "82.0", "47.6"} <= {cell for row in built.grids[-1].rows for cell in row}


def test_reported_alone_fills_a_cell(tmp_path):
    fabricate(tmp_path, variant="adarat", accuracies={"clean": 0.8})
    assert cells(report(tmp_path, listed(tmp_path)), "PGD-AT")["AA"] == "— / 41.2 (r2)"


@pytest.mark.parametrize("change", [
    {"config": {"lr": 0.2}}, {"data": DATA | {"test_fingerprint": "x" * 64}}, {"n": 100},
    {"data": DATA | {"train_fingerprint": "x" * 64}}])
def test_two_protocols_never_share_a_cell(tmp_path, change):
    first = fabricate(tmp_path, seed=1, accuracies={"clean": 0.8})
    second = fabricate(tmp_path, seed=2, accuracies={"clean": 0.8}, **change)
    with pytest.raises(ValueError, match="two protocols") as caught:
        report(tmp_path)
    assert str(first) in str(caught.value) and str(second) in str(caught.value)


def test_what_a_rule_derives_for_each_seed_may_differ_but_not_the_rule(tmp_path):
    runs = [fabricate(tmp_path, seed=seed, config={"limits_from": f"base_s{seed}", "up_lim": 1.0 + seed, "lr": 0.1})
            for seed in (1, 2)]
    records = read_runs(tmp_path)
    assert len(group(records, "PGD-AT", "plain", ("up_lim",))) == len(runs)
    with pytest.raises(ValueError, match="two protocols"):
        group(records, "PGD-AT", "plain")
    fabricate(tmp_path, seed=3, config={"up_lim": 1.0, "lr": 0.1})
    with pytest.raises(ValueError, match="two protocols"):
        group(read_runs(tmp_path), "PGD-AT", "plain", ("up_lim",))


@pytest.mark.parametrize("change", [{"settings": {"steps": 9}}, {"eps": 0.5}, {"norm": "l2"}, {"kind": "other"}])
def test_two_attacks_never_share_a_cell(tmp_path, change):
    fabricate(tmp_path, seed=1, accuracies={"pgd-20": 0.5})
    path = fabricate(tmp_path, seed=2, accuracies={"pgd-20": 0.5}) / "eval-adarat.json"
    record = json.loads(path.read_text())
    record["results"][0] |= change
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match="two protocols"):
        report(tmp_path)


def test_names_that_hold_the_seed_are_no_other_protocol(tmp_path):
    for seed in (1, 2):
        fabricate(tmp_path, seed=seed, accuracies={"clean": 0.8}, config={"teacher": f"st_short_s{seed}"})
    assert cells(report(tmp_path), "PGD-AT")["seeds"] == "1, 2"


def test_two_plans_with_one_evaluator_are_refused_unless_the_table_says_which(tmp_path):
    folder = fabricate(tmp_path, accuracies={"clean": 0.8})
    record = json.loads((folder / "eval-adarat.json").read_text())
    (folder / "eval-other.json").write_text(json.dumps(record | {"plan": "other"}))
    with pytest.raises(ValueError, match="two plans judge clean"):
        report(tmp_path)
    built = build(dataclasses.replace(TABLE, plans=("adarat",)), read_runs(tmp_path), (), "cifar10", "short")
    assert cells(built, "PGD-AT")["clean (n=200)"].startswith("80.00")


def test_budgets_are_kept_apart_and_named(tmp_path):
    fabricate(tmp_path, budget="short", accuracies={"clean": 0.8})
    fabricate(tmp_path, budget="gpu", accuracies={"clean": 0.9}, config={"epochs": 30})
    assert cells(report(tmp_path), "PGD-AT")["clean (n=200)"].startswith("80.00")
    built = report(tmp_path, budget="gpu")
    assert cells(built, "PGD-AT")["clean (n=200)"].startswith("90.00") and "budget gpu" in built.grids[0].title


def test_an_evaluation_of_other_weights_is_left_out_and_named(tmp_path):
    folder = fabricate(tmp_path, accuracies={"clean": 0.8}, judged="f" * 64)
    built = report(tmp_path)
    assert cells(built, "PGD-AT")["clean"] == "—"
    assert any("Left out" in note and f"{folder.name}/eval-adarat.json" in note for note in built.grids[0].notes)


def test_an_unfinished_run_enters_no_table(tmp_path):
    (fabricate(tmp_path, accuracies={"clean": 0.8}) / "train.json").unlink()
    assert report(tmp_path).grids == ()


def test_differences_are_counted_image_by_image(tmp_path):
    fabricate(tmp_path, variant="plain", accuracies={"clean": 0.8, "pgd-20": 0.45})
    fabricate(tmp_path, variant="adarat", accuracies={"clean": 0.8, "pgd-20": 0.65})
    runs = {run.run["variant"]: run.evals["adarat"].arrays["pgd-20"] for run in read_runs(tmp_path)}
    gained = int((runs["adarat"] & ~runs["plain"]).sum())
    lost = int((runs["plain"] & ~runs["adarat"]).sum())
    row = report(tmp_path).grids[1].rows[1]
    assert row[:4] == ("PGD-AT + AdaRAT − PGD-AT", "PGD-20", "200", "1")
    assert row[4].startswith("+20.00 [+") and row[5:7] == (str(gained), str(lost)) and float(row[7]) < 0.001


def test_differences_pair_the_seeds(tmp_path):
    for seed in (1, 2):
        fabricate(tmp_path, variant="plain", seed=seed, accuracies={"clean": 0.6 + 0.1 * seed})
    for seed in (2, 3):
        fabricate(tmp_path, variant="adarat", seed=seed, accuracies={"clean": 0.9})
    row, = report(tmp_path).grids[1].rows
    assert row[3] == "2" and row[4].startswith("+10.00 [")


def test_differences_of_other_protocols_are_refused(tmp_path):
    fabricate(tmp_path, variant="plain", accuracies={"clean": 0.8}, n=100)
    fabricate(tmp_path, variant="adarat", accuracies={"clean": 0.8}, n=200)
    with pytest.raises(ValueError, match="one comparison, two protocols"):
        report(tmp_path)


def test_notes_say_data_quirks_and_records(tmp_path):
    folder = fabricate(tmp_path, accuracies={"clean": 0.8})
    text = "\n".join(report(tmp_path).grids[0].notes)
    for part in ("5000 images to train (sha256 aaaaaaaaaaaa)", "momentum-reset", "torch 2.11.0, cpu, bf16, 2 threads",
                 folder.name):
        assert part in text


def test_csv_has_a_line_per_row_and_evaluator_that_was_measured_with_counts(tmp_path):
    fabricate(tmp_path, accuracies={"clean": 0.8, "pgd-20": 0.5})
    lines = list(csv.DictReader(io.StringIO(comma_separated(report(tmp_path, listed(tmp_path)).values))))
    assert all(line["mean"] or line["reported_percent"] for line in lines)       # what nobody measured has no line
    pgd = lines[1]
    assert (pgd["evaluator"], pgd["robust"], pgd["n"], pgd["mean"]) == ("pgd-20", "100", "200", "0.500000")
    assert lines[0]["reported_percent"] == "83.1" and lines[0]["reported_class"] == "D"


def test_the_same_records_give_the_same_bytes(tmp_path):
    fabricate(tmp_path, accuracies={"clean": 0.8})
    first, second = (report(tmp_path, listed(tmp_path)) for _ in range(2))
    for write in (markdown, latex):
        assert write(first.grids) == write(second.grids)
    assert comma_separated(first.values) == comma_separated(second.values)


def test_rendering_escapes():
    grid = Grid("t", ("a", "b_c"), (("1|2", "50% ± 1 & —"),), ("note",))
    assert "| 1\\|2 | 50% ± 1 & — |" in markdown([grid])
    assert r"a & b\_c \\" in latex([grid]) and r"1|2 & 50\% $\pm$ 1 \& --- \\" in latex([grid])
    with pytest.raises(ValueError, match="as long as the header"):
        Grid("t", ("a",), (("1", "2"),))


@pytest.mark.parametrize("line", ["A,p,t,d\n", "Z,p,t,d,m,x,,Linf,8/255,AA,1,last,s\n",
                                  "A,p,t,d,m,x,,Linf,8/255,AA,1,last,\n", "A,p,t,d,m,x,,Linf,8/255,AA,1,last,s,more\n"])
def test_a_reported_row_without_class_or_source_is_refused(tmp_path, line):
    with pytest.raises(UserError, match="line 2"):
        listed(tmp_path, HEADER + line)


def test_the_list_of_this_repository_has_all_that_is_public_of_adarat():
    rows = reported.read(ROOT / "results" / "reported" / "adarat.csv")
    own = {(row.source_class, row.metric.split(" (")[0], row.value) for row in rows if row.paper == "AdaRAT"}
    assert own == {("A", "max clean over epochs", "83.33"), ("A", "max robust acc over epochs", "52.06"),
                   ("D", "clean", "83.1"), ("D", "robust acc", "47.5"), ("D", "clean", "94.6")}
    assert {(row.norm, row.eps) for row in rows if row.paper != "AdaRAT"} == {("Linf", "8/255")}


def test_no_list_of_reported_numbers_is_no_error(tmp_path):
    assert reported.read(tmp_path / "none.csv") == []
