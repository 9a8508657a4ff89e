"""DyART's average of the weights, which evaluation and DyART's own start use.

    U = released_steps        batches of an epoch, as the released code counts them: floor(n/batch) + 1
    g = (e-1)*U + i           epoch e (from 0), i batches done in it; the released count is one epoch late (quirk
                              wa-step-offset), so g starts at 1-U.  Without the quirk g = e*U + i: the first step is 1
    W = 0.025*epochs*U        warm-up, not rounded:  g < W: the average is the model
    d = g - W                 then  average <- decay*average + (1-decay)*model,  decay = min(tau, (1+d)/(10+d))

Quirk tiny-step-count: U is 391 on Tiny-ImageNet, of which 352 batches run, so that g jumps at the end of each epoch;
without it U is the number of batches.  Batch-norm statistics are the model's, taken over at the end of each epoch.
"""

from common.ema import Averaging

WARM = 0.025                                  # the share of all steps in which the average is the model


def released_steps(n: int, batch: int) -> int:
    """U for a training set of n images: 50,000 for CIFAR, 100,000 for Tiny-ImageNet, those that validate included."""
    return n // batch + 1


def averaging(*, epochs: int, steps_per_epoch: int, released_steps: int, tau: float = 0.995,
              offset: bool = True) -> Averaging:
    """How `fit` averages: step (0-based, over the whole run) -> decay.

    steps_per_epoch  batches that an epoch has; released_steps: U, the same number but for the quirk tiny-step-count
    offset           quirk wa-step-offset
    ValueError for tau outside ]0, 1]: 0 would be no average.
    """
    if not 0 < tau <= 1:
        raise ValueError(f"tau is above 0 and at most 1, not {tau}")
    if epochs < 1 or steps_per_epoch < 1 or released_steps < 1:
        raise ValueError(f"epochs and steps must be positive: {epochs}, {steps_per_epoch}, {released_steps}")
    warmup = WARM * epochs * released_steps

    def decay(step: int) -> float:
        epoch, index = divmod(step, steps_per_epoch)
        return decay_at((epoch - offset) * released_steps + index + 1, warmup, tau)

    return Averaging(decay, buffers="copy")


def decay_at(g: int, warmup: float, tau: float = 0.995) -> float:
    """The decay of the update at global step g; 0 (the average becomes the model) during the warm-up."""
    if g < warmup:
        return 0.0
    done = g - warmup
    return min(tau, (1 + done) / (10 + done))
