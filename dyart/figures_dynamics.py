"""Figures of the decision boundary's dynamics, from the runs' dynamics.npz (written by dyart/observe.py); no torch.

boundary-speed           the paper's figure: a step of AT and a step of DyART from the same weights, DyART's; drawn as
boundary-speed-BASELINE  share of images whose boundary recedes and comes closer, per interval of the margin: a
                         baseline and DyART, each in its own training; rows are moments; only images with a kept
                         boundary point have a speed
margins                  histogram of the margins at several moments, a panel per method
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes

from common import plots
from common.errors import UserError
from common.npz_files import read_arrays
from common.records import RunRecord
from dyart.figures_style import LABELS, Grouped, Key, seeds_of

FILE = "dynamics.npz"
INTERVALS = (0, 2, 4, 6, 8, 10, 12, 14, 16)                 # of the margin in 255ths; beyond the last: one more
FEW = 10                                                    # images below which a share says little: drawn pale
WIDTH, LARGEST = 2, 32                                      # of the histogram's bars, in 255ths; larger: the last bar
ORDER = ("AT", "TRADES", "MART", "DyART")
CURVES = 4


@dataclass(frozen=True)
class Dynamics:
    """Of all seeds of a method, their images one after another: epoch (E,); radius, speed (E,N), see dyart/observe.

    images: how many one run observes, the largest number; rival: speeds (E,N) of a step of AT from the same weights.
    """

    epoch: np.ndarray
    radius: np.ndarray
    speed: np.ndarray
    images: int
    rival: np.ndarray | None = None


def read(runs: Sequence[RunRecord]) -> Dynamics | None:
    """The moments that all runs have; None where no run has been observed.  A broken file is a UserError."""
    found = [one for run in runs if (one := read_one(run.folder / FILE))]
    if not found:
        return None
    common = sorted(set.intersection(*(set(one.epoch.tolist()) for one in found)))
    rows = [np.isin(one.epoch, common) for one in found]
    radius, speed, rival = (
        None if any(getattr(one, name) is None for one in found) else
        np.concatenate([getattr(one, name)[kept] for one, kept in zip(found, rows, strict=True)], axis=1)
        for name in ("radius", "speed", "rival"))
    return Dynamics(np.array(common, np.int64), radius, speed, max(one.images for one in found), rival)


def read_one(path: Path) -> Dynamics | None:
    """One run's dynamics.npz; None if there is none."""
    if not path.exists():
        return None
    try:
        stored = read_arrays(path)
        found = Dynamics(stored["epoch"], stored["radius"], stored["speed"], stored["radius"].shape[-1],
                         stored.get("speed_AT"))
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise UserError(f"{path} cannot be read ({error}): restore it from git or train the run again",
                        code="E-RECORD") from error
    if found.epoch.ndim != 1 or not len(found.epoch) or any(
            values.ndim != 2 or len(values) != len(found.epoch) or values.shape != found.radius.shape
            for values in (found.radius, found.speed, found.radius if found.rival is None else found.rival)):
        raise UserError(f"{path} is not what dyart/observe.py writes: restore it from git or train the run again",
                        code="E-RECORD")
    return found


def draw(grouped: Grouped, title: str, named: Callable[[str], Path]) -> list[Path]:
    """Both kinds of figures, where a run was observed; the paths."""
    keys = [(method, variant) for variant in ("plain", "gn") for method in ORDER if (method, variant) in grouped]
    observed = {key: found for key in keys if (found := read(grouped[key])) and len(found.epoch)}
    if not observed:
        return []
    begins = {key: "burn-in" if any(run.run["needs"] for run in grouped[key]) else "untrained" for key in observed}
    images, seeds = max(found.images for found in observed.values()), seeds_of(grouped[key] for key in observed)
    about = f"{title}: {images:,} training images, {seeds}" + (" counted together" if "seeds" in seeds else "")
    written = []
    for method, variant in observed:
        found = observed[method, variant]
        if found.rival is not None:
            what = "-".join(["boundary-speed", *([variant] if variant != "plain" else [])])
            steps = {("AT", variant): replace(found, speed=found.rival), (method, variant): found}
            written.append(speeds(steps, dict.fromkeys(steps, begins[method, variant]),
                                  f"{about}; both steps from DyART's weights", named(what),
                                  "a step of {}"))
    for columns in beside(list(observed)):
        method, variant = columns[0]
        what = "-".join(["boundary-speed", method.lower(), *([variant] if variant != "plain" else [])])
        written.append(speeds({key: observed[key] for key in columns}, begins, about, named(what)))
    return [*written, margins(observed, begins, about, named("margins"))]


def beside(keys: list[Key]) -> list[list[Key]]:
    """Each baseline with DyART of the same variant, if that is there; DyART alone where there is no baseline."""
    found = [[key, ("DyART", key[1])] for key in keys if key[0] != "DyART"]
    alone = [[key] for key in keys if key[0] == "DyART" and not any(key in pair for pair in found)]
    return [[key for key in pair if key in keys] for pair in found] + alone


def said(epoch: int, begins: str) -> str:
    """A moment in words."""
    return f"start ({begins})" if epoch == 0 else f"after epoch {epoch}"


# -- speeds ----------------------------------------------------------------------------------------------------------

def shares(radius: np.ndarray, speed: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(images, share with positive speed, share with negative speed), each (I,), per interval of the margin.

    radius, speed (N,): only images with a finite speed count; an interval without images has shares NaN.
    """
    kept = np.isfinite(speed)
    place = np.digitize(255 * radius[kept], INTERVALS) - 1
    counts = [np.bincount(place[chosen], minlength=len(INTERVALS)) for chosen in
              (np.ones(kept.sum(), bool), speed[kept] > 0, speed[kept] < 0)]
    with np.errstate(invalid="ignore"):
        return counts[0], counts[1] / counts[0], counts[2] / counts[0]


def moments(epochs: np.ndarray) -> list[int]:
    """Rows to show: the first, the middle one and the last; fewer where there are fewer."""
    return sorted({0, len(epochs) // 2, len(epochs) - 1})


def speeds(observed: dict[Key, Dynamics], begins: dict[Key, str], about: str, path: Path, label: str = "{}") -> Path:
    """Upwards: the boundary recedes (s > 0).  Downwards: it comes closer (s < 0)."""
    rows = max(len(moments(found.epoch)) for found in observed.values())
    with plots.figure(path, max(5.4, 0.9 + 3.7 * len(observed)), 1.5 + 2.15 * rows) as figure:
        panels = figure.subplots(rows, len(observed), sharex=True, sharey=True, squeeze=False)
        for column, (key, found) in zip(panels.T, observed.items(), strict=True):
            for axes, row in zip(column, moments(found.epoch), strict=False):
                speed_panel(axes, found.radius[row], found.speed[row])
                moment = said(int(found.epoch[row]), begins[key])
                axes.set_title(label.format(LABELS[key]) + ', ' + moment, fontsize=10)
            for axes in column[len(moments(found.epoch)):]:
                axes.set_visible(False)
        for axes in panels[:, 0]:
            axes.set_ylabel("share of images (%)")
        ends = [*INTERVALS[1:], None]
        for axes in panels[-1]:
            axes.set_xticks(range(len(INTERVALS)), [f"{a}–{b}" if b else f"≥{a}" for a, b in zip(
                INTERVALS, ends, strict=True)], rotation=45, ha="right", rotation_mode="anchor")
            axes.set_xlabel("margin R (1/255, L-inf)")
        panels[0, 0].set_ylim(-118, 132)
        panels[0, 0].set_yticks((-100, -50, 0, 50, 100), ("100", "50", "0", "50", "100"))
        handles = [matplotlib.patches.Patch(color=colour, label=label) for colour, label in (
            (plots.BLUE, "boundary recedes, s > 0"), (plots.ORANGE, "boundary comes closer, s < 0"))]
        figure.legend(handles=handles, loc="outside lower center", ncols=2)
        figure.suptitle(f"{about}\nnumbers: images with a kept boundary point (fewer than {FEW}: pale)", fontsize=11)
    return path


def speed_panel(axes: Axes, radius: np.ndarray, speed: np.ndarray) -> None:
    images, up, down = shares(radius, speed)
    for place, (n, rising, falling) in enumerate(zip(images, up, down, strict=True)):
        if n:
            alpha = 1.0 if n >= FEW else 0.35
            axes.bar(place, 100 * rising, 0.8, color=plots.BLUE, alpha=alpha)
            axes.bar(place, -100 * falling, 0.8, color=plots.ORANGE, alpha=alpha)
            axes.annotate(f"{n}", (place, 100 * rising), xytext=(0, 2), textcoords="offset points", ha="center",
                          fontsize=8)
    if not images.sum():
        axes.annotate("no boundary point kept", (0.5, 0.6), xycoords="axes fraction", ha="center", color=plots.GREY)
    axes.axhline(0, color=plots.BLACK, linewidth=0.8)
    axes.grid(axis="x", visible=False)


# -- margins ---------------------------------------------------------------------------------------------------------

def histogram(radius: np.ndarray) -> tuple[np.ndarray, float, float]:
    """(shares (K,) of all N images per bar, share beyond the soft boundary, share without a boundary point); sum 1.

    The last bar holds every larger margin.
    """
    wrong, lost = radius == 0, np.isnan(radius)
    sizes = 255 * radius[~wrong & ~lost]
    edges = np.arange(0, LARGEST + WIDTH, WIDTH)
    counts = np.histogram(np.minimum(sizes, LARGEST - WIDTH / 2), edges)[0]
    return counts / len(radius), float(wrong.mean()), float(lost.mean())


def margins(observed: dict[Key, Dynamics], begins: dict[Key, str], about: str, path: Path) -> Path:
    """A curve per moment, from dark (start) to bright (end); the legend says what share has no margin."""
    edges = np.arange(0, LARGEST + WIDTH, WIDTH)
    columns = min(2, len(observed))
    rows = -(-len(observed) // columns)
    with plots.figure(path, max(5.4, 0.7 + 4.0 * columns), 0.6 + 4.2 * rows) as figure:
        panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
        for axes in panels.ravel()[len(observed):]:
            axes.set_visible(False)
        for axes, (key, found) in zip(panels.ravel(), observed.items(), strict=False):
            shown = sorted(set(np.linspace(0, len(found.epoch) - 1, CURVES).round().astype(int)))
            colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.88, len(shown)))
            for row, colour in zip(shown, colours, strict=True):
                bars, wrong, lost = histogram(found.radius[row])
                label = f"{said(int(found.epoch[row]), begins[key])}: {100 * wrong:.0f}% beyond"
                label += f", {100 * lost:.0f}% not found" if lost else ""
                axes.stairs(100 * bars, edges, color=colour, linewidth=1.8, label=label)
            axes.set(title=LABELS[key], xlabel=f"margin R (1/255, L-inf); last bar: ≥{LARGEST - WIDTH}")
            axes.set_xlim(0, LARGEST)
            axes.set_xticks(range(0, LARGEST + 1, 4))
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), fontsize=9)
        for axes in panels[:, 0]:
            axes.set_ylabel(f"share of all images (%), bars of {WIDTH}/255")
        figure.suptitle(f"{about}\nbeyond the soft boundary, no margin: misclassified, or right by too little",
                        fontsize=11)
    return path
