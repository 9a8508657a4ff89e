"""The data sets that torchvision downloads and checks: CIFAR-10, CIFAR-100, MNIST, Fashion-MNIST."""

import errno
import http.client
import os
import pickle
import shutil
import socket
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.data.npz import checked_split, load_npz
from common.data.splits import DataSet
from common.errors import UserError
from common.files import write_failure

SILENCE_S = 30.0               # a server that says nothing for so long is not there
# What a failed download or a damaged file raises in torchvision, urllib, tarfile, gzip and pickle.
FAILURES = (OSError, RuntimeError, ValueError, AssertionError, EOFError, IndexError, http.client.HTTPException,
            tarfile.TarError, zlib.error, pickle.UnpicklingError)


@dataclass(frozen=True)
class Source:
    """Where torchvision keeps a data set below its root, and how many images it has."""

    cls: str                   # class in torchvision.datasets
    folder: str                # what it makes below its root
    archives: str              # where it looks for downloaded archives, below its root
    train: int
    test: int


SOURCES = {
    "cifar10": Source("CIFAR10", "cifar-10-batches-py", ".", 50_000, 10_000),
    "cifar100": Source("CIFAR100", "cifar-100-python", ".", 50_000, 10_000),
    "mnist": Source("MNIST", "MNIST", "MNIST/raw", 60_000, 10_000),
    "fashion-mnist": Source("FashionMNIST", "FashionMNIST", "FashionMNIST/raw", 60_000, 10_000),
}


def load_vision(name: str, data_dir: Path) -> DataSet:
    """The data set `name` of SOURCES: data_dir/NAME.npz if there, else torchvision's files there, else downloaded.

    A download appears in data_dir whole or not at all.  Archives that lie in data_dir already, put there by hand, are
    used if their md5 is right.  Raises UserError.
    """
    source = SOURCES[name]
    prepared = data_dir / f"{name}.npz"
    if prepared.exists():
        return load_npz(prepared, name=name, source=f"npz file {prepared.name} in the data folder")
    parts = _open(source, data_dir)
    if parts is None:
        _download(name, source, data_dir)
        parts = _open(source, data_dir)
    if parts is None:
        raise UserError(f"the files of {name} in {data_dir / source.folder} are damaged: "
                        "remove that folder and type the same command again", code="E-DATA-DAMAGED")
    train, test = (checked_split(images, labels, f"{name}: {part}_")
                   for part, (images, labels) in zip(("train", "test"), parts[:2], strict=True))
    return DataSet(name, train, test, len(parts[2]), parts[2], f"torchvision {source.cls}")


def _torchvision_class(source: Source) -> Any:
    # Slow to import, and only needed here.
    from torchvision import datasets

    return getattr(datasets, source.cls)


def _open(source: Source, root: Path) -> tuple[tuple, tuple, tuple[str, ...]] | None:
    """((images, labels) of train, of test, class names) from the files in `root`; None if missing or damaged."""
    cls = _torchvision_class(source)
    try:
        parts = [cls(root, train=train) for train in (True, False)]
        arrays = [(np.asarray(part.data), np.asarray(part.targets)) for part in parts]
    except FAILURES:
        return None
    # torchvision does not check the md5 of unpacked MNIST files; one cut off gives fewer images or fails above.
    if [len(images) for images, _ in arrays] != [source.train, source.test]:
        return None
    return arrays[0], arrays[1], tuple(parts[0].classes)


def _download(name: str, source: Source, data_dir: Path) -> None:
    """Download into a temporary folder beside the place, check, and move there."""
    cls = _torchvision_class(source)
    archives = list(cls.resources) if hasattr(cls, "resources") else [(cls.filename, cls.tgz_md5)]
    new = [folder for folder in (data_dir, *data_dir.parents) if not folder.exists()]
    try:
        with _working_folder(data_dir) as work:
            damaged = _take_archives(archives, data_dir / source.archives, work / source.archives)
            try:
                with _silence_limit():
                    cls(work, download=True)
            except FAILURES as error:
                raise _failure(name, source, data_dir, archives, damaged, error) from error
            if _open(source, work) is None:
                raise UserError(f"the download of {name} is damaged: type the same command again",
                                code="E-DATA-DAMAGED")
            if _open(source, data_dir) is None:       # no other process was faster
                _put(work / source.folder, data_dir / source.folder, work / "replaced")
    finally:
        for folder in new:                      # of ours, and only if nothing came of it
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


@contextmanager
def _working_folder(data_dir: Path) -> Iterator[Path]:
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".download-", dir=data_dir))
    except OSError as error:
        raise UserError(f"cannot make files in {data_dir}: {error.strerror or error}; name another folder with "
                        "--data-dir", code="E-WRITE") from error
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def _silence_limit() -> Iterator[None]:
    """torchvision sets no timeout, and an unreachable server would hang for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENCE_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _take_archives(archives: list[tuple[str, str]], there: Path, work: Path) -> list[Path]:
    """Link the sound archives that lie in `there` into `work`; return the unsound ones."""
    from torchvision.datasets.utils import check_integrity

    work.mkdir(parents=True, exist_ok=True)
    damaged = []
    for filename, md5 in archives:
        path = there / Path(filename).name
        if path.is_file() and check_integrity(path, md5):
            (work / path.name).symlink_to(path.resolve())
        elif path.is_file():
            damaged.append(path)
    return damaged


def _put(folder: Path, target: Path, aside: Path) -> None:
    """Move the folder to its place; what lies there is damaged and goes, but for the archives that were linked."""
    try:
        if target.exists():
            os.replace(target, aside)
        for link in [path for path in folder.rglob("*") if path.is_symlink()]:
            kept = aside / link.relative_to(folder)
            link.unlink()
            if kept.is_file():
                os.replace(kept, link)
        os.replace(folder, target)
    except OSError as error:
        raise write_failure(target, error) from error


def _failure(name: str, source: Source, data_dir: Path, archives: list[tuple[str, str]], damaged: list[Path],
             error: BaseException) -> UserError:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return write_failure(data_dir / source.folder, error)
    files = ", ".join(Path(filename).name for filename, _ in archives)
    reason = " ".join(str(error).split())[:160] or type(error).__name__
    half = f" ({', '.join(map(str, damaged))} is there, but incomplete or damaged)" if damaged else ""
    return UserError(f"cannot download {name}: {reason}{half}; put {files} into {data_dir / source.archives} by hand, "
                     f"or arrays into {data_dir / (name + '.npz')}, or use npz:PATH or another --data-dir",
                     code="E-DOWNLOAD")
