"""How the processes of one run stop together: no rank waits for one that is gone.

The first process that fails leaves its exit status with the store through which the ranks met, in the process of rank 0
or in torchrun's agent.  A thread of every process asks there; where a status appears, or the store is gone, it
interrupts the main thread and, should that hang in a collective, ends the process.
"""

import _thread
import os
import sys
import threading
import time
from contextlib import suppress
from datetime import timedelta
from typing import NoReturn

from torch import distributed

from common.errors import UserError
from common.launch import Place

MEETING = 600.0                      # seconds until all must be there
GRACE = 5.0                          # for the main thread to unwind
LINGER = 30.0                        # for the others to hear; all have within a second, but on a busy machine
PAUSE = 0.3                          # between two questions
# What a store raises where it cannot be reached.
BROKEN = (RuntimeError, OSError, ValueError)


def connect(place: Place, *, listens: bool) -> distributed.Store:
    """A connection to the store of all ranks, with a name space for this attempt."""
    try:
        store = distributed.TCPStore(place.host, place.port, place.ranks, is_master=listens, wait_for_workers=False,
                                     timeout=timedelta(seconds=MEETING))
    except BROKEN as error:
        where = f"{place.host}:{place.port}"
        what = f"cannot listen on {where}" if listens else f"cannot reach rank 0 at {where}"
        raise UserError(f"process {place.rank} of {place.ranks} {what} ({str(error).splitlines()[0][:100]}): is the "
                        "port taken by another run? (torchrun --standalone finds a free one; MASTER_PORT names one)"
                        , code="E-PROCESSES") from error
    return distributed.PrefixStore(f"run/{place.attempt}", store)


class Watch:
    """One process's part.  `store` is for the process group; the thread has a connection of its own, since a wait
    would block the other's questions."""

    def __init__(self, place: Place):
        self.place = place
        self.store = connect(place, listens=place.rank == 0 and not place.hosted)
        self.asking = connect(place, listens=False)
        self.status: int | None = None          # of the process that failed first
        self.left = threading.Event()
        self.failing = False                    # the main thread is ending the run itself
        self._meet()
        self.thread = threading.Thread(target=self._watch, name="watch", daemon=True)
        self.thread.start()

    def _meet(self) -> None:
        here, deadline = self.asking.add("here", 1), time.monotonic() + MEETING
        while here < self.place.ranks:
            if time.monotonic() > deadline:
                raise UserError(f"only {here} of {self.place.ranks} processes are here after {MEETING / 60:.0f} min: "
                                "look what the others say, and whether their machines reach "
                                f"{self.place.host}:{self.place.port}", code="E-PROCESSES")
            time.sleep(0.02)
            here = self.asking.add("here", 0)

    def _watch(self) -> None:
        while not self.left.wait(PAUSE):
            try:
                if not self.asking.check(["status"]):
                    continue
                self.status = int(self.asking.get("status"))
                self.asking.add("told", 1)
            except BROKEN:
                if self.left.is_set():
                    return
                self.status = 1
                print("error: the run's first process is gone without a word: see what its machine or scheduler says",
                      file=sys.__stderr__)
            if not self.failing:
                _thread.interrupt_main()
                time.sleep(GRACE)
            end(self.status)

    def fail(self, status: int, say: str = "") -> NoReturn:
        """End this process, and with it the run; `say` is printed by the first that fails."""
        self.failing = True
        with suppress(*BROKEN):
            if self.status is None and self.asking.add("failed", 1) == 1:
                self.left.set()
                if say:
                    print(say, file=sys.__stderr__, flush=True)
                # The store goes with rank 0, which may hear, and end, before this one has seen that it did.
                with suppress(*BROKEN):
                    self.asking.set("status", str(status))
                    self._linger("told", self.place.ranks - 1)
                end(status)
        deadline = time.monotonic() + 2 * LINGER
        while self.status is None and time.monotonic() < deadline:        # another was first
            time.sleep(0.02)
        end(status if self.status is None else self.status)

    def leave(self) -> None:
        """Stop watching, and stay until all have left: no process is to find another's connections closed."""
        with suppress(*BROKEN):
            self.left.set()
            self.thread.join()
            self.asking.add("left", 1)
            self._linger("left", self.place.ranks)

    def _linger(self, key: str, count: int) -> None:
        """Wait until a counter has come to `count`, but not for ever."""
        deadline = time.monotonic() + LINGER
        while self.asking.add(key, 0) < count and time.monotonic() < deadline:
            time.sleep(0.02)


def end(status: int) -> NoReturn:
    """Leave at once: an ordinary exit would wait for collectives that nobody answers."""
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(status)
