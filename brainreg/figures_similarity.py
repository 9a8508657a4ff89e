"""Similarities of the regularisation images: of their pixels, as targets, and of the network before and after training;
from similarities.npz in a run's folder, which `brainreg.observe` wrote.  No torch.

similarity-matrices   images in the order of the first eigenvector of their pixel similarity, so that alike ones are
                      neighbours
similarity-targets    the network's similarity of each pair against its pixels', before and after; a line: the target
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from brainreg.figures_style import Shown
from common import plots
from common.errors import UserError
from common.npz_files import read_arrays
from common.records import RunRecord

FILE = "similarities.npz"
KEYS = {"pixel": "pixels, S", "target": "targets", "before": "network, before", "after": "network, after"}
MOST = 6                                       # networks in a figure


def draw(found: Sequence[Shown], title: str, named: Callable[[str], Path]) -> list[Path]:
    """Both figures, of the first run of each network that has the file: of the paper's rows before ablations."""
    ordered = sorted(found, key=lambda one: not one.variant.main)
    kept = [(one, run, arrays) for one in ordered for run in one.runs[:1] if (arrays := similarities(run))][:MOST]
    if not kept:
        return []
    seeds = plots.seeds_of([[run] for _, run, _ in kept])
    told = f"{title}: {plots.whole_numbers(len(arrays['pixel']) for *_, arrays in kept)} regularisation images, {seeds}"
    pairs = [(one, arrays) for one, _, arrays in kept]
    return [matrices(pairs, told, named("similarity-matrices")), targets(pairs, told, named("similarity-targets"))]


def similarities(run: RunRecord) -> dict[str, np.ndarray] | None:
    """The arrays (M,M) of KEYS; None where the run left none, a UserError where the file is damaged."""
    path = run.folder / FILE
    if not path.exists():
        return None
    try:
        stored = read_arrays(path)
        arrays = {key: stored[key] for key in KEYS}
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} is not whole ({error}): restore it from git or train the run again",
                        code="E-RECORD") from error
    if len({array.shape for array in arrays.values()}) > 1 or arrays["pixel"].ndim != 2:
        raise UserError(f"{path}: its matrices are of other numbers of images: train the run again", code="E-RECORD")
    return arrays


def order(pixel: np.ndarray) -> np.ndarray:
    """(M,) positions of the images along the first eigenvector of S (M,M), its largest entry made positive."""
    vector = np.linalg.eigh(pixel.astype(np.float64))[1][:, -1]
    return np.argsort(vector * np.sign(vector[np.abs(vector).argmax()]), kind="stable")


def matrices(kept: Sequence[tuple[Shown, Mapping[str, np.ndarray]]], title: str, path: Path) -> Path:
    """A row per network, a panel per matrix, one scale of colours."""
    with plots.figure(path, 9.6, 0.7 + 2.05 * len(kept)) as figure:
        panels = figure.subplots(len(kept), len(KEYS), squeeze=False)
        for row, (one, arrays) in zip(panels, kept, strict=True):
            sequence = order(arrays["pixel"])
            for axes, (key, words) in zip(row, KEYS.items(), strict=True):
                drawn = axes.imshow(arrays[key][np.ix_(sequence, sequence)], cmap="RdBu_r", vmin=-1, vmax=1,
                                    interpolation="nearest")
                axes.grid(visible=False)
                axes.set(xticks=[], yticks=[])
                if axes in panels[0]:
                    axes.set_title(words)
            row[0].set_ylabel(one.short.replace(", ", ",\n"))
        figure.colorbar(drawn, ax=panels, label="similarity", shrink=min(1.0, 2 / len(kept)))
        figure.suptitle(title, fontsize=11)
    return path


def targets(kept: Sequence[tuple[Shown, Mapping[str, np.ndarray]]], title: str, path: Path) -> Path:
    """A panel per network; every pair of different images once before and once after."""
    columns = min(3, len(kept))
    rows = -(-len(kept) // columns)
    with plots.figure(path, max(5.6, 0.8 + 3.3 * columns), 1.4 + 3.0 * rows) as figure:
        panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
        for axes in panels[len(kept):]:
            axes.set_visible(False)
        for axes, (one, arrays) in zip(panels, kept, strict=False):
            scatter(axes, arrays)
            axes.set_title(one.short)
        panels[0].set(xlim=(-1.05, 1.05), ylim=(-1.1, 1.1))
        for axes in panels[:len(kept)][-columns:]:
            axes.set_xlabel("similarity of the pixels, S")
            axes.tick_params(labelbottom=True)
        for axes in panels[::columns]:
            axes.set_ylabel("similarity in the network")
        plots.legend_below(figure, panels[:1], 3)
        figure.suptitle(title, fontsize=11)
    return path


def scatter(axes: Axes, arrays: Mapping[str, np.ndarray]) -> None:
    """Pairs before and after training, and their targets along S."""
    upper = np.triu_indices(len(arrays["pixel"]), 1)
    pixel = arrays["pixel"][upper]
    for key, colour in (("before", plots.GREY), ("after", plots.BLUE)):
        axes.plot(pixel, arrays[key][upper], linestyle="none", marker=".", markersize=3, alpha=0.35, color=colour,
                  label=f"{key} training", rasterized=True)
    sequence = np.argsort(pixel, kind="stable")
    axes.plot(pixel[sequence], arrays["target"][upper][sequence], color=plots.RED, linewidth=1.8, label="target",
              drawstyle="steps-mid")
