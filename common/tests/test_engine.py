"""The network that attacks see: the same function as the live one, and no trace of having been attacked."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from common.attack_view import AttackView, cannot_view
from common.engine import Engine, Runner, bf16_is_fast, find_device
from common.errors import UserError
from common.models import build
from common.models.wide_resnet import WideResNet

CPU = torch.device("cpu")
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def plain_network():
    """No batch norm, a bias in the convolution, a layer that is used twice."""
    torch.manual_seed(0)
    repeated = nn.Conv2d(4, 4, 3, padding=1)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), repeated, nn.ReLU(), repeated, nn.Flatten(), nn.LazyLinear(5))


class Odd(nn.Module):
    """What a fold must get right or leave alone: a bias before batch norm, a convolution with two readers, batch norms
    without scale or without statistics, a bare parameter and buffers that nothing reads."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6, affine=False)
        self.second = nn.Conv2d(6, 6, 3, padding=1, groups=2)
        self.read_twice = nn.BatchNorm2d(6)
        self.third = nn.Conv2d(6, 4, 3)
        self.untracked = nn.BatchNorm2d(4, track_running_stats=False)
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.unused = nn.Parameter(torch.zeros(3))
        self.register_buffer("shift", torch.tensor(0.25))
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        x = self.norm(self.first(x)).relu()
        y = self.second(x)
        x = F.silu(self.read_twice(y) + y)
        x = self.untracked(self.third(x)) * self.scale + self.shift
        return self.head(x.mean((2, 3)))


def make(name):
    torch.manual_seed(0)
    made = {"resnet18": lambda: build("resnet18", classes=5, width=8),
            "preactresnet18": lambda: build("preactresnet18", classes=5, width=8),
            "small": lambda: build("small", classes=5, width=8),
            "normalised": lambda: build("small", classes=5, width=8, normalise=((0.5, 0.4, 0.3), (0.2, 0.3, 0.25))),
            "group norm": lambda: build("small", classes=5, width=8, norm="group"),
            "wide": lambda: WideResNet(10, 1, classes=5, dropout=0.3), "plain": plain_network, "odd": Odd}[name]()
    x = torch.rand(8, 3, 12, 12)
    made.train()(x)                                      # also gives the lazy layer its shape
    with torch.no_grad():
        for module in made.modules():
            if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 2)
                if module.affine:
                    module.weight.uniform_(-1, 2)
                    module.bias.normal_(0, 0.3)
    return made.eval()


ALL = ("resnet18", "preactresnet18", "small", "normalised", "group norm", "wide", "plain", "odd")


def logits_and_gradient(model, seed=1):
    x = torch.rand(6, 3, 12, 12, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    logits = model(x)
    loss = F.cross_entropy(logits, torch.arange(6) % 5, reduction="sum")
    return logits.detach(), torch.autograd.grad(loss, x)[0]


def assert_same(first, second):
    for ours, theirs in zip(logits_and_gradient(first), logits_and_gradient(second), strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)


def viewed(network, training=False):
    view = AttackView(network, training, torch.float32)
    view.refresh()
    return view


# --- the view ---

@pytest.mark.parametrize("name", ALL)
def test_in_eval_mode_the_view_is_the_network_and_follows_it(name):
    network = make(name)
    view = viewed(network)
    assert_same(view, network)
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.is_floating_point():
                tensor.mul_(1.1).add_(0.01)
    before = view(torch.ones(1, 3, 12, 12))
    view.refresh()
    assert not torch.allclose(before, view(torch.ones(1, 3, 12, 12)))
    assert_same(view, network)


def norms_in(module):
    return sum(isinstance(inner, nn.BatchNorm2d) for inner in module.modules())


@pytest.mark.parametrize(("name", "left"), [("resnet18", 0), ("small", 0), ("preactresnet18", 9), ("odd", 2)])
def test_batch_norms_behind_a_convolution_are_folded(name, left):
    """PreActResNet-18: one of two per block stands behind a convolution that nothing else reads."""
    assert norms_in(viewed(make(name)).graph) == left


@pytest.mark.parametrize("name", [name for name in ALL if name != "wide"])
def test_in_train_mode_the_view_moves_the_live_statistics_as_the_plain_path_does(name):
    network = make(name).train()
    twin = copy.deepcopy(network)
    view = viewed(network, training=True)
    for seed in (1, 2):
        for ours, theirs in zip(logits_and_gradient(view, seed), logits_and_gradient(twin, seed), strict=True):
            torch.testing.assert_close(ours, theirs, **CLOSE)
    moved = 0
    for (key, ours), theirs in zip(network.state_dict().items(), twin.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)
        if key.endswith("num_batches_tracked"):
            moved += 1
            assert ours == theirs >= 3                   # one pass when it was made, two now
    assert moved == sum(isinstance(module, nn.BatchNorm2d) and module.running_mean is not None
                        for module in network.modules())


def test_dropout_is_active_in_train_mode_only():
    network = make("wide")
    x = torch.rand(4, 3, 12, 12)
    trained, judged = viewed(network.train(), training=True), viewed(network.eval())
    assert not torch.equal(trained(x), trained(x))
    assert torch.equal(judged(x), judged(x))


def test_the_view_owns_nothing_of_the_live_network():
    network = make("small")
    names = list(network.state_dict())
    view = viewed(network)
    assert list(network.state_dict()) == names
    assert not {id(tensor) for tensor in network.parameters()} & {id(tensor) for tensor in view.parameters()}
    assert not any(parameter.requires_grad for parameter in view.parameters())


@pytest.mark.parametrize("name", ["small", "preactresnet18"])
def test_bf16_keeps_the_sign_of_nearly_all_of_the_gradient(name):
    torch.manual_seed(0)
    network = build(name, classes=5, width=8)
    optimiser = torch.optim.SGD(network.parameters(), 0.05, 0.9)
    generator = torch.Generator().manual_seed(0)
    patterns = torch.rand(5, 3, 12, 12, generator=generator)
    for _ in range(25):
        y = torch.randint(0, 5, (32,), generator=generator)
        x = (patterns[y] * 0.7 + 0.3 * torch.rand(32, 3, 12, 12, generator=generator))
        optimiser.zero_grad()
        F.cross_entropy(network(x), y).backward()
        optimiser.step()
    network.eval()
    view = AttackView(network, False, torch.bfloat16)
    view.refresh()
    logits, exact = logits_and_gradient(network)
    rough_logits, rough = logits_and_gradient(view)
    assert rough_logits.dtype == torch.float32
    torch.testing.assert_close(rough_logits, logits, rtol=0.05, atol=0.1)
    agreed = exact.abs()[exact.sign() == rough.sign()].sum() / exact.abs().sum()
    assert agreed >= 0.97


# --- attacking ---

@pytest.fixture
def fast():
    return Engine(CPU, "bf16", channels_last=True, fast_attacks=True)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_attacking_leaves_flags_modes_and_gradients_as_they_were(training, precision):
    engine = Engine(CPU, precision, fast_attacks=precision == "bf16")
    network = engine.place(make("small").train())
    network.bn2.eval()
    network.linear.weight.requires_grad_(False)
    modes = {name: module.training for name, module in network.named_modules()}
    flags = {name: parameter.requires_grad for name, parameter in network.named_parameters()}
    statistics = network.bn1.running_mean.clone(), network.bn1.num_batches_tracked.clone()
    with engine.attacking(engine.runner(network), training) as target:
        assert isinstance(target, AttackView if precision == "bf16" else Runner)
        assert not any(parameter.requires_grad for parameter in network.parameters())
        logits, gradient = logits_and_gradient(target)
    assert logits.dtype == gradient.dtype == torch.float32 and gradient.abs().sum() > 0
    assert modes == {name: module.training for name, module in network.named_modules()}
    assert flags == {name: parameter.requires_grad for name, parameter in network.named_parameters()}
    assert all(parameter.grad is None for parameter in network.parameters())
    assert torch.equal(statistics[0], network.bn1.running_mean) is not training
    assert network.bn1.num_batches_tracked - statistics[1] == (1 if training else 0)


def test_flags_come_back_when_an_attack_fails(fast):
    network = make("small").train()
    with pytest.raises(ZeroDivisionError), fast.attacking(network, False):
        raise ZeroDivisionError
    assert network.training and all(parameter.requires_grad for parameter in network.parameters())


def test_an_attack_sees_the_weights_of_its_step(fast):
    """The view is made once and filled anew each time."""
    network, seen = make("small"), []
    x = torch.rand(2, 3, 12, 12)
    for _ in range(2):
        with fast.attacking(network, False) as view:
            seen.append((view, view(x)))
        torch.testing.assert_close(seen[-1][1], network(x).detach(), rtol=0.05, atol=0.05)
        with torch.no_grad():
            network.linear.weight.neg_()
    assert seen[0][0] is seen[1][0]
    assert (seen[0][1] - seen[1][1]).abs().max() > 0.1


def test_two_networks_and_both_modes_have_views_of_their_own(fast):
    first, second = make("small"), make("resnet18")
    views = set()
    for network in (first, second):
        for training in (False, True):
            with fast.attacking(network, training) as view:
                views.add(view)
    assert len(views) == 4 and not fast.notes


class Branching(nn.Module):
    """Control flow that depends on the values."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 5)

    def forward(self, x):
        features = x.mean((2, 3))
        return self.linear(features) if features.sum() > 0 else self.linear(-features)


def test_a_network_that_cannot_be_traced_is_attacked_as_it_is(fast):
    network = Branching()
    assert "cannot be traced" in cannot_view(network)
    for _ in range(2):
        with fast.attacking(fast.runner(network), False) as target:
            assert isinstance(target, Runner)
            logits, gradient = logits_and_gradient(target)
            torch.testing.assert_close(logits, network(torch.rand(
                6, 3, 12, 12, generator=torch.Generator().manual_seed(1))).detach(), rtol=0.05, atol=0.02)
            assert gradient.abs().sum() > 0
    assert len(fast.notes) == 1 and fast.notes[0].startswith("attacks run on the plain path: the network cannot be")
    assert fast.describe()["notes"] == fast.notes


# --- the engine ---

def test_a_runner_returns_float32_and_owns_no_state_beside_the_network(fast):
    network = fast.place(make("small"))
    assert network.conv2.weight.is_contiguous(memory_format=torch.channels_last)
    inside = []
    network.conv1.register_forward_hook(lambda module, given, out: inside.append((given[0], out.dtype)))
    x = torch.rand(2, 3, 12, 12)
    logits = fast.runner(network)(x)
    assert logits.dtype == torch.float32 and inside[0][1] == torch.bfloat16
    assert inside[0][0].is_contiguous(memory_format=torch.channels_last)
    assert set(fast.runner(network).state_dict()) == {f"network.{name}" for name in network.state_dict()}
    exact = Engine(CPU).runner(network)(x)
    assert torch.equal(exact, network(x)) and inside[1][1] == torch.float32


def test_saved_weights_do_not_depend_on_the_attacks_view(fast):
    network = fast.place(make("small"))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with fast.attacking(network, False) as view:
        view(torch.rand(2, 3, 12, 12))
    after = network.state_dict()
    assert list(before) == list(after) and all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(("device", "precision", "message"), [
    ("gpu0", "fp32", r"--device gpu0 is no device: try auto, cpu, cuda or cuda:1"),
    ("xpu", "fp32", r"--device xpu: this machine has no xpu device"),
    ("cpu", "fp16", r"--precision fp16: choose one of auto, fp32, bf16"),
])
def test_what_cannot_be_had_is_one_clear_line(device, precision, message):
    with pytest.raises(UserError, match=message):
        Engine.choose(device, precision)


def test_devices_that_are_not_here(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"--device cuda: this machine has no cuda device; --device auto takes"):
        Engine.choose("cuda")
    assert find_device("auto") == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match=r"--device cuda:2: there are 2 CUDA devices, counted from 0"):
        find_device("cuda:2")
    assert find_device("auto").type == "cuda" and find_device("cuda:1") == torch.device("cuda", 1)


@pytest.mark.parametrize(("flags", "fast"), [({"avx512_bf16"}, True), ({"amx_bf16"}, True), ({"avx512f"}, False),
                                             (set(), False)])
def test_auto_takes_bf16_where_the_processor_multiplies_it(monkeypatch, flags, fast):
    monkeypatch.setattr("common.engine.cpu_flags", lambda: flags)
    assert bf16_is_fast(CPU) is fast
    engine = Engine.choose("cpu")
    assert (engine.precision, engine.fast_attacks, engine.channels_last) == (("bf16" if fast else "fp32"), fast, fast)
    assert Engine.choose("cpu", "fp32").fast_attacks is False
    assert Engine.choose("cpu", "bf16").fast_attacks is True
