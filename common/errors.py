"""Errors that a user can mend: one line, exit status 2, nothing written."""

import sys
from collections.abc import Callable
from typing import NoReturn


class UserError(Exception):
    """Something the user got wrong.  The text is one line: what is wrong, where, and how to mend it."""


def exit_cleanly(main: Callable[[], int | None]) -> NoReturn:
    """Run `main` as a command: a UserError becomes one line on stderr and exit status 2, Ctrl-C status 130.

    Anything else is a defect of ours and keeps its traceback.
    """
    try:
        status = main()
    except UserError as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted: type the same command again and it goes on from the last whole step", file=sys.stderr)
        sys.exit(130)
    sys.exit(status or 0)
