"""How a run is mended: by git, by its own command, or by moving it aside; and what is counted over all runs."""

import fcntl
import shlex
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from common.doctor.findings import PROBLEM, Finding, python, typed
from common.environment import ROOT

AREA = "runs"


@dataclass
class Tally:
    """What is counted over all runs, and said once."""

    runs: int = 0
    evaluations: int = 0
    flags: int = 0
    weights_here: int = 0
    absent: list[Path] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    dirty: list[str] = field(default_factory=list)
    resumable: list[Path] = field(default_factory=list)
    read: int = 0


def in_use(lock: Path) -> bool:
    """Whether a process has locked this file, beside a run's weights, for itself; nothing is written."""
    try:
        with open(lock, "rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def tracked_files(folder: Path) -> set[Path]:
    """The files below a folder that git keeps; none without git or a checkout."""
    try:
        done = subprocess.run(("git", "-C", str(folder), "ls-files", "-z"), capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return set()
    return {folder.absolute() / name for name in done.stdout.split("\0") if name} if done.returncode == 0 else set()


def broken(folder: Path, path: Path, what: str, tracked: set[Path]) -> Finding:
    """A record that cannot be used: git gives it back, else the folder goes aside and the run is made anew."""
    what = plain(what)
    if path.absolute() in tracked:
        return Finding(PROBLEM, AREA, "record", what, typed("git", "restore", "--", path))
    aside = Path("weights", "broken", folder.name)
    return Finding(PROBLEM, AREA, "record", f"{what}; move the folder away, then its command makes it anew",
                   f"mkdir -p {aside.parent} && {typed('mv', folder, str(aside))}")


def plain(said: object) -> str:
    """What an error says, with the repository's paths as one types them."""
    return str(said).replace(f"{ROOT}/", "")


def again(command: str) -> str:
    """A recorded command as one types it here; paths outside the repository were cut to .../NAME."""
    try:
        words = shlex.split(command)
    except ValueError:                     # a quotation mark without its twin: no command of ours
        return command
    return shlex.join([python(), *words[1:]] if words[:1] == ["python"] else words)


def cut(command: str) -> str:
    """What is to be said of a recorded command with a path that was cut."""
    return " (fill in where the file behind ... lies)" if "..." in command else ""
