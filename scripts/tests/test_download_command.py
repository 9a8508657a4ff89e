"""python -m scripts.download and data/TinyImageNet-200.sh, on archives of a few images and a server on this machine."""

import dataclasses
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import zipfile

import pytest

from common import archives, download
from common.environment import ROOT
from common.errors import UserError
from common.tests.file_server import serving
from scripts.download import main

SCRIPT = ROOT / "data" / "TinyImageNet-200.sh"
TINY = "tiny-imagenet-200"


def zipped(names=()) -> bytes:
    """Four training and two validation images, and files of other names."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr(f"{TINY}/", "")
        for number in range(4):
            file.writestr(f"{TINY}/train/n{number % 2}/images/n_{number}.JPEG", os.urandom(3000))
        for number in range(2):
            file.writestr(f"{TINY}/val/images/val_{number}.JPEG", os.urandom(3000))
        for name in (f"{TINY}/wnids.txt", *names):
            file.writestr(name, "n0\nn1\n")
    return buffer.getvalue()


def tarred(kind=tarfile.REGTYPE) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for name in ("CIFAR-10-C/fog.npy", "CIFAR-10-C/labels.npy"):
            entry = tarfile.TarInfo(name)
            entry.size, entry.type, entry.linkname = (4 if kind == tarfile.REGTYPE else 0), kind, "/etc/passwd"
            file.addfile(entry, io.BytesIO(b"data"))
    return buffer.getvalue()


@pytest.fixture
def site(monkeypatch):
    monkeypatch.setattr(download, "WAITS_S", (0.0,))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serving() as found:
        yield found


def offer(site, monkeypatch, name: str, content: bytes, counts=None) -> None:
    """Let the archive of that name be `content`, on the server and by its hash."""
    known = archives.ARCHIVES[name]
    site.content[f"/{known.remote.name}"] = content
    remote = dataclasses.replace(known.remote, urls=(f"{site.url}/{known.remote.name}",),
                                 digest=known.remote.digest and "md5:" + hashlib.md5(content).hexdigest())
    counts = known.counts if counts is None else counts
    monkeypatch.setitem(archives.ARCHIVES, name, dataclasses.replace(known, remote=remote, counts=counts))


@pytest.fixture
def tiny(site, monkeypatch) -> bytes:
    content = zipped()
    offer(site, monkeypatch, "tiny-imagenet", content, (("train/**/*.JPEG", 4), ("val/**/*.JPEG", 2)))
    return content


def names(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


def failed(*words: object) -> UserError:
    with pytest.raises(UserError) as caught:
        main([str(word) for word in words])
    return caught.value


def test_it_fetches_and_unpacks_then_does_nothing(tmp_path, site, tiny, capsys):
    words = ["tiny-imagenet", "--data_dir", str(tmp_path / "data")]
    main(words)
    assert names(tmp_path / "data") == {TINY, f"{TINY}.zip"}
    with zipfile.ZipFile(io.BytesIO(tiny)) as file:
        files = {name: file.read(name) for name in file.namelist() if not name.endswith("/")}
    assert {str(path.relative_to(tmp_path / "data")): path.read_bytes()
            for path in (tmp_path / "data" / TINY).rglob("*") if path.is_file()} == files
    assert f"{TINY}.zip may be removed" in capsys.readouterr().out
    (tmp_path / "data" / f"{TINY}.zip").unlink()
    site.asked.clear()
    main(words)
    # as the released script leaves the data: sorted into classes, in a folder of another name
    os.rename(tmp_path / "data" / TINY, tmp_path / "data/tiny-imagenet")
    main(words)
    assert capsys.readouterr().out.count("is there already") == 2 and site.asked == []


def test_an_archive_put_there_by_hand_is_unpacked_without_a_network(tmp_path, site, tiny):
    (tmp_path / f"{TINY}.zip").write_bytes(tiny)
    main(["tiny-imagenet", "--data_dir", str(tmp_path)])
    assert names(tmp_path) == {TINY, f"{TINY}.zip"} and site.asked == []


def test_a_download_that_was_cut_off_goes_on(tmp_path, site, tiny):
    (tmp_path / f"{TINY}.zip.part").write_bytes(tiny[:9000])
    main(["tiny-imagenet", "--data_dir", str(tmp_path)])
    assert site.asked == [(f"/{TINY}.zip", "bytes=9000-", None)] and TINY in names(tmp_path)


def test_what_is_in_the_way_is_left_alone(tmp_path, tiny):
    (tmp_path / TINY / "train").mkdir(parents=True)
    (tmp_path / TINY / "train/mine.JPEG").touch()
    error = failed("tiny-imagenet", "--data_dir", tmp_path)
    assert error.code == "E-DOWNLOAD-UNPACK" and "1 of 4 files" in str(error)
    assert names(tmp_path) == {TINY} and names(tmp_path / TINY / "train") == {"mine.JPEG"}


def test_another_copy_must_have_the_same_hash(tmp_path, site, tiny):
    site.content["/copy.zip"], site.content["/other.zip"] = tiny, zipped()
    assert failed("tiny-imagenet", "--data_dir", tmp_path, "--url", f"{site.url}/other.zip").code == "E-DOWNLOAD-HASH"
    assert names(tmp_path) == set()
    main(["tiny-imagenet", "--data_dir", str(tmp_path), "--url", f"{site.url}/copy.zip"])
    assert TINY in names(tmp_path)


@pytest.mark.parametrize("name", ["../evil", f"{TINY}/../../evil", "/tmp/evil", "other/file"])
def test_an_archive_that_writes_elsewhere_is_not_unpacked(tmp_path, site, monkeypatch, name):
    offer(site, monkeypatch, "tiny-imagenet", zipped([name]), ())
    (tmp_path / "data").mkdir()
    monkeypatch.setitem(archives.ARCHIVES, "tiny-imagenet", dataclasses.replace(
        archives.ARCHIVES["tiny-imagenet"], counts=(("wnids.txt", 1),)))
    error = failed("tiny-imagenet", "--data_dir", tmp_path / "data")
    assert error.code == "E-DOWNLOAD-UNPACK" and "not below" in str(error)
    assert names(tmp_path) == {"data"} and names(tmp_path / "data") == {f"{TINY}.zip"}


def test_an_archive_of_too_few_files_is_not_unpacked(tmp_path, site, tiny, monkeypatch):
    offer(site, monkeypatch, "tiny-imagenet", tiny, (("train/**/*.JPEG", 5),))
    assert "4 of 5 files" in str(failed("tiny-imagenet", "--data_dir", tmp_path))
    assert names(tmp_path) == {f"{TINY}.zip"}


@pytest.mark.parametrize("content", [b"no archive", zipped()[:9000]])
def test_a_damaged_archive_is_one_line(tmp_path, site, monkeypatch, content):
    offer(site, monkeypatch, "tiny-imagenet", content)
    assert failed("tiny-imagenet", "--data_dir", tmp_path).code == "E-DOWNLOAD-UNPACK"
    assert names(tmp_path) == {f"{TINY}.zip"}


def test_corrupted_images(tmp_path, site, monkeypatch):
    offer(site, monkeypatch, "cifar-10-c", tarred())
    main(["cifar-10-c", "--data_dir", str(tmp_path)])
    assert (tmp_path / "CIFAR-10-C/labels.npy").read_bytes() == b"data"
    offer(site, monkeypatch, "cifar-10-c", tarred(tarfile.SYMTYPE))
    assert "no plain file" in str(failed("cifar-10-c", "--data_dir", tmp_path / "other"))
    assert names(tmp_path / "other") == {"CIFAR-10-C.tar"}


def test_a_file_without_a_published_hash(tmp_path, site, monkeypatch, capsys):
    offer(site, monkeypatch, "cifar10-ddpm", b"arrays")
    main(["cifar10-ddpm", "--data_dir", str(tmp_path)])
    assert hashlib.sha256(b"arrays").hexdigest() in capsys.readouterr().out
    assert names(tmp_path) == {"cifar10_ddpm.npz", "cifar10_ddpm.npz.sha256"}


@pytest.mark.parametrize(("words", "says"), [
    (["nowhere"], "invalid choice"), (["tiny-imagenet", "--url", "file:///etc/passwd"], "begins with https"),
    (["cifar10", "--url", "http://a/b"], "name one of"), (["tiny-imagenet", "cifar-10-c", "--url", "http://a/b"],
                                                          "name one of")])
def test_mistakes(words, says):
    assert says in str(failed(*words))


def run(folder, words, **environment) -> subprocess.CompletedProcess:
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return subprocess.run(("bash", str(SCRIPT), *words), cwd=folder, capture_output=True, text=True, timeout=120,
                          stdin=subprocess.DEVNULL, env={**kept, "PYTHON": sys.executable, **environment})


def test_the_originals_script_runs_from_anywhere_and_passes_on_what_it_is_told(tmp_path, site):
    """The archive on this server is not the authors', and is refused once it is there."""
    site.content["/tiny.zip"] = zipped()
    done = run(tmp_path, ["my data"], TINY_IMAGENET_URL=f"{site.url}/tiny.zip")
    assert done.returncode == 2 and "[E-DOWNLOAD-HASH]" in done.stderr and done.stderr.count("\n") == 1
    assert site.asked == [("/tiny.zip", None, None)] and names(tmp_path / "my data") == set()


def test_the_originals_script_says_its_mistakes_in_a_line(tmp_path):
    assert run(tmp_path, ["a", "b"]).stderr.startswith("error: too many words")
    none = run(tmp_path, [], PYTHON="/nowhere/python")
    assert none.returncode == 2 and none.stderr.startswith("error: /nowhere/python is no Python")


def test_downloads_need_no_torch(run_without_torch):
    assert run_without_torch("import scripts.download, common.archives") == ""
