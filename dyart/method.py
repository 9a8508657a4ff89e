"""DyART: training that moves the decision boundary away from the images, the closest ones first (arXiv 2302.03015).

    phi(x,y) = z_y - 1/T * logsumexp_{k != y}(T*z_k)     the soft margin function; {phi = 0} is the soft boundary
    x^       = the point of the boundary closest to x    found by FAB;  R = ||x^ - x|| is the margin, R in [0,1] units
    dR/dtheta = grad_theta phi(x^) / ||grad_x phi(x^)||_q    q dual to the norm of R: 1 for L-inf, 2 for L2
    cost h(R), falling:  -h'(R) = exp(-alpha*R) * 1[R < r0]

    loss = mean_i CE(x_i) + lam * 1/N * sum_i w_i*(-phi(x^_i)),   w_i = -h'(R_i) / ||grad_x phi(x^_i)||_q

The sum is over the boundary points that are kept, N is the whole batch.  x^, R and w are constants, so the second term
is near 0, phi(x^) being 0, and its gradient is that of the mean cost of the margins.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.types import Batch, LossOut, StepContext
from dyart.boundary import FAB, ScalarFunction, Search, searchable, value_and_gradient

CORRECT = 1e-9                  # phi(x) of an image on the right side
DEEPEST = -0.3                  # phi(x^) of a point that is near the boundary
MOVED = 0.8                     # share of the largest |delta_j| from which pixel j counts as moved
DOWNHILL = -1e-7                # delta_j*g_j of a moved pixel that went downhill
FLAT = 0.1                      # |g_j| of a pixel that had no reason to move
ROBUST = 0.031                  # margin from which the released code calls an image robust


def soft_margin(logits: Tensor, y: Tensor, temperature: float = 5.0) -> Tensor:
    """phi (B,) of logits (B,K), labels (B,): below the margin z_y - max_{k != y} z_k, and nearer the larger T is."""
    own = logits.gather(1, y[:, None]).squeeze(1)
    others = logits.scatter(1, y[:, None], -torch.inf)
    return own - (temperature * others).logsumexp(1) / temperature


def closeness(radius: Tensor, alpha: float, r0: float) -> Tensor:
    """-h'(R), elementwise: what it is worth to raise a margin.  alpha is 0.01 where |alpha| < 0.01."""
    alpha = alpha if abs(alpha) >= 0.01 else 0.01
    return torch.where(radius < r0, torch.exp(-alpha * radius), 0)


def dual_norm(gradient: Tensor, norm: str) -> Tensor:
    """||gradient||_q per image (B,): 1-norm for "linf", 2-norm for "l2"."""
    return gradient.flatten(1).norm(p={"linf": 1, "l2": 2}[norm], dim=1)


def near_optimal(delta: Tensor, gradient: Tensor) -> Tensor:
    """Whether x^ = x + delta may be the closest point in L-inf (B,): pixels that moved as far as any went downhill,
    and among the others, of which there are some, a pixel has no slope to speak of (the KKT conditions, loosely).
    """
    delta, gradient = delta.flatten(1), gradient.flatten(1)
    moved = delta.abs() > MOVED * delta.abs().amax(1, keepdim=True)
    downhill = (moved & (delta * gradient < DOWNHILL)).sum(1) > 0.9 * moved.sum(1)
    return downhill & (~moved & (gradient.abs() <= FLAT)).any(1)


@dataclass(frozen=True)
class Boundary:
    """The m boundary points of a batch that are kept; all constants.

    index (m,) places of their images in the batch; points (m,C,H,W); gradient (m,C,H,W) grad_x phi there; radius (m,)
    distance to their images, in [0,1] units; search: what they were chosen from.
    """

    index: Tensor
    points: Tensor
    gradient: Tensor
    radius: Tensor
    search: Search


@dataclass(frozen=True)
class DyART:
    """The objective.  Defaults: CIFAR-10; alpha and r0 of -h', r0 in [0,1] units.

    use_high_quality  keep only the points that are near the boundary and near-optimal; False: all with phi(x^) < 0
    search            finds the points; its shared_alpha is the quirk scalar-alpha
    """

    alpha: float = 3.0
    r0: float = 16 / 255
    lam_robust: float = 1000.0
    temperature: float = 5.0
    use_high_quality: bool = True
    search: FAB = field(default_factory=FAB)

    def __post_init__(self):
        if self.use_high_quality and self.search.norm != "linf":
            raise ValueError("the checks of boundary points are for L-inf: other norms need use_high_quality=False")

    def modules(self) -> dict[str, nn.Module]:
        return {}

    def __call__(self, model: nn.Module, batch: Batch, ctx: StepContext) -> LossOut:
        return self.loss(model, batch, self.boundary(model, batch.x, batch.y, ctx), ctx)

    def loss(self, model: nn.Module, batch: Batch, near: Boundary, ctx: StepContext) -> LossOut:
        """The loss of a batch whose boundary points are known: two passes, in the model's own mode."""
        x, y = batch.x, batch.y
        pull = x.new_zeros(len(x))
        if len(near.index) or ctx.synchronised:
            # Before the pass of x, alone: in train mode batch norm sees the kept points as a batch of their own.
            phi = soft_margin(model(near.points), y[near.index], self.temperature)
            pull = pull.index_copy(0, near.index, self.weights(near) * -phi)
        logits = model(x)
        clean, robust = ctx.mean(F.cross_entropy(logits, y, reduction="none")), ctx.mean(pull)
        return LossOut(clean + self.lam_robust * robust, self.logs(near, logits.detach(), y, clean, robust, ctx))

    def phi(self, network: nn.Module) -> ScalarFunction:
        """(images (B,C,H,W), labels (B,)) -> phi (B,), of this network."""
        return lambda x, y: soft_margin(network(x), y, self.temperature)

    def boundary(self, model: nn.Module, x: Tensor, y: Tensor, ctx: StepContext) -> Boundary:
        """Search and choose the boundary points of a batch, in eval mode and float32.

        Waits for the device twice, as two shapes depend on it: the images searched, and the points kept.
        """
        with searchable(model, fast=True) as network:
            phi = self.phi(network)
            search = self.search(phi, x, y, ctx)
            value, gradient = value_and_gradient(phi, search.points, y[search.index])
        delta = search.points - x[search.index]
        kept = (search.value > CORRECT) & (value < 0)            # where no point was found, phi(x) > 0 stands here
        if self.use_high_quality:
            kept = kept & (value > DEEPEST) & near_optimal(delta, gradient)
        kept = kept.nonzero().squeeze(1)
        radius = self.search.length(delta[kept])
        return Boundary(search.index[kept], search.points[kept], gradient[kept], radius, search)

    def weights(self, near: Boundary) -> Tensor:
        """w (m,), constants."""
        return closeness(near.radius, self.alpha, self.r0) / dual_norm(near.gradient, self.search.norm)

    def logs(self, near: Boundary, logits: Tensor, y: Tensor, clean: Tensor, robust: Tensor, ctx: StepContext
             ) -> dict[str, Tensor]:
        """Terms of the loss, shares of the batch, and the mean radius (0 without points); no_boundary: 1 without."""
        accuracy, kept = ctx.mean((logits.argmax(1) == y).float()), len(near.index)
        wide, lengths = ctx.total((near.radius > ROBUST).sum()), ctx.total(near.radius.sum())
        # Of one rank the count is known to the host; of several it stays on the device.
        everywhere = kept if ctx.ranks == 1 else ctx.total(accuracy.new_tensor(kept))
        points = max(kept, 1) if ctx.ranks == 1 else everywhere.clamp_min(1)
        shares = {"searched": len(near.search.index) / len(y), "kept": kept / len(y)}
        return {"clean_loss": clean.detach(), "boundary_term": self.lam_robust * robust.detach(),
                "clean_accuracy": accuracy, "robust_estimate": wide / points * accuracy,
                "found": near.search.found.sum() / len(y), "radius": lengths / points,
                **{name: accuracy.new_full((), share) for name, share in shares.items()},
                "no_boundary": accuracy.new_ones(()) * (everywhere == 0)}
