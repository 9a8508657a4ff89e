"""`make quick` as a newcomer types it, in a copy of the repository: the whole way from digits to table and figure."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from common.records import read_runs

ROOT = Path(__file__).resolve().parents[1]


def copy_of_the_code(target: Path) -> Path:
    """The repository without weights, data, builds and the records of quick runs."""
    skip = shutil.ignore_patterns(".git", ".venv", "build", "weights", "__pycache__", "*_quick_*", "adarat-*-quick*",
                                  ".*_cache")
    return shutil.copytree(ROOT, target, ignore=skip)


def make(folder: Path, *words: str) -> str:
    done = subprocess.run(["make", f"PYTHON={sys.executable}", "SETUP=0", *words], cwd=folder, capture_output=True,
                          text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_quick_trains_attacks_tabulates_and_draws(tmp_path):
    folder = copy_of_the_code(tmp_path / "repository")
    said = make(folder, "quick")
    runs = {run.run["variant"]: run for run in read_runs(folder / "results", "adarat", "digits")}
    assert set(runs) == {"plain", "adarat"}
    for run in runs.values():
        results = run.evals["paper-adarat-400-200"].results
        assert list(results) == ["clean", "FGSM", "PGD-10", "PGD-20", "PGD-50", "CW-20", "AutoAttack"]
        assert results["clean"]["n"] == 400 and results["AutoAttack"]["n"] == 200
        assert results["clean"]["robust"] > 360, "a trained network knows its digits"
        assert results["PGD-50"]["robust"] > 200, "and withstands an attack that it was trained against"
        assert results["PGD-50"]["robust"] <= results["FGSM"]["robust"] < results["clean"]["robust"]
        assert results["AutoAttack"]["settings"] == {"iterations": 100, "queries": 5000}
    barrier = np.array([row["barrier"] for row in runs["adarat"].metrics])
    gated = np.array([row["gated"] for row in runs["adarat"].metrics])
    assert gated[0] == 1 and gated[-1] < 1 and barrier.max() > 0.01, "the barrier is at work once the gate opens"
    for name in ("adarat-digits-quick-accuracy-pgd-at.png", "adarat-digits-quick-barrier-pgd-at.png",
                 "adarat-digits-quick-evaluators.png"):
        assert name in said, "it says where each figure is"
        assert (folder / "results" / "figures" / name).stat().st_size > 10_000
    table = (folder / "results" / "tables" / "adarat-digits-quick.md").read_text()
    assert "PGD-AT + AdaRAT" in table and "AutoAttack" in table and "PGD-AT + AdaRAT" in said

    again = make(folder, "quick")
    assert "train_cifar10.py" not in again and "scripts.evaluate" not in again, "nothing done is done again"
