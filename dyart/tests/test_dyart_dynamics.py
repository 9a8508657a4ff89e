"""Speeds of the boundary against finite differences of the margin, and the margins of a data set."""

import copy
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from common import models
from common.attacks import PGD
from common.data import Split
from common.engine import Engine
from common.fit import SGD
from common.seeds import fold
from common.types import Attack, Batch, Hyper, LossOut, StepContext
from dyart import dynamics
from dyart.boundary import FAB
from dyart.dynamics import backward_rise, forward_rise, margins, relative_speed, step_direction
from dyart.method import DyART, closeness, soft_margin
from dyart.tests.references import ExactLinf, grey_images, smooth_network

CPU = Engine(torch.device("cpu"))


def context(seed: int = 5) -> StepContext:
    return StepContext(generator=torch.Generator().manual_seed(seed), attacking=CPU.attacking)


@dataclass(frozen=True)
class CrossEntropyAt:
    """Adversarial training: CE(x'), without an attack CE(x)."""

    attack: Attack | None = None

    def modules(self):
        return {}

    def __call__(self, model, batch, ctx):
        x = batch.x
        if self.attack is not None:
            with ctx.attacking(model, False) as target:
                x = self.attack(target, x, batch.y, ctx)
        return LossOut(F.cross_entropy(model(x), batch.y), {})


def random_direction(network, seed=7):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(p.shape, dtype=p.dtype, generator=generator) for name, p in network.named_parameters()}


def moved(network, direction, h):
    """The network with its parameters at theta + h*theta'."""
    there = copy.deepcopy(network)
    for name, parameter in there.named_parameters():
        parameter.data += h * direction.get(name, torch.zeros(()))
    return there


OBJECTIVES = {"random": None, "dyart": DyART(r0=0.06, search=FAB(shared_alpha=False), use_high_quality=False),
              "at": CrossEntropyAt(PGD(0.03, 0.01, 5))}


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_speed_is_the_slope_of_the_margin(objective):
    network, x, y = smooth_network(), grey_images(24), torch.arange(24) % 3
    exact = DyART(search=ExactLinf(), use_high_quality=False)
    if objective is None:
        direction = random_direction(network)
    else:
        batch = Batch(x, y)
        direction = step_direction(network, objective, batch, context(), engine=CPU, optim=SGD(weight_decay=0.0),
                                   hyper=Hyper(1e-3))
    near = exact.boundary(network, x, y, context())
    speed = relative_speed(network, near.points, y[near.index], direction)
    h = 1e-5 / max(value.abs().max().item() for value in direction.values())
    radii = []
    for there in (moved(network, direction, h), moved(network, direction, -h)):
        again = exact.boundary(there, x, y, context())
        assert torch.equal(again.index, near.index)
        radii.append(again.radius)
    assert len(near.index) >= 5 and (speed.abs() > 0).all()
    torch.testing.assert_close(speed, (radii[0] - radii[1]) / (2 * h), rtol=1e-4, atol=1e-6 * speed.abs().max().item())
    if isinstance(objective, DyART):
        assert (closeness(near.radius, 3.0, 0.06) * speed).sum() > 0, "its own step lowers the cost of the margins"


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_speed_on_a_linear_model_in_closed_form(norm):
    """R = f(x)/||w||_q, so dR/dt = (<w',x> + b')/||w|| - f(x) * d||w||/dt / ||w||^2, whatever the temperature."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).double()
    x, y = 0.4 + 0.2 * torch.rand(5, 3, 2, 2, dtype=torch.float64), torch.zeros(5, dtype=torch.long)
    direction = {f"1.{name}": way for name, way in random_direction(network[1]).items()}
    w, b = network[1].weight.detach().diff(dim=0)[0].neg(), network[1].bias.detach().diff().neg()
    dw, db = direction["1.weight"].diff(dim=0)[0].neg(), direction["1.bias"].diff().neg()
    value = x.flatten(1) @ w + b
    size = w.abs().sum() if norm == "linf" else w.norm()
    growth = (w.sign() * dw).sum() if norm == "linf" else (w * dw).sum() / size
    slope = (x.flatten(1) @ dw + db) / size - value * growth / size ** 2
    way = w.sign() if norm == "linf" else w / size
    points = x - (value / size)[:, None].mul(way).view_as(x)
    for temperature in (1.0, 5.0):
        speed = relative_speed(network, points, y, direction, temperature=temperature, norm=norm)
        torch.testing.assert_close(speed, slope)


@pytest.mark.parametrize("options", [{"name": "resnet18"},
                                     {"name": "preactresnet18", "norm": "group", "activation": "silu"}])
def test_all_images_at_once_are_the_images_one_by_one(options):
    """So every operator of these networks has a forward mode."""
    torch.manual_seed(1)
    network = models.build(classes=10, width=8, normalise=((0.5,) * 3, (0.2,) * 3), **options).eval()
    x, y = torch.rand(3, 3, 16, 16), torch.tensor([1, 4, 7])
    direction = random_direction(network)
    at_once = forward_rise(network, x, y, direction, 5.0)
    torch.testing.assert_close(at_once, backward_rise(network, x, y, direction, 5.0), rtol=1e-3, atol=1e-2)
    assert at_once.shape == (3,) and not at_once.requires_grad and (at_once.abs() > 0.1).all()
    part = {name: way for name, way in direction.items() if "conv" in name}        # what is absent does not move
    others = {name: torch.zeros_like(way) for name, way in direction.items() if name not in part}
    torch.testing.assert_close(forward_rise(network, x, y, part, 5.0), forward_rise(network, x, y, part | others, 5.0))


class NoForwardMode(torch.autograd.Function):
    """Twice x, by an operator that can only be differentiated backwards."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


class Doubled(nn.Module):
    def forward(self, x):
        return NoForwardMode.apply(x)


def test_an_operator_without_forward_mode_is_no_obstacle(golden, tiny):
    x, y = golden["x"], golden["y"]
    rare, usual = nn.Sequential(tiny, Doubled()), nn.Sequential(tiny, nn.Linear(10, 10, bias=False))
    usual[1].weight.data = 2 * torch.eye(10)
    direction = random_direction(rare)
    with pytest.raises(NotImplementedError):
        forward_rise(rare, x, y, direction, 5.0)
    torch.testing.assert_close(relative_speed(rare, x, y, direction), relative_speed(usual, x, y, direction),
                               rtol=1e-4, atol=1e-5)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in tiny.parameters())


OPTIM, HYPER = SGD(weight_decay=0.01, nesterov=True, clip_norm=0.5), Hyper(0.2, 0.8)


def test_direction_is_the_whole_step(golden, tinybn):
    """Gradient, clipping, weight decay and momentum: what two steps of the optimiser really do, the second with
    momentum gathered in the first."""
    batch, optimiser = Batch(golden["x"], golden["y"]), OPTIM.build(tinybn)
    for _ in range(2):
        state, before = copy.deepcopy(optimiser.state_dict()), copy.deepcopy(tinybn)
        dynamics.set_hyper(optimiser, *HYPER)
        optimiser.zero_grad()
        CrossEntropyAt()(tinybn, batch, context()).loss.backward()
        nn.utils.clip_grad_norm_(tinybn.parameters(), 0.5)
        optimiser.step()
        direction = step_direction(before, CrossEntropyAt(), batch, context(), engine=CPU, optim=OPTIM, hyper=HYPER,
                                   state=state)
        assert direction.keys() == {name for name, _ in tinybn.named_parameters()}
        for name, way in direction.items():
            real = tinybn.get_parameter(name) - before.get_parameter(name)
            torch.testing.assert_close(way, real.detach(), rtol=1e-4, atol=1e-6)
    cold = step_direction(before, CrossEntropyAt(), batch, context(), engine=CPU, optim=OPTIM, hyper=HYPER)
    assert (cold["0.weight"] - direction["0.weight"]).norm() > 0.1 * cold["0.weight"].norm()


def test_direction_leaves_the_model_as_it_is(golden, tinybn):
    """Statistics, gradients, modes and flags; old gradients are no part of the step; frozen parameters do not move."""
    batch = Batch(golden["x"], golden["y"])
    tinybn[0].bias.requires_grad_(False)
    clean = step_direction(tinybn, CrossEntropyAt(), batch, context(), engine=CPU, optim=OPTIM, hyper=HYPER)
    for parameter in tinybn.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    saved = copy.deepcopy(tinybn.eval().state_dict())
    for model in (tinybn, CPU.runner(tinybn)):
        direction = step_direction(model, CrossEntropyAt(), batch, context(), engine=CPU, optim=OPTIM, hyper=HYPER)
        assert all(torch.equal(direction[name], way) for name, way in clean.items())
        assert "0.bias" not in direction and "0.weight" in direction
        assert all(torch.equal(saved[name], value) for name, value in tinybn.state_dict().items())
        assert all(parameter.grad.eq(3).all() for parameter in tinybn.parameters()) and not tinybn.training


def uint8_split(golden) -> Split:
    return Split((golden["x"] * 255).round().to(torch.uint8), golden["y"])


def test_margins_of_a_data_set(golden, tiny):
    images, method, direction = uint8_split(golden), DyART(), random_direction(tiny)
    right = soft_margin(tiny(images.float_images()), golden["y"]) > 0
    whole = margins(CPU.runner(tiny), images, method, seed=1, directions={"step": direction})
    kept = ~whole.speeds["step"].isnan()
    assert (whole.radius[~right] == 0).all() and (whole.radius[right] > 0).all()
    assert not (kept & ~right).any() and 0 < kept.sum() < right.sum()
    again = margins(tiny, images, method, seed=1, directions={"step": direction})
    assert torch.equal(whole.radius, again.radius)
    assert torch.equal(whole.speeds["step"][kept], again.speeds["step"][kept])
    # Another seed, and chunks of another size, start the search elsewhere: nearly the same margins.
    for seed, size in ((2, 256), (1, 5)):
        other = margins(tiny, images, replace(method, search=FAB(shared_alpha=False)), seed=seed, batch_size=size)
        assert other.radius.shape == (16,) and not torch.equal(other.radius, whole.radius)
        torch.testing.assert_close(other.radius, whole.radius, rtol=0.1, atol=2e-3)
        assert other.speeds == {}
    lost = margins(tiny, images, replace(method, search=FAB(steps=0)), seed=1, directions={"step": direction})
    assert torch.equal(lost.radius.isnan(), right) and (lost.radius[~right] == 0).all()
    assert lost.speeds["step"].isnan().all()


@pytest.mark.parametrize(("margin", "classes", "there"), [
    (0.43, 10, False), (0.45, 10, True), (0.13, 3, False), (0.15, 3, True)])
def test_an_image_that_is_right_by_less_than_the_soft_margin_takes_off_has_no_margin(margin, classes, there):
    """log(K-1)/T: 0.439 for ten classes at T = 5, 0.139 for three, where all other logits are alike."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, classes))
    with torch.no_grad():
        network[1].weight.zero_()[0, 0] = margin
        network[1].bias.zero_()
    images = Split(torch.tensor([255, 9, 9, 9], dtype=torch.uint8).view(1, 1, 2, 2), torch.zeros(1, dtype=torch.int64))
    assert network(images.float_images()).argmax(1).item() == 0
    assert (margins(network, images, DyART(), seed=1).radius > 0).item() == there


def test_speeds_of_a_data_set_are_those_of_its_boundary_points(golden, tiny):
    images, direction, method = uint8_split(golden), random_direction(tiny), DyART(temperature=2.0)
    measured = margins(tiny, images, method, seed=3, directions={"step": direction}, batch_size=10)
    for start in (0, 10):
        x, y = images.float_images(start, start + 10), images.labels[start:start + 10]
        generator = torch.Generator().manual_seed(fold(3, "margins", start))
        near = method.boundary(tiny, x, y, StepContext(generator=generator))
        speed = relative_speed(tiny, near.points, y[near.index], direction, temperature=2.0)
        assert len(near.index) > 0
        torch.testing.assert_close(measured.speeds["step"][start + near.index], speed)
        torch.testing.assert_close(measured.radius[start + near.index], near.radius)
    assert len(relative_speed(tiny, near.points[:0], images.labels[:0], direction)) == 0
