"""DyART's learning rates; two of the three are one cycle (Smith and Topin 2019) that takes the momentum along.

    A(s,t,p) = t + (s-t)/2 * (1 + cos(pi*p))                    from s at p = 0 to t at p = 1
    step k of N, the first share q of them being the warm-up:   a = q*N - 1,  b = N - 1
        k < a     lr A(lr/25, lr, k/a)       momentum A(0.95, 0.85, k/a)
        k >= a    lr A(lr, lr/25e4, p)       momentum A(0.85, 0.95, p),   p = (k-a)/(b-a)

`cosinew` goes by whole epochs: N = epochs, q = 0.025; below 40 epochs a < 0: no warm-up.  `cyclic` goes by batches,
q = 0.25.  `step`: a tenth after int(E/2), a hundredth after int(3E/4) finished epochs, momentum 0.9.
"""

import math
from functools import partial

from common.schedules import steps
from common.types import Hyper, Schedule

START, END = 25.0, 25e4                       # the highest rate over the first, and over the last
LOW, HIGH = 0.85, 0.95                        # momentum where the rate is highest, and at both ends
WARM_EPOCHS, WARM_STEPS = 0.025, 0.25         # q of cosinew and of cyclic


def schedule(name: str, *, lr: float, epochs: int, steps_per_epoch: int, released_steps: int | None = None) -> Schedule:
    """The schedule called cosinew, step or cyclic (ValueError for another); `lr` is its highest rate.

    steps_per_epoch  batches of an epoch, which `cyclic` needs to tell them apart by `progress`
    released_steps   how many of them `cyclic` is planned for, if not just these (see `averaging.released_steps`)
    """
    if not lr > 0 or epochs < 1 or steps_per_epoch < 1:
        raise ValueError(f"lr, epochs and steps_per_epoch must be positive: {lr}, {epochs}, {steps_per_epoch}")
    if name == "cosinew":
        return lambda progress: one_cycle(math.floor(progress), epochs, lr, WARM_EPOCHS)
    if name == "cyclic":
        total = epochs * (released_steps or steps_per_epoch)
        # epoch + index/steps_per_epoch is a rounded number: its product is near the whole number that is meant.
        return lambda progress: one_cycle(round(progress * steps_per_epoch), total, lr, WARM_STEPS)
    if name == "step":
        return steps(lr, (int(epochs / 2), int(3 * epochs / 4)), (0.1, 0.01))
    raise ValueError(f"no schedule is called {name!r}: cosinew, step, cyclic")


def anneal(start: float, end: float, share: float) -> float:
    """A(start, end, share)."""
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))


def one_cycle(k: int, total: int, lr: float, warm: float) -> Hyper:
    """Step k (0-based) of `total`, as torch's OneCycleLR; after the last one it stays as it is there.

    Where a = 0 (40 epochs of cosinew) the released code, which takes the first line at k = a as well, divides 0 by 0.
    Here step 0 has the highest rate: what the first line ends with, and the second begins with, however near a is to 0.
    """
    a, b = warm * total - 1, total - 1
    if k < a:
        return between(lr / START, lr, HIGH, LOW, k / a)
    return between(lr, lr / END, LOW, HIGH, min((k - a) / (b - a), 1.0))


def between(first_lr: float, last_lr: float, first_momentum: float, last_momentum: float, share: float) -> Hyper:
    """Both numbers, `share` of the way."""
    mix = partial(anneal, share=share)
    return Hyper(mix(first_lr, last_lr), mix(first_momentum, last_momentum))
