"""Train the same seed several times and see how far the bits part, with and without --deterministic: make spread

One small training of each paper on scikit-learn's digits, by the command that users type, in each of a few manners: as
usual, with --deterministic, and on a CPU with two threads instead of one, since sums of several threads run in another
order.  A row says whether the weights of its runs are the same bits, how far they part at most, and by how much the
accuracies differ; then the same against the first run as usual.  The record goes to results/checks/determinism/, one
for each kind of device; the table is made of those that are there.
"""

import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from common.checkpoint import read_state
from common.engine import Engine, find_device
from common.environment import ROOT, relative_command
from common.errors import UserError, exit_cleanly
from common.evaluation.plans import Evaluator, Plan
from common.experiment import load_data
from common.files import read_json, write_json, write_text
from common.flags import Parser, count
from common.records import read_record
from common.render import Grid, markdown
from common.verdicts import judge

PLAN = Plan("clean-pgd20-400", (Evaluator("clean", "clean", n=400), Evaluator("PGD-20", "pgd", eps=0.1, step_size=0.025,
                                                                             steps=20, n=400)), chunk=400)
# Paper -> (script, flags) of its training.
TRAININGS = {
    "adarat": ("adarat/train/PGD-AT/train_cifar10.py", "--model small --augment False --epoch 3 --epsilon 0.1 "
               "--step_size 0.025 --FixRAT True --AdaRAT True"),
    "dyart": ("dyart/train.py", "--model small --width 8 --augment false --epochs 2 --batch-size 64 "
              "--iter_FAB 4 --attack-iter 2 --lr 0.02 --DyART true"),
    "rpat": ("rpat/benchmarks/train.py", "--model small --epochs 2 --epsilon 0.1 --alpha 0.025 --RA --save_step 0"),
    "brainreg": ("brainreg/train.py", "--base_channels 8 --epoch_num 2 --reg_alpha 2 --reg_image_num 100 "
                 "--reg_batch_size 4 --reg_thresh 0.3 --lr 0.01 --attack False"),
}
SHARED = "--data digits --n_train 400 --n_epoch_test 50 --final_test False --seed 1"


class Manner(NamedTuple):
    """A way to run a training: its title, more flags, threads (0: as the environment says)."""

    title: str
    flags: str = ""
    threads: int = 0


USUAL, FORCED = "as usual", "--deterministic"
MANNERS = {
    "cpu": (Manner(f"{USUAL}, 1 thread", threads=1), Manner(f"{FORCED}, 1 thread", FORCED, 1),
            Manner(f"{USUAL}, 2 threads", threads=2)),
    "cuda": (Manner(USUAL), Manner(FORCED, FORCED), Manner(f"{USUAL}, no CUDA graphs", "--speedups none"),
             Manner(f"{FORCED}, no CUDA graphs", f"{FORCED} --speedups none")),
}


class Run(NamedTuple):
    """What one training left: its last weights, accuracies in percent by evaluator, and what its record says."""

    weights: dict[str, torch.Tensor]
    accuracies: dict[str, float]
    environment: dict[str, Any]


def trained(paper: str, manner: Manner, number: int, device: str, work: Path) -> Run:
    """One training below the folder `work`, judged."""
    script, flags = TRAININGS[paper]
    name = f"{manner.title.replace(' ', '-').replace(',', '').strip('-')}-{number}"
    roots = {kind: work / kind for kind in ("results", "weights")}
    words = [sys.executable, script, *shlex.split(f"{SHARED} {flags} {manner.flags}"), "--device", device, "--run",
             name, *(word for kind, root in roots.items() for word in (f"--{kind}", str(root)))]
    threads = {"OMP_NUM_THREADS": str(manner.threads)} if manner.threads else {}
    done = subprocess.run(words, cwd=ROOT, env={**os.environ, **threads}, stdout=subprocess.DEVNULL)
    if done.returncode:
        raise UserError(f"a training ended with status {done.returncode}: {shlex.join(words[1:])}",
                        code="E-STEP-FAILED")
    folder, weights = (root / paper / "digits" / name for root in roots.values())
    data = load_data("digits", None)
    path = judge(folder=folder, weights=weights, plan=PLAN, test=data.test, data=data.describe(),
                 engine=Engine.choose(device, "fp32"))
    results = read_record(path, "eval")["results"]
    return Run(read_state(weights / "last.pt"), {one["name"]: 100 * one["robust"] / one["n"] for one in results},
               read_record(folder / "train.json", "train")["environment"])


def gap(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest difference of two states, 0.0 where they are the same bits."""
    return max((float((tensor.double() - other[name].double()).abs().max()) for name, tensor in one.items()
                if not torch.equal(tensor, other[name])), default=0.0)


def row(paper: str, manner: Manner, runs: Sequence[Run], first: Run) -> dict[str, Any]:
    """One manner of a training; first: the first run as usual."""
    def apart(name: str) -> float:
        values = [run.accuracies[name] for run in runs]
        return max(values) - min(values)

    return {"training": paper, "manner": manner.title, "runs": len(runs),
            "deterministic": runs[0].environment["engine"]["deterministic"],
            "precision": runs[0].environment["precision"], "threads": runs[0].environment["threads"],
            "largest_difference": max(gap(runs[0].weights, run.weights) for run in runs),
            "accuracies": {name: [run.accuracies[name] for run in runs] for name in first.accuracies},
            "accuracies_apart": {name: apart(name) for name in first.accuracies},
            "from_usual": max(gap(first.weights, run.weights) for run in runs),
            "accuracies_from_usual": {name: max(abs(run.accuracies[name] - first.accuracies[name]) for run in runs)
                                      for name in first.accuracies}}


def table(records: Sequence[dict[str, Any]]) -> Grid:
    """The rows of the records in words."""
    def parted(value: float) -> str:
        return "same bits" if value == 0 else f"{value:.1e}"

    def points(values: dict[str, float]) -> str:
        return " / ".join(f"{values[name]:.2f}" for name in ("clean", "PGD-20"))

    rows = tuple((record["kind"], one["training"], one["manner"], one["precision"], str(one["runs"]),
                  parted(one["largest_difference"]), points(one["accuracies_apart"]), parted(one["from_usual"]),
                  points(one["accuracies_from_usual"])) for record in records for one in record["rows"])
    notes = [f"{record['kind']}: {record['environment']['device']}, torch {record['environment']['torch']}, commit "
             f"{(record['environment']['commit'] or 'unknown')[:12]}" for record in records]
    return Grid("The same seed, trained again", (
        "device", "training", "manner", "precision", "runs", "weights of its runs part by",
        "accuracies part by, points (clean / PGD-20)", "weights part from the first row's by",
        "accuracies from the first row's by"), rows, (
        "the largest absolute difference of any entry of the last weights and statistics; accuracies on the 400 test "
        "digits, judged in float32", "short trainings of a small network: `python -m scripts.seed_spread`", *notes))


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    parse = Parser(prog="python -m scripts.seed_spread", description=__doc__.splitlines()[0].split(": make")[0] + ".")
    parse.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    parse.add_argument("--runs", type=count, default=3, help="trainings in each manner")
    parse.add_argument("--only", nargs="+", choices=tuple(TRAININGS), default=tuple(TRAININGS), metavar="PAPER",
                       help="of these papers only")
    parse.add_argument("--results", type=Path, default=ROOT / "results", help="gets checks/determinism/ and tables/")
    args = parse.parse_args(argv)
    device = find_device(args.device)
    if device.type not in MANNERS:
        raise UserError(f"--device {args.device}: choose one of {', '.join(MANNERS)}", code="E-DEVICE")
    rows, where, folder = [], {}, args.results / "checks" / "determinism"
    with tempfile.TemporaryDirectory() as work:
        for paper in args.only:
            first = None
            for manner in MANNERS[device.type]:
                runs = [trained(paper, manner, number, str(device), Path(work)) for number in range(1, args.runs + 1)]
                first, where = first or runs[0], where or runs[0].environment
                rows.append(row(paper, manner, runs, first))
                print(f"{paper}, {manner.title}: {rows[-1]['largest_difference']:.1e}", flush=True)
            write_json(folder / f"{device.type}.json", {
                "kind": device.type, "runs": args.runs, "rows": rows, "environment": where,
                "command": relative_command()})
    text = markdown([table([read_json(path) for path in sorted(folder.glob("*.json"))])])
    write_text(args.results / "tables" / "determinism.md", text)
    print(text)


if __name__ == "__main__":
    exit_cleanly(main)
