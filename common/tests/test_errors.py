"""How a command ends: nobody reads it any more, no memory is left."""

import os
import subprocess
import sys

import pytest

from common.environment import ROOT

LOUD = "from common.errors import exit_cleanly\nexit_cleanly(lambda: [print('much' * 5000) for _ in range(100)] and 0)"
SHORT = "from common.errors import exit_cleanly\nexit_cleanly(lambda: print('little'))"
TALKING = """import sys
from common.errors import exit_cleanly
def main():
    print("a line", file=sys.stderr, flush=True)
exit_cleanly(main)"""
ELSEWHERE = """import socket
from common.errors import exit_cleanly
def main():
    one, other = socket.socketpair()
    other.close()
    one.send(b"x")
exit_cleanly(main)"""


def unread(code: str, **streams: bool) -> tuple[int, str, str]:
    """(status, stdout, stderr) of a command whose named streams nobody reads."""
    read, write = os.pipe()
    os.close(read)
    given = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | dict.fromkeys(streams, write)
    buffered = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    try:
        ended = subprocess.run((sys.executable, "-c", code), cwd=ROOT, env=buffered, text=True, **given)
    finally:
        os.close(write)
    return ended.returncode, ended.stdout or "", ended.stderr or ""


@pytest.mark.parametrize(("code", "status"), [(LOUD, 141), (SHORT, 0)], ids=["much", "little"])
def test_a_closed_pipe_ends_a_command_quietly(code, status):
    """The short one fails when the interpreter flushes, which complains by itself and ends with status 120."""
    assert unread(code, stdout=True) == (status, "", "")


def test_so_does_one_behind_stderr():
    assert unread(TALKING, stderr=True) == (141, "", "")
    assert unread(LOUD, stdout=True, stderr=True) == (141, "", "")


def test_a_connection_that_breaks_is_no_closed_pipe():
    status, _, said = unread(ELSEWHERE)
    assert status == 1 and "Traceback" in said and "BrokenPipeError" in said


def test_a_command_of_ours_behind_head():
    read, write = os.pipe()
    with subprocess.Popen((sys.executable, "-m", "scripts.report", "--show"), cwd=ROOT, stdout=write,
                          stderr=subprocess.PIPE, text=True) as child:
        os.close(write)
        os.read(read, 1)
        os.close(read)
        said = child.stderr.read()
    assert child.returncode in (0, 141) and said == ""


def test_memory_that_ends_where_nobody_explains_it_is_one_line():
    code = ("import torch\nfrom common.errors import exit_cleanly\n"
            "exit_cleanly(lambda: torch.empty(2 ** 60, dtype=torch.uint8))")
    status, _, said = unread(code)
    assert (status, said.count("\n")) == (2, 1) and said.startswith("error: out of memory (1152921504606846976 bytes ")
    assert said.endswith("what is done is kept [E-MEMORY]\n")
