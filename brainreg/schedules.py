"""The learning rate: it falls from phase to phase, and after the last phase starts again from the top.

    lr(e) = lr * decay^floor( (e mod phases*duration) / duration ),   e the 0-based epoch

Source: the released code of arXiv 2410.03952 (`phase_num`, `phase_duration`, `decay_rate`).
"""

import math

from common.types import Hyper, Schedule


def phases(lr: float = 0.1, *, decay: float = 0.3, count: int = 5, duration: int = 4,
           momentum: float = 0.9) -> Schedule:
    """`count` phases of `duration` epochs, of rates lr, lr*decay, lr*decay^2, ..., over and over.

    The rate changes between epochs only.  ValueError for a rate or decay that is not positive, or a count or duration
    below 1.
    """
    if not (lr > 0 and decay > 0) or count < 1 or duration < 1:
        raise ValueError(f"lr, decay, count and duration must be positive: {lr}, {decay}, {count}, {duration}")

    def at(progress: float) -> Hyper:
        phase = math.floor(progress) % (count * duration) // duration
        return Hyper(lr * decay ** phase, momentum)

    return at
