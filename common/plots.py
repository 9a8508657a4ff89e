"""One look for all figures: colour-blind safe (Okabe and Ito 2008), readable in a column, the same bytes twice."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.files import replacing
from common.records import RunRecord, read_runs
from common.runs import BUDGETS

BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, RED, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
GREY = "#777777"
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")
_STYLE = {
    "font.size": 10, "axes.titlesize": 11, "axes.labelsize": 10, "legend.fontsize": 9, "xtick.labelsize": 9,
    "ytick.labelsize": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.color": "#dddddd", "grid.linewidth": 0.6, "axes.axisbelow": True, "lines.linewidth": 1.6,
    "legend.frameon": False, "figure.dpi": 100, "savefig.dpi": 150, "font.family": "DejaVu Sans",
}


@contextmanager
def figure(path: Path, width: float, height: float) -> Iterator[Figure]:
    """A figure of width x height inches, saved to `path` (PNG, 150 dpi) if the block ends well.

    It is drawn without a display and without pyplot's global state; the file is whole or not there.
    """
    with matplotlib.rc_context(_STYLE):
        drawn = Figure(figsize=(width, height), layout="constrained")
        yield drawn
        with replacing(path) as temporary:
            # No date and no version in the file, so that the same records give the same bytes.
            drawn.savefig(temporary, format="png", metadata={"Software": None})


def mean_and_band(curves: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(epochs (E,), mean (E,), lowest (E,), highest (E,)) over the seeds' curves, each (epochs, values).

    Only epochs that every curve has are kept; no curve gives empty arrays.
    """
    common = sorted(set.intersection(*(set(epochs.tolist()) for epochs, _ in curves))) if curves else []
    if not common:
        empty = np.empty(0)
        return np.empty(0, np.int64), empty, empty, empty
    values = np.stack([value[np.isin(epochs, common)] for epochs, value in curves])
    return np.array(common), values.mean(0), values.min(0), values.max(0)


# -- what the papers' figures share ----------------------------------------------------------------------------------

def finished(results: Path, paper: str, dataset: str | None = None, budget: str | None = None
             ) -> Iterator[tuple[str, str, list[RunRecord]]]:
    """(data set, budget, its finished runs), of the budgets of BUDGETS and of those that are asked for."""
    runs = [run for run in read_runs(results, paper, dataset)
            if run.train and run.run["budget"] in ([budget] if budget else BUDGETS)]
    for data, cost in sorted({(run.run["dataset"], run.run["budget"]) for run in runs}):
        yield data, cost, [run for run in runs if (run.run["dataset"], run.run["budget"]) == (data, cost)]


def whole_numbers(values: Iterable[int]) -> str:
    """'200' or '200 to 1,000'."""
    found = sorted(set(values))
    return f"{found[0]:,}" if len(found) == 1 else f"{found[0]:,} to {found[-1]:,}"


def seeds_of(groups: Iterable[Sequence[RunRecord]]) -> str:
    """'seed 1', 'seeds 1, 2'; a method that has fewer is not told apart."""
    seeds = sorted({run.run["seed"] for runs in groups for run in runs})
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def legend_below(figure: Figure, panels: Iterable[Axes], columns: int) -> None:
    """One legend under all panels, each label once."""
    handles = {label: handle for axes in panels
               for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns)
