"""The data sets that torchvision unpacks and checks: CIFAR-10, CIFAR-100, MNIST, Fashion-MNIST."""

import os
import pickle
import shutil
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
from common.download import Remote, fetch
from common.errors import UserError
from common.files import write_failure

MOST = 250_000_000             # bytes of the largest archive, and some more
# What a damaged file raises in torchvision, tarfile, gzip and pickle.
FAILURES = (OSError, RuntimeError, ValueError, AssertionError, EOFError, IndexError, tarfile.TarError, zlib.error,
            pickle.UnpicklingError)


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

    Unpacked files appear in data_dir whole or not at all; a download that was cut off goes on (common.download).
    Archives that lie in data_dir already, put there by hand, are used if their md5 is right.  Raises UserError.
    """
    source = SOURCES[name]
    prepared = data_dir / f"{name}.npz"
    if prepared.exists():
        return load_npz(prepared, name=name, source=f"npz file {prepared.name} in the data folder")
    parts = _brought(name, source, data_dir)
    train, test = (checked_split(images, labels, f"{name}: {part}_")
                   for part, (images, labels) in zip(("train", "test"), parts[:2], strict=True))
    return DataSet(name, train, test, len(parts[2]), parts[2], f"torchvision {source.cls}")


def bring_vision(name: str, data_dir: Path) -> Path:
    """Have torchvision's files of `name` in data_dir; their folder.  Raises UserError."""
    _brought(name, SOURCES[name], data_dir)
    return data_dir / SOURCES[name].folder


def _brought(name: str, source: Source, data_dir: Path) -> tuple[tuple, tuple, tuple[str, ...]]:
    """What `_open` returns, downloaded where it is not there."""
    parts = _open(source, data_dir)
    if parts is None:
        _download(name, source, data_dir)
        parts = _open(source, data_dir)
    if parts is None:
        raise UserError(f"the files of {name} in {data_dir / source.folder} are damaged: "
                        "remove that folder and type the same command again", code="E-DATA-DAMAGED")
    return parts


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


def _remotes(cls: Any) -> list[Remote]:
    """The archives of a torchvision class, by the addresses and the md5s that torchvision has."""
    if hasattr(cls, "resources"):
        return [Remote(name, tuple(mirror + name for mirror in cls.mirrors), f"md5:{md5}", MOST)
                for name, md5 in cls.resources]
    return [Remote(cls.filename, (cls.url,), f"md5:{cls.tgz_md5}", MOST)]


def _download(name: str, source: Source, data_dir: Path) -> None:
    """Fetch the archives, unpack them in a temporary folder beside the place, check, and move there."""
    cls, there = _torchvision_class(source), data_dir / source.archives
    remotes = _remotes(cls)
    new = [folder for folder in (there, *there.parents) if not folder.exists()]
    mine = [there / file.name for file in remotes if not (there / file.name).exists()]
    try:
        with _working_folder(data_dir) as work:
            archives = [_fetched(name, file, remotes, data_dir, there) for file in remotes]
            (work / source.archives).mkdir(parents=True, exist_ok=True)
            for archive in archives:
                (work / source.archives / archive.name).symlink_to(archive.resolve())
            try:
                cls(work, download=True)              # finds the archives, and unpacks them
            except OSError as error:
                raise write_failure(data_dir / source.folder, error) from error
            if _open(source, work) is None:
                raise UserError(f"the archives of {name} in {there} do not hold it: remove them and type the same "
                                "command again", code="E-DATA-DAMAGED")
            if _open(source, data_dir) is None:       # no other process was faster
                _put(work / source.folder, data_dir / source.folder, work / "replaced")
        for archive in mine:
            if there == data_dir:                     # an archive within the folder of its files stays there
                archive.unlink(missing_ok=True)
    finally:
        for folder in new:                            # of ours, and only if nothing came of it
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def _fetched(name: str, file: Remote, all_of_it: list[Remote], data_dir: Path, there: Path) -> Path:
    """The archive in its place; a UserError that also says what may be done by hand."""
    try:
        return fetch(file, there)
    except UserError as error:
        if error.code not in ("E-DOWNLOAD", "E-DOWNLOAD-HASH"):
            raise
        names = ", ".join(one.name for one in all_of_it)
        raise UserError(f"cannot download {name}: {error}; or put {names} into {there} by hand, or arrays into "
                        f"{data_dir / (name + '.npz')}, or use npz:PATH or another --data-dir",
                        code=error.code) from error


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
