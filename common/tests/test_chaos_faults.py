"""Faults of disks and users: a job that takes them as ours do loses nothing, and one that does not is reported."""

import sys

import numpy as np
import pytest

from common import chaos, chaos_faults
from common.chaos import Job, Sitting

# It adds up the numbers of a file, keeps what it has, refuses other numbers, and lets no second job in.
ADDS = """
import fcntl, sys, time
from pathlib import Path
import numpy as np
from common.errors import UserError, exit_cleanly
from common.files import read_json, replacing, sha256_of, write_json
place = Path(sys.argv[1])
def main():
    lock = open(place / "lock", "w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        {busy}
    for left in place.glob(".*.tmp"):
        left.unlink()
    numbers, state = np.load(place / "numbers.npz")["numbers"], place / "state.json"
    kept = read_json(state) if state.exists() else {{"done": 0, "sum": 0, "data": sha256_of(place / "numbers.npz")}}
    if kept["data"] != sha256_of(place / "numbers.npz"):
        {other}
    for step in range(kept["done"], len(numbers)):
        time.sleep(0.03)
        kept |= {{"done": step + 1, "sum": kept["sum"] + int(numbers[step])}}
        write_json(state, kept)
    {large}
exit_cleanly(main)
"""
RIGHT = {"busy": "raise UserError('the folder is in use', code='E-BUSY')", "other": "raise UserError('other numbers')",
         "large": "with replacing(place / 'large') as temporary:\n        temporary.write_bytes(bytes(20000))"}


def adding(root, **changed):
    def fill(place):
        np.savez(place / "numbers.npz", numbers=np.arange(25, dtype=np.uint8))

    job = Job("adding", (sys.executable, "-c", ADDS.format(**{**RIGHT, **changed}), "{place}"), fill)
    return chaos_faults.Whole(job, root / "whole", chaos.run_undisturbed(job, root / "whole"))


def other_data(place):
    return chaos_faults.changed(place / "numbers.npz")


def test_changed_data_are_refused_and_the_old_ones_go_on(tmp_path):
    met, lost = chaos_faults.survive(adding(tmp_path), tmp_path / "cut", other_data)
    assert (met.status, met.said, lost) == (2, "error: other numbers\n", [])


def test_a_job_that_goes_on_with_other_data_is_reported(tmp_path):
    _, lost = chaos_faults.survive(adding(tmp_path, other="pass"), tmp_path / "cut", other_data)
    assert "status 0 in the place of 2" in lost and any("state.json differs" in line for line in lost)


def test_a_write_that_fails_half_way_leaves_the_last_state(tmp_path):
    short = chaos_faults.longest_file(10_000)
    met, lost = chaos_faults.survive(adding(tmp_path), tmp_path / "cut", chaos_faults.no_fault, **short)
    assert met.status == 2 and "cannot write" in met.said and lost == []


def test_a_partial_file_under_the_name_of_a_whole_one_is_reported(tmp_path):
    whole = adding(tmp_path, large="np.save(place / 'large.npy', np.arange(5000))")
    short = chaos_faults.longest_file(10_000)
    met, lost = chaos_faults.survive(whole, tmp_path / "cut", chaos_faults.no_fault, **short)
    assert "Traceback" in met.said and any("a traceback" in line for line in lost)
    assert any("large.npy is not whole" in line for line in lost)


def test_of_two_jobs_at_once_the_second_refuses(tmp_path):
    second, lost = chaos_faults.meet(adding(tmp_path), tmp_path / "cut")
    assert second.status == 2 and "[E-BUSY]" in second.said and lost == []


@pytest.mark.parametrize(("busy", "said"), [("raise SystemExit('no')", "does not say E-BUSY"),
                                            ("raise UserError('in use')", "does not say E-BUSY"),
                                            ("raise ValueError", "a traceback: ValueError")])
def test_a_second_job_that_refuses_otherwise_is_reported(tmp_path, busy, said):
    _, lost = chaos_faults.meet(adding(tmp_path, busy=busy), tmp_path / "cut")
    assert any(said in line for line in lost)


@pytest.mark.parametrize(("status", "said", "wrong"), [
    (2, "error: no\n", []), (1, "error: no\n", ["status 1 in the place of 2"]),
    (2, "note: slow\nerror: no\n", []), (2, "no\n", ["on stderr in the place of one error: no"]),
    (2, "odd\nerror: no\n", ["on stderr in the place of one error: odd / error: no"]),
    (1, "Traceback\nOSError: no\n", ["status 1 in the place of 2", "a traceback: OSError: no"])])
def test_one_line_and_status_2_is_right(status, said, wrong):
    assert chaos_faults.refusal(Sitting(status, said, 1.0, 1.0)) == wrong


def test_a_fault_that_cannot_be_made_here_is_said_and_counts_as_no_loss(tmp_path, monkeypatch):
    whole = adding(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "mount").write_text("#!/bin/sh\nexit 32\n")
    (tmp_path / "mount").chmod(0o755)
    found = chaos_faults.all_faults(training=whole, evaluation=whole, cache=whole, tables=whole, data="numbers.npz",
                                    root=tmp_path / "faults", stop=float("inf"), only=("full disk, training",))
    assert [(one["skipped"], one["losses"]) for one in found] == [("only root may mount a small disk", [])]
