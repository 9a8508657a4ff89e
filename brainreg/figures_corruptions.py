"""Accuracy on corrupted images over severities, of all corruptions and of each band of frequencies; no torch."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from brainreg.figures_style import Shown, images_of, results_of, value_of
from common import plots
from common.evaluation.corruptions import by_band, by_severity
from common.evaluation.kinds import CORRUPTION_KINDS
from common.records import RunRecord
from common.reported import Reported

PLAN = "corruptions-brainreg"
BANDS = {"all": "all corruptions", "low": "low frequencies", "medium": "medium frequencies", "high": "high frequencies"}


def draw(main: Sequence[Shown], title: str, named: Callable[[str], Path]) -> list[Path]:
    """The figure, where images were corrupted."""
    found = [one for one in main if any(curves(run) for run in one.runs)]
    return [corruptions(found, title, named("corruptions"))] if found else []


def curves(run: RunRecord) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Band, or "all" -> (severities, accuracies), over all images of its corruptions; empty without such a plan."""
    corrupted = [result for result in results_of(run, PLAN) if result["kind"] in CORRUPTION_KINDS]
    if not corrupted:
        return {}
    counts = {"all": by_severity(corrupted), **by_band(corrupted)}
    return {band: (np.array(sorted(found)), np.array([found[key][0] / found[key][1] for key in sorted(found)]))
            for band, found in counts.items()}


def corruptions(main: Sequence[Shown], title: str, path: Path) -> Path:
    """A panel for all corruptions and for each band, a line per network."""
    with plots.figure(path, 11.0, 4.2) as figure:
        panels = figure.subplots(1, len(BANDS), sharey=True)
        for axes, (band, words) in zip(panels, BANDS.items(), strict=True):
            for one in main:
                of_band = [found[band] for run in one.runs if band in (found := curves(run))]
                for point in reported_of(one, band):
                    axes.plot(float(point.eps), value_of(point)[0], linestyle="none", marker="x", markersize=6,
                              markeredgewidth=1.8, color=one.line["color"])
                severities, mean, low, high = plots.mean_and_band(of_band)
                if not len(severities):
                    continue
                axes.plot(severities, 100 * mean, markersize=4, **one.line)
                axes.fill_between(severities, 100 * low, 100 * high, color=one.line["color"], alpha=0.15, linewidth=0)
            axes.set(title=words, xlabel="severity", xticks=range(1, 6))
        panels[0].set_ylim(0, 100)
        panels[0].set_ylabel("test accuracy (%)")
        plots.legend_below(figure, panels, 4)
        members = [one.runs for one in main]
        judged = [result for runs in members for run in runs for result in results_of(run, PLAN)]
        several = ", mean and range" if any(len(runs) > 1 for runs in members) else ""
        crosses = "\ncrosses: read off the authors' poster, CIFAR-10-C: other corrupted images, whole trainings"
        figure.suptitle(f"{title}: our own corruptions of {images_of(judged)}, {plots.seeds_of(members)}{several}"
                        + (crosses if any(reported_of(one, band) for one in main for band in BANDS) else ""),
                        fontsize=11)
    return path


def reported_of(one: Shown, band: str) -> list[Reported]:
    """What is reported of a network on a band's corruptions; its eps is the severity."""
    return [point for point in one.reported if point.variant == f"{band}-frequency corruptions"]
