"""What an attack maximises, per image: (logits (B,K), labels (B,)) -> (B,).  They rise as the attack succeeds."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from common.types import LossPerImage


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """-log p_y; y may be mixed labels (B,K) as well."""
    return F.cross_entropy(logits, y, reduction="none")


def kl_to(p: Tensor) -> LossPerImage:
    """The loss KL(p || softmax(logits)) for fixed distributions p (B,K), the labels unused (TRADES' attack)."""
    def kl(logits: Tensor, y: Tensor) -> Tensor:
        return F.kl_div(F.log_softmax(logits, dim=1), p, reduction="none").sum(1)
    return kl


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """z_y - max_{k != y} z_k: positive where the image is classified correctly.  Falls as an attack succeeds."""
    own = logits.gather(1, y[:, None]).squeeze(1)
    return own - logits.scatter(1, y[:, None], float("-inf")).amax(1)


def _cw(logits: Tensor, y: Tensor, confidence: float) -> Tensor:
    return -(margin(logits, y) + confidence).clamp_min(0)


def cw_loss(confidence: float = 50.0) -> LossPerImage:
    """The loss -max(z_y - max_{k != y} z_k + confidence, 0) (Carlini and Wagner 2017, as in the AT literature).

    With confidence 0 the gradient vanishes, so the image stops, as soon as it is misclassified.
    """
    return partial(_cw, confidence=confidence)


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """-(z_y - max_{k != y} z_k) / (z_(1) - z_(3)), z_(i) the i-th largest logit; K >= 3 (Croce and Hein 2020)."""
    if logits.shape[1] < 3:
        raise ValueError(f"the DLR loss needs at least 3 classes, the logits have {logits.shape[1]}")
    top = logits.topk(3, dim=1).values
    return -margin(logits, y) / (top[:, 0] - top[:, 2] + 1e-12)


LOSSES: dict[str, LossPerImage] = {"cross-entropy": cross_entropy, "dlr": dlr, "margin": cw_loss(0.0)}


def predictions(logits: Tensor) -> Tensor:
    """(B,) predicted classes; a row with a NaN predicts -1, which is never right."""
    return torch.where(logits.isnan().any(1), -1, logits.argmax(1))
