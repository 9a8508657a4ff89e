"""One job at a time where two would spoil each other's files.  No torch here.

A lock is a file beside what it guards, which the kernel frees when its process ends, however it ends: none is ever
stale, and a file that a killed process left behind locks nothing.  On a network file system it holds between machines
as far as that system does (NFS does; mounts with `nolock` or `local_lock=flock` do not); where there are no locks at
all the job goes on, and a line says so.  Of several processes of one run (common.group) rank 0 takes the lock.
"""

import atexit
import errno
import fcntl
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from common.errors import UserError
from common.files import write_failure

PATIENCE = 1.0                       # seconds: who has it may just be ending
PAUSE = 0.05
UNSUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_held: dict[Path, int | None] = {}   # path -> open file; None where there are no locks


def take(path: Path, what: str, *, shared: bool = False) -> None:
    """Have the lock `path` until `free` or the end of this process; taken again by the same process it is no news.

    shared: together with others that take it so, but with none that does not.  what: the UserError (E-BUSY) says that
    it is in use where another process has the lock.
    """
    path = Path(path).absolute()
    if path in _held:
        return
    deadline, file = time.monotonic() + PATIENCE, None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            file = None
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            if not _locked(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX):
                who = _holder(file)
                os.close(file)
                if time.monotonic() > deadline:
                    raise UserError(f"{what} is in use by {who}: wait for its end, or stop it; two jobs at once would "
                                    "spoil each other's files", code="E-BUSY")
                time.sleep(PAUSE)
            elif _is_at(file, path):
                break
            else:                    # the last one to have it has removed it meanwhile
                os.close(file)
    except OSError as error:
        if file is None or error.errno not in UNSUPPORTED:
            raise write_failure(path, error) from error
        print(f"note: {path.parent} is on a file system without locks: nothing keeps a second job from "
              f"{what} ({error.strerror})", file=sys.stderr)
        os.close(file)
        _held[path] = None
        return
    _held[path] = file
    with suppress(OSError):          # it is only for the message
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps({"pid": os.getpid(), "host": platform.node()}).encode(), 0)


def free(path: Path) -> None:
    """Give the lock back, and remove its file unless others share it."""
    file = _held.pop(path := Path(path).absolute(), None)
    if file is None:
        return
    with suppress(OSError):
        if _locked(file, fcntl.LOCK_EX) and _is_at(file, path):
            path.unlink()
    os.close(file)


@atexit.register
def free_all() -> None:
    """Give back what is left at the end of the process."""
    for path in list(_held):
        free(path)


@contextmanager
def locked(path: Path, what: str, *, shared: bool = False) -> Iterator[None]:
    """Have the lock for the length of the block; see `take`."""
    take(path, what, shared=shared)
    try:
        yield
    finally:
        free(path)


def _locked(file: int, how: int) -> bool:
    """Whether the open file could be locked at once."""
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except OSError as error:
        # NFS says EACCES.
        if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False


def _holder(file: int) -> str:
    """Who has the lock, as far as it said so."""
    try:
        said = json.loads(os.pread(file, 1000, 0))
        return f"process {int(said['pid'])} on {str(said['host'])[:100]}"
    except (OSError, ValueError, TypeError, KeyError):
        return "another process"
