"""Drawings of the leaderboard's page, as SVG text: the scatter of a group and the curves of a run.  No torch.

Colours come from the page's style sheet (classes p0, p1, ... for papers, c0, ... for curves), so that they follow light
and dark.  Everything that comes from a record is escaped.
"""

import math
from collections.abc import Sequence
from html import escape

from common.leaderboard import Board, Entry, Group
from common.leaderboard_plot import colours, limits, stairs

WIDTH, HEIGHT = 640.0, 420.0
LEFT, RIGHT, TOP, BOTTOM = 56.0, 16.0, 14.0, 46.0
KINDS = (("clean", ("clean",)), ("attacked", ("pgd", "robust")))        # curves: what their names hold
PARTS = {"test": "test images", "val": "held-out images", "val_wa": "held-out images, average"}


def ticks(low: float, high: float, most: int = 7) -> list[float]:
    """Round numbers from low to high, at most `most` of them."""
    step = next(step for power in range(-3, 4) for step in (10.0 ** power, 2 * 10.0 ** power, 5 * 10.0 ** power)
                if (high - low) / step <= most - 1)
    first = math.ceil(low / step - 1e-9)
    return [round(number * step, 6) for number in range(first, math.floor(high / step + 1e-9) + 1)]


class Axes:
    """From numbers to pixels, y upwards."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float], width: float = WIDTH, height: float = HEIGHT):
        self.x_range, self.y_range, self.width, self.height = x, y, width, height

    def x(self, value: float) -> float:
        low, high = self.x_range
        return round(LEFT + (value - low) / (high - low) * (self.width - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return round(self.height - BOTTOM - (value - low) / (high - low) * (self.height - TOP - BOTTOM), 1)

    def frame(self, x_label: str, y_label: str) -> list[str]:
        """Grid, numbers and labels."""
        bottom, right = self.height - BOTTOM, self.width - RIGHT
        lines = []
        for value in ticks(*self.x_range):
            at = self.x(value)
            lines += [f'<line class="grid" x1="{at}" x2="{at}" y1="{TOP}" y2="{bottom}"/>',
                      f'<text class="tick" x="{at}" y="{bottom + 16}" text-anchor="middle">{value:g}</text>']
        for value in ticks(*self.y_range):
            at = self.y(value)
            lines += [f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{at}" y2="{at}"/>',
                      f'<text class="tick" x="{LEFT - 6}" y="{at + 4}" text-anchor="end">{value:g}</text>']
        middle = (TOP + bottom) / 2
        return [*lines,
                f'<text class="label" x="{(LEFT + right) / 2}" y="{self.height - 8}" text-anchor="middle">'
                f'{escape(x_label)}</text>',
                f'<text class="label" x="14" y="{middle}" text-anchor="middle" transform="rotate(-90 14 {middle})">'
                f'{escape(y_label)}</text>']


def scatter(group: Group, board: Board, name: str) -> str:
    """Clean accuracy against AutoAttack; each point is a link to its entry.  name: unique on the page."""
    axes, shape = Axes(*limits(board.groups, group.shape.data)), group.shape
    papers = list(colours(board))
    lines = axes.frame(f"clean accuracy in % (n={shape.n_clean:,})",
                       f"AutoAttack {board.threat} in % (n={shape.n_attacked:,})")
    corners = " ".join(f"{axes.x(x)},{axes.y(y)}" for x, y in stairs(group))
    lines.append(f'<polyline class="front" points="{corners}"/>')
    last_first = list(enumerate(group.entries, start=1))[::-1]
    for _, entry in last_first:
        lines += spread(axes, entry, papers.index(entry.paper))
    for number, entry in last_first:                         # over all that is no link
        lines += point(axes, entry, number, papers.index(entry.paper))
    said = "; ".join(f"{number}: {summary(entry)}" for number, entry in enumerate(group.entries, start=1))
    return figure(name, axes, f"Clean accuracy against AutoAttack, {shape.title}", said, lines)


def summary(entry: Entry) -> str:
    """'PGD-AT (adarat): clean 32.9 %, AutoAttack 25.8 %'."""
    clean, attacked = entry.point
    return f"{entry.label} ({entry.paper}): clean {100 * clean:.1f} %, AutoAttack {100 * attacked:.1f} %"


def spread(axes: Axes, entry: Entry, paper: int) -> list[str]:
    """The intervals of an entry, and a dot for each of several seeds."""
    x, y = (100 * value for value in entry.point)
    (x_low, x_high), (y_low, y_high) = (tuple(100 * end for end in entry.image_interval(which))
                                        for which in (entry.clean, entry.attacked))
    seeds = [f'<circle class="seed" cx="{axes.x(100 * clean)}" cy="{axes.y(100 * attacked)}" r="2.5"/>'
             for clean, attacked in zip(entry.clean.accuracies, entry.attacked.accuracies, strict=True)
             if len(entry.runs) > 1]
    return [f'<g class="p{paper}">',
            f'<line class="bar" x1="{axes.x(x_low)}" x2="{axes.x(x_high)}" y1="{axes.y(y)}" y2="{axes.y(y)}"/>',
            f'<line class="bar" x1="{axes.x(x)}" x2="{axes.x(x)}" y1="{axes.y(y_low)}" y2="{axes.y(y_high)}"/>',
            *seeds, "</g>"]


def point(axes: Axes, entry: Entry, number: int, paper: int) -> list[str]:
    """A numbered circle, inside a link."""
    x, y = (100 * value for value in entry.point)
    return [f'<a class="p{paper}" href="#{escape(entry.key)}"><title>{escape(summary(entry))}</title>',
            f'<circle class="dot" cx="{axes.x(x)}" cy="{axes.y(y)}" r="11"/>',
            f'<text class="number" x="{axes.x(x)}" y="{axes.y(y) + 4}" text-anchor="middle">{number}</text></a>']


def figure(name: str, axes: Axes, title: str, said: str, lines: Sequence[str]) -> str:
    """An SVG with a title and a description for those who do not see it."""
    return "\n".join([
        f'<svg viewBox="0 0 {axes.width:g} {axes.height:g}" role="group" aria-labelledby="{name}-t {name}-d">',
        f'<title id="{name}-t">{escape(title)}</title>', f'<desc id="{name}-d">{escape(said)}</desc>', *lines,
        "</svg>"])


def curves_of(entry: Entry) -> dict[str, list[list[tuple[int, float]]]]:
    """What -> per seed the (epoch, percent) of a metric: clean and attacked accuracy, measured after the epochs."""
    keys = dict.fromkeys(key for run in entry.runs for row in run.metrics for key in row if key.endswith("_accuracy"))
    found: dict[str, list[list[tuple[int, float]]]] = {}
    for part, images in PARTS.items():
        for kind, words in KINDS:
            key = next((f"{part}_{word}_accuracy" for word in words if f"{part}_{word}_accuracy" in keys), None)
            seeds = [list(zip(*(values.tolist() for values in run.curve(key)), strict=True))
                     for run in entry.runs] if key else []
            if any(seeds):
                found[f"{kind}, {images}"] = [[(epoch, 100 * value) for epoch, value in line] for line in seeds if line]
    return found


def curves(entry: Entry, name: str) -> str:
    """Accuracy after each epoch, a line per seed; empty text where the records hold none."""
    found = curves_of(entry)
    points = [point for lines in found.values() for line in lines for point in line]
    if not points:
        return ""
    last, top = max(epoch for epoch, _ in points), max(value for _, value in points)
    axes = Axes((0, max(1, last)), (0.0, min(100.0, 10 * math.ceil((top + 1) / 10))), WIDTH, 260.0)
    drawn = axes.frame("epoch", "accuracy in %")
    for number, lines in enumerate(found.values()):
        drawn += [f'<polyline class="curve c{number}" points="'
                  + " ".join(f"{axes.x(epoch)},{axes.y(value)}" for epoch, value in line) + '"/>' for line in lines]
    said = "; ".join(f"{what}: {lines[0][-1][1]:.1f} % after the last epoch" for what, lines in found.items())
    legend = "".join(f'<li><span class="key c{number}"></span>{escape(what)}</li>' for number, what in enumerate(found))
    return (figure(name, axes, f"Accuracy over the epochs, {entry.label}", said, drawn)
            + f'\n<ul class="keys">{legend}</ul>')
