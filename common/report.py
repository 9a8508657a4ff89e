"""Tables from records: ours beside reported numbers.  Knows no paper (it is handed a `Table`), needs no torch.

A cell holds one protocol or the report fails: records that differ in anything but the seed are never averaged.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import reported as published
from common.records import EvalRecord, RunRecord
from common.render import DASH, Grid
from common.reported import Reported
from common.runs import Column, Table
from common.stats import mcnemar, mean_sd, newcombe, paired, wilson

# Settings of a run that say where and on what it ran; they change no number that is compared.
PLACES = frozenset({"seed", "run", "name", "spec", "out", "data", "data_dir", "dataset_path", "device", "num_workers"})


REPORTED_TITLE = "All reported numbers of these methods"


@dataclass(frozen=True)
class Cell:
    """One evaluator's verdict on one method and variant: a count per seed, out of n images each."""

    seeds: tuple[int, ...]
    robust: tuple[int, ...]
    n: int
    records: tuple[str, ...]                   # files, relative to the results' parent
    result: Mapping[str, Any]                  # norm, eps, settings: the same for all of them

    @property
    def accuracies(self) -> list[float]:
        return [robust / self.n for robust in self.robust]

    @property
    def interval(self) -> tuple[float, float] | None:
        """Wilson's 95% interval where there is one seed."""
        return wilson(self.robust[0], self.n) if len(self.seeds) == 1 else None

    def text(self) -> str:
        """In percent: 'mean ± sd' over seeds, or 'value [low, high]' for one seed."""
        mean, sd = mean_sd(self.accuracies)
        if self.interval:
            return f"{100 * mean:.2f} [{100 * self.interval[0]:.1f}, {100 * self.interval[1]:.1f}]"
        return f"{100 * mean:.2f} ± {100 * sd:.2f}"


@dataclass(frozen=True)
class Report:
    """grids: for Markdown and LaTeX; values: for CSV, one row per method, variant and evaluator."""

    grids: tuple[Grid, ...]
    values: tuple[dict[str, Any], ...]


def group(runs: Sequence[RunRecord], method: str, variant: str, per_seed: Sequence[str] = ()) -> list[RunRecord]:
    """The finished runs of a method and variant, by seed.  per_seed: see `common.runs.Table`.

    ValueError, naming the folders, if two have one seed or if they differ in more than the seed.
    """
    mine = sorted((run for run in runs if run.train and (run.run["method"], run.run["variant"]) == (method, variant)),
                  key=lambda run: (run.run["seed"], run.name))
    seeds = [run.run["seed"] for run in mine]
    if len(set(seeds)) < len(seeds) or len({_training(run, per_seed) for run in mine}) > 1:
        raise ValueError("one cell, two protocols (or one seed twice): " + ", ".join(str(run.folder) for run in mine))
    return mine


def _training(run: RunRecord, per_seed: Sequence[str]) -> str:
    """All that makes a training comparable, as text; names that hold the seed are made alike (teachers have it)."""
    config = {key: value for key, value in run.run["config"].items() if key not in PLACES.union(per_seed)}
    kept = {"config": config, "budget": run.run["budget"], "quirks": sorted(run.run["quirks"]),
            "data": {key: run.run["data"].get(key) for key in ("name", "train_fingerprint", "test_fingerprint")},
            "model": run.run["model"], "epochs": run.train["epochs"], "selected_on": run.train["selected_on"]}
    return json.dumps(kept, sort_keys=True).replace(f"_s{run.run['seed']}", "_s*")


def result_of(run: RunRecord, evaluator: str, plans: Sequence[str] = ()) -> tuple[EvalRecord, dict[str, Any]] | None:
    """The record and result of one evaluator; None if there is none.  One that judged other weights than the
    training left is passed over; two plans that both have it are a ValueError that names them."""
    found = [(record, record.results[evaluator]) for record in run.evals.values()
             if (not plans or record.plan in plans) and evaluator in record.results and not stale(run, record)]
    if len(found) > 1:
        raise ValueError(f"two plans judge {evaluator}: " + ", ".join(str(record.path) for record, _ in found))
    return found[0] if found else None


def stale(run: RunRecord, record: EvalRecord) -> bool:
    """Whether an evaluation judged other weights than train.json names."""
    named = (run.train or {}).get("weights", {}).get(record.record["checkpoint"], {})
    return named.get("sha256") != record.record["weights_sha256"]


def cell(runs: Sequence[RunRecord], evaluator: str, plans: Sequence[str] = ()) -> Cell | None:
    """The verdicts of one evaluator on one method's seeds (see `group`); ValueError if protocols differ."""
    found = [(run, *pair) for run in runs if (pair := result_of(run, evaluator, plans))]
    if not found:
        return None
    if len({_judging(record, result) for _, record, result in found}) > 1:
        raise ValueError(f"one cell ({evaluator}), two protocols: "
                         + ", ".join(str(record.path) for _, record, _ in found))
    return Cell(seeds=tuple(run.run["seed"] for run, _, _ in found),
                robust=tuple(result["robust"] for _, _, result in found), n=found[0][2]["n"],
                records=tuple(_short(record.path) for _, record, _ in found), result=found[0][2])


def _judging(record: EvalRecord, result: Mapping[str, Any]) -> str:
    """All that makes a verdict comparable, as text."""
    return json.dumps([*(result[key] for key in ("name", "kind", "norm", "eps", "settings", "n")),
                       record.record["checkpoint"], record.record["data"]["test_fingerprint"]], sort_keys=True)


def _short(path: Path) -> str:
    """A record's path from `results` on."""
    return "/".join(path.parts[-5:]) if len(path.parts) >= 5 else str(path)


def build(table: Table, runs: Sequence[RunRecord], reported: Sequence[Reported], dataset: str, budget: str) -> Report:
    """The report of one data set and budget; other runs in `runs` are left aside."""
    runs = [run for run in runs if (run.run["dataset"], run.run["budget"]) == (dataset, budget)]
    grouped = {(row.method, row.variant): group(runs, row.method, row.variant, table.per_seed) for row in table.rows}
    cells = {(*key, column.evaluator): cell(members, column.evaluator, table.plans)
             for key, members in grouped.items() for column in table.columns}
    title = f"{table.title} on {dataset}, budget {budget}"
    main, values = _main(table, list(reported), dataset, title, grouped, cells)
    notes = _notes(table, budget, [run for members in grouped.values() for run in members])
    grids = [Grid(title, main.header, main.rows, (*main.notes, *notes)), _compared(table, grouped),
             _listed(table, list(reported), dataset)]
    return Report(tuple(grid for grid in grids if grid.rows), tuple(values))


def _main(table: Table, reported: list[Reported], dataset: str, title: str,
          grouped: Mapping[tuple[str, str], list[RunRecord]], cells: Mapping[tuple[str, str, str], Cell | None],
          ) -> tuple[Grid, list[dict[str, Any]]]:
    sources: dict[str, str] = {}
    rows, values = [], []
    counts = {column.evaluator: {found.n for key, found in cells.items() if found and key[2] == column.evaluator}
              for column in table.columns}
    for row in table.rows:
        members, candidates = grouped[row.method, row.variant], published.of_row(reported, table, dataset, row)
        texts = []
        for column in table.columns:
            ours = cells[row.method, row.variant, column.evaluator]
            other = published.best(candidates, column, table)
            text = ours.text() if ours else DASH
            if ours and len(counts[column.evaluator]) > 1:
                text += f" (n={ours.n})"
            if other:
                text += f" / {other.value} ({sources.setdefault(_source(other), f'r{len(sources) + 1}')})"
            texts.append(text)
            values.append(_value(row.method, row.variant, column, ours, other, members))
        epochs, chosen = _distinct(run.train["epochs"] for run in members), _distinct(_selected(run) for run in members)
        seeds = ", ".join(str(run.run["seed"]) for run in members)
        if members or candidates:
            rows.append((row.label, seeds or DASH, epochs, chosen, *texts))
    header = ("method", "seeds", "epochs", "weights", *(
        column.title + (f" (n={min(counts[column.evaluator])})" if len(counts[column.evaluator]) == 1 else "")
        for column in table.columns))
    notes = ["Accuracy in %: ours / reported. Ours is the mean ± sample standard deviation over seeds, or for one seed "
             "the value with Wilson's 95% interval; n is the number of test images."]
    notes += [f"{label}: reported by {text}" for text, label in sources.items()]
    if sources and any(run.run["budget"] != "full" for members in grouped.values() for run in members):
        notes.append("Reported numbers are of whole trainings of the full network on all images; ours here are of a "
                     "smaller budget: compare our rows with each other, not with them.")
    return Grid(title, header, tuple(rows), tuple(notes)), values


def _source(one: Reported) -> str:
    return (f"{one.paper}, {one.table}: {one.metric}, {one.model}{', ' + one.variant if one.variant else ''}, weights: "
            f"{one.checkpoint}; class {one.source_class} ({published.CLASSES[one.source_class]}): {one.source}")


def _selected(run: RunRecord) -> str:
    return run.train["selected_on"] or "last"


def _distinct(values: Any) -> str:
    return ", ".join(dict.fromkeys(str(value) for value in values)) or DASH


def _value(method: str, variant: str, column: Column, ours: Cell | None, other: Reported | None,
           members: Sequence[RunRecord]) -> dict[str, Any]:
    mean, sd = mean_sd(ours.accuracies) if ours else (None, None)
    low, high = (ours.interval if ours else None) or (None, None)
    return {"method": method, "variant": variant, "evaluator": column.evaluator, "mean": _digits(mean),
            "sd": _digits(sd), "wilson_low": _digits(low), "wilson_high": _digits(high),
            "n": ours.n if ours else None, "robust": " ".join(map(str, ours.robust)) if ours else None,
            "seeds": " ".join(map(str, ours.seeds)) if ours else None,
            "norm": ours.result["norm"] if ours else None, "eps": _digits(ours.result["eps"]) if ours else None,
            "epochs": _distinct(run.train["epochs"] for run in members) if ours else None,
            "weights": _distinct(_selected(run) for run in members) if ours else None,
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
    left = [_short(record.path) for run in runs for record in run.evals.values() if stale(run, record)]
    notes += [f"Left out, since it judged other weights than train.json names: {path}" for path in left]
    if runs:
        notes.append(f"Records, in {_short(runs[0].folder / 'run.json').rpartition('/' + runs[0].name)[0]}/: "
                     + ", ".join(run.name for run in runs) + ".")
    return notes


def _made(made: Mapping[str, Any]) -> str:
    return (f"torch {made.get('torch')}, {made.get('device')}, {made.get('precision')}, {made.get('threads')} threads, "
            f"commit {str(made.get('commit') or 'unknown')[:12]}{' with changes' if made.get('dirty') else ''}")


def _compared(table: Table, grouped: Mapping[tuple[str, str], list[RunRecord]]) -> Grid:
    """The table's pairs, on the same images and for the same seed."""
    labels, rows = table.labels(), []
    for a, b in table.pairs():
        for column in table.columns:
            row = _comparison(grouped[a], grouped[b], column, table.plans)
            if row:
                rows.append((f"{labels[a]} − {labels[b]}", column.title, *row))
    return Grid("Differences, image by image", ("difference", "evaluator", "n", "seeds", "points", "images gained",
                                                "images lost", "McNemar p"), tuple(rows),
                ("Points: difference of accuracies in percentage points, mean ± sample standard deviation over seeds, "
                 "or for one seed with Newcombe's paired 95% interval.",
                 "McNemar p: exact, two-sided, one per seed; the images are the same for all seeds, so the p values of "
                 "several seeds are not independent."))


def _comparison(first: Sequence[RunRecord], second: Sequence[RunRecord], column: Column, plans: Sequence[str],
                ) -> tuple[str, ...] | None:
    others = {run.run["seed"]: run for run in second}
    pairs = [(run, others[run.run["seed"]]) for run in first if run.run["seed"] in others]
    tables, seeds = [], []
    for run, other in pairs:
        found, against = result_of(run, column.evaluator, plans), result_of(other, column.evaluator, plans)
        if not found or not against:
            continue
        flags = [record.arrays[column.evaluator] for record, _ in (found, against)]
        images = [record.arrays["index"][:result["n"]].tolist() for record, result in (found, against)]
        if _judging(*found) != _judging(*against) or images[0] != images[1]:
            raise ValueError(f"one comparison, two protocols: {found[0].path}, {against[0].path}")
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


def _listed(table: Table, reported: list[Reported], dataset: str) -> Grid:
    """Every reported number of the rows' methods, one line per source and checkpoint."""
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    for row in table.rows:
        for one in published.of_row(reported, table, dataset, row):
            lines.setdefault(one.line, {})[one.metric] = one.value
    metrics = list(dict.fromkeys(metric for line in lines.values() for metric in line))
    rows = tuple((f"{line[4]}{', ' + line[5] if line[5] else ''}", line[3],
                  *(found.get(metric, DASH) for metric in metrics),
                  line[6], line[0], f"{line[1]}, {line[2]}; {line[7]}") for line, found in lines.items())
    return Grid(REPORTED_TITLE, ("method", "network", *metrics, "weights", "class", "source"),
                rows, ("The same baseline varies by several points between sources: compare within one source and one "
                       "rule of choosing weights.",
                       "Classes: " + "; ".join(f"{key} {text}" for key, text in published.CLASSES.items()) + "."))
