"""The command scripts.doctor: what it prints, its exit status, Pythons without packages; it writes nothing."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from common.environment import ROOT
from common.tests.fabricate import curves, fabricate
from scripts import doctor


@pytest.fixture
def places(tmp_path):
    """A folder of data with one npz file, a finished run, and the flags that name them."""
    (tmp_path / "data").mkdir()
    np.savez(tmp_path / "data" / "mnist.npz", train_images=np.zeros((4, 8, 8), np.uint8), train_labels=np.arange(4),
             test_images=np.zeros((2, 8, 8), np.uint8), test_labels=np.arange(2))
    fabricate(tmp_path / "results", metrics=curves(10), accuracies={"clean": 0.8})
    return ["--data-dir", str(tmp_path / "data"), "--results", str(tmp_path / "results"), "--weights",
            str(tmp_path / "weights")]


def tree(root):
    return {str(path.relative_to(root)): path.is_file() and path.read_bytes() for path in root.rglob("*")}


def run(monkeypatch, capsys, *words):
    """(exit status, what was printed)."""
    monkeypatch.setattr("sys.argv", ["doctor.py", "--quick", *words])
    return doctor.main(), " ".join(capsys.readouterr().out.split())


def bare(*words, code=None):
    """The command in a Python without any package."""
    start = ("-c", code) if code else ("-m", "scripts.doctor")
    return subprocess.run((sys.executable, "-S", *start, *words), cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_what_is_in_order_gives_status_0_and_nothing_is_written(places, tmp_path, monkeypatch, capsys):
    before = tree(tmp_path)
    status, text = run(monkeypatch, capsys, *places, "--data", "mnist")
    # Of this machine there may be something to say; of what stands here there is not.
    assert "data: " not in text.partition(" in order:")[0].partition(" note")[0] and tree(tmp_path) == before
    assert (status == 0) == ("0 problems, " in text)
    assert "4 training and 2 test images 8x8" in text and "1 run and 1 evaluation in" in text


def test_a_problem_gives_status_1_and_stands_first(places, tmp_path, monkeypatch, capsys):
    (tmp_path / "data" / "mnist.npz").write_bytes(b"PK")
    status, text = run(monkeypatch, capsys, *places)
    assert status == 1 and " problem" in text[:12] and "damaged or half copied" in text.partition(" note")[0]
    status, text = run(monkeypatch, capsys, *places, "--json")
    said = json.loads(text)
    assert status == 1 and said["problems"] == len(
        [one for one in said["findings"] if one["level"] == "problem"]) and said["notes"] == len(
        [one for one in said["findings"] if one["level"] == "note"])
    assert all(one["type"] for one in said["findings"] if one["level"] != "ok")


@pytest.mark.slow
def test_full_compares_fingerprints(places, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["doctor.py", "--full", *places])
    before = tree(tmp_path)
    doctor.main()
    text = " ".join(capsys.readouterr().out.split())
    assert "no recorded run used mnist" in text and "checksums right" in text and tree(tmp_path) == before
    assert "import and fit" in text                              # torch was asked as well


def test_wrong_flags_give_status_2():
    for words in (("--ful",), ("--quick", "--full"), ("extra",)):
        done = bare(*words)
        assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
        assert done.stdout == ""


def test_it_runs_where_no_package_is(places):
    done = bare(*places)
    text = " ".join(done.stdout.split())
    assert done.stderr == "" and done.returncode in (0, 1)
    assert "make setup" in text or "make uses" in text
    assert "run folders were not looked at" in text and "4 training and 2 test images 8x8" in text


def test_it_runs_where_torch_is_missing(places, run_without_torch):
    code = "import sys\nsys.argv[0] = 'doctor.py'\nfrom scripts import doctor\ndoctor.main()"
    text = run_without_torch(code, "--quick", *places)
    assert "1 run and 1 evaluation" in text and "count what their records say" in text


def test_it_starts_with_the_standard_library_alone():
    code = "import sys\nbefore = set(sys.modules)\nimport scripts.doctor\nprint(*{name.partition('.')[0] for name in " \
           "sys.modules} - set(sys.stdlib_module_names) - {'__main__', 'common', 'scripts'} - before)"
    assert bare(code=code).stdout.strip() == ""
    with_packages = subprocess.run((sys.executable, "-c", code), cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert with_packages.stdout.strip() == "" and with_packages.returncode == 0


def test_make_doctor_sets_nothing_up():
    shown = subprocess.run(("make", "-n", "doctor", f"PYTHON={sys.executable}", "DATA=npz:a b.npz", "DATA_DIR=/x y"),
                           cwd=ROOT, capture_output=True, text=True, timeout=120, env={**os.environ, "MAKEFLAGS": ""})
    assert shown.returncode == 0 and f"{sys.executable} -m scripts.doctor" in shown.stdout
    assert "--data 'npz:a b.npz'" in shown.stdout and "--data-dir '/x y'" in shown.stdout
    assert "pip install" not in shown.stdout
    none = subprocess.run(("make", "doctor", "PYTHON=no-such-python", "PYTHON3=no-such-python"), cwd=ROOT,
                          capture_output=True, text=True, timeout=120, env={**os.environ, "MAKEFLAGS": ""})
    assert none.returncode == 2 and "then type: make setup" in none.stderr
