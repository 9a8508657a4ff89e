"""Files that belong to no run: of writes that were killed, of older plans, of evaluations cut off, and stale rules."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from common.doctor.data import bytes_in
from common.doctor.findings import NOTE, Finding, number, python, shown, size, some, typed
from common.environment import ROOT

AREA = "left over"
MOST = 20                      # files that are named in one command
TEMPORARY = re.compile(r"\..*\.(\d+)\.tmp")


def check_leftovers(results: Path, weights: Path, data: Path, build: Path, root: Path = ROOT) -> list[Finding]:
    """What can be removed, and what goes on when its command is typed again."""
    return [*_temporary([results, weights, build], [data, data / ".cache"]), *_retired(weights),
            *_cut_off(weights, results), *_of_no_run(weights, results), *_stale_rules(build, root)]


def _temporary(deep: list[Path], flat: list[Path]) -> Iterator[Finding]:
    """flat: folders whose inner ones hold images without number, and none of ours."""
    found = [*(path for folder in deep for path in folder.rglob(".*.tmp")),
             *(path for folder in flat for path in folder.glob(".*.tmp"))]
    files = sorted({path for path in found if path.is_file()})
    dead = [path for path in files if not _written_now(path)]
    if dead:
        command = typed("rm", *dead) if len(dead) <= MOST else \
            typed("find", *[one for one in [*deep, *flat] if one.exists()], "-name", ".*.tmp", "-delete")
        yield Finding(NOTE, AREA, "temporary", f"{number(len(dead), 'file')} of writes that were killed, "
                      f"{size(sum(path.stat().st_size for path in dead))}, read by nothing: "
                      f"{some([shown(path) for path in dead], 2)}", command)


def _written_now(path: Path) -> bool:
    """Whether the process that a temporary file names still runs, as far as this machine knows."""
    found = TEMPORARY.fullmatch(path.name)
    if found is None:
        return False
    try:
        os.kill(int(found[1]), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _retired(weights: Path) -> Iterator[Finding]:
    old = sorted(path for path in weights.glob("**/*.before-*") if path.is_dir())
    if old:
        yield Finding(NOTE, AREA, "retired", f"{number(len(old), 'run')} of plans that have changed since, "
                      f"{size(sum(map(bytes_in, old)))}; make trained them anew and reads them no more",
                      typed("rm", "-r", *old[:MOST]))


def _cut_off(weights: Path, results: Path) -> Iterator[Finding]:
    for path in sorted(weights.glob("**/evaluations/progress-*.json")):
        if re.search(r"\.rank\d+\.json$", path.name):
            continue
        run = _results_of(path.parents[1], weights, results)
        plan = path.stem.removeprefix("progress-")
        if (run / "run.json").exists():
            yield Finding(NOTE, AREA, "evaluation", f"the evaluation {plan} of {shown(run)} was cut off, or runs now; "
                          "its command goes on with it", typed(python(), "-m", "scripts.evaluate", run, "--plan", plan))


def _of_no_run(weights: Path, results: Path) -> Iterator[Finding]:
    folders = sorted({path.parent for path in weights.glob("**/*.pt")})
    alone = [one for one in folders if not any(".before-" in part for part in one.parts)
             and not (_results_of(one, weights, results) / "run.json").exists()]
    if alone:
        yield Finding(NOTE, AREA, "weights", f"weights without a run in {shown(results)}, "
                      f"{size(sum(map(bytes_in, alone)))}: {some([shown(one) for one in alone])}",
                      typed("ls", "-l", *alone[:MOST]))


def _results_of(folder: Path, weights: Path, results: Path) -> Path:
    inner = folder.relative_to(weights)
    return next((place for place in (results / inner, results / "checks" / inner) if place.is_dir()), results / inner)


def _stale_rules(build: Path, root: Path) -> Iterator[Finding]:
    """Rules for make that are older than the plan that they were written from."""
    for rules in sorted(build.glob("rules-*.mk")):
        paper = rules.stem.split("-")[1]
        plan = root / paper / "runs.py"
        if not plan.exists() or plan.stat().st_mtime > rules.stat().st_mtime:
            yield Finding(NOTE, AREA, "rules", f"{shown(rules)} is older than the plan of {paper}: `make reproduce-...`"
                          " writes it anew, do not use it by itself", "make clean-build")
