"""The leaderboard's figure: clean accuracy against AutoAttack, a panel per group; one data set has one scale.  No
torch."""

import itertools
import textwrap
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes

from common import plots
from common.leaderboard import Board, Group

PALETTE = (plots.BLUE, plots.ORANGE, plots.GREEN, plots.PURPLE, plots.RED, plots.SKY, plots.BLACK)
MARGIN = 2.0                                   # points beyond the widest interval
TITLE_WIDTH = 62                               # letters of a panel's title in a line


def colours(board: Board) -> dict[str, str]:
    """Paper -> colour, the same in all panels and on the page."""
    papers = sorted({entry.paper for group in board.groups for entry in group.entries})
    return {paper: PALETTE[number % len(PALETTE)] for number, paper in enumerate(papers)}


def limits(groups: Sequence[Group], data: str) -> tuple[tuple[float, float], tuple[float, float]]:
    """((low, high) of clean accuracy, of AutoAttack) in percent that hold every interval of a data set's groups."""
    found = []
    for name in ("clean", "attacked"):
        ends = [100 * end for group in groups if group.shape.data == data for entry in group.entries
                for end in entry.image_interval(getattr(entry, name))]
        found.append((max(-MARGIN, min(ends) - MARGIN), min(100 + MARGIN, max(ends) + MARGIN)))
    return found[0], found[1]


def shown(board: Board) -> tuple[Group, ...]:
    """The groups that compare something; all of them where none does."""
    return tuple(group for group in board.groups if len(group.entries) > 1) or board.groups


def stairs(group: Group) -> list[tuple[float, float]]:
    """Corners (clean, AutoAttack in percent) of the front, from the most robust to the most accurate."""
    points = sorted({entry.point for entry in group.entries if entry.key in group.front}, key=lambda one: one[0])
    corners = points[:1]
    for here, after in itertools.pairwise(points):
        corners += [(here[0], after[1]), after]
    return [(100 * clean, 100 * attacked) for clean, attacked in corners]


def draw(board: Board, path: Path) -> Path:
    """Write the figure; `board` has a group."""
    tint, groups = colours(board), shown(board)
    count = len(groups)
    columns = min(count, 2)
    lines = -(-count // columns)
    tallest = max(len(group.entries) for group in groups)
    with plots.figure(path, 5.2 * columns, (3.4 + 0.19 * tallest) * lines) as figure:
        panels = figure.subplots(lines, columns, squeeze=False).flatten()
        for axes in panels[count:]:
            axes.remove()
        for axes, group in zip(panels, groups, strict=False):
            panel(axes, group, tint)
            x_range, y_range = limits(groups, group.shape.data)
            axes.set(xlim=x_range, ylim=y_range, xlabel=f"clean accuracy in % (n={group.shape.n_clean:,})",
                     ylabel=f"AutoAttack {board.threat} in % (n={group.shape.n_attacked:,})")
    return path


def panel(axes: Axes, group: Group, tint: dict[str, str]) -> None:
    """One group: numbered means with Wilson's intervals, seeds as small dots, the front as a line."""
    for number, entry in enumerate(group.entries, start=1):
        clean, attacked = (100 * value for value in entry.point)
        bars = [[[abs(100 * end - middle)] for end in entry.image_interval(which)]
                for which, middle in ((entry.clean, clean), (entry.attacked, attacked))]
        colour = tint[entry.paper]
        axes.errorbar(clean, attacked, xerr=bars[0], yerr=bars[1], color=colour, linewidth=1, alpha=0.55)
        if len(entry.runs) > 1:
            axes.plot([100 * value for value in entry.clean.accuracies],
                      [100 * value for value in entry.attacked.accuracies], ".", color=colour, markersize=4)
        axes.plot(clean, attacked, "o", color=colour, markersize=13, markeredgecolor="white",
                  label=f"{number}  {entry.label} ({entry.paper})")
        axes.annotate(str(number), (clean, attacked), color="white", ha="center", va="center", fontsize=8,
                      fontweight="bold")
    corners = stairs(group)
    axes.plot([x for x, _ in corners], [y for _, y in corners], color=plots.GREY, linewidth=1, linestyle=":", zorder=0)
    axes.set_title(wrapped(group), fontsize=9)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), fontsize=8, markerscale=0.5)


def wrapped(group: Group) -> str:
    """The group's title, broken where a panel ends."""
    head, _, tail = group.shape.title.partition(": ")
    return "\n".join([head, *textwrap.wrap(tail, TITLE_WIDTH)])
