"""Room, write access and kind of the disks under data/, results/, weights/, build/ and the temporary folder."""

import errno
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from common.doctor.findings import NOTE, OK, PROBLEM, Finding, shown, size, some, text_of, typed

AREA = "disk"
GB = 10**9
# What a folder comes to hold.  data: the four sets of torchvision with archives, and Tiny-ImageNet with its archive,
# images and decoded arrays; weights: of a full ResNet-18, best, last, average and resume file, some 0.3 GB a run.
NEEDS = {"data": (4 * GB, "all data sets take about 4 GB"), "weights": (5 * GB, "a full run keeps about 0.3 GB of "
         "weights (ResNet-18; a WRN-34-10 1 GB), a paper has a dozen"), "results": (GB // 10, "records are small"),
         "build": (GB // 100, "rules are small"), "temporary files": (GB // 2, "evaluations pass through them")}
LEAST = GB // 5                # below this even a short run may fail
FEW_FILES = 150_000            # Tiny-ImageNet has 120,000
NETWORK = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "lustre", "gpfs", "beegfs", "ceph", "glusterfs", "fuse.sshfs",
           "afs", "panfs")


class Place(NamedTuple):
    """name: a key of NEEDS; folder: where it is; there: it, or the nearest folder above it that exists."""

    name: str
    folder: Path
    there: Path


def places(data: Path, results: Path, weights: Path, build: Path) -> list[Place]:
    """The folders that commands write into."""
    folders = {"data": data, "results": results, "weights": weights, "build": build,
               "temporary files": Path(tempfile.gettempdir())}
    return [Place(name, folder, _existing(folder)) for name, folder in folders.items()]


def _existing(folder: Path) -> Path:
    folder = Path(folder).absolute()
    return next((one for one in (folder, *folder.parents) if one.exists()), Path("/"))


def check_disk(all_places: list[Place]) -> list[Finding]:
    """Room, inodes, write access, network disks, and whether runs can be moved from results/ to weights/."""
    found, writable = [], []
    for place in all_places:
        if said := _unwritable(place):
            found.append(said)
        else:
            writable.append(place.name)
    groups: dict[int, list[Place]] = {}
    for place in all_places:
        groups.setdefault(place.there.stat().st_dev, []).append(place)
    for group in groups.values():
        found += room(group, shutil.disk_usage(group[0].there).free, *_inodes(group[0].there))
    if writable:
        found.append(Finding(OK, AREA, "write", f"a file can be written, renamed and removed in {some(writable, 9)}"))
    devices = {place.name: place.there.stat().st_dev for place in all_places}
    if devices["results"] != devices["weights"]:
        found.append(Finding(NOTE, AREA, "apart", "results/ and weights/ are on different disks: a run whose plan has "
                             "changed cannot be moved aside by make, move it by hand", "df -h results weights"))
    return [*found, *_network(all_places, text_of(Path("/proc/mounts")))]


def room(group: list[Place], free: int, inodes: int | None = None, total: int | None = None) -> Iterator[Finding]:
    """What is to be said of the folders of one disk with so many bytes and inodes (None: unknown) free."""
    names = some([place.name for place in group], 9)
    needed = sum(NEEDS[place.name][0] for place in group)
    where = typed("df", "-h", group[0].there)
    if free < needed:
        why = "; ".join(NEEDS[place.name][1] for place in group if NEEDS[place.name][0] > free / 2)
        most = "hardly any room" if free < LEAST else "little room"
        yield Finding(PROBLEM if free < LEAST else NOTE, AREA, "full", f"{most} for {names}: {size(free)} free; {why}",
                      f"{where} && du -sh data weights" if free < LEAST else where)
    else:
        yield Finding(OK, AREA, "room", f"{size(free)} free for {names}")
    if total and inodes is not None and inodes < FEW_FILES:
        yield Finding(PROBLEM if inodes < 1000 else NOTE, AREA, "inodes", f"the disk of {names} can hold only "
                      f"{inodes:,} more files (Tiny-ImageNet alone has 120,000)", typed("df", "-i", group[0].there))


def _inodes(folder: Path) -> tuple[int | None, int | None]:
    if not hasattr(os, "statvfs"):
        return None, None
    found = os.statvfs(folder)
    return found.f_favail, found.f_files


def _unwritable(place: Place) -> Finding | None:
    """The problem with writing into a folder, found by doing so: a small file, flushed, renamed and removed."""
    own = secrets.token_hex(4)             # so that nobody else's file is touched
    probe, renamed = (place.there / f".doctor-{own}{what}.{os.getpid()}.tmp" for what in ("", "-renamed"))
    try:
        if not place.there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "it is a file, not a folder")
        with open(probe, "xb") as stream:
            stream.write(b"a line to see whether there is room\n" * 100)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(probe, renamed)
        renamed.unlink()
    except OSError as error:
        for left in (probe, renamed):
            with suppress(OSError):
                left.unlink()
        return _refused(place, error)
    return None


def _refused(place: Place, error: OSError) -> Finding:
    folder = shown(place.there)
    what = f"cannot write into {folder} ({place.name}): {error.strerror or error}"
    if error.errno == errno.EROFS:
        return Finding(PROBLEM, AREA, "read-only", f"{what}; the disk is mounted read-only", typed("findmnt", "-T",
                                                                                                   place.there))
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        quota = error.errno == errno.EDQUOT
        return Finding(PROBLEM, AREA, "full", f"{what}; {'your quota is used up' if quota else 'the disk is full'}",
                       "quota -s" if quota else typed("df", "-h", place.there))
    return Finding(PROBLEM, AREA, "no-write", f"{what}; take it over, or name another folder (--results, --weights, "
                   "--data-dir)", typed("ls", "-ld", place.there))


def _network(all_places: list[Place], mounts: str) -> Iterator[Finding]:
    kinds = {place.name: kind for place in all_places if (kind := kind_of(place.there, mounts)) in NETWORK}
    if kinds:
        names, found = some(list(kinds), 9), some(sorted(set(kinds.values())))
        yield Finding(NOTE, AREA, "network", f"{names} on a network disk ({found}): do not start one run on "
                      "two machines, for locks may not reach across; images are read faster from a local disk "
                      "(--data-dir)", "df -hT data results weights")


def kind_of(folder: Path, mounts: str) -> str:
    """The kind of file system (ext4, nfs4, ...) that holds a folder; mounts: the text of /proc/mounts."""
    best: Mapping[str, str] = {}
    for line in mounts.splitlines():
        words = line.split()
        if len(words) >= 3:
            at = words[1].replace("\\040", " ")
            if Path(folder).resolve().is_relative_to(at) and len(at) >= len(best.get("at", "")):
                best = {"at": at, "kind": words[2]}
    return best.get("kind", "")
