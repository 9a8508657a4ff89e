"""The brain-inspired regulariser's figures as functions of records; no torch.

strength      accuracy against the strength of each attack, mean and range over seeds, reported points
boundary      medians of the boundary attack
ablations     effect of N, k, threshold and range: `brainreg.figures_ablations`
corruptions   accuracy over severities, by frequency band: `brainreg.figures_corruptions`
similarity-matrices, similarity-targets      of the regularisation images: `brainreg.figures_similarity`
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from brainreg import figures_ablations, figures_corruptions, figures_similarity, plans
from brainreg.figures_style import Shown, images_of, medians, results_of, shown, value_of
from brainreg.runs_table import BOUNDARY_NORM, NORMS
from common import plots
from common.records import RunRecord
from common.stats import mean_sd

TITLES = {"Gaussian": "Gaussian noise", "Uniform": "uniform noise", "SaltPepper": "salt and pepper",
          "TransferredFGSM": "transferred FGSM"}


def draw(results: Path, out: Path, *, dataset: str | None = None, budget: str | None = None) -> list[Path]:
    """Write every figure that the records allow to OUT/figures/brainreg-DATASET-BUDGET-WHAT.png; return the paths."""
    written = []
    for data, cost, runs in plots.finished(results, "brainreg", dataset, budget):
        found, title = shown(runs, data, cost, Path(results)), f"{data}, budget {cost}"
        main = [one for one in found if one.variant.main]

        def named(what: str, stem: str = f"brainreg-{data}-{cost}") -> Path:
            return Path(out) / "figures" / f"{stem}-{what}.png"

        if any(curve(run, attack) for one in main for run in one.runs for attack in TITLES):
            written.append(strength(main, title, named("strength")))
        if any(medians(one) for one in main):
            written.append(boundary([one for one in main if medians(one)], title, named("boundary")))
        written += figures_ablations.draw(found, title, named)
        written += figures_corruptions.draw(main, title, named)
        written += figures_similarity.draw(found, title, named)
    return written


# -- accuracy against strength ---------------------------------------------------------------------------------------

def curve(run: RunRecord, attack: str) -> tuple[np.ndarray, np.ndarray] | None:
    """(strengths (E,), accuracies (E,)) of an attack; None where it was not made."""
    found = plans.curve(results_of(run), attack)
    return (np.array([eps for eps, _, _ in found]), np.array([robust / n for _, robust, n in found])) if found else None


def strength(main: Sequence[Shown], title: str, path: Path) -> Path:
    """A panel per attack, a line per network; crosses where a curve of the paper was read off."""
    attacks = [attack for attack in TITLES if any(curve(run, attack) for one in main for run in one.runs)]
    rows = -(-len(attacks) // 2)
    with plots.figure(path, 9.2, 1.4 + 3.1 * rows) as figure:
        panels = figure.subplots(rows, 2, squeeze=False, sharey=True).ravel()
        for axes in panels[len(attacks):]:
            axes.set_visible(False)
        for axes, attack in zip(panels, attacks, strict=False):
            for one in main:
                band(axes, one, attack)
            axes.set(title=TITLES[attack], xlabel="strength (of the images' range)")
            axes.set_ylim(0, 100)
            axes.xaxis.get_major_locator().set_params(nbins=6)
        for axes in panels[::2]:
            axes.set_ylabel("test accuracy (%)")
        plots.legend_below(figure, panels, 3)
        members = [one.runs for one in main]
        several = ", mean and range" if any(len(runs) > 1 for runs in members) else ""
        judged = [result for runs in members for run in runs for result in results_of(run)
                  if result["kind"] in plans.ATTACKS.values()]
        crosses = any(one.points("accuracy", NORMS[attack]) for one in main for attack in attacks if attack in NORMS)
        told = "\ncrosses: read off the paper's figures (± 0.3 points), whole trainings" if crosses else ""
        figure.suptitle(f"{title}: {images_of(judged)}, {plots.seeds_of(members)}{several}{told}", fontsize=11)
    return path


def band(axes: Axes, one: Shown, attack: str) -> None:
    """One network's line, its range over seeds, and what is reported of it."""
    curves = [found for run in one.runs if (found := curve(run, attack))]
    strengths, mean, low, high = plots.mean_and_band(curves)
    if len(strengths):
        axes.plot(strengths, 100 * mean, markersize=4, **one.line)
        axes.fill_between(strengths, 100 * low, 100 * high, color=one.line["color"], alpha=0.15, linewidth=0)
    points = one.points("accuracy", NORMS[attack]) if attack in NORMS else []
    if points:
        axes.plot([float(point.eps) for point in points], [value_of(point)[0] for point in points], linestyle="none",
                  marker="x", markersize=5, color=one.line["color"],
                  markeredgewidth=1.8 if one.variant.settings.reg_boosting else 0.9)


# -- boundary attack -------------------------------------------------------------------------------------------------

def boundary(main: Sequence[Shown], title: str, path: Path) -> Path:
    """A row per network: each seed's median, their mean and standard deviation; hollow diamonds: reported."""
    with plots.figure(path, 7.4, 1.8 + 0.5 * len(main)) as figure:
        axes = figure.subplots()
        for place, one in enumerate(main):
            values = list(medians(one).values())
            mean, sd = mean_sd(values)
            axes.plot(values, [place] * len(values), linestyle="none", marker=".", markersize=5, color=plots.GREY,
                      alpha=0.8, label="one seed")
            axes.errorbar(mean, place, xerr=sd or 0, capsize=3, elinewidth=1.2, markersize=7,
                          **{**one.line, "linestyle": "none", "label": None})
            for point in one.points("median x1e-3", BOUNDARY_NORM):
                value, error = value_of(point)
                axes.errorbar(value, place + 0.22, xerr=error, marker="d", markersize=6, markerfacecolor="white",
                              color=plots.BLACK, linestyle="none", elinewidth=0.8, capsize=2,
                              label="reported (± standard error)")
        axes.set_yticks(range(len(main)), [one.label for one in main])
        axes.set_ylim(len(main) - 0.5, -0.5)
        axes.set_xlim(left=0)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("median squared perturbation per pixel (1e-3): further right is more robust")
        plots.legend_below(figure, [axes], 2)
        members = [one.runs for one in main]
        searched = [result for runs in members for run in runs for result in results_of(run)
                    if result["kind"] == "boundary"]
        bars = "\nlarge: mean ± one sd over seeds" if any(len(medians(one)) > 1 for one in main) else ""
        figure.suptitle(f"{title}: boundary attack, {images_of(searched)}, {plots.seeds_of(members)}{bars}",
                        fontsize=11)
    return path
