"""Other people's checkpoints: containers, prefixes, names, normalisation, and what does not fit in one line."""

import re

import numpy as np
import pytest
import torch
from torch import nn

from common.checkpoint import load_weights, read_state, save_state
from common.errors import UserError
from common.models import build
from common.models.wide_resnet import WideResNet
from common.tests.checkpoint_files import network, prefixed, refused, same

MEAN, STD = [0.4914, 0.4822, 0.4465], [0.2471, 0.2435, 0.2616]

# --------------------------------------------------------------------------------------------- containers and prefixes

@pytest.mark.parametrize("key", ["state_dict", "model", "net", "wa_model", "model_state_dict", "ema", "mine"])
def test_containers_are_unwrapped_and_named(tmp_path, key):
    state = network(seed=1).state_dict()
    optimiser = {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]}
    torch.save({"epoch": 3, "acc": torch.tensor(0.5), "optimizer": optimiser, key: state}, tmp_path / "a.pt")
    model = network(seed=2)
    report = load_weights(model, tmp_path / "a.pt")
    assert report.part == key and f"part {key}" in str(report) and same(model, state)
    assert list(read_state(tmp_path / "a.pt")) == list(state)


def test_averaged_weights_are_preferred_and_a_part_can_be_asked_for(tmp_path):
    """DyART's files hold wa_model, which its authors evaluate, and unaveraged_model."""
    averaged, last = network(seed=1).state_dict(), network(seed=2).state_dict()
    torch.save({"unaveraged_model": last, "wa_model": averaged, "score": np.float64(0.5)}, tmp_path / "a.pt")
    model = network(seed=3)
    report = load_weights(model, tmp_path / "a.pt")
    assert same(model, averaged) and report.part == "wa_model" and "not taken: unaveraged_model" in str(report)
    assert load_weights(model, tmp_path / "a.pt", part="unaveraged_model").part == "unaveraged_model"
    assert same(model, last)
    refused(model, tmp_path / "a.pt", "no part 'best'; there are unaveraged_model, wa_model", part="best")


def test_nested_containers(tmp_path):
    state = network(seed=1).state_dict()
    torch.save({"model": {"epoch": 3, "state_dict": state}}, tmp_path / "a.pt")
    model = network(seed=2)
    assert load_weights(model, tmp_path / "a.pt").part == "model.state_dict" and same(model, state)
    load_weights(model, tmp_path / "a.pt", part="model.state_dict")


@pytest.mark.parametrize(("content", "said"), [
    ({"first": {"a": torch.zeros(1)}, "second": {"a": torch.zeros(1)}}, r"say which one with part= \(first, second\)"),
    ({"epoch": 3, "optimizer": {"state": {0: {"step": torch.zeros(1)}}}}, "no network's weights"),
    ([torch.zeros(3)], "no network's weights"),
    (torch.zeros(3), "no network's weights"),
    ({}, "no network's weights"),
])
def test_containers_without_one_network(tmp_path, content, said):
    torch.save(content, tmp_path / "a.pt")
    refused(network(), tmp_path / "a.pt", said)


def test_a_part_of_a_bare_state_dict(tmp_path):
    save_state(tmp_path / "a.pt", network().state_dict())
    refused(network(), tmp_path / "a.pt", "no part 'model'; it is a bare state dict", part="model")


@pytest.mark.parametrize(("prefix", "taken_off"), [
    ("module.", ("module.",)), ("model.", ("model.",)), ("_orig_mod.", ("_orig_mod.",)), ("net.", ("net.",)),
    ("module.model.", ("module.", "model.")), ("module._orig_mod.", ("_orig_mod.", "module.")), ("0.", ("0.",)),
    ("module.0.", ("module.", "0.")), ("module.module.", ("module.", "module.")),
])
def test_prefixes_are_taken_off_and_named(tmp_path, prefix, taken_off):
    state = network(seed=1).state_dict()
    save_state(tmp_path / "a.pt", prefixed(state, prefix))
    model = network(seed=2)
    report = load_weights(model, tmp_path / "a.pt")
    assert same(model, state) and report.prefixes == taken_off
    assert f"without the prefix {' '.join(taken_off)}" in str(report)
    assert list(read_state(tmp_path / "a.pt")) == list(state)


def test_a_compiled_inner_module(tmp_path):
    model = build("resnet18", classes=10, width=4)
    state = model.state_dict()
    save_state(tmp_path / "a.pt", {re.sub(r"^(layer\d)\.", r"\1._orig_mod.", name): v for name, v in state.items()})
    assert load_weights(build("resnet18", classes=10, width=4), tmp_path / "a.pt").prefixes == ("_orig_mod.",)


def test_torchs_own_average_has_a_counter(tmp_path):
    average = torch.optim.swa_utils.AveragedModel(network(seed=1))
    save_state(tmp_path / "a.pt", average.state_dict())
    model = network(seed=2)
    report = load_weights(model, tmp_path / "a.pt")
    assert same(model, average.module.state_dict())
    assert report.unexpected == ("n_averaged",) and "left out n_averaged" in str(report)


def test_names_that_a_sequential_network_gives_are_its_own(tmp_path):
    """`0.weight` of a Sequential network is no prefix."""
    for model in (nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)),
                  nn.Sequential(nn.Sequential(nn.Linear(2, 2)))):
        save_state(tmp_path / "a.pt", model.state_dict())
        assert load_weights(model, tmp_path / "a.pt").prefixes == ()
    assert list(read_state(tmp_path / "a.pt")) == ["0.weight", "0.bias"]
    save_state(tmp_path / "b.pt", nn.Sequential(nn.Linear(2, 2)).state_dict())
    assert list(read_state(tmp_path / "b.pt")) == ["0.weight", "0.bias"]


def test_two_entries_for_one_name(tmp_path):
    save_state(tmp_path / "a.pt", {"a.weight": torch.zeros(1), "a._orig_mod.weight": torch.zeros(1)})
    with pytest.raises(UserError, match="same name once their prefixes are taken off"):
        read_state(tmp_path / "a.pt")
    state = network(normalise=(MEAN, STD)).state_dict()
    save_state(tmp_path / "b.pt", {**state, "mu": torch.zeros(3)})
    refused(network(normalise=(MEAN, STD)), tmp_path / "b.pt", "several entries stand for the model's normalise.mean")


# ------------------------------------------------------------------------------------------------- other people's names

def wide(**options) -> nn.Module:
    torch.manual_seed(options.pop("seed", 0))
    return WideResNet(10, 1, classes=10, **options)


def test_rpats_wide_resnets_call_their_last_layer_linear(tmp_path):
    state = wide(seed=1).state_dict()
    save_state(tmp_path / "a.pt", {name.replace("fc.", "linear."): value for name, value in state.items()})
    model = wide(seed=2)
    report = load_weights(model, tmp_path / "a.pt")
    assert same(model, state)
    assert report.renamed == {"linear.weight": "fc.weight", "linear.bias": "fc.bias"}
    assert "renamed linear.weight -> fc.weight, linear.bias -> fc.bias" in str(report)


def test_the_stage_that_trades_never_calls_is_left_out_by_name(tmp_path):
    """RobustBench's WideResNets of the TRADES family carry `sub_block1`, trained by nobody and called by nobody."""
    state = wide(seed=1).state_dict()
    extra = {name.replace("block1.", "sub_block1."): value for name, value in state.items() if name[:7] == "block1."}
    save_state(tmp_path / "a.pt", prefixed(state | extra, "module."))
    model = wide(seed=2)
    report = load_weights(model, tmp_path / "a.pt")
    assert same(model, state) and set(report.unexpected) == set(extra)
    assert re.search("left out sub_block1.* and 7 more: a stage that the TRADES code .* never calls", str(report))


def test_files_from_before_the_counters_of_batch_norm(tmp_path):
    state = network(seed=1).state_dict()
    old = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    save_state(tmp_path / "a.pt", old)
    model = network(seed=2)
    report = load_weights(model, tmp_path / "a.pt")
    assert len(report.missing) == 3 and "3 num_batches_tracked are not in the file, set to 0" in str(report)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in old.items())
    assert model.bn1.num_batches_tracked == 0
    save_state(tmp_path / "b.pt", {name: value for name, value in state.items() if name != "bn1.num_batches_tracked"})
    refused(model, tmp_path / "b.pt", "missing bn1.num_batches_tracked")


def test_half_precision_files_are_named(tmp_path):
    state = network(seed=1).state_dict()
    save_state(tmp_path / "a.pt", {name: v.bfloat16() if v.is_floating_point() else v for name, v in state.items()})
    model = network(seed=2)
    assert "stored as bfloat16" in str(load_weights(model, tmp_path / "a.pt"))
    assert model.conv1.weight.dtype == torch.float32
    assert torch.equal(model.conv1.weight, state["conv1.weight"].bfloat16().float())


# ------------------------------------------------------------------------------------------------------- normalisation

NORMALISING = [
    ("normalise.mean", "normalise.std", ""), ("mean", "std", ""), ("mu", "sigma", ""), ("mu", "sigma", "model."),
    ("normalize.mean", "normalize.std", "model."), ("0.mean", "0.std", "1."),
    ("module.0.mean", "module.0.std", "module.1."), ("normalizer.mean", "normalizer.std", ""),
]


@pytest.mark.parametrize(("mean", "std", "prefix"), NORMALISING)
@pytest.mark.parametrize("shape", [(3,), (1, 3, 1, 1)])
def test_a_files_own_normalisation(tmp_path, mean, std, prefix, shape):
    """Loaded and named where the model has one; refused, with what to type, where it has none."""
    state = network(seed=1).state_dict()
    save_state(tmp_path / "a.pt", prefixed(state, prefix) |
               {mean: torch.tensor(MEAN).view(shape), std: torch.tensor(STD).view(shape)})
    model = network(seed=2, normalise=([0.5] * 3, [0.5] * 3))
    report = load_weights(model, tmp_path / "a.pt")
    reference = build("small", classes=10, width=4, normalise=(MEAN, STD)).eval()
    reference.load_state_dict(state, strict=False)
    x = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(model(x), reference(x))
    assert f"input normalisation from the file: ({MEAN}, {STD})" in str(report)
    said = refused(network(seed=3), tmp_path / "a.pt", "normalises its input and the model does not")
    assert f"build it with normalise=({MEAN}, {STD})" in said


def test_read_state_names_what_a_sequential_holds(tmp_path):
    state = network().state_dict()
    save_state(tmp_path / "a.pt", {"0.mean": torch.zeros(3), "0.std": torch.ones(3), **prefixed(state, "1.")})
    assert list(read_state(tmp_path / "a.pt")) == ["mean", "std", *state]


def test_a_normalisation_that_is_not_in_the_file(tmp_path):
    """Sequential(normalise, net) whose first module has no buffers, as in DyART with --normalize."""
    state = network(seed=1).state_dict()
    save_state(tmp_path / "a.pt", prefixed(state, "1."))
    refused(network(seed=2), tmp_path / "a.pt", "stands behind something that is not in the file")
    model = network(seed=2, normalise=(MEAN, STD))
    report = load_weights(model, tmp_path / "a.pt")
    assert report.missing == ("normalise.mean", "normalise.std") and "the model keeps its own" in str(report)
    assert model.normalise.mean.flatten().tolist() == pytest.approx(MEAN)
    assert torch.equal(model.conv1.weight, state["conv1.weight"])


def test_half_a_normalisation_is_refused(tmp_path):
    save_state(tmp_path / "a.pt", network(seed=1).state_dict() | {"mean": torch.zeros(3)})
    refused(network(), tmp_path / "a.pt", "unexpected normalise.mean")
    refused(network(normalise=(MEAN, STD)), tmp_path / "a.pt", "missing normalise.std")


# -------------------------------------------------------------------------------------------------------------- misfits

def test_another_number_of_classes(tmp_path):
    save_state(tmp_path / "a.pt", network(classes=100).state_dict())
    refused(network(), tmp_path / "a.pt", "has 100 classes and the model 10: build it with classes=100; nothing")


def test_another_number_of_channels(tmp_path):
    save_state(tmp_path / "a.pt", network(channels=1).state_dict())
    refused(network(), tmp_path / "a.pt", "takes images of 1 channels and the model of 3: build it with channels=1")


def test_another_width_and_another_architecture(tmp_path):
    save_state(tmp_path / "a.pt", network(width=8).state_dict())
    said = refused(network(), tmp_path / "a.pt", "of another network than the model: of another shape")
    assert "conv1.weight (file 8x3x3x3, model 4x3x3x3)" in said and re.search(r"and \d+ more", said)
    save_state(tmp_path / "b.pt", build("resnet18", classes=10, width=4).state_dict())
    said = refused(build("preactresnet18", classes=10, width=4), tmp_path / "b.pt", "missing bn.weight.*unexpected bn1")
    assert "nothing was loaded" in said


def test_one_missing_and_one_unexpected_entry(tmp_path):
    state = network(seed=1).state_dict()
    state["extra"] = state.pop("conv2.weight")
    save_state(tmp_path / "a.pt", state)
    refused(network(), tmp_path / "a.pt", "missing conv2.weight; unexpected extra; build")
