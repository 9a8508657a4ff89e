"""The figure of what methods change against those that their papers compare them with.  No torch."""

from collections.abc import Mapping
from pathlib import Path

from common import plots
from common.leaderboard import Shape
from common.leaderboard_differences import Changes, interval


def chosen(found: Mapping[Shape, Changes]) -> Shape | None:
    """The group that is drawn: that of the most papers, then of the most pairs; None where nothing was compared."""
    there = [shape for shape, group in found.items() if group.rows]
    return max(there, key=lambda shape: (len({row.paper for row in found[shape].rows}), len(found[shape].rows)),
               default=None)


def draw(found: Mapping[Shape, Changes], tint: Mapping[str, str], path: Path) -> Path | None:
    """Write the figure: a panel per evaluator, a line per pair; filled where resolved, darker where also among all.

    tint: paper -> colour.  None if nothing was compared, and no file.
    """
    shape = chosen(found)
    if shape is None:
        return None
    group = found[shape]
    names, height = group.evaluators, 1.9 + 0.26 * len(group.rows)
    with plots.figure(path, 3.6 + 2.5 * len(names), height) as figure:
        panels = figure.subplots(1, len(names), squeeze=False, sharey=True).flatten()
        for axes, name in zip(panels, names, strict=True):
            counts = set()
            for number, row in enumerate(group.rows):
                one = next((one for one in row.found if one.evaluator == name), None)
                if one is None:
                    continue
                counts.add(one.n)
                colour, (low, high) = tint[row.paper], interval(one)
                fill = ("white", (colour, 0.45), colour)[len(group.mark(row, one))]
                axes.plot([100 * low, 100 * high], [number, number], color=colour, linewidth=1.2)
                axes.plot(100 * one.difference, number, "o", color="white", markersize=6)
                axes.plot(100 * one.difference, number, "o", color=colour, markersize=6, markerfacecolor=fill)
            axes.axvline(0, color=plots.BLACK, linewidth=0.8)
            axes.set(title=f"{name} (n={plots.whole_numbers(counts)})", xlabel="points")
        panels[0].set_yticks(range(len(group.rows)), [row.label for row in group.rows], fontsize=8)
        panels[0].set_ylim(len(group.rows) - 0.4, -0.6)
        for label, row in zip(panels[0].get_yticklabels(), group.rows, strict=True):
            label.set_color(tint[row.paper])
        figure.suptitle(f"{shape.title}\nright of the line: the first is better; bars: 95% intervals\n"
                        "filled: resolved; darker: also among all comparisons here", fontsize=9)
    return path
