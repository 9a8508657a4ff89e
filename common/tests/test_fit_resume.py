"""The training loop when it is stopped, when numbers are not finite, when the disk is full."""

import errno
import json
import os
import stat
from itertools import count

import pytest
import torch
import torch.nn.functional as F

from common import checkpoint, ema
from common.errors import UserError
from common.files import sha256_of
from common.fit import SGD
from common.schedules import steps
from common.tests.fit_parts import CrossEntropy, Noise, network, rows, train

# --- resuming ---

class Killed(Exception):
    pass


def whole(folder, **changes):
    """Everything on: average, selection, momentum, a schedule that moves, dropout, batch norm."""
    return train(folder, **{"epochs": 4, "schedule": steps(0.2, (1.5, 3), (0.1, 0.05)),
                            "average": ema.Averaging(ema.warmed_up(0.9)), "validate": validation,
                            "select": {"best": lambda numbers: -numbers["error"],
                                       "worst": lambda numbers: numbers["error"]},
                            "snapshots": {1, 3}, "validate_first": True} | changes)


def validation(judged):
    batch = next(Noise().epoch(99))
    with torch.no_grad():
        return {"error": F.cross_entropy(judged(batch.x), batch.y).item()}


def weights_of(folder):
    return {name: sha256_of(folder / "weights" / f"{name}.pt")
            for name in ("last", "average", "best", "worst", "1", "3")}


@pytest.mark.parametrize("where", [("validate", 0), ("validate", 1), ("validate", 3), ("objective", 0),
                                   ("objective", 6), ("objective", 15)])
@pytest.mark.parametrize("resets", [False, True])
def test_a_run_that_was_stopped_ends_with_the_same_bits(tmp_path, where, resets):
    place, number = where
    optim = SGD(reset_each_epoch=resets)
    whole(tmp_path / "whole", optim=optim)
    calls = []

    def stop(name, value=None):
        calls.append(name)
        if name == place and calls.count(name) == number + 1:
            raise Killed
        return value

    with pytest.raises(Killed):
        whole(tmp_path / "cut", optim=optim, validate=lambda judged: stop("validate", validation(judged)),
              objective=CrossEntropy(lambda ctx: stop("objective")))
    resumes = (tmp_path / "cut/weights/resume.pt").exists()
    assert resumes == (where not in (("validate", 0), ("validate", 1), ("objective", 0)))
    # Where there is a state to go on from, the weights that the caller starts with must not matter.
    record = whole(tmp_path / "cut", optim=optim, model=network(3 if resumes else 0))
    assert weights_of(tmp_path / "cut") == weights_of(tmp_path / "whole")
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")
    assert (record.epochs, record.steps) == (4, 16)


def test_a_finished_run_is_not_trained_again(tmp_path):
    first = whole(tmp_path)
    (tmp_path / "weights/last.pt").unlink()            # as if killed between the last epoch and the last file
    again = whole(tmp_path, model=network(3), objective=CrossEntropy(lambda ctx: pytest.fail("trained again")))
    assert again.weights == first.weights and again.final == first.final and again.best == first.best


def test_a_torn_line_and_a_line_without_its_state_are_cut_off(tmp_path):
    whole(tmp_path / "whole")
    whole(tmp_path / "cut", epochs=2)
    path = tmp_path / "cut/results/metrics.jsonl"
    good = path.read_bytes()
    for torn in (json.dumps({"epoch": 3, "step": 12}) + '\n{"epoch": 4, "st', '{"epoch": 3, "st\n', "\0" * 40 + "\n"):
        path.write_bytes(good + torn.encode())
        whole(tmp_path / "cut", epochs=2)
        assert path.read_bytes() == good
    path.write_bytes(good + b'{"epoch": 3, "st\xff\n')
    whole(tmp_path / "cut")
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")


def test_a_broken_line_of_an_epoch_that_counts_is_named_and_stays(tmp_path):
    whole(tmp_path, epochs=2)
    path = tmp_path / "results/metrics.jsonl"
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first[:20] + b"\n" + second)
    before = kept_files(tmp_path)
    with pytest.raises(UserError, match=r"metrics\.jsonl line 1 is not JSON: restore the file"):
        whole(tmp_path)
    assert kept_files(tmp_path) == before


def test_the_state_of_another_configuration_is_refused(tmp_path):
    whole(tmp_path, epochs=1)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"resume\.pt belongs to another configuration: give this run another name"):
        whole(tmp_path, identity="b")
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_metrics_that_are_missing_while_the_weights_are_there_are_named(tmp_path):
    whole(tmp_path, epochs=2)
    path = tmp_path / "results/metrics.jsonl"
    path.write_text(path.read_text().splitlines(keepends=True)[0])
    with pytest.raises(UserError, match=r"metrics\.jsonl has 1 of the 2 epochs that .*resume\.pt has trained"):
        whole(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match=r"has 0 of the 2 epochs"):
        whole(tmp_path)


# --- numbers that are not finite, disks that are full ---

def kept_files(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_loss_that_is_not_finite_names_its_step_and_keeps_the_last_good_state(tmp_path):
    whole(tmp_path, epochs=2)
    before = kept_files(tmp_path)
    broken = CrossEntropy(lambda ctx: float("nan") if ctx.step >= 9 else None)
    with pytest.raises(UserError, match=r"loss is nan in epoch 3, step 2 of 4 \(step 10 of the run\): training stops\. "
                                        r"The state after epoch 2 is kept in .*weights"):
        whole(tmp_path, objective=broken)
    after = kept_files(tmp_path)
    assert after["resume.pt"] == before["resume.pt"] and after["best.pt"] == before["best.pt"]
    assert b"NaN" not in after["metrics.jsonl"] and len(rows(tmp_path)) == 2
    assert checkpoint.load_tree(tmp_path / "weights/resume.pt")["epoch"] == 2
    whole(tmp_path)
    whole(tmp_path / "whole")
    assert weights_of(tmp_path) == weights_of(tmp_path / "whole")


def test_weights_that_broke_in_the_last_step_of_an_epoch_are_not_kept(tmp_path):
    """The loss of that step was still finite: only the weights show it."""
    whole(tmp_path, epochs=1)
    before = kept_files(tmp_path)

    def break_weights(model, batch, ctx):
        if ctx.step == 7:
            with torch.no_grad():
                model.network[5].bias.fill_(float("inf"))

    with pytest.raises(UserError, match=r"5\.bias is not finite after epoch 2"):
        whole(tmp_path, after_step=break_weights, validate=lambda judged: {"error": -1.0})
    assert kept_files(tmp_path) == before


def test_a_validation_that_is_not_finite_stops_the_run(tmp_path):
    whole(tmp_path, epochs=1)
    before = kept_files(tmp_path)
    with pytest.raises(UserError, match=r"error is nan after epoch 2"):
        whole(tmp_path, validate=lambda judged: {"error": float("nan")})
    assert kept_files(tmp_path) == before
    with pytest.raises(UserError, match=r"error is inf after epoch 0"):
        whole(tmp_path / "first", validate=lambda judged: {"error": float("inf")})
    assert not (tmp_path / "first/weights/best.pt").exists()


@pytest.mark.parametrize("call", range(1, 4))
def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path, monkeypatch, call):
    """call: which write of the third epoch fails (best.pt, metrics.jsonl, resume.pt, in this order)."""
    better = count()
    best = {"validate": lambda judged: {"error": -float(next(better))}}
    whole(tmp_path, epochs=2, **best)
    before, calls, fsync = kept_files(tmp_path), [], os.fsync

    def full(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            return fsync(descriptor)
        calls.append(descriptor)
        if len(calls) == call + 1:               # the first one cuts the metrics on resume
            raise OSError(errno.ENOSPC, "No space left on device")
        return fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    name = ("best.pt", "metrics.jsonl", "resume.pt")[call - 1]
    with pytest.raises(UserError, match=f"no space left while writing .*{name}: free some space"):
        whole(tmp_path, **best)
    monkeypatch.undo()
    after = kept_files(tmp_path)
    assert set(after) == set(before)
    assert after["resume.pt"] == before["resume.pt"]
    assert after["best.pt"] == before["best.pt"] or call > 1
    assert whole(tmp_path, **best).steps == 16
    assert [row["epoch"] for row in rows(tmp_path)] == [1, 2, 3, 4]


def test_a_full_disk_at_the_last_file_leaves_the_former_one(tmp_path, monkeypatch):
    whole(tmp_path)
    before = kept_files(tmp_path)

    def full(path, tensors, **_):
        raise UserError(f"no space left while writing {path}")

    monkeypatch.setattr(checkpoint, "save_state", full)
    with pytest.raises(UserError, match=r"no space left while writing .*last\.pt"):
        whole(tmp_path)
    assert kept_files(tmp_path) == before
