"""Is a robust accuracy real, or do attacks only fail to see the gradient?  The measurements of one page.

After Athalye, Carlini and Wagner 2018 and Carlini et al. 2019: stronger attacks must do better, a ball that holds every
image must leave nothing standing, and what uses no gradient must not beat what does.  Here are the numbers;
common.masking_words says which of them look suspicious.  Shape letters: B images, C channels, H and W pixels.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.attacks.balls import ball
from common.attacks.fgsm import fgsm
from common.attacks.losses import margin, predictions
from common.attacks.pgd import PGD
from common.data.splits import Split
from common.evaluation import autoattack
from common.evaluation.judging import allowed, judged, seeded
from common.evaluation.noise import noisy
from common.evaluation.preflight import first_images
from common.seeds import fold
from common.types import StepContext

MULTIPLES = (0.25, 0.5, 1.0, 2.0, 4.0)
STEPS = (1, 2, 5, 10, 20, 50)
DRAWS = 10                                   # of noise, the worst counts
# A ball in which nothing can stand: grey is within 1/2 of every image in L-inf.
WHOLE = {"linf": 0.5, "l2": 0.5, "l1": 0.5}
SURFACE_IMAGES = 8


def measure(model: nn.Module, split: Split, *, norm: str, eps: float, n: int, queries: int, grid: int, seed: int,
            device: torch.device, batch: int = 100) -> dict[str, Any]:
    """Everything that the page shows, of the first n images of `split`; counts and means, JSON-able.

    eps: in units of [0,1] images, measured in `norm` (linf, l2, l1).  queries: of Square; grid: points along each axis
    of the loss surface, odd.  Accuracies count images that are right clean and under the attack.
    """
    x, y = first_images(split, n, device)
    model.to(device)
    with judged(model, device) as network:
        network_of = Under(network, x, y, norm, batch, seed)
        clean = network_of.result(x)
        right = network_of.right(x)
        pgd = {steps: network_of.pgd(eps, steps) for steps in STEPS}
        ended = {steps: network_of.result(images) for steps, images in pgd.items()}
        of_eps = {f"{multiple:g}": ended[20] if multiple == 1 else network_of.result(network_of.pgd(multiple * eps, 20))
                  for multiple in MULTIPLES}
        squared = network_of.square(eps, queries)
        stood = right & network_of.right(pgd[50])
        return {
            "n": len(x), "norm": norm, "eps": eps, "seed": seed, "queries": queries, "classes": network_of.classes,
            "clean": clean, "by_eps": of_eps, "whole": network_of.result(network_of.pgd(whole(norm, x), 50)),
            "by_steps": {str(steps): found for steps, found in ended.items()},
            "fgsm": network_of.result(network_of.fgsm(eps)), "noise": network_of.noise(eps),
            "square": {**network_of.result(squared), "beyond": int((stood & ~network_of.right(squared)).sum())},
            "margins": network_of.margins(pgd[20]), "gradients": network_of.gradients(),
            "surface": network_of.surface(eps, grid)}


def whole(norm: str, x: Tensor) -> float:
    """The radius of a ball around every image that holds the grey image."""
    return WHOLE[norm] * x[0].numel() ** {"linf": 0.0, "l2": 0.5, "l1": 1.0}[norm]


class Reached(nn.Module):
    """A network whose logits hang on the image, if only by nothing: attacks then get zeros where no gradient comes."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        logits = self.network(x)
        return logits if logits.requires_grad or not x.requires_grad else logits + 0 * x.sum()


class Under:
    """A judged network, and what it answers on the images x (B,C,H,W), labels y (B,) under attacks."""

    def __init__(self, network: nn.Module, x: Tensor, y: Tensor, norm: str, batch: int, seed: int):
        self.network, self.norm, self.batch, self.seed = Reached(network), norm, batch, seed
        self.x, self.y = x, y
        self.clean_right = predictions(self.logits(x)) == y
        self.classes = self.logits(x[:1]).shape[1]

    def _ctx(self, purpose: str) -> StepContext:
        return StepContext(generator=torch.Generator().manual_seed(fold(self.seed, "masking", purpose)))

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        return torch.cat([self.network(part) for part in x.split(self.batch)])

    def right(self, x: Tensor) -> Tensor:
        """(B,) bool: classified correctly."""
        return predictions(self.logits(x)) == self.y

    def result(self, x: Tensor) -> dict[str, Any]:
        """robust: right clean and on x; loss: the mean cross-entropy on x."""
        logits = self.logits(x)
        loss = F.cross_entropy(logits, self.y, reduction="none").nan_to_num(0.0)
        return {"robust": int((self.clean_right & (predictions(logits) == self.y)).sum()), "loss": float(loss.mean())}

    def _attacked(self, eps: float, attack: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        parts = zip(self.x.split(self.batch), self.y.split(self.batch), strict=True)
        return torch.cat([allowed(ball(self.norm, eps), x, attack(x, y)) for x, y in parts])

    def pgd(self, eps: float, steps: int) -> Tensor:
        """PGD from the same start whatever the number of steps; step eps for one, else 2.5 eps / steps."""
        ctx = self._ctx("pgd")
        size = eps if steps == 1 else 2.5 * eps / steps
        return self._attacked(eps, lambda x, y: PGD(eps, size, steps, norm=self.norm)(self.network, x, y, ctx))

    def fgsm(self, eps: float) -> Tensor:
        ctx = self._ctx("fgsm")
        return self._attacked(eps, lambda x, y: fgsm(eps, norm=self.norm)(self.network, x, y, ctx))

    def noise(self, eps: float) -> dict[str, Any]:
        """Noise in the ball: robust after the worst of DRAWS draws, mean loss over them."""
        stands, losses = self.clean_right.clone(), []
        for draw in range(DRAWS):
            found = noisy(ball(self.norm, eps), self.x, fold(self.seed, "masking", draw))
            stands &= self.right(found)
            losses.append(self.result(found)["loss"])
        return {"robust": int(stands.sum()), "loss": sum(losses) / len(losses)}

    def square(self, eps: float, queries: int) -> Tensor:
        """Square alone, which asks for logits only."""
        upstream = autoattack.Upstream(self.network, norm=autoattack.NORMS[self.norm], eps=eps, version="standard",
                                       device=self.x.device, **autoattack.QUIET)
        upstream.square.n_queries, upstream.square.logger = queries, autoattack.Silent()
        upstream.square.seed = seed = fold(self.seed, "masking", "square") % 2**31
        with seeded(seed), torch.no_grad():
            return self._attacked(eps, lambda x, y: upstream.square.perturb(x, y))

    def margins(self, attacked: Tensor) -> dict[str, Any]:
        """Quantiles (5, 25, 50, 75, 95 %) of z_y - max z_k, clean and under PGD-20, and the median largest logit."""
        shares = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])
        values = {name: margin(self.logits(x), self.y).double().cpu() for name, x in (("clean", self.x),
                                                                                    ("attacked", attacked))}
        return {**{name: torch.quantile(value, shares.double()).tolist() for name, value in values.items()},
                "largest_logit": float(self.logits(self.x).abs().amax(1).median())}

    def gradients(self) -> dict[str, Any]:
        """Of how many images the input gradient is exactly zero: of the cross-entropy, and of the logits' margin."""
        found = {"cross_entropy": 0, "margin": 0}
        for x, y in zip(self.x.split(self.batch), self.y.split(self.batch), strict=True):
            with torch.enable_grad():
                images = x.clone().requires_grad_()
                logits = self.network(images)
                for name, loss in (("cross_entropy", F.cross_entropy(logits, y, reduction="sum")),
                                   ("margin", margin(logits, y).sum())):
                    gradient, = torch.autograd.grad(loss, images, retain_graph=True)
                    found[name] += int((gradient.flatten(1) == 0).all(1).sum())
        return found

    def surface(self, eps: float, grid: int) -> dict[str, Any]:
        """Mean cross-entropy of the first images over x + a eps g + b eps r, a and b from -1 to 1.

        g: the sign of the loss's gradient (scaled to the ball in L2, L1), r: random signs.  values: (grid, grid), rows
        by a.  steeper: of the images, how many have a loss at +g that is at least that at +r.
        """
        x, y = self.x[:SURFACE_IMAGES], self.y[:SURFACE_IMAGES]
        with torch.enable_grad():
            images = x.clone().requires_grad_()
            loss = F.cross_entropy(self.network(images), y, reduction="sum")
            gradient, = torch.autograd.grad(loss, images)
        generator = torch.Generator().manual_seed(fold(self.seed, "masking", "surface"))
        signs = torch.randint(0, 2, x.shape, generator=generator).to(x) * 2 - 1
        one, other = (part * unit(self.norm, part) for part in (gradient.sign(), signs))
        ticks = torch.linspace(-1, 1, grid).tolist()
        values, ends = [], []
        with torch.no_grad():
            for a in ticks:
                moved = [(x + eps * (a * one + b * other)).clamp(0, 1) for b in ticks]
                values.append([float(F.cross_entropy(self.network(images), y)) for images in moved])
            for direction in (one, other):
                ends.append(F.cross_entropy(self.network((x + eps * direction).clamp(0, 1)), y, reduction="none"))
        return {"ticks": ticks, "values": values, "n": len(x), "steeper": int((ends[0] >= ends[1]).sum())}


def unit(norm: str, signs: Tensor) -> float:
    """What brings an image of signs to norm 1."""
    return {"linf": 1.0, "l2": signs[0].numel() ** -0.5, "l1": 1 / signs[0].numel()}[norm]
