"""Archives of arrays that lie, swell, lead elsewhere or hold more than numbers: refused before anything is unpacked."""

import io
import os
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from common import inputs, npz_files
from common.data import load
from common.data.corruption_files import CorruptionFiles
from common.data.ddpm import load_extra
from common.errors import UserError
from common.fuzz import limit
from common.npz_files import read_arrays

DEFLATED = zipfile.ZIP_DEFLATED


def header(shape: tuple, descr: object = "|u1") -> bytes:
    """What stands before the values of an array, whatever these are."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": descr, "fortran_order": False, "shape": shape})
    return stream.getvalue()


def packed(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def data_set(**changes: bytes) -> dict[str, bytes]:
    """The members of a small data set, some of them others."""
    labels = header((2,), "<i8") + np.arange(2).tobytes()
    images = header((2, 4, 4, 3)) + bytes(96)
    members = {"train_images": images, "train_labels": labels, "test_images": images, "test_labels": labels, **changes}
    return {f"{name}.npy": content for name, content in members.items()}


def refused(path: Path, code: str, says: str) -> None:
    """load("npz:PATH") gives one line, with a code."""
    with pytest.raises(UserError, match=says) as caught, limit(60):
        load(f"npz:{path}")
    assert caught.value.code == code and str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_the_small_data_set_is_one(tmp_path):
    assert len(load(f"npz:{packed(tmp_path / 'a.npz', data_set())}").train) == 2


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, DEFLATED])
@pytest.mark.parametrize("shape", [(10**12, 32, 32, 3), (2**62, 4, 4, 3), (10**12, 0, 4, 3), (True, 4, 4, 3),
                                   (-2, 4, 4, 3)])
def test_a_header_that_claims_more_images_than_there_are(tmp_path, method, shape):
    path = packed(tmp_path / "a.npz", data_set(train_images=header(shape) + bytes(96)), method)
    refused(path, "E-DATA-DAMAGED", "'train_images' cannot be read .train_images should have the shape")


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, DEFLATED])
@pytest.mark.parametrize("field", [20, 24])              # in the directory: the packed size, the unpacked one
def test_an_archive_that_says_it_unpacks_to_more_than_it_can(tmp_path, method, field):
    path = packed(tmp_path / "a.npz", data_set(), method)
    content = path.read_bytes()
    at = content.index(b"PK\1\2") + field
    path.write_bytes(content[:at] + struct.pack("<I", 0xfffffff0) + content[at + 4:])
    refused(path, "E-NPZ-BOMB", "says that 'train_images.npy' unpacks to|more than it can")


def test_an_archive_that_swells_beyond_anything_that_images_do(tmp_path, monkeypatch):
    images = header((20_000, 4, 4, 3)) + bytes(960_000)
    path = packed(tmp_path / "a.npz", data_set(train_images=images), DEFLATED)
    monkeypatch.setattr(npz_files, "LARGE", 100_000)
    refused(path, "E-NPZ-BOMB", r"has \d+ bytes and unpacks to 960\d+: refused, nothing of it was unpacked")
    with pytest.raises(UserError, match="unpacks to"):
        load_extra([packed(tmp_path / "b.npz", {"image.npy": images, "label.npy": header((20_000,)) + bytes(20_000)},
                           DEFLATED)], classes=2, image_shape=(3, 4, 4), cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_constant_images_are_no_bomb(tmp_path):
    """They pack a thousand to one."""
    images, labels = np.zeros((2000, 32, 32, 3), np.uint8), np.arange(2000) % 2
    np.savez_compressed(tmp_path / "a.npz", train_images=images, train_labels=labels, test_images=images[:2],
                        test_labels=labels[:2])
    assert images.nbytes > 100 * (tmp_path / "a.npz").stat().st_size
    assert len(load(f"npz:{tmp_path}/a.npz").train) == 2000


def test_arrays_larger_than_the_memory(tmp_path, monkeypatch):
    path = packed(tmp_path / "a.npz", data_set())
    monkeypatch.setattr(inputs, "memory_free", lambda: 200)
    refused(path, "E-MEMORY", "takes 0.0 GB of memory, and 0.0 GB are free")


def test_memory_that_is_free_is_known_here():
    assert inputs.memory_free() is None or inputs.memory_free() > 2**20


def test_more_members_than_any_file_has(tmp_path, monkeypatch):
    monkeypatch.setattr(npz_files, "MAX_MEMBERS", 3)
    refused(packed(tmp_path / "a.npz", data_set()), "E-NPZ-BOMB", "holds 4 members")


@pytest.mark.parametrize("name", ["../out.npy", "a/../../out.npy", "/tmp/out.npy", "..\\out.npy", "\\out.npy"])
def test_members_that_lead_out_of_the_archive(tmp_path, name):
    path = packed(tmp_path / "a.npz", {**data_set(), name: b""})
    refused(path, "E-ARCHIVE-NAME", "leads out of the archive")
    with pytest.raises(UserError, match="leads out of the archive"):
        load_extra([path], classes=2, image_shape=(3, 4, 4))


@pytest.mark.parametrize(("descr", "shape", "code"), [
    ("|O", (2,), "E-NPZ-OBJECTS"), ([("a", "|O")], (2,), "E-NPZ-OBJECTS"), ([("a", "<i8"), ("b", "|u1")], (2,),
                                                                        "E-NPZ-DTYPE"),
    ("|V8", (2,), "E-NPZ-DTYPE"), ("|S0", (10**12,), "E-NPZ-DTYPE"), ("<U0", (10**12,), "E-NPZ-DTYPE"),
    ("<M8[s]", (2,), "E-NPZ-DTYPE")])
def test_only_plain_numbers_and_text(tmp_path, descr, shape, code):
    path = packed(tmp_path / "a.npz", data_set(class_names=header(shape, descr) + bytes(16)))
    refused(path, code, "class_names")


def test_objects_under_a_key_that_is_not_read_do_no_harm(tmp_path):
    path = packed(tmp_path / "a.npz", data_set(note=header((1,), "|O") + b"cos\nsystem\n"))
    assert len(load(f"npz:{path}").train) == 2
    with pytest.raises(UserError, match="note holds Python objects"):
        read_arrays(path)


def pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


@pytest.mark.parametrize("made", [pipe, lambda path: Path("/dev/zero"), lambda path: Path("/dev/stdin")],
                         ids=["pipe", "zero", "stdin"])
def test_what_is_no_file_is_never_opened(tmp_path, made):
    """Opening a pipe that nobody writes to would wait for ever, and /dev/zero never ends."""
    path = made(tmp_path / "a.npz")
    if not path.is_char_device() and not path.is_fifo():
        path = Path("/dev/zero")                         # where stdin is a file
    for read in (lambda: load(f"npz:{path}"), lambda: load_extra([path], classes=2, image_shape=(3, 4, 4)),
                 lambda: read_arrays(path)):
        with pytest.raises(UserError, match="not a file") as caught, limit(60):
            read()
        assert caught.value.code == "E-NOT-A-FILE"


def test_pipes_among_the_files_of_corruptions_and_as_an_index(tmp_path):
    np.save(tmp_path / "labels.npy", np.tile(np.arange(2), 5))
    pipe(tmp_path / "fog.npy")
    with pytest.raises(UserError, match=r"lacks fog\.npy"), limit(60):
        CorruptionFiles(tmp_path, "CIFAR-10-C", ("fog",))
    np.savez(tmp_path / "a.npz", image=np.zeros((2, 4, 4, 3), np.uint8), label=np.arange(2))
    with pytest.raises(UserError, match="a named pipe, not a file"), limit(60):
        load_extra([tmp_path / "a.npz"], classes=2, image_shape=(3, 4, 4), index=tmp_path / "fog.npy")


@pytest.mark.parametrize("name", ["x" * 5000, "x" * 300 + "/a.npz", "a\0b"])
def test_paths_that_no_system_has(name):
    for spec in (f"npz:{name}", f"folder:{name}", name):
        with pytest.raises(UserError) as caught:
            load(spec)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 6500


def test_an_npy_that_is_an_archive_or_a_pickle(tmp_path):
    np.save(tmp_path / "labels.npy", np.tile(np.arange(2), 5))
    packed(tmp_path / "fog.npy", data_set())
    with pytest.raises(UserError, match="cannot be read as an array"):
        CorruptionFiles(tmp_path, "CIFAR-10-C", ("fog",))
    (tmp_path / "fog.npy").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(UserError, match="cannot be read as an array"):
        CorruptionFiles(tmp_path, "CIFAR-10-C", ("fog",))
    (tmp_path / "fog.npy").write_bytes(header((10**12, 4, 4, 3)) + bytes(96))
    with pytest.raises(UserError, match="cannot be read as an array"):
        CorruptionFiles(tmp_path, "CIFAR-10-C", ("fog",))
