"""What part 1's commands can be told, with the released defaults; and the quirks of both parts.  No torch here.

A run of part 1 is called METHOD[-rpat][-MARK...]_BUDGET_sSEED and stands in results/rpat/DATA/:

    METHOD  pgd-at, trades, mart, consistency-at, ce, ce-rand       variant rpat with --RA, else plain
    MARK    what differs from the released defaults, in this order: l2 or l1; fgsm; autoaug or autoaug-sche; the network
            (pre-resnet18, wrn2810, wrn3410, small, ...: none for resnet18); --suffix
    DATA    cifar10, cifar100, tiny-imagenet, ...; in other norms cifar10-l2, cifar10-l1, ...: other tables

    pgd-at_short_s0, pgd-at-rpat_short_s0, consistency-at-rpat-wrn3410_gpu_s0, cifar10-l2/trades-rpat-l2_short_s0

Weights: last.pt; best.pt with --val (quirk test-selected: without it too); N.pt at the end of 0-based epoch N.
"""

from dataclasses import asdict, dataclass
from typing import Any

MODES = {"adv_train": "PGD-AT", "adv_trades": "TRADES", "adv_mart": "MART", "ce": "ce", "ce_rand": "ce_rand"}
METHODS = ("PGD-AT", "TRADES", "MART", "Consistency-AT", "ce", "ce_rand")
VARIANTS = ("plain", "rpat")
DATASETS = {"cifar10": "cifar10", "cifar100": "cifar100", "tinyimagenet": "tiny-imagenet"}     # --dataset, our name
MODELS = {"resnet18": "resnet18-bottleneck", "pre_resnet18": "preresnet18", "wrn2810": "wrn-28-10",
          "wrn3410": "wrn-34-10"}                                                              # --model, our name
NORMS = {"Linf": "linf", "L2": "l2", "L1": "l1"}
THREATS = {"linf": (8 / 255, 2 / 255), "l2": (128 / 255, 15 / 255), "l1": (2000 / 255, 400 / 255)}   # epsilon, alpha
LARGEST = {"linf": 1.0, "l2": 5.0, "l1": 100.0}         # an epsilon above is counted in 255ths, or of another norm
VALIDATION = 1000                                       # training images that --val holds out
RELEASED_EPOCHS = 200
QUIRKS = {
    "bottleneck-resnet18": "training", "trades-third-pass": "training", "train-mode-attack": "training",
    "clean-forward": "training", "wa-train-mode": "training", "half-inputs": "training",
    "half-test-inputs": "measuring", "test-selected": "measuring", "select-attack-fixed": "measuring",
    "pgd20-is-pgd10": "measuring", "aa-l2-fixed": "measuring", "mse-batch-means": "measuring"}
PART_ONE = {name: QUIRKS[name] for name in ("bottleneck-resnet18", "trades-third-pass", "test-selected",
                                            "mse-batch-means")}
PART_TWO = {name: kind for name, kind in QUIRKS.items() if name not in PART_ONE or name == "test-selected"}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One run's settings, by the names of the released flags.

    Units: epsilon and alpha in [0,1] images, in the run's norm.  `dataset` and `model` are our names; RA_start counts
    epochs from 1.
    """

    dataset: str = "cifar10"
    model: str = "resnet18-bottleneck"
    mode: str = "adv_train"
    consistency: bool = False
    RA: bool = False
    RA_start: int = 0
    RA_ip_rate: float = 0.5
    lam: float = 1.0
    beta: float = 6.0
    T: float = 0.5
    distance: str = "Linf"
    adv_method: str = "pgd"
    epsilon: float = 8 / 255
    alpha: float = 2 / 255
    n_iters: int = 10
    augment_type: str = "base"
    epochs: int = RELEASED_EPOCHS
    lr_init: float = 0.1
    lr_scheduler: str = "multi_step_decay"
    optimizer: str = "sgd"
    weight_decay: float = 5e-4
    batch_size: int = 128
    test_batch_size: int = 100
    error_step: int = 1
    save_step: int = 25
    seed: int = 0
    # ours
    quirks: tuple[str, ...] = ()
    val: bool = False
    augment: bool = True
    scale_schedule: bool = False
    width: int | None = None
    n_train: int | None = None
    n_epoch_test: int | None = None
    hold_out: float = 0.0
    precision: str = "auto"

    @property
    def method(self) -> str:
        """One of METHODS."""
        return "Consistency-AT" if self.consistency else MODES[self.mode]

    @property
    def variant(self) -> str:
        """One of VARIANTS."""
        return VARIANTS[self.RA]

    @property
    def norm(self) -> str:
        """linf, l2 or l1."""
        return NORMS[self.distance]

    @property
    def selects(self) -> str | None:
        """What `best` is chosen on: val, test (quirk test-selected), or None: there is no best."""
        return "val" if self.val else "test" if "test-selected" in self.quirks else None

    @property
    def marks(self) -> tuple[str, ...]:
        """The MARKs of the run's name, but for --suffix."""
        usual = self.model in ("resnet18", "resnet18-bottleneck")
        theirs = {ours: name.replace("_", "-") for name, ours in MODELS.items()}
        attacked = self.mode not in ("ce", "ce_rand")
        words = ("" if self.norm == "linf" or not attacked else self.norm,
                 "" if self.adv_method == "pgd" or not attacked else self.adv_method,
                 "" if self.augment_type == "base" else self.augment_type.replace("_", "-"),
                 "" if usual else theirs.get(self.model, self.model))
        return tuple(word for word in words if word)

    @property
    def snapshots(self) -> tuple[int, ...]:
        """0-based epochs whose weights are kept: each save_step-th, counted from 1."""
        return tuple(range(self.save_step - 1, self.epochs, self.save_step)) if self.save_step else ()

    def config(self) -> dict[str, Any]:
        """All that is set, JSON-able; what is None is left out, so that a new option changes no old run's hash."""
        return {key: value for key, value in {**asdict(self), "quirks": list(self.quirks)}.items() if value is not None}


def run_name(method: str, variant: str, budget: str, seed: int, marks: tuple[str, ...] = ()) -> str:
    """pgd-at-rpat-l2_short_s0, ...; see above."""
    words = [method.lower().replace("_", "-"), *([] if variant == "plain" else [variant]), *marks]
    return f"{'-'.join(words)}_{budget}_s{seed}"


def folder_name(dataset: str, norm: str) -> str:
    """The folder of a data set's runs in a norm (linf, l2, l1)."""
    return dataset if norm == "linf" else f"{dataset}-{norm}"


def threat(norm: str, epsilon: float | None, alpha: float | None) -> tuple[float, float]:
    """(epsilon, alpha) where one or both are not given: the norm's own values if neither is (quirk norm-defaults), else
    8/255 and 2/255 in every norm, as released."""
    own = THREATS[norm if epsilon is None and alpha is None else "linf"]
    return own[0] if epsilon is None else epsilon, own[1] if alpha is None else alpha
