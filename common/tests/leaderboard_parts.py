"""A leaderboard's page of records that never were, for the tests of what it says and of how a browser takes it."""

import json
from pathlib import Path
from typing import Any

from common.leaderboard import Board, Paper, build
from common.leaderboard_page import page
from common.records import read_runs
from common.runs import Effort, Row, Table
from common.tests.fabricate import curves, fabricate


def built(tmp_path: Path, label: str = "A", command: str | None = None, **changes: Any) -> tuple[Board, Path]:
    """(board, page): paper one's method A of two seeds, called `label`, and paper two's B; changes: see `fabricate`."""
    results = tmp_path / "results"
    for paper, method, seeds in (("one", "A", (1, 2)), ("two", "B", (1,))):
        for seed in seeds:
            folder = fabricate(results, **{"paper": paper, "method": method, "seed": seed, "metrics": curves(5),
                                           "accuracies": {"clean": 0.8, "autoattack-8": 0.4 + seed / 50}} | changes)
            if command:
                record = json.loads((folder / "run.json").read_text()) | {"command": command}
                (folder / "run.json").write_text(json.dumps(record))
    papers = [Paper(name, Table(title=name, columns=(), rows=(Row(method=method, variant="plain", label=label),)),
                    lambda run: Effort(passes=8.0)) for name, method in (("one", "A"), ("two", "B"))]
    board = build(papers, read_runs(results))
    files = tuple(results / "tables" / name for name in ("leaderboard.md", "leaderboard.csv"))
    for path in files:
        path.parent.mkdir(exist_ok=True)
        path.write_text("here")
    where = results / "leaderboard" / "index.html"
    where.parent.mkdir(exist_ok=True)
    where.write_text(page(board, "All methods", where, files))
    return board, where
