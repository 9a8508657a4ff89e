"""AutoAttack (Croce and Hein 2020) chunk by chunk: the official attacks, and torchattacks' version under its own name.

The official attacks come from the package pyautoattack, or from autoattack where that one is installed.  Their own
`run_standard_evaluation` cannot resume and lets the batch size decide the random numbers; here each stage of a chunk
starts from the chunk's seed, in the order and with the settings of the standard version, on the images that still
stand, so that a chunk's verdict equals the official one for that chunk and seed.
"""

import contextlib
import copy
import io
import warnings
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from common.evaluation.codes import refusal
from common.evaluation.judging import seeded
from common.evaluation.plans import Evaluator

try:
    from pyautoattack import AutoAttack as Upstream
    QUIET: dict[str, bool] = {}
except ImportError:
    from autoattack import AutoAttack as Upstream
    QUIET = {"verbose": False}

# Kind of evaluator -> version of the official package that sets its attacks up.  What DyART's script sets for its own
# choice of attacks ("custom": 1 restart, 9 targets) is what the standard version sets in L-inf and L2.
OFFICIAL = {"autoattack": "standard", "custom-autoattack": "standard", "plus-autoattack": "plus"}
NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}
LEAST_CLASSES = 4


def check_classes(classes: int) -> None:
    """The targeted DLR loss divides by a difference of the largest, third and fourth logits: 4 classes at least."""
    if classes < LEAST_CLASSES:
        raise refusal("E-CLASSES", f"AutoAttack's DLR loss needs at least {LEAST_CLASSES} classes; this model has "
                      f"{classes}: leave AutoAttack out of the plan, or use pgd with restarts")


class Silent:
    """Takes the place of the attacks' logger, which repeats "zero gradients" for every batch; see `Result.caution`."""

    def warning(self, message: str) -> None:
        """Said by pyautoattack."""

    def log(self, message: str) -> None:
        """Said by autoattack."""


class Official:
    """The official attacks: 100 iterations, 5000 queries, up to 9 target classes.

    kind autoattack, the standard version: apgd-ce, apgd-t, fab-t, square, one restart each; for L1 its own settings
    apply (5 restarts of apgd-ce, 5 targets in apgd-t, larger radii first).  custom-autoattack: the same without square.
    plus-autoattack, the version "plus": apgd-ce, apgd-dlr, fab (5 restarts each), square, apgd-t, fab-t.
    A network with fewer classes than targets is attacked towards each of its other classes.
    passes: stage -> forward passes' worth of work on an image that withstands it; shares: the same as shares of 1.
    """

    def __init__(self, evaluator: Evaluator, network: nn.Module, classes: int, device: torch.device):
        check_classes(classes)
        upstream = Upstream(network, norm=NORMS[evaluator.norm], eps=evaluator.eps, version=OFFICIAL[evaluator.kind],
                            device=device, **QUIET)
        apgd, targeted, fab, square = upstream.apgd, upstream.apgd_targeted, upstream.fab, upstream.square
        iterations = evaluator.setting("iterations")
        for attack in (apgd, targeted):
            attack.logger = Silent()
            if iterations != attack.n_iter:
                shorten(attack, iterations)
        fab.n_iter = iterations
        for attack in (targeted, fab):
            attack.n_target_classes = min(attack.n_target_classes, classes - 1)
        fab_t = changed(fab, targeted=True, n_restarts=1)
        if evaluator.kind != "custom-autoattack":
            square.n_queries = evaluator.setting("queries")
        self.stages = {
            "autoattack": {"apgd-ce": apgd, "apgd-t": targeted, "fab-t": fab_t, "square": square},
            "custom-autoattack": {"apgd-ce": apgd, "apgd-t": targeted, "fab-t": fab_t},
            "plus-autoattack": {"apgd-ce": apgd, "apgd-dlr": changed(apgd, loss="dlr"), "fab": fab, "square": square,
                                "apgd-t": targeted, "fab-t": fab_t},
        }[evaluator.kind]
        self.passes = {name: passes_of(attack) for name, attack in self.stages.items()}
        self.shares = shares_of(self.passes)

    def __call__(self, x: Tensor, y: Tensor, seed: int) -> Iterator[tuple[str, partial]]:
        for name, attack in self.stages.items():
            yield name, partial(self.run, attack, x, y, seed)

    @staticmethod
    @torch.no_grad()
    def run(attack, x: Tensor, y: Tensor, seed: int, standing: Tensor) -> Tensor:
        """What one attack makes of the images at the places `standing`, from the seed of their chunk."""
        attack.seed = seed
        with seeded(seed):
            return attack.perturb(x[standing], y[standing])


def changed(attack, **attributes):
    """A copy of an attack with other attributes: upstream has one object take turns instead."""
    other = copy.copy(attack)
    vars(other).update(attributes)
    return other


def passes_of(attack) -> int:
    """Forward passes' worth of an attack that fails: an input gradient is two, FAB asks for the label besides."""
    if hasattr(attack, "n_queries"):
        return attack.n_queries * attack.n_restarts
    targets = getattr(attack, "n_target_classes", 1) if getattr(attack, "targeted", True) else 1
    return (3 if hasattr(attack, "alpha_max") else 2) * attack.n_iter * attack.n_restarts * targets


def shares_of(work: dict[str, float]) -> dict[str, float]:
    """Stage -> its share of all the work."""
    return {name: amount / sum(work.values()) for name, amount in work.items()}


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
