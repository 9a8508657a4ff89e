"""What training ReBAT and RPAT++ (part 2) can be told, with the released defaults.  No torch here.

A run of part 2 is called METHOD[-cutmix][-MARK...]_BUDGET_sSEED and stands in results/rpat/DATA/, as in part 1:

    METHOD  rebat, rpatpp            variant cutmix with --cutmix, else plain
    MARK    l2; the network (vgg16, mobilenet, wrn-34-10, small, ...: none for preactresnet18)
    DATA    cifar10, cifar100, digits, ...; in L2 cifar10-l2, ...

    rebat_short_s1, rpatpp_short_s1, rebat-cutmix-wrn-34-10_full_s0, cifar10-l2/rpatpp-l2_short_s1

Weights: last.pt (the model), average.pt (what the paper evaluates); with --val (quirk test-selected: without it too)
best.pt (the average) and best-online.pt (the model), each at its own highest robust accuracy; N.pt (the average) at the
end of 0-based epoch N.
"""

from dataclasses import asdict, dataclass
from typing import Any

from rpat.settings import RELEASED_EPOCHS, run_name

METHODS = {"ReBAT": "rebat", "RPAT++": "rpatpp"}                  # a method, and the word that its runs begin with
SCRIPTS = {"ReBAT": "rpat/sotas/train_cifar_wa.py", "RPAT++": "rpat/sotas/train_cifar_ra.py"}
VARIANTS = ("plain", "cutmix")
MODELS = {"PreActResNet18": "preactresnet18", "VGG16": "vgg16", "MobileNet": "mobilenet"}      # WideResNet by factor
NORMS = {"l_inf": "linf", "l_2": "l2"}
LR_SCHEDULES = ("piecewise", "linear", "cosine", "constant")
REG_SCHEDULES = ("dependent", "piecewise")
ATTACKS = ("pgd", "none")
DATA = {10: "cifar10", 100: "cifar100"}                           # --num-classes
NORMALISE = ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))  # CIFAR-10's, for CIFAR-100 too
BEST = {"average": "best", "model": "best-online"}                # whose robust accuracy chooses which checkpoint


@dataclass(frozen=True, kw_only=True)
class SotaSettings:
    """One run's settings, by the names of the released flags.

    Units: epsilon, pgd_alpha and stronger_epsilon in 255ths, in L2 too (there 128 and 15 are usual).  model: our name.
    norm: linf or l2.  stage1, stage2, warmup_epochs: as used, that is after --scale_schedule.
    """

    method: str = "RPAT++"
    model: str = "preactresnet18"
    val: bool = False
    eval_train_robust: bool = False
    chkpt_iters: int = 10
    decay_rate: float = 0.999
    warmup_epochs: int = 105
    cutmix: bool = False
    cutmix_alpha: float = 1.0
    cutmix_beta: float = 1.0
    l1: float = 0.0
    l2: float = 0.0
    batch_size: int = 128
    epochs: int = 200
    lr_schedule: str = "piecewise"
    lr_max: float = 0.1
    lr_factor: float = 1.5
    stage1: int = 100
    stage2: int = 150
    attack: str = "pgd"
    eval_attack: str = "pgd"
    norm: str = "linf"
    epsilon: int = 8
    pgd_alpha: float = 2.0
    attack_iters: int = 10
    restarts: int = 1
    stronger_attack: bool = False
    stronger_eval: bool = False
    stronger_epsilon: int = 10
    stronger_attack_iters: int = 12
    use_reg_schedule: bool = False
    reg_schedule: str = "dependent"
    beta: float = 1.0
    beta_factor: float = 1.5
    # ours
    seed: int = 0
    quirks: tuple[str, ...] = ()
    width: int | None = None
    n_train: int | None = None
    n_epoch_test: int | None = None
    hold_out: float = 0.0

    @property
    def variant(self) -> str:
        """One of VARIANTS."""
        return VARIANTS[self.cutmix]

    @property
    def marks(self) -> tuple[str, ...]:
        """The MARKs of the run's name."""
        words = ("" if self.norm == "linf" else self.norm, "" if self.model == "preactresnet18" else self.model)
        return tuple(word for word in words if word)

    def run_name(self, budget: str) -> str:
        """rebat_short_s1, ...; see above."""
        return run_name(METHODS[self.method], self.variant, budget, self.seed, self.marks)

    @property
    def eps(self) -> float:
        """The radius, in [0,1] units."""
        return self.epsilon / 255

    @property
    def step_size(self) -> float:
        """The attack's step, in [0,1] units."""
        return self.pgd_alpha / 255

    @property
    def snapshots(self) -> tuple[int, ...]:
        """0-based epochs at whose end the average is kept: --chkpt-iters divides the epochs done."""
        every = self.chkpt_iters
        return tuple(range(every - 1, self.epochs, every)) if every else ()

    @property
    def judged_part(self) -> str:
        """What is measured after each epoch: "val" (held-out training images, --val) or "test"."""
        return "val" if self.val else "test"

    @property
    def selection(self) -> dict[str, str]:
        """BEST if there is something to choose on, else empty."""
        return BEST if self.val or "test-selected" in self.quirks else {}

    def config(self) -> dict[str, Any]:
        """All that is set, JSON-able; what is None is left out, so that a new option changes no old run's hash."""
        return {key: value for key, value in {**asdict(self), "quirks": list(self.quirks)}.items() if value is not None}


def scaled(epoch: int, epochs: int) -> int:
    """An epoch of a schedule of 200, in one of `epochs` (--scale_schedule): rounded, halves upwards."""
    return (2 * epoch * epochs + RELEASED_EPOCHS) // (2 * RELEASED_EPOCHS)


def settings_of_run(config: dict[str, Any]) -> SotaSettings:
    """The settings in a run.json's config."""
    known = {key: value for key, value in config.items() if key in SotaSettings.__dataclass_fields__}
    return SotaSettings(**known | {"model": config["model"]["name"], "quirks": tuple(config["quirks"])})
