"""The data sets that torchvision downloads, on small fabricated files; no test here touches the network."""

import gzip
import hashlib
import io
import pickle
import tarfile
import urllib.error
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets.utils
from torchvision.datasets import CIFAR10, MNIST

from common.data import load, vision
from common.errors import UserError

NAMES = ["data_batch_1", "data_batch_2", "test_batch"]


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def cifar_files() -> dict[str, bytes]:
    """Three files of the "python version": 4, 4 and 2 images of 10 classes."""
    rng = np.random.default_rng(0)
    files = {name: pickle.dumps({"data": rng.integers(0, 256, (count, 3072), dtype=np.uint8),
                                 "labels": rng.integers(0, 10, count).tolist()})
             for name, count in zip(NAMES, (4, 4, 2), strict=True)}
    return {**files, "batches.meta": pickle.dumps({"label_names": list("abcdefghij")})}


def mnist_files() -> dict[str, bytes]:
    """The four files of MNIST with 6 and 3 images, unpacked."""
    rng = np.random.default_rng(1)
    files = {}
    for part, count in (("train", 6), ("t10k", 3)):
        pixels = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        head = b"".join(number.to_bytes(4, "big") for number in (0x803, count, 28, 28))
        files[f"{part}-images-idx3-ubyte"] = head + pixels.tobytes()
        head = b"".join(number.to_bytes(4, "big") for number in (0x801, count))
        files[f"{part}-labels-idx1-ubyte"] = head + bytes(range(count))
    return files


@pytest.fixture
def server(monkeypatch) -> dict[str, bytes | Exception]:
    """What a download finds, by file name; nothing else can be reached.  `asked` collects the names."""
    content: dict[str, bytes | Exception] = {}

    def fetch(url, filename, chunk_size=0):
        found = content.get(url.rsplit("/", 1)[1], urllib.error.URLError("no route to host"))
        if isinstance(found, Exception):
            raise found
        Path(filename).write_bytes(found)

    monkeypatch.setattr(torchvision.datasets.utils, "_urlretrieve", fetch)
    monkeypatch.setattr(torchvision.datasets.utils, "_get_redirect_url", lambda url, max_hops: url)
    return content


@pytest.fixture
def cifar(server, monkeypatch) -> bytes:
    """A CIFAR-10 of ten images, known to torchvision by its md5s; returns the archive, which the server has."""
    files = cifar_files()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    packed = buffer.getvalue()
    monkeypatch.setattr(CIFAR10, "train_list", [[name, md5(files[name])] for name in NAMES[:2]])
    monkeypatch.setattr(CIFAR10, "test_list", [[NAMES[2], md5(files[NAMES[2]])]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": md5(files["batches.meta"])})
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(packed))
    monkeypatch.setitem(vision.SOURCES, "cifar10", replace(vision.SOURCES["cifar10"], train=8, test=2))
    server["cifar-10-python.tar.gz"] = packed
    return packed


@pytest.fixture
def mnist(server, monkeypatch) -> dict[str, bytes]:
    packed = {f"{name}.gz": gzip.compress(content) for name, content in mnist_files().items()}
    monkeypatch.setattr(MNIST, "resources", [(name, md5(content)) for name, content in packed.items()])
    monkeypatch.setitem(vision.SOURCES, "mnist", replace(vision.SOURCES["mnist"], train=6, test=3))
    server.update(packed)
    return packed


def unpack(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def check_cifar(data) -> None:
    files = cifar_files()
    batches = [pickle.loads(files[name]) for name in NAMES]
    want = np.concatenate([batch["data"] for batch in batches[:2]]).reshape(8, 3, 32, 32)
    assert np.array_equal(data.train.images.numpy(), want)
    assert data.train.labels.tolist() == batches[0]["labels"] + batches[1]["labels"]
    assert data.test.labels.tolist() == batches[2]["labels"]
    assert data.class_names == tuple("abcdefghij") and data.classes == 10
    assert (data.name, data.source) == ("cifar10", "torchvision CIFAR10")


def test_files_that_are_there_are_not_downloaded(tmp_path, cifar, server):
    server.clear()
    unpack(tmp_path / "cifar-10-batches-py", cifar_files())
    check_cifar(load("cifar10", data_dir=tmp_path))
    assert names(tmp_path) == ["cifar-10-batches-py"]


def test_a_download_is_unpacked_and_kept(tmp_path, cifar, server):
    check_cifar(load("cifar10", data_dir=tmp_path / "new" / "data"))
    assert names(tmp_path / "new/data") == ["cifar-10-batches-py"]
    server.clear()
    check_cifar(load("cifar10", data_dir=tmp_path / "new" / "data"))


def test_an_archive_put_there_by_hand_is_used_and_kept(tmp_path, cifar, server):
    server.clear()
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(cifar)
    check_cifar(load("cifar10", data_dir=tmp_path))
    assert names(tmp_path) == ["cifar-10-batches-py", "cifar-10-python.tar.gz"]
    assert (tmp_path / "cifar-10-python.tar.gz").read_bytes() == cifar


def test_damaged_files_are_downloaded_again(tmp_path, cifar):
    unpack(tmp_path / "cifar-10-batches-py", {**cifar_files(), "data_batch_2": b"half"})
    check_cifar(load("cifar10", data_dir=tmp_path))
    assert names(tmp_path) == ["cifar-10-batches-py"]


def test_mnist_by_download_and_by_hand(tmp_path, mnist, server):
    first = load("mnist", data_dir=tmp_path / "a")
    assert first.image_shape == (1, 28, 28) and first.train.labels.tolist() == list(range(6)) and first.classes == 10
    pixels = np.frombuffer(mnist_files()["train-images-idx3-ubyte"][16:], np.uint8).reshape(6, 1, 28, 28)
    assert np.array_equal(first.train.images.numpy(), pixels)
    server.clear()
    unpack(tmp_path / "b/MNIST/raw", mnist)
    second = load("mnist", data_dir=tmp_path / "b")
    assert second.describe() == first.describe()
    assert names(tmp_path / "b") == ["MNIST"]
    raw = tmp_path / "b/MNIST/raw"
    assert names(raw) == sorted([*mnist, *mnist_files()])
    assert all((raw / name).read_bytes() == content and not (raw / name).is_symlink()
               for name, content in mnist.items())


@pytest.mark.parametrize("how", ["cut off", "fewer images"])
def test_unpacked_files_are_checked_though_torchvision_checks_only_archives(tmp_path, mnist, how):
    whole = load("mnist", data_dir=tmp_path).describe()
    raw = tmp_path / "MNIST/raw"
    images, labels = (raw / f"train-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1"))
    if how == "cut off":
        images.write_bytes(images.read_bytes()[:-784])
    else:
        five = (5).to_bytes(4, "big")
        images.write_bytes(images.read_bytes()[:4] + five + images.read_bytes()[8:-784])
        labels.write_bytes(labels.read_bytes()[:4] + five + labels.read_bytes()[8:-1])
    assert load("mnist", data_dir=tmp_path).describe() == whole


def failed(name: str, folder: Path) -> str:
    """The one line of a failed load, which left `folder` as it was."""
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(UserError) as caught:
        load(name, data_dir=folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_no_network(tmp_path, cifar, mnist, server):
    server.clear()
    line = failed("cifar10", tmp_path / "data")
    for part in ("cannot download cifar10", "no route to host", f"put cifar-10-python.tar.gz into {tmp_path}/data by",
                 f"{tmp_path}/data/cifar10.npz", "npz:PATH", "--data-dir"):
        assert part in line
    line = failed("mnist", tmp_path / "data")
    assert "cannot download mnist" in line and f"t10k-labels-idx1-ubyte.gz into {tmp_path}/data/MNIST/raw by" in line
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("error", [TimeoutError("timed out"), ConnectionResetError("reset by peer"),
                                   urllib.error.HTTPError("http://a", 404, "Not Found", None, None)])
@pytest.mark.parametrize("name", ["cifar10", "mnist"])
def test_servers_that_fail(tmp_path, cifar, mnist, server, error, name):
    for file in server:
        server[file] = error
    assert f"cannot download {name}: " in failed(name, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_a_half_downloaded_archive_is_named_and_left_alone(tmp_path, cifar, server):
    server.clear()
    half = tmp_path / "cifar-10-python.tar.gz"
    half.write_bytes(cifar[:50])
    assert f"{half} is there, but incomplete or damaged" in failed("cifar10", tmp_path)
    assert names(tmp_path) == ["cifar-10-python.tar.gz"]


def test_a_download_cut_off_leaves_nothing(tmp_path, cifar, server):
    server["cifar-10-python.tar.gz"] = cifar[:-10]
    assert "cannot download cifar10: File not found or corrupted" in failed("cifar10", tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_an_interrupted_download_leaves_nothing(tmp_path, cifar, monkeypatch):
    def interrupted(url, filename, chunk_size=0):
        Path(filename).write_bytes(cifar[:50])
        raise KeyboardInterrupt

    monkeypatch.setattr(torchvision.datasets.utils, "_urlretrieve", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load("cifar10", data_dir=tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_a_data_folder_that_cannot_be_made(tmp_path, cifar):
    (tmp_path / "file").touch()
    assert f"cannot make files in {tmp_path}/file" in failed("cifar10", tmp_path / "file")


def test_the_table_agrees_with_torchvision():
    for name, source in vision.SOURCES.items():
        cls = getattr(torchvision.datasets, source.cls)
        folder = cls.base_folder if hasattr(cls, "base_folder") else cls.__name__
        assert source.folder == folder, name
        assert len(getattr(cls, "resources", [1])) == (4 if "mnist" in name else 1)
