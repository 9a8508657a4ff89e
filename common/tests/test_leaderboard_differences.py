"""Differences on the leaderboard: which pairs, what is resolved alone and among all, what is refused; what is drawn."""

import json

import pytest

from common import leaderboard_differences_plot as plot
from common.compare import compare, read_judged
from common.leaderboard import Paper, build
from common.leaderboard_differences import LEVEL, changes, grid, rows
from common.leaderboard_page import page
from common.leaderboard_table import grids
from common.records import read_runs
from common.render import markdown
from common.runs import Row, Table
from common.tests.fabricate import fabricate

AA = "autoattack-8"


def paper(name, *labels, **more):
    rows = tuple(Row(method="A", variant=variant, label=f"A {variant}") for variant in labels)
    return Paper(name, Table(title=name, columns=(), rows=rows, **more), measuring=("odd",))


ONE = paper("one", "plain", "more", "most", compare=(("more", "plain"), ("most", "plain")))
TWO = paper("two", "plain", beside=((("A", "plain"), ("one", "A", "more")),))


def made(results, who="one", variant="plain", clean=0.5, attacked=0.3, seed=1, **changed):
    return fabricate(results, **{"paper": who, "method": "A", "variant": variant, "seed": seed, "n": 400,
                                 "accuracies": {"clean": clean, AA: attacked}} | changed)


def found(results, papers=(ONE, TWO)):
    board = build(papers, read_runs(results))
    return board, changes(board, papers)


def test_the_pairs_are_those_of_the_tables_and_other_papers_methods_named(tmp_path):
    for variant, clean in (("plain", 0.5), ("more", 0.75), ("most", 0.51)):
        made(tmp_path, variant=variant, clean=clean)
    made(tmp_path, "two", clean=0.5)
    _, groups = found(tmp_path)
    (group,) = groups.values()
    assert [(row.paper, row.label) for row in group.rows] == [
        ("one", "A more − A plain"), ("one", "A most − A plain"), ("two", "A plain − A more (one)")]
    assert [one.evaluator for one in group.rows[0].found] == ["clean", AA] and len(group.adjusted) == 6
    ours = {(row.label, one.evaluator): one for row in group.rows for one in row.found}
    beside, _ = compare(*([read_judged(next(iter((tmp_path / "one/cifar10").glob(f"*{name}*"))))]
                          for name in ("more", "a_short")))
    assert ours["A more − A plain", "clean"].difference == beside[0].difference == pytest.approx(0.25)
    assert ours["A plain − A more (one)", "clean"].difference == pytest.approx(-0.25)


def test_among_many_comparisons_a_difference_has_to_be_larger(tmp_path):
    for variant, clean in (("plain", 0.5), ("more", 0.58), ("most", 0.75)):
        made(tmp_path, variant=variant, clean=clean)
    made(tmp_path, "two")
    _, groups = found(tmp_path)
    (group,) = groups.values()
    marks = {(row.label, one.evaluator): group.mark(row, one) for row in group.rows for one in row.found}
    for row in group.rows:
        for one in row.found:
            alone, among = max(one.p), group.adjusted[row.label, one.evaluator]
            assert alone <= among <= 1
            assert marks[row.label, one.evaluator].startswith("*") == one.resolved
            assert (marks[row.label, one.evaluator] == "**") == (one.resolved and among < LEVEL)
    assert [marks[f"A {variant} − A plain", "clean"] for variant in ("more", "most")] == ["*", "**"]
    assert marks["A most − A plain", AA] == ""
    shown = grid(group, "T").rows
    assert shown[0][3].startswith("+8.00 [") and shown[0][3].endswith("] *") and shown[1][3].endswith("] **")


def test_benjamini_and_yekutielis_correction_by_hand(tmp_path):
    made(tmp_path, clean=0.5, attacked=0.3)
    made(tmp_path, variant="more", clean=0.53, attacked=0.31)
    made(tmp_path, "two")
    _, groups = found(tmp_path, (ONE, paper("two", "plain")))
    (group,) = groups.values()
    (row,) = group.rows
    p = sorted(one.p[0] for one in row.found)
    harmonic = 1 + 1 / 2
    by_hand = [min(1, harmonic * 2 * p[0], harmonic * p[1]), min(1, harmonic * p[1])]
    assert sorted(group.adjusted.values()) == pytest.approx(by_hand)


def test_one_papers_own_runs_are_left_to_its_table(tmp_path):
    made(tmp_path)
    made(tmp_path, variant="more", clean=0.7)
    board, groups = found(tmp_path)
    assert len(board.groups) == 1 and groups == {}
    assert plot.draw(groups, {}, tmp_path / "no.png") is None and not (tmp_path / "no.png").exists()
    assert "Differences" not in markdown(grids(board, "T", groups))


def test_what_was_not_measured_alike_is_said_and_not_subtracted(tmp_path):
    made(tmp_path)
    folder = made(tmp_path, variant="more", clean=0.7)
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(record | {"quirks": ["odd"]}))
    made(tmp_path, "two")
    _, groups = found(tmp_path, (ONE, paper("two", "plain")))
    (group,) = groups.values()
    assert group.rows == () and "quirks odd" in group.refused[0]
    assert "Not compared: A more − A plain" in " ".join(grid(group, "T").notes)


def test_several_seeds_have_the_interval_of_the_seeds(tmp_path):
    for seed, clean in ((1, 0.6), (2, 0.7)):
        made(tmp_path, seed=seed)
        made(tmp_path, variant="more", clean=clean, seed=seed)
        made(tmp_path, "two", seed=seed)
    _, groups = found(tmp_path)
    (group,) = groups.values()
    text = grid(group, "T").rows[0]
    assert text[:3] == ("A more − A plain", "one", "1, 2") and text[3] == "+15.00 [-48.5, +78.5]"
    assert not group.rows[0].found[0].resolved


def test_table_csv_page_and_figure_hold_the_same_numbers(tmp_path):
    made(tmp_path / "results")
    made(tmp_path / "results", variant="more", clean=0.75)
    made(tmp_path / "results", "two", clean=0.25)
    board, groups = found(tmp_path / "results")
    text = markdown(grids(board, "T", groups))
    assert "## Differences: cifar10, budget short" in text and "clean, points (n=400)" in text
    assert "| A more − A plain | one | 1 | +25.00 [" in text and "| A plain − A more (one) | two | 1 | -50.00 [" in text
    first = rows(groups)[0]
    assert (first["change"], first["n"], first["resolved"]) == ("0.250000", 400, "among all")
    assert int(first["gained"]) - int(first["lost"]) == 100
    where = tmp_path / "results" / "leaderboard" / "index.html"
    shown = page(board, "T", where, (), groups)
    entry = next(entry for entry in board.groups[0].entries if entry.label == "A more")
    assert f'<a href="#{entry.key}">A more − A plain</a>' in shown and shown.count("<caption") == 2
    drawn = plot.draw(groups, {"one": "#000000", "two": "#ff0000"}, tmp_path / "d.png")
    assert drawn.stat().st_size > 10_000


def test_the_group_of_the_most_papers_is_drawn(tmp_path):
    for variant in ("plain", "more", "most"):
        made(tmp_path, variant=variant, budget="short")
    made(tmp_path, "two", budget="short")
    for who in ("one", "two"):
        made(tmp_path, who, budget="gpu")
    made(tmp_path, variant="more", budget="gpu")
    board, groups = found(tmp_path, (ONE, paper("two", "plain")))
    assert {shape.budget: len(group.rows) for shape, group in groups.items()} == {"short": 2, "gpu": 1}
    assert plot.chosen(groups).budget == "short" and len(board.groups) == 2
