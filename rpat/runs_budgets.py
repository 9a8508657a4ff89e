"""RPAT's data sets and how much of the released protocol each budget does on them.  Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from common import board
from common.errors import UserError
from rpat.settings import RELEASED_EPOCHS, folder_name

PART_ONE = ("PGD-AT", "TRADES", "MART", "Consistency-AT")            # each plain and with RPAT
STANDARD = ("ce", "ce_rand")                                         # of the motivation; only if METHODS names them
PART_TWO = ("ReBAT", "RPAT++", "ReBAT-CutMix", "RPAT++-CutMix")


@dataclass(frozen=True, kw_only=True)
class Target:
    """What one target of make reproduces; its records stand in results/rpat/<its name>/.

    data: our name of the data set; norm: linf or l2; model: the released flag's word.
    """

    data: str
    norm: str = "linf"
    part: int = 1
    model: str = "resnet18"

    @property
    def known(self) -> tuple[str, ...]:
        """Its methods, as METHODS names them."""
        return (*PART_ONE, *STANDARD) if self.part == 1 else PART_TWO


TARGETS = {
    **{folder_name(data, norm): Target(data=data, norm=norm)
       for data, norm in (("cifar10", "linf"), ("cifar100", "linf"), ("tiny-imagenet", "linf"),      # table 1
                          ("cifar10", "l2"), ("cifar100", "l2"))},                                   # table 2
    **{f"{folder_name(data, norm)}-sotas": Target(data=data, norm=norm, part=2, model="PreActResNet18")
       for norm in ("linf", "l2") for data in ("cifar10", "cifar100")},                              # table 3
    "cifar10-wrn-sotas": Target(data="cifar10", part=2, model="WideResNet")}                         # table 4


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much of the released protocol a budget does.  None: all of it."""

    about: str
    methods: tuple[str, ...] | None = None     # of each part those that are named, unless METHODS= names some
    seeds: tuple[int, ...] = (1,)
    epochs: int = RELEASED_EPOCHS
    model: str | None = None
    width: int | None = None
    batch_size: int | None = None
    n_train: int | None = None
    n_epoch_test: int | None = None            # images of each part (validation, test) after each epoch
    n_test: int | None = None
    n_autoattack: int | None = None
    decay_rate: str | None = None              # part 2's weight average
    more: Mapping[int, tuple[str, ...]] = field(default_factory=dict)      # part -> further flags
    gflop: float | None = None                 # of a forward and backward pass of one image, where not the network's

    def of(self, target: Target) -> tuple[str, ...]:
        """Methods of the target that run unasked."""
        usual = PART_ONE if target.part == 1 else PART_TWO[:2 if target.model != "WideResNet" else 4]
        return tuple(name for name in usual if self.methods is None or name in self.methods)


BUDGETS = {
    "smoke": Budget(about="the digits (or 320 images of DATA), a small network, 2 epochs: shows that all parts work",
                    epochs=2, model="small", batch_size=64, n_train=320, n_epoch_test=64, n_test=100, n_autoattack=20,
                    decay_rate="0.9", gflop=0.006, more={part: ("--precision", "fp32", *words) for part, words in (
                        (1, ("--augment", "false")), (2, ()))}),
    "short": Budget(about="5,000 images (besides those held out), the released network at width 16, 10 epochs, "
                          "schedule scaled, AutoAttack on 100: a CPU's hour or two; PGD-AT with and without RPAT "
                          "(ReBAT and RPAT++, whose average forgets ten times as fast) unless METHODS says more",
                    methods=("PGD-AT", "ReBAT", "RPAT++"), epochs=10, width=16, n_train=5000, n_epoch_test=256,
                    n_test=1000, n_autoattack=100, decay_rate="0.99"),
    "gpu": Budget(about="all images, the released network, 12 epochs, schedule scaled, AutoAttack on 500 images: half "
                        "an hour of a large GPU; PGD-AT with and without RPAT (ReBAT and RPAT++) unless METHODS says "
                        "more",
                  methods=("PGD-AT", "ReBAT", "RPAT++"), epochs=12, n_epoch_test=1024, n_autoattack=500),
    "full": Budget(about="the released protocol, but for 1,000 training images held out to choose the best weights"),
}
# More classes learn more slowly: fewer epochs, since such a run only shows that the chain runs on real images.
HUNDRED = {"epochs": 5, "n_autoattack": 50,
           "about": "5,000 images (besides those held out) of CIFAR-100, the released network at width 16, 5 epochs, "
                    "schedule scaled: shows that the chain runs on real images, no more"}
# A second table of the same data set: half the images.
LESS = {"n_train": 2500, "n_autoattack": 50,
        "about": BUDGETS["short"].about.replace("5,000", "2,500").replace("on 100", "on 50")}
CHANGES: dict[tuple[str, str], dict[str, Any]] = {             # (budget, target) -> what differs there
    **{("short", name): HUNDRED for name in TARGETS if name.startswith("cifar100")},
    ("short", "tiny-imagenet"): HUNDRED | {"about": HUNDRED["about"].replace("CIFAR-100", "Tiny-ImageNet")},
    **{("short", name): LESS for name in ("cifar10-l2", "cifar10-sotas", "cifar10-l2-sotas")},
    ("gpu", "tiny-imagenet"): {"epochs": 6, "about": BUDGETS["gpu"].about.replace("12 epochs", "6 epochs")}}
# On the data sets in L-inf, part 1's ResNet-18 without its quirk: the network of all papers.
BOARD = Budget(about=board.ABOUT, epochs=board.EPOCHS, model=board.MODEL, width=board.WIDTH,
               batch_size=board.BATCH_SIZE, n_train=board.N_TRAIN, n_epoch_test=board.N_EPOCH_TEST,
               n_test=board.N_TEST, n_autoattack=board.N_AUTOATTACK, decay_rate=BUDGETS["short"].decay_rate,
               gflop=board.GFLOP, more={1: ("--quirks", "trades-third-pass")})
BOARD_TARGETS = ("cifar10", "cifar100", "cifar10-sotas", "cifar100-sotas")
UNFIT = {("short", "cifar10-wrn-sotas"), ("gpu", "cifar10-wrn-sotas")}


def shape_of(dataset: str, budget: str) -> Budget:
    """The numbers of a budget on a target; UserError where there is none."""
    if budget == board.BUDGET and dataset in BOARD_TARGETS:
        return BOARD
    if dataset not in TARGETS or budget not in BUDGETS:
        raise UserError(f"RPAT has no data set {dataset!r} at budget {budget}: there are {', '.join(TARGETS)} at "
                        f"{', '.join(BUDGETS)}", code="E-TARGET")
    if (budget, dataset) in UNFIT:
        raise UserError(f"{dataset} at budget {budget}: WideResNet-34-10 takes a GPU for days, and a narrow one "
                        "is another network: there are smoke and full", code="E-TARGET")
    return replace(BUDGETS[budget], **CHANGES.get((budget, dataset), {}))
