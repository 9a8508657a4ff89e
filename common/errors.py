"""Errors that a user can mend: one line, exit status 2, nothing written."""

import errno
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

from common import signals

DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class UserError(Exception):
    """Something the user got wrong.  The text is one line: what is wrong, where, and how to mend it.

    code: the row of docs/errors.md that explains it, such as "E-NPZ-KEYS"; printed behind the text.
    """

    def __init__(self, text: str, code: str | None = None):
        super().__init__(text)
        self.code = code


def exit_cleanly(main: Callable[[], int | None]) -> NoReturn:
    """Run `main` as a command: a UserError becomes one line on stderr and exit status 2, SIGTERM (common.signals)
    one and status 143, Ctrl-C one and status 130.  One whose output nobody reads any more ends quietly, with status 141
    if it was not done.

    Anything else is a defect of ours and keeps its traceback.  Of several processes that work together (common.group)
    the first that fails says so, all end with its status, and none waits for another that is gone.
    """
    with signals.caught():
        try:
            status = _status_of(main)
        except signals.Stopped as stopped:
            _stop(stopped.status, stopped.line)
    sys.exit(status)


def _status_of(main: Callable[[], int | None]) -> Any:
    """The exit status of a command that ends well; else it exits."""
    try:
        leave = _meet()
        try:
            status = main()
        except SystemExit as ended:
            status = ended.code
        try:
            sys.stdout.flush()             # a full disk under a log is told here, not by the interpreter
        except BrokenPipeError:
            _unheard()
        leave(status or 0)
    except UserError as error:
        _stop(2, _line(error))
    except KeyboardInterrupt:          # of several processes, or where it was raised by hand
        _stop(130, signals.Stopped(signal.SIGINT).line)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _unheard():
            _stop(128 + signal.SIGPIPE, "")
        if (said := _in_words(error)) is not None:
            _stop(2, _line(said))
        if (watch := _watch()) is not None:
            watch.fail(1, traceback.format_exc().rstrip())
        raise
    return status or 0


def _line(error: UserError) -> str:
    return "error: " + " ".join(str(error).split()) + (f" [{error.code}]" if error.code else "")


def _in_words(error: Exception) -> UserError | None:
    """The UserError for an error that is no defect, where nobody nearer to it has made one: a full disk, no memory,
    what torch does not compute deterministically; None for any other."""
    if isinstance(error, OSError) and error.errno in DISK:
        return _disk_failure(error)
    if "torch" not in sys.modules:
        return None
    # Here, not above: they import torch, and raise UserErrors themselves.
    from common import determinism, memory

    return determinism.in_words(error) or memory.in_words(error)


def _disk_failure(error: OSError) -> UserError:
    """What is said of a disk that takes no more, where no writer has said it: standard output, a temporary folder."""
    if error.filename is None:
        # What is left to print would fail again when the interpreter ends.
        with suppress(OSError, ValueError):
            _discard(sys.stdout)
    where = error.filename or "standard output or a temporary file"
    return UserError(f"cannot write {where}: {error.strerror}: free some space (or set TMPDIR) and type the same "
                     "command again; what is done is kept", code="E-DISK-FULL")


def _unheard() -> bool:
    """Whether who read standard output or error has enough, as `head` has; what is left to print is then thrown away,
    by the interpreter too when it ends."""
    gone = False
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):      # closed, or none of the system's
            poll = select.poll()
            poll.register(stream.fileno(), 0)
            if poll.poll(0):                                     # only errors are looked for
                gone = True
                _discard(stream)
    return gone


def _discard(stream: Any) -> None:
    """Let what is printed to a stream from now on go nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _meet() -> Callable[[Any], None]:
    """Meet the other processes of the run, if there are any; what parts from them, given the exit status."""
    # Here, not above: it raises UserErrors itself.
    from common import launch

    place = launch.place()
    if place.ranks == 1:
        return lambda status: None
    # Else the library reports the end of each connection with a page of C++.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    signals.among_others()
    from common import group

    group.current()
    launch.quieten(place)
    return group.leave


def _watch() -> Any:
    """What tells the other processes that this one fails; None where there are none."""
    group = sys.modules.get("common.group")
    return group.watch() if group else None


def _stop(status: int, line: str) -> NoReturn:
    if (watch := _watch()) is not None:
        watch.fail(status, line)
    if line:
        with suppress(OSError):
            print(line, file=sys.stderr)
    sys.exit(status)
