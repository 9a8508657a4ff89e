"""Figures of perception consistency: how far the logits move under an attack; no torch.

perception          of the judged weights: mean squared difference of the logits between x and x' and on either side of
                    the image half way, over the images whose x' is classified right (defended) and the rest (fooled),
                    under PGD-20 and under noise; from plan perception-rpat
perception-epochs   the same between x and x', after each epoch, under training's PGD; from metrics.jsonl

The paper's fact: on adversarially trained networks the fooled images move less than the defended ones.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from common import plots
from common.cells import result_of
from common.records import RunRecord
from common.stats import mean_sd
from rpat.figures_style import LABELS, Grouped, Key, seeds_of, whole_numbers
from rpat.runs import TABLE

EVALUATORS = {"perception PGD-20": "PGD-20", "perception noise": "uniform noise, 8/255"}
PAIRS = {"clean-adversarial": "x and x′", "clean-middle": "x and the middle", "middle-adversarial": "the middle and x′"}
GROUPS = {"defended": (plots.BLUE, "o"), "fooled": (plots.RED, "X")}
WHOLE = "clean-adversarial"
FLAT = 20                                      # times the median: where a linear axis would show nothing but the peak


def draw(grouped: Grouped, title: str, named: Callable[[str], Path]) -> list[Path]:
    """Both figures, where there is something to draw; the paths."""
    written = []
    if any(moves(run, name) for runs in grouped.values() for run in runs for name in EVALUATORS):
        written.append(final(grouped, title, named("perception")))
    if any(curve_of(run, group) for runs in grouped.values() for run in runs for group in GROUPS):
        written.append(epochs(grouped, title, named("perception-epochs")))
    return written


# -- the judged weights ----------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Moves:
    """Of one run and evaluator: (group, pair) -> images, mean over them, standard error of the mean."""

    of: dict[tuple[str, str], tuple[int, float, float]]
    n: int
    checkpoint: str


def moves(run: RunRecord, evaluator: str) -> Moves | None:
    """What a run's record says; None where it was not measured.  A group without images is left out."""
    found = result_of(run, evaluator, TABLE.plans)
    if not found:
        return None
    record, result = found
    numbers = record.numbers(evaluator)
    members = {"defended": numbers["defended"] == 1, "fooled": numbers["defended"] == 0}
    of = {}
    for group, chosen in members.items():
        for pair in PAIRS if chosen.any() else ():
            values = numbers[pair][chosen].astype(np.float64)
            error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
            of[group, pair] = (len(values), float(values.mean()), float(error))
    return Moves(of, result["n"], record.record["checkpoint"])


def interval(found: Sequence[tuple[int, float, float]]) -> tuple[float, float]:
    """(mean, half width) of a group over seeds: one standard deviation, or for one seed 1.96 standard errors (0 where
    one image says nothing of it)."""
    mean, sd = mean_sd([value for _, value, _ in found])
    return mean, float(np.nan_to_num(1.96 * found[0][2])) if sd is None else sd


def final(grouped: Grouped, title: str, path: Path) -> Path:
    """A row per perturbation, a panel per pair, a line per method with a mark for each group of images."""
    keys = [key for key, runs in grouped.items() if any(moves(run, name) for run in runs for name in EVALUATORS)]
    shown = [name for name in EVALUATORS if any(moves(run, name) for key in keys for run in grouped[key])]
    measured = [found for key in keys for run in grouped[key] for name in shown if (found := moves(run, name))]
    with plots.figure(path, 10.2, 1.6 + (1.0 + 0.36 * len(keys)) * len(shown)) as figure:
        panels = figure.subplots(len(shown), len(PAIRS), sharey=True, squeeze=False)
        for number, (row, name) in enumerate(zip(panels, shown, strict=True)):
            for axes, (pair, words) in zip(row, PAIRS.items(), strict=True):
                panel(axes, grouped, keys, name, pair)
                if number == 0:
                    axes.set_title(f"between {words}")
            row[0].set_ylabel(EVALUATORS[name], fontweight="bold")
        for axes in panels[-1]:
            axes.set_xlabel("mean squared difference of the logits")
        for axes in panels[:, 0]:
            axes.set_yticks(range(len(keys)), [LABELS[key] for key in keys])
            axes.set_ylim(len(keys) - 0.5, -0.5)
        handles = {label: handle for axes in panels.ravel()
                   for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3)
        images = whole_numbers(found.n for found in measured)
        weights = " and ".join(sorted({found.checkpoint for found in measured}))
        runs = [grouped[key] for key in keys]
        several = {len(one) > 1 for one in runs}
        bars = {(True,): "± one sd over seeds", (False,): "95% of the mean"}.get(
            tuple(several), "± one sd over seeds (one seed: 95% of the mean)")
        figure.suptitle(f"{title}: {images} test images, {weights} weights, {seeds_of(runs)}\nbars: {bars}",
                        fontsize=11)
    return path


def panel(axes: Axes, grouped: Grouped, keys: Sequence[Key], evaluator: str, pair: str) -> None:
    """One pair's means; a tick at a quarter of (x, x'), where a linear network has both halves."""
    for place, key in enumerate(keys):
        found = [one for run in grouped[key] if (one := moves(run, evaluator))]
        for group, (colour, marker) in GROUPS.items():
            values = [one.of[group, pair] for one in found if (group, pair) in one.of]
            if not values:
                continue
            mean, half = interval(values)
            axes.errorbar(mean, place, xerr=half, color=colour, marker=marker, markersize=7, linestyle="none",
                          elinewidth=1.2, capsize=2, label={"defended": "x′ classified right (defended)",
                                                            "fooled": "x′ classified wrong (fooled)"}[group])
            if pair != WHOLE:
                quarter = mean_sd([one.of[group, WHOLE][1] / 4 for one in found if (group, WHOLE) in one.of])[0]
                axes.plot(quarter, place, color=colour, marker="|", markersize=14, linestyle="none",
                          label="a quarter of x and x′: linear" if group == "defended" else None)
    axes.set_xlim(left=0)
    # Under noise the values are as small as 1e-5: few ticks, each with its own power of ten.
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.grid(axis="y", visible=False)


# -- over the epochs -------------------------------------------------------------------------------------------------

def curve_of(run: RunRecord, group: str) -> str | None:
    """Name in metrics.jsonl of a group's difference between x and x': on test images if there are some."""
    names = (f"{part}_mse_{group}_{WHOLE}" for part in ("test", "val"))
    return next((name for name in names if len(run.curve(name)[0])), None)


def epochs(grouped: Grouped, title: str, path: Path) -> Path:
    """A panel per method: both groups' curves, mean over seeds, band from lowest to highest."""
    shown = {key: runs for key, runs in grouped.items()
             if any(curve_of(run, group) for run in runs for group in GROUPS)}
    columns = min(4, len(shown))
    rows, drawn = -(-len(shown) // columns), []
    with plots.figure(path, max(5.4, 0.8 + 2.9 * columns), 1.2 + 2.6 * rows) as figure:
        panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for axes in panels.ravel()[len(shown):]:
            axes.set_visible(False)
        for axes, (key, runs) in zip(panels.ravel(), shown.items(), strict=False):
            for group, (colour, _) in GROUPS.items():
                curves = [run.curve(name) for run in runs if (name := curve_of(run, group))]
                found, mean, low, high = plots.mean_and_band(curves)
                if not len(found):
                    continue
                axes.plot(found, mean, color=colour, linestyle={"defended": "-", "fooled": "--"}[group], label=group)
                drawn.extend(mean)
                axes.fill_between(found, low, high, color=colour, alpha=0.15, linewidth=0)
            axes.set_title(LABELS[key])
            axes.xaxis.get_major_locator().set_params(integer=True)
        # Shared, and the top fixed by it: once all is drawn.  A wild first epoch would flatten all others: then powers.
        if np.nanmax(drawn) > FLAT * np.nanmedian(drawn) > 0:
            panels[0, 0].set_yscale("log")
        else:
            panels[0, 0].set_ylim(bottom=0)
        for axes in panels[-1]:
            axes.set_xlabel("epoch")
        for axes in panels[:, 0]:
            axes.set_ylabel("mean squared difference,\nlogits of x and x′")
        handles = {label: handle for axes in panels.ravel()
                   for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=2)
        names = {name.partition("_")[0] for runs in shown.values() for run in runs for group in GROUPS
                 if (name := curve_of(run, group))}
        images = whole_numbers(row[f"n_{part}"] for runs in shown.values() for run in runs for row in run.metrics
                               for part in names if f"n_{part}" in row)
        several = ", mean and range" if any(len(runs) > 1 for runs in shown.values()) else ""
        figure.suptitle(f"{title}\n{images} images under training's PGD, {seeds_of(shown.values())}{several}",
                        fontsize=11)
    return path
