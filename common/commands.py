"""What the papers' commands share that take up a run, or evaluate a checkpoint.  torch is imported where it is used."""

import argparse
import importlib
import shlex
import sys
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.environment import ROOT, begin, environment, portable, relative_command
from common.errors import UserError, exit_cleanly
from common.evaluation.plans import Plan, plan_sha256
from common.files import sha256_of, write_json
from common.flags import Parser
from common.inputs import check_is_file
from common.records import read_record

if TYPE_CHECKING:
    from common.data import Split
    from common.data.corruption_files import CorruptionFiles
    from common.engine import Engine
    from common.evaluation import Result
    from common.evaluation.preflight import Stored


def parse_typed(make: Callable[[], Parser], argv: Sequence[str] | None = None
                ) -> tuple[argparse.Namespace, dict[str, Any]]:
    """All flags, and those among them that were typed.  make: gives the parser, anew at each call."""
    words = sys.argv[1:] if argv is None else list(argv)
    unset = object()
    given = make().parse_args(words, argparse.Namespace(**dict.fromkeys(vars(make().parse_args([])), unset)))
    return make().parse_args(words), {flag: value for flag, value in vars(given).items() if value is not unset}


def train_command(parse: Callable[[Sequence[str] | None], argparse.Namespace],
                  settings_of: Callable[[argparse.Namespace], Any], module: str,
                  argv: Sequence[str] | None = None) -> None:
    """What a train script does: flags -> settings -> `train(settings, args)` of the module of that name."""
    def run() -> None:
        args = parse(argv)
        settings = settings_of(args)
        # It imports torch, which is worth the seconds only once the flags are known to be right.
        importlib.import_module(module).train(settings, args)

    exit_cleanly(run)


def note_unused(typed: Collection[str], used: Collection[str]) -> None:
    """Say which of the flags given have no effect on what a run is, which knows its own training."""
    if idle := sorted(set(typed) - set(used)):
        print(f"note: the run knows its own training; no effect: --{', --'.join(idle)}", file=sys.stderr)


# -- a run that is there ---------------------------------------------------------------------------------------------

def run_folder(text: str, why: str = "no run.json") -> Path:
    """The results folder of a run, named by it or by its twin under weights/, from here or from the repository root.

    why: what a UserError says, where there is none.
    """
    check_is_file(text)
    for base in (Path(text), ROOT / text):
        if (base / "run.json").is_file():
            return base
        parts = base.resolve().parts
        roots = [ROOT, *([Path(*parts[:-4])] if parts[-4:-3] == ("weights",) else [])]
        twins = [root / "results" / Path(*parts[-3:]) for root in roots] if base.is_dir() else []
        if found := [twin for twin in twins if (twin / "run.json").is_file()]:
            return found[0]
    raise UserError(f"{text} is no run of this repository ({why}): give results/<paper>/<data set>/<run>",
                    code="E-NO-RUN")


def why_none(text: str, theirs: str) -> str:
    """Why a folder is no run of ours; theirs: a file by which one of the original repository is known, or nothing."""
    check_is_file(text)
    original = theirs and any((base / theirs).exists() for base in (Path(text), ROOT / text))
    return "it is a folder of the original repository, whose optimiser state is not read" if original else "no run.json"


def recorded_flags(run: Mapping[str, Any], script: str) -> list[str] | None:
    """The flags that a run was started with; None if it was not started by `script`, relative to the root."""
    words = shlex.split(run["command"])
    return words[words.index(script) + 1:] if script in words else None


def unfinished(text: str, paper: str, script: str, evaluation: str, theirs: str = "") -> list[str]:
    """The flags that go on with the run in folder `text`: those that it was started with, and its name.

    UserError for a run of another script and for a finished one; evaluation: the command that evaluates that.
    theirs: a file by which a folder of the original repository is known.
    """
    folder = run_folder(text, why_none(text, theirs))
    run = read_record(folder / "run.json", "run")
    words = recorded_flags(run, script)
    if run["paper"] != paper or words is None:
        raise UserError(f"{text} is no run of {script}: it was made with {run['command']}", code="E-RUN-OTHER-SCRIPT")
    if (folder / "train.json").exists():
        raise UserError(f"{run['run']} is trained to its end, there is nothing to resume; evaluate it: "
                        f"{evaluation} {portable(str(folder))}", code="E-RUN-FINISHED")
    root = folder.resolve().parents[2]
    place = [] if root == ROOT / "results" else ["--results", str(root), "--weights", str(root.parent / "weights")]
    return [*words, *place, "--run", run["run"], "--dataset_name", run["dataset"]]


def found_at(path: str) -> Path | None:
    """Where a path of a record is: it is written as seen from the repository root, or with its last part only."""
    return next((base for base in (Path(path), ROOT / path) if base.exists()), None)


def found_data(spec: str, source: str) -> str:
    """The data set `spec` of a recorded command, its path as it is here; source: its name in words."""
    kind, colon, path = spec.partition(":")
    if not colon:
        return spec
    file, question, query = path.partition("?")
    here = found_at(file)
    if here is None:
        raise UserError(f"the run was trained on {source}, given as --data {spec}, which is not here: say with --data "
                        "where it lies", code="E-DATA-MISSING")
    return f"{kind}:{here}{question}{query}"


def chosen_checkpoint(run: Mapping[str, Any], kept: Collection[str], asked: str | None, usual: str) -> str:
    """The checkpoint asked for, or the usual one; UserError where the run has none of that name."""
    if (asked or usual) not in kept:
        raise UserError(f"{run['run']} has no checkpoint {asked or usual!r}: there are {', '.join(kept)}",
                        code="E-RUN-CHECKPOINT")
    return asked or usual


# -- a file of weights that is no run's -------------------------------------------------------------------------------

def judge_file(file: Path | None, *, model: Mapping[str, Any], told: str, plan: Plan, test: "Split",
               data: Mapping[str, Any], engine: "Engine", seed: int, out: Path | None = None,
               corrupted: "CorruptionFiles | None" = None, part: str | None = None, allow: Collection[str] = (),
               stored: "Stored | None" = None, batch_size: int | None = None, receipt: Path | None = None
               ) -> "list[Result]":
    """Evaluate a checkpoint file on `test`; print what it is, and write a record to `out` if that is given.

    file: None where the network comes with its weights.  model: as `common.experiment.build_network` takes it; told:
    what said which network it is.  data: the record's.  corrupted: the files of a plan of kind corruption-file.  part:
    of a file that holds several networks.  receipt: see `common.verdicts.judge`.  allow, stored, batch_size: see
    `common.evaluation.evaluate`.
    """
    from common import group, locks
    from common.checkpoint import load_weights
    from common.evaluation import evaluate, forget, result_json, weights_sha256
    from common.evaluation.receipts import Keeper, key_of, write_receipt
    from common.evaluation.subject import built

    if out is not None and out.is_dir():
        raise UserError(f"--out {out} is a folder: name a file", code="E-OUT")
    begin()
    network = built(model, trusted=True)
    loaded = portable(str(load_weights(network, file, part=part))) if file else "weights of its own"
    shown = model.get("builder") or f"{model['name']}, {model['classes']} classes"
    print(f"{loaded}\n{shown}, as said by {told}")
    with ExitStack() as stack:
        passing = stack.enter_context(tempfile.TemporaryDirectory())
        # Beside `out` an interrupted evaluation leaves what it has done, and goes on from there.
        work = Path(passing) if out is None else out.parent
        if group.current().leads:
            stack.enter_context(locks.locked(work / f".{plan.name}.lock", f"the evaluation by {plan.name} in {work}"))
        state = weights_sha256(network)
        keeper = Keeper(work, key_of(plan, state, test.fingerprint, seed)) if receipt else None
        results = evaluate(engine.place(network), test, plan, seed=seed, device=engine.device, work=work,
                           corrupted=corrupted, allow=allow, stored=stored, batch_size=batch_size,
                           keeper=keeper)
        if receipt is not None and group.current().leads:
            said = engine.describe()
            write_receipt(receipt, keeper=keeper, results=results, plan=plan, split=test, network=network, said={
                "model": dict(model), "weights": {"file": str(file) if file else None, "part": part,
                                                  "sha256": sha256_of(file) if file else None},
                "data": dict(data), "seed": seed}, device=said["device_name"], threads=said["torch_threads"])
        if out is not None and group.current().leads:
            engine_said = engine.describe()
            write_json(out, portable({
                "checkpoint": {"file": str(file) if file else None, "sha256": sha256_of(file) if file else None,
                               "state_sha256": state, "loaded": loaded},
                "model": dict(model), "settings_from": told, "plan": plan.to_json(), "plan_sha256": plan_sha256(plan),
                "seed": seed, "data": dict(data), "allowed": sorted(allow),
                "results": [result_json(result) for result in results],
                "environment": {**environment(engine_said["device_name"], "fp32", engine_said["torch_threads"]),
                                "deterministic": engine_said["deterministic"]},
                "command": relative_command()}))
        group.current().barrier()
        forget(work, plan)
    return results


def print_counts(results: "Sequence[Result]", out: Path | None) -> None:
    """A line per result, and where the record is."""
    for result in results:
        print(f"  {result.name:<14} {100 * result.robust / result.n:6.2f} %  ({result.robust} of {result.n} images)")
    if out is not None:
        print(f"record: {portable(str(out))}")
