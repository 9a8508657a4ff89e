"""How far trainings of one seed part: the arithmetic, and once the whole of it on a few digits."""

import json

import pytest
import torch

from common.errors import UserError
from scripts import seed_spread
from scripts.seed_spread import Manner, Run, gap, main, row, table

SAID = {"engine": {"deterministic": False}, "precision": "fp32", "threads": 1}


def run(value: float, clean: float, said=SAID) -> Run:
    return Run({"a": torch.tensor([1.0, value]), "b": torch.tensor(3)}, {"clean": clean, "PGD-20": 50.0}, said)


def test_the_largest_difference_is_of_any_entry_and_zero_for_the_same_bits():
    assert gap(run(2, 0).weights, run(2, 0).weights) == 0
    assert gap(run(2, 0).weights, run(-0.5, 0).weights) == 2.5
    assert gap({"a": torch.tensor([1.0])}, {"a": torch.tensor([1.0]).nextafter(torch.tensor(2.0))}) > 0


def test_a_row_compares_its_runs_with_each_other_and_with_the_first_as_usual():
    made = row("rpat", Manner("x"), [run(2, 80), run(2.5, 81.5), run(1, 79)], run(3, 85))
    assert made["largest_difference"] == 1 and made["from_usual"] == 2
    assert made["accuracies_apart"] == {"clean": 2.5, "PGD-20": 0} and made["accuracies_from_usual"]["clean"] == 6
    same = row("rpat", Manner("x"), [run(2, 80), run(2, 80)], run(2, 80))
    where = {"device": "a processor", "torch": "2", "commit": None}
    grid = table([{"kind": "cpu", "rows": [made, same], "environment": where}])
    assert grid.rows[0][5:] == ("1.0e+00", "2.50 / 0.00", "2.0e+00", "6.00 / 0.00")
    assert grid.rows[1][5:] == ("same bits", "0.00 / 0.00", "same bits", "0.00 / 0.00")


def test_a_training_that_fails_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(seed_spread.TRAININGS, "rpat", ("rpat/benchmarks/train.py", "--epochs 0"))
    with pytest.raises(UserError, match="a training ended with status 2"):
        main(["--device", "cpu", "--only", "rpat", "--results", str(tmp_path)])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_whole_of_it(tmp_path, monkeypatch):
    script, flags = seed_spread.TRAININGS["adarat"]
    monkeypatch.setitem(seed_spread.TRAININGS, "adarat", (script, flags.replace("--epoch 3", "--epoch 1")))
    main(["--device", "cpu", "--runs", "2", "--only", "adarat", "--results", str(tmp_path)])
    record = json.loads((tmp_path / "checks/determinism/cpu.json").read_text())
    assert [one["deterministic"] for one in record["rows"]] == [False, True, False]
    assert [one["threads"] for one in record["rows"]] == [1, 1, 2]
    assert all(one["largest_difference"] == 0 for one in record["rows"])
    assert (tmp_path / "tables/determinism.md").read_text().count("| cpu | adarat |") == 3
