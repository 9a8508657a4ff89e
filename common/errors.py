"""Errors that a user can mend: one line, exit status 2, nothing written."""

import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn


class UserError(Exception):
    """Something the user got wrong.  The text is one line: what is wrong, where, and how to mend it.

    code: the row of docs/errors.md that explains it, such as "E-NPZ-KEYS"; printed behind the text.
    """

    def __init__(self, text: str, code: str | None = None):
        super().__init__(text)
        self.code = code


def exit_cleanly(main: Callable[[], int | None]) -> NoReturn:
    """Run `main` as a command: a UserError becomes one line on stderr and exit status 2, Ctrl-C status 130.

    Anything else is a defect of ours and keeps its traceback.  Of several processes that work together (common.group)
    the first that fails says so, all end with its status, and none waits for another that is gone.
    """
    try:
        leave = _meet()
        try:
            status = main()
        except SystemExit as ended:
            status = ended.code
        leave(status or 0)
    except UserError as error:
        _stop(2, "error: " + " ".join(str(error).split()) + (f" [{error.code}]" if error.code else ""))
    except KeyboardInterrupt:
        _stop(130, "interrupted: type the same command again and it goes on from the last whole step")
    except Exception as error:
        # Here, not above: it raises UserErrors itself.
        from common import determinism

        if (said := determinism.in_words(error)) is not None:
            _stop(2, f"error: {said} [{said.code}]")
        if (watch := _watch()) is not None:
            watch.fail(1, traceback.format_exc().rstrip())
        raise
    sys.exit(status or 0)


def _meet() -> Callable[[Any], None]:
    """Meet the other processes of the run, if there are any; what parts from them, given the exit status."""
    # Here, not above: it raises UserErrors itself.
    from common import launch

    place = launch.place()
    if place.ranks == 1:
        return lambda status: None
    # Else the library reports the end of each connection with a page of C++.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
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
    print(line, file=sys.stderr)
    sys.exit(status)
