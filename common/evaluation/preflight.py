"""Before anything long: refuse what would make an evaluation fail later, or its numbers mean something else.

Codes and what they stand for: common.evaluation.codes.  Seconds, whatever the plan.
"""

import math
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from common.data.splits import Split, to_float
from common.errors import UserError
from common.evaluation import autoattack, fast_search
from common.evaluation.codes import Finding, decide, refusal
from common.evaluation.judging import correct
from common.evaluation.kinds import STRENGTH_KINDS, TRANSFERRED, unusual_size
from common.evaluation.plans import Evaluator, Plan
from common.evaluation.probes import probe
from common.evaluation.searches import KIND as FAST
from common.memory import ran_out

if TYPE_CHECKING:
    from common.evaluation.judging import Network

SECONDS = 4.0                       # for the questions to the network; as much again for its clean accuracy at most
PASSES = 9                          # forward passes' worth of questions per image
FEWEST, MOST, MOST_CLEAN = 4, 16, 500
AMISS = 0.01                        # share of clean verdicts that another machine's rounding may turn
# Attacks that use no gradient of the network, and what is no attack.
BLIND = ("clean", "uniform-noise", "perception-noise", "boundary", "hopskipjump", "corruption", "corruption-file",
         *STRENGTH_KINDS)


@dataclass(frozen=True)
class Stored:
    """What is known of a checkpoint's clean verdicts on the test images.  where: what says so, for messages.

    flags: bool (n,) of the first n images; else accuracy, a share of 1, on all of them.
    """

    where: str
    flags: np.ndarray | None = None
    accuracy: float | None = None


def preflight(network: "Network", split: Split, plan: Plan, device: torch.device, *, allow: Collection[str] = (),
              stored: Stored | None = None, progress: bool = False) -> int:
    """The number of classes; a UserError for what `fits` and `examine` refuse.  The network is judged already."""
    classes = fits(network, split, plan, device)
    if any(evaluator.kind != "clean" for evaluator in plan.evaluators):
        decide(examine(network, split, plan, device, classes, stored=stored), allow, progress=progress)
    return classes


def fits(network: "Network", split: Split, plan: Plan, device: torch.device) -> int:
    """The number of classes; whatever would stop an evaluator of the plan later is a UserError here."""
    x, _ = first_images(split, 1, device)
    try:
        with torch.no_grad(), float32_inside(network):
            classes = network(x).shape[1]
    except RuntimeError as error:
        if ran_out(error):
            raise
        raise refusal("E-SHAPE", f"the model cannot take images of shape {tuple(x.shape[1:])}: {error}") from error
    if int(split.labels.max()) >= classes:
        raise refusal("E-CLASSES", f"the test set has labels up to {int(split.labels.max())}, the model has {classes} "
                      "classes: take the data set that it was trained on")
    for evaluator in plan.evaluators:
        check_evaluator(evaluator, network, x, classes, device)
    return classes


def check_evaluator(evaluator: Evaluator, network: "Network", x: Tensor, classes: int, device: torch.device) -> None:
    """UserError where an evaluator cannot run on a network of so many classes or on images like x (1,C,H,W)."""
    if evaluator.kind.endswith("autoattack"):
        autoattack.check_classes(classes)
    if evaluator.kind == FAST:
        fast_search.check(evaluator, network.model, device)
    if evaluator.kind == "pgd" and evaluator.setting("loss") == "dlr" and classes < 3:
        raise refusal("E-CLASSES", f"evaluator {evaluator.name!r}: the DLR loss needs at least 3 classes; this model "
                      f"has {classes}: use the margin loss")
    farthest = x[0].numel() ** {"linf": 0.0, "l2": 0.5, "l1": 1.0}[evaluator.norm]
    if evaluator.eps > farthest:
        raise refusal("E-EPS", f"evaluator {evaluator.name!r}: eps {evaluator.eps:g} reaches from any image to any "
                      f"other (they are at most {farthest:g} apart in {evaluator.norm}); did you mean "
                      f"{evaluator.eps:g}/255 = {evaluator.eps / 255:.4f}?")


def examine(network: nn.Module, split: Split, plan: Plan, device: torch.device, classes: int, *,
            stored: Stored | None = None) -> list[Finding]:
    """What is wrong with the network's answers on the first images; as many of them as a few seconds allow."""
    x, y = first_images(split, FEWEST, device)
    started = time.monotonic()
    with torch.no_grad():
        network(x)
    each = (time.monotonic() - started) / len(x)
    x, y = first_images(split, clamped(SECONDS / (PASSES * each + 1e-9), MOST), device)
    attacked = any(evaluator.kind not in BLIND and evaluator.kind != TRANSFERRED for evaluator in plan.evaluators)
    found = probe(network, x, y, gradients=attacked)
    found += [Finding("W-EPS", line) for line in unusual_sizes(plan)]
    if not any(finding.code in ("E-MODE", "E-RANDOM") for finding in found):
        x, y = first_images(split, clamped(0.5 * SECONDS / (each + 1e-9), MOST_CLEAN), device)
        flags = correct(network, x, y, MOST).cpu().numpy()
        found += clean_accuracy(flags, classes, stored)
        if stored is not None and not any(finding.code == "E-CLEAN" for finding in found):
            # The checkpoint behaves as its authors measured it, so it was trained behind both normalisations.
            found = [finding for finding in found if finding.code != "E-NORMALISED-TWICE"]
    return found


def clean_accuracy(flags: np.ndarray, classes: int, stored: Stored | None) -> list[Finding]:
    """E-CLEAN, W-CLEAN of clean verdicts, bool (n,), on the first n images.

    Against a stored accuracy p the share of right ones may be off by 4 standard errors sqrt(p (1-p) / n) and an image.
    """
    right, n = int(flags.sum()), len(flags)
    if stored is not None and stored.flags is not None:
        n = min(n, len(stored.flags))
        differ = int((flags[:n] != stored.flags[:n]).sum())
        if differ > max(1, AMISS * n):
            return [Finding("E-CLEAN", f"{differ} of the first {n} clean verdicts differ from those of "
                            f"{stored.where}: other weights, other images, or another preprocessing; find out which")]
    elif stored is not None and stored.accuracy is not None:
        p = stored.accuracy
        if abs(right / n - p) > 4 * math.sqrt(p * (1 - p) / n) + 1 / n:
            return [Finding("E-CLEAN", f"{right} of the first {n} images are classified correctly "
                            f"({100 * right / n:.1f} %), where {stored.where} says {100 * p:.1f} %: other weights, "
                            "another normalisation, another order of classes or other images; find out which")]
    if n >= 50 and right / n <= 1 / classes + 2 * math.sqrt((1 - 1 / classes) / classes / n):
        return [Finding("W-CLEAN", f"{right} of {n} images are classified correctly, as if at random: untrained or "
                        "other weights, labels in another order, or a normalisation that is missing")]
    return []


def unusual_sizes(plan: Plan) -> list[str]:
    """One line per radius of an attack that has the size of another norm's, or is nearly k/255."""
    radii = {(each.norm, each.eps): None for each in plan.evaluators if each.kind not in STRENGTH_KINDS}
    return [line.removeprefix("warning: ") for line in (unusual_size(*radius) for radius in radii) if line]


def first_images(split: Split, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The first images x (B,C,H,W) float32 in [0,1] and labels y (B,), at most `count`, on the device."""
    return to_float(split.images[:count].to(device)).contiguous(), split.labels[:count].to(device)


def clamped(count: float, most: int) -> int:
    """`count` as a whole number from FEWEST to `most`."""
    return int(min(max(count, FEWEST), most))


def check_data(found: dict[str, Any], recorded: dict[str, Any], what: str) -> None:
    """E-DATA where a data set, as `DataSet.describe` gives it, has other test images than a record's."""
    if found["test_fingerprint"] != recorded["test_fingerprint"]:
        raise refusal("E-DATA", f"{found['source']} is not {what} ({recorded['source']}): its test images have another "
                      "fingerprint; name the right one with --data")


def check_source(source: nn.Module, split: Split, classes: int, device: torch.device) -> None:
    """UserError if the network whose gradients are taken is not one of this task."""
    x, _ = first_images(split, 1, device)
    try:
        with torch.no_grad():
            others = source(x).shape[1]
    except RuntimeError as error:
        if ran_out(error):
            raise
        raise UserError(f"the network whose gradients are to be taken cannot take images of shape "
                        f"{tuple(x.shape[1:])}: {error}", code="E-SOURCE") from error
    if others != classes:
        raise UserError(f"the network whose gradients are to be taken has {others} classes, the judged one {classes}: "
                        "take one of the same task", code="E-SOURCE")


@contextmanager
def float32_inside(network: nn.Module) -> Iterator[None]:
    """A ValueError if a layer computes in anything but float32, as under an engine's own autocast."""
    def check(module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.is_floating_point() and output.dtype != torch.float32:
            raise ValueError(f"a verdict needs float32, {type(module).__name__} computes in {output.dtype}: "
                             "hand over the plain network")
    handles = [module.register_forward_hook(check) for module in network.modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
