"""Two jobs on one folder: the second refuses, the kernel frees what a killed one had, and nothing is left behind."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common import locks
from common.environment import ROOT
from common.errors import UserError

HOLDER = """
import sys, time
from pathlib import Path
from common import locks
locks.take(Path(sys.argv[1]), "a run", shared=sys.argv[2] == "shared")
print("taken", flush=True)
time.sleep(600)
"""


class Holder:
    """A process that has a lock until it is killed."""

    def __init__(self, path: Path, how: str = "alone"):
        self.process = subprocess.Popen((sys.executable, "-c", HOLDER, str(path), how), cwd=ROOT, text=True,
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert self.process.stdout.readline() == "taken\n", self.process.communicate()

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate(timeout=60)


@pytest.fixture
def hold():
    held = []

    def start(*given):
        held.append(Holder(*given))
        return held[-1]
    yield start
    for one in held:
        one.kill()


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(locks, "PATIENCE", 0.1)


def test_the_second_job_is_told_who_is_the_first(tmp_path, hold):
    path = tmp_path / "new/.run.lock"
    first = hold(path)
    with pytest.raises(UserError, match=rf"weights/x is in use by process {first.process.pid} on \S+: wait") as told:
        locks.take(path, "weights/x")
    assert told.value.code == "E-BUSY" and path.exists()
    first.kill()
    with locks.locked(path, "weights/x"):                       # the kernel freed it; the file is no obstacle
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert list(path.parent.iterdir()) == []


def test_shared_locks_keep_out_those_that_are_not(tmp_path, hold):
    path = tmp_path / ".run.lock"
    hold(path, "shared")
    with pytest.raises(UserError, match="in use by process"):
        locks.take(path, "it")
    with locks.locked(path, "it", shared=True):
        pass
    assert path.exists()                                         # the other still has it
    with pytest.raises(UserError, match="in use"):
        locks.take(path, "it")


def test_a_process_has_its_own_lock_again(tmp_path):
    path = tmp_path / ".run.lock"
    locks.take(path, "it")
    locks.take(path, "it", shared=True)
    locks.free(path)
    locks.free(path)
    assert not path.exists() and path not in locks._held


def test_an_unreadable_word_of_the_holder_does_not_matter(tmp_path, hold):
    path = tmp_path / ".run.lock"
    hold(path)
    path.write_bytes(b"\xff{")
    with pytest.raises(UserError, match="in use by another process"):
        locks.take(path, "it")


def test_a_file_that_was_removed_meanwhile_locks_nothing(tmp_path, monkeypatch):
    """Another process opened it before the first removed it, and gets the lock of a file without a name."""
    path, real, calls = tmp_path / ".run.lock", fcntl.flock, []

    def flock(file, how):
        calls.append(how)
        if len(calls) == 1:
            path.unlink()
        return real(file, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with locks.locked(path, "it"):
        assert path.exists() and len(calls) == 2


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP])
def test_without_locks_the_job_goes_on_and_says_so(tmp_path, monkeypatch, capsys, number):
    def refuse(file, how):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locks.locked(tmp_path / ".run.lock", "weights/x"):
        assert capsys.readouterr().err.count("\n") == 1
        locks.take(tmp_path / ".run.lock", "weights/x")
    assert capsys.readouterr().err == ""


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file/\.run\.lock: "):
        locks.take(tmp_path / "file/.run.lock", "it")


def test_who_is_just_ending_is_waited_for(tmp_path, hold, monkeypatch):
    monkeypatch.setattr(locks, "PATIENCE", 60.0)
    first, path = hold(tmp_path / ".run.lock"), tmp_path / ".run.lock"
    real, began = time.sleep, []

    def sleep(seconds):
        began.append(seconds)
        if len(began) == 1:                # waiting for the process that is killed may sleep, too
            first.kill()
        real(seconds)

    monkeypatch.setattr(time, "sleep", sleep)
    with locks.locked(path, "it"):
        assert began
