"""Damaged and hostile files for the readers: what makes small valid ones, damages them, and judges the outcome.

Used by the tests (hypothesis draws) and by scripts/fuzz.py (plain random draws, for longer).
"""

import io
import shutil
import signal
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from common.errors import UserError

HANG_S = 60                    # after which a reader counts as hanging


@dataclass(frozen=True)
class Target:
    """A reader under test.

    make(folder): writes a small valid file or folder of files.  mutate(random, folder): damages it.  load(folder):
    reads it; the answer is not looked at.  may_write: folders, relative, where a documented cache appears.
    """

    name: str
    make: Callable[[Path], None]
    mutate: Callable[[Random, Path], None]
    load: Callable[[Path], Any]
    may_write: tuple[str, ...] = ()


def prepare(target: Target, valid: Path, folder: Path, random: Random | None) -> None:
    """A case in `folder`, which is new: a copy of the valid files in `valid`, made if there are none, damaged unless
    random is None."""
    if not valid.exists():
        valid.mkdir(parents=True)
        target.make(valid)
    shutil.copytree(valid, folder, symlinks=True)
    if random is not None:
        with warnings.catch_warnings(action="ignore"):         # of two members of one name, which is the point
            target.mutate(random, folder)


def judge(target: Target, folder: Path) -> str:
    """"accepted", "refused", or what is wrong: another error (its traceback), a hang, a file written."""
    before = state(folder, target.may_write)
    try:
        with (limit(HANG_S), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()),
              warnings.catch_warnings(action="ignore")):
            target.load(folder)
        verdict = "accepted"
    except UserError as error:
        verdict = "refused" if str(error).strip() else "a refusal without words"
    except SystemExit as ended:
        verdict = "refused" if ended.code in (0, 2) else f"exit status {ended.code}"
    except BaseException as error:  # the libraries' panics are none of Exception's kind
        if isinstance(error, KeyboardInterrupt):
            raise
        verdict = traceback.format_exc()
    if state(folder, target.may_write) != before:
        return f"files were written or changed ({verdict})"
    return verdict


def state(folder: Path, but: tuple[str, ...] = ()) -> dict[str, tuple[int, int, int]]:
    """Every file below `folder`, with kind, size and time; without the folders `but`."""
    found = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if not any(name == one or name.startswith(f"{one}/") for one in but):
            status = path.lstat()
            # A folder's time tells of caches beside; what lies in it is listed itself.
            files = not path.is_dir() or path.is_symlink()
            found[name] = (status.st_mode, *((status.st_size, status.st_mtime_ns) if files else (0, 0)))
    return found


class Hang(BaseException):
    """Not an Exception, so that no reader takes it for a damaged file."""


@contextmanager
def limit(seconds: int) -> Iterator[None]:
    """Raise `Hang` in the block after so many seconds, where signals can be had."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGALRM"):
        yield
        return

    def stop(*_: Any) -> None:
        raise Hang(f"no answer after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
