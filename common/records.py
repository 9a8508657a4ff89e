"""What a run leaves behind: run.json, train.json, metrics.jsonl, eval-PLAN.json and flags-PLAN.npz.

They stand in results/<paper>/<dataset>/<run>/, are kept in git, and are the only source of tables and figures.  A
record holds counts, never percentages, and no path of the machine it was made on.  No torch here: records are read
where torch is not installed.
"""

import errno
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from common.environment import environment as environment
from common.environment import portable as portable
from common.environment import relative_command as relative_command
from common.errors import UserError
from common.files import (
    read_json,
    replacing,
    sha256_of,
    sha256_of_json,
    sync_folder,
    write_failure,
    write_json,
    write_text,
)

SCHEMA = 1
_TEXT, _COUNT, _NUMBER = (str,), (int,), (int, float)
_IDENTITY = {"schema": _COUNT, "paper": _TEXT, "dataset": _TEXT, "run": _TEXT}
_OPTIONAL_TEXT = (str, type(None))
FIELDS: dict[str, dict[str, tuple[type, ...]]] = {
    "run": {**_IDENTITY, "method": _TEXT, "variant": _TEXT, "budget": _TEXT, "seed": _COUNT, "config": (dict,),
            "config_sha256": _TEXT, "spec_sha256": _OPTIONAL_TEXT, "quirks": (list,), "needs": (dict,),
            "data": (dict,), "model": (dict,), "command": _TEXT},
    "train": {**_IDENTITY, "spec_sha256": _OPTIONAL_TEXT, "config_sha256": _TEXT, "weights": (dict,),
              "epochs": _COUNT, "steps": _COUNT, "seconds": _NUMBER, "selected_on": _OPTIONAL_TEXT,
              "final": (dict,), "environment": (dict,)},
    "eval": {**_IDENTITY, "plan": _TEXT, "spec_sha256": _OPTIONAL_TEXT, "plan_sha256": _TEXT, "checkpoint": _TEXT,
             "weights_sha256": _TEXT, "data": (dict,), "seed": _COUNT, "results": (list,), "flags": _TEXT,
             "flags_sha256": _TEXT, "environment": (dict,), "command": _TEXT},
    "result": {"name": _TEXT, "kind": _TEXT, "norm": _OPTIONAL_TEXT, "eps": (int, float, type(None)),
               "settings": (dict,), "robust": _COUNT, "n": _COUNT, "seconds": _NUMBER},
    "weights": {"file": _TEXT, "sha256": _TEXT},
    "data": {"name": _TEXT, "test_fingerprint": _TEXT},
}
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def problems(kind: str, record: Any) -> list[str]:
    """What is wrong with a record of this kind (a key of FIELDS), one line each; empty if it is whole."""
    if not isinstance(record, Mapping):
        return [f"{kind} is not an object"]
    found = []
    for key, types in FIELDS[kind].items():
        if key not in record:
            found.append(f"{key!r} is missing")
        elif not isinstance(record[key], types) or (isinstance(record[key], bool) and bool not in types):
            found.append(f"{key!r} is {record[key]!r}, not {' or '.join(t.__name__ for t in types)}")
    if found:
        return found
    if record.get("schema", SCHEMA) != SCHEMA:
        return [f"schema is {record['schema']}, this code reads {SCHEMA}"]
    inner: list[tuple[str, Any]] = []
    if kind == "train":
        inner = [("weights", value) for value in record["weights"].values()]
    elif kind == "run":
        inner = [("data", record["data"])]
    elif kind == "eval":
        inner = [("data", record["data"]), *(("result", value) for value in record["results"])]
    elif kind == "result":
        counts = [record["robust"], *record.get("survivors", {}).values()]
        if record["n"] < 1 or any(not 0 <= count <= record["n"] for count in counts):
            found.append(f"result {record['name']!r} counts {counts} robust images of {record['n']}")
        if not isinstance(record.get("values", {}), Mapping):
            found.append(f"'values' of result {record['name']!r} is {record['values']!r}, not dict")
    return found + [problem for name, value in inner for problem in problems(name, value)]


def folder_of(results: Path, paper: str, dataset: str, run: str) -> Path:
    """results/<paper>/<dataset>/<run>; names that are not plain file names are a ValueError."""
    for name in (paper, dataset, run):
        if not _SAFE_NAME.fullmatch(name):
            raise ValueError(f"{name!r} cannot name a folder of records: use letters, digits, '.', '_' and '-'")
    return Path(results) / paper / dataset / run


def config_sha256(config: Mapping[str, Any]) -> str:
    """Hex digest of a configuration, the same whatever machine its paths are on (see `portable`)."""
    return sha256_of_json(portable(dict(config)))


def write_run(folder: Path, record: Mapping[str, Any]) -> Path:
    """Write run.json (what is to be trained, known before the first step); ValueError if it is not whole."""
    return _write("run", folder, "run.json", record)


def write_train(folder: Path, record: Mapping[str, Any]) -> Path:
    """Write train.json (written last: its presence says that training ended); ValueError if it is not whole."""
    return _write("train", folder, "train.json", record)


def write_eval(folder: Path, record: Mapping[str, Any], flags: Mapping[str, np.ndarray], index: np.ndarray,
               arrays: Mapping[str, Mapping[str, np.ndarray]] | None = None) -> Path:
    """Write flags-PLAN.npz, then eval-PLAN.json, which names it and its hash.

    flags: one bool array (n,) per result, True = still classified correctly.
    index: int64 (N,) positions in the test set, strictly increasing.  A result of n < N images has flags for the
    first n of them.  Counts that disagree with the flags are a ValueError; `flags` and `flags_sha256` are filled in.
    arrays: result -> what -> (n,), further numbers per image, kept in the same file as RESULT/WHAT.
    """
    plan, index = record["plan"], np.asarray(index)
    if index.dtype != np.int64 or index.ndim != 1 or np.any(np.diff(index) <= 0):
        raise ValueError(f"plan {plan}: index must be int64, one-dimensional and strictly increasing")
    names = [result["name"] for result in record["results"]]
    if len(set(names)) != len(names) or set(names) != set(flags) or {"index", "file"} & set(names):
        raise ValueError(f"plan {plan}: results {names} and flags {sorted(flags)} do not name the same evaluators")
    for result in record["results"]:
        kept = flags[result["name"]]
        if kept.dtype != np.bool_ or kept.shape != (result["n"],) or result["n"] > len(index):
            raise ValueError(f"plan {plan}: flags of {result['name']} must be bool ({result['n']},)")
        if int(kept.sum()) != result["robust"]:
            raise ValueError(f"plan {plan}: {result['name']} counts {result['robust']}, its flags {int(kept.sum())}")
    further = {f"{name}/{what}": array for name, found in (arrays or {}).items() for what, array in found.items()}
    if unfit := [key for key, array in further.items() if array.shape != flags[key.rpartition("/")[0]].shape]:
        raise ValueError(f"plan {plan}: {unfit[0]} must have one number per image of its result")
    whole = {**record, "flags": f"flags-{plan}.npz", "flags_sha256": "0"}
    _check("eval", whole)
    target = Path(folder) / whole["flags"]
    with replacing(target) as temporary, open(temporary, "wb") as stream:
        np.savez_compressed(stream, index=index, **{name: flags[name] for name in names}, **further)
    whole["flags_sha256"] = sha256_of(target)
    return _write("eval", folder, f"eval-{plan}.json", whole)


def _write(kind: str, folder: Path, name: str, record: Mapping[str, Any]) -> Path:
    whole = portable({"schema": SCHEMA, **record})
    _check(kind, whole)
    write_json(Path(folder) / name, whole)
    return Path(folder) / name


def _check(kind: str, record: Mapping[str, Any]) -> None:
    found = problems(kind, {"schema": SCHEMA, **record})
    if found:
        raise ValueError(f"{kind} record of {record.get('run')}: " + "; ".join(found))


# -- metrics.jsonl ---------------------------------------------------------------------------------------------------

def append_metrics(path: Path, row: Mapping[str, Any]) -> None:
    """Add one epoch as one line, in one write that is on the disk on return; a torn line before it is cut off.

    A full disk is a UserError that names the file, which is then as it was.  NaN is a ValueError.
    """
    line = (json.dumps(dict(row), allow_nan=False) + "\n").encode()
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab+", buffering=0) as stream:
            size = _cut_torn_line(stream)
            try:
                if stream.write(line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(stream.fileno())
            except OSError:
                with suppress(OSError):
                    stream.truncate(size)
                raise
        if size == 0:
            sync_folder(path.parent)
    except OSError as error:
        raise write_failure(path, error) from error


def _cut_torn_line(stream: Any) -> int:
    """Truncate an open binary file behind its last newline; its size then."""
    there = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    size = stream.read(there).rfind(b"\n") + 1
    if size < there:
        stream.truncate(size)
    return size


def read_metrics(path: Path, epochs: int | None = None) -> list[dict[str, Any]]:
    """The epochs of metrics.jsonl in order, or its first so many, whatever follows them; none if there is no file.

    A last line without its newline was torn by a kill and is ignored; any other broken line is a UserError.
    """
    path = Path(path)
    if not path.exists():
        return []
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    rows = []
    for number, line in enumerate(lines[:epochs], start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path} line {number} is not JSON: restore the file or train the run again") from error
        if not isinstance(row, dict) or not isinstance(row.get("epoch"), int):
            raise UserError(f"{path} line {number} names no epoch: restore the file or train the run again")
        rows.append(row)
    return rows


def truncate_metrics(path: Path, epochs: int) -> list[dict[str, Any]]:
    """Keep the lines of so many epochs and return them; used on resume, where the others are made again."""
    rows = read_metrics(path, epochs)
    if Path(path).exists():
        write_text(path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))
    return rows


# -- reading ---------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class EvalRecord:
    """One eval-PLAN.json.  `path` names the file in messages."""

    path: Path
    record: dict[str, Any]

    @property
    def plan(self) -> str:
        return self.record["plan"]

    @property
    def results(self) -> dict[str, dict[str, Any]]:
        """Evaluator name -> {name, kind, norm, eps, settings, robust, n, survivors, seconds}; some have values."""
        return {result["name"]: result for result in self.record["results"]}

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """`index` int64 (N,) and per evaluator bool (n,), n <= N; a missing or other file is a UserError.

        Further numbers of an evaluator (see `numbers`) stand under EVALUATOR/WHAT.
        """
        path = self.path.with_name(self.record["flags"])
        if not path.exists():
            raise UserError(f"{path} is missing: restore it from git or evaluate the run again")
        if sha256_of(path) != self.record["flags_sha256"]:
            raise UserError(f"{path} is not the file that {self.path.name} names: evaluate the run again")
        with np.load(path) as stored:
            return {name: stored[name] for name in stored.files}


    def numbers(self, evaluator: str) -> dict[str, np.ndarray]:
        """What -> (n,): an evaluator's further numbers per image, such as the distances of a boundary attack."""
        return {key.removeprefix(f"{evaluator}/"): array for key, array in self.arrays.items()
                if key.startswith(f"{evaluator}/")}


@dataclass(frozen=True)
class RunRecord:
    """All that one run left: `run` and `train` as written (train is None while it is not done)."""

    folder: Path
    run: dict[str, Any]
    train: dict[str, Any] | None
    metrics: list[dict[str, Any]]
    evals: dict[str, EvalRecord]               # plan -> record

    @property
    def name(self) -> str:
        return self.run["run"]

    def curve(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """(epochs (E,) int64, values (E,) float64) of the epochs whose metrics have a number under `key`."""
        rows = [row for row in self.metrics if isinstance(row.get(key), (int, float))]
        return np.array([row["epoch"] for row in rows], np.int64), np.array([row[key] for row in rows], np.float64)


def read_record(path: Path, kind: str) -> dict[str, Any]:
    """Read and check one record; a broken one is a UserError that names the file and what is wrong in it."""
    record, path = read_json(path), Path(path)
    found = problems(kind, record)
    if not found and path.parent.name != record["run"]:
        found = [f"it is of run {record['run']!r}"]
    if found:
        raise UserError(f"{path} is not a whole {kind} record: " + "; ".join(found))
    return record


def read_run(folder: Path) -> RunRecord:
    """Everything in one run's folder, checked; see `read_record`."""
    folder = Path(folder)
    train = folder / "train.json"
    evals = (EvalRecord(path, read_record(path, "eval")) for path in sorted(folder.glob("eval-*.json")))
    return RunRecord(folder=folder, run=read_record(folder / "run.json", "run"),
                     train=read_record(train, "train") if train.exists() else None,
                     metrics=read_metrics(folder / "metrics.jsonl"), evals={record.plan: record for record in evals})


def read_runs(results: Path, paper: str | None = None, dataset: str | None = None) -> list[RunRecord]:
    """Every run under `results`, of one paper and data set if named, in the order of their folders."""
    return list(_runs(Path(results), paper or "*", dataset or "*"))


def _runs(results: Path, paper: str, dataset: str) -> Iterator[RunRecord]:
    for path in sorted(results.glob(f"{paper}/{dataset}/*/run.json")):
        record = read_run(path.parent)
        if (record.run["paper"], record.run["dataset"]) != path.parts[-4:-2]:
            raise UserError(f"{path} is of {record.run['paper']}/{record.run['dataset']}: it stands in another folder")
        yield record
