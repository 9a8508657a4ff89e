"""What a method changes against the one that its paper compares it with, image by image, under one shape.  No torch.

The pairs are those of the papers' tables (`common.runs.Table.pairs`, and `beside` for another paper's method).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy.stats import false_discovery_control

from common.compare import Comparison, Judged, compare
from common.errors import UserError
from common.leaderboard import Board, Entry, Group, Paper, Shape
from common.render import DASH, Grid

LEVEL = 0.05
NOTES = (
    "Differences: in percentage points, on the same images; in brackets the 95% interval, over the images (bootstrap) "
    "of these networks for one seed, over the seeds (Student's) for several. One seed says something of two networks; "
    "whether it holds for two methods is a question to more seeds.",
    "*: resolved, as scripts/compare.py says it: the intervals leave out 0 and, with one seed, McNemar's exact p is "
    "below 0.05. **: also when all comparisons of a table are taken together (Benjamini and Yekutieli 2001, false "
    "discovery rate 0.05). No mark: these images do not show which is better.")


@dataclass(frozen=True)
class Change:
    """One method minus another: a comparison for each evaluator that both have."""

    paper: str
    label: str                                 # 'PGD-AT + AdaRAT − PGD-AT'
    first: Entry
    second: Entry
    found: tuple[Comparison, ...]


@dataclass(frozen=True)
class Changes:
    """Of one group.  adjusted: (label, evaluator) -> p, corrected for the number of comparisons in the group; refused:
    pairs that were not measured alike, and why."""

    rows: tuple[Change, ...]
    adjusted: Mapping[tuple[str, str], float]
    refused: tuple[str, ...] = ()

    @property
    def evaluators(self) -> tuple[str, ...]:
        """Names, in the order of the plans."""
        return tuple(dict.fromkeys(one.evaluator for row in self.rows for one in row.found))

    def mark(self, row: Change, one: Comparison) -> str:
        """'', '*' (resolved by itself) or '**' (among all of the table, too)."""
        return ("*" + "*" * (self.adjusted[row.label, one.evaluator] < LEVEL)) * one.resolved


def changes(board: Board, papers: Sequence[Paper]) -> dict[Shape, Changes]:
    """Of each group of several papers that has a pair; a paper's own table holds those of its other runs."""
    found = {group.shape: _of_group(group, papers) for group in board.groups
             if len({entry.paper for entry in group.entries}) > 1}
    return {shape: one for shape, one in found.items() if one.rows or one.refused}


def _of_group(group: Group, papers: Sequence[Paper]) -> Changes:
    rows, refused, measuring = [], [], {paper.name: paper.measuring for paper in papers}
    for paper, first, second in _pairs(group, papers):
        beside = "" if second.paper == paper else f" ({second.paper})"
        label = f"{first.label} − {second.label}{beside}"
        sides = [[Judged(run, (record,)) for run, record in zip(one.runs, one.records, strict=True)]
                 for one in (first, second)]
        try:
            compared, _ = compare(*sides, measuring=measuring)
        except UserError as error:
            refused.append(f"{label}: {error}")
        else:
            rows.append(Change(paper, label, first, second, tuple(compared)))
    keys = [(row.label, one.evaluator) for row in rows for one in row.found]
    # Of several seeds the least convincing one.
    values = [max(one.p) for row in rows for one in row.found]
    adjusted = false_discovery_control(values, method="by").tolist() if values else []
    return Changes(tuple(rows), dict(zip(keys, adjusted, strict=True)), tuple(refused))


def _pairs(group: Group, papers: Sequence[Paper]) -> list[tuple[str, Entry, Entry]]:
    """(paper, entry, the one that it is compared with), judged by one plan."""
    there: dict[tuple[str, str, str], list[Entry]] = {}
    for entry in group.entries:
        first = entry.runs[0].run
        there.setdefault((entry.paper, first["method"], first["variant"]), []).append(entry)
    wanted = [(paper.name, (paper.name, *a), other) for paper in papers
              for a, other in [*((a, (paper.name, *b)) for a, b in paper.table.pairs()), *paper.table.beside]]
    return [(paper, one, other) for paper, a, b in wanted for one in there.get(a, ()) for other in there.get(b, ())
            if one.records[0].plan == other.records[0].plan]


def grid(found: Changes, title: str) -> Grid:
    """A row per pair, a column per evaluator."""
    counts = {name: {one.n for row in found.rows for one in row.found if one.evaluator == name}
              for name in found.evaluators}
    rows = []
    for row in found.rows:
        by_name = {one.evaluator: one for one in row.found}
        texts = [_points(by_name[name], found.mark(row, by_name[name]), counts[name]) if name in by_name else DASH
                 for name in found.evaluators]
        rows.append((row.label, row.paper, ", ".join(str(seed) for seed, _ in row.found[0].seeds), *texts))
    header = ("difference", "paper", "seeds", *(
        f"{name}, points" + (f" (n={min(counts[name]):,})" if len(counts[name]) == 1 else "")
        for name in found.evaluators))
    notes = (f"{len(found.adjusted)} comparisons: {len(found.rows)} pairs, {len(counts)} "
             "evaluators.",
             *(f"Not compared: {told}" for told in found.refused))
    return Grid(title, header, tuple(rows), notes)


def _points(one: Comparison, mark: str, counts: set[int]) -> str:
    """'+6.70 [+4.2, +9.2] **'"""
    low, high = interval(one)
    text = f"{100 * one.difference:+.2f} [{100 * low:+.1f}, {100 * high:+.1f}]"
    return text + (f" {mark}" if mark else "") + (f" (n={one.n:,})" if len(counts) > 1 else "")


def interval(one: Comparison) -> tuple[float, float]:
    """Over the seeds where there are several, else over the images; fractions."""
    return one.interval_of_seeds or one.interval


def rows(found: Mapping[Shape, Changes]) -> list[dict[str, Any]]:
    """One row per pair and evaluator, for CSV; fractions with 6 digits."""
    return [_row(shape, group, row, one) for shape, group in found.items() for row in group.rows for one in row.found]


def _row(shape: Shape, group: Changes, row: Change, one: Comparison) -> dict[str, Any]:
    low, high = interval(one)
    return {"paper": row.paper, "difference": row.label, "data": shape.data, "budget": shape.budget,
            "network": shape.network, "n_train": shape.n_train, "epochs": shape.epochs, "evaluator": one.evaluator,
            "n": one.n, "seeds": " ".join(str(seed) for seed, _ in one.seeds), "change": f"{one.difference:.6f}",
            "low": f"{low:.6f}", "high": f"{high:.6f}", "gained": " ".join(map(str, one.gained)),
            "lost": " ".join(map(str, one.lost)), "p": " ".join(f"{value:.6g}" for value in one.p),
            "p_adjusted": f"{group.adjusted[row.label, one.evaluator]:.6g}",
            "resolved": ("no", "alone", "among all")[len(group.mark(row, one))],
            "first": " ".join(run.name for run in row.first.runs),
            "second": " ".join(run.name for run in row.second.runs)}
