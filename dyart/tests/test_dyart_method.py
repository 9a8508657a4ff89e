"""DyART's formulas and loss: the released code's values (tests/golden), limits, and the cost whose gradient it is."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from common.attacks import margin
from common.engine import Engine
from common.types import Batch, StepContext
from dyart.boundary import FAB
from dyart.method import DyART, closeness, dual_norm, near_optimal, soft_margin
from dyart.tests.references import ExactLinf, Given, grey_images, smooth_network

R0 = 0.045
CPU = Engine(torch.device("cpu"))


def context(seed: int = 5) -> StepContext:
    return StepContext(generator=torch.Generator().manual_seed(seed), attacking=CPU.attacking)


@pytest.fixture
def drawn(golden) -> StepContext:
    """A context whose uniform numbers are those that the golden values were made with."""
    class Drawn(StepContext):
        def uniform(self, like):
            rows = golden["dyart/fab_correct_index"]
            return torch.full_like(like, 0.3).index_copy(0, rows, golden["dyart/fab_rand"])

    return Drawn(generator=torch.Generator())


@pytest.mark.parametrize("temperature", [1, 5])
def test_soft_margin(golden, tiny, temperature):
    ours = soft_margin(tiny(golden["x"]), golden["y"], temperature)
    torch.testing.assert_close(ours.detach(), golden[f"dyart/soft_margin_T{temperature}"], rtol=1e-5, atol=1e-6)


def test_soft_margin_rises_to_the_hard_margin():
    logits = torch.randn(64, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    y = torch.arange(64) % 10
    hard, before = margin(logits, y), torch.full((64,), -torch.inf)
    for temperature in (0.5, 1, 5, 50, 5000):
        soft = soft_margin(logits, y, temperature)
        assert (soft >= before - 1e-12).all() and soft.mean() > before.mean() and (soft <= hard + 1e-12).all()
        assert (hard - soft <= math.log(9) / temperature + 1e-12).all()
        before = soft
    torch.testing.assert_close(before, hard, rtol=0, atol=1e-3)
    # Of two classes there is one other, so both margins are the same, at any temperature.
    torch.testing.assert_close(soft_margin(logits[:, :2], y % 2, 0.7), margin(logits[:, :2], y % 2))


@pytest.mark.parametrize(("alpha", "r0"), [(3.0, 16), (8.0, 16), (5.0, 32), (0.0, 16)])
def test_slope_of_the_cost(golden, alpha, r0):
    ours = closeness(golden["dyart/radius"], alpha, r0 / 255)
    torch.testing.assert_close(ours, golden[f"dyart/hprime_alpha{alpha}_r0_{r0}"], rtol=1e-5, atol=1e-7)


def test_slope_of_the_cost_at_its_limits():
    radius = torch.tensor([0.0, 0.5, 0.75])
    for alpha, used in ((-0.009, 0.01), (-0.01, -0.01), (0.0099, 0.01), (2.0, 2.0)):
        expected = [1.0, math.exp(-used / 2), 0.0]
        torch.testing.assert_close(closeness(radius, alpha, 0.75), torch.tensor(expected))


def test_dual_norms():
    gradient = torch.tensor([[[[3.0, -4.0]]], [[[0.0, 2.0]]]])
    assert dual_norm(gradient, "linf").tolist() == [7, 2] and dual_norm(gradient, "l2").tolist() == [5, 2]


def test_boundary_points_of_the_released_code(golden, tiny, drawn):
    near = DyART().boundary(tiny, golden["x"], golden["y"], drawn)
    assert torch.equal(near.index, golden["dyart/bdr_index"])
    searched = near.search.index
    assert torch.equal(searched, golden["dyart/fab_correct_index"])
    assert torch.equal(searched[~torch.isin(searched, near.index)], golden["dyart/bdr_discard_index"])
    wrong = torch.arange(16)[~torch.isin(torch.arange(16), searched)]
    assert torch.equal(wrong, golden["dyart/bdr_wrong_index"])
    torch.testing.assert_close(near.points, golden["dyart/bdr_x"], rtol=0, atol=2e-6)
    torch.testing.assert_close(near.gradient, golden["dyart/bdr_grad"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(near.radius, golden["dyart/radius_bdr"], rtol=1e-4, atol=1e-6)
    weights = DyART(alpha=3, r0=16 / 255).weights(near)
    torch.testing.assert_close(weights, golden["dyart/weights_alpha3_r0_16"], rtol=1e-4, atol=1e-6)
    everything = DyART(use_high_quality=False).boundary(tiny, golden["x"], golden["y"], drawn)
    assert torch.equal(everything.index, searched)


@pytest.mark.parametrize("through_engine", [False, True])
def test_loss_and_gradient_of_the_released_code(golden, tiny, drawn, through_engine):
    model = CPU.runner(tiny) if through_engine else tiny
    out = DyART(alpha=3, r0=16 / 255, lam_robust=1000)(model, Batch(golden["x"], golden["y"]), drawn)
    torch.testing.assert_close(out.loss.detach(), golden["dyart/loss_lam1000"], rtol=1e-4, atol=1e-6)
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(out.loss, list(tiny.parameters()))])
    torch.testing.assert_close(gradient, golden["dyart/loss_lam1000_grad"], rtol=1e-4, atol=1e-5)
    radius = golden["dyart/radius_bdr"]
    logs = {"searched": 8 / 16, "found": 8 / 16, "kept": 7 / 16, "no_boundary": 0.0, "radius": radius.mean().item(),
            "robust_estimate": (radius > 0.031).float().mean().item() * 0.5, "clean_accuracy": 0.5,
            "clean_loss": F.cross_entropy(tiny(golden["x"]), golden["y"]).item()}
    assert {name: out.logs[name].item() for name in logs} == pytest.approx(logs, rel=1e-5)
    assert (out.logs["clean_loss"] + out.logs["boundary_term"]).item() == pytest.approx(out.loss.item(), rel=1e-6)
    assert all(value.shape == () and not value.requires_grad for value in out.logs.values())


def test_each_check_of_a_boundary_point():
    """near_optimal, a row for each reason: ten pixels, of which at most nine may have moved."""
    delta, gradient = torch.full((7, 10), 0.01), torch.zeros(7, 10)
    delta[:, :9], gradient[:, :9] = -0.1, 1.0         # row 0: nine pixels moved as far as any and downhill, one is flat
    gradient[1, 0] = -1.0                             # one of nine uphill: 8/9 is too small a share
    gradient[2, 9] = 0.1001                           # the only other pixel has a slope
    delta[3, 9], gradient[3, 9] = -0.081, 0.05        # it has moved too: there is no other pixel
    delta[4, 9], gradient[4, 9] = -0.079, -0.05       # moved by less than 0.8 of the farthest: it may go uphill
    gradient[5, :9] = 1e-7                            # downhill by too little
    delta[6, 0], gradient[6, 0] = 0.1, -1.0           # up where the slope is down is downhill as well
    delta[6, 1:9], delta[6, 9] = 0.0, 0.0             # (one pixel moved, the others flat or not)
    kept = [True, False, False, False, True, False, True]
    assert near_optimal(delta.view(7, 1, 2, 5), gradient.view(7, 1, 2, 5)).tolist() == kept


def test_points_are_kept_by_the_values_of_the_soft_margin():
    """A network whose phi is the first pixel, so that phi(x^) can be chosen; the second pixel has no slope."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False))
    network[1].weight.data = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    value = torch.tensor([0.5, 1e-9, 2e-9, 0.5, 0.5, 0.5, 0.5])
    x = torch.stack([torch.full((7,), 0.5), torch.zeros(7)], 1).view(7, 1, 1, 2)
    points = x.clone()
    points[:, 0, 0, 0] = torch.tensor([-0.1, -0.1, -0.1, -0.2999, -0.3001, 0.0, 0.1])
    y, search = torch.zeros(7, dtype=torch.long), Given(points, value)
    near = DyART(search=search).boundary(network, x, y, context())
    assert near.index.tolist() == [0, 2, 3]
    torch.testing.assert_close(near.radius, torch.tensor([0.6, 0.6, 0.7999]))
    everything = DyART(search=search, use_high_quality=False).boundary(network, x, y, context())
    assert everything.index.tolist() == [0, 2, 3, 4]


def cost(radius, alpha, r0):
    """h with h(r0) = 0 and -h' = exp(-alpha*R) below r0."""
    return torch.where(radius < r0, (torch.exp(-alpha * radius) - math.exp(-alpha * r0)) / alpha, 0)


def test_gradient_is_that_of_the_mean_cost_of_the_margins():
    network, x, y = smooth_network(), grey_images(24), torch.arange(24) % 3
    method = DyART(alpha=8.0, r0=R0, lam_robust=2.0, use_high_quality=False, search=ExactLinf())

    def mean_cost():
        near = method.boundary(network, x, y, context())
        return cost(near.radius, 8.0, R0).sum().item() / len(x), near

    _, near = mean_cost()
    assert (near.radius > R0).any() and (near.radius < R0).sum() >= 3 and len(near.index) < len(x)
    assert ((near.radius - R0).abs() > 1e-3).all() and len(near.index) == near.search.found.sum()
    parameters = list(network.parameters())
    loss = method(network, Batch(x, y), context()).loss
    clean = F.cross_entropy(network(x), y)
    ours = [a - b for a, b in zip(torch.autograd.grad(loss, parameters), torch.autograd.grad(clean, parameters),
                                  strict=True)]
    generator, h = torch.Generator().manual_seed(7), 1e-5
    for _ in range(4):
        ways = [torch.randn(p.shape, dtype=p.dtype, generator=generator) for p in parameters]
        costs = []
        for step in (h, -2 * h, h):                             # there, to the other side, and back
            for parameter, way in zip(parameters, ways, strict=True):
                parameter.data += step * way
            costs.append(mean_cost()[0])
        slope = 2.0 * (costs[0] - costs[1]) / (2 * h)
        along = sum((a * way).sum() for a, way in zip(ours, ways, strict=True)).item()
        assert along == pytest.approx(slope, rel=1e-5) and abs(along) > 1e-4


def nothing_correct(golden, network):
    return network.eval()(golden["x"]).argmin(1), DyART()


def nothing_found(golden, network):
    return golden["y"], DyART(search=FAB(steps=0))


@pytest.mark.parametrize("case", [nothing_correct, nothing_found])
def test_a_batch_without_boundary_points_trains_on_cross_entropy_and_counts(golden, tinybn, case):
    y, method = case(golden, tinybn)
    tinybn.train()[1].num_batches_tracked.zero_()
    out = method(tinybn, Batch(golden["x"], y), context())
    assert tinybn[1].num_batches_tracked == 1
    parameters = list(tinybn.parameters())
    clean = F.cross_entropy(tinybn(golden["x"]), y)
    torch.testing.assert_close(out.loss, clean, rtol=1e-6, atol=0)
    for ours, theirs in zip(torch.autograd.grad(out.loss, parameters), torch.autograd.grad(clean, parameters),
                            strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
    assert out.logs["no_boundary"] == 1 and out.logs["kept"] == out.logs["radius"] == out.logs["boundary_term"] == 0
    assert out.logs["robust_estimate"] == 0 and all(value.isfinite() for value in out.logs.values())
    assert (out.logs["searched"] > 0) == (case is nothing_found)


def test_kept_points_pass_alone_and_before_the_batch(golden, tinybn):
    """In train mode, so that batch norm sees first the kept points, then all images; the search moves nothing."""
    passes = []
    tinybn.register_forward_pre_hook(lambda module, inputs: passes.append((module.training, inputs[0])))
    before = {name: value.clone() for name, value in tinybn.state_dict().items()}
    near = DyART().boundary(tinybn, golden["x"], golden["y"], context())
    assert all(torch.equal(before[name], value) for name, value in tinybn.state_dict().items())
    assert len(passes) == 42 and not any(training for training, _ in passes) and len(near.index) >= 2
    assert tinybn.training and all(parameter.requires_grad for parameter in tinybn.parameters())
    passes.clear()
    DyART()(tinybn, Batch(golden["x"], golden["y"]), context())
    training = [images for is_training, images in passes if is_training]
    assert len(passes) == 44 and all(is_training for is_training, _ in passes[-2:])
    assert len(training) == 2 and torch.equal(training[0], near.points) and torch.equal(training[1], golden["x"])
    assert tinybn[1].num_batches_tracked == before["1.num_batches_tracked"] + 2


def test_points_beyond_r0_pass_too_but_pull_nothing(golden, tinybn):
    """Their share of the batch statistics is that of the released code; without any weight CE's gradient is left."""
    batch, parameters = Batch(golden["x"], golden["y"]), list(tinybn.parameters())
    out = DyART(r0=0.0)(tinybn, batch, context())
    gradients = torch.autograd.grad(out.loss, parameters)
    clean = torch.autograd.grad(F.cross_entropy(tinybn(golden["x"]), golden["y"]), parameters)
    assert out.logs["kept"] > 0 and out.logs["boundary_term"] == 0
    for ours, theirs in zip(gradients, clean, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_sum_is_over_the_whole_batch_and_the_context_takes_the_mean(golden, tiny, drawn):
    batch = Batch(golden["x"], golden["y"])
    plain = DyART()(tiny, batch, drawn)
    halved = DyART()(tiny, batch, replace(drawn, mean=lambda values: values.mean() / 2))
    torch.testing.assert_close(halved.loss, plain.loss / 2)
    near = DyART().boundary(tiny, *batch[:2], drawn)
    phi = soft_margin(tiny(near.points), golden["y"][near.index])
    torch.testing.assert_close(plain.logs["boundary_term"], (1000 * DyART().weights(near) * -phi).sum().detach() / 16)


def test_only_the_context_is_random(golden, tiny):
    batch = Batch(golden["x"], golden["y"])
    first, again, other = (DyART()(tiny, batch, context(seed)).loss for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_checks_of_another_norm_are_refused():
    with pytest.raises(ValueError, match="L-inf"):
        DyART(search=FAB("l2"))
    assert DyART(search=FAB("l2"), use_high_quality=False).modules() == {}
