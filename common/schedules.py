"""Learning-rate schedules: pure functions of the epochs done, so that a resumed run needs none of their state."""

from bisect import bisect_right
from collections.abc import Sequence

from common.types import Hyper, Schedule


def constant(lr: float, momentum: float = 0.9) -> Schedule:
    """The same learning rate throughout."""
    return lambda progress: Hyper(lr, momentum)


def steps(lr: float, boundaries: Sequence[float], factors: Sequence[float], momentum: float = 0.9) -> Schedule:
    """`lr` before the first boundary, `lr * factors[i]` from `boundaries[i]` epochs done on.

    AdaRAT: boundaries (60, 90, 110), factors (0.1, 0.01, 0.005), all of the initial rate.
    """
    if len(boundaries) != len(factors) or list(boundaries) != sorted(boundaries):
        raise ValueError("a step schedule needs one factor per boundary, boundaries ascending")
    values = [lr, *(lr * factor for factor in factors)]
    return lambda progress: Hyper(values[bisect_right(boundaries, progress)], momentum)


def interpolate(knots: Sequence[float], values: Sequence[float], at: float) -> float:
    """Linear between the knots (ascending), constant outside them."""
    if at <= knots[0]:
        return values[0]
    for left, right, low, high in zip(knots[:-1], knots[1:], values[:-1], values[1:], strict=True):
        if at <= right:
            return high if right == left else low + (high - low) * (at - left) / (right - left)
    return values[-1]
