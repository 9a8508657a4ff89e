"""DyART's networks: the paper's table of constants, the golden state dict and logits, and the files of the original."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.checkpoint import load_weights, save_state, save_tree
from common.errors import UserError
from common.models import build, count_parameters
from common.tests.golden_models import DESCRIBED, check_logits, rule_state
from dyart.settings import NORMALIZE, SWISH

WRN = "dyart/wrn-28-10-swish(cifar10)"
PAIR = SWISH["cifar10"]


def small(seed: int = 1, **options) -> nn.Module:
    """A network of the default's family; no two seeds agree in an entry, running statistics included."""
    torch.manual_seed(seed)
    model = build("wrn-10-1-swish", **{"classes": 10, "normalise": PAIR, **options})
    for value in model.state_dict().values():
        if value.dtype == torch.float32 and value.dim() != 3:
            value.add_(0.1 * torch.rand_like(value))
    return model.eval()


def original(model: nn.Module, prefix: str = "0.") -> dict[str, torch.Tensor]:
    """Its state dict as the original writes it: `mean` and `std` by these names, behind a Sequential."""
    return {prefix + key.removeprefix("normalise."): value for key, value in model.state_dict().items()}


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def refused(model: nn.Module, path: Path, said: str) -> None:
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(UserError, match=said) as caught:
        load_weights(model, path)
    assert "\n" not in str(caught.value) and str(caught.value).endswith("nothing was loaded")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


# ----------------------------------------------------------------------------------------------- constants of the paper

FROZEN = 6                        # mean and std: frozen parameters in the original, buffers here
TABLE = [("wrn-28-10-swish", 10, 36_479_200 - FROZEN, 25, 17_952),
         ("wrn-28-10-swish", 100, 36_536_890 - FROZEN, 25, 17_952),
         ("wrn-34-10-swish", 10, 46_160_480 - FROZEN, 31, None),
         ("wrn-34-20-swish", 10, 184_531_680 - FROZEN, 31, None),
         ("wrn-70-16-swish", 10, 266_796_512 - FROZEN, 67, None),
         ("wrn-28-10", 10, 36_479_194, 25, None), ("wrn-34-10", 10, 46_160_474, 31, None),
         ("preactresnet18", 200, 11_269_640, 17, None), ("preactresnet34", 200, 21_377_800, 33, None),
         ("preactresnet50", 200, 23_902_472, 49, None), ("preactresnet18", 10, 11_172_170, 17, 7_808),
         ("preactresnet18-swish", 10, 12_548_426, 17, None), ("preactresnet34-swish", 10, 22_656_586, 33, None),
         ("resnet18", 10, 11_173_962, 20, None), ("resnet34", 10, 21_282_122, 36, None),
         ("resnet50", 10, 23_520_842, 53, None)]


@pytest.mark.parametrize(("name", "classes", "parameters", "layers", "floats"), TABLE)
def test_parameters_norm_layers_and_running_statistics(name, classes, parameters, layers, floats):
    with torch.device("meta"):
        model, grouped = (build(name, classes=classes, norm=norm) for norm in ("batch", "group"))
    assert count_parameters(model) == count_parameters(grouped) == parameters
    for network, kind in ((model, nn.BatchNorm2d), (grouped, nn.GroupNorm)):
        assert sum(isinstance(module, kind) for module in network.modules()) == layers
    momenta = {module.momentum for module in model.modules() if isinstance(module, nn.BatchNorm2d)}
    assert momenta == {0.01 if name.endswith("swish") else 0.1}
    if floats:
        assert sum(value.numel() for value in model.buffers() if value.dtype == torch.float32) == floats
    assert not list(grouped.buffers())


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_norm_parameters_of_the_swish_networks_are_found_by_name(norm):
    """decay-by-name: 17,952 elements in 50 tensors of wrn-28-10-swish; none of Tiny's preact-resnet18."""
    with torch.device("meta"):
        swish, tiny = build("wrn-28-10-swish", classes=10, norm=norm), build("preactresnet18", classes=200, norm=norm)
    undecayed = [value.numel() for key, value in swish.named_parameters() if "batchnorm" in key]
    assert (len(undecayed), sum(undecayed)) == (50, 17_952)
    assert not [key for key, _ in tiny.named_parameters() if "batchnorm" in key]
    norms = {f"{name}.{key}" for name, module in swish.named_modules()
             if isinstance(module, nn.BatchNorm2d | nn.GroupNorm) for key, _ in module.named_parameters()}
    assert norms == {key for key, _ in swish.named_parameters() if "batchnorm" in key}


# ------------------------------------------------------------------------------------------------------ golden networks

def test_the_state_dict_of_wrn_28_10_swish():
    """The original's names and shapes in its order, but for the names of the input normalisation."""
    with torch.device("meta"):
        model = build("wrn-28-10-swish", classes=10, normalise=PAIR)
    names = [(key.removeprefix("normalise."), list(value.shape)) for key, value in model.state_dict().items()]
    assert names == list(DESCRIBED[WRN]["state_dict"].items())
    normalisation = sum(value.numel() for key, value in model.named_buffers() if key.startswith("normalise."))
    assert count_parameters(model) + normalisation == DESCRIBED[WRN]["parameters"] == 36_479_200


def test_the_golden_logits_of_wrn_28_10_swish():
    model = build("wrn-28-10-swish", classes=10, normalise=PAIR)
    missing, unexpected = model.load_state_dict(rule_state(DESCRIBED[WRN]["state_dict"]), strict=False)
    assert set(missing) == {"normalise.mean", "normalise.std"} and not unexpected
    check_logits(model, WRN)


def spelled_out(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """What a state dict of preact-resnet50 computes in eval mode: bottlenecks 1x1, 3x3, 1x1 with a norm before each."""

    def activated(x: Tensor, name: str) -> Tensor:
        norm = [state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *norm, training=False).relu()

    x = F.conv2d(x, state["conv1.weight"], padding=1)
    for stage, blocks in enumerate((3, 4, 6, 3), start=1):
        for i in range(blocks):
            name, stride = f"layer{stage}.{i}", 2 if stage > 1 and i == 0 else 1
            first = activated(x, f"{name}.bn1")
            skip = F.conv2d(first, state[f"{name}.shortcut.0.weight"], stride=stride) if i == 0 else x
            out = activated(F.conv2d(first, state[f"{name}.conv1.weight"]), f"{name}.bn2")
            out = activated(F.conv2d(out, state[f"{name}.conv2.weight"], stride=stride, padding=1), f"{name}.bn3")
            x = F.conv2d(out, state[f"{name}.conv3.weight"]) + skip
    return activated(x, "bn").mean((2, 3)) @ state["linear.weight"].T + state["linear.bias"]


def test_preact_resnet50_is_the_function_spelled_out():
    torch.manual_seed(0)
    model = build("preactresnet50", classes=5, width=4).eval()
    for key, value in model.state_dict().items():
        if value.dim() == 1:
            value.add_(0.5 * torch.rand_like(value) if key.endswith("var") else 0.2 * torch.randn_like(value))
    x = torch.rand(2, 3, 16, 16)
    reference = spelled_out(model.state_dict(), x)
    torch.testing.assert_close(model(x), reference, rtol=1e-4, atol=1e-5 * reference.abs().max().item())


@pytest.mark.slow
def test_a_file_of_the_original_gives_the_golden_logits(tmp_path):
    """Through the reader: a container with both networks, names behind a Sequential, `mean` and `std` in it."""
    pair = {"mean": PAIR[0], "std": PAIR[1]}
    state = {key: torch.tensor(value).view(3, 1, 1) for key, value in pair.items()}
    state |= rule_state(DESCRIBED[WRN]["state_dict"])
    last = {key: torch.zeros_like(value) for key, value in state.items()}
    wrapped = {part: {f"0.{key}": value for key, value in tensors.items()}
               for part, tensors in (("unaveraged_model", last), ("wa_model", state))}
    save_tree(tmp_path / "val_best.pt", {**wrapped, "score": 0.5, "epoch": 3})
    model = build("wrn-28-10-swish", classes=10, normalise=((0.5,) * 3, (0.5,) * 3))
    assert load_weights(model, tmp_path / "val_best.pt").part == "wa_model"
    check_logits(model, WRN)


# ------------------------------------------------------------------------------------------------- the original's files

def test_containers_of_the_original(tmp_path):
    """latest_checkpoint.pt and N.pt: the average is what is evaluated, the model is there if asked for."""
    average, last = small(1), small(2)
    optimiser = torch.optim.SGD(last.parameters(), 0.1, momentum=0.9)
    tree = {"unaveraged_model": original(last), "wa_model": original(average), "optimizer": optimiser.state_dict(),
            "scheduler": {"last_epoch": 4, "_last_lr": [0.1]}, "val_best": 0.5, "test_best": 0.4, "epoch": 4}
    torch.save(tree, tmp_path / "latest_checkpoint.pt")
    model = small(3, normalise=((0.5,) * 3, (0.5,) * 3))
    report = load_weights(model, tmp_path / "latest_checkpoint.pt")
    assert same(model, average) and (report.part, report.prefixes) == ("wa_model", ("0.",))
    assert "not taken: unaveraged_model" in str(report) and not report.missing and not report.unexpected
    load_weights(model, tmp_path / "latest_checkpoint.pt", part="unaveraged_model")
    assert same(model, last)
    refused(small(3, normalise=None), tmp_path / "latest_checkpoint.pt", r"build it with normalise=\(\[0.4914")


def test_files_of_runs_with_normalize(tmp_path):
    """--normalize true keeps its numbers in the code: names start with `1.`, nothing starts with `0.`."""
    torch.manual_seed(0)
    model = build("preactresnet18", classes=10, width=4).eval()
    save_state(tmp_path / "a.pt", original(model, "1."))
    refused(build("preactresnet18", classes=10, width=4), tmp_path / "a.pt", "stands behind something that is not in")
    other = build("preactresnet18", classes=10, width=4, normalise=NORMALIZE["cifar10"]).eval()
    assert "the model keeps its own" in str(load_weights(other, tmp_path / "a.pt"))
    x = torch.rand(2, 3, 16, 16)
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in NORMALIZE["cifar10"])
    torch.testing.assert_close(other(x), model((x - mean) / std))


def test_files_of_swish_networks_with_normalize_are_normalised_twice(tmp_path):
    """The original then normalises outside and inside; only the inner pair is in the file."""
    model = small(1)
    save_state(tmp_path / "a.pt", original(model, "1."))
    for options in ({}, {"normalise": None}):
        refused(small(2, **options), tmp_path / "a.pt",
                r"with \(\[0.4914, .* behind a first normalisation .* both in one")
    (outer, scale), (inner, spread) = NORMALIZE["cifar10"], PAIR
    pair = ([m + s * i for m, s, i in zip(outer, scale, inner, strict=True)],
            [s * d for s, d in zip(scale, spread, strict=True)])
    both = small(3, normalise=pair)
    report = load_weights(both, tmp_path / "a.pt")
    assert "left out normalise.mean, normalise.std: it acts behind another one" in str(report)
    assert "the file holds no input normalisation" not in str(report)
    x = torch.rand(2, 3, 16, 16)
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in NORMALIZE["cifar10"])
    torch.testing.assert_close(both(x), model((x - mean) / std), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "options"), [
    ("wrn-10-1-swish", {"normalise": PAIR}), ("preactresnet18", {"width": 4}),
    ("preactresnet18-swish", {"width": 4, "normalise": PAIR})])
@pytest.mark.parametrize(("theirs", "ours"), [("batch", "group"), ("group", "batch")])
@pytest.mark.parametrize("counters", [True, False])
def test_burn_in_of_the_other_norm_layer(tmp_path, name, options, theirs, ours, counters):
    state = original(build(name, classes=10, norm=theirs, **options))
    kept = {key: value for key, value in state.items() if counters or not key.endswith("num_batches_tracked")}
    save_state(tmp_path / "10.pt", kept)
    refused(build(name, classes=10, norm=ours, **options), tmp_path / "10.pt",
            f"has {theirs} norm and the model {ours} norm: build it with norm={theirs}; nothing")


def test_a_file_that_lacks_some_statistics_is_not_taken_for_group_norm(tmp_path):
    state = original(small())
    del state["0.batchnorm.running_mean"]
    save_state(tmp_path / "a.pt", state)
    refused(small(2), tmp_path / "a.pt", "missing batchnorm.running_mean; build the network")


@pytest.mark.parametrize(("name", "said"), [
    ("wrn-16-2-swish", "of another network than the model: .*of another shape"),
    ("preactresnet18-swish", "of another network than the model: missing conv_2d.weight"),
    ("resnet18", "of another network than the model: missing conv1.weight"),
])
def test_burn_in_of_another_architecture(tmp_path, name, said):
    save_state(tmp_path / "10.pt", original(small()))
    width = {} if name.startswith("wrn") else {"width": 4}
    refused(build(name, classes=10, normalise=PAIR, **width), tmp_path / "10.pt", said)


def test_burn_in_of_another_number_of_classes(tmp_path):
    save_state(tmp_path / "10.pt", original(small(classes=100)))
    refused(small(), tmp_path / "10.pt", "has 100 classes and the model 10: build it with classes=100")
