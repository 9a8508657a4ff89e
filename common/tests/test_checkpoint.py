"""Checkpoints: what is written is whole or not there, what is read is tensors or one clear line, nothing is silent."""

import argparse
import errno
import json
import os
import pickle
import re
import resource
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from common import checkpoint
from common.checkpoint import load_tree, load_weights, read_state, save_state, save_tree
from common.errors import UserError
from common.files import sha256_of
from common.models import build
from common.models.wide_resnet import WideResNet

MEAN, STD = [0.4914, 0.4822, 0.4465], [0.2471, 0.2435, 0.2616]


def network(seed: int = 0, **options) -> nn.Module:
    """A small network with batch norm whose entries, running statistics too, differ from seed to seed."""
    torch.manual_seed(seed)
    model = build("small", **{"classes": 10, "width": 4, **options})
    model(torch.rand(4, options.get("channels", 3), 8, 8))
    return model.eval()


def same(model: nn.Module, state: dict[str, torch.Tensor]) -> bool:
    ours = model.state_dict()
    return list(ours) == list(state) and all(torch.equal(ours[name], state[name]) for name in ours)


def prefixed(state: dict, prefix: str) -> dict:
    return {prefix + name: value for name, value in state.items()}


def refused(model: nn.Module, path: Path, said: str, **options) -> str:
    """Loading raises one line that matches `said` and names the file, and the model stays as it was."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UserError, match=said) as caught:
        load_weights(model, path, **options)
    assert same(model, before)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


class Code:
    """A pickle of this makes a folder when it is unpickled by a reader that runs what it reads."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


# ------------------------------------------------------------------------------------------------------------ writing

def test_round_trip(tmp_path):
    state = network(seed=1).state_dict()
    path = tmp_path / "runs" / "last.pt"
    digest = save_state(path, state)
    model = network(seed=2)
    report = load_weights(model, path)
    assert same(model, state) and digest == report.sha256 == sha256_of(path)
    assert (report.part, report.prefixes, report.renamed, report.missing, report.unexpected, report.notes) == \
        (None, (), {}, (), (), ())
    assert str(report) == f"{path} (sha256 {digest[:12]})"
    assert list(read_state(path)) == list(state)
    assert os.listdir(path.parent) == ["last.pt"]


def test_equal_values_give_equal_files(tmp_path):
    """Whatever the name of the file, the memory format, and the storage behind a view."""
    state = network().state_dict()
    other = {name: value.to(memory_format=torch.channels_last) if value.dim() == 4 else value
             for name, value in state.items()}
    other["linear.weight"] = torch.cat([state["linear.weight"], torch.zeros(1000, 8)])[:10]
    assert save_state(tmp_path / "a.pt", state) == save_state(tmp_path / "b.pt", other)


def test_a_note_stands_beside_and_is_read_without_torch(tmp_path):
    digest = save_state(tmp_path / "best.pt", network().state_dict(), note={"epoch": 3, "selected_on": "held out"})
    assert json.loads((tmp_path / "best.json").read_text()) == \
        {"epoch": 3, "selected_on": "held out", "sha256": digest}


def test_only_tensors_are_saved(tmp_path):
    with pytest.raises(TypeError):
        save_state(tmp_path / "a.pt", {"epoch": 3})
    for value in (object(), np.float64(1), Code(tmp_path / "folder")):
        with pytest.raises(TypeError, match="plain values only"):
            save_tree(tmp_path / "a.pt", {"deep": [value]})
    assert not os.listdir(tmp_path)


def test_tree_round_trip(tmp_path):
    """An optimiser's state dict, lists, numbers, texts; integer keys stay integers."""
    model = network()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.rand(2, 3, 8, 8)).sum().backward()
    optimiser.step()
    tree = {"optimiser": optimiser.state_dict(), "epoch": 7, "best": 0.5, "name": "x", "none": None, "done": False,
            "list": [torch.arange(3), (1, "a")], "generator": torch.Generator().manual_seed(3).get_state()}
    save_tree(tmp_path / "resume.pt", tree)
    again = load_tree(tmp_path / "resume.pt")
    other = torch.optim.SGD(model.parameters(), lr=0.5)
    other.load_state_dict(again["optimiser"])
    assert other.param_groups[0]["lr"] == 0.1
    for index, state in optimiser.state_dict()["state"].items():
        assert torch.equal(again["optimiser"]["state"][index]["momentum_buffer"], state["momentum_buffer"])
    assert torch.equal(again["list"][0], torch.arange(3)) and again["list"][1] == (1, "a")
    assert torch.equal(again["generator"], tree["generator"])
    assert [again[key] for key in ("epoch", "best", "name", "none", "done")] == [7, 0.5, "x", None, False]
    assert type(again["done"]) is bool


WRITER = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598")


@pytest.mark.parametrize(("failure", "free", "said"), [
    (OSError(errno.ENOSPC, "No space left on device"), 0, "no space left while writing"),
    (WRITER, 0, "no space left while writing"),
    (RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed"), 0, "no space left"),
    (WRITER, 2 ** 40, "cannot write .*unexpected pos"),
])
def test_a_write_that_fails_leaves_the_former_file(tmp_path, monkeypatch, failure, free, said):
    path = tmp_path / "last.pt"
    state = network(seed=1).state_dict()
    save_state(path, state)

    def torn(_tree, stream):
        stream.write(b"half a file")
        raise failure

    monkeypatch.setattr(torch, "save", torn)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _folder: argparse.Namespace(free=free))
    for save in (save_state, save_tree):
        with pytest.raises(UserError, match=said) as caught:
            save(path, network(seed=2).state_dict())
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["last.pt"]
    assert all(torch.equal(value, state[name]) for name, value in read_state(path).items())


def test_the_error_of_the_disk_is_found_behind_the_writers(tmp_path, monkeypatch):
    """torch's zip writer hides it: closing the archive fails too."""
    def torn(_tree, _stream):
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        finally:
            raise WRITER

    monkeypatch.setattr(torch, "save", torn)
    with pytest.raises(UserError, match="no space left"):
        save_tree(tmp_path / "a.pt", {})


def test_a_real_write_that_fails(tmp_path):
    """A limit on the size of files stops torch's own writer in the middle."""
    path = tmp_path / "last.pt"
    save_state(path, {"small": torch.zeros(10)})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(UserError, match=r"cannot write .*last\.pt: File too large"):
            save_state(path, {"large": torch.zeros(1_000_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(read_state(path)) == ["small"] and os.listdir(tmp_path) == ["last.pt"]


def test_an_error_of_ours_stays_itself(tmp_path, monkeypatch):
    def broken(_tree, _stream):
        raise RuntimeError("something else")

    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(RuntimeError, match="something else"):
        save_tree(tmp_path / "a.pt", {})


# ------------------------------------------------------------------------------------------------------ unfit to read

def whole_and_cut(tmp_path: Path, **options) -> tuple[bytes, Path]:
    torch.save({"a": torch.zeros(10_000)}, tmp_path / "whole.pt", **options)
    return (tmp_path / "whole.pt").read_bytes(), tmp_path / "bad.pt"


@pytest.mark.parametrize("read", [read_state, load_tree])
@pytest.mark.parametrize(("content", "said"), [
    (b"", "is empty"),
    (b"hello, this is a text\n" * 9, "is no checkpoint"),
    (b"import torch\nprint(1)\n", "is no checkpoint"),
    (b"<!DOCTYPE html><html>Not found</html>", "is no checkpoint"),
    (b'{"epoch": 1}', "is no checkpoint"),
    (bytes(range(256)) * 9, "is no checkpoint"),
    (pickle.dumps({"epoch": 1, "loss": [0.5]}), "is no checkpoint"),
])
def test_a_file_that_is_no_checkpoint(tmp_path, read, content, said):
    path = tmp_path / "bad.pt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=said) as caught:
        read(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kept", [20, 0.5, -1])
def test_a_file_that_is_cut_short(tmp_path, zipped, kept):
    content, path = whole_and_cut(tmp_path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(content[:int(kept * len(content)) if isinstance(kept, float) else kept])
    refused(network(), path, "is no checkpoint that torch can read: damaged, cut short")


def test_a_flipped_bit_is_noticed(tmp_path):
    """torch itself does not look at the checksums."""
    content, path = whole_and_cut(tmp_path)
    middle = len(content) // 2
    path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1:])
    torch.load(path, weights_only=True)
    refused(network(), path, "is damaged")


def test_other_zip_files_and_what_is_no_file(tmp_path):
    np.savez(tmp_path / "data.npz", train_images=np.zeros(3))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("readme.txt", "text")
    for name in ("data.npz", "a.zip"):
        refused(network(), tmp_path / name, "is no checkpoint")
    refused(network(), tmp_path / "none.pt", "there is no checkpoint")
    refused(network(), tmp_path, "cannot read the checkpoint .*directory")


@pytest.mark.parametrize("write", [
    lambda value, path: torch.save(value, path),
    lambda value, path: torch.save(value, path, _use_new_zipfile_serialization=False),
    *(lambda value, path, protocol=protocol: path.write_bytes(pickle.dumps(value, protocol))
      for protocol in (0, 2, 5)),
])
def test_code_is_refused_and_not_run(tmp_path, write):
    made, path = tmp_path / "made", tmp_path / "code.pt"
    write({"state_dict": Code(made), "weight": Code(made)}, path)
    refused(network(), path, "holds code.*, not only tensors: refused")
    with pytest.raises(UserError, match="holds code"):
        load_tree(path)
    assert not made.exists()
    pickle.loads(pickle.dumps(Code(made)))              # the code is live: a reader that runs it makes the folder
    assert made.exists()


def test_whole_modules_and_torchscript_are_code(tmp_path):
    torch.save(network(), tmp_path / "module.pt")
    said = refused(network(), tmp_path / "module.pt", r"holds code \(common\.models\.small\.SmallCNN\), not only")
    assert "save the network's state_dict()" in said
    torch.jit.save(torch.jit.trace(network(), torch.rand(1, 3, 8, 8)), tmp_path / "script.pt")
    refused(network(), tmp_path / "script.pt", "holds code")


def test_plain_values_of_numpy_and_argparse_are_not_code(tmp_path):
    """Many people's checkpoints hold a best accuracy from numpy and the arguments beside the weights."""
    state = network(seed=1).state_dict()
    for name, value in (("scalar", np.float64(0.9)), ("float32", np.float32(0.9)), ("array", np.arange(3.0)),
                        ("count", np.int64(3)), ("arguments", argparse.Namespace(lr=0.1))):
        torch.save({"state_dict": state, "beside": value}, tmp_path / f"{name}.pt")
        model = network(seed=2)
        assert load_weights(model, tmp_path / f"{name}.pt").part == "state_dict" and same(model, state)


def test_numpy_1_names_are_read_too(tmp_path):
    torch.save({"net": network().state_dict(), "acc": np.float64(93.5)}, tmp_path / "new.pt")
    with zipfile.ZipFile(tmp_path / "new.pt") as new, zipfile.ZipFile(tmp_path / "old.pt", "w") as old:
        for name in new.namelist():
            old.writestr(name, new.read(name).replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert load_weights(network(), tmp_path / "old.pt").part == "net"


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


@pytest.mark.slow
def test_a_process_that_dies_while_it_writes_leaves_the_former_file(tmp_path):
    """The rename is the last step."""
    path = tmp_path / "last.pt"
    save_state(path, {"a": torch.ones(3)})
    program = ("import os, sys, torch; from common.checkpoint import save_state\n"
               "class Dying:\n    def __call__(self, tree, stream):\n"
               "        stream.write(b'half'); stream.flush(); os._exit(9)\n"
               "torch.save = Dying()\nsave_state(sys.argv[1], {'a': torch.zeros(3)})")
    done = subprocess.run([sys.executable, "-c", program, str(path)], cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == 9 and torch.equal(read_state(path)["a"], torch.ones(3))


def test_what_is_read_does_not_depend_on_the_file_any_more(tmp_path):
    path = tmp_path / "a.pt"
    save_state(path, {"a": torch.ones(100_000)})
    state = read_state(path)
    with path.open("r+b") as stream:
        stream.write(bytes(200_000))
    assert state["a"].sum() == 100_000
