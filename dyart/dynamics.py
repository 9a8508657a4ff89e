"""How the decision boundary moves past each image when training takes a step (arXiv 2302.03015).

    s(x) = dR/dt = grad_theta phi(x^) . theta' / ||grad_x phi(x^)||_q

While the parameters move with theta', the margin R of x changes with the speed s(x): positive where the boundary
recedes from the image, negative where it comes closer.  Here theta' is the whole of one optimiser step, so s is, to
first order, what the step adds to R, in [0,1] units.  The running statistics of batch norm stand still.
"""

import copy
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call

from common.data import Split
from common.engine import Engine
from common.fit import SGD, set_hyper
from common.seeds import fold
from common.types import Batch, Hyper, Objective, StepContext
from dyart.boundary import network_of, searchable, value_and_gradient
from dyart.method import DyART, dual_norm, soft_margin

Direction = Mapping[str, Tensor]        # name of a parameter -> its share of theta'; absent: does not move


class Margins(NamedTuple):
    """Of N images, on the CPU.  radius (N,): the margin R in [0,1] units; 0 where phi <= 0, NaN where no boundary point
    was found.  speeds: name of a direction -> s(x) (N,); NaN where no boundary point is kept.

    phi <= 0 also where an image is classified rightly, but by a logit margin below at most log(K-1)/T (0.44 for ten
    classes at T = 5): the soft margin lies below the hard one by up to that.
    """

    radius: Tensor
    speeds: dict[str, Tensor]


def step_direction(model: nn.Module, objective: Objective, batch: Batch, ctx: StepContext, *, engine: Engine,
                   optim: SGD, hyper: Hyper, state: Mapping[str, Any] | None = None) -> dict[str, Tensor]:
    """theta': what one step of `optim` on `objective` would add to each parameter; the model stays as it is.

    state: the optimiser's state_dict, for the momentum gathered until now; None: a first step.
    The step is taken on a copy.  An engine with fast attacks keeps every network that it attacks: give a plain one.
    """
    network = copy.deepcopy(network_of(model)).train()
    optimiser = optim.build(network)
    if state is not None:
        optimiser.load_state_dict(copy.deepcopy(dict(state)))
    set_hyper(optimiser, *hyper)
    objective(engine.runner(network), batch, ctx).loss.backward()
    if optim.clip_norm is not None:
        nn.utils.clip_grad_norm_(network.parameters(), optim.clip_norm)
    optimiser.step()
    before = dict(network_of(model).named_parameters())
    return {name: after.detach() - before[name].detach() for name, after in network.named_parameters()
            if after.requires_grad}


def relative_speed(model: nn.Module, points: Tensor, y: Tensor, direction: Direction, *, temperature: float = 5.0,
                   norm: str = "linf") -> Tensor:
    """s (B,) from the boundary points x^ (B,C,H,W) of images with labels y (B,), in eval mode; detached."""
    if not len(points):
        return points.new_zeros(0)
    with searchable(model) as network:
        _, gradient = value_and_gradient(lambda x, y: soft_margin(network(x), y, temperature), points, y)
        try:
            rise = forward_rise(network, points, y, direction, temperature)
        except NotImplementedError:                      # some operator of the network has no forward mode
            rise = backward_rise(network, points, y, direction, temperature)
    return rise / dual_norm(gradient, norm)


@torch.no_grad()
def forward_rise(network: nn.Module, x: Tensor, y: Tensor, direction: Direction, temperature: float) -> Tensor:
    """grad_theta phi(x_i) . theta' (B,) of all images in one pass, by forward-mode differentiation."""
    parameters = dict(network.named_parameters())
    with forward_ad.dual_level():
        moving = {name: forward_ad.make_dual(parameters[name], tangent) for name, tangent in direction.items()}
        phi = soft_margin(functional_call(network, moving, (x,)), y, temperature)
        return forward_ad.unpack_dual(phi).tangent


def backward_rise(network: nn.Module, x: Tensor, y: Tensor, direction: Direction, temperature: float) -> Tensor:
    """The same by a backward pass for each image."""
    parameters = dict(network.named_parameters())
    moving = {name: parameters[name].detach().requires_grad_() for name in direction}
    rises = []
    for image, label in zip(x.split(1), y.split(1), strict=True):
        with torch.enable_grad():
            phi = soft_margin(functional_call(network, moving, (image,)), label, temperature).sum()
            gradients = torch.autograd.grad(phi, list(moving.values()))
        rises.append(sum((slope * direction[name]).sum() for name, slope in zip(moving, gradients, strict=True)))
    return torch.stack(rises)


def margins(model: nn.Module, images: Split, method: DyART, *, seed: int,
            directions: Mapping[str, Direction] = MappingProxyType({}), batch_size: int = 256) -> Margins:
    """Margins of a data set, and along each of the `directions` the speeds at the boundary points that `method` keeps.

    The network stays as it is, and is judged in eval mode and float32; the search starts from (seed, chunk).
    """
    radii: list[Tensor] = []
    speeds: dict[str, list[Tensor]] = {name: [] for name in directions}
    for start in range(0, len(images), batch_size):
        x, y = images.float_images(start, start + batch_size), images.labels[start:start + batch_size]
        ctx = StepContext(generator=torch.Generator().manual_seed(fold(seed, "margins", start)))
        near = method.boundary(model, x, y, ctx)
        search = near.search
        reached = method.search.length(search.points - x[search.index])
        radius = x.new_zeros(len(x)).index_copy(0, search.index, torch.where(search.found, reached, torch.nan))
        radii.append(radius.cpu())
        for name, direction in directions.items():
            moved = relative_speed(model, near.points, y[near.index], direction, temperature=method.temperature,
                                   norm=method.search.norm)
            speeds[name].append(x.new_full((len(x),), torch.nan).index_copy(0, near.index, moved).cpu())
    return Margins(torch.cat(radii), {name: torch.cat(parts) for name, parts in speeds.items()})
