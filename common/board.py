"""The leaderboard's common shape: one network, one number of images, one length, one evaluation for every method.

Each paper's runs at budget `board` take their numbers from here; what is a method's own (loss, attack, schedule, weight
average, which weights are kept) stays its own.  Imports no torch and no paper.
"""

import re

from common.evaluation.plans import Evaluator, Plan
from common.runs import FORWARD, STEP, Cost, Judgement

BUDGET = "board"
MODEL, WIDTH = "resnet18", 16
EPOCHS, BATCH_SIZE, N_TRAIN = 10, 128, 2500
N_EPOCH_TEST = 256                             # images of each part that is looked at after an epoch
N_TEST, N_AUTOATTACK = 1000, 100
EPS, STEP_SIZE = 8 / 255, 2 / 255
GFLOP = 0.22                                   # of a forward and backward pass of one 32x32 image
AUTOATTACK_PASSES = 1500.0                     # of one image, easy and hard ones together
ABOUT = (f"the leaderboard's common shape: {N_TRAIN:,} images, ResNet-18 of width {WIDTH}, batches of {BATCH_SIZE}, "
         f"{EPOCHS} epochs, schedule scaled; clean and PGD-20 on {N_TEST:,} images, AutoAttack on {N_AUTOATTACK}")
PLAN = f"board-{N_TEST}-{N_AUTOATTACK}"
_NAME = re.compile(r"board-(\d+)-(\d+)")


def plan_named(name: str) -> Plan | None:
    """`board-N-M`: clean and PGD-20 on the first N test images, AutoAttack on the first M, L-inf 8/255; else None."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    n, attacked = int(match[1]), int(match[2])
    return Plan(name, (Evaluator("clean", "clean", n=n),
                       Evaluator("PGD-20", "pgd", eps=EPS, step_size=STEP_SIZE, steps=20, n=n),
                       Evaluator("AutoAttack", "autoattack", eps=EPS, n=attacked)), chunk=100)


def judgement(*, place: tuple[str, ...], checkpoint: str = "last", gflop: float = GFLOP) -> Judgement:
    """The common evaluation of a run, of the weights that its paper evaluates."""
    passes = N_TEST * (FORWARD + 20 * STEP) + N_AUTOATTACK * AUTOATTACK_PASSES
    return Judgement(plan=PLAN, checkpoint=checkpoint, place=place, cost=Cost(images=1, passes=passes, gflop=gflop))
