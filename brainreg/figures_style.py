"""What the brain-inspired regulariser's figures share: which runs, which results, names and colours.  No torch."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brainreg import plans
from brainreg.runs import TABLE
from brainreg.runs_budgets import BUDGETS, TARGETS, shape_of
from brainreg.runs_table import label
from brainreg.runs_variants import Variant, variants
from brainreg.settings import DEFAULT_PLAN
from common import plots, reported
from common.cells import group, stale
from common.records import RunRecord
from common.reported import Reported
from common.runs import Row

COLOURS = {None: plots.GREY, "mnist": plots.BLUE, "fashion-mnist": plots.ORANGE, "cifar10": plots.RED,
           "cifar100": plots.PURPLE, "imagenet": plots.GREEN}
MARKERS = {None: "X", "mnist": "s", "fashion-mnist": "^", "cifar10": "o", "cifar100": "D", "imagenet": "v"}


@dataclass(frozen=True)
class Shown:
    """One network in a figure: what it is, its runs by seed, what the figure's data set has of reported numbers."""

    variant: Variant
    runs: Sequence[RunRecord]
    reported: Sequence[Reported]

    @property
    def label(self) -> str:
        """As in the tables, with S^pixel, S_low, ... as formulas."""
        return re.sub(r"S([_^])(\w+|[+-])(?!\w)", r"$S\1\\mathrm{\2}$", label(self.variant))

    @property
    def short(self) -> str:
        """Without a word that every network in the figure has."""
        return self.label.removeprefix("regularised ")

    @property
    def line(self) -> dict[str, Any]:
        """Colour and marker of the source; dashes without regularisation, dots and hollow marks where targets are S."""
        source, boosted = self.variant.source, self.variant.settings.reg_boosting
        return {"color": COLOURS[source], "marker": MARKERS[source], "label": self.label,
                "linestyle": "--" if source is None else "-" if boosted else ":",
                "markerfacecolor": COLOURS[source] if boosted else "white"}

    def points(self, metric: str, norm: str, table: str = "") -> list[Reported]:
        """What is reported of a metric and norm; of the first source only, or of the tables that begin so."""
        found = [one for one in self.reported if (one.metric, one.norm) == (metric, norm)
                 and one.table.startswith(table)]
        return [one for one in found if one.table == found[0].table]


def shown(runs: Sequence[RunRecord], dataset: str, budget: str, results: Path) -> list[Shown]:
    """The networks of one data set and budget that have finished runs, in the table's order."""
    name = dataset.removesuffix("-rgb")
    if name not in TARGETS or budget not in BUDGETS:
        return []
    mine = [run for run in runs if run.run["seed"] not in TABLE.sources]
    # The smallest budget's images are digits, whatever the data set's name.
    listed = reported.read(results / "reported" / f"{TABLE.reported_file}.csv") if budget != "smoke" else []
    rows = {(row.method, row.variant): row for row in TABLE.rows}
    found = []
    for variant in variants(TARGETS[name], shape_of(name, budget)).values():
        if members := group(mine, *variant.key, TABLE.per_seed):
            row = rows[variant.key]
            found.append(Shown(variant, members, [*reported.of_row(listed, TABLE, dataset, row),
                                                  *of_corruptions(listed, dataset, row)]))
    return found


def of_corruptions(listed: Sequence[Reported], dataset: str, row: Row) -> list[Reported]:
    """What is reported of a row's network on corrupted images, which are listed as a data set of their own."""
    methods = {method.removesuffix(" S^Th") for method, _ in row.reported}
    return [one for one in listed if dataset == "cifar10" and one.dataset.startswith("CIFAR-10-C ")
            and one.method in methods]


def results_of(run: RunRecord, stem: str = DEFAULT_PLAN) -> list[Mapping[str, Any]]:
    """The results of a run's plan that begins with `stem`, of the one on most images; none where there is none."""
    found = [list(record.results.values()) for record in run.evals.values()
             if record.plan.startswith(stem) and not stale(run, record)]
    return max(found, key=lambda results: max(result["n"] for result in results), default=[])


def medians(one: Shown) -> dict[int, float]:
    """Seed -> the boundary attack's median, in 1e-3, of the runs that have it."""
    found = {run.run["seed"]: plans.boundary_medians(results_of(run))[0] for run in one.runs}
    return {seed: 1000 * value for seed, value in found.items() if value is not None}


def value_of(one: Reported) -> tuple[float, float]:
    """(value, its spread or 0) of a reported number such as 5.98+-0.62."""
    value, _, spread = one.value.partition("+-")
    return float(value), float(spread or 0)


def images_of(results: Iterable[Mapping[str, Any]]) -> str:
    """How many images the results are of."""
    return f"{plots.whole_numbers(result['n'] for result in results)} test images"
