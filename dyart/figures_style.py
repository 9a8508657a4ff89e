"""How DyART's figures name and colour the methods.  No torch."""

from collections.abc import Iterable, Sequence

from common import plots
from common.records import RunRecord
from dyart.runs import TABLE

Key = tuple[str, str]                                        # method, variant
Grouped = dict[Key, list[RunRecord]]                         # runs by seed

COLOURS = {"clean": plots.GREY, "DyART": plots.GREEN, "AT": plots.BLUE, "TRADES": plots.ORANGE, "MART": plots.PURPLE}
MARKERS = {"clean": "X", "DyART": "o", "AT": "s", "TRADES": "^", "MART": "D"}
LABELS = {("clean", "plain"): "burn-in", ("clean", "gn"): "burn-in (group norm)", **TABLE.labels()}


def line(key: Key) -> dict[str, object]:
    """A method's colour, marker and dashes (group norm); its label."""
    method, variant = key
    return {"color": COLOURS[method], "marker": MARKERS[method], "linestyle": "-" if variant == "plain" else "--",
            "markerfacecolor": COLOURS[method] if variant == "plain" else "white", "label": LABELS[key]}


def whole_numbers(values: Iterable[int]) -> str:
    """'200' or '200 to 1,000'."""
    found = sorted(set(values))
    return f"{found[0]:,}" if len(found) == 1 else f"{found[0]:,} to {found[-1]:,}"


def seeds_of(groups: Iterable[Sequence[RunRecord]]) -> str:
    """'seed 1', 'seeds 1, 2'; a method that has fewer is not told apart."""
    seeds = sorted({run.run["seed"] for runs in groups for run in runs})
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
