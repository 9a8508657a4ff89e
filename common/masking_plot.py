"""The figure of a masking page: curves over eps and steps, margins, the loss surface.  No torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from common import plots


def draw(found: Mapping[str, Any], path: Path) -> Path:
    """Write the figure of what `common.evaluation.masking.measure` found."""
    n = found["n"]
    with plots.figure(path, 11, 6.4) as figure:
        axes = figure.subplots(2, 3)
        # In a file the keys stand in the order of text: 1, 10, 2.
        by_eps, by_steps = ({float(key): entry for key, entry in sorted(found[name].items(), key=lambda one: float(
            one[0]))} for name in ("by_eps", "by_steps"))
        multiples, of_eps = [0.0, *by_eps], [found["clean"], *by_eps.values()]
        curve(axes[0, 0], axes[1, 0], multiples, of_eps, n, "radius in eps (PGD-20)")
        steps = list(map(int, by_steps))
        curve(axes[0, 1], axes[1, 1], steps, list(by_steps.values()), n, "steps of PGD")
        for each in axes[:, 1]:
            each.set_xscale("log")
            each.set_xticks(steps, map(str, steps))
            each.minorticks_off()
        for name, said, colour in (("fgsm", "FGSM", plots.ORANGE), ("noise", "noise", plots.GREEN),
                                   ("square", "Square alone", plots.PURPLE)):
            axes[0, 1].axhline(100 * found[name]["robust"] / n, color=colour, linestyle="--", label=said)
        axes[0, 1].legend()
        shares = (5, 25, 50, 75, 95)
        for name, said, colour in (("clean", "clean", plots.BLUE), ("attacked", "under PGD-20", plots.RED)):
            axes[0, 2].plot(found["margins"][name], shares, marker="o", color=colour, label=said)
        axes[0, 2].axvline(0, color=plots.GREY, linewidth=1)
        axes[0, 2].set(xlabel="margin of the logits", ylabel="% of images below", title="margins", ylim=(-2, 102))
        axes[0, 2].legend(loc="lower right")
        surface = found["surface"]
        drawn = axes[1, 2].imshow(np.array(surface["values"]), origin="lower", extent=(-1, 1, -1, 1), cmap="viridis",
                                  aspect="auto")
        axes[1, 2].grid(False)
        axes[1, 2].set(xlabel="random signs, eps", ylabel="gradient's signs, eps",
                       title=f"mean loss of {surface['n']} images")
        figure.colorbar(drawn, ax=axes[1, 2])
    return path


def curve(above, below, where: list[float], entries: list[Mapping[str, Any]], n: int, label: str) -> None:
    """Accuracy on the axes `above`, loss on those `below`."""
    above.plot(where, [100 * entry["robust"] / n for entry in entries], marker="o", color=plots.BLUE, label="PGD")
    above.set(ylabel="standing, %", title=label, ylim=(-2, 102))
    below.plot(where, [entry["loss"] for entry in entries], marker="o", color=plots.RED)
    below.set(xlabel=label, ylabel="mean cross-entropy")
