"""What brainreg/train.py can be told, with the released defaults, its quirks, and what runs are called.  No torch here.

A run is called [unregularised|SOURCE][-MARK...]_BUDGET_sSEED and stands in results/brainreg/DATA/:

    SOURCE  whose images regularise: mnist, fashion-mnist, cifar10, cifar100, imagenet, or the name of other data
    MARK    what differs from the usual, in this order: nN (images), kK (pairs per step), thTH and aALPHA (other than
            USUAL's of the task and SOURCE), the range (high, low, positive, negative, high-positive, doubleTH2), bB
            (boosted value), plain (no boosting), linear (no arctanh), the network (resnet34, ...: none for resnet18)
    DATA    mnist, fashion-mnist, cifar10, cifar100, or the name of other data; in colour with -rgb behind

    unregularised_short_s0, mnist_short_s1, imagenet-n1000_short_s0, cifar10-k32-th0.4-high_full_s2

Weights: last.pt, and best.pt, of least cross-entropy on the validation images; best.pt is what is judged.
"""

import random
from dataclasses import asdict, dataclass
from typing import Any

TASKS = {"CIFAR10": "cifar10", "CIFAR100": "cifar100", "MNIST": "mnist", "FashionMNIST": "fashion-mnist"}
SOURCES = {**TASKS, "ImageNet": "imagenet"}                         # --reg_data, our name
LABELS = {ours: theirs for theirs, ours in SOURCES.items()}
ARCHITECTURES = {"ResNet18": "resnet18", "ResNet34": "resnet34", "ResNet50": "resnet50", "ResNet101": "resnet101"}
RANGES = ("all", "high", "low", "positive", "negative", "high_positive", "double")
COLOUR = ("cifar10", "cifar100")                                    # augmented; fed as 5*(v - 0.5); may stay RGB
DEFAULT_PLAN = "paper-brainreg"
USUAL_OTHERWISE = (10.0, 0.8)
USUAL = {("mnist", "mnist"): (4.0, 0.2), ("fashion-mnist", "mnist"): (10.0, 0.4)}     # (task, source): alpha, Th
QUIRKS = {"init-forward": "training", "pair-bn": "training", "first-channel": "measuring"}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One run's settings, by the names of the released flags.

    `task`, `reg_data` and `archi` are our names.  reg_alpha None: no regularisation; then every reg_ setting has its
    default and reg_data is None.  reg_data is the task itself where the flag says none.  num_epsilons is of the
    evaluation, and no part of a run's configuration.
    """

    task: str = "cifar10"
    archi: str = "resnet18"
    rgb: bool = False
    arctanh: bool = True
    reg_data: str | None = None
    reg_range: str = "all"
    reg_alpha: float | None = None
    reg_thresh: float = 0.6
    reg_thresh_2: float | None = None
    reg_boost_val_1: float = 1.0
    reg_boosting: bool = True
    reg_image_num: int = 5000
    reg_batch_size: int = 16
    base_channels: int = 64
    stem: int | None = None                    # side of the first kernel; None: 7, as released
    seed: int = 0
    resnet_batch_size: int = 64
    phase_num: int = 5
    phase_duration: int = 4
    epoch_num: int = 40
    valid_portion: float = 0.01
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 0.0
    decay_rate: float = 0.3
    num_epsilons: int = 10
    # ours
    quirks: tuple[str, ...] = ()
    n_train: int | None = None
    n_epoch_test: int | None = None
    hold_out: float = 0.0
    precision: str = "auto"

    @property
    def regularised(self) -> bool:
        """Whether pairs of images take part in the training."""
        return bool(self.reg_alpha)

    @property
    def colour_task(self) -> bool:
        """Whether the task's images are augmented and fed to the network as 5*(v - 0.5), as CIFAR's are."""
        return self.task in COLOUR

    @property
    def channels(self) -> int:
        """Of the images that the network takes: 1 (grey) or 3."""
        return 3 if self.rgb else 1

    @property
    def method(self) -> str:
        """regularised or unregularised."""
        return "regularised" if self.regularised else "unregularised"

    @property
    def variant(self) -> str:
        """Whose images regularise, with the marks: MNIST, ImageNet-n1000; none where nothing does."""
        source = LABELS.get(self.reg_data or "", self.reg_data) if self.regularised else "none"
        return "-".join((source or "none", *self.marks))

    @property
    def marks(self) -> tuple[str, ...]:
        """The MARKs of the run's name."""
        words = ["" if self.archi == "resnet18" else self.archi]
        if self.regularised:
            alpha, threshold = USUAL.get((self.task, self.reg_data or ""), USUAL_OTHERWISE)
            second = f"{self.reg_thresh_2:g}" if self.reg_range == "double" and self.reg_thresh_2 else ""
            words = [
                "" if self.reg_image_num == 5000 else f"n{self.reg_image_num}",
                "" if self.reg_batch_size == 16 else f"k{self.reg_batch_size}",
                "" if self.reg_thresh == threshold else f"th{self.reg_thresh:g}",
                "" if self.reg_alpha == alpha else f"a{self.reg_alpha:g}",
                "" if self.reg_range == "all" else self.reg_range.replace("_", "-") + second,
                "" if self.reg_boost_val_1 == 1 else f"b{self.reg_boost_val_1:g}",
                "" if self.reg_boosting else "plain", "" if self.arctanh else "linear", *words]
        return tuple(word for word in words if word)

    def config(self) -> dict[str, Any]:
        """All that decides the weights, JSON-able; what is None is left out, so that a new option changes no hash."""
        told = {**asdict(self), "quirks": list(self.quirks)}
        del told["num_epsilons"]
        return {key: value for key, value in told.items() if value is not None}


def run_name(settings: Settings, budget: str) -> str:
    """mnist_short_s1, unregularised_short_s0, ...; see above."""
    source = settings.reg_data if settings.regularised else "unregularised"
    return f"{'-'.join((source or '', *settings.marks))}_{budget}_s{settings.seed}"


def folder_name(dataset: str, rgb: bool) -> str:
    """The folder of a data set's runs: mnist, cifar10-rgb."""
    return f"{dataset}-rgb" if rgb else dataset


def usual(task: str, source: str) -> tuple[float, float]:
    """(alpha, Th) that the paper uses to regularise `task` on `source`, both our names."""
    return USUAL.get((task, source), USUAL_OTHERWISE)


def validation_positions(count: int, portion: float, draws: random.Random) -> list[int]:
    """Which of `count` training images validate: int(count*portion) of them, the first that random.Random(seed) draws,
    as released.  (The released code draws the boundary attack's test images next.)"""
    return draws.sample(range(count), int(count * portion))
