"""The leaderboard's figure: clean accuracy against AutoAttack, a panel per group; one data set has one scale.  A group
of many methods has a second panel, in which each has a line of its own.  No torch."""

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
CROWDED = 12                                   # methods, from which on intervals cover each other's numbers


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


def arranged(groups: Sequence[Group]) -> list[tuple[Group, ...]]:
    """Rows of the figure: a crowded group alone, the others in pairs."""
    crowded = [(group,) for group in groups if is_crowded(group)]
    others = [group for group in groups if not is_crowded(group)]
    return [*crowded, *(tuple(others[start:start + 2]) for start in range(0, len(others), 2))]


def is_crowded(group: Group) -> bool:
    """Whether its points need lines of their own to be read."""
    return len(group.entries) > CROWDED


def draw(board: Board, path: Path) -> Path:
    """Write the figure; `board` has a group."""
    tint, groups = colours(board), shown(board)
    rows = arranged(groups)
    columns = max(2 if is_crowded(row[0]) else len(row) for row in rows)
    tallest = max([len(group.entries) for group in groups if not is_crowded(group)], default=0)
    heights = [1.6 + 0.2 * len(row[0].entries) if is_crowded(row[0]) else 3.4 + 0.19 * tallest for row in rows]
    with plots.figure(path, (7.0 if is_crowded(rows[0][0]) else 5.2) * columns, sum(heights)) as figure:
        for part, row in zip(figure.subfigures(len(rows), 1, height_ratios=heights, squeeze=False).flatten(), rows,
                             strict=True):
            panels = part.subplots(1, columns, squeeze=False).flatten()
            for axes, group in zip(panels, row, strict=False):
                panel(axes, group, tint)
                x_range, y_range = limits(groups, group.shape.data)
                axes.set(xlim=x_range, ylim=y_range, xlabel=f"clean accuracy in % (n={group.shape.n_clean:,})",
                         ylabel=f"AutoAttack {board.threat} in % (n={group.shape.n_attacked:,})")
            if is_crowded(row[0]):
                lines(panels[1], row[0], tint)
                part.suptitle(row[0].shape.title, fontsize=10)
            for axes in panels[2 if is_crowded(row[0]) else len(row):]:
                axes.remove()
    return path


def panel(axes: Axes, group: Group, tint: dict[str, str]) -> None:
    """One group: numbered means with Wilson's intervals, seeds as small dots, the front as a line."""
    crowded = is_crowded(group)
    for number, entry in enumerate(group.entries, start=1):
        clean, attacked = (100 * value for value in entry.point)
        bars = [[[abs(100 * end - middle)] for end in entry.image_interval(which)]
                for which, middle in ((entry.clean, clean), (entry.attacked, attacked))]
        colour = tint[entry.paper]
        axes.errorbar(clean, attacked, xerr=bars[0], yerr=bars[1], color=colour, linewidth=1,
                      alpha=0.2 if crowded else 0.55)
        if len(entry.runs) > 1:
            axes.plot([100 * value for value in entry.clean.accuracies],
                      [100 * value for value in entry.attacked.accuracies], ".", color=colour, markersize=4)
        axes.plot(clean, attacked, "o", color=colour, markersize=10 if crowded else 13, markeredgecolor="white",
                  label=f"{number}  {entry.label} ({entry.paper})", zorder=3)
        axes.annotate(str(number), (clean, attacked), color="white", ha="center", va="center",
                      fontsize=6.5 if crowded else 8, fontweight="bold", zorder=4)
    corners = stairs(group)
    axes.plot([x for x, _ in corners], [y for _, y in corners], color=plots.GREY, linewidth=1, linestyle=":", zorder=0)
    if not crowded:
        axes.set_title(wrapped(group), fontsize=9)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), fontsize=8, markerscale=0.5)


def lines(axes: Axes, group: Group, tint: dict[str, str]) -> None:
    """A group's methods one below the other, with the intervals of both accuracies."""
    for number, entry in enumerate(group.entries, start=1):
        for which, value, filled, beside in ((entry.attacked, entry.point[1], True, -0.16),
                                             (entry.clean, entry.point[0], False, 0.16)):
            ends = [[abs(100 * (end - value))] for end in entry.image_interval(which)]
            axes.errorbar(100 * value, number + beside, xerr=ends, color=tint[entry.paper], linewidth=1, fmt="o",
                          markersize=5, markerfacecolor=tint[entry.paper] if filled else "white")
    numbers = range(1, len(group.entries) + 1)
    axes.set_yticks(numbers, [f"{entry.label} ({entry.paper})  {number}"
                              for number, entry in zip(numbers, group.entries, strict=True)], fontsize=8)
    for label, entry in zip(axes.get_yticklabels(), group.entries, strict=True):
        label.set_color(tint[entry.paper])
    axes.set(ylim=(len(group.entries) + 0.7, 0.3), xlabel="accuracy in %, with 95% intervals")
    axes.set_title(f"filled: AutoAttack (n={group.shape.n_attacked:,})\nhollow: clean (n={group.shape.n_clean:,})",
                   fontsize=9)


def wrapped(group: Group) -> str:
    """The group's title, broken where a panel ends."""
    head, _, tail = group.shape.title.partition(": ")
    return "\n".join([head, *textwrap.wrap(tail, TITLE_WIDTH)])
