"""The fast gradient sign method (Goodfellow et al. 2015)."""

from common.attacks.losses import cross_entropy
from common.attacks.pgd import PGD
from common.types import LossPerImage


def fgsm(eps: float, *, norm: str = "linf", loss: LossPerImage = cross_entropy) -> PGD:
    """One step of length eps from x itself, clipped to [0,1]; no random start."""
    return PGD(eps, eps, 1, norm=norm, loss=loss, random_start=False)
