"""DyART's figures as functions of records; no torch.

1. robust-accuracy: accuracy under AutoAttack over eps, a line per method.
2. boundary-speed, margins: see `dyart.figures_dynamics`.
3. validation: clean and robust validation accuracy over the epochs.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from common import plots
from common.records import RunRecord, read_runs
from common.report import group, result_of
from common.runs import BUDGETS
from common.stats import mean_sd, wilson
from dyart import figures_dynamics
from dyart.figures_style import LABELS, Grouped, line, seeds_of, whole_numbers
from dyart.runs import EPSILONS, TABLE

CLEAN, ROBUST = "val_clean_accuracy", "val_robust_accuracy"


def draw(results: Path, out: Path, *, dataset: str | None = None, budget: str | None = None) -> list[Path]:
    """Write every figure that the records allow to OUT/figures/dyart-DATASET-BUDGET-WHAT.png; return the paths."""
    runs = [run for run in read_runs(results, "dyart", dataset)
            if run.train and run.run["budget"] in ([budget] if budget else BUDGETS)]
    written = []
    for data, cost in sorted({(run.run["dataset"], run.run["budget"]) for run in runs}):
        mine = [run for run in runs if (run.run["dataset"], run.run["budget"]) == (data, cost)]
        grouped = {key: found for key in LABELS if (found := group(mine, *key, TABLE.per_seed))}
        stem, title = Path(out) / "figures" / f"dyart-{data}-{cost}", f"{data}, budget {cost}"

        def named(what: str, stem: Path = stem) -> Path:
            return stem.with_name(f"{stem.name}-{what}.png")

        if any(over_eps(run) for run in mine):
            written.append(robust_accuracy(grouped, title, named("robust-accuracy")))
        written += figures_dynamics.draw(grouped, title, named)
        if any(len(run.curve(ROBUST)[0]) for run in mine):
            written.append(validation(grouped, title, named("validation")))
    return written


# -- robust accuracy over eps ----------------------------------------------------------------------------------------

def over_eps(run: RunRecord) -> dict[int, tuple[int, int]]:
    """eps in 255ths -> (images that withstand AutoAttack, images); at 0 the clean ones among the same images."""
    found = {eps: pair for eps in EPSILONS if (pair := result_of(run, f"AutoAttack eps={eps}", TABLE.plans))}
    counts = {eps: (result["robust"], result["n"]) for eps, (_, result) in found.items()}
    clean = result_of(run, "clean", TABLE.plans)
    if counts and clean:
        n = min(attacked for _, attacked in counts.values())
        kept = clean[0].arrays["clean"][:n]
        counts = {0: (int(kept.sum()), len(kept)), **counts}
    return counts


def radius(run: RunRecord) -> float:
    """The radius of a run's attacks in training and validation, in 255ths."""
    return round(255 * run.run["config"]["attack_eps"], 2)


def robust_accuracy(grouped: Grouped, title: str, path: Path) -> Path:
    """A line per method; band: Wilson's 95% interval of one seed, or one standard deviation over seeds."""
    with plots.figure(path, 5.6, 4.6) as figure:
        axes = figure.subplots()
        judged = {key: found for key, runs in grouped.items() if (found := [run for run in runs if over_eps(run)])}
        images, trained = set(), set()
        for key, runs in judged.items():
            images |= {n for run in runs for _, n in over_eps(run).values()}
            trained |= {radius(run) for run in runs if key[0] != "DyART"}
            robust_line(axes, runs, line(key))
        for eps in sorted(trained):
            axes.axvline(eps, color=plots.GREY, linestyle=":", linewidth=1)
            axes.annotate(f"the baselines train at {eps:g}/255", (eps, 1), xycoords=("data", "axes fraction"),
                          xytext=(3, -2), textcoords="offset points", ha="left", va="top", color=plots.GREY, fontsize=9)
        axes.set(xlabel="radius of the attack, eps (1/255, L-inf); 0: no attack", ylabel="test accuracy (%)",
                 xticks=(0, *EPSILONS))
        axes.set_ylim(0, 1.12 * axes.get_ylim()[1])
        figure.legend(loc="outside lower center", ncols=2)
        several = {len(runs) > 1 for runs in judged.values()}
        band = {(True,): "mean, band: ± one sd over seeds", (False,): "band: Wilson's 95%"}.get(
            tuple(several), "mean, band: ± one sd over seeds (one seed: Wilson's 95%)")
        figure.suptitle(f"AutoAttack, {title}: {whole_numbers(images)} images, {seeds_of(judged.values())}\n{band}",
                        fontsize=11)
    return path


def robust_line(axes: Axes, runs: Sequence[RunRecord], style: dict[str, object]) -> None:
    """One method's accuracies over eps, where all its seeds have them."""
    counts = [over_eps(run) for run in runs]
    eps = sorted(set.intersection(*(set(one) for one in counts)))
    middle, low, high = [], [], []
    for value in eps:
        mean, sd = mean_sd([one[value][0] / one[value][1] for one in counts])
        bounds = wilson(*counts[0][value]) if sd is None else (max(0.0, mean - sd), min(1.0, mean + sd))
        middle.append(mean)
        low.append(bounds[0])
        high.append(bounds[1])
    axes.plot(eps, 100 * np.array(middle), markersize=6, **style)
    axes.fill_between(eps, 100 * np.array(low), 100 * np.array(high), color=style["color"], alpha=0.15, linewidth=0)


# -- validation over epochs ------------------------------------------------------------------------------------------

def validation(grouped: Grouped, title: str, path: Path) -> Path:
    """Left clean, right robust validation accuracy over the epochs: mean over seeds, band from lowest to highest.

    Marked on the robust curve: its highest point, where the weights that are judged are from (of the mean over seeds).
    """
    with plots.figure(path, 8.6, 4.4) as figure:
        panels = figure.subplots(1, 2)
        shown = {key: runs for key, runs in grouped.items() if any(len(run.curve(CLEAN)[0]) for run in runs)}
        for key, runs in shown.items():
            style = {**line(key), "marker": ""}
            for axes, name in zip(panels, (CLEAN, ROBUST), strict=True):
                epochs, mean, low, high = plots.mean_and_band([run.curve(name) for run in runs])
                if not len(epochs):
                    continue
                axes.plot(epochs, 100 * mean, **style)
                axes.fill_between(epochs, 100 * low, 100 * high, color=style["color"], alpha=0.15, linewidth=0)
                if name == ROBUST:
                    top = int(mean.argmax())
                    axes.plot(epochs[top], 100 * mean[top], **{**line(key), "label": None}, markersize=7)
        attack = "under PGD-40, eps " + ", ".join(f"{eps:g}/255" for eps in sorted(
            {radius(run) for runs in shown.values() for run in runs}))
        for axes, what in zip(panels, ("clean", attack), strict=True):
            axes.set(xlabel="epoch (DyART's: after the burn-in)", title=what)
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.margins(y=0.1)
            axes.set_ylim(bottom=0)
        panels[0].set_ylabel("validation accuracy (%)")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
        images = whole_numbers(row["n_val"] for runs in shown.values() for run in runs for row in run.metrics
                               if "n_val" in row)
        several = ", mean and range" if any(len(runs) > 1 for runs in shown.values()) else ""
        figure.suptitle(f"{title}: {images} validation images, {seeds_of(shown.values())}{several}; mark: highest "
                        "robust accuracy", fontsize=11)
    return path
