"""scripts/masking.py, quirks.py and check_example.py; the page of the preflight's codes."""

import csv
import io
import json

import numpy as np
import pytest
import torch

from common.checkpoint import save_state
from common.environment import ROOT
from common.errors import UserError
from common.evaluation import quirks
from common.evaluation.codes import CODES
from common.models import build
from scripts import check_example, masking
from scripts import quirks as quirks_command

WORDS = ("--model", "small", "--width", "8", "--data", "digits", "--device", "cpu")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("w") / "mine.pt"
    save_state(path, build("small", classes=10, channels=1, width=8).state_dict())
    return path


def call(monkeypatch, command, *words):
    monkeypatch.setattr("sys.argv", ["command", *map(str, words)])
    return command.main()


def test_a_page_per_checkpoint(weights, tmp_path, monkeypatch, capsys):
    call(monkeypatch, masking, weights, *WORDS, "--out", tmp_path, "--n", "12", "--queries", "20", "--grid", "3",
         "--eps", "0.1")
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"mine-masking.{end}" for end in ("json", "md", "png")]
    said, page = capsys.readouterr().out, (tmp_path / "mine-masking.md").read_text()
    assert "FGSM breaks more than PGD-20" in said and "FGSM breaks more than PGD-20" in page and "sha256" in page
    written = json.loads((tmp_path / "mine-masking.json").read_text())
    assert written["found"]["n"] == 12 and len(written["signs"]) == 11
    with pytest.raises(UserError, match="--eps 0 attacks nothing"):
        call(monkeypatch, masking, weights, *WORDS, "--out", tmp_path, "--eps", "0")
    with pytest.raises(UserError, match="--data: say on which data set"):
        call(monkeypatch, masking, weights, "--model", "small", "--out", tmp_path)


def test_the_table_of_quirks(weights, tmp_path, monkeypatch, capsys):
    def few(eps, n, attacked):                     # the attacks that take minutes, in a few steps under their names
        return tuple(type(plan)(plan.name, tuple(
            type(one)(**one.to_json() | {"kind": "pgd", "norm": "linf", "step_size": 0.1, "steps": 2, "settings": {},
                                         "name": one.name.replace("AutoAttack", "short")})
            if "autoattack" in one.kind else one for one in plan.evaluators), chunk=plan.chunk,
            test_crop=plan.test_crop, half_inputs=plan.half_inputs) for plan in real(eps, n, attacked))
    real, lines = quirks.plans, quirks.lines
    monkeypatch.setattr(quirks, "plans", few)
    monkeypatch.setattr(quirks, "lines", lambda text: tuple(line._replace(
        right=(line.right[0], line.right[1].replace("AutoAttack", "short")),
        wrong=(line.wrong[0], line.wrong[1].replace("AutoAttack", "short"))) for line in lines(text)))
    call(monkeypatch, quirks_command, weights, *WORDS, "--out", tmp_path, "--n", "30", "--attacked", "10",
         "--eps", "0.1")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "quirks.csv").read_text())))
    assert [row["n"] for row in rows] == ["30", "30", "30", "30", "10", "10", "10"]
    assert "What measuring quirks do to mine" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["quirks.csv", "quirks.md", "quirks.tex"]


def test_what_is_measured_is_what_the_lines_name():
    plans = {plan.name: plan for plan in quirks.plans(8 / 255, 500, 100)}
    found = {(name, one.name): one for name, plan in plans.items() for one in plan.evaluators}
    for line in quirks.lines("8"):
        right, wrong = found[line.right], found[line.wrong]
        assert right.n == wrong.n and (line.right, right.kind) != (line.wrong, wrong.kind)
    assert plans["quirks-test-crop"].test_crop and plans["quirks-half"].half_inputs and not plans["quirks"].test_crop
    assert found["quirks", "AutoAttack L2"].norm == "l2" and found["quirks", "AutoAttack L2"].eps == 8 / 255


def test_a_quirk_that_flatters_is_above_zero():
    right = np.arange(100) < 40
    wrong = np.arange(100) < 52
    flags = {key: right for line in quirks.lines("8") for key in (line.right, line.wrong)}
    flags[quirks.PLAIN, "PGD-10"] = wrong
    rows = {row["of"]: row for row in quirks.compare(flags, "8")}
    row = rows["RPAT, pgd20-is-pgd10"]
    assert row["difference"] == pytest.approx(12) and row["moved"] == 12 and 0 < row["low"] < 12 < row["high"]
    assert rows["DyART, one-restart-aa"]["difference"] == 0
    assert quirks.grid("t", [row], ()).rows[0][3:5] == ("40.0", "52.0")


def test_the_example_is_judged_by_what_is_known_of_it(monkeypatch, capsys, tmp_path):
    fine = {"clean": (9400, 10_000), "AutoAttack at 8 of 255": (0, 200), "PGD-20 at 1 of 255": (20, 200),
            "AutoAttack at 1 of 255": (2, 20), "PGD-20 there": (2, 20)}
    assert check_example.judged(fine) == []
    assert "clean accuracy 10.00 %" in check_example.judged(fine | {"clean": (1000, 10_000)})[0]
    assert "30 of 200 images stand" in check_example.judged(fine | {"AutoAttack at 8 of 255": (30, 200)})[0]
    assert "3 images stand by AutoAttack, 2" in check_example.judged(fine | {"AutoAttack at 1 of 255": (3, 20)})[0]
    assert check_example.judged(fine | {"clean": (192, 200)}) == []
    monkeypatch.setattr(check_example, "example", lambda: None)
    assert call(monkeypatch, check_example) == 0 and "nothing checked: no package" in capsys.readouterr().out
    monkeypatch.setattr(check_example, "example", lambda: tmp_path / "x.pt")
    assert call(monkeypatch, check_example, "--data", f"npz:{tmp_path}/none.npz") == 0
    assert "nothing checked: no CIFAR-10 here" in capsys.readouterr().out


def test_the_page_has_a_section_for_every_code():
    page = (ROOT / "docs" / "why-is-my-robust-accuracy-wrong.md").read_text()
    for code in CODES:
        assert f"\n## {code}\n" in page and f"(#{code.lower()})" in page
    heads = {line.removeprefix("## ") for line in page.splitlines() if line.startswith("## ")}
    assert heads == {*CODES, "What the preflight cannot see"}
