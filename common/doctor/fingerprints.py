"""Whether the data here are those that the recorded runs used: loaded in a process of its own, fingerprints compared.

python -m common.doctor.fingerprints SPEC FOLDER prints what a record would say of a data set, as JSON.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.doctor.findings import NOTE, OK, PROBLEM, Finding, number, typed
from common.environment import ROOT

LIMIT_S = 1200


def check_fingerprints(specs: list[str], folder: Path, results: Path) -> list[Finding]:
    """Load each data set and say how many of the recorded runs were tested, and trained, on the same images."""
    said = recorded(results)
    return [_compared(spec, described(spec, folder), said, results) for spec in specs]


def described(spec: str, folder: Path, limit: float = LIMIT_S) -> dict[str, Any] | str:
    """What a record would say of a data set; a text where it cannot be loaded."""
    command = (sys.executable, "-m", "common.doctor.fingerprints", spec, str(Path(folder).absolute()))
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return f"not loaded within {limit:.0f} s"
    lines = done.stdout.splitlines()
    if done.returncode == 0 and lines:
        return json.loads(lines[-1])
    return (done.stderr.strip().splitlines() or ["no message"])[-1].removeprefix("error: ")


def recorded(results: Path) -> dict[str, dict[str, Any]]:
    """Run folder -> its `data`, of every run.json that can be read."""
    found = {}
    for path in sorted(Path(results).rglob("run.json")):
        try:
            found[str(path.parent.relative_to(results))] = dict(json.loads(path.read_text(encoding="utf-8"))["data"])
        except (OSError, ValueError, KeyError, TypeError):
            continue           # the check of the run folders says so
    return found


def _compared(spec: str, here: Mapping[str, Any] | str, said: Mapping[str, Mapping[str, Any]],
              results: Path) -> Finding:
    from common.doctor.data import AREA, told

    if isinstance(here, str):
        return Finding(PROBLEM, AREA, "unloadable", f"{spec} cannot be loaded: {here}", told(spec))
    alike = {run: data for run, data in said.items() if data.get("name") == here["name"]}
    same = [run for run, data in alike.items() if data.get("test_fingerprint") == here["test_fingerprint"]]
    digest = f"test images {here['test_fingerprint'][:12]}"
    if not alike:
        return Finding(OK, AREA, "fingerprint", f"{spec}: {digest}; no recorded run used {here['name']}")
    if not same:
        return Finding(NOTE, AREA, "fingerprint", f"{spec}: {digest}, but the {number(len(alike), 'recorded run')} on "
                       f"{here['name']} had others: results here cannot be compared image by image with theirs",
                       typed("grep", '"source"', results / next(iter(alike)) / "run.json"))
    rest = f"; {len(alike) - len(same)} used other or changed images" if len(same) < len(alike) else ""
    return Finding(OK, AREA, "fingerprint", f"{spec}: {digest}, those of {number(len(same), 'recorded run')}{rest}")


def main() -> None:
    """Load and describe."""
    from common.data import load

    print(json.dumps(load(sys.argv[1], data_dir=Path(sys.argv[2])).describe()))


if __name__ == "__main__":
    from common.errors import exit_cleanly

    exit_cleanly(main)
