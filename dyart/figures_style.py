"""How DyART's figures name and colour the methods.  No torch."""

from common import plots
from common.plots import seeds_of as seeds_of
from common.plots import whole_numbers as whole_numbers
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
