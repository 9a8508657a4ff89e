"""VGG16, MobileNetV2 and RPAT's pre-activation ResNet: sizes, options, tracing, attacks; the stem's stride; wide
ResNets by depth and width.  Their golden values are in rpat/tests/test_rpat_models.py."""

import copy

import pytest
import torch
from torch import nn

from common.attack_view import AttackView, cannot_view
from common.attacks.mode import frozen, mode
from common.errors import UserError
from common.models import build, count_parameters
from common.models.mobilenet import InvertedResidual
from common.models.preact_resnet import PreActBlock

NEW = ("vgg16", "mobilenet", "preresnet18", "resnet18-bottleneck")


@pytest.mark.parametrize("name", NEW)
@pytest.mark.parametrize(("channels", "height", "width"), [(1, 8, 8), (3, 28, 28), (3, 33, 47), (4, 64, 64)])
def test_any_size_and_channel_count(name, channels, height, width):
    model = build(name, classes=7, channels=channels, width=8).eval()
    assert model(torch.rand(2, channels, height, width)).shape == (2, 7)


@pytest.mark.parametrize("name", NEW)
@pytest.mark.parametrize("activation", ["relu", "silu"])
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_torch_fx_traces_the_forward_pass(name, activation, norm):
    torch.manual_seed(0)
    model = build(name, classes=7, width=8, activation=activation, norm=norm)
    grouped = norm == "group"
    assert grouped == (not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()))
    traced = torch.fx.symbolic_trace(model)
    x = torch.rand(4, 3, 16, 16)
    for training in (True, False):
        torch.testing.assert_close(traced.train(training)(x), model.train(training)(x))


@pytest.mark.parametrize("name", NEW)
def test_in_place_activations_change_neither_the_input_nor_the_gradients(name):
    torch.manual_seed(0)
    model = build(name, classes=7, width=8)
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


@pytest.mark.parametrize("name", NEW)
@pytest.mark.parametrize("training", [False, True])
def test_the_fast_path_of_attacks_takes_them(name, training):
    """Batch norms folded into convolutions with bias, depthwise ones and none: same logits; and after linear layers."""
    torch.manual_seed(0)
    model = build(name, classes=7, width=8)
    x = torch.rand(16, 3, 32, 32)
    for _ in range(3):
        model(torch.rand(16, 3, 32, 32))                                 # statistics that are not 0 and 1
    assert cannot_view(model) is None
    with mode(model, training=training), frozen(model):
        view = AttackView(model, training, torch.float32)
        view.refresh()
        torch.testing.assert_close(view(x), model(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", NEW)
def test_normalisation_inside_is_normalisation_outside(name):
    mean, std = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
    inside = build(name, classes=7, width=8, normalise=(mean, std)).eval()
    outside = build(name, classes=7, width=8).eval()
    state = inside.state_dict()
    assert list(state)[:2] == ["normalise.mean", "normalise.std"]
    outside.load_state_dict({name: value for name, value in state.items() if not name.startswith("normalise.")})
    x = torch.rand(2, 3, 16, 16)
    shifted = (x - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    torch.testing.assert_close(inside(x), outside(shifted))
    assert count_parameters(inside) == count_parameters(outside)


def test_every_stride_1_block_of_the_mobilenet_has_a_shortcut_and_no_other():
    blocks = [module for module in build("mobilenet", classes=10, width=8).modules()
              if isinstance(module, InvertedResidual)]
    strides = [block.conv2.stride[0] for block in blocks]
    assert strides == [1, 1, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1]
    assert [block.shortcut is not None for block in blocks] == [stride == 1 for stride in strides]
    assert [len(block.shortcut) for block in blocks if block.shortcut is not None] == \
        [2, 2, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 2]
    assert all(block.conv2.groups == block.conv2.in_channels for block in blocks)


def test_widths_of_the_mobilenet_keep_their_ratio():
    half = [conv.out_channels for conv in build("mobilenet", classes=10, width=16).modules()
            if isinstance(conv, nn.Conv2d)]
    whole = [conv.out_channels for conv in build("mobilenet", classes=10).modules() if isinstance(conv, nn.Conv2d)]
    assert [2 * channels for channels in half] == whole


def test_identity_shortcuts_of_preresnet18_carry_the_activated_input():
    """With the last convolution of a block at zero, a block is its shortcut."""
    torch.manual_seed(0)
    model = build("preresnet18", classes=7, width=8).eval()
    block, x = model.layer1[1], torch.randn(2, 8, 6, 6)
    assert isinstance(block, PreActBlock) and block.shortcut is None
    nn.init.zeros_(block.conv2.weight)
    torch.testing.assert_close(block(x), torch.relu(block.bn1(x)))
    raw = build("preactresnet18", classes=7, width=8).eval().layer1[1]
    nn.init.zeros_(raw.conv2.weight)
    torch.testing.assert_close(raw(x), x)


@pytest.mark.parametrize("name", ["resnet18", "resnet18-bottleneck", "preresnet18", "wrn-10-1"])
def test_a_stem_of_stride_2_sees_64_pixels_as_32(name):
    """Same weights, a quarter of the pixels behind the first convolution; stride 1 where nothing is said."""
    sizes = []
    for stride in (None, 1, 2):
        model = build(name, classes=7, stem_stride=stride, **({} if name.startswith("wrn") else {"width": 8})).eval()
        seen = []
        model.conv1.register_forward_hook(lambda module, given, out, seen=seen: seen.append(tuple(out.shape[2:])))
        assert model(torch.rand(2, 3, 64, 64)).shape == (2, 7)
        sizes += seen
    assert sizes == [(64, 64), (64, 64), (32, 32)]


def test_wide_resnets_by_depth_and_width():
    model = build("wrn-16-2", classes=10)
    assert len(model.block2.layer) == 2 and model.fc.in_features == 128
    assert build("wrn-10-12", classes=10).fc.in_features == 768
    assert build("wrn-10-1", classes=10, dropout=0.3)(torch.rand(2, 3, 16, 16)).shape == (2, 10)


@pytest.mark.parametrize(("name", "options", "said"), [
    ("wrn-27-10", {}, r"no model 'wrn-27-10' \(did you mean wrn-28-10"),
    ("wrn-4-10", {}, "no model 'wrn-4-10'"),
    ("wrn-28-0", {}, "no model 'wrn-28-0'"),
    ("vgg16", {"stem_stride": 2}, "vgg16 takes no stem_stride; models that take one: resnet18, .*preresnet18"),
    ("resnet18", {"stem_stride": 0}, "stem_stride is a whole number of at least 1, not 0"),
    ("mobilenet", {"dropout": 0.1}, "mobilenet has no dropout"),
    ("vgg16", {"norm": "layer"}, "choose one of batch, group"),
])
def test_what_does_not_fit_is_one_line(name, options, said):
    with pytest.raises(UserError, match=said) as caught:
        build(name, **{"classes": 10, **options})
    assert "\n" not in str(caught.value)
