"""SIGTERM and Ctrl-C: the command ends within seconds and keeps what is done.  No torch here.

A signal unwinds the command at once, as an exception, so that temporary files go; but within `held` it waits for the
end of the block: a step of training, or the writing of its state.  A second signal ends the process on the spot.

Of several processes none waits for a step's end: they stop together (common.watch) and go on from the last whole
epoch.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

CAUGHT = (signal.SIGTERM, signal.SIGINT)
REPEAT = 1.0                         # seconds in which a further signal is the same one: make passes on what it gets


class Stopped(BaseException):
    """A signal asked this process to end.  kept: what its line says of the work so far."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number
        self.kept = "what is done is kept"

    @property
    def status(self) -> int:
        """The exit status, as a shell gives it."""
        return 128 + self.number

    @property
    def line(self) -> str:
        """What the command says last."""
        who = "interrupted" if self.number == signal.SIGINT else f"stopped by {self}"
        return f"{who}: {self.kept}; type the same command again and it goes on"


class _State:
    """What the handler knows: the first signal and when it came; how many `held` blocks are open."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.since = 0.0
        self.blocks = 0
        self.alone = True

    def handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.number is None:
            self.number, self.since = number, now
            if not self.blocks:
                raise Stopped(number)
        elif now - self.since > REPEAT:
            os._exit(128 + number)


_state = _State()


@contextmanager
def caught() -> Iterator[None]:
    """Within the block SIGTERM and SIGINT become `Stopped`; one that was ignored before (nohup, &) stays so."""
    global _state
    before, former = {}, _state
    _state = _State()
    try:
        for number in CAUGHT:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, _handle)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _state = former


def _handle(number: int, frame: FrameType | None) -> None:
    _state.handle(number, frame)


@contextmanager
def held() -> Iterator[None]:
    """A signal that comes within the block waits for its end, and is raised there if the block ended well.

    So is one that was lost before, in a finaliser, out of which nothing can be raised.
    """
    if not _state.alone:
        yield
        return
    _state.blocks += 1
    try:
        yield
    finally:
        _state.blocks -= 1
    if _state.number is not None and not _state.blocks and not isinstance(sys.exception(), Stopped):
        raise Stopped(_state.number)


def among_others() -> None:
    """This process is one of several: nothing is held, and SIGINT is again what `common.watch` ends them with."""
    _state.alone = False
    if signal.getsignal(signal.SIGINT) is _handle:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def status_of(words: Sequence[str | Path], **given: Any) -> int:
    """Run a command, `given` as to subprocess.Popen; its exit status.  A signal is passed on, its end waited for."""
    with subprocess.Popen(words, **given) as child:
        try:
            return child.wait()
        except Stopped as stopped:
            child.send_signal(stopped.number)
            raise
