"""AdaRAT's figures as functions of records; no torch.

1. accuracy-METHOD: SA and RA over the epochs, both peaks marked (the paper's figure 1), one panel per variant.
2. barrier-METHOD: the barrier against the clean loss with the training's path on it (the paper's figure 2), and the
   clean loss over the epochs.
3. evaluators: accuracy under every evaluator, for all methods and variants.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from adarat.runs import TABLE
from adarat.settings import GATE, METHODS, VARIANTS
from common import plots
from common.records import RunRecord, read_runs
from common.report import cell, group
from common.runs import BUDGETS

NAMES = {"plain": "plain", "fixrat": "FixRAT", "adarat": "AdaRAT"}
COLOURS = {"plain": plots.BLUE, "fixrat": plots.ORANGE, "adarat": plots.GREEN}
CLEAN, ROBUST = "test_clean_accuracy", "test_pgd_accuracy"

Grouped = dict[tuple[str, str], list[RunRecord]]             # (method, variant) -> runs by seed


def draw(results: Path, out: Path, *, dataset: str | None = None, budget: str | None = None) -> list[Path]:
    """Write every figure that the records allow to OUT/figures/adarat-DATASET-BUDGET-WHAT.png; return the paths."""
    runs = [run for run in read_runs(results, "adarat", dataset)
            if run.train and run.run["budget"] in ([budget] if budget else BUDGETS)]
    written = []
    for data, cost in sorted({(run.run["dataset"], run.run["budget"]) for run in runs}):
        mine = [run for run in runs if (run.run["dataset"], run.run["budget"]) == (data, cost)]
        methods = [method for method in METHODS if any(run.run["method"] == method for run in mine)]
        grouped = {(method, variant): found for method in methods for variant in VARIANTS
                   if (found := group(mine, method, variant, TABLE.per_seed))}
        stem, title = Path(out) / "figures" / f"adarat-{data}-{cost}", f"{data}, budget {cost}"
        for method in methods:
            if any(len(run.curve(ROBUST)[0]) for variant in VARIANTS for run in grouped.get((method, variant), [])):
                written.append(accuracy(grouped, method, title, _named(stem, "accuracy", method)))
            if any(len(run.curve("barrier")[0]) for run in grouped.get((method, "adarat"), [])):
                written.append(barrier(grouped, method, title, _named(stem, "barrier", method)))
        if any(run.evals for run in mine):
            written.append(evaluators(grouped, title, _named(stem, "evaluators")))
    return written


def _named(stem: Path, *what: str) -> Path:
    return stem.with_name("-".join((stem.name, *what)).lower() + ".png")


# -- figure 1 --------------------------------------------------------------------------------------------------------

def accuracy(grouped: Grouped, method: str, title: str, path: Path) -> Path:
    """SA and RA over the epochs: mean over seeds, band from the lowest to the highest seed, the means' peaks marked."""
    present = [variant for variant in VARIANTS if (method, variant) in grouped]
    with plots.figure(path, max(6.4, 1.0 + 3.3 * len(present)), 3.9) as figure:
        panels = figure.subplots(1, len(present), sharey=True, squeeze=False)[0]
        for axes, variant in zip(panels, present, strict=True):
            runs = grouped[method, variant]
            peaks = [_curve(axes, runs, CLEAN, "SA (clean)", plots.BLUE, "^"),
                     _curve(axes, runs, ROBUST, "RA (PGD)", plots.RED, "v")]
            apart = abs(peaks[0] - peaks[1]) if None not in peaks else None
            axes.set_title(f"{NAMES[variant]}" + ("" if apart is None else f": peaks {apart} epochs apart"))
            axes.set_xlabel("epoch")
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.margins(y=0.12)
        panels[0].set_ylabel("test accuracy (%)")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)
        figure.suptitle(f"{method}, {title}: {_seeds(grouped[method, present[0]])}", fontsize=11)
    return path


def _curve(axes: Axes, runs: Sequence[RunRecord], key: str, label: str, colour: str, marker: str) -> int | None:
    """Draw one accuracy; return the epoch at which its mean over seeds peaks."""
    epochs, mean, low, high = plots.mean_and_band([run.curve(key) for run in runs])
    if not len(epochs):
        return None
    axes.plot(epochs, 100 * mean, color=colour, label=label)
    axes.fill_between(epochs, 100 * low, 100 * high, color=colour, alpha=0.18, linewidth=0)
    top = int(mean.argmax())
    axes.axvline(epochs[top], color=colour, linestyle=":", linewidth=1)
    axes.plot(epochs[top], 100 * mean[top], marker=marker, color=colour, markersize=8, linestyle="none",
              markeredgecolor="white", label=f"peak {label[:2]}")
    right = top > len(epochs) / 2
    axes.annotate(f"{100 * mean[top]:.1f} @ {epochs[top]}", (epochs[top], 100 * mean[top]), color=colour, fontsize=9,
                  xytext=(-6 if right else 6, 8), textcoords="offset points", ha="right" if right else "left")
    return int(epochs[top])


def _seeds(runs: Sequence[RunRecord]) -> str:
    seeds = [str(run.run["seed"]) for run in runs]
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"mean of seeds {', '.join(seeds)}, band: lowest to highest"


# -- figure 2 --------------------------------------------------------------------------------------------------------

def barrier_of(c: np.ndarray, up_lim: float, down_lim: float, tao: float) -> np.ndarray:
    """B(c) = max(0, tan(pi/2 * (c - down_lim)/(up_lim - down_lim)))**(1 + tao), as in adarat/method.py; c (n,)."""
    return np.maximum(0, np.tan(np.pi / 2 * (c - down_lim) / (up_lim - down_lim))) ** (1 + tao)


def barrier(grouped: Grouped, method: str, title: str, path: Path) -> Path:
    """Left: B(c) with floor, gate and ceiling, and the epochs' means of the AdaRAT runs.  Right: c over the epochs."""
    runs = grouped[method, "adarat"]
    config = runs[0].run["config"]
    up, down, tao = (float(config[key]) for key in ("up_lim", "down_lim", "tao"))
    with plots.figure(path, 9.2, 4.8) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
        _barrier_curve(left, runs, up, down, tao)
        for variant in VARIANTS:
            epochs, mean, low, high = plots.mean_and_band(
                [run.curve("clean_loss") for run in grouped.get((method, variant), [])])
            right.plot(epochs, mean, color=COLOURS[variant], label=NAMES[variant] if len(epochs) else None)
            right.fill_between(epochs, low, high, color=COLOURS[variant], alpha=0.18, linewidth=0)
        for value, style, label in ((up, "-", "ceiling"), (GATE * up, "--", "gate"), (down, "-.", "floor")):
            right.axhline(value, color=plots.GREY, linestyle=style, linewidth=1, label=f"{label} {value:g}")
        right.set(xlabel="epoch", ylabel="clean loss in training (epoch mean)", title="clean loss over the epochs")
        right.xaxis.get_major_locator().set_params(integer=True)
        right.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2)
        right.set_ylim(bottom=0)
        figure.suptitle(f"{method} with AdaRAT, {title}: {_seeds(runs).split(', band')[0]}", fontsize=11)
    return path


def _barrier_curve(axes: Axes, runs: Sequence[RunRecord], up: float, down: float, tao: float) -> None:
    gate = GATE * up
    below, above = np.linspace(0, gate, 400), np.linspace(gate, up, 200)[:-1]
    # The tangent's other branch (quirk tan-wrap) begins at 2*down - up; nothing is drawn across its pole.
    curve = np.where(below > max(0.0, 2 * down - up), barrier_of(below, up, down, tao), math.nan)
    axes.plot(below, curve, color=plots.BLACK, label="B(c), in the loss below the gate")
    axes.plot(above, barrier_of(above, up, down, tao), color=plots.BLACK, linestyle=":",
              label="B(c) above the gate: not in the loss")
    points = [(run.curve("clean_loss"), run.curve("barrier")) for run in runs]
    clean = np.concatenate([clean[1] for clean, _ in points])
    term = np.concatenate([term[1] for _, term in points])
    epochs = np.concatenate([clean[0] for clean, _ in points])
    dots = axes.scatter(clean, term, c=epochs, cmap="cividis", s=30, edgecolor="white", linewidth=0.5, zorder=3,
                        label="training, epoch means")
    bar = axes.figure.colorbar(dots, ax=axes, label="epoch", pad=0.02)
    bar.locator.set_params(integer=True)
    top = 1.35 * max(float(barrier_of(np.array([gate]), up, down, tao)[0]), float(term.max(initial=0)), 0.1)
    widest = max(up, float(clean.max(initial=0))) * 1.05
    axes.axvspan(gate, widest, color=plots.GREY, alpha=0.12, linewidth=0)
    for value, label in ((down, "floor"), (gate, "gate"), (up, "ceiling")):
        axes.axvline(value, color=plots.GREY, linestyle="--", linewidth=1)
        # Left of its line, but not on the axis' own numbers.
        side = ("left", 3) if value < 0.08 * widest else ("right", -3)
        axes.annotate(f"{label} {value:g}", (value, top), xytext=(side[1], -4), textcoords="offset points", rotation=90,
                      ha=side[0], va="top", color=plots.GREY, fontsize=9)
    axes.set(xlabel="clean loss c", ylabel="barrier term", title="barrier against the clean loss",
             ylim=(-0.03 * top, top), xlim=(0, widest))
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=1)


# -- figure 3 --------------------------------------------------------------------------------------------------------

def evaluators(grouped: Grouped, title: str, path: Path) -> Path:
    """A panel per method: accuracy under every evaluator; bars of 95% (one seed) or of one sd over seeds."""
    methods = list(dict.fromkeys(method for method, _ in grouped))
    names = list(dict.fromkeys(name for runs in grouped.values() for run in runs for plan in run.evals.values()
                               for name in plan.results))
    columns = min(3, len(methods))
    rows = math.ceil(len(methods) / columns)
    with plots.figure(path, max(5.2, 4.4 * columns), 0.7 + 3.2 * rows) as figure:
        panels = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
        for axes, method in zip(panels, methods, strict=False):
            for place, variant in enumerate(VARIANTS):
                _points(axes, grouped.get((method, variant), []), names, variant, 0.24 * (place - 1))
            axes.set_xticks(range(len(names)), names, rotation=35, ha="right", rotation_mode="anchor")
            axes.set_xlim(-0.6, len(names) - 0.4)
            axes.set_title(method)
            axes.grid(axis="x", visible=False)
        for axes in panels[len(methods):]:
            axes.set_visible(False)
        for axes in panels[::columns]:
            axes.set_ylabel("test accuracy (%)")
        panels[0].set_ylim(0, 1.04 * panels[0].get_ylim()[1])
        handles = {label: handle for axes in panels
                   for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3)
        seeds = {len(runs) > 1 for runs in grouped.values()}
        bars = {(False,): "95% intervals", (True,): "± one sd over seeds"}.get(
            tuple(seeds), "± one sd over seeds (one seed: 95%)")
        figure.suptitle(f"{title}, bars: {bars}", fontsize=11)
    return path


def _points(axes: Axes, runs: Sequence[RunRecord], names: Sequence[str], variant: str, shift: float) -> None:
    found = [(place, one) for place, name in enumerate(names) if (one := cell(runs, name))]
    if not found:
        return
    means = np.array([np.mean(one.accuracies) for _, one in found])
    bounds = [one.interval or (mean - np.std(one.accuracies, ddof=1), mean + np.std(one.accuracies, ddof=1))
              for (_, one), mean in zip(found, means, strict=True)]
    spread = np.abs(np.array(bounds).T - means)
    axes.errorbar([place + shift for place, _ in found], 100 * means, yerr=100 * spread, color=COLOURS[variant],
                  marker=plots.MARKERS[VARIANTS.index(variant)], capsize=3, markersize=6, linestyle="none",
                  label=NAMES[variant])
