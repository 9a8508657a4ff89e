"""python scripts/compare.py A B: a table and plain sentences, without torch; mistakes are one line."""

import os
import subprocess
import sys

import pytest

from common.environment import ROOT
from common.tests.fabricate import fabricate
from scripts import compare as command


@pytest.fixture
def runs(tmp_path):
    return [str(fabricate(tmp_path, method="PGD-AT", variant=variant, seed=seed, n=1000,
                          accuracies={"clean": 0.8 - 0.2 * (variant == "plain")}))
            for variant in ("adarat", "plain") for seed in (1, 2)]


def test_it_runs_as_a_script_without_torch(runs, tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('torch is not to be imported')\n")
    done = subprocess.run((sys.executable, ROOT / "scripts" / "compare.py", runs[0], runs[2]), cwd=tmp_path,
                          capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    assert "| clean | 1,000 | 80.00 | 60.00 | +20.00 |" in done.stdout
    assert "- clean: +20.0 ± " in done.stdout and "points (A better): resolved with 1,000 images." in done.stdout
    assert "One seed each" in done.stdout
    failed = subprocess.run((sys.executable, ROOT / "scripts" / "compare.py", runs[0]), cwd=tmp_path,
                            capture_output=True, text=True)
    assert (failed.returncode, failed.stdout) == (2, "")
    assert failed.stderr == ("error: give two runs, A and B, or the runs of A, then --against and the runs of B "
                             "[E-FLAG-MISSING]\n")


def test_several_seeds_stand_against_several(runs, tmp_path, capsys):
    command.main([*runs[:2], "--against", *runs[2:], "--out", str(tmp_path / "out.md")])
    text = capsys.readouterr().out
    assert "{pgd-at-adarat_short_s1,pgd-at-adarat_short_s2}" in text and "and 2 seeds (+20.0, +20.0)" in text
    assert "- clean: +20.0" in (tmp_path / "out.md").read_text()


def test_measuring_quirks_are_the_papers():
    known = command.of_paper("adarat", "settings").QUIRKS
    assert known["test-crop"] == "measuring" and command.of_paper("nobody", "settings") is None
    assert "test-crop" in command.measuring_quirks("adarat") and command.measuring_quirks("nobody") == ()
