"""The page's figures come from records, and nothing else of the page changes."""

from pathlib import Path

import pytest

from common.environment import ROOT
from common.errors import UserError
from common.files import write_json
from common.reliability import BEGIN, END, fuzz_grid, grids, kill_grid, refreshed


def record(kills=2, asked=2):
    def kill(signal, ending):
        return {"signal": signal, "aim": "work", "after_seconds": 1.0, "ending_seconds": ending, "status": -9,
                "writing": signal == "SIGKILL"}

    jobs = [{"kind": "dyart", "runs": 2, "restarts": 3, "losses": ["w differs"],
             "kills": [kill("SIGKILL", 0.1), kill("SIGTERM", 1.25), kill("SIGTERM", 0.5)]},
            {"kind": "tables", "runs": 1, "restarts": 1, "losses": [], "kills": [kill("SIGKILL", 0.1)]}]
    faults = [{"fault": "full disk", "kind": "dyart", "skipped": None, "status": 2, "said": "error: no space",
               "losses": []}, {"fault": "two at once", "kind": "dyart", "skipped": "not here", "losses": []}]
    return {"seed": 4, "asked": asked, "kills": kills, "jobs": jobs, "faults": faults, "losses": 1,
            "limit_seconds": 600, "seconds": 120.0, "environment": {
                "commit": "c" * 40, "dirty": False, "python": "3.11.7", "torch": "2.11.0", "processor": "a processor",
                "started": "2026-01-02T00:00:00+00:00"}}


def test_kills_are_counted_by_job_and_in_all():
    grid = kill_grid(record())
    assert grid.rows == (("dyart", "1", "2", "1", "1.25", "2", "3", "1"), ("tables", "1", "0", "1", "—", "1", "1", "0"),
                         ("all", "2", "2", "2", "1.25", "3", "4", "1"))
    assert "lost: dyart: w differs" in grid.notes and "limit" not in grid.notes[0]


def test_a_run_that_the_limit_ended_says_so():
    notes = kill_grid(record(2, 20)).notes
    assert notes[0].startswith("2 of 20 kills that were asked for: the other jobs ended before they were to be "
                               "struck, or the limit of 600 seconds came before; seed 4, 2 min")


def test_fuzz_cases_are_summed_up():
    made = record()["environment"] | {"dirty": True}
    grid = fuzz_grid({"seed": 0, "seconds": 600.0, "defects": 1, "environment": made, "targets": {
        "npz": {"cases": 1200, "accepted": 100, "refused": 1099, "defects": [{"number": 3, "verdict": "hang"}]},
        "flags": {"cases": 50, "accepted": 0, "refused": 50, "defects": []}}})
    assert grid.rows == (("npz", "1,200", "100", "1,099", "1"), ("flags", "50", "0", "50", "0"),
                         ("all", "1,250", "100", "1,149", "1"))
    assert grid.notes[0].startswith("seed 0, 10 minutes, 2026-01-02, a processor, torch 2.11.0, Python 3.11.7, ")
    assert "with changes" in grid.notes[0]


def test_only_what_stands_between_the_marks_is_written(tmp_path):
    write_json(tmp_path / "chaos.json", record())
    page = f"# Page\n\ntext\n\n{BEGIN}\nold\n{END}\n\nmore\n"
    new = refreshed(page, grids(tmp_path))
    assert new.startswith(f"# Page\n\ntext\n\n{BEGIN}\n\n### Kills\n") and new.endswith(f"\n{END}\n\nmore\n")
    assert "old" not in new and "| full disk | 2 | error: no space | 0 |" in new and "skipped: not here" in new
    assert refreshed(new, grids(tmp_path)) == new
    write_json(tmp_path / "chaos-more.json", record(7, 8))
    assert "- 7 of 8 kills" in refreshed(new, grids(tmp_path)) and "- 2 of 2 kills" in refreshed(new, grids(tmp_path))
    assert "No record is here yet." in refreshed(page, grids(tmp_path / "nothing"))


def test_a_page_without_marks_is_left_alone():
    with pytest.raises(UserError, match="restore it from git"):
        refreshed(f"# Page\n{END}\n{BEGIN}\n", [])


def test_the_page_shows_the_records_that_are_kept():
    page = Path(ROOT, "docs", "reliability.md").read_text(encoding="utf-8")
    assert refreshed(page, grids(ROOT / "results" / "checks" / "reliability")) == page, "python -m scripts.reliability"
