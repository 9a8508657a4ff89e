"""docs/errors.md, what happens while a command runs: each row's line, exit status 2, nothing lost."""

import errno
import os
import sys

import pytest
import torch

from common import group, inputs
from common.models.small import SmallCNN
from common.tests.errors_table import (
    Cases,
    adarat,
    check,
    command,
    evaluate,
    function,
    npz,
    rows,
    script,
    two_runs,
    weights,
)

CASES = Cases()
of = CASES.of
MINE = rows("While it runs")


@pytest.mark.parametrize("row", MINE, ids=str)
def test_the_row_is_what_happens(row, tmp_path, monkeypatch, capfd):
    check(row, CASES, tmp_path, monkeypatch, capfd)


def test_every_case_has_its_row():
    assert {code: len(some) for code, some in CASES.items()} == {row.code: row.number for row in MINE}


@of("E-NOT-FINITE")
def diverging(at, monkeypatch):
    diverging.writes = {"results/adarat/a/hot/run.json"}
    return adarat(at, monkeypatch, "--data", npz(at), "--learning_rate", "1e30", "--run", "hot")


@of("E-DISK-FULL")
def no_space(at, monkeypatch):
    def full(number):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    runs = two_runs(at)
    monkeypatch.setattr(os, "fsync", full)
    return script(monkeypatch, "compare", *runs, "--out", at / "table.md")


@of("E-DISK-FULL")
def no_space_under_the_log(at, monkeypatch):
    monkeypatch.setattr(sys, "stdout", open("/dev/full", "w"))  # noqa: SIM115, the interpreter's is as long open
    return script(monkeypatch, "compare", *two_runs(at))


@of("E-MEMORY")
def more_images_than_memory(at, monkeypatch):
    monkeypatch.setattr(inputs, "memory_free", lambda: 200)
    return adarat(at, monkeypatch, "--data", npz(at))


@of("E-MEMORY")
def a_network_beyond_all_size(at, monkeypatch):
    return adarat(at, monkeypatch, "--data", npz(at), "--width", "1000000")


def narrow(monkeypatch, most):
    """The small network on a GPU that holds so many images."""
    forward = SmallCNN.forward

    def tried(self, x):
        if len(x) > most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total")
        return forward(self, x)
    monkeypatch.setattr(SmallCNN, "forward", tried)


@of("E-MEMORY")
def a_step_too_large(at, monkeypatch):
    a_step_too_large.writes = {"results/adarat/a/wide/run.json"}
    narrow(monkeypatch, 4)
    return adarat(at, monkeypatch, "--data", npz(at), "--run", "wide")


@of("E-MEMORY")
def an_evaluation_too_large(at, monkeypatch):
    words = weights(at)
    narrow(monkeypatch, 6)
    return evaluate(at, monkeypatch, *words)


@of("E-MEMORY")
def anything_too_large(at, monkeypatch):
    return function(lambda: torch.empty(2 ** 60, dtype=torch.uint8))


@of("E-WRITE")
def a_folder_of_that_name(at, monkeypatch):
    (at / "table.md").mkdir()
    return script(monkeypatch, "compare", *two_runs(at), "--out", at / "table.md")


@of("E-PROCESSES")
def third_of_two(at, monkeypatch):
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    return adarat(at, monkeypatch, "--data", npz(at))


@of("E-PROCESSES")
def two_on_one_mac(at, monkeypatch):
    monkeypatch.setattr(group, "_here", [group.Group(0, 2)])
    return function(lambda: group.settle(torch.device("mps")))


@of("E-STEP-FAILED")
def a_training_fails(at, monkeypatch):
    from adarat.limits import main
    (at / "train.py").write_text("raise SystemExit(2)\n")
    return command(monkeypatch, main, "--script", at / "train.py", "--out", at / "limits.json", "--work", at / "work",
                   bare=True)
