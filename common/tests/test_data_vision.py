"""The data sets that torchvision knows, on small fabricated files and a server on this machine."""

import gzip
import hashlib
import io
import pickle
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets
from torchvision.datasets import CIFAR10, MNIST

from common import download
from common.data import load, vision
from common.errors import UserError
from common.tests.file_server import serving

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
def server(monkeypatch):
    """A server that is where torchvision looks for the archives; tries follow one another at once."""
    monkeypatch.setattr(download, "WAITS_S", (0.0,))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serving() as site:
        monkeypatch.setattr(CIFAR10, "url", f"{site.url}/cifar-10-python.tar.gz")
        monkeypatch.setattr(MNIST, "mirrors", [f"{site.url}/mirror/", f"{site.url}/"])
        yield site


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
    server.content["/cifar-10-python.tar.gz"] = packed
    return packed


@pytest.fixture
def mnist(server, monkeypatch) -> dict[str, bytes]:
    packed = {f"{name}.gz": gzip.compress(content) for name, content in mnist_files().items()}
    monkeypatch.setattr(MNIST, "resources", [(name, md5(content)) for name, content in packed.items()])
    monkeypatch.setitem(vision.SOURCES, "mnist", replace(vision.SOURCES["mnist"], train=6, test=3))
    server.content.update({f"/{name}": content for name, content in packed.items()})
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
    server.content.clear()
    unpack(tmp_path / "cifar-10-batches-py", cifar_files())
    check_cifar(load("cifar10", data_dir=tmp_path))
    assert names(tmp_path) == ["cifar-10-batches-py"]


def test_a_download_is_unpacked_and_kept(tmp_path, cifar, server):
    check_cifar(load("cifar10", data_dir=tmp_path / "new" / "data"))
    assert names(tmp_path / "new/data") == ["cifar-10-batches-py"]
    server.content.clear()
    check_cifar(load("cifar10", data_dir=tmp_path / "new" / "data"))


def test_an_archive_put_there_by_hand_is_used_and_kept(tmp_path, cifar, server):
    server.content.clear()
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
    server.content.clear()
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


def test_no_network(tmp_path, cifar, mnist, server, monkeypatch):
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    line = failed("cifar10", tmp_path / "data")
    for part in ("cannot download cifar10", "Connection refused", f"put cifar-10-python.tar.gz into {tmp_path}/data by",
                 f"{tmp_path}/data/cifar10.npz", "npz:PATH", "--data-dir"):
        assert part in line
    server.content.clear()
    line = failed("mnist", tmp_path / "data")
    assert "cannot download mnist" in line and f"t10k-labels-idx1-ubyte.gz into {tmp_path}/data/MNIST/raw by" in line
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("status", [404, 503])
@pytest.mark.parametrize("name", ["cifar10", "mnist"])
def test_servers_that_fail(tmp_path, cifar, mnist, server, status, name):
    server.statuses = [status] * 9
    assert f"says {status}" in failed(name, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_another_mirror_is_asked_where_the_first_has_it_not(tmp_path, mnist, server):
    load("mnist", data_dir=tmp_path)
    first = "train-images-idx3-ubyte.gz"
    assert [path for path, *_ in server.asked[:2]] == [f"/mirror/{first}", f"/{first}"]


def test_a_half_downloaded_archive_is_named_and_left_alone(tmp_path, cifar, server):
    half = tmp_path / "cifar-10-python.tar.gz"
    half.write_bytes(cifar[:50])
    assert f"{half} is there, but incomplete or damaged" in failed("cifar10", tmp_path)
    assert names(tmp_path) == ["cifar-10-python.tar.gz"]


def test_a_download_cut_off_is_gone_on_with(tmp_path, cifar, server):
    server.cuts = [100, 100]
    with pytest.raises(UserError, match=r"cannot download cifar10: .* ended after 200 of"):
        load("cifar10", data_dir=tmp_path)
    assert (tmp_path / "cifar-10-python.tar.gz.part").read_bytes() == cifar[:200]
    server.asked.clear()
    check_cifar(load("cifar10", data_dir=tmp_path))
    assert names(tmp_path) == ["cifar-10-batches-py"] and server.asked[0][1] == "bytes=200-"


def test_a_wrong_archive_is_refused(tmp_path, cifar, server):
    server.content["/cifar-10-python.tar.gz"] = cifar[::-1]
    with pytest.raises(UserError, match="is removed: type the same command again") as caught:
        load("cifar10", data_dir=tmp_path / "data")
    assert caught.value.code == "E-DOWNLOAD-HASH" and not (tmp_path / "data").exists()


def test_a_data_folder_that_cannot_be_made(tmp_path, cifar):
    (tmp_path / "file").touch()
    assert f"cannot make files in {tmp_path}/file" in failed("cifar10", tmp_path / "file")


def test_the_table_agrees_with_torchvision():
    for name, source in vision.SOURCES.items():
        cls = getattr(torchvision.datasets, source.cls)
        folder = cls.base_folder if hasattr(cls, "base_folder") else cls.__name__
        assert source.folder == folder, name
        assert len(getattr(cls, "resources", [1])) == (4 if "mnist" in name else 1)
