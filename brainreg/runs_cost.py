"""What runs cost, for estimates of time.  No torch here.

Unit: a forward and backward pass of one image of the task.  A forward pass is 1/3 of it, one with the gradient of the
image alone 2/3.
"""

from brainreg.runs_budgets import TEST_SIZE, Budget, Target
from brainreg.settings import Settings
from common.runs import Cost

FORWARD, STEP = 1 / 3, 2 / 3
GFLOP = {"resnet18": 3.4, "resnet34": 7.0, "resnet50": 7.8, "resnet101": 15.0}     # per pass at 32 pixels, width 64
PIXELS = {"mnist": 28 * 28, "fashion-mnist": 28 * 28, "cifar10": 32 * 32, "cifar100": 32 * 32, "imagenet": 36 * 64}
STRENGTHS, NOISES, REPEATS = 10, 3, 5
SEARCH = 110                                   # forward passes of one boundary search: a start, blends, 50 steps
SMALL, PGD_STEPS = 4, 20                       # sizes of PGD
CORRUPTIONS = 75                               # kinds times severities, and the clean image
AUTOATTACK = 1500.0                            # of one image at one eps, easy and hard ones together


def gflop(settings: Settings, target: Target, shape: Budget) -> float:
    """10^9 operations of a pass."""
    usual = GFLOP[settings.archi] * (settings.base_channels / 64) ** 2 * (target.size / 32) ** 2
    return shape.gflop.get(target.size, usual)


def passes(settings: Settings) -> float:
    """Passes for each class image of a step: its own, and of both images of the pairs."""
    if not settings.regularised:
        return 1.0
    area = PIXELS[settings.reg_data or settings.task] / PIXELS[settings.task]
    return 1 + 2 * settings.reg_batch_size / settings.resnet_batch_size * area


def training(settings: Settings, target: Target, shape: Budget) -> Cost:
    """Of one training with what is looked at before it and after each epoch."""
    held = round(settings.valid_portion * target.train)
    images = min(settings.n_train or target.train, target.train - held)
    looked = held + sum(min(settings.n_epoch_test or size, size) for size in (images, TEST_SIZE))
    total = settings.epoch_num * images * passes(settings) + (settings.epoch_num + 1) * looked * FORWARD
    gone = settings.epoch_num * images
    return Cost(images=gone, passes=total / gone, gflop=gflop(settings, target, shape))


def judging(settings: Settings, target: Target, shape: Budget) -> Cost:
    """Of paper-brainreg: noise, transferred FGSM with its gradients, boundary searches."""
    tested = shape.n_test or TEST_SIZE
    noise = tested * (STRENGTHS * (NOISES + 1) * FORWARD + STEP)          # FGSM: one gradient for all strengths
    return Cost(images=1, passes=noise + (shape.n_boundary or 1000) * REPEATS * SEARCH * FORWARD,
                gflop=gflop(settings, target, shape))


def attacking(settings: Settings, target: Target, shape: Budget, autoattack: int) -> Cost:
    """Of small-eps: PGD at each size, AutoAttack of `autoattack` images at one."""
    tested = shape.n_small or TEST_SIZE
    return Cost(images=1, passes=tested * (FORWARD + SMALL * PGD_STEPS * STEP) + autoattack * AUTOATTACK,
                gflop=gflop(settings, target, shape))


def corrupting(settings: Settings, target: Target, shape: Budget) -> Cost:
    """Of corruptions-brainreg: a forward pass of each corrupted image."""
    return Cost(images=1, passes=(shape.n_corrupted or TEST_SIZE) * CORRUPTIONS * FORWARD,
                gflop=gflop(settings, target, shape))
