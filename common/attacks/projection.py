"""The shortest move inside the box [0,1] that takes a point onto a hyperplane, in the L-inf or the L2 norm.

    z + d on {<w,.> = b},   0 <= z + d <= 1,   d as short as can be:

    d_j = -s * v_j * min(l, t_j),   s = sign(<w,z> - b),   v = sign(w) for L-inf,  v = w for L2,
    t_j = room_j / |v_j|,  room_j = how far pixel j may go: z_j where it falls, 1 - z_j where it rises

with the smallest l >= 0 for which the gap |<w,z> - b| is covered.  The move covers F(l) = sum_j |w_j v_j| min(l, t_j),
which rises, is concave and piecewise linear.  F(l) = gap is solved by Newton's method from l = 0, for all planes at
once and without sorting the t_j.  F being concave, no step overshoots, and of the gap h and the slope g each step
leaves h' and g' with h'/h + g'/g <= 1: the product h*g falls to a quarter or less.  Since h <= g in L-inf, 24 steps
leave less than 2^-24 of ||w||_1; about six do it mostly, as a step that meets no t_j is exact.
"""

from collections.abc import Callable

import torch
from torch import Tensor

ROUNDS = 24
CHUNK = 2 ** 18      # numbers that a processor's cache holds
SMALLEST = 1e-8      # L2: pixels with a smaller |w_j| stay where they are


def project_linf(z: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Displacements d (B,...) of points z (B,...) in [0,1] onto the planes <w,.> = b, w (B,...), b (B,); ||d||_inf
    is the smallest there is.  Where the plane misses the box, z + d is the corner of the box that is nearest to it.
    """
    return _project(z, w, b, torch.sign)


def project_l2(z: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """As `project_linf`, with the smallest ||d||_2."""
    return _project(z, w, b, lambda w: torch.where(w.abs() < SMALLEST, 0, w))


PROJECTIONS = {"linf": project_linf, "l2": project_l2}


@torch.no_grad()
def _project(z: Tensor, w: Tensor, b: Tensor, speed: Callable[[Tensor], Tensor]) -> Tensor:
    shape, z, w = z.shape, z.flatten(1), w.flatten(1)
    if z.device.type != "cpu":
        return _move(z, w, b, speed).view(shape)
    # A few rows at a time, so that every round finds them in the cache.
    rows, out = max(1, CHUNK // max(1, z.shape[1])), torch.empty_like(z)
    for first in range(0, len(z), rows):
        part = slice(first, first + rows)
        out[part] = _move(z[part], w[part], b[part], speed)
    return out.view(shape)


def _move(z: Tensor, w: Tensor, b: Tensor, speed: Callable[[Tensor], Tensor]) -> Tensor:
    """The displacements (B,n) of points z (B,n); speed: w (B,n) -> |v| with the sign of w."""
    excess = (w * z).sum(1, keepdim=True) - b[:, None]
    velocity = speed(w) * -excess.sign()
    room = torch.where(velocity < 0, z, 1 - z).clamp_min_(0)
    stops = torch.where(velocity == 0, 0, room / velocity.abs())
    length = _cover(excess.abs(), (w * velocity).abs_(), stops)
    return velocity * torch.minimum(stops, length)


def _cover(gap: Tensor, rates: Tensor, stops: Tensor) -> Tensor:
    """The smallest l (B,1) with sum_j rates_j*min(l, stops_j) = gap (B,1); infinity where there is none."""
    # Two buffers, written again and again: on a CPU, asking the system for fresh memory costs more than the arithmetic.
    moved, free = torch.empty_like(stops), torch.empty_like(stops)
    within = gap < torch.mul(rates, stops, out=moved).sum(1, keepdim=True)
    gap = torch.where(within, gap, 0)
    length, slope = torch.zeros_like(gap), torch.full_like(gap, -1)
    for _ in range(ROUNDS):
        before, slope = slope, torch.gt(stops, length, out=free).mul_(rates).sum(1, keepdim=True)
        left = gap - torch.minimum(stops, length, out=moved).mul_(rates).sum(1, keepdim=True)
        # Never back: only rounding asks for that, and l would swing between two stops.
        length = length + torch.where(slope > 0, left / slope, 0).clamp_min_(0)
        # Where no stop was met, F was linear and the step exact.  Only asked where asking does not wait for a device.
        if length.device.type == "cpu" and torch.equal(slope, before):
            break
    return torch.where(within, length, torch.inf)
