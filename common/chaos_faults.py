"""Disks that are full, read-only or fail half-way through a write; two jobs at once; data that change between sittings.

In each fault a job must end with status 2 and one line, keep its last whole state, and go on to the same bits once the
fault is gone.  Full and read-only disks are small file systems of their own, which only root may mount; elsewhere a
read-only folder stands in for the latter, and the former is skipped, which the record says.
"""

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from common import chaos_judge
from common.chaos import Job, Sitting, Strike, files_of, last_line, log_of, sit
from common.environment import portable

DISK = 64 << 20                      # bytes of a disk that is to be full; it holds them only once they are written
TRIES = 4


class Whole(NamedTuple):
    """A job with its undisturbed run."""

    job: Job
    place: Path
    sitting: Sitting


class Skipped(Exception):
    """A fault that cannot be made here; the text says why."""


@contextmanager
def no_fault(place: Path) -> Iterator[None]:
    yield


@contextmanager
def disk(place: Path) -> Iterator[None]:
    """A file system of its own at `place`; Skipped where this user may not mount one."""
    place.mkdir(parents=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "chaos", str(place)], capture_output=True
                      ).returncode != 0:
        raise Skipped("only root may mount a small disk")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@contextmanager
def full(place: Path) -> Iterator[None]:
    """The disk at `place` has not a byte left."""
    ballast = place / ".ballast"
    with open(ballast, "wb", buffering=0) as stream, contextlib.suppress(OSError):
        while stream.write(bytes(1 << 16)):
            pass
    try:
        yield
    finally:
        ballast.unlink()


@contextmanager
def read_only(place: Path) -> Iterator[None]:
    """The disk at `place` takes no write; where it is no disk of its own, its folders do not."""
    if os.path.ismount(place):
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True, capture_output=True)
        try:
            yield
        finally:
            subprocess.run(["mount", "-o", "remount,rw", str(place)], check=True, capture_output=True)
        return
    folders = [place, *(path for path in place.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        yield
    finally:
        for folder in folders:
            folder.chmod(0o755)


def longest_file(size: int) -> dict[str, Any]:
    """What starts a process that cannot write a file longer than `size` bytes: such a write stops half-way."""
    return {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))}


@contextmanager
def changed(path: Path) -> Iterator[None]:
    """The first and the last number of the file's largest array are others; afterwards the file is as it was."""
    import numpy as np

    kept, status = path.read_bytes(), path.stat()
    with np.load(path) as file:
        arrays = dict(file)
    largest = max(arrays.values(), key=lambda array: array.nbytes)
    largest.flat[[0, -1]] ^= 255
    np.savez(path, **arrays)
    try:
        yield
    finally:
        path.write_bytes(kept)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def begun(whole: Whole, place: Path) -> None:
    """A job in `place` that was killed after its first write, so that there is a state to lose."""
    for attempt in range(TRIES):
        for path in place.iterdir() if place.exists() else ():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        place.mkdir(parents=True, exist_ok=True)
        whole.job.fill(place)
        if sit(whole.job, place, Strike(signal.SIGKILL, "work", 0.4 / 2 ** attempt), whole.sitting).struck is not None:
            return
    raise Skipped("the job always ended before it was to be struck")


def refusal(sitting: Sitting) -> list[str]:
    """What is wrong with the way in which a job took a fault: status 2 and one line, behind notes at most, is right."""
    found, lines = [], [line for line in sitting.said.splitlines() if line.strip() and not line.startswith("note: ")]
    if sitting.status != 2:
        found.append(f"status {sitting.status} in the place of 2")
    if "Traceback" in sitting.said:
        found.append(f"a traceback: {last_line(sitting.said)}")
    elif len(lines) != 1 or not lines[0].startswith("error: "):
        found.append(f"on stderr in the place of one error: {' / '.join(lines)[:200] or 'nothing'}")
    return found


def survive(whole: Whole, place: Path, fault: Callable[[Path], AbstractContextManager[None]], *,
            on_disk: bool = False, fresh: bool = False, **options: Any) -> tuple[Sitting, list[str]]:
    """The job is begun, meets the fault, and goes on without it; the sitting under the fault, and what was lost.

    fresh: the fault meets its first sitting.
    """
    with disk(place) if on_disk else no_fault(place):
        if fresh:
            place.mkdir(parents=True, exist_ok=True)
            whole.job.fill(place)
        else:
            begun(whole, place)
        # What a killed job leaves of its locks guards nothing, and goes with the next one.
        before = {name for name in files_of(place) if not name.endswith((".tmp", ".lock"))}
        with fault(place):
            met = sit(whole.job, place, **options)
            lost = refusal(met)
            lost += [f"under the fault: {line}" for line in chaos_judge.torn(place)]
            lost += [f"under the fault {name} went" for name in sorted(before - set(files_of(place)))]
        ended = sit(whole.job, place)
        if ended.status != 0:
            return met, [*lost, f"afterwards it ends with status {ended.status}: {last_line(ended.said)}"]
        return met, lost + chaos_judge.losses(whole.place, place)


def meet(whole: Whole, place: Path) -> tuple[Sitting, list[str]]:
    """Two jobs start in one place at the same time: one ends well, and the other refuses with E-BUSY."""
    place.mkdir(parents=True)
    whole.job.fill(place)
    other = place.with_name(f"{place.name}-other")
    began = time.monotonic()
    processes = [whole.job.start(place), whole.job.start(place, log=log_of(other))]
    try:
        ended = [process.wait(60 + 20 * whole.sitting.total) for process in processes]
    finally:
        for process in processes:
            process.kill()
    said = [log_of(where).read_text(errors="replace") for where in (place, other)]
    if ended == [0, 0]:
        raise Skipped("one of the two jobs had ended when the other began")
    loser = 0 if ended[0] != 0 else 1
    second = Sitting(ended[loser], said[loser], time.monotonic() - began, 0.0)
    lost = refusal(second)
    if "E-BUSY" not in second.said:
        lost.append("the second job does not say E-BUSY")
    if ended[1 - loser] != 0:
        lost.append(f"the first job ends with status {ended[1 - loser]}: {last_line(said[1 - loser])}")
    return second, lost + chaos_judge.losses(whole.place, place)


def all_faults(*, training: Whole, evaluation: Whole, cache: Whole, tables: Whole, data: str, root: Path,
               stop: float, only: Collection[str] = ()) -> list[dict[str, Any]]:
    """Every fault (or those of these names), in JSON; none begins after `stop` (time.monotonic).  data: the file in the
    training's place that it is trained on.
    """
    short = longest_file(6000)
    faults: dict[str, tuple[Whole, Callable[[Path], tuple[Sitting, list[str]]]]] = {
        "full disk, training": (training, lambda at: survive(training, at, full, on_disk=True)),
        "full disk, evaluation": (evaluation, lambda at: survive(evaluation, at, full, on_disk=True)),
        "write fails half-way, training": (training, lambda at: survive(training, at, no_fault, **short)),
        "write fails half-way, cache": (cache, lambda at: survive(cache, at, no_fault, fresh=True,
                                                                       **longest_file(10 << 20))),
        "read-only disk, training": (training, lambda at: survive(training, at, read_only, on_disk=os.geteuid() == 0)),
        "read-only disk, tables": (tables, lambda at: survive(tables, at, read_only, on_disk=os.geteuid() == 0)),
        "two jobs at once, training": (training, lambda at: meet(training, at)),
        "two jobs at once, evaluation": (evaluation, lambda at: meet(evaluation, at)),
        "data changed since the start": (training, lambda at: survive(training, at, lambda at: changed(at / data))),
    }
    found = []
    for number, (name, (whole, make)) in enumerate(faults.items()):
        if time.monotonic() > stop:
            break
        if only and name not in only:
            continue
        entry: dict[str, Any] = {"fault": name, "kind": whole.job.kind, "skipped": None, "losses": []}
        try:
            met, lost = make(root / f"fault-{number}")
            entry |= {"status": met.status, "said": portable(last_line(met.said)), "losses": [*map(portable, lost)]}
        except Skipped as reason:
            entry["skipped"] = str(reason)
        found.append(entry)
        print(f"{name}: {entry['skipped'] or entry['said']}", flush=True)
        for line in entry["losses"]:
            print(f"{name}: LOST: {line}", flush=True)
    return found
