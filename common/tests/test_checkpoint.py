"""Checkpoints: what is written is whole or not there, what is read is tensors or one clear line, nothing is silent."""

import argparse
import errno
import json
import os
import pickle
import resource
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from common import checkpoint
from common.checkpoint import load_tree, load_weights, read_state, save_state, save_tree
from common.errors import UserError
from common.files import sha256_of
from common.tests.checkpoint_files import network, refused, same


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
