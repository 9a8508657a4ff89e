"""python -m scripts.report: results/ alone gives every table and figure, without torch, the same bytes twice."""

import os
import shutil
import subprocess
import sys

import pytest

from common.environment import ROOT
from common.tests.fabricate import curves, fabricate

RUNS = '''
from common.runs import Column, Row, Table
TABLE = Table(title="AdaRAT", compare=(("adarat", "plain"),), reported_paper="AdaRAT",
              reported_models={"cifar10": ("ResNet-18",)}, reported_datasets={"cifar10": "CIFAR-10"},
              rows=(Row(method="PGD-AT", variant="plain", label="PGD-AT", reported=(("PGD-AT", "*"),)),
                    Row(method="PGD-AT", variant="adarat", label="PGD-AT + AdaRAT")),
              columns=(Column(evaluator="clean", title="clean", reported=("clean",)),))
'''


@pytest.fixture
def clone(tmp_path):
    """The code that reads records, AdaRAT's figures and the reported numbers; no torch can be imported."""
    for folder in ("common", "common/evaluation", "scripts", "adarat"):
        (tmp_path / folder).mkdir()
    for path in (*(ROOT / "common").glob("*.py"), *(ROOT / "common/evaluation").glob("*.py"),
                 *(ROOT / "scripts").glob("*.py"),
                 *(ROOT / "adarat" / name for name in ("__init__.py", "figures.py", "settings.py"))):
        shutil.copy(path, tmp_path / path.relative_to(ROOT))
    (tmp_path / "adarat" / "runs.py").write_text(RUNS)
    (tmp_path / "torch.py").write_text("raise ImportError('torch is not to be imported')\n")
    (tmp_path / "results").mkdir()
    shutil.copytree(ROOT / "results" / "reported", tmp_path / "results" / "reported")
    return tmp_path


def report(clone, *words, status=0):
    done = subprocess.run((sys.executable, "-m", "scripts.report", *words), cwd=clone, capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(clone)})
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def made(clone):
    return {str(path.relative_to(clone)): path.read_bytes()
            for folder in ("tables", "figures") for path in sorted((clone / "results" / folder).glob("*"))}


def test_results_alone_give_tables_and_figures_twice_the_same(clone):
    for variant in ("plain", "adarat"):
        fabricate(clone / "results", variant=variant, metrics=curves(6, barrier=variant == "adarat"),
                  accuracies={"clean": 0.8})
    fabricate(clone / "results", budget="custom", accuracies={"clean": 0.1})      # a user's own settings: no table
    text = report(clone)
    first = made(clone)
    stem = "results/tables/adarat-cifar10-short"
    drawn = "results/figures/adarat-cifar10-short"
    against = "results/tables/adarat-against-reported"
    assert set(first) == {f"{stem}.md", f"{stem}.csv", f"{stem}.tex", f"{against}.md", f"{against}.csv",
                          f"{against}.tex", f"{drawn}-accuracy-pgd-at.png",
                          f"{drawn}-barrier-pgd-at.png", f"{drawn}-evaluators.png"}
    assert all(name in text for name in first if name.endswith((".md", ".png")))
    assert b"| PGD-AT | 1 | 10 | last | 80.00 [73.9, 85.0] / 83.1 (r1) |" in first[f"{stem}.md"]
    assert b"not comparable: budget short, not the paper's training |" in first[f"{against}.md"]
    for folder in ("tables", "figures"):
        shutil.rmtree(clone / "results" / folder)
    report(clone, "--paper", "adarat", "--dataset", "cifar10", "--budget", "short")
    assert made(clone) == first


def test_show_prints_the_table(clone):
    fabricate(clone / "results", accuracies={"clean": 0.8})
    assert "# AdaRAT on cifar10, budget short" in report(clone, "--show", "--out", "elsewhere")
    assert (clone / "elsewhere" / "tables").is_dir() and not made(clone)


def test_what_only_shows_that_parts_work_is_not_held_against_a_paper(clone):
    fabricate(clone / "results", budget="smoke", accuracies={"clean": 0.8})
    assert "table" in report(clone) and "results/tables/adarat-against-reported.md" not in made(clone)


def test_a_part_asked_for_leaves_the_whole_against_what_is_reported(clone):
    fabricate(clone / "results", accuracies={"clean": 0.8})
    fabricate(clone / "results", dataset="cifar100", accuracies={"clean": 0.7})
    report(clone)
    whole = made(clone)
    report(clone, "--dataset", "cifar100")
    name = "results/tables/adarat-against-reported.md"
    assert made(clone)[name] == whole[name] and b"| cifar10 | short |" in whole[name]


def test_nothing_yet_is_said(clone):
    assert "no finished run under results" in report(clone)


@pytest.mark.parametrize(("words", "said"), [
    (("--paper", "nobody"), "error: no paper 'nobody' with tables here: there are adarat [E-PAPER]\n"),
    (("--results", "none"), "error: none is no folder: name the one that holds the records with --results "
                            "[E-RESULTS]\n")])
def test_user_errors_are_one_line(clone, words, said):
    assert report(clone, *words, status=2) == said


def test_a_broken_record_is_named(clone):
    (fabricate(clone / "results") / "train.json").write_text("{")
    text = report(clone, status=2)
    assert "pgd-at_short_s1/train.json is not readable JSON" in text and "Traceback" not in text
