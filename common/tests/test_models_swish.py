"""The swish networks against the same functions written straight from their state dicts, and what else holds for them.

The golden logits of wrn-28-10-swish are in dyart/tests/test_dyart_models.py.
"""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.attack_view import AttackView
from common.checkpoint import load_weights, save_state
from common.errors import UserError
from common.models import build, count_parameters
from common.models.swish import PadSame, SwishWideResNet, conv3x3_same

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
SMALL = [("wrn-10-1-swish", {}), ("wrn-16-2-swish", {}), ("preactresnet18-swish", {"width": 8}),
         ("preactresnet34-swish", {"width": 4})]


def lively(name: str, seed: int = 0, **options) -> nn.Module:
    """A network in eval mode whose norm layers, statistics too, are far from one and zero."""
    torch.manual_seed(seed)
    model = build(name, **{"classes": 5, **options})
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if key.endswith("running_var") or (value.dim() == 1 and key.endswith("weight")):
                value.uniform_(0.5, 1.5)
            elif key.endswith(("running_mean", "bias")):
                value.normal_(0, 0.3)
    return model.eval()


def images(height: int = 16, width: int = 16, batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


# -------------------------------------------------------------------------------- the originals' functions, spelled out

PADDING = {1: (1, 1, 1, 1), 2: (0, 1, 0, 1)}


def straight(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """What a state dict of the family computes in eval mode, layer by layer, for sides divisible by 8."""

    def activated(x: Tensor, name: str) -> Tensor:
        norm = [state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        x = F.batch_norm(x, *norm, training=False)
        return x * torch.sigmoid(x)

    def block(x: Tensor, name: str, stride: int, wide: bool) -> Tensor:
        first, second = ("conv_0", "conv_1") if wide else ("conv_2d_1", "conv_2d_2")
        inner = activated(x, f"{name}.batchnorm_0")
        skip = x
        if (weight := state.get(f"{name}.shortcut.weight")) is not None:
            skip = F.conv2d(inner, weight, stride=stride) if wide else \
                F.conv2d(F.pad(x, PADDING[stride]), weight, stride=stride)
        out = F.conv2d(F.pad(inner, PADDING[stride]), state[f"{name}.{first}.weight"], stride=stride)
        out = activated(out, f"{name}.batchnorm_1")
        return skip + F.conv2d(F.pad(out, PADDING[1]), state[f"{name}.{second}.weight"])

    wide = "init_conv.weight" in state
    stem, stage = ("init_conv.weight", "layer.{}.block.{}") if wide else ("conv_2d.weight", "layer_{}.{}")
    x = (x - state["normalise.mean"]) / state["normalise.std"]
    x = F.conv2d(F.pad(x, PADDING[1]), state[stem])
    for i in range(3 if wide else 4):
        j = 0
        while f"{stage.format(i, j)}.batchnorm_0.weight" in state:
            x = block(x, stage.format(i, j), 2 if i > 0 and j == 0 else 1, wide)
            j += 1
    x = activated(x, "batchnorm").mean((2, 3))
    return x @ state["logits.weight"].T + state["logits.bias"]


@pytest.mark.parametrize(("name", "options"), SMALL)
@pytest.mark.parametrize("side", [(8, 8), (32, 24)])
def test_logits_and_input_gradients_are_those_of_the_function_spelled_out(name, options, side):
    model = lively(name, normalise=(MEAN, STD), **options)
    found = []
    for function in (model, lambda x: straight(model.state_dict(), x)):
        x = images(*side).requires_grad_()
        logits = function(x)
        found.append((logits, torch.autograd.grad(logits[:, 0].sum() + logits.square().sum(), x)[0]))
    for ours, reference in zip(*found, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-5 * reference.abs().max().item())


def test_stride_2_pads_right_and_bottom_only():
    """A light in the top left corner reaches the output through the first weight alone, one in the bottom right through
    the middle; with the usual padding it would be the middle and the last."""
    convolution = conv3x3_same(1, 1, 2)
    convolution.weight.data = torch.arange(1.0, 10.0).view(1, 1, 3, 3)
    corner, last = torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)
    corner[..., 0, 0], last[..., 3, 3] = 1, 1
    assert convolution(PadSame()(corner)).flatten().tolist() == [1, 0, 0, 0]
    assert convolution(PadSame()(last)).flatten().tolist() == [0, 0, 0, 5]


@pytest.mark.parametrize(("height", "width"), [(7, 8), (8, 7), (9, 5)])
def test_odd_sides_are_padded_as_tensorflow_does(height, width):
    """Both ends get one zero where the side is odd; (ceil(H/2), ceil(W/2)) comes out, as of a 1x1 shortcut."""
    convolution = conv3x3_same(2, 3, 2)
    x = torch.rand(1, 2, height, width)
    left, top = width % 2, height % 2
    reference = F.conv2d(F.pad(x, (left, 1, top, 1)), convolution.weight, stride=2)
    assert torch.equal(convolution(PadSame()(x)), reference)
    assert reference.shape[2:] == (math.ceil(height / 2), math.ceil(width / 2))
    if height % 2 and width % 2:
        torch.testing.assert_close(reference, F.conv2d(x, convolution.weight, stride=2, padding=1))


@pytest.mark.parametrize(("name", "options"), SMALL)
@pytest.mark.parametrize(("channels", "height", "width"), [(1, 8, 8), (3, 28, 28), (3, 33, 47), (4, 64, 64)])
def test_any_size_and_channel_count(name, options, channels, height, width):
    model = build(name, classes=7, channels=channels, **options).eval()
    assert model(torch.rand(2, channels, height, width)).shape == (2, 7)


# -------------------------------------------------------------------------------------------------------- the options

@pytest.mark.parametrize(("name", "options"), SMALL)
def test_batch_norm_has_momentum_001_and_group_norm_the_same_names(name, options):
    model, grouped = (build(name, classes=5, norm=norm, **options) for norm in ("batch", "group"))
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {module.momentum for module in norms} == {0.01}
    assert [key for key, _ in model.named_parameters()] == [key for key, _ in grouped.named_parameters()]
    assert count_parameters(model) == count_parameters(grouped) and not list(grouped.buffers())
    groups = [module for module in grouped.modules() if isinstance(module, nn.GroupNorm)]
    assert len(groups) == len(norms)
    assert all(module.num_groups == math.gcd(32, module.num_channels) and module.eps == 1e-5 for module in groups)


def test_other_networks_keep_momentum_01():
    for name in ("resnet18", "preactresnet50", "small"):
        assert {module.momentum for module in build(name, classes=5, width=4).modules()
                if isinstance(module, nn.BatchNorm2d)} == {0.1}


def test_initialisation():
    """The wide ones: convolutions N(0, 2/(k*k*out)), norm layers 1 and 0, last bias 0.  PreAct: torch's default."""
    torch.manual_seed(0)
    model = SwishWideResNet(10, 4, classes=10)
    checked = 0
    for key, value in model.named_parameters():
        if value.dim() == 4 and value.numel() > 8_000:
            checked += 1
            assert value.std().item() == pytest.approx(math.sqrt(2 / (value[0, 0].numel() * len(value))), rel=0.05), key
        if "batchnorm" in key:
            assert torch.equal(value, torch.full_like(value, float(key.endswith("weight"))))
    assert checked == 8 and not model.logits.bias.any() and model.logits.weight.std() > 0.01
    weight = build("preactresnet18-swish", classes=10, width=16).layer_3[0].shortcut.weight
    assert weight.abs().max().item() == pytest.approx(1 / math.sqrt(weight[0].numel()), rel=0.01)


@pytest.mark.parametrize(("name", "options", "said"), [
    ("wrn-28-10-swish", {"activation": "relu"}, "takes no activation, it is in its name; models that take one: resnet"),
    ("wrn-28-10-swish", {"width": 16}, "takes no width, it is in its name"),
    ("wrn-28-10-swish", {"dropout": 0.3}, "has no dropout"),
    ("preactresnet18-swish", {"activation": "silu"}, "takes no activation"),
    ("preactresnet18-swish", {"norm": "layer"}, "choose one of batch, group"),
    ("wrn-28-10-silu", {}, "did you mean wrn-28-10"),
])
def test_what_does_not_fit_is_one_line(name, options, said):
    with pytest.raises(UserError, match=said) as caught:
        build(name, classes=10, **options)
    assert "\n" not in str(caught.value)


def test_the_depth_is_6n_plus_4():
    for depth in (4, 8, 27):
        with pytest.raises(ValueError, match="6\\*n"):
            SwishWideResNet(depth, 1, classes=10)


# --------------------------------------------------------------------------------------------- tracing and attack views

@pytest.mark.parametrize(("name", "options"), SMALL)
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_torch_fx_traces_the_forward_pass_for_every_size(name, options, norm):
    model = build(name, classes=5, norm=norm, normalise=(MEAN, STD), **options)
    traced = torch.fx.symbolic_trace(model)
    for training in (True, False):
        for side in ((16, 16), (11, 14)):
            torch.testing.assert_close(traced.train(training)(images(*side)), model.train(training)(images(*side)))


@pytest.mark.parametrize(("name", "options", "left"), [
    ("wrn-10-1-swish", {}, 4), ("wrn-16-2-swish", {}, 6), ("preactresnet18-swish", {"width": 8}, 9)])
@pytest.mark.parametrize("training", [False, True])
def test_a_float32_view_is_the_network(name, options, left, training):
    """In eval mode the second norm of each block is folded into the convolution behind the padding, and the first of
    all into the stem unless a shortcut reads that too; in train mode the live statistics move."""
    model = lively(name, normalise=(MEAN, STD), **options).train(training)
    twin = copy.deepcopy(model)
    view = AttackView(model, training, torch.float32)
    view.refresh()
    norms, all_norms = (sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())
                        for network in (view.graph, model))
    assert norms == (all_norms if training else left)
    found = []
    for network in (view, twin):
        x = images(batch=4).requires_grad_()
        logits = network(x)
        found.append((logits, torch.autograd.grad(F.cross_entropy(logits, torch.arange(4)), x)[0]))
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)
    for (key, ours), theirs in zip(model.state_dict().items(), twin.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=key)


@pytest.mark.parametrize(("name", "options"), [("wrn-10-1-swish", {}), ("preactresnet18-swish", {"width": 8})])
def test_a_bf16_view_keeps_logits_and_nearly_all_of_the_gradient(name, options):
    torch.manual_seed(0)
    model = build(name, classes=5, normalise=(MEAN, STD), **options)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1                        # 25 batches are few for 0.01
    optimiser = torch.optim.SGD(model.parameters(), 0.05, 0.9)
    generator = torch.Generator().manual_seed(0)
    patterns = torch.rand(5, 3, 16, 16, generator=generator)
    for _ in range(25):
        y = torch.randint(0, 5, (32,), generator=generator)
        x = patterns[y] * 0.7 + 0.3 * torch.rand(32, 3, 16, 16, generator=generator)
        optimiser.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimiser.step()
    view = AttackView(model.eval(), False, torch.bfloat16)
    view.refresh()
    found = []
    for network in (model, view):
        x = patterns.clone().requires_grad_()
        logits = network(x)
        loss = F.cross_entropy(logits, (torch.arange(5) + 1) % 5, reduction="sum")
        found.append((logits.detach(), torch.autograd.grad(loss, x)[0]))
    (logits, exact), (rough_logits, rough) = found
    assert rough_logits.dtype == torch.float32
    torch.testing.assert_close(rough_logits, logits, rtol=0.05, atol=0.1)
    assert exact.abs()[exact.sign() == rough.sign()].sum() / exact.abs().sum() >= 0.97


# -------------------------------------------------------------------------------------------------- RobustBench's files

@pytest.mark.parametrize(("name", "options"), SMALL[1:3])
@pytest.mark.parametrize("prefix", ["", "module.", "module.0."])
def test_files_of_robustbench_load_with_their_normalisation(tmp_path, name, options, prefix):
    """DMWideResNet, DMPreActResNet: our names, but for `mean` and `std`, buffers of shape (3,1,1)."""
    model = lively(name, seed=1, normalise=(MEAN, STD), **options)
    state = {f"{prefix}{key.removeprefix('normalise.')}": value for key, value in model.state_dict().items()}
    save_state(tmp_path / "a.pt", state)
    other = lively(name, seed=2, normalise=((0.5,) * 3, (0.5,) * 3), **options)
    report = load_weights(other, tmp_path / "a.pt")
    assert torch.equal(other(images()), model(images())) and set(report.renamed) == {"mean", "std"}
    with pytest.raises(UserError, match=r"build it with normalise=\(\[0.4914, 0.4822, 0.4465\], \[0.2471"):
        load_weights(build(name, classes=5, **options), tmp_path / "a.pt")


def test_files_without_the_normalisation_leave_the_models_own(tmp_path):
    """The published files of Gowal et al. and DyART's preact-resnet*-swish hold none: it stands in their code."""
    model = lively("preactresnet18-swish", seed=1, width=4, normalise=(MEAN, STD))
    save_state(tmp_path / "a.pt", {key: value for key, value in model.state_dict().items() if key[:9] != "normalise"})
    other = lively("preactresnet18-swish", seed=2, width=4, normalise=(MEAN, STD))
    assert "the model keeps its own" in str(load_weights(other, tmp_path / "a.pt"))
    assert torch.equal(other(images()), model(images()))
