"""The leaderboard: who stands in one group, what is marked, the front, and what the records say of effort."""

import importlib
import json
from dataclasses import replace

import pytest
from matplotlib.image import imread

from common import leaderboard_plot
from common.environment import ROOT
from common.errors import UserError
from common.leaderboard import Paper, Threat, build, front, network
from common.leaderboard_plot import arranged, limits, stairs
from common.leaderboard_table import HEADER, absent, cells, grids, rows
from common.records import read_run, read_runs, write_eval
from common.render import comma_separated, markdown
from common.runs import Effort, Row, Table
from common.stats import wilson
from common.tests.fabricate import DATA, MADE, fabricate

AA = "autoattack-8"


def table(*methods):
    return Table(title="T", columns=(), rows=tuple(Row(method=one, variant="plain", label=f"{one}!")
                                                   for one in methods))


def effort(run):
    return Effort(passes={"A": 8.0, "B": 10.0}.get(run.run["method"], 1.0),
                  after=("c_short_s1",) if run.run["method"] == "B" else ())


ONE, TWO = Paper("one", table("A", "B", "C"), effort), Paper("two", table("A"))


def made(results, paper="one", method="A", clean=0.8, attacked=0.4, **changes):
    return fabricate(results, **{"paper": paper, "method": method, "accuracies": {"clean": clean, AA: attacked},
                                 "n": 200} | changes)


def board(results, papers=(ONE, TWO), threat=None):
    return build(papers, read_runs(results), *([threat] if threat else []))


def test_equal_shapes_stand_in_one_group_best_attacked_first(tmp_path):
    made(tmp_path, "one", "A", 0.8, 0.40)
    made(tmp_path, "one", "C", 0.7, 0.45)
    made(tmp_path, "two", "A", 0.6, 0.35)
    group, = board(tmp_path).groups
    assert [(entry.paper, entry.label) for entry in group.entries] == [("one", "C!"), ("one", "A!"), ("two", "A!")]
    assert group.front == {group.entries[0].key, group.entries[1].key}
    assert [entry.point for entry in group.entries] == [(0.7, 0.45), (0.8, 0.4), (0.6, 0.35)]
    low, high = wilson(80, 200)
    assert group.entries[1].image_interval(group.entries[1].attacked) == (low, high)
    assert group.shape.title == ("cifar10, budget short: resnet18, 701,466 parameters, 5,000 training images, "
                                 "10 epochs")


@pytest.mark.parametrize("changes", [
    {"data": DATA | {"n_train": 4000}}, {"data": DATA | {"test_fingerprint": "0" * 64}}, {"n": 100},
    {"data": DATA | {"extra": {"n": 9, "source": "s", "fingerprint": "e" * 64}}}, {"budget": "gpu"},
    {"data": DATA | {"name": "cifar100"}}])
def test_another_shape_is_another_group(tmp_path, changes):
    made(tmp_path, "one")
    made(tmp_path, "two", **changes)
    assert [len(group.entries) for group in board(tmp_path).groups] == [1, 1]
    for group in board(tmp_path).groups:                                       # one alone is no front
        assert not group.front and stairs(group) == []


def changed(folder, name, key, value):
    path = folder / name
    record = json.loads(path.read_text())
    record[key] = value
    path.write_text(json.dumps(record))


@pytest.mark.parametrize(("name", "key", "value"), [
    ("train.json", "epochs", 11), ("run.json", "model", {"name": "resnet18", "parameters": 7}),
    ("run.json", "model", {"name": "preactresnet18", "parameters": 701466})])
def test_other_epochs_and_networks_are_another_group(tmp_path, name, key, value):
    made(tmp_path, "one")
    changed(made(tmp_path, "two"), name, key, value)
    assert len(board(tmp_path).groups) == 2


def test_what_differs_inside_a_group_is_marked(tmp_path):
    made(tmp_path, "one")
    other = made(tmp_path, "two", data=DATA | {"train_fingerprint": "9" * 64}, seed=2)
    changed(other, "train.json", "environment", MADE | {"commit": "d" * 40})
    first, second = board(tmp_path).groups[0].entries
    assert {first.marks, second.marks} == {
        ("training images sha256 aaaaaaaa", "seeds 1", "commit cccccccc"),
        ("training images sha256 99999999", "seeds 2", "commit dddddddd")}


def test_what_had_to_be_trained_before_counts(tmp_path):
    made(tmp_path, "one", "C")
    made(tmp_path, "one", "B")
    found = {entry.label: entry for group in board(tmp_path).groups for entry in group.entries}
    b, c = found["B!"], found["C!"]
    assert (b.passes, b.passes_in_all) == (10.0, 10 * 10.0 + 10 * 1.0) and b.after == ("c_short_s1",)
    assert (b.seconds, b.seconds_in_all) == (600.0, 1200.0) and (c.seconds_in_all, c.passes_in_all) == (600.0, 10.0)
    assert "trained after c_short_s1" in b.marks and not c.after
    changed(tmp_path / "one/cifar10/c_short_s1", "run.json", "data", DATA | {"n_train": 2500})
    b = next(e for group in board(tmp_path).groups for e in group.entries if e.label == "B!")
    assert b.passes_in_all == 100.0 + 5.0                           # half as many images


def test_a_paper_that_does_not_count_has_a_dash(tmp_path):
    made(tmp_path, "two")
    group, = board(tmp_path).groups
    entry, = group.entries
    assert entry.passes is None and entry.passes_in_all is None
    assert dict(zip(HEADER, cells(entry, group, 1), strict=True))["passes per image in all"] == "—"


def test_seeds_are_one_row_and_two_protocols_are_an_error(tmp_path):
    for seed, clean in ((1, 0.78), (2, 0.82)):
        made(tmp_path, seed=seed, clean=clean)
    entry, = board(tmp_path).groups[0].entries
    assert entry.point[0] == pytest.approx(0.8) and len(entry.runs) == 2
    text = cells(entry, board(tmp_path).groups[0], 1)
    assert text[4].startswith("80.00 ± 2.83 [7") and text[3] == "1, 2"
    made(tmp_path, seed=3, config={"tao": 0.5})
    with pytest.raises(UserError, match="leaderboard: one cell, two protocols"):
        board(tmp_path)


def test_what_takes_no_part_is_listed_with_the_reason(tmp_path):
    made(tmp_path, "one", "A")
    made(tmp_path, "one", "B", accuracies=None)
    made(tmp_path, "one", "C", accuracies={"clean": 0.8})
    made(tmp_path, "two", "A", judged="0" * 64)
    assert [(path.rsplit("/", 1)[1], why) for path, why in board(tmp_path).left] == [
        ("b_short_s1", "not evaluated"), ("c_short_s1", "no AutoAttack at L-inf 8/255 with clean accuracy beside it"),
        ("a_short_s1", "evaluated with other weights than train.json names")]
    other = board(tmp_path, threat=Threat(eps=4 / 255))
    assert not other.groups and other.left[0][1].endswith("at L-inf 4/255 with clean accuracy beside it, only at "
                                                          "L-inf 8/255")
    assert board(tmp_path, threat=Threat("l2", 0.5)).groups == () and str(Threat("l2", 128 / 255)) == "L2 128/255"


def test_other_weights_of_a_run_are_another_row_and_the_largest_evaluation_counts(tmp_path):
    folder = made(tmp_path, n=200)
    record = read_run(folder).evals["adarat"]
    changed(folder, "train.json", "weights", {"last": {"file": "last.pt", "sha256": "d" * 64},
                                              "best": {"file": "best.pt", "sha256": "f" * 64}})
    changed(folder, "train.json", "selected_on", "held-out images")
    flags = {name: record.arrays[name] for name in record.results}
    write_eval(folder, record.record | {"plan": "best-plan", "checkpoint": "best", "weights_sha256": "f" * 64}, flags,
               record.arrays["index"])
    few = {name: flag[:50] for name, flag in flags.items()}
    counts = [one | {"n": 50, "robust": int(few[one["name"]].sum()), "survivors": {}}
              for one in record.record["results"]]
    write_eval(folder, record.record | {"plan": "few", "results": counts}, few, record.arrays["index"][:50])
    group, = board(tmp_path).groups
    assert {(entry.label, entry.weights, entry.clean.n) for entry in group.entries} == {
        ("A!, last weights", "last", 200), ("A!, best weights", "best by held-out images", 200)}
    assert len({entry.key for entry in group.entries}) == 2


def test_the_papers_own_weights_are_the_row_and_clean_is_told_on_the_attacked_images_too(tmp_path):
    folder = made(tmp_path, accuracies={"clean": 0.8, AA: 0.4})
    record = read_run(folder).evals["adarat"]
    changed(folder, "train.json", "weights", {"last": {"file": "last.pt", "sha256": "d" * 64},
                                              "best": {"file": "best.pt", "sha256": "f" * 64}})
    flags = {"clean last": record.arrays["clean"], AA: record.arrays[AA]}
    other = [one | {"name": "clean last" if one["name"] == "clean" else AA} for one in record.record["results"]]
    write_eval(folder, record.record | {"plan": "other", "checkpoint": "best", "weights_sha256": "f" * 64,
                                        "results": other}, flags, record.arrays["index"])
    entry, = board(tmp_path).groups[0].entries
    assert (entry.label, entry.weights, entry.clean_there) == ("A!", "last", (0.8,))
    few = {"clean": record.arrays["clean"], AA: record.arrays[AA][:50]}
    results = [one | ({"n": 50, "robust": int(few[AA].sum()), "survivors": {}} if one["name"] == AA else {})
               for one in record.record["results"]]
    write_eval(folder, record.record | {"results": results}, few, record.arrays["index"])
    entry, = board(tmp_path).groups[0].entries
    assert entry.clean_there == (record.arrays["clean"][:50].mean(),) and entry.attacked.n == 50


def test_a_seed_that_was_judged_otherwise_is_not_lost_silently(tmp_path):
    made(tmp_path, seed=1)
    made(tmp_path, seed=2, n=100, plan="smaller")
    found = board(tmp_path)
    assert [len(entry.runs) for group in found.groups for entry in group.entries] == [1]
    assert [(path[-10:], why) for path, why in found.left] == [
        ("a_short_s2", "not evaluated by the plan that counts for its other seeds")]


def test_the_front_is_paretos(tmp_path):
    points = {"A": (0.8, 0.4), "B": (0.8, 0.3), "C": (0.6, 0.4), "D": (0.5, 0.5), "E": (0.8, 0.4)}
    for method, (clean, attacked) in points.items():
        made(tmp_path, "one", method, clean, attacked)
    group, = board(tmp_path, (Paper("one", table(*points)),)).groups
    names = {entry.label[0] for entry in group.entries if entry.key in group.front}
    assert names == {"A", "D", "E"} and front(group.entries) == group.front          # equals do not beat each other
    corners = [(50, 50), (50, 40), (80, 40)]
    assert [tuple(map(round, corner)) for corner in stairs(group)] == corners
    (x_low, x_high), (y_low, y_high) = limits([group], "cifar10")
    assert x_low < 43 and x_high > 85 and y_low < 24 and y_high > 57


def test_a_crowded_group_has_a_row_of_the_figure_for_itself(tmp_path, monkeypatch):
    for budget, count in (("gpu", 2), ("short", 3), ("full", 2), ("smoke", 2)):
        for paper, method in (("one", "A"), ("one", "C"), ("two", "A"))[:count]:
            made(tmp_path, paper, method, budget=budget)
    groups = board(tmp_path).groups
    assert [len(row) for row in arranged(groups)] == [2, 2]
    widths = []
    for crowded, expected in ((2, [[3], [2, 2], [2]]), (9, None)):
        monkeypatch.setattr(leaderboard_plot, "CROWDED", crowded)
        if expected:
            assert [[len(group.entries) for group in row] for row in arranged(groups)] == expected
        widths.append(imread(leaderboard_plot.draw(board(tmp_path), tmp_path / f"{crowded}.png")).shape[1])
    assert widths[0] > widths[1]                                           # names have a place beside the intervals


def test_tables_hold_all_numbers_and_say_what_is_alone(tmp_path):
    made(tmp_path, "one", "A")
    made(tmp_path, "one", "C", 0.7, 0.5)
    made(tmp_path, "two", "A", budget="gpu")
    text = markdown(grids(board(tmp_path), "All"))
    assert text.count("Only one paper has runs of this shape") == 2 and "# All" in text
    assert ("| 1 | C! | one | 1 | 70.00 [63.3, 75.9] | 50.00 [43.1, 56.9] | 70.0 | yes | 1.0 | 10.0 | 10.0 | 10.0 |"
            in text)
    first = rows(board(tmp_path))[0]
    assert (first["method"], first["clean"], first["autoattack_n"], first["front"]) == ("C!", "0.700000", 200, True)
    assert comma_separated(rows(board(tmp_path))).count("\n") == 4
    assert first["records"].endswith("one/cifar10/c_short_s1/eval-adarat.json")


def test_runs_that_only_others_read_stand_nowhere(tmp_path):
    made(tmp_path, seed=7)
    made(tmp_path, seed=1)
    found = board(tmp_path, (Paper("one", replace(ONE.table, sources=(7,))),))
    assert [run.run["seed"] for run in found.groups[0].entries[0].runs] == [1] and not found.left


def test_networks_are_told_apart_in_words():
    assert network({"name": "r", "width": 16, "parameters": 1000}) == "r, width 16, 1,000 parameters"
    assert network({"name": "r", "norm": "group"}) == "r, group norm" and network({"name": "r", "norm": "batch"}) == "r"
    assert network({"name": "r", "parameters": 1261, "parameters_beside": 261}) == "r, 1,000 parameters"


def test_a_group_of_several_papers_says_which_methods_it_lacks(tmp_path):
    made(tmp_path, "one", "A")
    made(tmp_path, "two", "A")
    many = tuple(Row(method=f"M{number}", variant="plain", label=f"Method {number}") for number in range(10))
    more = replace(ONE.table, rows=(*ONE.table.rows, *many))
    group, = board(tmp_path, (replace(ONE, table=more), TWO)).groups
    labels = dict(group.absent)
    assert [label for label in labels["one"] if label.startswith("Method")] == [row.label for row in many]
    text, = absent(group)
    assert "Method 0, " in text and "more" in text and "BUDGET=short METHODS=..." in text
    only, = board(tmp_path, (replace(ONE, table=more),)).groups
    assert absent(only) == () and {entry.label for entry in group.entries}.isdisjoint(labels["one"])


def test_the_records_of_this_repository_make_a_board():
    known = [Paper(name, module.TABLE, module.effort_of_run) for name in ("adarat", "dyart")
             for module in [importlib.import_module(f"{name}.runs")]]
    found = build(known, [run for name in ("adarat", "dyart") for run in read_runs(ROOT / "results", name, "cifar10")])
    labels = {entry.label for group in found.groups for entry in group.entries}
    assert {"PGD-AT", "PGD-AT + FixRAT", "PGD-AT + AdaRAT", "DyART", "AT"} <= labels
    for group in found.groups:
        assert len({(network(run.run["model"]), run.train["epochs"]) for entry in group.entries
                    for run in entry.runs}) == 1
