"""One evaluation of a run: its record, and its flags, which must count what the record says."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from common import records
from common.doctor.findings import PROBLEM, Finding, shown, typed
from common.doctor.npz_heads import BROKEN, heads_of_npz
from common.doctor.repairs import AREA, Tally, again, broken, cut
from common.errors import UserError
from common.files import sha256_of
from common.npz_files import read_arrays

MOST = 10**9                   # bytes of an evaluation's arrays


def check_evaluation(path: Path, train: Mapping[str, Any] | None, tally: Tally, tracked: set[Path],
                     made: list[Mapping[str, Any]]) -> Iterator[Finding]:
    """One eval record and its flags, which must count what it says."""
    try:
        record = records.EvalRecord(path, records.read_record(path, "eval"))
    except UserError as error:
        yield broken(path.parent, path, str(error), tracked)
        return
    if record.record["flags"] != f"flags-{record.plan}.npz" or path.stem != f"eval-{record.plan}":
        yield broken(path.parent, path, f"{shown(path)} is of the plan {record.plan} and names "
                     f"{record.record['flags']}", tracked)
        return
    made.append(record.record["environment"])
    known = [one["sha256"] for one in train["weights"].values()] if train else None
    if known is not None and record.record["weights_sha256"] not in known:
        yield Finding(PROBLEM, AREA, "judged", f"{shown(path)} judged weights that train.json does not name: evaluate "
                      f"again{cut(record.record['command'])}", again(record.record["command"]))
    if why := _wrong_flags(record):
        flags = path.with_name(record.record["flags"])
        restore = flags.absolute() in tracked and not why.startswith("the record")
        yield Finding(PROBLEM, AREA, "flags", f"{shown(flags)}: {why}", typed("git", "restore", "--", flags) if restore
                      else again(record.record["command"]))
    else:
        tally.flags += sum(result["n"] for result in record.results.values())


def _wrong_flags(record: records.EvalRecord) -> str:
    """What is wrong with the flags of a record; empty if they count what it says."""
    path = record.path.with_name(record.record["flags"])
    if not path.is_file():
        return "it is missing"
    if sha256_of(path) != record.record["flags_sha256"]:
        return f"it is not the file that {record.path.name} names (its sha256 differs)"
    try:
        if sum(head.bytes for head in heads_of_npz(path).values()) > MOST:
            return "it claims more numbers than any evaluation has"
        arrays = read_arrays(path)
    except (UserError, *BROKEN):
        return "it cannot be read as an npz file of numbers"
    if "index" not in arrays or len({*record.results}) != len(record.record["results"]):
        return "it has no index, or the record names one evaluator twice"
    for name, result in record.results.items():
        flags = arrays.get(name)
        if flags is None or flags.dtype != np.bool_ or flags.shape != (result["n"],):
            return f"it has no {result['n']} flags of {name}"
        if int(flags.sum()) != result["robust"]:
            return f"the record counts {result['robust']} robust images of {name}, its flags {int(flags.sum())}"
    return ""
