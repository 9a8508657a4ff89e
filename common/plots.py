"""One look for all figures: colour-blind safe (Okabe and Ito 2008), readable in a column, the same bytes twice."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from common.files import replacing

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
