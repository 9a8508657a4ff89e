"""python -m scripts.leaderboard: tables, figure and page from records alone, the same bytes twice."""

import os
import subprocess
import sys

import pytest

from common.environment import ROOT
from common.errors import UserError
from common.tests.fabricate import curves, fabricate
from scripts import leaderboard


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Records of two papers at budget board."""
    monkeypatch.chdir(ROOT)
    for paper, method in (("adarat", "PGD-AT"), ("rpat", "PGD-AT")):
        fabricate(tmp_path, paper=paper, method=method, budget="board", metrics=curves(3),
                  accuracies={"clean": 0.8, "autoattack": 0.4})
    return tmp_path


def made(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for name in ("tables", "figures", "leaderboard")
            for path in sorted((folder / name).glob("*"))}


def test_it_writes_tables_figure_and_page_the_same_twice(results, capsys):
    leaderboard.main(["--results", str(results)])
    first = made(results)
    assert set(first) == {"tables/leaderboard.md", "tables/leaderboard.csv", "tables/leaderboard.tex",
                          "figures/leaderboard.png", "leaderboard/index.html"}
    text = capsys.readouterr().out
    assert "| PGD-AT | adarat | 1 | 80.00" in text and "| PGD-AT | rpat | 1 | 80.00" in text
    assert "compares no two papers" not in text and b"| yes |" in first["tables/leaderboard.md"]
    leaderboard.main(["--results", str(results)])
    assert made(results) == first


def test_what_papers_compare_has_a_table_a_file_and_a_figure(results, capsys):
    fabricate(results, paper="adarat", method="PGD-AT", variant="adarat", budget="board", metrics=curves(3),
              accuracies={"clean": 0.9, "autoattack": 0.35})
    leaderboard.main(["--results", str(results)])
    first = made(results)
    assert {"tables/leaderboard-differences.csv", "figures/leaderboard-differences.png"} < set(first)
    assert b"| PGD-AT + AdaRAT \xe2\x88\x92 PGD-AT | adarat | 1 | +10.00 [" in first["tables/leaderboard.md"]
    assert b"adarat,PGD-AT + AdaRAT" in first["tables/leaderboard-differences.csv"]
    assert b"leaderboard-differences.png" in first["leaderboard/index.html"]
    assert "figures/leaderboard-differences.png\n" in capsys.readouterr().out
    leaderboard.main(["--results", str(results)])
    assert made(results) == first


def test_measuring_quirks_are_those_of_the_papers_settings():
    told = {paper.name: paper.measuring for paper in leaderboard.papers(ROOT)}
    assert "test-crop" in told["adarat"] and "momentum-reset" not in told["adarat"]


def test_a_part_does_not_take_the_place_of_the_whole(results):
    leaderboard.main(["--results", str(results), "--dataset", "cifar10", "--budget", "board"])
    assert "leaderboard/cifar10-board.html" in made(results) and "leaderboard/index.html" not in made(results)


@pytest.mark.parametrize(("words", "said"), [
    (("--eps", "4/255"), "AutoAttack at L-inf 4/255 at budget short, board, gpu, full: train some with make"),
    (("--dataset", "nothing"), "no finished run under"), (("--results", "/nowhere/at/all"), "is no folder: name")])
def test_nothing_to_show_is_one_clear_line(results, words, said):
    with pytest.raises(UserError, match=said):
        leaderboard.main(["--results", str(results), *words])
    assert not made(results)


def test_every_paper_of_the_repository_is_asked():
    found = {paper.name: paper.effort for paper in leaderboard.papers(ROOT)}
    assert {"adarat", "brainreg", "dyart", "experiments", "rpat"} <= found.keys() and "common" not in found
    assert all(found.values())


def test_make_shows_what_the_common_shape_trains_and_draws_without_it():
    def plan(*words):
        done = subprocess.run(("make", "-n", "leaderboard", "SETUP=0", f"PYTHON={sys.executable}", *words), cwd=ROOT,
                              capture_output=True, text=True, env=os.environ | {"MAKEFLAGS": ""})
        return done.returncode, done.stdout + done.stderr

    status, text = plan()
    assert status == 0 and "scripts.leaderboard" in text and "train" not in text
    status, text = plan("BUDGET=board", "DATASETS=mnist")
    assert status != 0 and "the leaderboard has a common shape for cifar10, cifar100" in text
