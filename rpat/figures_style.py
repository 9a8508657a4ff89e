"""How RPAT's figures name and colour the methods.  No torch."""

from common import plots
from common.plots import seeds_of as seeds_of
from common.plots import whole_numbers as whole_numbers
from common.records import RunRecord
from rpat.runs import TABLE

Key = tuple[str, str]                                        # method, variant
Grouped = dict[Key, list[RunRecord]]                         # runs by seed
Arrow = tuple[Key, Key]                                      # base, the same with robust perception

LABELS = TABLE.labels()
COLOURS = {"PGD-AT": plots.BLUE, "TRADES": plots.ORANGE, "MART": plots.PURPLE, "Consistency-AT": plots.GREEN,
           "ReBAT": plots.RED, "RPAT++": plots.RED, "ce": plots.GREY, "ce_rand": plots.BLACK}
CUTMIX = plots.SKY
MARKERS = {"PGD-AT": "s", "TRADES": "^", "MART": "D", "Consistency-AT": "v", "ReBAT": "P", "RPAT++": "P", "ce": "X",
           "ce_rand": "X"}


def with_rpat(key: Key) -> bool:
    """Whether a method has robust perception."""
    return key[1] == "rpat" or key[0] == "RPAT++"


def pairs() -> list[Arrow]:
    """Every base and what RPAT makes of it, with its label's key."""
    return [(b, a) for a, b in TABLE.pairs()]


def line(key: Key) -> dict[str, object]:
    """A method's colour, marker and label; with robust perception whole lines and filled marks, else the others."""
    colour, ours = CUTMIX if key[1] == "cutmix" else COLOURS[key[0]], with_rpat(key)
    return {"color": colour, "marker": MARKERS[key[0]], "linestyle": "-" if ours else "--",
            "markerfacecolor": colour if ours else "white", "label": LABELS[key]}
