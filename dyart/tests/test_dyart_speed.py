"""The fast ways compute what the plain ones do, wait for nothing, and need no more memory.  No time is asserted."""

import copy

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from common import fit, winograd
from common.attack_view import SearchView
from common.attacks import projection
from common.attacks.projection import PROJECTIONS, project_linf
from common.benchmark import peak_bytes
from common.engine import Engine
from common.models import build
from common.types import StepContext
from dyart import bench
from dyart.boundary import FAB, searchable
from dyart.method import DyART

CPU = torch.device("cpu")


def context(seed: int = 5, engine: Engine | None = None) -> StepContext:
    return StepContext(generator=torch.Generator().manual_seed(seed), attacking=engine and engine.attacking)


def fast_engine(precision: str = "fp32") -> Engine:
    return Engine(CPU, precision, channels_last=True, fast_attacks=True)


# --- 3x3 convolutions with fewer products ---

@pytest.mark.parametrize(("images", "channels", "outputs", "height", "width"),
                         [(1, 1, 1, 4, 4), (3, 5, 7, 8, 12), (9, 16, 8, 16, 16), (40, 33, 40, 4, 4)])
def test_winograd_is_the_convolution_and_its_gradient(images, channels, outputs, height, width, monkeypatch):
    monkeypatch.setattr(winograd, "CHUNK", 36 * channels * height * width // 4)     # several chunks, the last one short
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(images, channels, height, width, generator=generator)
    weight = torch.randn(outputs, channels, 3, 3, generator=generator) / (3 * channels ** 0.5)
    bias, upstream = torch.randn(outputs, generator=generator), torch.randn(images, outputs, height, width,
                                                                            generator=generator)

    def both(x, run):
        x = x.clone().requires_grad_()
        out = run(x)
        return out.detach(), *torch.autograd.grad(out, x, upstream.to(x.dtype))

    exact = both(x.double(), lambda x: F.conv2d(x, weight.double(), bias.double(), padding=1))
    for given in (x, x.contiguous(memory_format=torch.channels_last)):
        found = both(given, lambda x: winograd.Winograd.apply(x, winograd.transformed(weight), bias))
        for ours, theirs in zip(found, exact, strict=True):
            assert (ours - theirs).abs().max() < 2e-5 * theirs.abs().max()


def test_which_convolutions_are_taken_and_when():
    wide = nn.Conv2d(96, 96, 3, padding=1, bias=False)
    assert winograd.suits(wide)
    for other in (nn.Conv2d(95, 96, 3, padding=1), nn.Conv2d(96, 95, 3, padding=1), nn.Conv2d(96, 96, 3),
                  nn.Conv2d(96, 96, 3, padding=1, stride=2), nn.Conv2d(96, 96, 5, padding=1), nn.Linear(96, 96),
                  nn.Conv2d(96, 96, 3, padding=1, groups=2), nn.Conv2d(96, 96, 3, padding=1, dilation=2),
                  nn.Conv2d(96, 96, 3, padding=1, padding_mode="circular")):
        assert not winograd.suits(other)
    stand_in = winograd.Convolution(wide.requires_grad_(False))
    x = torch.randn(2, 96, 8, 8)
    assert torch.equal(stand_in(x), wide(x))                         # nothing is transformed yet
    stand_in.take()
    assert not torch.equal(stand_in(x), wide(x))
    torch.testing.assert_close(stand_in(x), wide(x), rtol=0, atol=1e-4)
    for odd in (x[:, :, :6], x[:, :, :, :6], x[:0]):
        assert torch.equal(stand_in(odd), wide(odd))
    stand_in.drop()
    assert stand_in.filters is None


# --- the network that is searched ---

def test_the_search_sees_a_fast_copy_in_float32_that_follows_the_network():
    torch.manual_seed(0)
    network, x = build("resnet18", classes=5, width=24), torch.rand(4, 3, 16, 16)
    with torch.no_grad():
        network.train()(x)
    engine = fast_engine("bf16")
    runner = engine.runner(engine.place(network))
    for _ in range(2):
        with searchable(runner, fast=True) as view, searchable(runner) as plain:
            assert isinstance(view, SearchView) and plain is network and not view.graph.training
            assert len(view.wide) == 6 and all(each.filters is not None for each in view.wide)
            assert not any(isinstance(module, nn.BatchNorm2d) for module in view.graph.modules())
            found, exact = view(x), plain(x)
            assert found.dtype == torch.float32
            torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-5 * exact.abs().max().item())
        assert all(each.filters is None for each in view.wide) and network.training
        with torch.no_grad():
            network.layer3[0].conv2.weight.mul_(1.5)
            network.layer4[1].bn1.running_mean.add_(0.1)
    with engine.attacking(runner) as attacked, searchable(runner, fast=True) as view:
        assert isinstance(view, SearchView) and not isinstance(attacked, SearchView)
    with searchable(network, fast=True) as plain:
        assert plain is network                                      # without an engine
    with searchable(Engine(CPU, "bf16").runner(network), fast=True) as plain:
        assert plain is network                                      # and where it has no fast path


@pytest.fixture(scope="module")
def on_digits():
    """A network of wide convolutions, trained on digits; images that it has not seen."""
    digits = load_digits()
    x = torch.from_numpy(digits.images).float()[:, None] / 16
    y = torch.from_numpy(digits.target).long()
    torch.manual_seed(1)
    network = build("resnet18", classes=10, channels=1, width=16)
    optimiser = fit.SGD().build(network)
    fit.set_hyper(optimiser, 0.05, 0.9)
    for step in range(40):
        rows = torch.randint(0, 1400, (64,), generator=torch.Generator().manual_seed(step))
        loss = F.cross_entropy(network(x[rows]), y[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return network, x[1400:1528], y[1400:1528]


def test_on_digits_the_fast_search_keeps_the_same_points(on_digits, monkeypatch):
    monkeypatch.setattr(winograd, "FEWEST_CHANNELS", 16)
    network, x, y = on_digits
    engine, method = fast_engine("bf16"), DyART()
    runner = engine.runner(engine.place(copy.deepcopy(network)))
    fast = method.boundary(runner, x, y, context())
    assert len(engine._views) == 1                                   # the fast copy is what was searched
    plain = method.boundary(network, x, y, context())
    with searchable(runner, fast=True) as view:
        assert len(view.wide) >= 6
    share = len(plain.index) / len(x)
    assert share > 0.5 and abs(len(fast.index) / len(x) - share) <= 0.01
    mine, theirs = (torch.full((len(x),), torch.nan).index_copy(0, near.index, near.radius) for near in (fast, plain))
    apart = ((mine - theirs).abs() / theirs)[~(mine - theirs).isnan()]
    assert apart.median() < 1e-4 and apart.quantile(0.9) < 1e-2 and abs((mine.nanmean() / theirs.nanmean()) - 1) < 1e-3


# --- the original's way ---

def test_sorting_gives_the_same_projections():
    generator = torch.Generator().manual_seed(3)
    z, w = torch.rand(40, 300, generator=generator), torch.randn(40, 300, generator=generator)
    w[:, ::7] = 0
    share = torch.linspace(0, 1.2, 40)[:, None]                      # the last ones are out of reach
    b = ((z + share * ((w > 0).float() - z)) * w).sum(1)
    torch.testing.assert_close(bench.project_by_sorting(z, w, b), project_linf(z, w, b), rtol=1e-4, atol=2e-5)


def both_ways(engine, network, method):
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1
    sgd = fit.SGD(nesterov=True)
    made = [kind(twin, sgd.build(twin), method, *rest) for kind, twin, rest in (
        (bench.Originals, copy.deepcopy(network), ()), (bench.Ours, copy.deepcopy(network), (engine,)))]
    for way in made:
        fit.set_hyper(way.optimiser, 0.1, 0.9)
    return made


def test_both_ways_find_the_same_points_and_take_the_same_step(golden, tinybn):
    x, y = golden["x"], golden["y"]
    theirs, ours = both_ways(Engine(CPU), tinybn.train(), DyART())
    index, points, gradient, radius = theirs.boundary(x, y, theirs.method.search.start(x, context()))
    near = ours.method.boundary(ours.runner, x, y, context())
    assert torch.equal(index, near.index) and len(index) > 2
    for one, two in ((points, near.points), (gradient, near.gradient), (radius, near.radius)):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-5)
    for way in (theirs, ours):
        way.step(x, y, context())
    moved = 0.0
    for (name, one), two in zip(theirs.network.state_dict().items(), ours.network.state_dict().values(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4, msg=name)
        moved = max(moved, (one - tinybn.state_dict()[name]).abs().max().item())
    assert moved > 1e-3


def test_rows_are_projected_alike_whatever_rows_go_with_them(monkeypatch):
    generator = torch.Generator().manual_seed(4)
    z, w = torch.rand(7, 3, 5, 5, generator=generator), torch.randn(7, 3, 5, 5, generator=generator)
    b = (w * z).flatten(1).sum(1) - 1
    for project in PROJECTIONS.values():
        monkeypatch.setattr(projection, "CHUNK", 10 ** 6)
        together = project(z, w, b)
        monkeypatch.setattr(projection, "CHUNK", 2 * 75)
        assert torch.equal(project(z, w, b), together) and together.shape == z.shape
        monkeypatch.setattr(projection, "CHUNK", 1)
        assert torch.equal(project(z, w, b), together) and project(z[:0], w[:0], b[:0]).shape == (0, 3, 5, 5)


# --- what the search may ask of a device ---

class Asked(TorchDispatchMode):
    """The operators that are called."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def test_an_iteration_neither_waits_for_the_device_nor_looks_twice(golden, tiny, monkeypatch):
    """On a device that is not a CPU no number is read: the loop over rounds has no break there."""
    index = golden["dyart/fab_correct_index"]
    x, y = golden["x"][index], golden["y"][index]
    monkeypatch.setattr(torch, "equal", lambda *_: False)            # the only question that is asked on a CPU alone
    looks = []

    def function(points, rows):
        looks.append(len(points))
        return tiny(points).gather(1, rows[:, None]).squeeze(1) - 0.1

    with Asked() as asked:
        FAB(steps=3).from_start(function, x, y, x)
    assert looks == [len(x)] * 6
    assert not [name for name in asked.names if "_local_scalar_dense" in name or "nonzero" in name]
    assert any("minimum" in name for name in asked.names)


def test_memory_of_tensors_is_counted():
    def block():
        first = torch.zeros(1000, 1000)
        second = first + 1
        del first
        return second * 2

    assert peak_bytes(CPU, block) == pytest.approx(8e6, rel=0.01)


def test_a_search_needs_less_memory_than_one_and_a_half_training_steps():
    settings = bench.Settings(batch=16, rounds=1, iterations=6, learn=10, width=8, matrix=32)
    row, = bench.measure_step(settings, fast_engine())
    assert 0 < row["search_peak_bytes"] < 1.5 * row["training_peak_bytes"]
    assert row["searched"] > 0.3 and row["kept"] > 0.1
    assert row["ours"]["peak_bytes"] == max(row["search_peak_bytes"], row["training_peak_bytes"])
    assert row["originals"]["peak_bytes"] > 0 and row["ours"]["share_of_matrix_rate"] > 0


def test_the_useful_passes_of_a_step_are_those_that_it_cannot_do_without():
    nothing = {"searched": 0.0, "found": 0.0, "kept": 0.0}
    assert bench.useful_passes(20, nothing) == 1 + 3                    # phi of all, and clean training
    assert bench.useful_passes(20, {"searched": 1.0, "found": 1.0, "kept": 1.0}) == 1 + 20 * (1 + 1 + 1) + 2 + 3 + 3
