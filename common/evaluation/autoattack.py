"""AutoAttack (Croce and Hein 2020) chunk by chunk: the official attacks, and torchattacks' version under its own name.

The official attacks come from the package pyautoattack, or from autoattack where that one is installed.  Their own
`run_standard_evaluation` cannot resume and lets the batch size decide the random numbers; here each stage of a chunk
starts from the chunk's seed, in the order and with the settings of the standard version, on the images that still
stand, so that a chunk's verdict equals the official one for that chunk and seed.
"""

import contextlib
import io
import warnings
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from common.errors import UserError
from common.evaluation.judging import seeded
from common.evaluation.plans import Evaluator

try:
    from pyautoattack import AutoAttack as Upstream
    QUIET: dict[str, bool] = {}
except ImportError:
    from autoattack import AutoAttack as Upstream
    QUIET = {"verbose": False}

NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}
LEAST_CLASSES = 4


def check_classes(classes: int) -> None:
    """The targeted DLR loss divides by a difference of the largest, third and fourth logits: 4 classes at least."""
    if classes < LEAST_CLASSES:
        raise UserError(f"AutoAttack's DLR loss needs at least {LEAST_CLASSES} classes; this model has {classes}: "
                        "leave AutoAttack out of the plan, or use pgd with restarts")


class Silent:
    """Takes the place of the attacks' logger, which repeats "zero gradients" for every batch; see `Result.caution`."""

    def warning(self, message: str) -> None:
        """Said by pyautoattack."""

    def log(self, message: str) -> None:
        """Said by autoattack."""


class Official:
    """The standard version: apgd-ce, apgd-t, fab-t, square; 100 iterations, 5000 queries, up to 9 target classes.

    For L1 the official settings apply (5 restarts of apgd-ce, 5 targets in apgd-t, larger radii first).  A network with
    fewer classes than targets is attacked towards each of its other classes.
    """

    def __init__(self, evaluator: Evaluator, network: nn.Module, classes: int, device: torch.device):
        check_classes(classes)
        upstream = Upstream(network, norm=NORMS[evaluator.norm], eps=evaluator.eps, version="standard", device=device,
                            **QUIET)
        iterations = evaluator.setting("iterations")
        for attack in (upstream.apgd, upstream.apgd_targeted):
            attack.logger = Silent()
            if iterations != attack.n_iter:
                shorten(attack, iterations)
        upstream.fab.n_iter = iterations
        upstream.fab.targeted = True
        upstream.square.n_queries = evaluator.setting("queries")
        for attack in (upstream.apgd_targeted, upstream.fab):
            attack.n_target_classes = min(attack.n_target_classes, classes - 1)
        self.stages = {"apgd-ce": upstream.apgd, "apgd-t": upstream.apgd_targeted, "fab-t": upstream.fab,
                       "square": upstream.square}

    def __call__(self, x: Tensor, y: Tensor, seed: int) -> Iterator[tuple[str, partial]]:
        for name, attack in self.stages.items():
            yield name, partial(self._run, attack, x, y, seed)

    @staticmethod
    @torch.no_grad()
    def _run(attack, x: Tensor, y: Tensor, seed: int, standing: Tensor) -> Tensor:
        attack.seed = seed
        with seeded(seed):
            return attack.perturb(x[standing], y[standing])


def shorten(apgd, iterations: int) -> None:
    """Give an APGD another number of iterations than 100, and the checkpoints that go with it."""
    apgd.n_iter = apgd.n_iter_orig = iterations
    apgd.n_iter_2 = max(int(0.22 * iterations), 1)
    apgd.n_iter_min = max(int(0.06 * iterations), 1)
    apgd.size_decr = max(int(0.03 * iterations), 1)


class Torchattacks:
    """torchattacks' "standard" AutoAttack: the same four names, but 10 iterations, and another schedule for square.

    9 targets whatever the number of classes, as it does unless it is told that number.  It is AdaRAT's AA (quirk
    aa-ten-steps), and never called AutoAttack here.
    """

    def __init__(self, evaluator: Evaluator, network: nn.Module, classes: int):
        check_classes(classes)
        with silence():
            import torchattacks
            common = {"eps": evaluator.eps, "norm": NORMS[evaluator.norm], "n_restarts": 1}
            steps = {"steps": evaluator.setting("iterations")}
            targets = {"n_classes": min(evaluator.setting("targets") + 1, classes)}
            self.stages = {
                "apgd-ce": torchattacks.APGD(network, loss="ce", **common, **steps),
                "apgd-t": torchattacks.APGDT(network, **common, **steps, **targets),
                "fab-t": torchattacks.FAB(network, multi_targeted=True, **common, **steps, **targets),
                "square": torchattacks.Square(network, n_queries=evaluator.setting("queries"), **common),
            }

    def __call__(self, x: Tensor, y: Tensor, seed: int) -> Iterator[tuple[str, partial]]:
        for name, attack in self.stages.items():
            yield name, partial(self._run, attack, x, y, seed)

    @staticmethod
    def _run(attack, x: Tensor, y: Tensor, seed: int, standing: Tensor) -> Tensor:
        attack.seed = seed
        with seeded(seed):
            return attack(x[standing], y[standing])


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Importing torchattacks warns about versions of packages that it does not need here."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
