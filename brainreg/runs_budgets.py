"""The tasks of the paper's figures, and how much of the released protocol each budget does on them.  No torch here."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from common import board
from common.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Target:
    """What one target of make reproduces; its records stand in results/brainreg/<its name>/.

    task, archi: the released flags' words.  sources: whose images regularise it in the paper, our names; the first is
    the one whose ablations METHODS=N, k, thresholds, ranges mean.  epochs: of the authors' short paper.
    """

    task: str
    sources: tuple[str, ...]
    epochs: int
    archi: str = "ResNet18"
    size: int = 32                             # pixels of a side
    rgb: bool = False                          # in colour
    train: int = 50_000


TARGETS = {
    "mnist": Target(task="MNIST", sources=("mnist", "fashion-mnist"), epochs=20, size=28, train=60_000),
    # The short paper leaves Fashion-MNIST out: as MNIST.
    "fashion-mnist": Target(task="FashionMNIST", sources=("fashion-mnist", "mnist"), epochs=20, size=28, train=60_000),
    "cifar10": Target(task="CIFAR10", sources=("cifar10", "cifar100", "imagenet"), epochs=40),
    "cifar100": Target(task="CIFAR100", sources=("cifar100", "cifar10", "imagenet"), epochs=60, archi="ResNet34")}
# Of the leaderboard alone: in colour, as the other papers take their images, each regularised on its own.
BOARD_TARGETS = {f"{name}-rgb": replace(TARGETS[name], sources=(name,), archi="ResNet18", rgb=True)
                 for name in ("cifar10", "cifar100")}
TEST_SIZE = 10_000
PHASES = 5                                     # of the learning rate, released
# Seed of the unregularised run that only gives the images of transferred FGSM: no network attacks itself.
SOURCE_SEED = 1000


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much of the released protocol a budget does.  None: all of it.

    phase: epochs of one phase of the learning rate.  n_autoattack: images under AutoAttack, of the first seed's runs
    only; 0: no AutoAttack.
    """

    about: str
    seeds: tuple[int, ...]
    epochs: int | None = None
    phase: int = 4
    phases: int = PHASES
    archi: str | None = None
    width: int | None = None
    stem: int | None = None                    # side of the first kernel
    batch_size: int | None = None
    lr: float | None = None
    n_train: int | None = None
    n_epoch_test: int | None = None
    images: int | None = None                  # N
    valid_portion: float | None = None
    n_test: int | None = None
    n_boundary: int | None = None
    n_small: int | None = None                 # images under PGD at small eps
    n_autoattack: int = 0
    n_corrupted: int | None = None             # images under our own corruptions, in CIFAR's targets
    more: tuple[str, ...] = ()
    gflop: Mapping[int, float] = field(default_factory=dict)     # side -> of a pass, where not the network's own


BUDGETS = {
    "smoke": Budget(about="the digits as task and as regularisation images, a tiny network, 6 epochs: shows that all "
                          "parts work",
                    seeds=(0,), epochs=6, phase=1, phases=3, archi="ResNet18", width=8, batch_size=32, lr=0.02,
                    n_train=1000, n_epoch_test=64,
                    images=100, valid_portion=0.1, n_test=100, n_boundary=10, n_small=50, n_autoattack=5,
                    n_corrupted=20,
                    more=("--precision", "fp32"), gflop={28: 0.0033, 32: 0.0033}),
    "short": Budget(about="5,000 images, ResNet-18 of width 16, 10 epochs (two cycles of the learning rate, phases of "
                          "one epoch instead of four), 1,000 test images, boundary attack on 100, AutoAttack on 20 of "
                          "the first seed: about an hour of a CPU",
                    seeds=(0, 1, 2), epochs=10, phase=1, archi="ResNet18", width=16, n_train=5000, n_epoch_test=1000,
                    valid_portion=0.02, n_test=1000, n_boundary=100, n_small=500, n_autoattack=20,
                    n_corrupted=200),
    "gpu": Budget(about="all images, the released network, 20 epochs (two cycles of the learning rate, phases of two "
                        "epochs instead of four), boundary attack on 200 images, PGD at small eps on 1,000, AutoAttack "
                        "on 200 of the first seed: an evening of a large GPU",
                  seeds=(0,), epochs=20, phase=2, n_epoch_test=1000, n_boundary=200, n_small=1000,
                  n_autoattack=200, n_corrupted=1000),
    "full": Budget(about="the released protocol, the epochs of the authors' short paper, AutoAttack on 1,000 images of "
                         "the first seed", seeds=(0, 1, 2, 3, 4, 5, 6), n_autoattack=1000),
}
# CIFAR-100's network is twice as deep, and a hundred classes learn more slowly: one cycle, three sources fewer seeds.
CHANGES: dict[tuple[str, str], dict[str, Any]] = {             # (budget, target) -> what differs there
    ("short", "cifar100"): {
        "seeds": (0,), "epochs": 5, "archi": None,
        "about": "5,000 images of CIFAR-100, ResNet-34 of width 16, 5 epochs (one cycle of the learning rate), one "
                 "seed: shows that the chain runs on real images, no more"}}
# The other papers' network and data: the released network but for its first kernel, no more images than the others
# see.  The schedule is the released one, whose 40 epochs are two cycles.
BOARD = Budget(about=board.ABOUT + "; images in colour, first kernel 3x3, as many images regularise", seeds=(1,),
               epochs=board.EPOCHS, phase=1, width=board.WIDTH, stem=3, batch_size=board.BATCH_SIZE,
               n_train=board.N_TRAIN, n_epoch_test=board.N_EPOCH_TEST, images=board.N_TRAIN, valid_portion=0.02,
               gflop={32: board.GFLOP})


def target_of(dataset: str, budget: str) -> Target:
    """What `dataset` names at a budget; UserError where there is none."""
    shape_of(dataset, budget)
    return (BOARD_TARGETS if budget == board.BUDGET else TARGETS)[dataset]


def shape_of(dataset: str, budget: str) -> Budget:
    """The numbers of a budget on a target, epochs and network filled in; UserError where there is none."""
    if budget == board.BUDGET and dataset in BOARD_TARGETS:
        return replace(BOARD, archi=BOARD_TARGETS[dataset].archi)
    if dataset not in TARGETS or budget not in BUDGETS:
        raise UserError(f"the brain-inspired regulariser has no data set {dataset!r} at budget {budget}: there are "
                        f"{', '.join(TARGETS)} at {', '.join(BUDGETS)}", code="E-TARGET")
    shape, target = replace(BUDGETS[budget], **CHANGES.get((budget, dataset), {})), TARGETS[dataset]
    return replace(shape, epochs=shape.epochs or target.epochs, archi=shape.archi or target.archi)
