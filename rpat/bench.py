"""RPAT's training steps written the original's way, to be measured against ours: rows of make bench.

Facts, not text.  Part 1 (FlaAI/RPAT, RPAT_Benchmarks/training/adv_train/*_ra.py, on alinlab/consistency-adversarial's
adv_lib): PGD-AT and Consistency-AT attack with advertorch's PGDAttack in eval mode, which takes the input gradient by
loss.backward(): it computes the gradient of every weight besides, and adds it to the one before.  TRADES takes
torch.autograd.grad; x passes three times, with a graph each.  Consistency-AT has two views of each image.  Losses are
fetched in every step.

Part 2 (RPAT_SOTAs/train_cifar_ra.py and train_cifar_wa.py, with PKU-ML/ReBAT's utils.py): float32 network, images and
attack in float16, attack in train mode by loss.backward(), the end of the attack passes once more; f_wa passes without
a graph; after the step x passes with a graph in train mode; the average goes parameter by parameter in two operations;
losses and accuracies are fetched in every step.  Neither part uses apex or automatic mixed precision.

All: contiguous NCHW, eager, parameters trainable, torch.optim.SGD.  Their images lie ready on the device (in the
released code 8 and 2 workers read them), which is the cheaper for them; ours come from our pipeline.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from common import bench_pipeline
from common.bench_step import LR, OurStep, Settings, measure, network, random_images
from common.benchmark import forward_operations
from common.engine import Engine
from common.types import Objective
from rpat import attacks
from rpat.method import (
    AdversarialTraining,
    Consistency,
    Perception,
    Trades,
    divergence,
    jensen_shannon,
    robust_perception,
)
from rpat.rebat import Beta, ReBAT, RPATpp, clean_forward
from rpat.rebat_attack import RebatPGD

AVERAGED = 106                  # a 0-based epoch after part 2's warm-up, in which f_wa passes in eval mode
DECAY = 0.999


@dataclass(eq=False)
class Originals:
    """Both parts' steps on one batch: x (V*B,C,H,W) contiguous float32 in [0,1], y (B,)."""

    network: nn.Module
    settings: Settings

    def __post_init__(self) -> None:
        self.network.train()
        self.average = copy.deepcopy(self.network).eval()
        self.optimiser = torch.optim.SGD(self.network.parameters(), lr=LR, momentum=0.9, weight_decay=5e-4)

    def update(self, loss: Tensor) -> None:
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()

    # -- part 1 -------------------------------------------------------------------------------------------------------

    def pgd(self, x: Tensor, y: Tensor, steps: int) -> Tensor:
        """advertorch's PGDAttack from a uniform displacement."""
        eps = self.settings.eps
        self.network.eval()
        delta = nn.Parameter((x + eps * (2 * torch.rand_like(x) - 1)).clamp(0, 1) - x)
        for _ in range(steps):
            F.cross_entropy(self.network(x + delta), y).backward()
            delta.data = (delta.data + self.settings.step_size * delta.grad.sign()).clamp(-eps, eps)
            delta.data = (x + delta.data).clamp(0, 1) - x
            delta.grad.zero_()
        self.network.train()
        return (x + delta).clamp(0, 1).detach()

    def perceive(self, x: Tensor, y: Tensor, steps: int) -> None:
        """PGD-AT with RPAT: x', mid, x."""
        x_adv = self.pgd(x, y, steps)
        adversarial = self.network(x_adv)
        loss = F.cross_entropy(adversarial, y)
        term = robust_perception(self.network(0.5 * x + 0.5 * x_adv), self.network(x), adversarial).mean()
        self.update(loss + term)
        loss.item(), term.item()

    def consistency(self, x: Tensor, y: Tensor, steps: int) -> None:
        """Consistency-AT, on two views."""
        twice = y.repeat(2)
        adversarial = self.network(self.pgd(x, twice, steps))
        loss, term = F.cross_entropy(adversarial, twice), jensen_shannon(*adversarial.chunk(2)).mean()
        self.update(loss + term)
        loss.item(), term.item()

    def trades(self, x: Tensor, y: Tensor, steps: int) -> None:
        """TRADES with RPAT: x, x', x once more, mid."""
        eps = self.settings.eps
        self.network.eval()
        x_adv = x + 0.001 * torch.randn_like(x)
        wanted = self.network(x).detach().softmax(1)
        for _ in range(steps):
            x_adv = x_adv.detach().requires_grad_(True)
            loss = F.kl_div(self.network(x_adv).log_softmax(1), wanted, reduction="sum")
            gradient, = torch.autograd.grad(loss, [x_adv])
            x_adv = x_adv.detach() + self.settings.step_size * gradient.sign()
            x_adv = torch.min(torch.max(x_adv, x - eps), x + eps).clamp(0, 1)
        self.network.train()
        x_adv = x_adv.detach()
        clean, adversarial = self.network(x), self.network(x_adv)
        loss = F.cross_entropy(clean, y)
        apart = 6 * divergence(self.network(x).log_softmax(1), adversarial.log_softmax(1)).mean()
        term = robust_perception(self.network(0.5 * x + 0.5 * x_adv), clean, adversarial).mean()
        self.update(loss + apart + term)
        loss.item(), apart.item()

    # -- part 2 -------------------------------------------------------------------------------------------------------

    def half_pgd(self, x: Tensor, y: Tensor, steps: int) -> Tensor:
        """x (B,C,H,W) float16 -> the displacement; the network sees float32."""
        eps = self.settings.eps
        delta = eps * (2 * torch.rand_like(x) - 1)
        delta = torch.max(torch.min(delta, 1 - x), -x).requires_grad_(True)
        for _ in range(steps):
            F.cross_entropy(self.network((x + delta).float()), y).backward()
            moved = (delta.detach() + self.settings.step_size * delta.grad.sign()).clamp(-eps, eps)
            delta.data = torch.max(torch.min(moved, 1 - x), -x)
            delta.grad.zero_()
        losses = F.cross_entropy(self.network((x + delta).float()), y, reduction="none")
        kept = torch.zeros_like(x)
        kept[losses >= 0] = delta.detach()[losses >= 0]
        return kept

    def averaging(self, x: Tensor, y: Tensor, steps: int, *, perceives: bool) -> None:
        """A step of ReBAT, or RPAT++ (`perceives`), after the warm-up."""
        x = x.half()
        delta = self.half_pgd(x, y, steps)
        adversarial = self.network((x + delta).clamp(0, 1).float())
        loss = F.cross_entropy(adversarial, y)
        with torch.no_grad():
            if perceives:
                clean = self.average(x.clamp(0, 1).float())
                target = self.average((x + 0.5 * delta).clamp(0, 1).float()) - 0.5 * clean
            else:
                target = self.average((x + delta).clamp(0, 1).float())
        student = 0.5 * adversarial if perceives else adversarial
        term = F.kl_div(student.log_softmax(1), target.softmax(1), reduction="batchmean")
        if term < 1e10:
            loss = loss + term
        self.update(loss)
        output = self.network(x.float())
        plain = F.cross_entropy(output, y)
        self.move_average()
        for value, logits in ((loss, adversarial), (plain, output)):
            value.item(), (logits.argmax(1) == y).sum().item()

    @torch.no_grad()
    def move_average(self) -> None:
        """f_wa after a step."""
        pairs = list(zip(self.average.parameters(), self.network.parameters(), strict=True))
        for ours, theirs in zip(self.average.modules(), self.network.modules(), strict=True):
            if isinstance(ours, _NormBase):
                pairs += [(ours.running_mean, theirs.running_mean), (ours.running_var, theirs.running_var)]
        for average, value in pairs:
            average *= DECAY
            average += value * (1 - DECAY)


def part_two(kind: type[ReBAT]) -> Callable[[Settings, int], Objective]:
    """ReBAT or RPAT++ with everything that the released code does."""
    return lambda settings, steps: kind(RebatPGD(settings.eps, settings.step_size, steps), Beta(1.0, 105))


def part_one(settings: Settings, steps: int, **terms: Any) -> Objective:
    return AdversarialTraining(attacks.pgd("linf", settings.eps, settings.step_size, steps), **terms)


# name -> title, our objective, their step, useful operations of N attack steps in forward passes of an image, views
METHODS: dict[str, tuple[str, Callable[[Settings, int], Objective], Callable[..., None], Callable[[int], int], int]] = {
    "rpat": ("RPAT: PGD-AT with robust perception, two more passes",
             lambda settings, steps: part_one(settings, steps, perception=Perception()),
             Originals.perceive, lambda n: 2 * n + 9, 1),
    "rpat-trades": ("TRADES with RPAT: attack in eval mode, three passes and one more",
                    lambda settings, steps: Trades(attacks.trades("linf", settings.eps, settings.step_size, steps),
                                                   perception=Perception()),
                    Originals.trades, lambda n: 2 * n + 11, 1),
    "consistency": ("Consistency-AT: two views of each image",
                    lambda settings, steps: part_one(settings, steps, consistency=Consistency()),
                    Originals.consistency, lambda n: 2 * (2 * n + 3), 2),
    "rebat": ("ReBAT: attack in train mode, float16 images, average, clean pass", part_two(ReBAT),
              lambda way, x, y, steps: way.averaging(x, y, steps, perceives=False), lambda n: 2 * n + 6, 1),
    "rpat++": ("RPAT++: likewise, two passes of the average", part_two(RPATpp),
               lambda way, x, y, steps: way.averaging(x, y, steps, perceives=True), lambda n: 2 * n + 7, 1)}


def our_step(name: str, settings: Settings, engine: Engine) -> OurStep:
    """The paper's objective in our loop."""
    _, objective, _, _, views = METHODS[name]
    late = name in ("rebat", "rpat++")
    batches = bench_pipeline.our_batches(random_images(settings, engine.device), settings.batch, engine, views=views,
                                         crop_mode="reflect" if late else "zero")
    known: dict[int, Objective] = {}
    return OurStep(network(settings), engine, lambda steps: known.setdefault(steps, objective(settings, steps)),
                   batches, epoch=AVERAGED if late else 0, average=DECAY if late else None, buffers="statistics",
                   after_step=clean_forward() if late else None)


STEPS: dict[str, Callable[[Settings, Engine], OurStep]] = {
    name: lambda settings, engine, name=name: our_step(name, settings, engine) for name in METHODS}


def row(name: str) -> Callable[[Settings, Engine], list[dict[str, Any]]]:
    """What measures the row of a method."""
    def measured(settings: Settings, engine: Engine) -> list[dict[str, Any]]:
        title, _, step, passes, _ = METHODS[name]
        ours, theirs = STEPS[name](settings, engine), Originals(network(settings).to(engine.device), settings)
        batch = next(ours.waiting)
        x = batch.x.contiguous()
        return measure(settings, engine, name, title, ours=ours, theirs=lambda steps: step(theirs, x, batch.y, steps),
                       operations=passes(settings.steps) * forward_operations(ours.network, settings.size))
    return measured


ROWS = {name: row(name) for name in METHODS}


def notes(settings: dict[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    """What one must know to read the rows."""
    return ["RPAT, Consistency-AT, ReBAT, RPAT++, originals: input gradients by loss.backward(), which computes those "
            "of the weights too (TRADES with RPAT: torch.autograd.grad); ReBAT and RPAT++: epoch "
            f"{AVERAGED}, after the warm-up; images lie ready on the device; losses fetched in each step; images/s "
            "count each image once, whatever the views"]
