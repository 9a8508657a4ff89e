"""Attacks: pure functions of (model, images, labels, context).  They find; `common.evaluation` judges."""

from common.attacks.balls import L1, L2, Ball, Linf, ball
from common.attacks.fgsm import fgsm
from common.attacks.losses import cross_entropy, cw_loss, dlr, kl_to, margin
from common.attacks.mode import frozen, mode, untracked
from common.attacks.pgd import PGD, TradesPGD, cw, input_gradient
from common.attacks.starts import gaussian, in_ball, towards_noise

__all__ = ["L1", "L2", "PGD", "Ball", "Linf", "TradesPGD", "ball", "cross_entropy", "cw", "cw_loss", "dlr", "fgsm",
           "frozen", "gaussian", "in_ball", "input_gradient", "kl_to", "margin", "mode", "towards_noise", "untracked"]
