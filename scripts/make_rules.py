"""Print the plan of a reproduction and write its rules for make: python -m scripts.make_rules PAPER DATASET [...]

Make compares times, and a clone or a checkout scrambles times, while a network trained again costs GPU-days.  So a step
is up to date when the record that it left names the hash of its spec (common/runs.py).  Make is told the answer by the
date of the spec's file: 1970 for done, later than the record for to do; what a step needs is order-only, so that no
other time counts.

Weights are not kept in git.  Where a record is there, its weights are not, and a step that is to do reads them, the
training is to do again, and so are its evaluations; a run that is done is never done again for its teacher's sake.
"""

import argparse
import contextlib
import importlib
import inspect
import os
import shlex
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from common.environment import processor, processors
from common.errors import UserError, exit_cleanly
from common.files import read_json, sha256_of, write_json, write_text
from common.flags import Parser
from common.record_fields import SAFE_NAME
from common.runs import BUDGETS, Cost, Judgement, Run, check, eval_spec, numbers, spec_hashes, split, train_spec

# Effective rates for float32 or bf16 training of the field's networks, where no record of this machine says better.
GFLOPS_PER_CORE, GFLOPS_CUDA = 35.0, 40_000.0


@dataclass(frozen=True)
class Step:
    """One record to be: a training (plan None) or an evaluation.  why: empty if it is done."""

    run: Run
    plan: Judgement | None
    sha: str
    why: str

    @property
    def cost(self) -> Cost:
        return self.plan.cost if self.plan else self.run.cost


@dataclass(frozen=True)
class Folders:
    """Where one paper and data set keep things, relative to the repository root."""

    paper: str
    dataset: str

    def record(self, run: str, plan: str | None = None) -> Path:
        name = "train.json" if plan is None else f"eval-{plan}.json"
        return Path("results", self.paper, self.dataset, run, name)

    def weights(self, run: str) -> Path:
        return Path("weights", self.paper, self.dataset, run)

    def spec(self, run: str, plan: str | None = None) -> Path:
        name = run if plan is None else f"{run}.{plan}"
        return Path("build", "spec", self.paper, self.dataset, f"{name}.json")

    @property
    def rules(self) -> Path:
        return Path("build", f"rules-{self.paper}-{self.dataset}.mk")


def read_or_none(path: Path) -> dict[str, Any] | None:
    """A record, or None if there is none or it is broken: then the step is to do again."""
    with contextlib.suppress(UserError):
        record = read_json(path)
        weights = record.get("weights", {}) if isinstance(record, dict) else None
        if isinstance(weights, dict) and all(isinstance(one, dict) for one in weights.values()):
            return record
    return None


def plan_steps(runs: list[Run], folders: Folders, root: Path = Path(".")) -> list[Step]:
    """Every step in order, each with the reason why it is to do."""
    trains, evals = spec_hashes(runs)
    records = {run.name: read_or_none(root / folders.record(run.name)) for run in runs}
    why_train = {run.name: _why_train(records[run.name], trains[run.name]) for run in runs}
    why_eval = {(run.name, plan.plan): _why_eval(root / folders.record(run.name, plan.plan), plan,
                                                 evals[run.name, plan.plan], records[run.name])
                for run in runs for plan in run.plans}
    for run in reversed(runs):                                # from the last to the first: needs stand above
        waiting = [(plan.plan, plan.checkpoint) for plan in run.plans if why_eval[run.name, plan.plan]]
        waiting += [(other.name, "last") for other in runs if run.name in other.needs and why_train[other.name]]
        waiting += [(f"{other.name}, {plan.plan}", checkpoint) for other in runs for plan in other.plans
                    for name, checkpoint in plan.reads if name == run.name and why_eval[other.name, plan.plan]]
        here = root / folders.weights(run.name)
        for waits, checkpoint in waiting:
            if not why_train[run.name] and not _has_weights(records[run.name], checkpoint, here):
                why_train[run.name] = f"its weights are not on this machine, and {waits} needs them: trains again"
        if why_train[run.name]:
            for plan in run.plans:
                why_eval[run.name, plan.plan] = why_eval[run.name, plan.plan] or "its network is trained again"
    steps = []
    for run in runs:
        steps.append(Step(run, None, trains[run.name], why_train[run.name]))
        steps += [Step(run, plan, evals[run.name, plan.plan], why_eval[run.name, plan.plan]) for plan in run.plans]
    return steps


def _why_train(record: dict[str, Any] | None, sha: str) -> str:
    if record is None:
        return "no record"
    return "" if record.get("spec_sha256") == sha else "its flags, or those of what it needs, changed"


def _why_eval(path: Path, plan: Judgement, sha: str, train: dict[str, Any] | None) -> str:
    record = read_or_none(path)
    if record is None:
        return "no record"
    if record.get("spec_sha256") != sha:
        return "its plan or the training changed"
    trained = ((train or {}).get("weights") or {}).get(plan.checkpoint) or {}
    if record.get("weights_sha256") != trained.get("sha256"):
        return "it judged other weights"
    name = str(record.get("flags"))
    flags = path.with_name(name if SAFE_NAME.fullmatch(name) else "none")
    if not flags.is_file() or sha256_of(flags) != record.get("flags_sha256"):
        return "its flags are missing or of another evaluation"
    return ""


def _has_weights(record: dict[str, Any] | None, checkpoint: str, folder: Path) -> bool:
    """Whether the very weights that the record names are in `folder`."""
    named = ((record or {}).get("weights") or {}).get(checkpoint) or {}
    path = folder / Path(str(named.get("file"))).name
    return path.is_file() and sha256_of(path) == named.get("sha256")


# -- rules -----------------------------------------------------------------------------------------------------------

def for_make(words: list[str]) -> str:
    """Words quoted for the shell, then for make."""
    if any("\n" in word for word in words):
        raise UserError(f"{words!r}: a path with a line break cannot be written into rules for make: rename it",
                        code="E-FLAG-VALUE")
    return shlex.join(words).replace("$", "$$")


# What stands before a script.  torchrun, also behind other words such as srun's, starts Python itself, and is the one
# of the Python that is used; -- keeps it from taking our --run for its own --run-path.  Any other LAUNCH starts Python.
STARTER = (
    "TORCHRUN := $(filter torchrun %/torchrun torch.distributed.run,$(LAUNCH))",
    "START = $(if $(TORCHRUN),$(patsubst torchrun,$(PYTHON) -m torch.distributed.run,$(LAUNCH)) --,"
    "$(LAUNCH) $(PYTHON))")


def rules(steps: list[Step], folders: Folders, budget: str) -> str:
    """The text of the rules: target `all`."""
    lines = [f"# Written by scripts/make_rules.py for {folders.paper} on {folders.dataset}: do not edit.",
             "PYTHON ?= .venv/bin/python", "LAUNCH ?=", *STARTER, ".SUFFIXES:", ".PHONY: all", ""]
    targets = [str(folders.record(step.run.name, step.plan and step.plan.plan)) for step in steps]
    for step, target in zip(steps, targets, strict=True):
        run, plan = step.run, step.plan
        if plan is None:
            after = [str(folders.record(need)) for need in run.needs]
            command = "$(START) " + for_make(
                [run.script, *run.argv, *run.place, "--run", run.name, "--spec", step.sha])
        else:
            after = [str(folders.record(run.name))]
            chosen = ["--checkpoint", plan.checkpoint] if plan.checkpoint != "last" else []
            command = "$(START) " + for_make(
                ["-m", "scripts.evaluate", str(folders.record(run.name).parent), "--plan", plan.plan,
                 *chosen, *plan.argv, *plan.place, "--spec", step.sha])
        spec = folders.spec(run.name, plan and plan.plan)
        lines += [f"{target}: {spec} | {' '.join(after)}".rstrip(" |"), f"\t{command}", ""]
    report = ["-m", "scripts.report", "--paper", folders.paper, "--dataset", folders.dataset, "--budget", budget,
              "--show"]
    # Make would remove a target that it was interrupted on; but records are whole or not there.
    return "\n".join([*lines, f".PRECIOUS: {' '.join(targets)}", "", f"all: {' '.join(targets)}",
                      f"\t$(PYTHON) {for_make(report)}", ""])


def write_specs(steps: list[Step], folders: Folders, root: Path = Path(".")) -> None:
    """Write every spec; date it 1970 where the step is done, later than the record where it is not."""
    trains = {step.run.name: step.sha for step in steps if step.plan is None}
    for step in steps:
        plan = step.plan and step.plan.plan
        path, record = root / folders.spec(step.run.name, plan), root / folders.record(step.run.name, plan)
        write_json(path, eval_spec(step.plan, trains[step.run.name]) if step.plan else train_spec(step.run, trains))
        date = time.time() if step.why else 0.0
        if step.why and record.exists() and record.stat().st_mtime >= date:      # a clock that was wrong once
            date = record.stat().st_mtime + 1
        os.utime(path, (date, date))


# -- the plan --------------------------------------------------------------------------------------------------------

def has_cuda() -> bool:
    """Whether a CUDA device is at hand, asked without torch."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1") or not shutil.which("nvidia-smi"):
        return False
    try:
        listed = subprocess.run(("nvidia-smi", "-L"), capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return False
    return listed.returncode == 0 and "GPU" in listed.stdout


def choose_budget(asked: str | None, cuda: bool) -> tuple[str, str]:
    """(budget, why).  `full` is never chosen unasked."""
    if asked and asked not in BUDGETS:
        raise UserError(f"BUDGET={asked} is none of {', '.join(BUDGETS)}", code="E-TARGET")
    if asked:
        return asked, "as asked"
    return ("gpu", "a CUDA device is here") if cuda else ("short", "no CUDA device here")


def measured_rate(steps: list[Step], folders: Folders, root: Path, cuda: bool) -> tuple[float, str]:
    """(10^9 operations per second, where that comes from): from trainings that this machine did, else assumed."""
    rates = []
    for step in steps:
        record = read_or_none(root / folders.record(step.run.name)) if step.plan is None else None
        made = (record or {}).get("environment") or {}
        on_cuda = not str(made.get("device", "cpu")).lower().startswith("cpu")
        if record and made.get("processor") == processor() and on_cuda == cuda and record.get("seconds", 0) > 0:
            rates.append(step.cost.total_gflop / record["seconds"])
    if rates:
        return median(rates), f"measured on {len(rates)} earlier run{'s' * (len(rates) > 1)} here"
    return (GFLOPS_CUDA if cuda else GFLOPS_PER_CORE * processors()), "assumed; measured once a run is done here"


def duration(seconds: float) -> str:
    """In words, to two figures or so."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{max(1, round(seconds))} s"


def data_of_done(steps: list[Step], folders: Folders, root: Path) -> list[str]:
    """Where the data of the runs that are done came from: that is no part of their specs, so it is said."""
    runs = (read_or_none(root / folders.record(step.run.name).with_name("run.json"))
            for step in steps if step.plan is None and not step.why)
    data = [(run or {}).get("data") or {} for run in runs]
    return [f"Runs that are done were trained on {source} (sha256 {str(digest)[:12]})." for source, digest in
            dict.fromkeys((one.get("source", one.get("name", "?")), one.get("train_fingerprint")) for one in data)]


def describe(steps: list[Step], folders: Folders, heading: str, rate: float, basis: str) -> str:
    """The plan as text: one line per step, and the total."""
    rows = []
    for step in steps:
        what = f"evaluate {step.run.name} ({step.plan.plan})" if step.plan else f"train {step.run.name}"
        state = f"to do   {duration(step.cost.total_gflop / rate):>8}   {step.why}" if step.why else "done"
        rows.append((what, state))
    width = max((len(what) for what, _ in rows), default=0)
    left = [step for step in steps if step.why]
    total = f"; about {duration(sum(step.cost.total_gflop for step in left) / rate)} one after another " \
            f"({rate:,.0f} GFLOP/s, {basis})" if left else ""
    count = f"{len(steps)} step{'s' * (len(steps) != 1)}"
    return "\n".join([heading, "", *(f"  {what:<{width}}   {state}" for what, state in rows), "",
                      f"{count}: {len(steps) - len(left)} done, {len(left)} to do{total}.",
                      f"Records: results/{folders.paper}/{folders.dataset}/   rules: {folders.rules}"])


def arguments() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m scripts.make_rules", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("paper")
    parser.add_argument("dataset")
    parser.add_argument("--budget", default="", help=f"{' | '.join(BUDGETS)}; else gpu with CUDA, short without")
    parser.add_argument("--seeds", default="", help="such as 1,2,3; by default the budget's own")
    parser.add_argument("--methods", default="", help='such as "PGD-AT TRADES"; by default all')
    parser.add_argument("--data", default="", help="such as npz:PATH, in the place of the data set that is downloaded")
    parser.add_argument("--data-dir", default="", help="folder of downloaded data sets")
    parser.add_argument("--device", default="", help="such as cpu or cuda:1")
    parser.add_argument("--extra", default="", help="file of additional training images, for papers that use them")
    parser.add_argument("--plan-only", action="store_true", help="print the plan, write nothing")
    parser.add_argument("--quiet", action="store_true", help="write the rules, print nothing")
    return parser


def runs_of(args: argparse.Namespace, budget: str) -> list[Run]:
    """The runs that the paper's package plans."""
    planned, extra = importlib.import_module(f"{args.paper}.runs").runs, {}
    if args.extra:
        if "extra" not in inspect.signature(planned).parameters:
            raise UserError(f"EXTRA={args.extra}: {args.paper} trains on no additional data; leave EXTRA out",
                            code="E-EXTRA")
        # Said now, not after the hours that the runs before it take.
        if missing := [word for word in args.extra.split(",") if word != "rest" and not Path(word).is_file()]:
            raise UserError(f"EXTRA={args.extra}: there is no file {missing[0]!r}; see data/README.md", code="E-EXTRA")
        extra = {"extra": args.extra}
    return planned(dataset=args.dataset, budget=budget, seeds=numbers(args.seeds, "SEEDS"),
                   methods=split(args.methods), data=args.data or None, data_dir=args.data_dir or None,
                   device=args.device or None, **extra)


def main(argv: list[str] | None = None) -> int:
    args = arguments().parse_args(argv)
    root = Path(".")
    if not args.paper.isidentifier() or not (root / args.paper / "runs.py").is_file():
        known = sorted(path.parent.name for path in root.glob("*/runs.py") if path.parent.name != "common")
        raise UserError(f"no paper {args.paper!r} here: there are {', '.join(known) or 'none'}", code="E-PAPER")
    cuda = has_cuda() and not args.device.startswith("cpu")
    budget, why = choose_budget(args.budget, cuda)
    runs = runs_of(args, budget)
    check(runs)
    folders = Folders(args.paper, args.dataset)
    steps = plan_steps(runs, folders, root)
    text = rules(steps, folders, budget)
    if not args.plan_only:
        write_specs(steps, folders, root)
        write_text(root / folders.rules, text)
    if not args.quiet:
        heading = f"{args.paper} on {args.dataset}, budget {budget} ({why}; BUDGET={'|'.join(BUDGETS)})"
        text = describe(steps, folders, heading, *measured_rate(steps, folders, root, cuda))
        print("\n".join([text, *data_of_done(steps, folders, root)]), flush=True)
    return 0


if __name__ == "__main__":
    exit_cleanly(main)
