"""The comparison of the fast and the plain path: its arithmetic, and once the whole of it on a few digits."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from common.errors import UserError
from scripts import fast_vs_plain
from scripts.fast_vs_plain import DIGITS, folder_of, images, main, plan_of, row, table, trained


def test_a_row():
    made = row(DIGITS, "clean", "fast", [90.0, 92.0, 94.0], [91.0, 91.0, 91.0])
    assert made["mean"] == 92 and made["sd"] == pytest.approx(2) and made["plain_sd"] == 0
    assert made["difference"] == pytest.approx(1) and made["standard_error"] == pytest.approx(2 / np.sqrt(3))
    assert made["within_spread"] is True
    assert row(DIGITS, "clean", "fast", [95.0, 97.0], [90.0, 92.0])["within_spread"] is False
    alone = row(DIGITS, "clean", "fast", [95.0], [90.0])
    assert alone["standard_error"] is None and alone["within_spread"] is False
    grid = table([made, alone], ("note",))
    assert grid.rows[0][5:] == ("92.00 ± 2.00", "91.00 ± 0.00", "1.00 ± 1.15", "yes")
    assert grid.rows[1][5:] == ("95.00", "90.00", "5.00", "no")


def test_cases_say_what_is_trained_and_judged():
    case = images("npz:a b.npz", 2000, 6, 16, 500, decays=False)
    assert "first 2,000 images" in case.title and "width 16" in case.title
    assert "--data 'npz:a b.npz'" in case.flags
    assert [(one.name, one.eps, one.n) for one in plan_of(case).evaluators][1] == ("PGD-20", 8 / 255, 500)
    decays = images("npz:a b.npz", 2000, 6, 16, 500, decays=True)
    assert "--scale_schedule True" in decays.flags and "--scale_schedule" not in case.flags
    assert len({folder_of(one, 1, path, Path()) for one in (case, decays, DIGITS) for path in one.paths}) == 6


def test_a_training_that_fails_is_one_line(tmp_path):
    broken = DIGITS._replace(flags=f"{DIGITS.flags} --epoch 0")
    with pytest.raises(UserError, match="a training ended with status 2: adarat/train/PGD-AT"):
        trained(broken, 1, "plain", tmp_path, "cpu")


@pytest.mark.slow
def test_the_whole_of_it(tmp_path, monkeypatch, capsys):
    short = DIGITS._replace(flags=DIGITS.flags.replace("--epoch 15", "--epoch 1 --n_train 64"), n=40)
    monkeypatch.setattr(fast_vs_plain, "DIGITS", short)
    monkeypatch.setattr(fast_vs_plain, "WEIGHTS", tmp_path / "weights")
    words = ["--seeds", "2", "--results", str(tmp_path), "--device", "cpu"]
    main(words)
    text = (tmp_path / "tables" / "fast-vs-plain.md").read_text()
    assert text in capsys.readouterr().out and text.count("| 2 |") == 2
    runs = sorted(path.parent for path in tmp_path.rglob("train.json"))
    assert [run.name for run in runs] == [f"pgd-at-{path}_s{seed}" for path in ("fast", "plain") for seed in (1, 2)]
    used = [json.loads((run / "train.json").read_text())["environment"]["engine"]["precision"] for run in runs]
    assert used == ["bf16", "bf16", "fp32", "fp32"]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
    shutil.rmtree(tmp_path / "weights")                              # records are kept, weights are not
    main(words)                                                      # nothing is trained or judged twice
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")} == before
    assert (tmp_path / "tables" / "fast-vs-plain.md").read_text() == text
