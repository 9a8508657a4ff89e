"""What DyART's training can be told, with the released defaults.  No torch here."""

from dataclasses import asdict, dataclass
from typing import Any

METHODS = ("clean", "DyART", "AT", "TRADES", "MART")
PROTOCOLS = {"cifar10s": "cifar10", "cifar100s": "cifar100", "tiny-imagenet": "tiny-imagenet"}   # -d, our name
SCHEDULERS = ("cosinew", "step", "cyclic")
ATTACKS = ("linf-pgd", "fgsm", "l2-pgd")
DEAD = {"--scheduler": ("cosine",), "--model": ("wrn-32-10",), "--data": ("svhn",),
        "--attack": ("fgm", "linf-df", "l2-df", "linf-apgd", "l2-apgd")}      # listed by the released code, but fail
QUIRKS = {
    "scalar-alpha": "training", "wa-step-offset": "training", "tiny-step-count": "training",
    "bn-first-step": "training", "smooth-trades": "training", "at-clean-pass": "training",
    "test-best": "measuring", "one-restart-aa": "measuring", "batch-mean-acc": "measuring"}
VALIDATION = 1024                 # the first training images validate (CIFAR)
BURN_IN = {"cifar10": 10, "cifar100": 10, "tiny-imagenet": 20}      # 0-based epoch whose weights DyART starts from

# Input normalisation per data set: (mean, std) of the swish networks, and of `--normalize true` for all others.
CIFAR10, CIFAR100 = (0.4914, 0.4822, 0.4465), (0.5071, 0.4865, 0.4409)
TINY = ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262))
SWISH = {"cifar10": (CIFAR10, (0.2471, 0.2435, 0.2616)), "cifar100": (CIFAR100, (0.2673, 0.2564, 0.2762))}
NORMALIZE = {"cifar10": (CIFAR10, (0.2023, 0.1994, 0.2010)), "cifar100": SWISH["cifar100"], "tiny-imagenet": TINY}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One run's settings, by the names of the released flags.

    Units: h_prime_r0, eps_FAB, attack_eps and attack_step in [0,1] images.  `data` is the protocol: cifar10, cifar100,
    tiny-imagenet, or the name of another data set, which is treated as CIFAR is.
    """

    data: str = "cifar10"
    model: str = "wrn-28-10-swish"
    DyART: bool = True
    clean_training: bool = False
    use_high_quality: bool = True
    nesterov: bool = True
    augment: bool = True
    keep_clean: bool = False
    normalize: bool = False
    GroupNorm: bool = False
    h_prime_r0: float = 16 / 255
    h_prime_alpha: float = 0.0
    lam_robust: float = 1000.0
    temperature: float = 5.0
    eps_FAB: float = 8 / 255
    iter_FAB: int = 20
    attack: str = "linf-pgd"
    attack_eps: float = 8 / 255
    attack_step: float = 2 / 255
    attack_iter: int = 10
    beta: float = 6.0
    mart: bool = False
    lr: float = 0.1
    scheduler: str = "cosinew"
    clip_grad: float | None = None
    weight_decay: float = 5e-4
    tau: float = 0.995
    unsup_fraction: float = 0.7
    batch_size: int = 256
    batch_size_validation: int = 1024
    epochs: int = 200
    save_intermediate_models: int = 0
    # ours
    seed: int = 1
    quirks: tuple[str, ...] = ()
    width: int | None = None
    n_train: int | None = None
    n_epoch_test: int | None = None
    hold_out: float = 0.0
    train_epochs: int | None = None
    observe: int = 0
    precision: str = "auto"

    @property
    def method(self) -> str:
        """One of METHODS; as in the released code, clean training comes first, then DyART, then the sign of beta."""
        if self.clean_training:
            return "clean"
        if self.DyART:
            return "DyART"
        return "AT" if self.beta <= 0 else "MART" if self.mart else "TRADES"

    @property
    def variant(self) -> str:
        """plain, or gn with group norm."""
        return "gn" if self.GroupNorm else "plain"

    @property
    def last_epoch(self) -> int:
        """Epochs that are trained; the schedule is that of `epochs`."""
        return min(self.train_epochs or self.epochs, self.epochs)

    @property
    def swish(self) -> bool:
        return self.model.endswith("-swish")

    @property
    def normalise(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """(mean, std) of the input normalisation inside the network, or None where it sees raw images.

        `--normalize true` before a swish network, which normalises on its own, gives both, one after the other.
        """
        own, before = SWISH.get(self.data) if self.swish else None, NORMALIZE.get(self.data) if self.normalize else None
        if own is None or before is None:
            return own or before
        mean = tuple(m + s * inner for m, s, inner in zip(*before, own[0], strict=True))
        return mean, tuple(s * inner for s, inner in zip(before[1], own[1], strict=True))

    @property
    def snapshots(self) -> tuple[int, ...]:
        """0-based epochs whose weights are kept: N > 0 with N % save_intermediate_models == 0."""
        every = self.save_intermediate_models
        return tuple(range(every, self.last_epoch, every)) if every else ()

    def config(self) -> dict[str, Any]:
        """All that is set, JSON-able; what is None is left out, so that a new option changes no old run's hash."""
        return {key: value for key, value in {**asdict(self), "quirks": list(self.quirks)}.items() if value is not None}


def run_name(method: str, variant: str, budget: str, seed: int, extra: str = "") -> str:
    """clean_short_s1, dyart-gn_short_s1, ...; extra: the released --fname_extra."""
    return f"{method.lower()}{'' if variant == 'plain' else f'-{variant}'}{extra}_{budget}_s{seed}"
