"""The driver of kills: it strikes when it should, and it reports every loss that a job of ours could have."""

import random
import shutil
import signal
import sys

import numpy as np
import pytest
import torch

from common import chaos, chaos_judge
from common.chaos import Job, Strike
from common.checkpoint import save_state
from common.errors import UserError
from common.files import read_json, write_json
from common.records import append_metrics
from common.tests.fabricate import curves, fabricate

# A job that counts to 30, keeps its state after each step, and goes on from there.
COUNTS = """
import sys, time
from pathlib import Path
from common.errors import exit_cleanly
from common.files import read_json, write_json
place = Path(sys.argv[1])
def main():
    state = place / "state.json"
    for left in place.glob(".state.json.*.tmp"):
        left.unlink()
    done = read_json(state)["done"] if state.exists() else 0
    {before}
    for step in range(done, 30):
        time.sleep(0.02)
        write_json(state, {{"done": step + 1}})
    {after}
    write_json(place / "result.json", {{"sum": 30, "seconds": time.time()}})
exit_cleanly(main)
"""


def counting(before="", after=""):
    return Job("counting", (sys.executable, "-c", COUNTS.format(before=before or "pass", after=after or "pass"),
                            "{place}"))


def struck(job, root, *planned, seed=1):
    """What a run of the job loses under the strikes, beside the same job untouched."""
    whole = chaos.run_undisturbed(job, root / "whole")
    return chaos.run_struck(job, root / "cut", whole, planned, random.Random(seed),
                            checks=lambda cut: chaos_judge.torn(cut, root / "whole"),
                            judge=lambda cut: chaos_judge.losses(root / "whole", cut))


KILL, TERM = Strike(signal.SIGKILL, "work", 0.4), Strike(signal.SIGTERM, "work", 0.4)


def test_a_job_that_goes_on_loses_nothing_however_often_it_is_struck(tmp_path):
    outcome = struck(counting(), tmp_path, KILL, TERM, KILL)
    assert outcome.losses == [] and outcome.restarts == 3
    assert [hit.strike.signal for hit in outcome.hits] == [signal.SIGKILL, signal.SIGTERM, signal.SIGKILL]
    assert [hit.status for hit in outcome.hits][::2] == [-signal.SIGKILL] * 2
    assert read_json(tmp_path / "cut" / "result.json")["sum"] == 30


def test_a_strike_at_a_write_finds_the_file_that_has_no_name_yet(tmp_path):
    # The temporary stands for a while, as that of a large file does.
    slow = "f = place / '.big.bin.1.tmp'; f.write_bytes(bytes(1000)); time.sleep(0.4); f.rename(place / 'big.bin')"
    whole = chaos.run_undisturbed(counting(slow), tmp_path / "whole")
    (tmp_path / "cut").mkdir()
    hit = chaos.sit(counting(slow), tmp_path / "cut", Strike(signal.SIGKILL, "write", 0.0), whole)
    assert hit.struck is not None and hit.writing
    assert chaos.tear(tmp_path / "cut", random.Random(3)) == 1
    temporary, = chaos.temporaries(tmp_path / "cut")
    assert temporary.stat().st_size < 1000, "cut off, as by a power cut"


def test_a_strike_that_comes_too_late_is_none(tmp_path):
    outcome = struck(counting(), tmp_path, Strike(signal.SIGKILL, "work", 40.0), KILL)
    assert (outcome.hits, outcome.restarts, outcome.losses) == ([], 0, [])


@pytest.mark.parametrize(("before", "after", "said"), [
    ("if done: raise SystemExit(2)", "", "started again it ended with status 2"),
    ("if done: raise ValueError('lost the thread')", "", "ValueError: lost the thread"),
    ("", "if done: write_json(place / 'more.json', {})", "more.json is left over"),
    ("", "write_json(place / 'other.json', {'done': done})", "other.json differs"),
    ("if done: (place / '.a.json.7.tmp').write_text('half')", "", ".a.json.7.tmp is left over"),
    ("(place / 'raw.json').write_text('[1, 2')", "(place / 'raw.json').write_text('[1, 2]')", "raw.json is not whole"),
], ids=["refuses", "crashes", "left over", "differs", "temporary", "partial"])
def test_every_loss_is_reported(tmp_path, before, after, said):
    outcome = struck(counting(before, after), tmp_path, KILL)
    assert any(said in line for line in outcome.losses), outcome.losses


def test_a_traceback_and_an_end_that_takes_long_are_losses(tmp_path, monkeypatch):
    monkeypatch.setattr(chaos, "MOST", 1.0)
    deaf = counting("import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(0.3)\n"
                    "    for step in range(300 * (done == 0)): write_json(state, {'done': 1}); time.sleep(0.02)")
    whole = chaos.Sitting(0, "", 1.0, 1.0)
    (tmp_path / "deaf").mkdir()
    sitting = chaos.sit(deaf, tmp_path / "deaf", TERM, whole)
    assert sitting.hung and chaos.wrong_ending(sitting) == ["not ended 1 seconds after SIGTERM"]
    loud = counting("import signal, traceback; signal.signal(signal.SIGTERM, lambda *_: 1 / 0)")
    outcome = struck(loud, tmp_path, TERM)
    assert outcome.losses == [f"{what} SIGTERM: ZeroDivisionError: division by zero"
                              for what in ("status 1 after", "a traceback after")]


def test_a_job_that_fails_by_itself_is_no_reference(tmp_path):
    with pytest.raises(UserError, match="counting does not end well even if nobody touches it"):
        chaos.run_undisturbed(counting("raise SystemExit(3)"), tmp_path / "whole")


def test_signals_take_turns_and_the_seed_decides_the_moments():
    planned = chaos.strikes(5, random.Random(7))
    assert [strike.signal for strike in planned] == [signal.SIGKILL, signal.SIGTERM] * 2 + [signal.SIGKILL]
    assert planned == chaos.strikes(5, random.Random(7)) != chaos.strikes(5, random.Random(8))
    assert chaos.strikes(1, random.Random(7), first=1)[0].signal == signal.SIGTERM


# -- the judge -------------------------------------------------------------------------------------------------------

@pytest.fixture
def places(tmp_path):
    """The same run in two places, as two machines that differ in nothing but their speed leave it."""
    for name, seconds in (("whole", 30.0), ("cut", 44.0)):
        place = tmp_path / name
        rows = [{**row, "seconds": seconds} for row in curves(3)]
        folder = fabricate(place / "results", metrics=rows, accuracies={"clean": 0.8, "PGD-10": 0.5}, n=20)
        generator = torch.Generator().manual_seed(1)
        save_state(place / "weights" / "last.pt", {"w": torch.randn(3, 4, generator=generator), "n": torch.tensor(7)})
        save_state(place / "weights" / "resume.pt", {"seconds": torch.tensor(seconds)})
        (place / "results" / "tables").mkdir()
        (place / "results" / "tables" / "t.md").write_text("| a |\n")
        assert folder.exists()
    return tmp_path / "whole", tmp_path / "cut"


RUN = "results/adarat/cifar10/pgd-at_short_s1"


def change_weight(place):
    path = place / "weights" / "last.pt"
    state = torch.load(path, weights_only=True)
    state["w"].view(torch.int32)[1, 2] ^= 1
    torch.save(state, path)


def change_flag(place):
    path = place / RUN / "flags-adarat.npz"
    with np.load(path) as file:
        arrays = dict(file)
    arrays["PGD-10"][3] ^= True
    np.savez_compressed(path, **arrays)


def change_metric(place):
    rows = curves(3)
    (place / RUN / "metrics.jsonl").unlink()
    for row in rows:
        append_metrics(place / RUN / "metrics.jsonl", {**row, "loss": row["loss"] + (row["epoch"] == 2) * 1e-12})


def change_record(place):
    record = read_json(place / RUN / "train.json")
    write_json(place / RUN / "train.json", {**record, "steps": record["steps"] + 1})


def change_table(place):
    (place / "results" / "tables" / "t.md").write_text("| b |\n")


def leave_temporary(place):
    (place / "weights" / ".last.pt.99.tmp").write_bytes(b"PK")


def lose_a_file(place):
    (place / "weights" / "last.pt").unlink()


def cut_off(place):
    path = place / "weights" / "last.pt"
    path.write_bytes(path.read_bytes()[:-40])


def test_the_clock_is_no_loss(places):
    assert chaos_judge.losses(*places) == [] and chaos_judge.torn(places[1]) == []


@pytest.mark.parametrize(("change", "said"), [
    (change_weight, "weights/last.pt differs"), (change_flag, f"{RUN}/flags-adarat.npz differs"),
    (change_metric, f"{RUN}/metrics.jsonl differs"), (change_record, f"{RUN}/train.json differs"),
    (change_table, "results/tables/t.md differs"), (leave_temporary, "weights/.last.pt.99.tmp is left over"),
    (lose_a_file, "weights/last.pt is missing"), (cut_off, "weights/last.pt is not whole")],
    ids=lambda value: getattr(value, "__name__", None))
def test_one_bit_that_differs_is_a_loss(places, change, said):
    change(places[1])
    found = chaos_judge.losses(*places)
    assert any(line.startswith(said) for line in found), found


def test_flags_that_are_not_the_recorded_ones_are_refused_even_if_both_runs_have_them(places):
    for place in places:
        change_flag(place)
    assert any("is refused" in line for line in chaos_judge.losses(*places))


def test_what_a_killed_job_left_is_whole_but_for_temporaries_and_a_last_line(places):
    whole, cut = places
    leave_temporary(cut)
    with open(cut / RUN / "metrics.jsonl", "a") as stream:
        stream.write('{"epoch": 4, "lo')
    assert chaos_judge.torn(cut, whole) == []
    cut_off(cut)
    (cut / RUN / "run.json").write_text("{")
    assert [line.split(" is ")[0] for line in chaos_judge.torn(cut, whole)] == [f"{RUN}/run.json", "weights/last.pt"]


def test_a_cache_must_be_the_undisturbed_one(places):
    for place in places:
        (place / ".cache").mkdir()
        np.save(place / ".cache" / "a.npy", np.arange(5))
    assert chaos_judge.torn(places[1], places[0]) == []
    np.save(places[1] / ".cache" / "a.npy", np.zeros(5, np.int64))         # of the right size, but never filled
    assert chaos_judge.torn(places[1], places[0]) == [".cache/a.npy is a cache that differs from the undisturbed one"]
    shutil.rmtree(places[1] / ".cache")
    assert chaos_judge.torn(places[1], places[0]) == [], "absent is as good as whole"


@pytest.mark.parametrize(("one", "other"), [
    (torch.zeros(2), -torch.zeros(2)), (torch.zeros(2), torch.zeros(2, dtype=torch.float64)),
    (torch.zeros(2, 1), torch.zeros(1, 2)), (np.zeros(2), np.zeros(3)), (np.float32([0.0]), np.float32([-0.0])),
    (1, True), ({"a": 1}, {"a": 1, "b": 1}), ([1], [1, 2]), ([1], "1")])
def test_equal_means_to_the_last_bit(one, other):
    assert chaos_judge.equal(one, one) and not chaos_judge.equal(one, other) and not chaos_judge.equal(other, one)


def test_nan_is_equal_to_the_same_nan():
    assert chaos_judge.equal(torch.tensor([float("nan")]), torch.tensor([float("nan")]))
