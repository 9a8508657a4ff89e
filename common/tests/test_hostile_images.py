"""Folders of images that come from strangers: links, pipes, bombs, other formats under an image's name."""

import os
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common import inputs
from common.data import decode, load
from common.data.folder import ENDINGS
from common.errors import UserError
from common.fuzz import limit, state
from common.fuzz.data import make_folder, make_tiny


def refused(folder: Path, code: str, says: str, spec: str = "folder:{}", data: Path | None = None) -> str:
    """Loading gives one line, with a code, and writes nothing."""
    before = state(folder)
    with pytest.raises(UserError, match=says) as caught, limit(60):
        load(spec.format(folder), data_dir=data or folder / "data")
    assert caught.value.code == code and "\n" not in " ".join(str(caught.value).split()) and state(folder) == before
    return str(caught.value)


@pytest.fixture
def folder(tmp_path):
    make_folder(tmp_path / "set")
    return tmp_path / "set"


def png(width: int, height: int, rows: bytes = b"") -> bytes:
    """A PNG that says it has this size; its rows are whatever is given."""
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
            + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


@pytest.mark.parametrize("size", [(9000, 9000), (12_000, 12_000), (60_000, 60_000), (2**31 - 1, 1)])
def test_images_that_unpack_to_far_more_than_any_image_has(folder, size, recwarn):
    """Below, within and beyond Pillow's own limits, which begin with a warning."""
    (folder / "train" / "a" / "1.png").write_bytes(png(*size))
    says = refused(folder, "E-IMAGE-BOMB", "pixels, more than 67108864: not decoded")
    assert "1.png" in says and not list(recwarn)


def test_a_thread_of_pixels_that_would_be_made_broad(folder):
    """1 x 50,000 pixels, the shorter side brought to 9999, are 5 * 10^12."""
    (folder / "train" / "a" / "1.png").write_bytes(png(50_000, 1, bytes(50_001)))
    refused(folder, "E-IMAGE-BOMB", "pixels, more than", "folder:{}?size=9999")


def test_images_that_fit_one_by_one_but_not_together(folder, monkeypatch):
    for path in folder.rglob("*.*"):
        Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(path.with_suffix(".png"))
        if path.suffix != ".png":
            path.unlink()
    monkeypatch.setattr(inputs, "memory_free", lambda: 20_000)
    refused(folder, "E-MEMORY", "decoded, takes 0.0 GB of memory")


def test_postscript_under_an_images_name_starts_no_program(folder, tmp_path, monkeypatch):
    """Pillow hands such files to Ghostscript."""
    tool = tmp_path / "bin" / "gs"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    script = folder / "train" / "a" / "1.png"
    script.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\nshowpage\n")
    refused(folder, "E-IMAGE", r"cannot read the image .*1\.png")
    assert not (tmp_path / "started").exists()
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None, raising=False)         # Pillow 10.0 looks it up each time
    with pytest.raises(OSError), Image.open(script) as image:       # Pillow by itself starts it, and fails afterwards
        image.load()
    assert (tmp_path / "started").exists()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("content", [
    b'<svg xmlns="http://www.w3.org/2000/svg"/>', b"<html></html>", b"", b"GIF89a", b"BM" + bytes(50),
    b"\x89PNG\r\n\x1a\n", b"II*\0" + b"\xff" * 40, b"P6 99999999 9 255 "])
def test_files_that_are_no_whole_image(folder, content):
    (folder / "train" / "a" / "1.png").write_bytes(content)
    with pytest.raises(UserError, match=r"1\.png"), limit(60):
        load(f"folder:{folder}", data_dir=folder / "data")


@pytest.mark.parametrize("place", ["train/a/1.png", "train/a/zero.png"])
def test_pipes_and_devices_among_the_images(folder, place):
    (folder / place).unlink(missing_ok=True)
    os.mkfifo(folder / place)
    refused(folder, "E-NOT-A-FILE", "is a named pipe, not a file")
    (folder / place).unlink()
    (folder / place).symlink_to("/dev/zero")
    refused(folder, "E-LINK", "is a link out of the folder, to /dev/zero")


@pytest.mark.parametrize("place", [
    "train/a/link.png", "train/a/deeper", "train/c", "val/images/link.JPEG", "train/n01443537", "wnids.txt",
    "words.txt", "val/val_annotations.txt"])
def test_links_out_of_a_data_set(tmp_path, place):
    """Neither images nor the lines of a text from elsewhere, which a message would show."""
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "text").write_text("password\tn01443537\n")
    tiny = place.startswith(("val", "train/n", "w"))
    (make_tiny if tiny else make_folder)(tmp_path / "set")
    path = tmp_path / "set" / ("tiny-imagenet-200" if tiny else "") / place
    shutil.rmtree(path, ignore_errors=True)
    path.unlink(missing_ok=True)
    path.symlink_to(tmp_path / "secret" / ("text" if path.suffix else ""))
    says = refused(tmp_path / "set", "E-LINK", "is a link out of the folder",
                   "tiny-imagenet?subset" if tiny else "folder:{}", tmp_path / "set")
    assert "password" not in says


def test_links_in_circles(folder, tmp_path):
    (folder / "train" / "a" / "round").symlink_to(".")
    refused(folder, "E-LINK", "is a link to a folder that holds it")
    (folder / "train" / "a" / "round").unlink()
    (folder / "train" / "a" / "x.png").symlink_to("x.png")
    with pytest.raises(UserError, match=r"x\.png"):
        load(f"folder:{folder}", data_dir=tmp_path)
    make_tiny(tmp_path / "tiny")
    images = tmp_path / "tiny" / "tiny-imagenet-200" / "train" / "n01443537" / "images"
    (images / "images").symlink_to(".")
    refused(tmp_path / "tiny", "E-TINY-IMAGENET", "has no business here", "tiny-imagenet?subset", tmp_path / "tiny")


@pytest.mark.parametrize("name", [b"a\nb.png", b"\xff\xfe.png", b"a" * 240 + b".png", b"\x1b[2J.png", b"%s{}.png"])
def test_odd_names_of_images_are_read(folder, tmp_path, name):
    (folder / "train" / "a" / "1.png").rename(os.fsdecode(os.fsencode(folder / "train" / "a") + b"/" + name))
    assert len(load(f"folder:{folder}", data_dir=tmp_path / "data").train) == 5
    make_tiny(tmp_path / "tiny")
    there = tmp_path / "tiny" / "tiny-imagenet-200" / "train" / "n01443537" / "images"
    next(there.iterdir()).rename(os.fsdecode(os.fsencode(there) + b"/" + name.replace(b".png", b".JPEG")))
    assert len(load("tiny-imagenet?subset", data_dir=tmp_path / "tiny").train) == 2


@pytest.mark.parametrize("name", ["a\nb", "\udcff", "\x1b[2J"])
def test_class_names_that_cannot_be_printed(folder, name):
    (folder / "train" / "b").rename(folder / "train" / name)
    (folder / "test" / "b").rename(folder / "test" / name)
    refused(folder, "E-FILE-NAME", "has a class folder named .* which cannot be printed")


def test_formats_that_are_read_are_those_of_the_endings():
    known = Image.registered_extensions()
    assert {known[ending] for ending in ENDINGS} == set(decode.FORMATS)
