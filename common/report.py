"""Tables from records: ours beside reported numbers.  Knows no paper (it is handed a `Table`), needs no torch.

A cell holds one protocol or the report fails: records that differ in anything but the seed are never averaged.
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from common import reported as published
from common.against import lines
from common.alarms import summary
from common.cells import Cell as Cell
from common.cells import Combined, Unlike, combination, judging, rank_of, short, stale, weights_of
from common.cells import cell as cell
from common.cells import group as group
from common.cells import result_of as result_of
from common.curves import Averaged, Measured, averaged, difference, measured
from common.evaluation.searches import columns_of
from common.records import RunRecord
from common.render import DASH, Grid
from common.reported import Reported
from common.runs import Column, Row, Table
from common.stats import mcnemar, mean_sd, newcombe, paired

ABOUT = {"NRR": ": 2ab/(a+b)"}
REPORTED_TITLE = "All reported numbers of these methods"
AnyCell = Cell | Combined | Averaged | Measured


@dataclass(frozen=True)
class Report:
    """grids: for Markdown and LaTeX; values: for CSV, one row per method, variant and evaluator.

    against: the lines of `common.against`, one per number of ours.
    """

    grids: tuple[Grid, ...]
    values: tuple[dict[str, Any], ...]
    against: tuple[dict[str, Any], ...] = ()


def build(table: Table, runs: Sequence[RunRecord], reported: Sequence[Reported], dataset: str, budget: str,
          measuring: Sequence[str] = ()) -> Report:
    """The report of one data set and budget; other runs in `runs` are left aside.

    measuring: the paper's quirks that change what is measured.
    """
    runs = [run for run in runs if (run.run["dataset"], run.run["budget"]) == (dataset, budget)
            and run.run["seed"] not in table.sources]
    table = replace(table, columns=table.special_columns.get(dataset, table.columns))
    grouped = {(row.method, row.variant): group(runs, row.method, row.variant, table.per_seed) for row in table.rows}
    judged = {name for members in grouped.values() for run in members for record in run.evals.values()
              if rank_of(record.plan, table.plans) is not None for name in record.results}
    table = replace(table, columns=tuple(columns_of(table.columns, [row.suffix for row in table.rows], judged)))
    cells = {(row, column): _cell(grouped[row.method, row.variant], row, column, table.plans)
             for row in table.rows for column in table.columns}
    title = f"{table.title} on {dataset}, budget {budget}"
    main, values = _main(table, list(reported), dataset, title, grouped, cells)
    notes = _notes(table, budget, [run for members in grouped.values() for run in members])
    grids = [Grid(title, main.header, main.rows, (*main.notes, *notes)), _compared(table, grouped),
             _listed(table, list(reported), dataset)]
    return Report(tuple(grid for grid in grids if grid.rows), tuple(values),
                  tuple(lines(table, dataset, budget, grouped, cells, reported, measuring)))


def _cell(runs: Sequence[RunRecord], row: Row, column: Column, plans: Sequence[str]) -> AnyCell | None:
    several = [name + row.suffix for name in column.over or (column.evaluator,)]
    if column.value:
        return measured(runs, several, column.value, column.factor, plans)
    if column.over:
        return averaged(runs, several, plans)
    if column.formula:
        return combination(runs, column.evaluator + row.suffix, column.beside + row.suffix, column.formula, plans)
    return cell(runs, column.evaluator + row.suffix, plans)


def _main(table: Table, reported: list[Reported], dataset: str, title: str,
          grouped: Mapping[tuple[str, str], list[RunRecord]],
          cells: Mapping[tuple[Row, Column], AnyCell | None]) -> tuple[Grid, list[dict[str, Any]]]:
    sources: dict[str, str] = {}
    rows, values = [], []
    counts = {column: {found.n for key, found in cells.items() if found and key[1] == column}
              for column in table.columns}
    for row in table.rows:
        members, candidates = grouped[row.method, row.variant], published.of_row(reported, table, dataset, row)
        texts = []
        for column in table.columns:
            ours = cells[row, column]
            other = published.best(candidates, column, table)
            text = ours.text() if ours else DASH
            if ours and len(counts[column]) > 1:
                text += f" (n={ours.n})"
            if other:
                text += f" / {other.value} ({sources.setdefault(_source(other), f'r{len(sources) + 1}')})"
            texts.append(text)
            if ours or other:
                values.append(_value(row, column, ours, other, members))
        epochs = _distinct(run.train["epochs"] for run in members)
        chosen = _distinct(weights_of(run, row.suffix) for run in members)
        seeds = ", ".join(str(run.run["seed"]) for run in members)
        if candidates or any(cells[row, column] for column in table.columns) or (members and not row.suffix):
            rows.append((row.label, seeds or DASH, epochs, chosen, *texts))
    header = ("method", "seeds", "epochs", "weights", *(
        column.title + (f" (n={min(counts[column])})" if len(counts[column]) == 1 else "")
        for column in table.columns))
    notes = ["Accuracy in %: ours / reported. Ours is the mean ± sample standard deviation over seeds, or for one seed "
             "the value with Wilson's 95% interval; n is the number of test images."]
    notes += [f"{column.title}: " + (f"{column.formula} of" if column.formula != column.title else "of")
              + f" {column.evaluator} and {column.beside} on the same images{ABOUT.get(column.formula, '')}; interval "
              "for one seed: Wilson's limits of both, squared and added."
              for column in table.columns if column.formula and counts[column]]
    notes += [_about(column) for column in table.columns if (column.over or column.value) and counts[column]]
    notes += [f"{label}: reported by {text}" for text, label in sources.items()]
    if sources and any(run.run["budget"] != "full" for members in grouped.values() for run in members):
        notes.append("Reported numbers are of whole trainings of the full network on all images; ours here are of a "
                     "smaller budget: compare our rows with each other, not with them.")
    return Grid(title, header, tuple(rows), tuple(notes)), values


def _about(column: Column) -> str:
    """What a mean over evaluators, or a measured value, is."""
    names = column.over or (column.evaluator,)
    told = ", ".join(names) if len(names) <= 12 else f"{len(names)} evaluators, {names[0]} to {names[-1]}"
    if not column.value:
        return (f"{column.title}: mean of the accuracies under {told}, on the same images; interval for one seed: 1.96 "
                "standard errors over the images.")
    return (f"{column.title}: no accuracy, but {column.value} of {told}" + (", their mean" if len(names) > 1 else "")
            + (f", times {column.factor:g}" if column.factor != 1 else "") + ".")


def _source(one: Reported) -> str:
    return (f"{one.paper}, {one.table}: {one.metric}, {one.model}{', ' + one.variant if one.variant else ''}, weights: "
            f"{one.checkpoint}; class {one.source_class} ({published.CLASSES[one.source_class]}): {one.source}")


def _distinct(values: Any) -> str:
    return ", ".join(dict.fromkeys(str(value) for value in values)) or DASH


def _value(row: Row, column: Column, ours: AnyCell | None, other: Reported | None,
           members: Sequence[RunRecord]) -> dict[str, Any]:
    counted = ours if isinstance(ours, Cell) else None
    mean, sd = mean_sd(ours.accuracies) if ours else (None, None)
    low, high = (counted.interval if counted else None) or (None, None)
    return {"method": row.method, "variant": row.variant,
            "evaluator": (column.evaluator if column.counted else column.title) + row.suffix, "mean": _digits(mean),
            "sd": _digits(sd), "wilson_low": _digits(low), "wilson_high": _digits(high),
            "n": ours.n if ours else None, "robust": " ".join(map(str, counted.robust)) if counted else None,
            "seeds": " ".join(map(str, ours.seeds)) if ours else None,
            "norm": counted.result["norm"] if counted else None,
            "eps": _digits(counted.result["eps"]) if counted else None,
            "epochs": _distinct(run.train["epochs"] for run in members) if ours else None,
            "weights": _distinct(weights_of(run, row.suffix) for run in members) if ours else None,
            "reported_percent": other and other.value, "reported_metric": other and other.metric,
            "reported_class": other and other.source_class, "reported_checkpoint": other and other.checkpoint,
            "reported_source": other and other.source, "records": " ".join(ours.records) if ours else None}


def _digits(value: float | None) -> str | None:
    return None if value is None else f"{value:.6f}"


def _notes(table: Table, budget: str, runs: Sequence[RunRecord]) -> list[str]:
    datasets = dict.fromkeys(run.run["dataset"] for run in runs)
    known = [table.budget_notes.get(f"{budget} {dataset}", table.budget_notes.get(budget)) for dataset in datasets]
    notes = [note for note in dict.fromkeys(known) if note]
    for data in dict.fromkeys(json.dumps(run.run["data"], sort_keys=True) for run in runs):
        one = json.loads(data)
        notes.append(f"Data {one['name']} ({one.get('source', 'source not recorded')}): {one.get('n_train', '?')} "
                     f"images to train (sha256 {str(one.get('train_fingerprint'))[:12]}), "
                     f"{one.get('n_test', '?')} to test (sha256 {one['test_fingerprint'][:12]}).")
        if extra := one.get("extra"):
            notes.append(f"Additional training images: {extra['n']}, {extra['source']} (fingerprint "
                         f"{extra['fingerprint'][:12]}).")
    for label, texts in (
            ("Quirks of the original kept", [", ".join(sorted(run.run["quirks"])) or "none" for run in runs]),
            ("Trained with", [_made(run.train["environment"]) for run in runs])):
        for text in dict.fromkeys(texts):
            of = sorted({run.run["method"] for run, one in zip(runs, texts, strict=True) if one == text})
            notes.append(f"{label} ({', '.join(of)}): {text}.")
    notes += [f"Alarms while {run.name} trained: {told}." for run in runs
              if (told := summary(run.train.get("alarms", [])))]
    left = [short(record.path) for run in runs for record in run.evals.values() if stale(run, record)]
    notes += [f"Left out, since it judged other weights than train.json names: {path}" for path in left]
    if runs:
        notes.append(f"Records, in {short(runs[0].folder / 'run.json').rpartition('/' + runs[0].name)[0]}/: "
                     + ", ".join(run.name for run in runs) + ".")
    return notes


def _made(made: Mapping[str, Any]) -> str:
    return (f"torch {made.get('torch')}, {made.get('device')}, {made.get('precision')}, {made.get('threads')} threads, "
            f"commit {str(made.get('commit') or 'unknown')[:12]}{' with changes' if made.get('dirty') else ''}")


def _compared(table: Table, grouped: Mapping[tuple[str, str], list[RunRecord]]) -> Grid:
    """The table's pairs, on the same images and for the same seed."""
    labels, rows = {(row.method, row.variant, row.suffix): row.label for row in table.rows}, []
    for suffix, (a, b) in itertools.product(dict.fromkeys(row.suffix for row in table.rows), table.pairs()):
        for column in table.columns if {(*a, suffix), (*b, suffix)} <= labels.keys() else ():
            row = None
            if column.counted:
                row = _comparison(grouped[a], grouped[b], column.evaluator + suffix, table.plans)
            elif column.over and not column.value:
                row = _of_means(grouped[a], grouped[b], [name + suffix for name in column.over], table.plans)
            if row:
                rows.append((f"{labels[*a, suffix]} − {labels[*b, suffix]}", column.title, *row))
    return Grid("Differences, image by image", ("difference", "evaluator", "n", "seeds", "points", "images gained",
                                                "images lost", "McNemar p"), tuple(rows),
                ("Points: difference of accuracies in percentage points, mean ± sample standard deviation over seeds, "
                 "or for one seed with Newcombe's paired 95% interval.",
                 "McNemar p: exact, two-sided, one per seed; the images are the same for all seeds, so the p values of "
                 "several seeds are not independent."))


def _comparison(first: Sequence[RunRecord], second: Sequence[RunRecord], evaluator: str, plans: Sequence[str],
                ) -> tuple[str, ...] | None:
    others = {run.run["seed"]: run for run in second}
    pairs = [(run, others[run.run["seed"]]) for run in first if run.run["seed"] in others]
    tables, seeds = [], []
    for run, other in pairs:
        found, against = result_of(run, evaluator, plans), result_of(other, evaluator, plans)
        if not found or not against:
            continue
        flags = [record.arrays[evaluator] for record, _ in (found, against)]
        images = [record.arrays["index"][:result["n"]].tolist() for record, result in (found, against)]
        if judging(*found) != judging(*against) or images[0] != images[1]:
            raise Unlike(f"one comparison, two protocols: {found[0].path}, {against[0].path}")
        tables.append(paired(*flags))
        seeds.append(run.run["seed"])
    if not tables:
        return None
    mean, sd = mean_sd([one.difference for one in tables])
    if sd is None:
        low, high = newcombe(tables[0])
        points = f"{100 * mean:+.2f} [{100 * low:+.1f}, {100 * high:+.1f}]"
    else:
        points = f"{100 * mean:+.2f} ± {100 * sd:.2f}"
    return (str(tables[0].n), ", ".join(map(str, seeds)), points, ", ".join(str(one.only_a) for one in tables),
            ", ".join(str(one.only_b) for one in tables), ", ".join(f"{mcnemar(one):.2g}" for one in tables))


def _of_means(first: Sequence[RunRecord], second: Sequence[RunRecord], evaluators: Sequence[str],
              plans: Sequence[str]) -> tuple[str, ...] | None:
    """A mean over evaluators: no image is gained or lost as a whole."""
    found = difference(first, second, evaluators, plans)
    return found and (str(found[0]), ", ".join(map(str, found[1])), found[2], DASH, DASH, DASH)


def _listed(table: Table, reported: list[Reported], dataset: str) -> Grid:
    """Every reported number of the rows' methods, one line per source and checkpoint."""
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    for row in table.rows:
        for one in published.of_row(reported, table, dataset, row):
            line = lines.setdefault(one.line, {})
            if not table.reported_points:
                line[one.metric] = one.value
                continue
            what = one.norm if one.metric == "accuracy" else ", ".join(filter(None, (one.norm, one.metric)))
            text = f"{one.eps}: {one.value}" if one.eps else one.value
            line[what] = f"{line[what]}; {text}" if what in line else text
    metrics = list(dict.fromkeys(metric for line in lines.values() for metric in line))
    rows = tuple((f"{line[4]}{', ' + line[5] if line[5] else ''}", line[3],
                  *(found.get(metric, DASH) for metric in metrics),
                  line[6], line[0], f"{line[1]}, {line[2]}; {line[7]}") for line, found in lines.items())
    return Grid(REPORTED_TITLE, ("method", "network", *metrics, "weights", "class", "source"),
                rows, ("The same baseline varies by several points between sources: compare within one source and one "
                       "rule of choosing weights.",
                       "Classes: " + "; ".join(f"{key} {text}" for key, text in published.CLASSES.items()) + "."))
