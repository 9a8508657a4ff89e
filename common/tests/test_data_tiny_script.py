"""data/TinyImageNet-200.sh, on an archive of a few images; no test here touches the network."""

import os
import shutil
import subprocess
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from common.environment import ROOT

SCRIPT = ROOT / "data" / "TinyImageNet-200.sh"
TOOLS = ("bash", "cat", "dirname", "find", "mkdir", "mv", "rm", "wc")
FETCHERS = [tool for tool in ("curl", "wget") if shutil.which(tool)]       # a machine may have only one of them
UNPACKERS = [*(["unzip"] if shutil.which("unzip") else []), "python3"]
NOWHERE = "http://127.0.0.1:9/tiny-imagenet-200.zip"


class Handler(BaseHTTPRequestHandler):
    """Sends the files of `content`, from any byte on."""

    content: dict[str, bytes] = {}  # noqa: RUF012

    def do_GET(self) -> None:
        found = self.content.get(self.path)
        begin = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        if found is None or begin >= len(found):
            self.send_error(404 if found is None else 416)
            return
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(found) - 1}/{len(found)}")
        self.send_header("Content-Length", str(len(found) - begin))
        self.end_headers()
        self.wfile.write(found[begin:])

    def log_message(self, *given: object) -> None:
        """Say nothing."""


def zipped(path: Path, images: int) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for number in range(images):
            file.writestr(f"tiny-imagenet-200/train/n{number % 2}/images/n_{number}.JPEG", os.urandom(3000))
        for number in range(2):
            file.writestr(f"tiny-imagenet-200/val/images/val_{number}.JPEG", os.urandom(3000))
        file.writestr("tiny-imagenet-200/val/val_annotations.txt", "val_0.JPEG\tn0\nval_1.JPEG\tn1\n")
    return path


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    """Four training and two validation files; large enough to be cut in two."""
    return zipped(tmp_path_factory.mktemp("server") / "tiny-imagenet-200.zip", 4)


@pytest.fixture(scope="module")
def url(archive):
    """Where a server on this machine has the archive."""
    Handler.content = {"/tiny.zip": archive.read_bytes(),
                       "/few.zip": zipped(archive.with_name("few.zip"), 3).read_bytes()}
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/tiny.zip"
        server.shutdown()


@pytest.fixture
def run(tmp_path, url):
    """Run the script: (words, tools on the path, other archive) -> finished process.  Nothing is asked of a user."""
    here = url

    def call(*words: str, tools: tuple[str, ...] = (FETCHERS[0], UNPACKERS[0]), url: str = here,
             script: Path = SCRIPT) -> subprocess.CompletedProcess:
        bin_folder = tmp_path / ("bin-" + "-".join(tools))
        bin_folder.mkdir(exist_ok=True)
        for tool in {*TOOLS, *tools} - names(bin_folder):
            if tool == "python3":              # whatever runs the tests, also where that is no plain python3
                (bin_folder / tool).write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
                (bin_folder / tool).chmod(0o755)
            else:
                (bin_folder / tool).symlink_to(shutil.which(tool))
        counts = {"TINY_IMAGENET_TRAIN": "4", "TINY_IMAGENET_VAL": "2"}
        return subprocess.run(("bash", str(script), *words), cwd=tmp_path, capture_output=True, text=True, timeout=60,
                              stdin=subprocess.DEVNULL,
                              env={"PATH": str(bin_folder), "TINY_IMAGENET_URL": url, **counts})
    return call


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def whole(folder: Path, archive: Path) -> None:
    """`folder` has the archive and what is in it, nothing else."""
    assert names(folder) == {"tiny-imagenet-200", "tiny-imagenet-200.zip"}
    with zipfile.ZipFile(archive) as file:
        files = {name: file.read(name) for name in file.namelist()}
    assert {str(path.relative_to(folder)): path.read_bytes()
            for path in (folder / "tiny-imagenet-200").rglob("*") if path.is_file()} == files


def failed(done, says: str) -> None:
    """One line, status 2."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("error: ") and says in done.stderr


@pytest.mark.parametrize("fetcher", FETCHERS)
@pytest.mark.parametrize("unpacker", UNPACKERS)
def test_it_fetches_tests_and_unpacks_then_does_nothing(tmp_path, archive, run, fetcher, unpacker):
    done = run("data", tools=(fetcher, unpacker))
    assert done.returncode == 0, done.stderr
    assert "fetching" in done.stdout
    whole(tmp_path / "data", archive)
    (tmp_path / "data/tiny-imagenet-200.zip").unlink()
    again = run("data", url=NOWHERE)
    assert again.returncode == 0 and "is there already" in again.stdout
    # as the released script leaves the data: sorted into classes
    os.rename(tmp_path / "data/tiny-imagenet-200", tmp_path / "data/tiny-imagenet")
    assert "is there already" in run("data", url=NOWHERE).stdout


def test_without_a_word_the_data_go_beside_the_script(tmp_path, run):
    (tmp_path / "repo/data").mkdir(parents=True)
    done = run(script=Path(shutil.copy(SCRIPT, tmp_path / "repo/data")))
    assert done.returncode == 0, done.stderr
    assert names(tmp_path / "repo/data") == {SCRIPT.name, "tiny-imagenet-200", "tiny-imagenet-200.zip"}


@pytest.mark.parametrize("fetcher", FETCHERS)
@pytest.mark.parametrize("name", ["tiny-imagenet-200.zip.part", "tiny-imagenet-200.zip"])
def test_a_download_that_was_cut_off_goes_on(tmp_path, archive, run, name, fetcher):
    """The first half is not fetched again: a wrong byte in it shows in the end."""
    data = tmp_path / "data"
    data.mkdir()
    half = archive.read_bytes()[:9000]
    (data / name).write_bytes(half)
    done = run("data", tools=(fetcher, UNPACKERS[0]))
    assert done.returncode == 0, done.stderr
    whole(data, archive)
    shutil.rmtree(data)
    data.mkdir()
    (data / name).write_bytes(half[:500] + bytes([half[500] ^ 1]) + half[501:])
    failed(run("data", tools=(fetcher, UNPACKERS[0])), "gave a damaged archive, now removed")
    assert names(data) == set()


def test_a_whole_part_is_not_asked_for_again(tmp_path, archive, run):
    (tmp_path / "data").mkdir()
    shutil.copy(archive, tmp_path / "data/tiny-imagenet-200.zip.part")
    assert run("data", url=NOWHERE).returncode == 0
    whole(tmp_path / "data", archive)


@pytest.mark.parametrize("fetcher", FETCHERS)
def test_no_network_and_a_server_without_the_file_are_one_line(tmp_path, run, url, fetcher):
    failed(run("data", tools=(fetcher, UNPACKERS[0]), url=NOWHERE), f"cannot fetch {NOWHERE}")
    failed(run("data", tools=(fetcher, UNPACKERS[0]), url=url + "x"), f"cannot fetch {url}x")
    assert not names(tmp_path / "data") & {"tiny-imagenet-200", "tiny-imagenet-200.zip"}


def test_missing_tools(run):
    failed(run("data", tools=(UNPACKERS[0],)), "neither curl nor wget")
    failed(run("data", tools=(FETCHERS[0],)), "neither unzip nor python3")


def test_what_is_in_the_way_or_incomplete_is_left_alone(tmp_path, run):
    (tmp_path / "data/tiny-imagenet-200/train").mkdir(parents=True)
    (tmp_path / "data/tiny-imagenet-200/train/mine.JPEG").touch()
    failed(run("data"), "tiny-imagenet-200 is there, but not complete")
    assert names(tmp_path / "data") == {"tiny-imagenet-200"}
    (tmp_path / "file").touch()
    failed(run("file"), "cannot make the folder file")
    failed(run("a", "b"), "too many words")


def test_an_archive_with_fewer_images_is_not_unpacked(tmp_path, run, url):
    failed(run("data", url=url.replace("tiny.zip", "few.zip")), "has not 4 training and 2 validation images")
    assert names(tmp_path / "data") == {"tiny-imagenet-200.zip"}
