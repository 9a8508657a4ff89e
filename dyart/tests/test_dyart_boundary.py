"""FAB: the released code's values, a reference image by image, and models whose boundary is known."""

import math

import pytest
import torch

from common.attacks import PGD
from common.engine import Engine
from common.types import StepContext
from dyart.boundary import FAB, network_of, searchable, value_and_gradient
from dyart.method import soft_margin
from dyart.tests.references import by_sorting, size

NORMS = ("linf", "l2")


def context(seed: int = 5) -> StepContext:
    return StepContext(generator=torch.Generator().manual_seed(seed))


def golden_search(golden, network, **options):
    index, x = golden["dyart/fab_correct_index"], golden["x"]
    noise = 2 * golden["dyart/fab_rand"] - 1
    start = (x[index] + 4 / 255 * noise / noise.abs().amax((1, 2, 3), keepdim=True)).clamp(0, 1)
    return FAB(**options).from_start(lambda x, y: soft_margin(network(x), y), x[index], golden["y"][index], start)


def test_search_of_the_released_code(golden, tiny):
    points, found = golden_search(golden, tiny)
    assert torch.equal(found, golden["dyart/fab_success"])
    theirs = golden["dyart/fab_adv"]
    torch.testing.assert_close(points, theirs[golden["dyart/fab_correct_index"]], rtol=0, atol=2e-6)


def test_search_of_the_released_code_on_the_fast_path(golden, tiny):
    """What a bf16 engine searches on: the same network in float32, prepared for it."""
    engine = Engine(torch.device("cpu"), "bf16", channels_last=True, fast_attacks=True)
    with engine.searching(engine.place(tiny)) as network:
        assert network is not tiny
        points, found = golden_search(golden, network)
    assert torch.equal(found, golden["dyart/fab_success"])
    torch.testing.assert_close(points, golden["dyart/fab_adv"][golden["dyart/fab_correct_index"]], rtol=0, atol=5e-5)


def test_start_and_choice_of_images_of_the_released_code(golden, tiny):
    index = golden["dyart/fab_correct_index"]

    class Drawn(StepContext):
        def uniform(self, like):
            return torch.full_like(like, 0.3).index_copy(0, index, golden["dyart/fab_rand"])

    search = FAB()(lambda x, y: soft_margin(tiny(x), y), golden["x"], golden["y"], Drawn(generator=None))
    assert torch.equal(search.index, index) and torch.equal(search.found, golden["dyart/fab_success"])
    torch.testing.assert_close(golden["x"].index_copy(0, index, search.points), golden["dyart/fab_adv"],
                               rtol=0, atol=2e-6)
    value = soft_margin(tiny(golden["x"]), golden["y"])
    assert torch.equal(search.value, value[index]) and (value[index] > 0).all() and (value > 0).sum() == len(index)


def one_by_one(function, x, y, start, norm, steps=20):
    """FAB for one image x (1,...), written out: alpha its own, projections by sorting."""
    x1, best, at = start, math.inf, x
    for _ in range(steps):
        value, w = value_and_gradient(function, x1, y)
        b = (w * x1).sum()[None] - value
        d1, d2 = (by_sorting(p.flatten(1), w.flatten(1), b, norm).view_as(x) for p in (x1, x))
        a1, a2 = max(size(d1, norm).item(), 1e-8), max(size(d2, norm).item(), 1e-8)
        alpha = min(a1 / (a1 + a2), 0.1)
        x1 = ((1 - alpha) * (x1 + 1.05 * d1) + alpha * (x + 1.05 * d2)).clamp(0, 1)
        if function(x1, y).item() < 0:
            if size(x1 - x, norm).item() < best:
                best, at = size(x1 - x, norm).item(), x1
            x1 = x + 0.9 * (x1 - x)
    return at


@pytest.mark.parametrize("norm", NORMS)
def test_without_the_quirk_each_image_has_its_own_alpha(golden, tiny, norm):
    tiny = tiny.double()
    index = golden["dyart/fab_correct_index"]
    x, y = golden["x"][index].double(), golden["y"][index]

    def phi(x, y):
        return soft_margin(tiny(x), y)

    start = (x + FAB(norm).start(x.float(), context()) - x.float()).clamp(0, 1)
    points, found = FAB(norm, shared_alpha=False).from_start(phi, x, y, start)
    wanted = torch.cat([one_by_one(phi, x[i:i + 1], y[i:i + 1], start[i:i + 1], norm) for i in range(len(x))])
    torch.testing.assert_close(points, wanted, rtol=0, atol=1e-9)
    assert found.all()
    quirk, _ = FAB(norm).from_start(phi, x, y, start)
    torch.testing.assert_close(quirk[:1], wanted[:1], rtol=0, atol=1e-9)           # the first has its own either way
    assert (quirk - wanted).abs().max() > 1e-4


def linear(seed: int = 2, images: int = 32, pixels: int = 48):
    """f(x) = <w,x> - b on images that are mostly away from the bounds, all on the right side, with its boundary."""
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(1, 3, pixels // 12, 4, generator=generator)
    x = 0.2 + 0.6 * torch.rand(images, *w.shape[1:], generator=generator)
    b = (w * x).sum((1, 2, 3)) - 0.2 - torch.rand(images, generator=generator)
    return w, b, x, (lambda points, rows: (w * points).sum((1, 2, 3)) - b[rows])


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shared_alpha", [True, False])
def test_on_a_linear_model_the_closest_point_is_found(norm, shared_alpha):
    w, b, x, function = linear()
    rows = torch.arange(len(x))
    search = FAB(norm, shared_alpha=shared_alpha)(function, x, rows, context())
    exact = size(by_sorting(x.flatten(1), w.flatten(1).expand(len(x), -1), b, norm), norm)
    closed_form = function(x, rows) / (w.abs().sum() if norm == "linf" else w.norm())
    torch.testing.assert_close(exact, closed_form, rtol=1e-4, atol=1e-6)           # no pixel of these meets its bound
    reached, value = size(search.points - x, norm), function(search.points, rows)
    assert search.found.all() and torch.equal(search.index, rows)
    assert (value < 0).all() and (value > -0.06 * function(x, rows)).all()
    assert (reached >= exact * (1 - 1e-5)).all() and (reached <= 1.06 * exact).all()


def test_points_are_closer_than_those_of_pgd():
    w, b, x, function = linear()
    rows = torch.arange(len(x))
    search = FAB(shared_alpha=False)(function, x, rows, context())

    class Two(torch.nn.Module):
        """Two logits whose margin is the linear function."""

        def forward(self, points):
            return torch.stack([(w * points).sum((1, 2, 3)) - b, torch.zeros(len(points))], 1)

    nearest = torch.full((len(x),), torch.inf)
    for eps in (4 / 255, 8 / 255, 16 / 255, 32 / 255):
        adversarial = PGD(eps, eps / 4, 10)(Two(), x, torch.zeros_like(rows), context())
        wrong = function(adversarial, rows) < 0
        nearest = torch.where(wrong, size(adversarial - x, "linf").minimum(nearest), nearest)
    ratio = (size(search.points - x, "linf") / nearest)[nearest.isfinite()]
    assert len(ratio) > 20 and ratio.mean() < 0.85
    # Where PGD's eps happens to be the margin itself, it may be ahead by what FAB steps over the plane.
    assert (ratio < 1.06).all() and (ratio < 1).float().mean() > 0.8


def test_images_without_success_come_back_and_wrong_ones_are_not_searched():
    def function(x, y):                                    # rises everywhere: no way across inside the box
        asked.append(len(x))
        return torch.where(y == 0, -1.0, x.flatten(1).sum(1) + 1)

    asked: list[int] = []
    x, y = torch.full((4, 1, 2, 2), 0.5), torch.tensor([0, 1, 0, 1])
    search = FAB(steps=3)(function, x, y, context())
    assert search.index.tolist() == [1, 3] and not search.found.any() and torch.equal(search.points, x[[1, 3]])
    assert asked == [4] + [2] * 6
    nothing = FAB()(function, x, torch.zeros_like(y), context())
    assert len(nothing.index) == len(nothing.found) == 0 and nothing.points.shape == (0, 1, 2, 2)


@pytest.mark.parametrize("norm", NORMS)
def test_start_is_half_of_eps_away_and_belongs_to_the_image_alone(norm):
    x = torch.full((6, 3, 4, 4), 0.5)
    start = FAB(norm, eps=0.2).start(x, context())
    torch.testing.assert_close(size(start - x, norm), torch.full((6,), 0.1), rtol=1e-5, atol=1e-6)
    assert len(start.unique(dim=0)) == 6 and torch.equal(start, FAB(norm, eps=0.2).start(x, context()))
    assert not torch.equal(start, FAB(norm, eps=0.2).start(x, context(6)))
    assert FAB(norm, eps=9.0).start(x, context()).aminmax() == (0.0, 1.0) or norm == "l2"


def test_the_search_sees_the_plain_network_and_leaves_it_as_it_was(tinybn, golden):
    runner = Engine(torch.device("cpu"), "bf16").runner(tinybn)
    before = {name: value.clone() for name, value in tinybn.state_dict().items()}
    tf32 = torch.backends.cudnn.allow_tf32
    with searchable(runner) as network:
        assert network is tinybn is network_of(runner) and not network.training
        assert not any(parameter.requires_grad for parameter in network.parameters())
        assert not torch.backends.cudnn.allow_tf32
        logits = network(golden["x"])
        assert logits.dtype == torch.float32 and not torch.equal(logits, runner(golden["x"]))
    assert tinybn.training and all(parameter.requires_grad for parameter in tinybn.parameters())
    assert torch.backends.cudnn.allow_tf32 == tf32
    assert all(torch.equal(before[name], value) for name, value in tinybn.state_dict().items())


def test_unknown_norms_and_negative_numbers_are_refused():
    for options in ({"norm": "l1"}, {"steps": -1}, {"eps": -0.1}, {"eps": math.nan}):
        with pytest.raises(ValueError):
            FAB(**options)
