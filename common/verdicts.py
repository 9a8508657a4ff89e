"""The evaluation of a trained run: by a plan, once, with its record and one flag per image.  Knows no paper.

Of several processes (common.group) all share out the images, and rank 0 writes.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from common import group, locks, records
from common.changed import check_corruptions
from common.checkpoint import load_weights
from common.data import Split
from common.data.corruption_files import CorruptionFiles
from common.engine import Engine
from common.environment import begin, environment, portable, relative_command
from common.errors import UserError
from common.evaluation import Plan, evaluate, forget, plan_sha256, result_json, stored, summaries
from common.evaluation.kinds import TRANSFERRED
from common.evaluation.receipts import Keeper, key_of, write_receipt
from common.experiment import build_network, lock_of
from common.files import sha256_of
from common.source_runs import with_weights


def judge(*, folder: Path, weights: Path, plan: Plan, test: Split, data: Mapping[str, Any], engine: Engine,
          checkpoint: str = "last", seed: int = 1, spec: str | None = None, batch_size: int | None = None,
          corrupted: CorruptionFiles | None = None, sources: Mapping[str, nn.Module] | None = None,
          allow: Collection[str] = (), receipt: Path | None = None) -> Path:
    """Evaluate a finished run by `plan` and write eval-PLAN.json and flags-PLAN.npz; the path of the former.

    An interrupted evaluation goes on where it was.  Several processes share out the chunks of images.
    corrupted: the files of a plan of kind corruption-file.
    sources: networks of the plan's evaluators of kind transferred-fgsm; None: those of the runs that have the weights.
    One plan of a run is evaluated by one job at a time; other plans may be by others.
    allow: codes of the preflight that do not refuse here; the record names them.  receipt: write the adversarial images
    there (common.evaluation.receipts).
    UserErrors: no such run or checkpoint, weights that are not the recorded ones, a class count that does not fit, a
    run that another job trains or evaluates by this plan (E-BUSY).
    """
    begin()
    crew = group.current()
    run = records.read_record(folder / "run.json", "run")
    if not (folder / "train.json").exists():
        raise UserError(f"{portable(str(folder))} is not trained to its end: type its command again: {run['command']}",
                        code="E-NOT-TRAINED")
    train = records.read_record(folder / "train.json", "train")
    entry = train["weights"].get(checkpoint)
    if entry is None:
        raise UserError(f"{run['run']} has no checkpoint {checkpoint!r}: there are {', '.join(train['weights'])}",
                        code="E-RUN-CHECKPOINT")
    path = weights / entry["file"]
    if not path.exists():
        raise UserError(f"the weights {portable(str(path))} are not here (weights are not kept in git): train the run "
                        f"again: {run['command']}", code="E-WEIGHTS-MISSING")
    digest = sha256_of(path)
    if digest != entry["sha256"]:
        raise UserError(f"{portable(str(path))} is not the file that train.json names: train the run again",
                        code="E-WEIGHTS-CHANGED")
    measured = {"plan_sha256": plan_sha256(plan), "weights_sha256": digest, "seed": seed, "checkpoint": checkpoint}

    def known() -> Path | None:
        """The record that is there already, and no receipt is missing."""
        there = crew.from_first(already_judged(folder, plan, measured, data))
        return there if receipt is None or crew.from_first(receipt.exists()) else None

    with ExitStack() as stack:
        if (there := known()) is None:
            stack.enter_context(evaluating(weights, plan))
            there = known()                                    # another process may just have ended with it
        if there is not None:
            return with_spec(there, spec if crew.leads else None)
        check_corruptions(eval_path(folder, plan), plan, digest)
        network = build_network(run["config"]["model"])
        load_weights(network, path)
        keeper = Keeper(weights / "evaluations", key_of(plan, digest, test.fingerprint, seed)) if receipt else None
        results = evaluate(engine.place(network), test, plan, seed=seed, device=engine.device,
                           work=weights / "evaluations", batch_size=batch_size, corrupted=corrupted,
                           sources=source_networks(plan, folder, weights) if sources is None else sources, allow=allow,
                           stored=stored.of_run(folder, run, digest, data), keeper=keeper)
        described = engine.describe()
        if crew.leads:
            longest = max(len(result.flags) for result in results)
            records.write_eval(folder, {
                "paper": run["paper"], "dataset": run["dataset"], "run": run["run"], "plan": plan.name,
                "spec_sha256": spec, **measured, "data": dict(data), "chunk": plan.chunk,
                "changed_images": plan.test_crop or plan.half_inputs,
                **({"allowed": sorted(allow)} if allow else {}), "results": [result_json(result) for result in results],
                "environment": {**environment(described["device_name"], "fp32", described["torch_threads"]),
                                "deterministic": described["deterministic"]},
                "command": relative_command()},
                flags={result.name: result.flags for result in results}, index=np.arange(longest, dtype=np.int64),
                arrays={result.name: result.arrays for result in results})
            if receipt is not None:
                write_receipt(receipt, keeper=keeper, results=results, plan=plan, split=test, network=network, said={
                    "model": run["config"]["model"], "weights": {"file": str(path), "sha256": digest, "part": None},
                    "data": dict(data), "seed": seed},
                    device=described["device_name"], threads=described["torch_threads"])
        crew.barrier()
        forget(weights / "evaluations", plan)
    return eval_path(folder, plan)


def eval_path(folder: Path, plan: Plan) -> Path:
    """The eval record of a plan in a run's folder."""
    return folder / f"eval-{plan.name}.json"


def source_networks(plan: Plan, folder: Path, weights: Path) -> dict[str, nn.Module]:
    """sha256 -> network, of every source that a plan names, from the runs of the same paper as the run in `folder`."""
    digests = {one.setting("source") for one in plan.evaluators if one.kind == TRANSFERRED}
    found = {}
    for digest in sorted(digests):
        source = with_weights(digest, folder, weights)
        found[digest] = build_network(source.run["config"]["model"])
        load_weights(found[digest], source.file)
    return found


def already_judged(folder: Path, plan: Plan, measured: Mapping[str, Any], data: Mapping[str, Any]) -> Path | None:
    """The eval record of this folder that measured the same on the same images, so that nothing is measured twice."""
    path = eval_path(folder, plan)
    if not path.exists():
        return None
    record = records.read_record(path, "eval")
    same = record["data"]["test_fingerprint"] == data["test_fingerprint"]
    return path if same and all(record[key] == value for key, value in measured.items()) else None


def with_spec(path: Path, spec: str | None) -> Path:
    """Let an eval record name the hash that make asks for (None: nobody asks)."""
    record = records.EvalRecord(path, records.read_record(path, "eval"))
    if spec in (None, record.record["spec_sha256"]):
        return path
    flags = {name: record.arrays[name] for name in record.results}
    return records.write_eval(path.parent, {**record.record, "spec_sha256": spec}, flags, record.arrays["index"],
                              {name: record.numbers(name) for name in record.results})


def print_results(path: Path) -> None:
    """What an eval record says of each evaluator and of its corruptions, and where the records are."""
    record = records.read_record(path, "eval")
    print(f"{record['run']}, {record['plan']}, {record['checkpoint']} weights:")
    for result in record["results"]:
        for line in summaries.said(result):
            print(f"  {line}")
    for line in summaries.over_corruptions(record["results"]):
        print(f"  {line}")
    print(f"records: {portable(str(path.parent))}")


@contextmanager
def evaluating(weights: Path, plan: Plan) -> Iterator[None]:
    """Within the block nobody trains the run with these weights or evaluates it by the plan; UserError (E-BUSY) where
    another process does.  Evaluations by other plans go on side by side."""
    shown = portable(str(weights))
    with ExitStack() as stack:
        if group.current().leads:
            stack.enter_context(locks.locked(lock_of(weights), shown, shared=True))
            stack.enter_context(locks.locked(lock_of(weights, plan), f"the evaluation of {shown} by {plan.name}"))
        yield
