"""The networks: the originals' names, shapes, parameter counts and logits (tests/golden/models.*), and the options."""

import copy
import math

import pytest
import torch
from torch import nn

from common import models
from common.checkpoint import load_weights, save_state
from common.errors import UserError
from common.models import Normalise, build, count_parameters, names
from common.models.resnet import Bottleneck, ResNet
from common.models.wide_resnet import WideResNet
from common.tests.golden_models import DESCRIBED, check_logits, rule_state

RESNETS = ("resnet18", "resnet34", "resnet50", "preactresnet18", "preactresnet50")


@pytest.mark.parametrize(("original", "name", "classes", "dropout"), [
    ("adarat/ResNet18(10)", "resnet18", 10, None),
    ("rpat/sotas/PreActResNet18(10)", "preactresnet18", 10, None),
    ("dyart/preact-resnet18(cifar,10)", "preactresnet18", 10, None),
    ("dyart/preact-resnet18(tiny,200)", "preactresnet18", 200, None),
    ("adarat/WideResnet34_10(100)", "wrn-34-10", 100, 0.3),
    pytest.param("rpat/sotas/WideResNet34_10(10)", "wrn-34-10", 10, None, marks=pytest.mark.slow),
])
def test_the_originals_names_shapes_and_logits(original, name, classes, dropout):
    """The state dict is the original's, name by name and in its order, and so are the logits."""
    described = DESCRIBED[original]
    model = build(name, classes=classes, dropout=dropout)
    assert [(key, list(value.shape)) for key, value in model.state_dict().items()] == \
        list(described["state_dict"].items())
    assert count_parameters(model) == described["parameters"]
    model.load_state_dict(rule_state(described["state_dict"]))
    check_logits(model, original)


@pytest.mark.parametrize(("original", "make", "renamed"), [
    ("rpat/benchmarks/wrn2810(10)", lambda: build("wrn-28-10", classes=10), 2),
    ("rpat/benchmarks/resnet18(10)", lambda: ResNet(Bottleneck, (2, 2, 2, 2), classes=10), 0),
])
def test_originals_of_another_order_or_other_names_load_through_the_reader(tmp_path, original, make, renamed):
    described = DESCRIBED[original]
    model = make()
    assert count_parameters(model) == described["parameters"]
    save_state(tmp_path / "best.model", rule_state(described["state_dict"]))
    assert len(load_weights(model, tmp_path / "best.model").renamed) == renamed
    check_logits(model, original)


@pytest.mark.parametrize(("name", "classes", "parameters"), [
    ("resnet18", 10, 11_173_962), ("resnet18", 100, 11_220_132), ("resnet18", 200, 11_271_432),
    ("resnet34", 10, 21_282_122), ("resnet50", 10, 23_520_842), ("resnet101", 10, 42_512_970),
    ("preactresnet18", 10, 11_172_170), ("preactresnet18", 100, 11_218_340), ("preactresnet18", 200, 11_269_640),
    ("preactresnet34", 200, 21_377_800), ("preactresnet50", 200, 23_902_472), ("wrn-34-20", 10, 184_531_674),
    ("wrn-28-10", 10, 36_479_194), ("wrn-28-10", 100, 36_536_884), ("wrn-28-10", 200, 36_600_984),
    ("wrn-34-10", 10, 46_160_474), ("wrn-34-10", 100, 46_218_164), ("wrn-34-10", 200, 46_282_264),
])
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_parameter_counts(name, classes, parameters, norm):
    """The papers' constants; GroupNorm has as many parameters as BatchNorm."""
    with torch.device("meta"):
        assert count_parameters(build(name, classes=classes, norm=norm)) == parameters


@pytest.mark.parametrize(("classes", "parameters"), [(10, 13_958_986), (100, 14_143_396), (200, 14_348_296)])
def test_parameter_counts_of_rpats_resnet18_with_bottlenecks(classes, parameters):
    with torch.device("meta"):
        assert count_parameters(ResNet(Bottleneck, (2, 2, 2, 2), classes=classes)) == parameters


@pytest.mark.parametrize(("name", "layers", "floats"), [
    ("resnet18", 20, 9_600), ("resnet34", 36, None), ("resnet50", 53, None), ("preactresnet18", 17, 7_808),
    ("resnet101", 104, None), ("preactresnet34", 33, None), ("preactresnet50", 49, None),
    ("wrn-28-10", 25, 17_952), ("wrn-34-10", 31, 22_432), ("wrn-34-20", 31, None), ("small", 3, 320),
])
def test_batch_norm_layers_and_running_statistics(name, layers, floats):
    with torch.device("meta"):
        model = build(name, classes=10)
        grouped = build(name, classes=10, norm="group")
    assert sum(isinstance(module, nn.BatchNorm2d) for module in model.modules()) == layers
    if floats is not None:
        assert sum(value.numel() for value in model.buffers() if value.dtype == torch.float32) == floats
    assert not list(grouped.buffers())


def test_the_small_network_is_small():
    """30k to 100k parameters; a quarter of the width is under a tenth of that."""
    assert 30_000 < count_parameters(build("small", classes=10, channels=1)) < 100_000
    assert count_parameters(build("small", classes=10, channels=1, width=8)) < 6_000


def narrow_wrn(options: dict) -> WideResNet:
    normalise = options.get("normalise")
    return WideResNet(10, 1, classes=7, **{**options, "normalise": normalise and Normalise(*normalise)})


def variants() -> list:
    """Every class of network, narrow enough to run at any size."""
    makers = {name: lambda options, name=name: build(name, width=8, classes=7, **options)
              for name in (*RESNETS, "small")}
    makers["wrn"] = narrow_wrn
    return [pytest.param(make, id=name) for name, make in makers.items()]


@pytest.mark.parametrize("make", variants())
@pytest.mark.parametrize(("channels", "height", "width"), [(1, 8, 8), (3, 28, 28), (3, 33, 47), (4, 64, 64)])
def test_any_size_and_channel_count(make, channels, height, width):
    model = make({"channels": channels}).eval()
    assert model(torch.rand(2, channels, height, width)).shape == (2, 7)


@pytest.mark.parametrize("make", variants())
@pytest.mark.parametrize("activation", ["relu", "silu"])
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_torch_fx_traces_the_forward_pass(make, activation, norm):
    """The trace is the same function in both modes, so batch norm can be folded into it."""
    torch.manual_seed(0)
    model = make({"activation": activation, "norm": norm})
    traced = torch.fx.symbolic_trace(model)
    x = torch.rand(4, 3, 16, 16)
    for training in (True, False):
        torch.testing.assert_close(traced.train(training)(x), model.train(training)(x))


@pytest.mark.parametrize("make", variants())
def test_in_place_activations_change_neither_the_input_nor_the_gradients(make):
    torch.manual_seed(0)
    model = make({})
    apart = copy.deepcopy(model)
    for module in apart.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    x = torch.randn(4, 3, 16, 16)
    given = [x.clone().requires_grad_() for _ in range(2)]
    for network, images in zip((model, apart), given, strict=True):
        network(images).square().sum().backward()
    assert torch.equal(given[0], x)
    torch.testing.assert_close(given[0].grad, given[1].grad)
    for ours, theirs in zip(model.parameters(), apart.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_dropout_is_active_in_train_mode_only_and_survives_tracing():
    torch.manual_seed(0)
    model = WideResNet(10, 1, classes=5, dropout=0.3, norm="group")      # no running statistics that could move
    x = torch.rand(2, 3, 8, 8)
    for network in (model, torch.fx.symbolic_trace(model)):
        assert not torch.equal(network.train()(x), network(x))
        assert torch.equal(network.eval()(x), network(x))
    assert sum(isinstance(module, nn.Dropout) for module in model.modules()) == 3


def test_initialisation_of_wide_resnets():
    """TRADES family: convolutions N(0, 2/(k*k*out)), BN 1 and 0, last bias 0."""
    torch.manual_seed(0)
    model = WideResNet(10, 4, classes=10)
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 10_000:
            expected = math.sqrt(2 / (module.kernel_size[0] ** 2 * module.out_channels))
            assert module.weight.std().item() == pytest.approx(expected, rel=0.03)
        if isinstance(module, nn.BatchNorm2d):
            assert torch.equal(module.weight, torch.ones_like(module.weight)) and not module.bias.any()
    assert not model.fc.bias.any()


def test_initialisation_of_resnets_is_torchs_default():
    torch.manual_seed(0)
    weight = build("resnet18", classes=10, width=16).layer4[0].conv2.weight
    bound = 1 / math.sqrt(weight[0].numel())                             # kaiming_uniform with a = sqrt(5)
    assert weight.abs().max().item() == pytest.approx(bound, rel=0.01)


def test_group_norm_has_gcd_32_c_groups():
    model = build("small", classes=10, width=24, norm="group")
    assert [module.num_groups for module in (model.bn1, model.bn2)] == [8, 16]


@pytest.mark.parametrize("make", variants())
def test_normalisation_inside_is_normalisation_outside(make):
    mean, std = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
    inside = make({"normalise": (mean, std)}).eval()
    outside = make({}).eval()
    state = inside.state_dict()
    assert list(state)[:2] == ["normalise.mean", "normalise.std"]
    outside.load_state_dict({name: value for name, value in state.items() if not name.startswith("normalise.")})
    x = torch.rand(2, 3, 16, 16)
    shifted = (x - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    torch.testing.assert_close(inside(x), outside(shifted))
    assert count_parameters(inside) == count_parameters(outside)         # nothing for an optimiser to move
    torch.testing.assert_close(torch.fx.symbolic_trace(inside)(x), inside(x))


def test_build_takes_normalise_as_a_pair():
    model = build("small", classes=10, channels=1, normalise=([0.1307], [0.3081]))
    assert model.normalise.mean.shape == (1, 1, 1) and model.normalise.std.item() == pytest.approx(0.3081)


def test_the_small_network_learns_the_digits():
    """97% of held-out digits after six epochs, about a second of one core."""
    from sklearn.datasets import load_digits
    digits = load_digits()
    x, y = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16, torch.tensor(digits.target)
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(x), generator=generator)
    train, test = order[:1437], order[1437:]
    torch.manual_seed(0)
    model = build("small", classes=10, channels=1)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, total_iters=6 * 22)
    for _ in range(6):
        for batch in train[torch.randperm(len(train), generator=generator)][:22 * 64].split(64):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimiser.step()
            schedule.step()
    with torch.inference_mode():
        assert (model.eval()(x[test]).argmax(1) == y[test]).float().mean() >= 0.97


def test_names_are_those_that_build_knows():
    published = {
        "resnet18", "resnet34", "resnet50", "resnet101", "preactresnet18", "preactresnet34", "preactresnet50",
        "preactresnet101", "preactresnet18-swish", "preactresnet34-swish", "wrn-28-10", "wrn-34-10", "wrn-34-20",
        "wrn-28-10-swish", "wrn-34-10-swish", "wrn-34-20-swish", "wrn-70-16-swish"}
    assert published | {"small", "wrn-10-1-swish", "wrn-16-2-swish"} <= set(names())
    assert len(names()) == len(set(names()))
    with torch.device("meta"):
        for name in (*names(), "wrn-34-15", "wrn-94-16-swish"):
            assert build(name, classes=10)(torch.empty(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize(("name", "options", "said"), [
    ("resnet19", {}, r"no model 'resnet19' \(did you mean resnet18\?\): choose one of resnet18, .*small"),
    ("ResNet18", {}, "did you mean resnet18"),
    ("vit", {}, "choose one of resnet18"),
    ("resnet18", {"classes": 1}, "classes is a whole number of at least 2, not 1"),
    ("resnet18", {"channels": 0}, "channels is a whole number"),
    ("resnet18", {"width": 2.5}, "width is a whole number"),
    ("resnet18", {"width": True}, "width is a whole number"),
    ("resnet18", {"dropout": 0.3}, "resnet18 has no dropout; models that have it: wrn-28-10, wrn-34-10"),
    ("wrn-28-10", {"width": 16}, "wrn-28-10 takes no width.*one: resnet18"),
    ("wrn-28-10", {"dropout": 1.0}, r"dropout is a probability in \[0, 1\)"),
    ("small", {"activation": "gelu"}, "no activation 'gelu': choose one of relu, silu"),
    ("small", {"norm": "layer"}, "choose one of batch, group"),
    ("small", {"normalise": ([0.5], [0.5])}, "1 means and 1 standard deviations, the images 3 channels"),
    ("small", {"normalise": ([125.3, 123.0, 113.9], [63.0, 62.1, 66.7])}, "divide numbers of the 0..255 scale"),
    ("small", {"normalise": ([0.5] * 3, [0.5, 0.0, 0.5])}, "positive standard deviations"),
    ("small", {"normalise": 0.5}, "normalise is a pair"),
])
def test_what_does_not_fit_is_one_line(name, options, said):
    with pytest.raises(UserError, match=said) as caught:
        build(name, **{"classes": 10, **options})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("depth", [8, 27, 4])
def test_the_depth_of_a_wide_resnet_is_6n_plus_4(depth):
    with pytest.raises(ValueError, match="6\\*n"):
        WideResNet(depth, 1, classes=10)


@pytest.mark.parametrize(("name", "sizes"), [
    ("small", {"width": 10**6}), ("resnet18", {"classes": 10**12}), ("resnet18", {"width": 10**12}),
    ("vgg16", {"classes": 10**19}), ("wrn-28-5000", {}), ("wrn-10-5000-swish", {"normalise": ([0.5] * 3, [0.5] * 3)})])
def test_a_network_larger_than_the_memory_is_refused_before_it_is_made(name, sizes):
    with pytest.raises(UserError, match=r"takes (.* GB of|more) memory.*: take a smaller") as caught:
        build(name, **{"classes": 3, **sizes})
    assert caught.value.code == "E-MEMORY"


def test_looking_at_the_size_first_changes_no_number(monkeypatch):
    made = []
    for usual in (4096, 10**9):
        monkeypatch.setattr(models, "USUAL", usual)
        torch.manual_seed(1)
        made.append(build("small", classes=5000, width=4).state_dict())
    assert all(torch.equal(value, made[1][name]) for name, value in made[0].items())
