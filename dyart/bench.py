"""DyART's step written the original's way, to be measured against, and the rows of the benchmark: see scripts/bench.

Facts, not text, of the released code: float32 in contiguous NCHW, run eagerly; phi(x) twice before the search, and
phi(x^) once more without gradient before the one with; per iteration the gradient by autograd.grad through a network
whose parameters stay trainable, both projections in one call that sorts the pixels, indices of the images that crossed
asked for and used on the host's side; both passes of training in float32.
"""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import fit
from common.attacks.projection import project_linf
from common.benchmark import Timings, learnt_by_heart, peak_bytes, repeat, rounds, sentence, summary
from common.engine import Engine
from common.types import Batch, StepContext
from dyart.boundary import FAB, SHORTEST
from dyart.method import CORRECT, DEEPEST, Boundary, DyART, closeness, near_optimal


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured.  A block of the first row is `projections` times `planes` projections, of the second a step."""

    batch: int
    rounds: int
    limit: float | None = None                      # seconds, of both rows together
    iterations: int = 20                            # of FAB
    learn: int = 15                                 # steps in which the network learns the batch by heart
    planes: int = 512
    projections: int = 2


def project_by_sorting(z: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """What `common.attacks.projection.project_linf` gives, z (B,n), w (B,n), b (B,), by sorting pixels by their reach.

    Up to its k-th stop the move covers stops_k * (rates that still move) + (what the stopped ones covered): the first
    stop that covers the gap bounds the interval in which the plane is met, and there it is met linearly.
    """
    excess = (w * z).sum(1, keepdim=True) - b[:, None]
    gap, velocity = excess.abs(), -excess.sign() * w.sign()
    stops = torch.where(velocity < 0, z, 1 - z)
    ordered, order = stops.sort(1)
    rates = w.abs().gather(1, order)
    all_rates = rates.cumsum(1)
    stopped, moving = (rates * ordered).cumsum(1), all_rates[:, -1:] - all_rates
    place = torch.searchsorted(stopped + ordered * moving, gap)
    before, within = (place - 1).clamp_min(0), place < z.shape[1]
    first = place == 0
    covered = torch.where(first, 0, stopped.gather(1, before))
    slope = torch.where(first, all_rates[:, -1:], moving.gather(1, before))
    length = torch.where(within, (gap - covered) / slope, torch.inf)
    return velocity * torch.minimum(stops, length)


@dataclass(eq=False)
class Originals:
    """One training step of DyART, L-inf, with the network in float32 and contiguous NCHW.

    method: constants and formulas; its search gives the number of iterations and FAB's constants.
    """

    network: nn.Module
    optimiser: torch.optim.Optimizer
    method: DyART
    clip_norm: float = 0.1

    def phi(self, x: Tensor, y: Tensor) -> Tensor:
        """The soft margin: the other logits picked out by a mask."""
        logits, temperature = self.network(x), self.method.temperature
        own = logits[torch.arange(len(x), device=x.device), y]
        others = torch.ones_like(logits).scatter_(1, y[:, None], 0).bool()
        return own - (temperature * logits[others].view(len(x), logits.shape[1] - 1)).logsumexp(1) / temperature

    def value_and_gradient(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        x = x.detach().requires_grad_(True)
        value = self.phi(x, y)
        gradient, = torch.autograd.grad(value.sum(), [x])
        return value.detach(), gradient

    def search(self, x: Tensor, y: Tensor, start: Tensor) -> Tensor:
        """FAB's points for images with phi > 0, from `start`; the images themselves where none was found."""
        fab, x1, best = self.method.search, start, x.clone()
        distance = torch.full((len(x),), 1e10, device=x.device)
        for _ in range(fab.steps):
            value, w = self.value_and_gradient(x1, y)
            b, w = (w * x1).flatten(1).sum(1) - value, w.flatten(1)
            moves = project_by_sorting(torch.cat((x1.flatten(1), x.flatten(1))), torch.cat((w, w)), torch.cat((b, b)))
            a1, a2 = moves.abs().amax(1).clamp_min(SHORTEST).view(2, len(x))
            d1, d2 = moves.view(2, *x.shape)
            alpha = (a1 / (a1 + a2))[:1 if fab.shared_alpha else None].clamp_max(fab.alpha_max)[:, None, None, None]
            x1 = ((x1 + fab.overshoot * d1) * (1 - alpha) + (x + fab.overshoot * d2) * alpha).clamp(0, 1)
            with torch.no_grad():
                across = (self.phi(x1, y) < 0).nonzero().squeeze(1)
            if len(across):
                reached = (x1[across] - x[across]).flatten(1).abs().amax(1)
                closer = reached < distance[across]
                best[across[closer]], distance[across[closer]] = x1[across[closer]], reached[closer]
                x1[across] = x[across] + fab.backward * (x1[across] - x[across])
        return best

    def boundary(self, x: Tensor, y: Tensor, start: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of the points that are kept: places in the batch (m,), points, gradients (m,C,H,W), radii (m,)."""
        self.network.eval()
        with torch.no_grad():
            index = (self.phi(x, y) > CORRECT).nonzero().squeeze(1)
            searched = self.phi(x[index], y[index]) > 0
        index = index[searched]
        points = self.search(x[index], y[index], start[index])
        with torch.no_grad():
            crossed = self.phi(points, y[index]) < 0
        index, points = index[crossed], points[crossed]
        value, gradient = self.value_and_gradient(points, y[index])
        kept = (value > DEEPEST) & near_optimal(points - x[index], gradient)
        index, points, gradient = index[kept], points[kept], gradient[kept]
        self.network.train()
        return index, points, gradient, (points - x[index]).flatten(1).abs().amax(1)

    def step(self, x: Tensor, y: Tensor, ctx: StepContext) -> None:
        """Search, two passes in train mode, backward, clip, update."""
        method = self.method
        index, points, gradient, radius = self.boundary(x, y, method.search.start(x, ctx))
        robust = x.new_zeros(())
        if len(index):
            weights = closeness(radius, method.alpha, method.r0) / gradient.flatten(1).abs().sum(1)
            robust = (weights * -self.phi(points, y[index])).sum() / len(x)
        loss = F.cross_entropy(self.network(x), y) + method.lam_robust * robust
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), self.clip_norm)
        self.optimiser.step()


@dataclass(eq=False)
class Ours:
    """The same step by `common.fit`'s means: engine, objective, optimiser."""

    network: nn.Module
    optimiser: torch.optim.Optimizer
    method: DyART
    engine: Engine
    clip_norm: float = 0.1

    def __post_init__(self) -> None:
        self.runner = self.engine.runner(self.engine.place(self.network))

    def step(self, x: Tensor, y: Tensor, ctx: StepContext) -> dict[str, Tensor]:
        """Search, then `train`; the logs."""
        return self.train(x, y, self.method.boundary(self.runner, x, y, ctx), ctx)

    def train(self, x: Tensor, y: Tensor, near: Boundary, ctx: StepContext) -> dict[str, Tensor]:
        """Two passes in train mode, backward, clip, update."""
        loss, logs = self.method.loss(self.runner, Batch(x, y), near, ctx)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), self.clip_norm)
        self.optimiser.step()
        return logs


def measure_projection(settings: Settings, device: torch.device, started: float, share: float) -> dict[str, Any]:
    """Projections of random points in the box onto random planes, a tenth of the way to the farthest corner off."""
    planes, pixels = settings.planes, 3072
    generator = torch.Generator().manual_seed(0)
    z, w = (torch.rand(planes, pixels, generator=generator), torch.randn(planes, pixels, generator=generator))
    b = ((z + 0.1 * ((w > 0).float() - z)) * w).sum(1)
    z, w, b = (each.to(device) for each in (z, w, b))
    old, new = Timings(planes * settings.projections), Timings(planes * settings.projections)
    project_by_sorting(z, w, b), project_linf(z, w, b)                          # warm-up
    for _ in rounds(settings, started, share):
        old.time(device, lambda: repeat(settings.projections, project_by_sorting, z, w, b))
        new.time(device, lambda: repeat(settings.projections, project_linf, z, w, b))
    title = f"DyART: L-inf projection of {pixels:,} pixels, against sorting them"
    return summary("dyart-projection", title, planes, old, new)


def measure_step(settings: Settings, network: nn.Module, engine: Engine, started: float, share: float
                 ) -> dict[str, Any]:
    """A DyART step of both ways on one batch, again and again with learning rate 0: both go on searching the same
    points of the same network.  Then, of our way: memory of a search beside that of a whole step of training.
    """
    device, generator = engine.device, torch.Generator().manual_seed(1)
    x = torch.rand(settings.batch, 3, 32, 32, generator=generator).to(device)
    y = torch.randint(0, 10, (settings.batch,), generator=generator).to(device)
    network = learnt_by_heart(network, engine, x, y, settings.learn)
    method = DyART(search=FAB(steps=settings.iterations))
    sgd, twin = fit.SGD(nesterov=True), copy.deepcopy(network).to(memory_format=torch.contiguous_format)
    ours, theirs = (Ours(network, sgd.build(network), method, engine), Originals(twin, sgd.build(twin), method))
    for way in (ours, theirs):
        fit.set_hyper(way.optimiser, 0.0, 0.9)

    def context() -> StepContext:
        return StepContext(generator=torch.Generator(device).manual_seed(2), attacking=engine.attacking)

    old, new = Timings(settings.batch), Timings(settings.batch)
    near = method.boundary(ours.runner, x, y, context())
    logs = ours.train(x, y, near, context())                                    # warm-up
    if device.type == "cuda":
        theirs.step(x, y, context())
    for _ in rounds(settings, started, share):
        old.time(device, lambda: theirs.step(x, y, context()))
        new.time(device, lambda: ours.step(x, y, context()))
    title = f"DyART training step, {settings.iterations} FAB iterations"
    row = summary("dyart-step", title, settings.batch, old, new)
    row |= {name: logs[name].item() for name in ("searched", "found", "kept", "radius")}
    brief = DyART(search=FAB(steps=2))                          # every iteration needs what the first ones need
    ours.optimiser.zero_grad(set_to_none=True)
    searching = peak_bytes(device, lambda: brief.boundary(ours.runner, x, y, context()))
    training = peak_bytes(device, lambda: ours.train(x, y, near, context()))
    return row | {"search_peak_bytes": searching, "training_peak_bytes": training}


def measure(settings: Settings, network: nn.Module, engine: Engine, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Both rows.  network: x (B,3,32,32) -> logits (B,10); it is changed.  `say` gets a line as each row is done."""
    started = time.perf_counter()
    done = [measure_projection(settings, engine.device, started, 0.1)]
    say(sentence(done[0]))
    done.append(measure_step(settings, network, engine, started, 1.0))
    say(sentence(done[1]))
    return done


def notes(settings: dict[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    """What one must know to read the rows."""
    row = next(each for each in rows if each["name"] == "dyart-step")
    said = ["DyART, originals: the released code's way: float32 search and training in contiguous NCHW, parameters "
            "trainable while searching, phi(x) and phi(x^) computed twice, projections by sorting, indices of the "
            "images that crossed asked for in every iteration",
            f"DyART: one batch of random bytes that the network has learnt by heart in {settings['learn']} steps, "
            f"learning rate 0; {row['searched']:.0%} of its images are searched, {row['kept']:.0%} give a boundary "
            f"point that is kept; ours searches in float32"]
    if row["search_peak_bytes"]:
        search, training = (row[f"{part}_peak_bytes"] / 2 ** 20 for part in ("search", "training"))
        said.append(f"DyART, ours: peak of tensors' memory beyond weights and momentum: search {search:,.0f} MiB, the "
                    f"training passes after it {training:,.0f} MiB, ratio {search / training:.2f}")
    return said
