"""The networks of RPAT's two parts: the released code's parameter counts, state dicts and logits.

Which of our networks stands behind a released name; the two wide ResNets' logits are held by common/tests/test_models.
"""

import pytest
import torch

from common.checkpoint import load_weights, save_state
from common.errors import UserError
from common.models import build, count_parameters
from common.tests.golden_models import DESCRIBED, check_logits, rule_state

GOLDEN_NETWORKS = [
    ("rpat/benchmarks/resnet18(10)", "resnet18-bottleneck", 10, None),
    ("rpat/benchmarks/resnet18(200,stride2)", "resnet18-bottleneck", 200, 2),
    ("rpat/benchmarks/pre_resnet18(200,64px)", "preresnet18", 200, 2),
    ("rpat/sotas/PreActResNet18(10)", "preactresnet18", 10, None),
    ("rpat/sotas/VGG16(10)", "vgg16", 10, None),
    ("rpat/sotas/MobileNetV2(10)", "mobilenet", 10, None),
]
WIDE = ("rpat/benchmarks/wrn2810(10)", "rpat/sotas/WideResNet34_10(10)")
COUNTS = {
    "resnet18-bottleneck": (176, {10: 13_958_986, 100: 14_143_396, 200: 14_348_296}),
    "resnet18": (122, {10: 11_173_962, 100: 11_220_132, 200: 11_271_432}),
    "preresnet18": (107, {10: 11_171_274, 100: 11_217_444, 200: 11_268_744}),
    "wrn-28-10": (155, {10: 36_479_194, 100: 36_536_884, 200: 36_600_984}),
    "preactresnet18": (107, {10: 11_172_170, 100: 11_218_340}),
    "wrn-34-10": (191, {10: 46_160_474, 100: 46_218_164, 200: 46_282_264}),
    "vgg16": (86, {10: 8_173_130, 100: 8_219_300}),
    "mobilenet": (344, {10: 2_296_922, 100: 2_412_212}),
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts_and_state_dict_entries(name):
    """The constants of the paper notes; a stem of stride 2 has no more of them."""
    entries, counts = COUNTS[name]
    with torch.device("meta"):
        for classes, parameters in counts.items():
            model = build(name, classes=classes)
            assert count_parameters(model) == parameters
            assert len(model.state_dict()) == entries


@pytest.mark.parametrize(("original", "name", "classes", "stem_stride"), GOLDEN_NETWORKS)
def test_the_released_names_shapes_and_logits(tmp_path, original, name, classes, stem_stride):
    """A file of the released code's names (its order is another in part 1) is read as it is and gives its logits."""
    described = DESCRIBED[original]
    model = build(name, classes=classes, stem_stride=stem_stride)
    shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert shapes == described["state_dict"]
    if original.startswith("rpat/sotas"):
        assert list(shapes) == list(described["state_dict"])
    save_state(tmp_path / "model.pth", rule_state(described["state_dict"]))
    assert not load_weights(model, tmp_path / "model.pth").renamed
    check_logits(model, original)


def test_every_golden_network_is_compared():
    assert {key for key in DESCRIBED if key.startswith("rpat/")} == {row[0] for row in GOLDEN_NETWORKS} | set(WIDE)


def test_the_stride_of_the_stem_shows_in_the_logits():
    """The golden network with a stem of stride 1 answers otherwise, so the test above would see a lost stride."""
    original = "rpat/benchmarks/pre_resnet18(200,64px)"
    model = build("preresnet18", classes=200)
    model.load_state_dict(rule_state(DESCRIBED[original]["state_dict"]))
    with pytest.raises(AssertionError):
        check_logits(model, original)


def test_a_file_of_another_class_count_or_network_is_one_line(tmp_path):
    save_state(tmp_path / "ten.pth", build("vgg16", classes=10, width=8).state_dict())
    with pytest.raises(UserError, match="has 10 classes and the model 100"):
        load_weights(build("vgg16", classes=100, width=8), tmp_path / "ten.pth")
    with pytest.raises(UserError, match="is of another network than the model"):
        load_weights(build("mobilenet", classes=10, width=8), tmp_path / "ten.pth")
