"""Drawings of the leaderboard's page, as SVG text: a group's scatter and lines, a run's curves.  No torch.

Colours come from the page's style sheet (classes p0, p1, ... for papers, c0, ... for curves), so that they follow light
and dark.  Everything that comes from a record is escaped.
"""

import math
from collections.abc import Sequence
from html import escape

from common.leaderboard import Board, Entry, Group
from common.leaderboard_plot import colours, is_crowded, limits, stairs

WIDTH, HEIGHT = 640.0, 420.0
LEFT, RIGHT, TOP, BOTTOM = 56.0, 16.0, 14.0, 46.0
LETTER, LINE, BARS = 6.6, 24.0, 360.0          # of lines: a letter's pixels, a line's, those for accuracies
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

    def __init__(self, x: tuple[float, float], y: tuple[float, float], width: float = WIDTH, height: float = HEIGHT,
                 left: float = LEFT):
        self.x_range, self.y_range, self.width, self.height, self.left = x, y, width, height, left

    def x(self, value: float) -> float:
        low, high = self.x_range
        return round(self.left + (value - low) / (high - low) * (self.width - self.left - RIGHT), 1)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return round(self.height - BOTTOM - (value - low) / (high - low) * (self.height - TOP - BOTTOM), 1)

    def columns(self, label: str, begin: float) -> list[str]:
        """Grid lines, numbers and label of x; the label is in the middle between `begin` and the right."""
        bottom, right = self.height - BOTTOM, self.width - RIGHT
        drawn = []
        for value in ticks(*self.x_range):
            at = self.x(value)
            drawn += [f'<line class="grid" x1="{at}" x2="{at}" y1="{TOP}" y2="{bottom}"/>',
                      f'<text class="tick" x="{at}" y="{bottom + 16}" text-anchor="middle">{value:g}</text>']
        return [*drawn, f'<text class="label" x="{(begin + right) / 2}" y="{self.height - 8}" text-anchor="middle">'
                f'{escape(label)}</text>']

    def frame(self, x_label: str, y_label: str) -> list[str]:
        """Grid, numbers and labels."""
        drawn = self.columns(x_label, self.left)
        for value in ticks(*self.y_range):
            at = self.y(value)
            drawn += [f'<line class="grid" x1="{self.left}" x2="{self.width - RIGHT}" y1="{at}" y2="{at}"/>',
                      f'<text class="tick" x="{self.left - 6}" y="{at + 4}" text-anchor="end">{value:g}</text>']
        middle = (TOP + self.height - BOTTOM) / 2
        return [*drawn, f'<text class="label" x="14" y="{middle}" text-anchor="middle" '
                f'transform="rotate(-90 14 {middle})">{escape(y_label)}</text>']


def scatter(group: Group, board: Board, name: str) -> str:
    """Clean accuracy against AutoAttack; each point is a link to its entry.  name: unique on the page."""
    axes, shape = Axes(*limits(board.groups, group.shape.data)), group.shape
    papers = list(colours(board))
    drawn = axes.frame(f"clean accuracy in % (n={shape.n_clean:,})",
                       f"AutoAttack {board.threat} in % (n={shape.n_attacked:,})")
    corners = " ".join(f"{axes.x(x)},{axes.y(y)}" for x, y in stairs(group))
    drawn.append(f'<polyline class="front" points="{corners}"/>')
    last_first = list(enumerate(group.entries, start=1))[::-1]
    for _, entry in last_first:
        drawn += spread(axes, entry, papers.index(entry.paper))
    for number, entry in last_first:                         # over all that is no link
        drawn += point(axes, entry, number, papers.index(entry.paper))
    said = "; ".join(f"{number}: {summary(entry)}" for number, entry in enumerate(group.entries, start=1))
    return figure(name, axes, f"Clean accuracy against AutoAttack, {shape.title}", said, drawn,
                  "crowded" if is_crowded(group) else "roomy")


def lines(group: Group, board: Board, name: str) -> str:
    """A group's methods one below the other, each with the intervals of both accuracies; names lead to the entries."""
    papers, shape = list(colours(board)), group.shape
    ends = [100 * end for entry in group.entries for which in (entry.clean, entry.attacked)
            for end in entry.image_interval(which)]
    names = [f"{entry.label} ({entry.paper}) {number}" for number, entry in enumerate(group.entries, start=1)]
    left = round(24 + LETTER * max(map(len, names)))
    axes = Axes((min(0.0, *ends), max(ends)), (len(names) + 0.5, 0.5), left + BARS, TOP + BOTTOM + LINE * len(names),
                left)
    drawn = axes.columns(f"accuracy in %: filled AutoAttack (n={shape.n_attacked:,}), hollow clean "
                         f"(n={shape.n_clean:,})", LEFT)
    for number, entry in enumerate(group.entries, start=1):
        drawn += [f'<a class="p{papers.index(entry.paper)}" href="#{escape(entry.key)}">'
                  f"<title>{escape(summary(entry))}</title>",
                  f'<text class="name" x="{left - 8}" y="{axes.y(number) + 4}" text-anchor="end">'
                  f"{escape(names[number - 1])}</text>"]
        for which, value, kind, beside in ((entry.attacked, entry.point[1], "filled", -0.17),
                                           (entry.clean, entry.point[0], "hollow", 0.17)):
            low, high = (axes.x(100 * end) for end in entry.image_interval(which))
            y = axes.y(number + beside)
            drawn += [f'<line class="bar" x1="{low}" x2="{high}" y1="{y}" y2="{y}"/>',
                      f'<circle class="{kind}" cx="{axes.x(100 * value)}" cy="{y}" r="3.5"/>']
        drawn.append("</a>")
    return figure(name, axes, f"Both accuracies with 95% intervals, {shape.title}",
                  f"The {len(group.entries)} methods in the order of the table", drawn, "lines")


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


def figure(name: str, axes: Axes, title: str, said: str, drawn: Sequence[str], kind: str) -> str:
    """An SVG with a title and a description for those who do not see it; kind: its class in the style sheet."""
    return "\n".join([
        f'<svg class="{kind}" viewBox="0 0 {axes.width:g} {axes.height:g}" role="group" '
        f'aria-labelledby="{name}-t {name}-d">',
        f'<title id="{name}-t">{escape(title)}</title>', f'<desc id="{name}-d">{escape(said)}</desc>', *drawn,
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
    return (figure(name, axes, f"Accuracy over the epochs, {entry.label}", said, drawn, "epochs")
            + f'\n<ul class="keys">{legend}</ul>')
