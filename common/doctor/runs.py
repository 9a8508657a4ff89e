"""Each run folder: records whole and fitting one another, flags that count what the records say, weights, half-done
runs.  Needs numpy, no torch; see leftovers.py for files that belong to no run.
"""

import shlex
import time
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from common import records
from common.doctor.evaluations import check_evaluation
from common.doctor.findings import NOTE, OK, PROBLEM, Finding, number, python, shown, size, some, typed
from common.doctor.npz_heads import BROKEN
from common.doctor.repairs import AREA, Tally, again, broken, cut, in_use, plain, tracked_files
from common.errors import UserError
from common.files import sha256_of

OTHERS = ("bench", "figures", "leaderboard", "reported", "tables")       # in results/, but no runs
EPOCHS = ("train_epochs", "epochs", "epoch_num", "epoch")                # what papers call a run's length
FRESH_S = 900                  # a file as young as that may still be written
MOST_READ = 4 * 10**9          # bytes of weights that are read without --full


def run_folders(results: Path) -> list[Path]:
    """Every folder below `results` that holds a record, and every empty or foreign one that stands where runs do."""
    found = set()
    for path in results.rglob("*"):
        parts = path.relative_to(results).parts
        if parts[0] in OTHERS or any(part.startswith(".") for part in parts):
            continue
        depth = 5 if parts[0] == "checks" else 3
        if path.is_dir() and len(parts) == depth:
            found.add(path)
        elif path.name in ("run.json", "train.json", "metrics.jsonl"):
            found.add(path.parent)
    return sorted(found)


def weights_of(folder: Path, results: Path, weights: Path) -> Path:
    """Where the weights of a run are kept: the checks' stand without that word."""
    inner = folder.relative_to(results)
    return weights / (Path(*inner.parts[1:]) if inner.parts[0] == "checks" else inner)


def check_runs(results: Path, weights: Path, full: bool = False) -> list[Finding]:
    """Every run below `results`, its weights below `weights`; full: reads all weights, however large."""
    tally, tracked, found = Tally(), tracked_files(results), []
    for folder in run_folders(results):
        found += check_run(folder, weights_of(folder, results, weights), tally, tracked, full)
    return [*found, *_summary(tally, results)]


def check_run(folder: Path, weights: Path, tally: Tally, tracked: set[Path], full: bool = False) -> Iterator[Finding]:
    """One run's folder."""
    name = shown(folder)
    if not (folder / "run.json").exists():
        there = [one.name for one in folder.iterdir()]
        restore = folder.absolute() / "run.json" in tracked
        what = f"it holds {some(sorted(there))}" if there else "it is empty"
        yield Finding(PROBLEM if restore else NOTE, AREA, "no-run", f"{name} is no run, it has no run.json: {what}",
                      typed("git", "restore", "--", folder / "run.json") if restore
                      else typed("rmdir" if not there else "ls", folder))
        return
    try:
        run = records.read_record(folder / "run.json", "run")
        train = records.read_record(folder / "train.json", "train") if (folder / "train.json").exists() else None
    except UserError as error:
        file = "train.json" if "train.json" in str(error) else "run.json"
        yield broken(folder, folder / file, str(error), tracked)
        return
    tally.runs += 1
    if (run["paper"], run["dataset"]) != folder.absolute().parts[-3:-1]:
        proper = folder.parents[2] / run["paper"] / run["dataset"] / run["run"]
        yield Finding(PROBLEM, AREA, "place", f"{name} is a run of {run['paper']} on {run['dataset']}: it stands in "
                      "another folder", f"{typed('mkdir', '-p', proper.parent)} && {typed('mv', folder, proper)}")
    if records.config_sha256(run["config"]) != run["config_sha256"]:
        yield broken(folder, folder / "run.json", f"{name}/run.json: its configuration is not the one of its hash, it "
                      "was changed by hand", tracked)
    yield from _training(folder, run, train, weights, tracked)
    if train is not None:
        yield from _weights(folder, run, train, weights, tally, full)
    made = [train["environment"]] if train else []
    for path in sorted(folder.glob("eval-*.json")):
        tally.evaluations += 1
        yield from check_evaluation(path, train, tally, tracked, made)
    for path in sorted(folder.glob("flags-*.npz")):
        if not path.with_name(f"eval-{path.stem.removeprefix('flags-')}.json").exists():
            yield Finding(NOTE, AREA, "orphan", f"{shown(path)} has no record beside it: the evaluation was cut off "
                          "while it wrote", typed("rm", path))
    if any(one.get("dirty") for one in made):
        tally.dirty.append(name)


def _training(folder: Path, run: Mapping[str, Any], train: Mapping[str, Any] | None, weights: Path,
              tracked: set[Path]) -> Iterator[Finding]:
    """The curve of a run, and how far an unfinished one is."""
    name, metrics = shown(folder), folder / "metrics.jsonl"
    try:
        rows = records.read_metrics(metrics)
    except UserError as error:
        if train is None and metrics.absolute() not in tracked:
            yield Finding(PROBLEM, AREA, "metrics", f"{plain(error)}; the run is not finished: its command cuts off "
                          "what is behind its last epoch, or says that it cannot", again(run["command"]))
        else:
            yield broken(folder, metrics, str(error), tracked)
        return
    torn = metrics.exists() and metrics.stat().st_size > 0 and not metrics.read_bytes().endswith(b"\n")
    resume = weights / "resume.pt"
    if resume.exists() and (why := _unfit_resume(resume, run["config_sha256"])):
        yield Finding(NOTE if train else PROBLEM, AREA, "resume", f"{shown(resume)} {why}: the run cannot go on with "
                      "it", typed("mv", resume, resume.with_name("resume.pt.old")))
    if train is None and any(folder.glob("eval-*.json")):
        yield broken(folder, folder / "train.json", f"{name} was evaluated, but its train.json is gone", tracked)
        return
    if train is None:
        whole = next((run["config"][key] for key in EPOCHS if isinstance(run["config"].get(key), int)), None)
        latest = max((path.stat().st_mtime for path in (folder, metrics, resume) if path.exists()), default=0)
        young = time.time() - latest < FRESH_S
        how = f"{len(rows)} of {whole} epochs are done" if whole else f"{number(len(rows), 'epoch')} done"
        more = ("" if resume.exists() else ", but weights/ has no resume.pt of it, so it begins anew") if rows else ""
        lost = "; its last line of metrics is torn, the command mends it" if torn else ""
        runs = ""
        if in_use(weights.with_name(f".{weights.name}.lock")):
            runs = "; it runs now"
        elif young:
            runs = "; it was written to just now and may still run"
        yield Finding(NOTE, AREA, "unfinished", f"{name} is not finished: {how}{more}{lost}{runs}{cut(run['command'])}",
                      again(run["command"]))
        return
    if train["config_sha256"] != run["config_sha256"]:
        yield broken(folder, folder / "train.json", f"{name}: run.json and train.json are of two "
                     "configurations", tracked)
    if torn or len(rows) != train["epochs"]:
        what = "its last line is torn" if torn else f"it has {number(len(rows), 'line')}"
        yield broken(folder, metrics, f"{shown(metrics)}: {what}, train.json says {train['epochs']} epochs", tracked)


def _unfit_resume(path: Path, digest: str) -> str:
    """Why a run of this configuration cannot go on from a resume file; its pickle is searched, never loaded."""
    try:
        with zipfile.ZipFile(path) as archive:
            pickled = next((name for name in archive.namelist() if name.endswith("/data.pkl")), None)
            if pickled is None:
                return "is no resume file"
            return "" if digest.encode() in archive.read(pickled) else "is of another configuration"
    except BROKEN:
        return "is damaged or half copied"


def _weights(folder: Path, run: Mapping[str, Any], train: Mapping[str, Any], weights: Path, tally: Tally,
             full: bool) -> Iterator[Finding]:
    files = [(weights / Path(entry["file"]).name, entry["sha256"]) for entry in train["weights"].values()]
    there = [(path, digest) for path, digest in files if path.is_file()]
    if not there:
        tally.absent.append(folder)
        return
    for path, digest in there:
        length = path.stat().st_size
        tally.read += length
        if tally.read > MOST_READ and not full:
            tally.unread.append(shown(path))
        elif sha256_of(path) != digest:
            aside = path.with_name(path.name + ".other")
            yield Finding(PROBLEM, AREA, "weights", f"{shown(path)} is not the file that train.json names (its sha256 "
                          "differs): put the right one there, or move it away and train again" + cut(run["command"]),
                          f"{typed('mv', path, aside)} && {again(run['command'])}")
        else:
            tally.weights_here += 1
    if gone := [path.name for path, _ in files if not path.is_file()]:
        yield Finding(NOTE, AREA, "weights-part", f"{shown(weights)} lacks {some(gone)}: what reads it trains again",
                      again(run["command"]))
    if (weights / "resume.pt").exists():
        tally.resumable.append(weights / "resume.pt")


def _summary(tally: Tally, results: Path) -> Iterator[Finding]:
    """What holds for many runs, once."""
    if tally.absent:
        yield Finding(NOTE, AREA, "absent", f"the weights of {number(len(tally.absent), 'finished run')} are not on "
                      "this machine (git does not keep them); tables and figures need none; what trains one again is "
                      "in its run.json", typed("grep", '"command"', tally.absent[0] / "run.json"))
    if tally.unread:
        yield Finding(NOTE, AREA, "unread", f"{number(len(tally.unread), 'file')} of weights were not compared with "
                      "the records, there are too many bytes", typed(python(), "-m", "scripts.doctor", "--full"))
    if tally.dirty:
        yield Finding(NOTE, AREA, "dirty", f"{number(len(tally.dirty), 'run')} made with code that was not committed: "
                      f"{some(tally.dirty)}", f"grep -l '\"dirty\": true' -r {shlex.quote(shown(results))}")
    if (kept := sum(path.stat().st_size for path in tally.resumable)) > 10**9:
        yield Finding(NOTE, AREA, "resumes", f"resume.pt of {number(len(tally.resumable), 'finished run')} take "
                      f"{size(kept)} and are needed no more", typed("rm", *tally.resumable))
    kept = f"; {number(tally.weights_here, 'file')} of weights with the recorded hash" if tally.weights_here else ""
    yield Finding(OK, AREA, "counted", f"{number(tally.runs, 'run')} and {number(tally.evaluations, 'evaluation')} in "
                  f"{shown(results)}/; {tally.flags:,} flags count what their records say{kept}")
