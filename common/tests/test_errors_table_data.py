"""docs/errors.md, the data: each row's line, exit status 2, and nothing written."""

import errno
import hashlib
import os
import socket
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import CIFAR10

from common.archives import ARCHIVES
from common.evaluation.corruptions import CIFAR_C
from common.tests.errors_table import (
    Cases,
    adarat,
    arrays,
    check,
    command,
    evaluate,
    image_folder,
    npz,
    places,
    rows,
    weights,
)
from common.tests.file_server import serving

CASES = Cases()
of = CASES.of
MINE = rows("Data")


@pytest.mark.parametrize("row", MINE, ids=str)
def test_the_row_is_what_happens(row, tmp_path, monkeypatch, capfd):
    check(row, CASES, tmp_path, monkeypatch, capfd)


def test_every_case_has_its_row():
    assert {code: len(some) for code, some in CASES.items()} == {row.code: row.number for row in MINE}


def trained_on(at, monkeypatch, spec):
    return adarat(at, monkeypatch, "--data", spec)


@of("E-DATASET")
def nearly_cifar10(at, monkeypatch):
    return trained_on(at, monkeypatch, "cifar-10")


@of("E-DATASET")
def no_size(at, monkeypatch):
    return trained_on(at, monkeypatch, f"folder:{image_folder(at)}?size=big")


@of("E-DATA-MISSING")
def no_file(at, monkeypatch):
    return trained_on(at, monkeypatch, f"npz:{at}/none.npz")


@of("E-DATA-MISSING")
def no_tiny_imagenet(at, monkeypatch):
    return trained_on(at, monkeypatch, "tiny-imagenet")


@of("E-DATA-DAMAGED")
def cut_off(at, monkeypatch):
    spec = npz(at)
    (at / "a.npz").write_bytes((at / "a.npz").read_bytes()[:-40])
    return trained_on(at, monkeypatch, spec)


@of("E-READ")
def no_right_to_read(at, monkeypatch):
    spec = npz(at)

    def denied(path, *options, **more):                   # root, who runs the tests in a container, may read all
        if str(path) == f"{at}/a.npz":
            raise PermissionError(errno.EACCES, "Permission denied")
        return opened(path, *options, **more)
    opened = open
    monkeypatch.setattr("builtins.open", denied)
    return trained_on(at, monkeypatch, spec)


@of("E-DOWNLOAD")
def no_network(at, monkeypatch):
    def unreachable(*options, **more):
        raise socket.gaierror(-3, "Temporary failure in name resolution")
    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    return trained_on(at, monkeypatch, "cifar10")


@of("E-NOT-A-FILE")
def pipe(at, monkeypatch):
    os.mkfifo(at / "a.npz")
    return trained_on(at, monkeypatch, f"npz:{at}/a.npz")


@of("E-DOWNLOAD-HASH")
def another_archive(at, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    run = trained_on(at, monkeypatch, "cifar10")

    def served():
        with serving() as site:
            site.content["/cifar-10-python.tar.gz"] = b"another"
            monkeypatch.setattr(CIFAR10, "url", f"{site.url}/cifar-10-python.tar.gz")
            run()
    return served


def fetched(at, monkeypatch, name):
    """scripts/download.py."""
    from scripts.download import main
    return command(monkeypatch, main, name, "--data_dir", at / "data", bare=True)


@of("E-DOWNLOAD-HASH")
def half_an_archive(at, monkeypatch):
    (at / "data").mkdir()
    (at / "data" / "tiny-imagenet-200.zip").write_bytes(b"half")
    return fetched(at, monkeypatch, "tiny-imagenet")


@of("E-DOWNLOAD-UNPACK")
def no_archive(at, monkeypatch):
    known, content = ARCHIVES["tiny-imagenet"], b"no archive"
    digest = f"md5:{hashlib.md5(content).hexdigest()}"
    monkeypatch.setitem(ARCHIVES, "tiny-imagenet", replace(known, remote=replace(known.remote, digest=digest)))
    (at / "data").mkdir()
    (at / "data" / known.remote.name).write_bytes(content)
    return fetched(at, monkeypatch, "tiny-imagenet")


@of("E-DOWNLOAD-UNPACK")
def unpacked_in_part(at, monkeypatch):
    (at / "data" / "tiny-imagenet-200" / "train" / "n01443537").mkdir(parents=True)
    return fetched(at, monkeypatch, "tiny-imagenet")


@of("E-NPZ")
def text(at, monkeypatch):
    (at / "a.npz").write_text("0,0,255\n")
    return trained_on(at, monkeypatch, f"npz:{at}/a.npz")


@of("E-NPZ-KEYS")
def no_labels(at, monkeypatch):
    return trained_on(at, monkeypatch, npz(at, without="train_labels"))


@of("E-NPZ-DTYPE")
def floats(at, monkeypatch):
    return trained_on(at, monkeypatch, npz(at, train_images=arrays()["train_images"] / 255))


@of("E-NPZ-SHAPE")
def channels_first(at, monkeypatch):
    return trained_on(at, monkeypatch, npz(at, train_images=arrays()["train_images"].transpose(0, 3, 1, 2)))


@of("E-NPZ-SHAPE")
def two_sizes(at, monkeypatch):
    return trained_on(at, monkeypatch, npz(at, test_images=arrays(size=9)["test_images"]))


@of("E-NPZ-OBJECTS")
def objects(at, monkeypatch):
    return trained_on(at, monkeypatch, npz(at, train_labels=np.array([{}] * 24)))


@of("E-NPZ-BOMB")
def swelling(at, monkeypatch):
    spec = npz(at)
    content = (at / "a.npz").read_bytes()
    size = content.index(b"PK\1\2") + 24                 # in the directory: to how many bytes the first one unpacks
    (at / "a.npz").write_bytes(content[:size] + b"\xf0\xff\xff\xff" + content[size + 4:])
    return trained_on(at, monkeypatch, spec)


@of("E-ARCHIVE-NAME")
def a_member_elsewhere(at, monkeypatch):
    spec = npz(at)
    with zipfile.ZipFile(at / "a.npz", "a") as archive:
        archive.writestr("../out.npy", b"")
    return trained_on(at, monkeypatch, spec)


@of("E-LABELS")
def short(at, monkeypatch):
    return trained_on(at, monkeypatch, npz(at, train_labels=np.zeros(23, np.int64)))


@of("E-LABELS")
def unseen(at, monkeypatch):
    return trained_on(at, monkeypatch, npz(at, test_labels=np.arange(12)))


@of("E-LABELS")
def few_names(at, monkeypatch):
    return trained_on(at, monkeypatch, npz(at, class_names=np.array(["cat", "dog"])))


@of("E-NO-IMAGE")
def empty_class(at, monkeypatch):
    (image_folder(at) / "train" / "b" / "1.png").unlink()
    return trained_on(at, monkeypatch, f"folder:{at}/f")


@of("E-SUBSET")
def more_than_there_are(at, monkeypatch):
    return adarat(at, monkeypatch, "--data", npz(at), "--n_train", "100")


@of("E-INDEX-FILE")
def mask_of_another_file(at, monkeypatch):
    from dyart.flags import main
    spec, content = npz(at), arrays()
    np.savez(at / "more.npz", image=content["train_images"], label=content["train_labels"])
    np.save(at / "mask.npy", np.ones(23, bool))
    return command(monkeypatch, main, "--data", spec, "--model", "small", "--width", "4", "--device", "cpu",
                   "--epochs", "1", "--aux-data-filename", at / "more.npz", "--aux-ind-pth", at / "mask.npy",
                   *places(at))


@of("E-FOLDER-LAYOUT")
def no_test(at, monkeypatch):
    return trained_on(at, monkeypatch, f"folder:{image_folder(at, ('train',))}")


@of("E-LINK")
def link_out(at, monkeypatch):
    (at / "secret.png").touch()
    (image_folder(at) / "train" / "a" / "2.png").symlink_to(at / "secret.png")
    return trained_on(at, monkeypatch, f"folder:{at}/f")


@of("E-LINK")
def link_to_nowhere(at, monkeypatch):
    (image_folder(at) / "train" / "a" / "2.png").symlink_to("gone.png")
    return trained_on(at, monkeypatch, f"folder:{at}/f")


@of("E-FILE-NAME")
def a_class_that_clears_the_screen(at, monkeypatch):
    folder = image_folder(at)
    (folder / "train" / "b").rename(folder / "train" / "b\x1b[2J")
    return trained_on(at, monkeypatch, f"folder:{folder}")


@of("E-IMAGE")
def no_image(at, monkeypatch):
    (image_folder(at) / "train" / "a" / "1.png").write_text("cat")
    return trained_on(at, monkeypatch, f"folder:{at}/f")


@of("E-IMAGE-BOMB")
def an_image_beyond_all_size(at, monkeypatch):
    Image.new("1", (9000, 9000)).save(image_folder(at) / "train" / "a" / "1.png")
    return trained_on(at, monkeypatch, f"folder:{at}/f")


@of("E-IMAGE-SIZE")
def another_size(at, monkeypatch):
    Image.new("RGB", (8, 9)).save(image_folder(at) / "test" / "b" / "1.png")
    return trained_on(at, monkeypatch, f"folder:{at}/f")


@of("E-TINY-IMAGENET")
def half_unpacked(at, monkeypatch):
    (at / "data" / "tiny-imagenet-200" / "train").mkdir(parents=True)
    return trained_on(at, monkeypatch, "tiny-imagenet")


def corrupted(at, labels):
    """CIFAR-10-C of 12 test images of 8x8, its files links to one."""
    folder = at / "CIFAR-10-C"
    folder.mkdir()
    np.save(folder / "labels.npy", np.tile(labels, 5))
    np.save(folder / f"{CIFAR_C[0]}.npy", np.zeros((60, 8, 8, 3), np.uint8))
    for name in CIFAR_C[1:]:
        os.link(folder / f"{CIFAR_C[0]}.npy", folder / f"{name}.npy")
    return folder


@of("E-CORRUPTION-FILES")
def a_file_is_missing(at, monkeypatch):
    folder = corrupted(at, arrays()["test_labels"])
    (folder / "fog.npy").unlink()
    return evaluate(at, monkeypatch, *weights(at), "--plan", "cifar-10-c", "--corruptions", folder)


@of("E-CORRUPTION-OTHER")
def of_other_images(at, monkeypatch):
    folder = corrupted(at, (arrays()["test_labels"] + 1) % 3)
    return evaluate(at, monkeypatch, *weights(at), "--plan", "cifar-10-c", "--corruptions", folder)


@of("E-PAIRS")
def too_few_images(at, monkeypatch):
    from brainreg.flags import main
    return command(monkeypatch, main, "--data", npz(at), "--task", "CIFAR10", "--base_channels", "4", "--device", "cpu",
                   "--epoch_num", "1", "--valid_portion", "0.2", "--attack", "False", "--reg_alpha", "1",
                   "--reg_data", "CIFAR10", "--reg_image_num", "3", "--reg_batch_size", "4",
                   *places(at))
