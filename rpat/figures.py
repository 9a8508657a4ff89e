"""RPAT's figures as functions of records; no torch.

1. trade-off: clean accuracy against AutoAttack, an arrow from each base to base + RPAT.
2. perception, perception-epochs: see `rpat.figures_perception`.
3. validation: clean and robust validation accuracy over the epochs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from common import plots
from common.cells import group, together
from common.records import RunRecord, read_runs
from common.runs import BUDGETS
from common.stats import mean_sd, nrr, wilson
from rpat import figures_perception
from rpat.figures_style import LABELS, Grouped, Key, line, pairs, seeds_of, whole_numbers
from rpat.runs import TABLE
from rpat.runs_table import LAST
from rpat.sota_settings import SCRIPTS

JUDGE = "AutoAttack"


def draw(results: Path, out: Path, *, dataset: str | None = None, budget: str | None = None) -> list[Path]:
    """Write every figure that the records allow to OUT/figures/rpat-DATASET-BUDGET-WHAT.png; return the paths."""
    runs = [run for run in read_runs(results, "rpat", dataset)
            if run.train and run.run["budget"] in ([budget] if budget else BUDGETS)]
    written = []
    for data, cost in sorted({(run.run["dataset"], run.run["budget"]) for run in runs}):
        mine = [run for run in runs if (run.run["dataset"], run.run["budget"]) == (data, cost)]
        grouped = {key: found for key in LABELS if (found := group(mine, *key, TABLE.per_seed))}
        stem, title = Path(out) / "figures" / f"rpat-{data}-{cost}", f"{data}, budget {cost}"

        def named(what: str, stem: Path = stem) -> Path:
            return stem.with_name(f"{stem.name}-{what}.png")

        if points := {suffix: points_of(grouped, suffix) for suffix in ("", LAST)}[""]:
            written.append(trade_off(points, points_of(grouped, LAST), grouped, title, named("trade-off")))
        written += figures_perception.draw(grouped, title, named)
        if any(validated(run) for run in mine):
            written.append(validation(grouped, title, named("validation")))
    return written


# -- clean against robust accuracy -----------------------------------------------------------------------------------

@dataclass(frozen=True)
class Point:
    """Fractions, each (value, lowest, highest): Wilson's 95% interval of one seed, or one sd over several."""

    clean: tuple[float, float, float]
    robust: tuple[float, float, float]
    n: int
    seeds: tuple[int, ...]


def points_of(grouped: Grouped, suffix: str = "") -> dict[Key, Point]:
    """Methods that have clean accuracy and AutoAttack, on the images that both were run on."""
    found = {}
    for key, runs in grouped.items():
        both = together(runs, f"clean{suffix}", JUDGE + suffix, TABLE.plans)
        if not both:
            continue
        axes = []
        for position in (0, 1):
            mean, sd = mean_sd([table.accuracies[position] for _, table, _ in both])
            n = both[0][1].n
            low, high = wilson(round(mean * n), n) if sd is None else (max(0.0, mean - sd), min(1.0, mean + sd))
            axes.append((mean, low, high))
        found[key] = Point(*axes, both[0][1].n, tuple(seed for seed, _, _ in both))
    return found


def trade_off(points: Mapping[Key, Point], last: Mapping[Key, Point], grouped: Grouped, title: str, path: Path) -> Path:
    """Dark: the chosen weights, with intervals; pale: the last ones.  Dotted: where NRR is the base's."""
    with plots.figure(path, 6.6, 5.6) as figure:
        axes = figure.subplots()
        for shown, alpha in ((last, 0.35), (points, 1.0)):
            for base, ours in pairs():
                if base in shown and ours in shown:
                    arrow(axes, shown[base], shown[ours], line(base)["color"], alpha)
            for key, point in shown.items():
                mark(axes, point, line(key), alpha)
        span = limits([*points.values(), *last.values()])
        axes.set(xlim=span[0], ylim=span[1], xlabel="clean test accuracy (%)",
                 ylabel="test accuracy under AutoAttack (%)")
        for key, point in points.items():
            if any(key == base and ours in points for base, ours in pairs()):
                level(axes, nrr(point.clean[0], point.robust[0]), line(key)["color"], span[0])
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
        several = {len(point.seeds) > 1 for point in points.values()}
        bars = {(True,): "mean, bars: ± one sd over seeds", (False,): "bars: Wilson's 95%"}.get(
            tuple(several), "mean, bars: ± one sd over seeds (one seed: Wilson's 95%)")
        pale = "; pale: last epoch" if last else ""
        about = f"{whole_numbers(point.n for point in points.values())} images, " \
                f"{seeds_of(grouped[key] for key in points)}"
        figure.suptitle(f"{title}: {about}\n{bars}{pale}; dotted: NRR as the base", fontsize=11)
    return path


def mark(axes: Axes, point: Point, style: dict[str, object], alpha: float) -> None:
    """A method's mark; with its interval where it is not pale."""
    (x, *_), (y, *_) = point.clean, point.robust
    style = {**style, "linestyle": "none", "markersize": 9 if alpha == 1 else 6, "alpha": alpha}
    if alpha < 1:
        axes.plot(100 * x, 100 * y, **{**style, "label": None})
        return
    bars = {f"{name}err": 100 * np.array([[middle - low], [high - middle]])
            for name, (middle, low, high) in (("x", point.clean), ("y", point.robust))}
    _, caps, lines = axes.errorbar(100 * x, 100 * y, **bars, elinewidth=0.8, capsize=2, **style)
    for part in (*caps, *lines):
        part.set_alpha(0.4)                                  # the arrows are the message


def arrow(axes: Axes, base: Point, ours: Point, colour: object, alpha: float) -> None:
    """From the base to the same with RPAT."""
    ends = [(100 * point.clean[0], 100 * point.robust[0]) for point in (ours, base)]
    axes.annotate("", *ends, arrowprops={"arrowstyle": "-|>", "color": colour, "alpha": alpha, "shrinkA": 5,
                                         "shrinkB": 5, "linewidth": 1.8 if alpha == 1 else 1.0})


def limits(points: Sequence[Point]) -> tuple[tuple[float, float], tuple[float, float]]:
    """Axes' limits, in %, that hold every interval."""
    found = []
    for values in ([point.clean for point in points], [point.robust for point in points]):
        low, high = 100 * min(low for _, low, _ in values), 100 * max(high for *_, high in values)
        room = max(0.5, 0.06 * (high - low))
        found.append((low - room, high + room))
    return found[0], found[1]


def level(axes: Axes, value: float, colour: object, span: tuple[float, float]) -> None:
    """The curve on which 2ab/(a+b) is `value`; above it NRR is higher."""
    clean = np.linspace(max(span[0], 50 * value + 1e-6), span[1], 200) / 100
    with np.errstate(divide="ignore", invalid="ignore"):
        robust = value * clean / (2 * clean - value)
    axes.plot(100 * clean, 100 * np.where(2 * clean > value, robust, np.nan), color=colour, linestyle=":",
              linewidth=0.9, alpha=0.8)


# -- validation over epochs ------------------------------------------------------------------------------------------

def validated(run: RunRecord) -> tuple[str, str] | None:
    """Names of the clean and the robust accuracy that choose the run's weights (part 2's are the average's); on
    held-out images if there are some, else on test images; None where nothing was measured."""
    average = "_wa" if run.run["method"] in SCRIPTS else ""
    for part in ("val", "test"):
        names = f"{part}{average}_clean_accuracy", f"{part}{average}_pgd_accuracy"
        if len(run.curve(names[1])[0]):
            return names
    return None


def validation(grouped: Grouped, title: str, path: Path) -> Path:
    """Left clean, right robust accuracy over the epochs: mean over seeds, band from lowest to highest.

    Marked on the robust curve: its highest point, where the best weights are from (of the mean over seeds).
    """
    with plots.figure(path, 8.6, 4.6) as figure:
        panels = figure.subplots(1, 2)
        shown = {key: runs for key, runs in grouped.items() if all(validated(run) for run in runs)}
        for key, runs in shown.items():
            style = {**line(key), "marker": ""}
            for axes, position in zip(panels, (0, 1), strict=True):
                epochs, mean, low, high = plots.mean_and_band([run.curve(validated(run)[position]) for run in runs])
                if not len(epochs):
                    continue
                axes.plot(epochs, 100 * mean, **style)
                axes.fill_between(epochs, 100 * low, 100 * high, color=style["color"], alpha=0.15, linewidth=0)
                if position == 1:
                    top = int(mean.argmax())
                    axes.plot(epochs[top], 100 * mean[top], **{**line(key), "label": None}, markersize=7)
        for axes, what in zip(panels, ("clean", "under training's PGD"), strict=True):
            axes.set(xlabel="epoch", title=what)
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.margins(y=0.1)
            axes.set_ylim(bottom=0)
        panels[0].set_ylabel("accuracy (%)")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
        used = {validated(run)[1].partition("_")[0] for runs in shown.values() for run in runs}
        images = whole_numbers(row[f"n_{part}"] for runs in shown.values() for run in runs for row in run.metrics
                               for part in used if f"n_{part}" in row)
        what = " and ".join({"val": "validation", "test": "test"}[part] for part in sorted(used, reverse=True))
        several = ", mean and range" if any(len(runs) > 1 for runs in shown.values()) else ""
        figure.suptitle(f"{title}: {images} {what} images, {seeds_of(shown.values())}{several}\nmark: highest robust "
                        "accuracy", fontsize=11)
    return path
