"""Reported against ours: every cell of a paper's runs beside what is reported, and a verdict.  No torch.

A verdict is given only where the two are of one protocol; else the line says `not comparable` and why.  Runs of a
budget that is not the paper's are never comparable, whatever they came to.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from common import reported as published
from common.cells import Cell, weights_of
from common.records import RunRecord
from common.render import DASH, Grid
from common.reported import Reported
from common.runs import Column, Row, Table
from common.stats import accuracy_interval, mean_sd, over_seeds

FULL = "full"                                  # the budget that is the paper's protocol
WHOLE = {"CIFAR-10": 50_000, "CIFAR-100": 50_000, "Tiny-ImageNet": 100_000, "MNIST": 60_000, "FashionMNIST": 60_000}
HELD_OUT = 0.15                                # at most this share of the training images may be held out
READ_OFF = 0.5                                 # points either side of a number read off a figure (class D)
WIDE = 2.0                                     # points: with a wider interval `within` says little, and so it says
AS_CODED = "in code"                           # in a metric that is what the released code computes, oddities included
MORE_DATA = re.compile(r"synthetic|generated|extra|EDM|DDPM", re.IGNORECASE)
NOTHING, VERDICTS = "nothing reported", ("within", "below", "above")
HEADER = ("data", "budget", "method", "evaluator", "n", "epochs", "seeds", "weights", "quirks", "ours",
          "95% interval", "reported", "class", "difference", "verdict")


def lines(table: Table, dataset: str, budget: str, grouped: Mapping[tuple[str, str], Sequence[RunRecord]],
          cells: Mapping[tuple[Row, Column], Any], reported: Sequence[Reported], measuring: Sequence[str] = ()
          ) -> list[dict[str, Any]]:
    """One line per cell that has a number of ours; see `common.report.build` for what is handed in.

    measuring: names of the paper's quirks that change what is measured.  Percentages; None is not there.
    """
    found = []
    for (row, column), ours in cells.items():
        if not ours:
            continue
        runs = grouped[row.method, row.variant]
        other = published.best(published.of_row(list(reported), table, dataset, row), column, table)
        unit, (middle, sd) = ours.unit, mean_sd(ours.accuracies)
        limits = interval(ours)
        low, high = (unit * limits[0], unit * limits[1]) if limits else (None, None)
        value, spread = number(other) if other else (None, None)
        verdict, reason = NOTHING, None
        if other:
            reason = incomparable(table, dataset, budget, runs, row, other, measuring)
            verdict, reason = ("not comparable", reason) if reason else judged(low, high, value, spread)
        found.append({
            "dataset": dataset, "budget": budget, "method": row.label, "evaluator": column.title + row.suffix,
            "n": ours.n, "epochs": distinct(run.train["epochs"] for run in runs),
            "seeds": " ".join(map(str, ours.seeds)), "selected_on": selected(runs, row),
            "quirks": distinct(" ".join(sorted(run.run["quirks"])) or "none" for run in runs),
            "ours": unit * middle, "sd": None if sd is None else unit * sd, "low": low, "high": high,
            "reported": value, "reported_spread": spread, "reported_metric": other and other.metric,
            "reported_class": other and other.source_class, "reported_weights": other and other.checkpoint,
            "reported_by": other and f"{other.paper}, {other.table}", "reported_source": other and other.source,
            "difference": None if value is None else unit * middle - value, "verdict": verdict,
            "reason": reason, "records": " ".join(ours.records)})
    return found


def interval(ours: Any) -> tuple[float, float] | None:
    """95% interval of a cell, as a fraction: `accuracy_interval` of counts, else the cell's own or over its seeds."""
    if isinstance(ours, Cell):
        return accuracy_interval(ours.accuracies, ours.n)
    return ours.interval or over_seeds(ours.accuracies)


def number(other: Reported) -> tuple[float, float]:
    """(value, what is to be allowed either side of it), in the units of the file, from "47.63" or "47.63+-0.08"."""
    value, _, spread = other.value.replace("±", "+-").partition("+-")
    return float(value), max(float(spread or 0), READ_OFF if other.source_class == "D" else 0.0)


def judged(low: float | None, high: float | None, value: float, spread: float) -> tuple[str, str | None]:
    """(where our interval stands to the reported value, what is to be known of it)."""
    if low is None or high is None:
        return "not comparable", "ours has no interval: one seed"
    if high < value - spread or low > value + spread:
        return ("below" if high < value else "above"), None
    half = (high - low) / 2
    return "within", f"but the interval is ±{half:.1f} points wide: more seeds would tell" if half > WIDE else None


def incomparable(table: Table, dataset: str, budget: str, runs: Sequence[RunRecord], row: Row, other: Reported,
                 measuring: Sequence[str] = ()) -> str | None:
    """The first reason why ours and the reported number are not of one protocol; None if there is none."""
    return next(_reasons(table, dataset, budget, runs, row, other, measuring), None)


def _reasons(table: Table, dataset: str, budget: str, runs: Sequence[RunRecord], row: Row, other: Reported,
             measuring: Sequence[str]) -> Iterator[str]:
    if budget != FULL:
        yield f"budget {budget}, not the paper's training"
    whole = WHOLE.get(table.reported_datasets.get(dataset, dataset))
    for run in runs:
        data = run.run["data"]
        if whole and data.get("n_train", whole) < (1 - HELD_OUT) * whole:
            yield f"trained on {data['n_train']:,} of {whole:,} images"
        if bool(data.get("extra")) != bool(MORE_DATA.search(other.variant)):
            yield "additional training images: " + (f"reported with {other.variant}, ours without" if not
                                                    data.get("extra") else "ours with, reported without")
        elif data.get("extra"):
            yield f"additional training images: reported with {other.variant}, ours with {data['extra']['n']:,}"
        if (odd := sorted(set(run.run["quirks"]) & set(measuring))) and AS_CODED not in other.metric:
            yield f"measured with the quirk {', '.join(odd)}"
    if AS_CODED in other.metric and not any(set(run.run["quirks"]) & set(measuring) for run in runs):
        yield f"reported as the released code measures ({other.metric}), ours without its quirk"
    if other.paper != table.reported_paper:
        yield f"reported by other work ({other.paper}), after its own training"
    if not other.checkpoint.startswith(table.reported_weights):
        yield f"weights: reported {other.checkpoint}; ours {selected(runs, row)}"


def selected(runs: Sequence[RunRecord], row: Row) -> str:
    """What the weights were chosen on; "last" where nothing was."""
    return distinct(weights_of(run, row.suffix) for run in runs)


def distinct(values: Any) -> str:
    """Different values, joined."""
    return ", ".join(dict.fromkeys(str(value) for value in values)) or DASH


def grid(title: str, found: Sequence[Mapping[str, Any]]) -> Grid:
    """The lines as a table."""
    sources: dict[str, str] = {}
    rows = []
    for line in found:
        reported = DASH
        if line["reported"] is not None:
            source = f"{line['reported_by']}; weights: {line['reported_weights']}; {line['reported_source']}"
            spread = f" ± {line['reported_spread']:g}" if line["reported_spread"] else ""
            reported = f"{line['reported']:g}{spread} ({sources.setdefault(source, f'r{len(sources) + 1}')})"
        rows.append((
            line["dataset"], line["budget"], line["method"], line["evaluator"], f"{line['n']:,}", line["epochs"],
            line["seeds"].replace(" ", ", "), line["selected_on"], line["quirks"].replace(" ", ", "),
            f"{line['ours']:.2f}" + (f" ± {line['sd']:.2f}" if line["sd"] is not None else ""),
            DASH if line["low"] is None else f"[{line['low']:.1f}, {line['high']:.1f}]", reported,
            line["reported_class"] or DASH, DASH if line["difference"] is None else f"{line['difference']:+.2f}",
            line["verdict"] + (f": {line['reason']}" if line["reason"] else "")))
    counts = {verdict: sum(line["verdict"] == verdict for line in found)
              for verdict in (*VERDICTS, "not comparable", NOTHING)}
    return Grid(title, HEADER, tuple(rows), (
        "Counts: " + ", ".join(f"{verdict} {count}" for verdict, count in counts.items()) + ".",
        "Ours: in % (a measured number as it is), mean (± sample standard deviation) over seeds. Interval: one seed "
        "Wilson's, several Student's over the seeds and never narrower than Wilson's; n is the number of test images. "
        "Difference: ours minus reported, in points.",
        "Within: the reported number, with its own spread or ±0.5 where it was read off a figure, meets our interval; "
        "below, above: our interval lies below or above it.",
        "Not comparable: budgets other than full, a part of the training images, other additional images, a measuring "
        "quirk, other work's training, weights chosen in another way. The difference then says nothing about the "
        "paper.",
        "Classes: " + "; ".join(f"{key} {text}" for key, text in published.CLASSES.items()) + ".",
        *(f"{label}: {text}" for text, label in sources.items())))
