"""Disks that take no more, folders that cannot be written, writes that fail half-way, what killed processes left."""

import errno
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from common import checkpoint, errors, files, plots, records
from common.data import folder_cache
from common.environment import ROOT
from common.errors import UserError
from common.evaluation import Evaluator, Plan
from common.evaluation.ledger import Chunk, Ledger, ledger_path
from common.evaluation.receipts import Keeper
from common.safetensor_files import write_tensors
from common.tests.fit_parts import network, rows
from common.tests.test_fit_resume import kept_files, weights_of, whole

BIG = torch.rand(100, 200, generator=torch.Generator().manual_seed(0))
PLAN = Plan("quick", (Evaluator("clean", "clean"),), chunk=5000)


def draw(path):
    with plots.figure(path, 3, 3) as figure:
        figure.add_subplot().imshow(BIG)


def arrays(path, save=np.savez_compressed):
    with files.replacing(path) as temporary, open(temporary, "wb") as stream:
        save(stream, BIG.numpy())


def ledger(path):
    made = Ledger(path, {"of": 1}, {"clean": [5000]})
    made.append("clean", Chunk(np.arange(5000) % 2 == 0, {"clean": 2500}, 0.1))


# Every way in which files are written: name -> (its end, what writes it).
WRITERS = {
    "weights": ("a.pt", lambda path: checkpoint.save_state(path, {"w": BIG})),
    "resume": ("resume.pt", lambda path: checkpoint.save_tree(path, {"parts": {"model": {"w": BIG}}, "epoch": 1})),
    "safetensors": ("a.safetensors", lambda path: write_tensors(path, {"w": BIG}, {"a": "b"})),
    "json": ("a.json", lambda path: files.write_json(path, list(range(9999)))),
    "text": ("a.csv", lambda path: files.write_text(path, "1,2\n" * 9999)),
    "png": ("a.png", draw), "npz": ("a.npz", arrays), "npy": ("a.npy", lambda path: arrays(path, np.save)),
    "metrics": ("metrics.jsonl", lambda path: records.append_metrics(path, {"epoch": 2, "said": "a" * 9999})),
    "ledger": (ledger_path(Path(), PLAN).name, ledger),
    "receipt": ("kept-key-clean-0.npy", lambda path: Keeper(path.parent, "key").save("clean", 0, BIG))}


@pytest.fixture
def limit():
    """No file may become longer than so many bytes; what goes beyond fails half-way, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("size", [0, 1000, 3000])
@pytest.mark.parametrize("kind", WRITERS)
def test_a_write_that_fails_half_way_is_one_line_and_leaves_what_was_there(tmp_path, limit, kind, size, there):
    name, write = WRITERS[kind]
    before = b'{"epoch": 1}\n' if kind == "metrics" else b"what was there"
    if there:
        (tmp_path / name).write_bytes(before)
    limit(size)
    with pytest.raises(UserError) as told:
        write(tmp_path / name)
    assert str(tmp_path / name) in str(told.value) and "\n" not in str(told.value)
    left = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert left == ({name: before} if there else {name: b""} if kind == "metrics" else {})
    limit(resource.RLIM_INFINITY)
    write(tmp_path / name)
    assert (tmp_path / name).stat().st_size > size


@pytest.mark.parametrize("kind", WRITERS)
def test_a_folder_that_cannot_be_made_is_one_line(tmp_path, kind):
    name, write = WRITERS[kind]
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file/"):
        write(tmp_path / "file" / name)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(("number", "said"), [
    (errno.ENOSPC, "no space left while writing x: free some space"), (errno.EDQUOT, "no space left"),
    (errno.EROFS, "cannot write x: Read-only file system: make its folder writable"),
    (errno.EACCES, "cannot write x: Permission denied: make its folder writable"),
    (errno.EIO, "cannot write x: Input/output error")])
def test_what_is_said_of_each_failure(number, said):
    assert said in str(files.write_failure(Path("x"), OSError(number, os.strerror(number))))


def test_a_cache_that_cannot_be_written_is_a_note(tmp_path, limit, capsys):
    limit(1000)
    folder_cache.write(tmp_path / "c.npz", "key", [np.zeros((9, 3, 9, 9), np.uint8)])
    limit(resource.RLIM_INFINITY)
    assert "note: the images will be decoded again next time: cannot write" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [200, 3000])
def test_a_training_on_a_full_disk_stops_with_its_last_epoch(tmp_path, limit, size):
    """200 bytes: not even the line of metrics; 3,000: the line, but not the resume file."""
    whole(tmp_path / "whole")
    whole(tmp_path / "cut", epochs=2, select={})
    before = kept_files(tmp_path / "cut")
    limit(size)
    with pytest.raises(UserError, match=r"(metrics\.jsonl|resume\.pt)"):
        whole(tmp_path / "cut", epochs=3, select={}, snapshots=())
    limit(resource.RLIM_INFINITY)
    after = kept_files(tmp_path / "cut")
    assert after["resume.pt"] == before["resume.pt"] and set(after) == set(before)
    record = whole(tmp_path / "cut", model=network(3), select={})
    assert record.weights["last"] == {"file": "last.pt", "sha256": weights_of(tmp_path / "whole")["last"]}
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")


# --- damaged files of a run ---

@pytest.mark.parametrize("harm", ["cut", "empty", "flipped", "foreign"])
def test_a_damaged_resume_file_says_what_to_remove_and_nothing_else_is_touched(tmp_path, harm):
    whole(tmp_path, epochs=2)
    path = tmp_path / "weights/resume.pt"
    content = bytearray(path.read_bytes())
    if harm == "flipped":
        content[len(content) // 2] ^= 255
    path.write_bytes({"cut": content[:len(content) // 2], "empty": b"", "flipped": content}.get(harm, b""))
    if harm == "foreign":
        checkpoint.save_tree(path, {"identity": "a", "epoch": 2, "parts": {"model": {}}})
    before = kept_files(tmp_path)
    with pytest.raises(UserError, match=r"resume\.pt is damaged .*: restore it, or remove it to train") as told:
        whole(tmp_path)
    assert told.value.code == "E-RESUME" and kept_files(tmp_path) == before
    path.unlink()
    whole(tmp_path)
    whole(tmp_path / "whole")
    assert weights_of(tmp_path) == weights_of(tmp_path / "whole")


def test_best_weights_that_are_gone_are_named_before_the_training_goes_on(tmp_path):
    whole(tmp_path, epochs=2)
    (tmp_path / "weights/best.pt").unlink()
    with pytest.raises(UserError, match=r"best\.pt is missing, the best weights of the 2 epochs") as told:
        whole(tmp_path)
    assert told.value.code == "E-RESUME"


# --- what killed processes left ---

def dead_pid():
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return ended.pid


@pytest.fixture
def unseen(monkeypatch):
    monkeypatch.setattr(files, "_swept", set())


def test_what_dead_processes_left_goes_and_nothing_else(tmp_path, unseen):
    gone = [f".a.json.{files.HOST}-{dead_pid()}.tmp"]
    stays = [f".a.json.{files.HOST}-{os.getppid()}.tmp", f".a.json.{files.HOST}-{os.getpid()}.tmp",
             ".a.json.elsewhere-1.tmp", ".notes.tmp", "a.tmp", ".a.json.5.tmp"]
    for name in (*gone, *stays):
        (tmp_path / name).write_text("half")
    old = tmp_path / ".b.json.elsewhere-7.tmp"
    old.write_text("half")
    os.utime(old, (time.time() - 8 * 86400,) * 2)
    files.write_text(tmp_path / "new.txt", "whole")
    assert {path.name for path in tmp_path.iterdir()} == {*stays, "new.txt"}


def test_a_process_killed_as_it_writes_leaves_a_file_that_the_next_removes(tmp_path, unseen):
    code = ("import os, signal, sys\nfrom pathlib import Path\nfrom common.files import replacing\n"
            "with replacing(Path(sys.argv[1])) as temporary:\n"
            "    temporary.write_text('half')\n    os.kill(os.getpid(), signal.SIGKILL)\n")
    path = tmp_path / "a.json"
    path.write_text("whole")
    subprocess.run((sys.executable, "-c", code, path), cwd=ROOT)
    assert len(list(tmp_path.iterdir())) == 2 and path.read_text() == "whole"
    files.write_text(tmp_path / "b.json", "other")
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", "b.json"}


# --- where no writer speaks ---

def test_a_full_disk_under_the_log_is_one_line():
    code = "from common.errors import exit_cleanly\nexit_cleanly(lambda: print('much' * 5000))"
    with open("/dev/full", "w") as full:
        ended = subprocess.run((sys.executable, "-c", code), cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1), ended
    assert "cannot write standard output" in ended.stderr and "[E-DISK-FULL]" in ended.stderr


def test_a_full_temporary_folder_is_one_line(capsys):
    def fails():
        raise OSError(errno.ENOSPC, "No space left on device", "/somewhere/tmpx")

    with pytest.raises(SystemExit) as ended:
        errors.exit_cleanly(fails)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.startswith("error: cannot write /somewhere/tmpx: No space left on device: ")
    with pytest.raises(FileNotFoundError):             # what is no disk's fault stays a defect of ours
        errors.exit_cleanly(lambda: Path("/there/is/none").read_text() and 0)
