"""Archives and files that no package fetches: where they are, their hashes, and how they are unpacked.  No torch here.

The md5 of Tiny-ImageNet's archive is none of its authors' (they publish none): it is the one that public code which
reads the data set agrees on.  Those of CIFAR-10-C and CIFAR-100-C are of their records at Zenodo.
"""

import os
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from tqdm import tqdm

from common.download import Remote, fetch
from common.environment import portable
from common.errors import UserError
from common.files import write_failure


@dataclass(frozen=True)
class Archive:
    """A file and what is in it.  folder: the one that all is in, "" for a file that is used as it is; others: names
    under which it may lie there as well; counts: pattern below the folder -> how many files there must be."""

    remote: Remote
    folder: str = ""
    others: tuple[str, ...] = ()
    counts: tuple[tuple[str, int], ...] = ()


ARCHIVES = {
    "tiny-imagenet": Archive(
        Remote("tiny-imagenet-200.zip", ("http://cs231n.stanford.edu/tiny-imagenet-200.zip",),
               "md5:90528d7ca1a48142e341f4ef8d21d0de", 248_100_043),
        "tiny-imagenet-200", ("tiny-imagenet",), (("train/**/*.JPEG", 100_000), ("val/**/*.JPEG", 10_000))),
    "cifar-10-c": Archive(
        Remote("CIFAR-10-C.tar", ("https://zenodo.org/records/2535967/files/CIFAR-10-C.tar?download=1",),
               "md5:56bf5dcef84df0e2308c6dcbcbbd8499", 2_918_471_680), "CIFAR-10-C", counts=(("labels.npy", 1),)),
    "cifar-100-c": Archive(
        Remote("CIFAR-100-C.tar", ("https://zenodo.org/records/3555552/files/CIFAR-100-C.tar?download=1",),
               "md5:11f0ed0f1191edbf9fa23466ae6021d3", 2_918_473_216), "CIFAR-100-C", counts=(("labels.npy", 1),)),
    "cifar10-ddpm": Archive(
        Remote("cifar10_ddpm.npz", ("https://storage.googleapis.com/dm-adversarial-robustness/cifar10_ddpm.npz",), "",
               4_000_000_000)),
}


def bring(archive: Archive, data_dir: Path) -> str:
    """Have the archive's content in `data_dir`, whole; what was done, in words.  UserErrors as of `fetch`."""
    file = archive.remote
    if not archive.folder:
        return f"{portable(str(fetch(file, data_dir)))} is there"
    target = data_dir / archive.folder
    for name in (archive.folder, *archive.others):
        if lacking(archive, data_dir / name) is None:
            return f"{portable(str(data_dir / name))} is there already"
    if target.exists():
        raise UserError(f"{target} is there, but not complete ({lacking(archive, target)}): move it away and type the "
                        "same command again", code="E-DOWNLOAD-UNPACK")
    path = fetch(file, data_dir)
    unpack(archive, path, target)
    return f"{portable(str(target))} is there; {path.name} may be removed"


def lacking(archive: Archive, folder: Path) -> str | None:
    """What a folder lacks of the archive's content, or None."""
    for pattern, count in archive.counts:
        found = sum(1 for _ in folder.glob(pattern)) if folder.is_dir() else 0
        if found != count:
            return f"{found} of {count} files {pattern}"
    return None


def unpack(archive: Archive, path: Path, target: Path) -> None:
    """Unpack beside the place and rename: whole or absent."""
    try:
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            for name, stream in tqdm(members(path), desc=f"unpacking {path.name}", unit="file", disable=None):
                place = work / inside(name, archive, path)
                place.parent.mkdir(parents=True, exist_ok=True)
                with open(place, "wb") as out:
                    shutil.copyfileobj(stream, out, 1 << 20)
            if (lacks := lacking(archive, work / archive.folder)) is not None:
                raise UserError(f"{path} has {lacks}: remove it and type the same command again",
                                code="E-DOWNLOAD-UNPACK")
            os.replace(work / archive.folder, target)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError) as error:
        raise UserError(f"{path} cannot be unpacked ({error}): remove it and type the same command again",
                        code="E-DOWNLOAD-UNPACK") from error
    except OSError as error:
        raise write_failure(target, error) from error


def members(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Name and content of each file in a zip or tar archive; a UserError for a link or a device."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as file:
            for entry in file.infolist():
                if not entry.is_dir():
                    with file.open(entry) as stream:
                        yield entry.filename, stream
        return
    with tarfile.open(path, "r:") as file:
        for entry in file:
            if entry.isdir():
                continue
            if not entry.isreg():
                raise UserError(f"{path} holds {entry.name}, which is no plain file: it is not the published archive",
                                code="E-DOWNLOAD-UNPACK")
            with file.extractfile(entry) as stream:
                yield entry.name, stream


def inside(name: str, archive: Archive, path: Path) -> PurePosixPath:
    """A member's name as a path below the archive's own folder; UserError for one that leads elsewhere."""
    found = PurePosixPath(name)
    if found.parts[:1] != (archive.folder,) or ".." in found.parts:
        raise UserError(f"{path} holds {name[:80]!r}, which is not below {archive.folder}/: it is not the published "
                        "archive", code="E-DOWNLOAD-UNPACK")
    return found
