"""Verdicts of several seeds put together, never of two protocols: what tables and figures count.  No torch."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.evaluation.searches import preference
from common.records import EvalRecord, RunRecord
from common.stats import FORMULAS, Paired, combined, mean_sd, paired, wilson

# Settings of a run that say where and on what it ran; they change no number that is compared.
PLACES = frozenset({"seed", "run", "name", "spec", "out", "data", "data_dir", "dataset_path", "device", "num_workers"})
# Of a record's data: what makes two runs' images the same.
IMAGES = ("name", "n_train", "train_fingerprint", "test_fingerprint")


class Unlike(UserError, ValueError):
    """Records that may not be put together.  The text names them."""

    def __init__(self, text: str):
        super().__init__(f"{text}: numbers of two protocols are never put together; move one of the folders out of the "
                         "records, or give its runs a budget of their own", code="E-TWO-PROTOCOLS")


class Shown:
    """How a cell is written; subclasses have seeds, accuracies (one fraction per seed) and interval."""

    seeds: tuple[int, ...]
    unit = 100.0                               # what a value is shown in: per cent

    def text(self) -> str:
        """In percent: 'mean ± sd' over seeds, or 'value [low, high]' for one seed."""
        mean, sd = mean_sd(self.accuracies)
        if self.interval:
            return f"{100 * mean:.2f} [{100 * self.interval[0]:.1f}, {100 * self.interval[1]:.1f}]"
        return f"{100 * mean:.2f} ± {100 * sd:.2f}"


@dataclass(frozen=True)
class Cell(Shown):
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


@dataclass(frozen=True)
class Combined(Shown):
    """A number made of two evaluators' accuracies on the same n images (see `common.stats.FORMULAS`), per seed."""

    seeds: tuple[int, ...]
    tables: tuple[Paired, ...]                 # first against second evaluator
    records: tuple[str, ...]
    formula: str

    @property
    def n(self) -> int:
        return self.tables[0].n

    @property
    def accuracies(self) -> list[float]:
        return [FORMULAS[self.formula](*table.accuracies) for table in self.tables]

    @property
    def interval(self) -> tuple[float, float] | None:
        """See `common.stats.combined`; where there is one seed."""
        return combined(self.tables[0], self.formula) if len(self.seeds) == 1 else None


def group(runs: Sequence[RunRecord], method: str, variant: str, per_seed: Sequence[str] = ()) -> list[RunRecord]:
    """The finished runs of a method and variant, by seed.  per_seed: see `common.runs.Table`.

    ValueError, naming the folders, if two have one seed or if they differ in more than the seed.
    """
    mine = sorted((run for run in runs if run.train and (run.run["method"], run.run["variant"]) == (method, variant)),
                  key=lambda run: (run.run["seed"], run.name))
    seeds = [run.run["seed"] for run in mine]
    if len(set(seeds)) < len(seeds) or len({_training(run, per_seed) for run in mine}) > 1:
        raise Unlike("one cell, two protocols (or one seed twice): " + ", ".join(str(run.folder) for run in mine))
    return mine


def _training(run: RunRecord, per_seed: Sequence[str]) -> str:
    """All that makes a training comparable, as text; names that hold the seed are made alike (teachers have it)."""
    config = {key: value for key, value in run.run["config"].items() if key not in PLACES.union(per_seed)}
    kept = {"config": config, "budget": run.run["budget"], "quirks": sorted(run.run["quirks"]),
            "data": {key: run.run["data"].get(key) for key in IMAGES if key not in per_seed},
            "model": run.run["model"], "epochs": run.train["epochs"], "selected_on": run.train["selected_on"]}
    return json.dumps(kept, sort_keys=True).replace(f"_s{run.run['seed']}", "_s*")


def result_of(run: RunRecord, evaluator: str, plans: Sequence[str] = ()) -> tuple[EvalRecord, dict[str, Any]] | None:
    """The record and result of one evaluator; None if there is none.  One that judged other weights than the
    training left is passed over; of plans that both have it the one that stands first in `plans` (see
    `common.runs.Table`) counts, beside it one with another search than float32 does not (it repeats the plan's other
    evaluators), and without an order between them they are a ValueError that names them."""
    found = [((rank, preference(record.results.values())), record, record.results[evaluator])
             for record in run.evals.values() if (rank := rank_of(record.plan, plans)) is not None
             and evaluator in record.results and not stale(run, record)]
    first = min((place for place, *_ in found), default=(0, 0))
    chosen = [(record, result) for place, record, result in found if place == first]
    if len(chosen) > 1:
        raise Unlike(f"two plans judge {evaluator}: " + ", ".join(str(record.path) for record, _ in chosen))
    return chosen[0] if chosen else None


def rank_of(plan: str, plans: Sequence[str]) -> int | None:
    """Position in `plans` of the pattern (`small-*`) that a plan's name fits first, names without a star being equal;
    None if it fits none."""
    if not plans:
        return 0
    fits = (position if "*" in pattern else 0 for position, pattern in enumerate(plans) if fnmatchcase(plan, pattern))
    return next(fits, None)


def stale(run: RunRecord, record: EvalRecord) -> bool:
    """Whether an evaluation judged other weights than train.json names."""
    named = (run.train or {}).get("weights", {}).get(record.record["checkpoint"], {})
    return named.get("sha256") != record.record["weights_sha256"]


def weights_of(run: RunRecord, suffix: str = "") -> str:
    """What a row says of a run's weights: its own suffix, what they were selected on, or "last"."""
    if suffix.strip():
        return suffix.strip()
    judged = {record.record["checkpoint"] for record in run.evals.values()}
    return "last" if judged == {"last"} else run.train["selected_on"] or "last"


def cell(runs: Sequence[RunRecord], evaluator: str, plans: Sequence[str] = ()) -> Cell | None:
    """The verdicts of one evaluator on one method's seeds (see `group`); ValueError if protocols differ."""
    found = [(run, *pair) for run in runs if (pair := result_of(run, evaluator, plans))]
    if not found:
        return None
    if len({judging(record, result) for _, record, result in found}) > 1:
        raise Unlike(f"one cell ({evaluator}), two protocols: "
                     + ", ".join(str(record.path) for _, record, _ in found))
    return Cell(seeds=tuple(run.run["seed"] for run, _, _ in found),
                robust=tuple(result["robust"] for _, _, result in found), n=found[0][2]["n"],
                records=tuple(short(record.path) for _, record, _ in found), result=found[0][2])


def together(runs: Sequence[RunRecord], first: str, second: str, plans: Sequence[str] = ()
             ) -> list[tuple[int, Paired, tuple[str, ...]]]:
    """(seed, counts, records) of the runs that have both evaluators, on the images that both were run on.

    ValueError if protocols differ, or if the two judged other images or other weights.
    """
    cells, found = [cell(runs, evaluator, plans) for evaluator in (first, second)], []
    for run in runs if all(cells) else ():
        verdicts = [result_of(run, evaluator, plans) for evaluator in (first, second)]
        if not all(verdicts):
            continue
        if len({(record.record["weights_sha256"], record.record["data"]["test_fingerprint"])
                for record, _ in verdicts}) > 1:
            raise Unlike(f"{first} and {second} of {run.name} are of other weights or images: "
                         + ", ".join(str(record.path) for record, _ in verdicts))
        n = min(result["n"] for _, result in verdicts)
        images = [record.arrays["index"][:n].tolist() for record, _ in verdicts]
        if images[0] != images[1]:
            raise Unlike(f"{first} and {second} of {run.name} were run on other images")
        flags = [record.arrays[result["name"]][:n] for record, result in verdicts]
        found.append((run.run["seed"], paired(*flags), tuple(dict.fromkeys(short(record.path)
                                                                           for record, _ in verdicts))))
    return found


def combination(runs: Sequence[RunRecord], first: str, second: str, formula: str, plans: Sequence[str] = ()
                ) -> Combined | None:
    """A formula's value on one method's seeds (see `group`, `together`)."""
    found = together(runs, first, second, plans)
    if not found:
        return None
    seeds, tables, records = zip(*found, strict=True)
    if len({table.n for table in tables}) > 1:
        raise Unlike(f"{formula} of {first} and {second}: other numbers of images, in "
                     + ", ".join(name for names in records for name in names))
    return Combined(seeds, tables, tuple(name for names in records for name in names), formula)


def judging(record: EvalRecord, result: Mapping[str, Any]) -> str:
    """All that makes a verdict comparable, as text."""
    return json.dumps([*(result[key] for key in ("name", "kind", "norm", "eps", "settings", "n")),
                       record.record["checkpoint"], record.record["data"]["test_fingerprint"]], sort_keys=True)


def short(path: Path) -> str:
    """A record's path from `results` on."""
    return "/".join(path.parts[-5:]) if len(path.parts) >= 5 else str(path)
