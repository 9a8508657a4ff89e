"""Jobs that are killed at random moments and started again with the same command until they end.  Knows no paper.

A place is the folder of one run of a job: all that the job reads besides shared data, and all that it writes.  A
strike comes after a random share of the time that an undisturbed run took, or as soon as a file is being written then.
"""

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from common.environment import ROOT
from common.errors import UserError

AIMS = ("start", "work", "write")
NEXT_WRITE = 3.0                     # seconds that a strike at a write waits for one
MOST = 10.0                          # seconds that a job may take to end after SIGTERM
QUIET = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "MPLBACKEND": "Agg"}


@dataclass(frozen=True)
class Job:
    """words: a command line in which {place} stands for the place; fill: puts what it reads into a new place; inside:
    it is started in the place, not at the repository's root.
    """

    kind: str
    words: tuple[str, ...]
    fill: Callable[[Path], None] = lambda place: None
    inside: bool = False

    def command(self, place: Path) -> list[str]:
        return [word.replace("{place}", str(place)) for word in self.words]

    def start(self, place: Path, log: Path | None = None, **options: Any) -> subprocess.Popen:
        """The running job, which leads a process group of its own; what it says on stderr goes to `log` (None:
        `log_of(place)`)."""
        with open(log or log_of(place), "wb") as stream:
            return subprocess.Popen(self.command(place), cwd=place if self.inside else ROOT,
                                    env={**os.environ, **QUIET}, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                    stderr=stream, start_new_session=True, **options)


class Strike(NamedTuple):
    """aim: the share is of the whole time (start), of the time since the first write (work), or of that, and then the
    signal waits for a file that is being written (write).
    """

    signal: signal.Signals
    aim: str
    share: float


@dataclass(frozen=True)
class Sitting:
    """One start of a job and how it ended.  Times in seconds.

    status: negative where a signal ended it; total: from its start to its end; work: from its first write to its end;
    struck: when the signal was sent, None if the job ended before; ending: from the signal to the end; writing: a
    temporary file was there when it ended; hung: it did not end in time and was killed.
    """

    status: int
    said: str
    total: float
    work: float
    strike: Strike | None = None
    struck: float | None = None
    ending: float = 0.0
    writing: bool = False
    hung: bool = False


@dataclass
class Outcome:
    """What one run of a job went through.  hits: the sittings that were struck; losses: a line each."""

    hits: list[Sitting] = field(default_factory=list)
    restarts: int = 0
    losses: list[str] = field(default_factory=list)


def log_of(place: Path) -> Path:
    """Where the stderr of the last sitting is kept: beside the place, which only the job writes to."""
    return place.with_name(f"{place.name}.stderr")


def files_of(place: Path) -> dict[str, tuple[int, int]]:
    """Relative path -> (time of change, size), of every file but Python's own caches."""
    found = {}
    for folder, inner, names in os.walk(place):
        inner[:] = [name for name in inner if name != "__pycache__"]
        for name in names:
            path = os.path.join(folder, name)
            try:
                status = os.lstat(path)
            except OSError:
                continue
            found[os.path.relpath(path, place)] = (status.st_mtime_ns, status.st_size)
    return found


def temporaries(place: Path) -> list[Path]:
    """Files that were being written and have not got their name yet."""
    return [place / name for name in sorted(files_of(place)) if name.endswith(".tmp")]


def sit(job: Job, place: Path, strike: Strike | None = None, whole: Sitting | None = None,
        most: float = 600.0, **options: Any) -> Sitting:
    """Start the job and wait for its end; a strike makes it come earlier.

    whole: the undisturbed sitting, which a strike is timed by; most: seconds after which a job that has not ended is
    killed.
    """
    before, began = files_of(place), time.monotonic()
    process = job.start(place, **options)

    def reached(condition: Callable[[], bool], limit: float, pause: float = 0.004) -> bool:
        """Whether the condition came true before the job ended and the limit (on this clock) was over."""
        while process.poll() is None and time.monotonic() < limit:
            if condition():
                return True
            time.sleep(pause)
        return False

    def over(moment: float) -> Callable[[], bool]:
        return lambda: time.monotonic() >= moment

    last, struck, ending, hung = began + most, None, 0.0, False
    try:
        if strike is not None and strike.aim == "start":
            first = began
            alive = reached(over(began + strike.share * whole.total), last)
        else:
            reached(lambda: files_of(place) != before, last)
            first = time.monotonic()
            alive = strike is not None and reached(over(first + strike.share * whole.work), last)
        if alive and strike.aim == "write":
            reached(lambda: bool(temporaries(place)), time.monotonic() + NEXT_WRITE, 0.0005)
        if alive and process.poll() is None:
            struck = time.monotonic() - began
            os.killpg(process.pid, strike.signal)
            last = time.monotonic() + MOST
        try:
            status = process.wait(max(0.1, last - time.monotonic()))
        except subprocess.TimeoutExpired:
            hung = True
            status = _end(process)
        ended = time.monotonic()
        if struck is not None:
            ending = ended - began - struck
        _end(process)
    except BaseException:
        _end(process)
        raise
    if struck is not None and status == 0:
        struck = None                                     # it was at its end already
    return Sitting(status, log_of(place).read_text(errors="replace"), ended - began, ended - first, strike, struck,
                   ending, bool(temporaries(place)), hung)


def _end(process: subprocess.Popen) -> int:
    """SIGKILL whatever is left of the job's process group, and wait until nothing of it runs."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    status, limit = process.wait(), time.monotonic() + 5
    while _runs(process.pid) and time.monotonic() < limit:
        time.sleep(0.005)
    return status


def _runs(group: int) -> bool:
    """Whether a process of the group is more than a zombie, which nobody may come to collect; Linux only, else no."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, leader = path.read_text().rpartition(")")[2].split()[:3]
        except (OSError, ValueError):
            continue
        if int(leader) == group and state not in "ZX":
            return True
    return False


def tear(place: Path, draw: random.Random) -> int:
    """What a power cut may do to files that were not renamed yet: cut each off at a random length; how many."""
    found = temporaries(place)
    for path in found:
        os.truncate(path, draw.randint(0, path.stat().st_size))
    return len(found)


def strikes(count: int, draw: random.Random, first: int = 0) -> list[Strike]:
    """So many strikes at random moments, with SIGKILL and SIGTERM in turns (first: 0 begins with SIGKILL)."""
    kinds = (signal.SIGKILL, signal.SIGTERM)
    return [Strike(kinds[(first + number) % 2], draw.choices(AIMS, (1, 2, 2))[0], draw.random())
            for number in range(count)]


def wrong_ending(sitting: Sitting) -> list[str]:
    """What is wrong with the way in which a struck job ended."""
    name, number, found = sitting.strike.signal.name, int(sitting.strike.signal), []
    if sitting.hung:
        found.append(f"not ended {MOST:.0f} seconds after {name}")
    elif sitting.status not in (-number, 128 + number):
        found.append(f"status {sitting.status} after {name}: {last_line(sitting.said)}")
    if "Traceback" in sitting.said:
        found.append(f"a traceback after {name}: {last_line(sitting.said)}")
    return found


def last_line(said: str) -> str:
    """The last line of what a job said, cut to what fits a table."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "nothing said"


def run_struck(job: Job, place: Path, whole: Sitting, planned: Sequence[Strike], draw: random.Random, *,
               checks: Callable[[Path], list[str]], judge: Callable[[Path], list[str]]) -> Outcome:
    """A run of the job in a new place under the planned strikes, each in a sitting of its own, and then to its end.

    whole: the undisturbed sitting.  checks: what is wrong with a place that a killed job left; judge: what is wrong
    with one where the job ended.
    A strike that comes too late ends the run, and those behind it are not made.
    """
    outcome, most, ended = Outcome(), 60 + 20 * whole.total, None
    place.mkdir(parents=True)
    job.fill(place)
    for number, strike in enumerate(planned):
        # A job that goes on has less to do.
        sitting = sit(job, place, strike._replace(share=strike.share / (number + 1)), whole, most)
        outcome.restarts += number > 0
        if sitting.struck is None:
            ended = sitting
            break
        outcome.hits.append(sitting)
        outcome.losses += wrong_ending(sitting)
        if strike.signal == signal.SIGKILL:
            tear(place, draw)
        outcome.losses += [f"after {strike.signal.name}: {line}" for line in checks(place)]
    if ended is None:
        ended = sit(job, place, most=most)
        outcome.restarts += 1
    outcome.losses += judge(place) if ended.status == 0 else [refused(ended)]
    return outcome


def refused(sitting: Sitting) -> str:
    """A sitting that should have ended well and did not, in a line."""
    what = "did not end" if sitting.hung else f"ended with status {sitting.status}"
    return f"started again it {what}: {last_line(sitting.said)}"


def run_undisturbed(job: Job, place: Path) -> Sitting:
    """The reference: a run in a new place that nobody touches; UserError where it does not end well."""
    place.mkdir(parents=True)
    job.fill(place)
    sitting = sit(job, place)
    if sitting.status != 0:
        raise UserError(f"the job {job.kind} does not end well even if nobody touches it (status {sitting.status}): "
                        f"{last_line(sitting.said)}; mend that first", code="E-STEP-FAILED")
    return sitting

