"""The figures of docs/reliability.md, from the records in results/checks/reliability/.  No torch here."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import read_json
from common.render import DASH, Grid, markdown

BEGIN, END = "<!-- figures: begin (written by python -m scripts.reliability) -->", "<!-- figures: end -->"


def kill_grid(record: Mapping[str, Any]) -> Grid:
    """Kills by kind of job, from the record of scripts.chaos."""
    rows = [_row(one["kind"], one["kills"], one["runs"], one["restarts"], len(one["losses"]))
            for one in record["jobs"]]
    kills = [kill for one in record["jobs"] for kill in one["kills"]]
    total = [sum(one[key] for one in record["jobs"]) for key in ("runs", "restarts")]
    rows.append(_row("all", kills, *total, sum(len(one["losses"]) for one in record["jobs"])))
    short = record["kills"] < record["asked"]
    notes = [f"{record['kills']} of {record['asked']} kills that were asked for"
             + (": the other jobs ended before they were to be struck, or the limit of "
                f"{record['limit_seconds']} seconds came before" if short else "")
             + f"; seed {record['seed']}, {record['seconds'] / 60:.0f} minutes, {_made(record)}",
             "while writing: when the job was gone a temporary file was there, which SIGKILL then left and which was "
             "cut off at random"]
    lost = [f"lost: {one['kind']}: {line}" for one in record["jobs"] for line in one["losses"]]
    return Grid("Kills", ("job", "SIGKILL", "SIGTERM", "while writing", "slowest end after SIGTERM, s", "runs",
                          "restarts", "losses"), tuple(rows), (*notes, *lost))


def _row(name: str, kills: list[Mapping[str, Any]], runs: int, restarts: int, losses: int) -> tuple[str, ...]:
    terms = [kill["ending_seconds"] for kill in kills if kill["signal"] == "SIGTERM"]
    return (name, str(len(kills) - len(terms)), str(len(terms)), str(sum(kill["writing"] for kill in kills)),
            f"{max(terms):.2f}" if terms else DASH, str(runs), str(restarts), str(losses))


def fault_grid(record: Mapping[str, Any]) -> Grid:
    """Faults of disks and users, from the same record."""
    rows = tuple((one["fault"], DASH, "skipped: " + one["skipped"], DASH) if one["skipped"] else
                 (one["fault"], str(one["status"]), one["said"], str(len(one["losses"]))) for one in record["faults"])
    lost = tuple(f"lost: {one['fault']}: {line}" for one in record["faults"] for line in one["losses"])
    return Grid("Faults", ("fault", "exit status", "what the command says", "losses"), rows, lost)


def fuzz_grid(record: Mapping[str, Any]) -> Grid:
    """Damaged and hostile files by what reads them, from the record of scripts.fuzz."""
    rows = [(name, *(f"{one[key]:,}" for key in ("cases", "accepted", "refused")), str(len(one["defects"])))
            for name, one in record["targets"].items()]
    total = [f"{sum(one[key] for one in record['targets'].values()):,}" for key in ("cases", "accepted", "refused")]
    rows.append(("all", *total, str(record["defects"])))
    note = (f"seed {record['seed']}, {record['seconds'] / 60:.0f} minutes, {_made(record)}; a defect is a traceback, a "
            "hang or a file written")
    return Grid("Fuzz cases", ("what reads", "cases", "accepted", "refused", "defects"), tuple(rows), (note,))


def _made(record: Mapping[str, Any]) -> str:
    """Where and with what a record was made."""
    made = record["environment"]
    return (f"{made['started'][:10]}, {made['processor']}, torch {made['torch']}, Python {made['python']}, "
            f"commit {str(made['commit'])[:7]}" + (" with changes" if made["dirty"] else ""))


def grids(folder: Path) -> list[Grid]:
    """The tables of every record that is in the folder: chaos.json and chaos-....json, fuzz.json."""
    found = []
    for path in sorted(folder.glob("chaos*.json")):
        record = read_json(path)
        found += [kill_grid(record), *([fault_grid(record)] if record["faults"] else [])]
    if (path := folder / "fuzz.json").exists():
        found.append(fuzz_grid(read_json(path)))
    return found


def refreshed(page: str, tables: list[Grid]) -> str:
    """The page with the tables between its two marks; UserError where it has not both, in order."""
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise UserError(f"docs/reliability.md needs the lines {BEGIN} and {END}, between which the figures go: "
                        "restore it from git", code="E-OUT")
    text = "\n".join(markdown([grid]).replace("# ", "### ", 1) for grid in tables) or "No record is here yet.\n"
    return f"{head}{BEGIN}\n\n{text}\n{END}{tail}"
