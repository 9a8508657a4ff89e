"""What is made of records, as a target: a paper's table and the leaderboard."""

from pathlib import Path
from types import ModuleType

from common import leaderboard, records, report
from common.fuzz import Target
from common.fuzz.records import mutate_run
from common.render import markdown
from common.tests.fabricate import fabricate


def make(folder: Path) -> None:
    for seed in (1, 2):
        fabricate(folder, seed=seed, metrics=[{"epoch": 1, "loss": 2.0}], budget="short", n=10,
                  accuracies={"clean": 0.8, "FGSM": 0.5, "AutoAttack": 0.4})


def target(paper: ModuleType) -> Target:
    """paper: its runs.py."""
    def load(folder: Path) -> None:
        runs = [run for run in records.read_runs(folder) if run.train]
        for dataset, budget in sorted({(run.run["dataset"], run.run["budget"]) for run in runs}):
            markdown(report.build(paper.TABLE, runs, [], dataset, budget).grids)
        leaderboard.build([leaderboard.Paper("adarat", paper.TABLE, getattr(paper, "effort_of_run", None))], runs)

    return Target("tables", make, mutate_run, load)
