"""What AdaRAT's trainings cost, in forward-and-backward passes per image.  Imports no torch."""

from collections.abc import Sequence

from adarat.settings import QUIRKS, VARIANTS
from common.records import RunRecord
from common.runs import FORWARD, STEP, Effort

STEPS = 10                                     # of training's attack
TEACHERS = 2
RELEASED = tuple(name for name, kind in QUIRKS.items() if kind == "training")


def passes(method: str, variant: str = VARIANTS[0], quirks: Sequence[str] = RELEASED, steps: int = STEPS) -> float:
    """Passes for each training image of an epoch.  FAT and DAT stop early on some images: an upper bound there."""
    if method == "ST":
        return 1.0
    weighed = variant != VARIANTS[0]
    if method == "TRADES":                     # p(x) for the attack; the steps; x and x'
        return FORWARD + steps * STEP + 2
    clean = 1.0 if weighed else FORWARD if "clean-pass" in quirks else 0.0
    found = steps * STEP + 1 + clean
    if method in ("KD-AT", "IAD"):             # what the teachers say of x' and, where it passes, of x
        found += TEACHERS * FORWARD * (2 if clean else 1)
    return found + (1.0 if method == "Generalist" else 0.0)          # its second learner, on clean images


def effort_of_run(run: RunRecord) -> Effort:
    """See `common.runs`.  Teachers, and the run that floor and ceiling were read off, come before."""
    config = run.run["config"]
    steps = config.get("step_num", STEPS)
    return Effort(passes=passes(run.run["method"], run.run["variant"], run.run["quirks"], steps),
                  after=(*run.run["needs"], *([config["limits_from"]] if config.get("limits_from") else [])))
