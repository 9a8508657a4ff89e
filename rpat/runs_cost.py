"""What RPAT's runs cost, for estimates of time.  Imports no torch.

Unit: a forward and backward pass of one image.  A forward pass is 1/3 of it, one with the gradient of the image 2/3.
"""

from common.records import RunRecord
from common.runs import FORWARD, STEP, Cost, Effort
from rpat.runs_budgets import Budget, Target
from rpat.settings import VALIDATION

STEPS = 10                                     # of training's attack, and of the one after each epoch
AUTOATTACK = 1500.0                            # of one image, easy and hard ones together
GFLOP = {"resnet18": 4.36, "PreActResNet18": 3.33, "WideResNet": 40.0}     # per pass of a 32x32 image, full width;
#                                                Tiny-ImageNet's stem has stride 2: the same
TRAIN_SIZE = {"cifar10": 50_000, "cifar100": 50_000, "tiny-imagenet": 100_000}
TEST_SIZE = 10_000
WARM_UP = 105 / 200                            # part of the epochs before the weight average


def passes(method: str, variant: str) -> float:
    """Passes for each training image of an epoch, averaged over the epochs."""
    rpat = variant == "rpat"
    attack = STEPS * STEP
    adversarial = attack + 1 + 2 * rpat                              # x', and with RPAT mid and x
    rebat = attack + FORWARD + 1 + FORWARD                           # the end's loss; x'; x after the step
    return {"PGD-AT": adversarial, "Consistency-AT": 2 * adversarial,
            "TRADES": FORWARD + attack + 2 + FORWARD + rpat, "MART": attack + 2 + rpat, "ce": 1, "ce_rand": 1,
            "ReBAT": rebat + (1 - WARM_UP) * FORWARD, "RPAT++": rebat + (1 - WARM_UP) * 2 * FORWARD}[method]


def effort_of_run(run: RunRecord) -> Effort:
    """See `common.runs`.  The attack's steps are the run's own (part 1 calls them n_iters, part 2 attack_iters)."""
    config, method = run.run["config"], run.run["method"]
    usual = passes(method, run.run["variant"])
    if method in ("ce", "ce_rand"):
        return Effort(passes=usual)
    steps = config.get("n_iters", config.get("attack_iters", STEPS))
    return Effort(passes=usual + (2 if method == "Consistency-AT" else 1) * (steps - STEPS) * STEP)


def after_epoch(target: Target, shape: Budget) -> float:
    """Passes of what is measured after each epoch: part 1 on validation and test images, part 2 on the former, of the
    model and of the average."""
    validated, tested = (min(shape.n_epoch_test or size, size) for size in (VALIDATION, TEST_SIZE))
    one = FORWARD + STEPS * STEP
    return (validated + tested) * (one + 3 * FORWARD) if target.part == 1 else 2 * validated * (one + FORWARD)


def gflop(target: Target, shape: Budget) -> float:
    """10^9 operations of a pass."""
    return shape.gflop or GFLOP[shape.model or target.model] * ((shape.width or 64) / 64) ** 2


def training(method: str, variant: str, target: Target, shape: Budget) -> Cost:
    """Of one training with all that is measured after its epochs."""
    images = shape.n_train or TRAIN_SIZE[target.data] - VALIDATION
    return Cost(images=images * shape.epochs, passes=passes(method, variant) + after_epoch(target, shape) / images,
                gflop=gflop(target, shape))


def judging(target: Target, shape: Budget) -> Cost:
    """Of paper-rpat or paper-sotas."""
    tested, attacked = shape.n_test or TEST_SIZE, shape.n_autoattack or TEST_SIZE
    steps = 10 + 20 if target.part == 1 else 20
    return Cost(images=1, passes=tested * (FORWARD + steps * STEP) + attacked * AUTOATTACK, gflop=gflop(target, shape))


def perceiving(target: Target, shape: Budget) -> Cost:
    """Of perception-rpat: PGD-20, then x, mid and x', of it and of noise."""
    return Cost(images=1, passes=(shape.n_test or TEST_SIZE) * (20 * STEP + 6 * FORWARD), gflop=gflop(target, shape))
