"""Searches for the nearest adversarial image, by foolbox 3.3.4: Carlini and Wagner's L2 attack (2017), the boundary
attack (Brendel et al. 2018) and HopSkipJump (Chen et al. 2020), all untargeted.

foolbox searches, this file judges: an image counts as found if the judged network says another class than the target
at the end of the search, which is kept in [0,1] but in no ball.  Its distance is measured on the images themselves.
The boundary attack is kept in [low, high] instead, where its settings say so, and has a second distance: the mean over
all values of ((z - v)/(high - low))^2, z the end of the search; with `first_channel` over those of the first channel.

The images of a chunk are searched together.  They share random numbers, and C&W stops early by their summed loss, so
that the chunk is part of the measurement; HopSkipJump holds about 100*sqrt(iterations) noisy copies of each image.
"""

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from common.attacks.balls import Ball, ball
from common.attacks.losses import predictions
from common.evaluation.judging import seeded
from common.evaluation.measuring import Measured
from common.evaluation.plans import Evaluator
from common.seeds import fold


def foolbox() -> Any:
    """The package, imported when it is first used: it imports git, which would complain where there is none."""
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    import foolbox as package
    return package


@dataclass(frozen=True)
class Search:
    """The runner of an evaluator of kind cw-l2, boundary or hopskipjump.

    Images that are wrong clean are searched only against their prediction; distance is NaN where an image was not
    searched or nothing was found.
    """

    evaluator: Evaluator
    network: nn.Module
    device: torch.device
    batch_size: int
    stage: str = "unbounded"

    def measure(self, x: Tensor, y: Tensor, right: Tensor, seed: int) -> Measured:
        predicted = self.predict(x)
        by_label = self.evaluator.setting("against") == "label"
        target, searched = (y, right) if by_label else (predicted, torch.ones_like(right))
        ends, there = x.clone(), searched.nonzero().squeeze(1)
        found = torch.zeros_like(right)
        if len(there):
            with seeded(seed):
                ended, ok = self.search(x[there], target[there], seed)
            ends[there] = torch.where(ok.view(-1, 1, 1, 1), in_box(x[there], ended, self.bounds), x[there])
            found[there] = self.predict(ends[there]) != target[there]
        threat = ball(self.evaluator.norm, self.evaluator.eps)
        displacement = (ends - x).double().cpu()
        distance = torch.where(found, threat.size(displacement).float().to(x.device), torch.nan)
        unbounded = right & ((self.predict(ends) == y) | ~found)
        arrays = {"distance": distance, "correct_unbounded": unbounded.float()}
        if self.evaluator.kind == "boundary":
            square = self.mean_square(displacement).float().to(x.device)
            arrays["mean_square"] = torch.where(found, square, torch.nan)
        return Measured(right & (self.predict(within(threat, x, ends, distance)) == y), arrays)

    @property
    def bounds(self) -> tuple[float, float]:
        """The least and the largest value that a search may reach."""
        settings = dict(self.evaluator.settings)
        return settings.get("low", 0.0), settings.get("high", 1.0)

    def mean_square(self, displacement: Tensor) -> Tensor:
        """(B,) of displacements (B,C,H,W), in units of the range of values."""
        counted = displacement[:, :1] if self.evaluator.setting("first_channel") else displacement
        low, high = self.bounds
        return (counted / (high - low)).square().flatten(1).mean(1)

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """(B,) predicted classes."""
        return torch.cat([predictions(self.network(part)) for part in x.split(self.batch_size)])

    def search(self, x: Tensor, target: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Where the search from x (B,C,H,W) ended, and (B,) bool: it found something."""
        package = foolbox()
        low, high = self.bounds
        # What a record says of them is rounded, and foolbox refuses images that are beyond them by a rounding.
        bounds = min(low, x.min().item()), max(high, x.max().item())
        model = package.PyTorchModel(self.network, bounds=bounds, device=self.device)
        setting = self.evaluator.setting
        if self.evaluator.kind == "cw-l2":
            ends = carlini_wagner(package, setting).run(model, x, package.Misclassification(target))
            return ends, ends.flatten(1).any(1)             # nothing found is an image of zeros
        generator = torch.Generator().manual_seed(fold(seed, "start"))
        starts, found = starting_points(self.predict, x, target, generator, directions=setting("directions"),
                                        blends=setting("blends"), bounds=self.bounds)
        # foolbox refuses a whole batch for one start that rounds differently in it: such a start is dropped.
        with torch.no_grad():
            found[found.clone()] = predictions(self.network(starts[found])) != target[found]
        ends = x.clone()
        if found.any():
            build = boundary if self.evaluator.kind == "boundary" else partial(hop_skip_jump, self.evaluator.norm)
            ends[found] = build(package, setting).run(model, x[found], package.Misclassification(target[found]),
                                                      starting_points=starts[found])
        return ends, found


def in_box(x: Tensor, ends: Tensor, bounds: tuple[float, float] = (0.0, 1.0)) -> Tensor:
    """What a search returned, clipped to the bounds; an image with a NaN or an infinity becomes its clean one."""
    ends = ends.detach().to(x).reshape(x.shape)
    return torch.where(ends.flatten(1).isfinite().all(1).view(-1, 1, 1, 1), ends.clamp(*bounds), x)


def within(threat: Ball, x: Tensor, ends: Tensor, distance: Tensor) -> Tensor:
    """The ends that are within eps as they are, and the others brought into the ball."""
    # Not all projected: x + (end - x) rounds, and an end on the boundary may fall back.
    inside = (distance <= threat.eps).view(-1, 1, 1, 1)
    return torch.where(inside, ends, threat.project(x, ends))


def starting_points(predict: Any, x: Tensor, target: Tensor, generator: torch.Generator, *, directions: int,
                    blends: int, bounds: tuple[float, float] = (0.0, 1.0)) -> tuple[Tensor, Tensor]:
    """Images (B,C,H,W) that are not predicted as the target, and (B,) bool: there is one.

    Up to `directions` images u of noise, uniform within the bounds, are tried until one has another class; then the
    least e of 0, 1/blends, ..., 1 is taken at which (1-e)*x + e*u has (as foolbox's
    LinearSearchBlendedUniformNoiseAttack, but an image without a start stops no other).  An image's noise does not
    depend on the other images' luck.
    """
    noise, found = x.clone(), torch.zeros_like(target, dtype=torch.bool)
    low, high = bounds
    for tried in blocks(directions, lambda: int((~found).sum())):
        left = (~found).nonzero().squeeze(1)
        kept = left.cpu()
        # Drawn one after another and for all, so that neither the block's size nor others' luck changes an image; only
        # what is needed is kept, as a block of a whole chunk's noise would fill the memory.
        drawn = torch.stack([torch.rand(x.shape, generator=generator)[kept] for _ in tried]).to(x.device)
        offered = low + (high - low) * drawn
        other = predict(offered.flatten(0, 1)).view(len(tried), -1) != target[left]
        first, has = other.int().argmax(0), other.any(0)
        noise[left[has]], found[left[has]] = offered[first[has], has.nonzero().squeeze(1)], True
    # Upwards, and only with images that have not crossed yet: most do early.  At 1 all have that have a start.
    best, waiting = torch.ones(len(x), device=x.device), found.clone()
    for tried in blocks(blends, lambda: int(waiting.sum())):
        left = waiting.nonzero().squeeze(1)
        shares = torch.tensor([blend / blends for blend in tried], device=x.device)
        share = shares.view(-1, 1, 1, 1, 1)
        offered = (1 - share) * x[left] + share * noise[left]
        fooled = predict(offered.flatten(0, 1)).view(len(tried), -1) != target[left]
        first, has = fooled.int().argmax(0), fooled.any(0)
        best[left[has]], waiting[left[has]] = shares[first[has]], False
    best = best.view(-1, 1, 1, 1)
    return (1 - best) * x + best * noise, found


def blocks(tries: int, waiting: Callable[[], int], most: int = 1024) -> Iterator[range]:
    """0, 1, ..., tries - 1 in blocks of 1, 2, 4, ..., of at most `most` images; ends when no image waits any longer.

    Few images of a network that knows one class would else take a thousand calls of a few images each.
    """
    begin, size = 0, 1
    while begin < tries and (left := waiting()):
        end = min(tries, begin + min(size, max(1, most // left)))
        yield range(begin, end)
        begin, size = end, 2 * size


def carlini_wagner(package: Any, setting: Any) -> Any:
    """foolbox's C&W; its defaults are the evaluator's."""
    return package.attacks.L2CarliniWagnerAttack(
        binary_search_steps=setting("binary_search_steps"), steps=setting("iterations"),
        stepsize=setting("learning_rate"), confidence=setting("confidence"), initial_const=setting("initial_const"),
        abort_early=setting("abort_early"))


def boundary(package: Any, setting: Any) -> Any:
    """foolbox's boundary attack."""
    return package.attacks.BoundaryAttack(
        steps=setting("iterations"), spherical_step=setting("spherical_step"), source_step=setting("source_step"),
        source_step_convergance=setting("source_step_convergence"), step_adaptation=setting("step_adaptation"),
        update_stats_every_k=setting("update_every"))


def hop_skip_jump(norm: str, package: Any, setting: Any) -> Any:
    """foolbox's HopSkipJump, each image by itself: 3.3.4 scales probes and gradient estimates of a whole batch to norm
    1 together, so that among B images probes are too near and steps too short by sqrt(B).
    """
    import eagerpy

    class PerImage(package.attacks.HopSkipJumpAttack):
        def approximate_gradients(self, is_adversarial, x_advs, steps, delta):
            estimate = super().approximate_gradients(is_adversarial, x_advs, steps, delta * math.sqrt(len(x_advs)))
            norms = eagerpy.norms.l2(package.devutils.flatten(estimate), axis=-1) + 1e-12
            return estimate / package.devutils.atleast_kd(norms, estimate.ndim)

    return PerImage(
        steps=setting("iterations"), initial_gradient_eval_steps=setting("initial_evaluations"),
        max_gradient_eval_steps=setting("max_evaluations"), stepsize_search=setting("step_search"),
        gamma=setting("gamma"), constraint=norm)
