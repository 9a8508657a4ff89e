"""Checkpoints that claim, swell, repeat or run: refused in one line, and the model stays as it was."""

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from common.checkpoint import load_tree, load_weights, read_state, save_state
from common.errors import UserError
from common.fuzz import limit
from common.fuzz.checkpoints import network
from common.inputs import check_is_file


def refused(path: Path, code: str, says: str) -> None:
    """Both ways to read it give one line with a code, and touch no model."""
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for read in (lambda: load_tree(path), lambda: load_weights(model, path)):
        with pytest.raises(UserError, match=says) as caught, limit(60):
            read()
        assert caught.value.code == code and str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def saved(tmp_path: Path, tree: object, **options: object) -> Path:
    torch.save(tree, tmp_path / "a.pt", **options)
    return tmp_path / "a.pt"


def rewritten(path: Path, change: Callable[[str, bytes], tuple[str, bytes] | None], method: int = zipfile.ZIP_STORED
              ) -> Path:
    """The archive with other members; None takes one out."""
    with zipfile.ZipFile(path) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members:
            if (new := change(name, content)) is not None:
                archive.writestr(*new)
    return path


def test_sizes_repeated_through_strides_show_more_than_there_is(tmp_path):
    """A number of four bytes, 10^12 times."""
    for tree in ({"a": torch.zeros(1).expand(10**12)}, {"a": torch.zeros(1).expand(2**30, 2**30)},
                 {f"a{number}": torch.zeros(1).expand(2**20) for number in range(40)}):
        refused(saved(tmp_path, tree), "E-CHECKPOINT-DAMAGED", r"has \d+ bytes and tensors of \d+")


def test_weights_that_share_memory_are_no_bomb(tmp_path):
    """Averaged and plain weights in one file, and a buffer of one number that is repeated."""
    state = network().state_dict()
    saved(tmp_path, {"state_dict": state, "ema": dict(state), "best": state, "scale": torch.ones(1).expand(64)})
    assert load_weights(network(), tmp_path / "a.pt").part == "ema"


@pytest.mark.parametrize("zipped", [True, False])
def test_a_storage_that_is_longer_than_the_file(tmp_path, zipped):
    """10^9 numbers of which the file has 10: torch would make room for them, or read beyond them."""
    path = saved(tmp_path, {"a": torch.zeros(10)}, _use_new_zipfile_serialization=zipped)

    def change(name: str, content: bytes) -> tuple[str, bytes]:
        wanted = content.replace(b"cpuq\x06K\n", b"cpuq\x06J\0\xca\x9a\x3b")
        assert name[-8:] != "data.pkl" or wanted != content
        return name, wanted if name.endswith("data.pkl") else content

    if zipped:
        rewritten(path, change)
    else:
        path.write_bytes(change("data.pkl", path.read_bytes())[1])
    refused(path, "E-CHECKPOINT-DAMAGED", r"says that (its storages have|storage '0' has) 4000000000 bytes")


def test_members_that_torch_does_not_write(tmp_path):
    packed = rewritten(saved(tmp_path, {"a": torch.zeros(100_000)}), lambda *member: member, zipfile.ZIP_DEFLATED)
    refused(packed, "E-CHECKPOINT-DAMAGED", "is packed")
    doubled = saved(tmp_path, {"a": torch.zeros(10)})
    with zipfile.ZipFile(doubled, "a") as archive:
        archive.writestr("a/DATA.PKL", pickle.dumps({}))
    refused(doubled, "E-CHECKPOINT-DAMAGED", "two members of one name")
    outside = saved(tmp_path, {"a": torch.zeros(10)})
    with zipfile.ZipFile(outside, "a") as archive:
        archive.writestr("a/../../b", b"")
    refused(outside, "E-ARCHIVE-NAME", "leads out of the archive")
    shorter = rewritten(saved(tmp_path, {"a": torch.zeros(10)}),
                        lambda name, content: (name, content[:-4] if name.endswith("data/0") else content))
    refused(shorter, "E-CHECKPOINT-DAMAGED", "storage '0' has 40 bytes, more than it has")


class Code:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("write", [
    lambda value, path: torch.save(value, path),
    lambda value, path: torch.save(value, path, _use_new_zipfile_serialization=False),
    *(lambda value, path, protocol=protocol: path.write_bytes(pickle.dumps(value, protocol)) for protocol in range(6))])
def test_pickles_with_code_are_looked_through_and_not_run(tmp_path, write):
    write({"state_dict": Code(tmp_path / "made"), "a": torch.zeros(2).tolist()}, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", "E-PICKLE", "holds code")
    assert not (tmp_path / "made").exists()


def test_torchscript_is_code(tmp_path):
    torch.jit.save(torch.jit.trace(network().eval(), torch.rand(2, 3)), tmp_path / "a.pt")
    refused(tmp_path / "a.pt", "E-PICKLE", "TorchScript")


def test_containers_without_end(tmp_path):
    circle: dict = {"a": torch.zeros(1)}
    circle["model"] = circle
    refused(saved(tmp_path, circle), "E-CHECKPOINT-ENTRY", "dicts or lists without end")
    laughs: dict = {"a": torch.zeros(1)}
    for _ in range(30):
        laughs = {"model": laughs, "net": laughs, "ema": laughs}
    refused(saved(tmp_path, laughs), "E-CHECKPOINT-ENTRY", "dicts or lists without end")


@pytest.mark.parametrize("tensor", [
    lambda: torch.sparse_coo_tensor(torch.zeros(1, 1, dtype=torch.int64), torch.ones(1), (10**12,)),
    lambda: torch.empty(10**12, device="meta"),
    lambda: torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.quint8),
    lambda: torch.zeros(3, dtype=torch.complex64)], ids=["sparse", "meta", "quantised", "complex"])
@pytest.mark.filterwarnings("ignore:Sparse", "ignore:torch.quantize_per_tensor")
def test_tensors_that_are_no_weights(tmp_path, tensor):
    refused(saved(tmp_path, {"a": tensor()}), "E-CHECKPOINT-ENTRY", "a tensor of another kind")


@pytest.mark.parametrize("name", ["\udc80", "a\nb", "\x1b[2J"])
def test_names_that_cannot_be_printed(tmp_path, name):
    refused(saved(tmp_path, {name: torch.zeros(1)}), "E-CHECKPOINT-ENTRY", "an entry named '")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_pipes_and_devices_are_not_opened(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    os.mkfifo(path)
    refused(path, "E-NOT-A-FILE", "a named pipe, not a file")
    with pytest.raises(UserError, match="a device, not a file"), limit(60):
        read_state(Path("/dev/zero"))
    check_is_file(tmp_path)                    # a folder is for each reader to name


def test_a_safetensors_file_that_lies(tmp_path):
    for head in (b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4]}}', b'{"a":1}', b"[" * 500,
                 b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4000000000000]}}'):
        (tmp_path / "a.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + bytes(4))
        with pytest.raises(UserError, match="no safetensors file, or damaged"):
            load_tree(tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").write_bytes(b"\xff" * 8 + bytes(100))
    with pytest.raises(UserError, match="no safetensors file, or damaged"):
        load_tree(tmp_path / "a.safetensors")


def test_what_is_written_here_is_read_here(tmp_path):
    """None of the rules above refuses a file of ours."""
    assert save_state(tmp_path / "a.pt", network().state_dict())
    assert load_weights(network(), tmp_path / "a.pt").missing == ()
