"""What AdaRAT's scripts can be told, with the released code's defaults per method and data set.  No torch here."""

from dataclasses import asdict, dataclass
from typing import Any

EIGHT, TWO = 8 / 255, 2 / 255
METHODS = ("ST", "PGD-AT", "FAT", "DAT", "TRADES", "KD-AT", "IAD", "Generalist")
DATASETS = ("cifar10", "cifar100")
VARIANTS = ("plain", "fixrat", "adarat")
GATE = 0.7                                  # of up_lim: above it the clean loss stands alone (adarat/method.py)
ORIGINAL_DATA = "../../data"                # the released --dataset_path; here it means the repository's data/
PAPER_EPOCHS = 120                          # what every epoch of the schedules below is counted against

# Released defaults: beta, up_lim, down_lim by method; where CIFAR-100 has its own, that stands second.
BETA = {"TRADES": (0.03, 0.04), "Generalist": (0.04, 0.04)}
LIMITS = {"TRADES": ((1.5, 0.7), (2.3, 1.2)), "KD-AT": ((0.8, 0.2), (1.4, 0.8)), "IAD": ((0.8, 0.2), (1.8, 0.4)),
          "Generalist": ((1.3, 0.5), (2.0, 0.8))}
QUIRKS = {
    "momentum-reset": "training", "attack-train-bn": "training", "clean-pass": "training", "st-wd": "training",
    "iad-steps": "training", "test-crop": "measuring", "aa-ten-steps": "measuring", "fat-test-eps": "measuring",
    "generalist-saves-at": "measuring", "generalist-columns": "measuring", "generalist-batch-mean": "measuring"}
LR_EPOCHS, LR_FACTORS = (60, 90, 110), (0.1, 0.01, 0.005)
FAT_EPOCHS = (50, 90)
GENERALIST_RELOADS_FROM = 75


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One run's settings.  Units: epsilon and step_size in [0,1]; epochs 0-based where they are boundaries."""

    method: str
    dataset: str
    epoch: int = PAPER_EPOCHS
    batch_size: int = 128
    step_num: int = 10
    drop_last: bool = False
    learning_rate: float = 0.1
    epsilon: float = EIGHT
    step_size: float = TWO
    FixRAT: bool = False
    AdaRAT: bool = False
    beta: float = 0.04
    up_lim: float = 1.1
    down_lim: float = 0.4
    tao: float = 0.01
    lamda: float = 6
    FOSC_control_epoch: int = 60
    FOSC_max: float = 0.3
    ce: float = 0.25
    teacher_robust: float = 0.5
    teacher_standard: float = 0.25
    begin: int = 60
    b: float = 0.1
    # ours
    seed: int = 1
    quirks: tuple[str, ...] = ()
    model: str = "resnet18"
    width: int | None = None
    crop: int = 4
    flip: bool = True
    n_train: int | None = None
    n_epoch_test: int | None = None
    hold_out: float = 0.0
    scale_schedule: bool = False
    limits_from: str | None = None
    precision: str = "auto"

    @property
    def variant(self) -> str:
        """plain, fixrat or adarat; --AdaRAT without --FixRAT is ignored, as in the released code."""
        return VARIANTS[0] if not self.FixRAT else VARIANTS[2] if self.AdaRAT else VARIANTS[1]

    @property
    def weight_decay(self) -> float:
        """5e-4; on CIFAR-100 7e-4, but for ST and Generalist's ST learner (quirk st-wd)."""
        return 5e-4 if self.dataset != "cifar100" else 7e-4

    @property
    def standard_weight_decay(self) -> float:
        """The weight decay of ST and of Generalist's ST learner."""
        return 5e-4 if "st-wd" in self.quirks else self.weight_decay

    def at(self, epoch: float) -> int:
        """An epoch of the paper's 120, scaled to this run's length if the schedule is scaled."""
        if not self.scale_schedule or epoch <= 0:
            return int(epoch)
        return max(1, round(epoch * self.epoch / PAPER_EPOCHS))

    def config(self) -> dict[str, Any]:
        """All that is set, JSON-able; what is None is left out, so that a new option changes no old run's hash."""
        return {key: value for key, value in {**asdict(self), "quirks": list(self.quirks)}.items() if value is not None}


def defaults(method: str, dataset: str, quirks: tuple[str, ...] = ()) -> dict[str, Any]:
    """The released code's defaults of a method on cifar10 or cifar100, by the names of `Settings`."""
    second = dataset == "cifar100"
    found: dict[str, Any] = {"model": "wrn-34-10" if second else "resnet18"}
    if method != "ST":
        up_lim, down_lim = LIMITS.get(method, ((1.1, 0.4), (1.5, 0.7)))[second]
        found |= {"beta": BETA.get(method, (0.04, 0.05))[second], "up_lim": up_lim, "down_lim": down_lim}
    if method == "Generalist" and not second:
        found |= {"epsilon": 0.031, "step_size": 0.007}
    if method == "IAD" and second and "iad-steps" in quirks:
        found["step_num"] = 100
    return found
