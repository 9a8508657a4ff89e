"""Part 2's learning rates and weight average.  t counts epochs: the step of 0-based index i of n has t = epoch+(i+1)/n.

    piecewise   m; m/factor from t = stage1 on; m/factor^2 from t = stage2 on: in the last step of the epoch before
    linear      through (0, E//3, 2E//3, E) -> (m, m, m/10, m/100)
    cosine      m/2*(1 + cos(pi*t/E))
    constant    m                                            m = lr_max, E = epochs
"""

import math
from collections.abc import Callable

from common.ema import Averaging
from common.schedules import interpolate
from common.types import Hyper, Schedule

Rate = Callable[[float], float]                        # t -> learning rate


def learning_rate(kind: str, *, lr_max: float = 0.1, factor: float = 1.5, stage1: float = 100, stage2: float = 150,
                  epochs: int = 200) -> Rate:
    """The schedule of that name as a function of t; ValueError for another name."""
    if kind == "constant":
        return lambda t: lr_max
    if kind == "piecewise":
        return lambda t: lr_max if t < stage1 else lr_max / factor if t < stage2 else lr_max / factor ** 2
    if kind == "linear":
        knots = (0, epochs // 3, epochs * 2 // 3, epochs)
        return lambda t: interpolate(knots, (lr_max, lr_max, lr_max / 10, lr_max / 100), t)
    if kind == "cosine":
        return lambda t: lr_max / 2 * (1 + math.cos(math.pi * t / epochs))
    raise ValueError(f"no schedule is called {kind!r}: piecewise, linear, cosine, constant")


def at_the_end_of_steps(rate: Rate, steps_per_epoch: int) -> Schedule:
    """`fit` asks with the progress epoch + i/n before a step; the released code sets the rate of its end, t."""
    # The progress is a rounded number: its product is near the whole number that is meant.
    return lambda progress: Hyper(rate((round(progress * steps_per_epoch) + 1) / steps_per_epoch))


def averaging(*, warmup_epochs: int, decay_rate: float, steps_per_epoch: int) -> Averaging:
    """The weight average: the model until `warmup_epochs` epochs are done, then it decays by `decay_rate` per step.

    Batch norm's means and variances are averaged too, its counters are the model's.
    """
    first = warmup_epochs * steps_per_epoch
    return Averaging(lambda step: decay_rate if step >= first else 0.0, buffers="statistics")
