"""The run whose weights have a certain hash: of networks that an evaluation takes gradients of.  No torch here."""

from pathlib import Path
from typing import Any, NamedTuple

from common import records
from common.environment import portable
from common.errors import UserError
from common.files import sha256_of

KINDS = ("best", "last")                     # of weights, the better known first


class SourceRun(NamedTuple):
    """folder: its records; run: its run.json; file: its weights, which are those that are meant; sha256: their hash."""

    folder: Path
    run: dict[str, Any]
    file: Path
    sha256: str


def with_weights(digest: str, folder: Path, weights: Path) -> SourceRun:
    """The run of the same paper as the run in `folder`, of any data set, whose train.json names weights of this hash.

    weights: the folder of the weights of the run in `folder`.  UserError where there is no such run or its file is not
    here.
    """
    paper, kept = folder.resolve().parents[1], weights.resolve().parents[1]
    # What stands beside the run is looked at first.
    beside = folder.resolve().parent.name
    for path in sorted(paper.glob("*/*/train.json"), key=lambda one: one.parents[1].name != beside):
        named = records.read_record(path, "train")["weights"]
        for kind, entry in named.items():
            if entry["sha256"] == digest:
                return of_run(path.parent, kept / path.parents[1].name / path.parent.name, kind)
    raise UserError(f"the gradients of a network are needed whose weights have the sha256 {digest[:12]}..., and no run "
                    f"in {portable(str(paper))} has them: it was trained again or moved away; take up another source",
                    code="E-SOURCE")


def of_run(folder: Path, weights: Path, kind: str | None = None) -> SourceRun:
    """The weights `kind` of a run (None: best if there are, else last); UserErrors: not trained to its end, no such
    weights, their file not here or another one."""
    run, shown = records.read_record(folder / "run.json", "run"), portable(str(folder))
    if not (folder / "train.json").exists():
        raise UserError(f"{shown} is not trained to its end, so that its gradients cannot be taken: type its command "
                        f"again: {run['command']}", code="E-NOT-TRAINED")
    named = records.read_record(folder / "train.json", "train")["weights"]
    chosen = kind or next((one for one in KINDS if one in named), "")
    if chosen not in named:
        raise UserError(f"{shown} has no weights {chosen or ' or '.join(KINDS)!r}: there are {', '.join(named)}",
                        code="E-RUN-CHECKPOINT")
    file, digest = weights / named[chosen]["file"], named[chosen]["sha256"]
    if not file.exists():
        raise UserError(f"the weights {portable(str(file))}, whose gradients are needed, are not here (weights are not "
                        f"kept in git): train that run again: {run['command']}", code="E-WEIGHTS-MISSING")
    if sha256_of(file) != digest:
        raise UserError(f"{portable(str(file))}, whose gradients are needed, is not the file that train.json names: "
                        "train that run again", code="E-WEIGHTS-CHANGED")
    return SourceRun(folder, run, file, digest)
