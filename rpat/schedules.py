"""The learning rates of RPAT's part 1; momentum 0.9.  They change between epochs only.

    multi_step_decay   a tenth after int(E/2) epochs, a hundredth after int(3E/4), if E >= 200; else after 100 and 105,
                       whatever E: up to 100 epochs have one rate
    cosine             lr/2 * (1 + cos(pi*e/E)) in 0-based epoch e

scaled (ours): multi_step_decay goes by E at any length, so that short runs have all three rates.
"""

import math

from common.schedules import steps
from common.types import Hyper, Schedule
from rpat.settings import RELEASED_EPOCHS

SHORT = (100, 105)                    # epochs done at which the rate falls if E < 200


def schedule(name: str, *, lr: float, epochs: int, scaled: bool = False) -> Schedule:
    """The schedule called multi_step_decay or cosine (ValueError for another) from `lr` on, over E = `epochs`."""
    if not lr > 0 or epochs < 1:
        raise ValueError(f"lr and epochs must be positive: {lr}, {epochs}")
    if name == "multi_step_decay":
        own = (max(1, int(epochs / 2)), max(1, int(3 * epochs / 4)))
        return steps(lr, own if scaled or epochs >= RELEASED_EPOCHS else SHORT, (0.1, 0.01))
    if name == "cosine":
        return lambda progress: Hyper(lr / 2 * (1 + math.cos(math.pi * math.floor(progress) / epochs)))
    raise ValueError(f"no schedule is called {name!r}: multi_step_decay, cosine")
