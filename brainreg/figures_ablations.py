"""Effect of one setting at a time: N images, k pairs, threshold, range; no torch.

A column per setting.  Upper row: clean accuracy, and each attack's mean accuracy over its strengths, against the
setting; lower row: the boundary attack's median.  Level lines: the network without regularisation.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from brainreg import plans
from brainreg.figures_style import Shown, medians, results_of, value_of
from brainreg.runs_table import BOUNDARY_NORM, NAMES
from brainreg.runs_variants import ABLATIONS
from common import plots
from common.records import RunRecord
from common.stats import mean_sd

TITLES = {"N": "regularisation images N", "k": "pairs per step k", "thresholds": "threshold Th",
          "ranges": "range of similarities"}
CLEAN = "clean"
LINES = {CLEAN: (plots.BLACK, "o"), "Gaussian": (plots.BLUE, "s"), "Uniform": (plots.SKY, "^"),
         "SaltPepper": (plots.GREEN, "v"), "TransferredFGSM": (plots.RED, "D")}
LABELS = {CLEAN: "clean", "Gaussian": "Gaussian, mean", "Uniform": "uniform, mean",
          "SaltPepper": "salt and pepper, mean", "TransferredFGSM": "FGSM, mean"}
# What the poster lists of each setting: (source, start of the table's name).
REPORTED = {"N": ("imagenet", "poster dataset size N"), "ranges": ("cifar10", "poster components")}


def draw(found: Sequence[Shown], title: str, named: Callable[[str], Path]) -> list[Path]:
    """A figure for each source with an ablation of two points or more; the paths."""
    written = []
    base = next((one for one in found if one.variant.source is None), None)
    for source in dict.fromkeys(one.variant.source for one in found if one.variant.source):
        groups = {group: points for group in ABLATIONS if len(points := of_group(found, source, group)) > 1}
        if any(mean_of(run, CLEAN) is not None for points in groups.values() for one in points for run in one.runs):
            written.append(ablations(groups, base, f"{title}: regularised on {NAMES[source]}",
                                     named(f"ablations-{source}")))
    return written


def of_group(found: Sequence[Shown], source: str, group: str) -> list[Shown]:
    """A source's networks that differ in one setting, by its value as ABLATIONS has them."""
    values = ABLATIONS[group][1]
    points = [one for one in found if one.variant.source == source and group in one.variant.groups]
    return sorted(points, key=lambda one: values.index(one.variant.groups[group]))


def mean_of(run: RunRecord, what: str) -> float | None:
    """Clean accuracy, or an attack's mean accuracy over its strengths (fractions); None where it was not measured."""
    results = results_of(run)
    if what == CLEAN:
        return next((result["robust"] / result["n"] for result in results if result["kind"] == "clean"), None)
    found = plans.curve(results, what)
    return float(np.mean([robust / n for _, robust, n in found])) if found else None


def ablations(groups: Mapping[str, Sequence[Shown]], base: Shown | None, title: str, path: Path) -> Path:
    """See above."""
    with plots.figure(path, max(6.4, 1.6 + 2.9 * len(groups)), 6.6) as figure:
        panels = figure.subplots(2, len(groups), squeeze=False, sharey="row", sharex="col")
        for (upper, lower), (group, points) in zip(panels.T, groups.items(), strict=True):
            for what in LINES:
                accuracies(upper, points, base, what)
            searches(lower, points, base, group)
            names = [f"{value:,}" if isinstance(value := one.variant.groups[group], int) else str(value)
                     for one in points]
            lower.set_xticks(range(len(points)), names, rotation=30 if group == "ranges" else 0)
            lower.set_xlim(-0.4, len(points) - 0.6)
            lower.set_xlabel(TITLES[group])
        panels[0, 0].set_ylim(0, 100)
        panels[0, 0].set_ylabel("test accuracy (%)")
        panels[1, 0].set_ylim(bottom=0)
        panels[1, 0].set_ylabel("boundary attack, median (1e-3)")
        plots.legend_below(figure, panels.ravel(), 4)
        members = [one.runs for points in groups.values() for one in points]
        bars = ", ± one sd" if any(len(runs) > 1 for runs in members) else ""
        level = "\nlevel lines: without regularisation" if base else ""
        figure.suptitle(f"{title}; {plots.seeds_of(members)}{bars}{level}", fontsize=11)
    return path


def accuracies(axes: Axes, points: Sequence[Shown], base: Shown | None, what: str) -> None:
    """One line of the upper row."""
    colour, marker = LINES[what]
    places, means, bars = [], [], []
    for place, one in enumerate(points):
        values = [value for run in one.runs if (value := mean_of(run, what)) is not None]
        if values:
            mean, sd = mean_sd(values)
            places, means, bars = [*places, place], [*means, 100 * mean], [*bars, 100 * (sd or 0)]
    if places:
        axes.errorbar(places, means, yerr=bars, color=colour, marker=marker, markersize=5, capsize=2, elinewidth=0.8,
                      label=LABELS[what])
    without = [value for run in base.runs if (value := mean_of(run, what)) is not None] if base else []
    if without:
        axes.axhline(100 * mean_sd(without)[0], color=colour, linestyle=":", linewidth=1.1)


def searches(axes: Axes, points: Sequence[Shown], base: Shown | None, group: str) -> None:
    """The lower row: ours, and on the data set of the poster what it shows."""
    for place, one in enumerate(points):
        if values := list(medians(one).values()):
            mean, sd = mean_sd(values)
            axes.errorbar(place, mean, yerr=sd or 0, color=plots.PURPLE, marker="o", markersize=6, capsize=2,
                          elinewidth=0.8, linestyle="none", label="boundary attack, median")
        source, table = REPORTED.get(group, ("", ""))
        for point in one.points("median x1e-3", BOUNDARY_NORM, table) if one.variant.source == source else ():
            value, error = value_of(point)
            axes.errorbar(place + 0.15, value, yerr=error, color=plots.BLACK, marker="d", markerfacecolor="white",
                          markersize=6, capsize=2, elinewidth=0.8, linestyle="none",
                          label="reported (± standard error)")
    without = list(medians(base).values()) if base else []
    if without:
        axes.axhline(mean_sd(without)[0], color=plots.PURPLE, linestyle=":", linewidth=1.1)
