"""Train the same networks on the fast path (bf16) and on the plain one (float32), and compare: make fast-vs-plain

PGD-AT on the digits, and with --data on real images too: a subset, a narrow ResNet-18, few epochs.  Each seed is
trained once in each precision, by the command that users type, and judged in float32: clean and under PGD-20.  A row
says whether the two means differ by more than seeds do.  Started again it goes on where it was.
"""

import math
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common import records
from common.environment import ROOT
from common.errors import UserError, exit_cleanly
from common.evaluation.plans import Evaluator, Plan
from common.files import write_text
from common.flags import Parser, count
from common.render import Grid, comma_separated, markdown
from common.stats import mean_sd

SCRIPT = "adarat/train/PGD-AT/train_cifar10.py"
WEIGHTS = ROOT / "weights" / "fast-vs-plain"
PATHS = {"bf16": "fast", "fp32": "plain"}


class Case(NamedTuple):
    """flags: of the training; eps, step: of its attack and of PGD-20; n: test images."""

    title: str
    flags: str
    eps: float
    step: float
    n: int


DIGITS = Case("digits, small network, 15 epochs", "--data digits --model small --augment False --epoch 15 "
              "--epsilon 0.1 --step_size 0.025", 0.1, 0.025, 400)


def images(data: str, n_train: int, epochs: int, width: int, n: int) -> Case:
    """Of the data set `data`, as --data takes it."""
    return Case(f"CIFAR-10, first {n_train:,} images, ResNet-18 of width {width}, {epochs} epochs",
                f"--data {shlex.quote(data)} --dataset_name cifar10 --n_train {n_train} --epoch {epochs} "
                f"--width {width} --batch_size 64 --n_epoch_test 200", 8 / 255, 2 / 255, n)


def plan_of(case: Case) -> Plan:
    """Clean and PGD-20."""
    return Plan(f"clean-pgd20-{case.n}", (
        Evaluator("clean", "clean", n=case.n),
        Evaluator("PGD-20", "pgd", eps=case.eps, step_size=case.step, steps=20, n=case.n)), chunk=min(case.n, 500))


def trained(case: Case, seed: int, precision: str, root: Path, device: str) -> Path:
    """The results folder of a run, trained if it is not there."""
    words = [sys.executable, SCRIPT, *shlex.split(case.flags), "--seed", str(seed), "--precision", precision, "--run",
             f"pgd-at-{PATHS[precision]}_s{seed}", "--results", str(root.resolve()), "--weights", str(WEIGHTS),
             "--device", device, "--final_test", "False"]
    if (status := subprocess.run(words, cwd=ROOT).returncode) != 0:
        raise UserError(f"a training ended with status {status}: {shlex.join(words[1:])}")
    return root / "adarat" / ("digits" if case is DIGITS else "cifar10") / f"pgd-at-{PATHS[precision]}_s{seed}"


def judged(folder: Path, case: Case, data: str | None, device: str) -> dict[str, float]:
    """evaluator -> accuracy in percent of a trained run."""
    from common.engine import Engine
    from common.experiment import judge, load_data
    found = load_data(data or "digits", None)
    path = judge(folder=folder, weights=WEIGHTS / folder.relative_to(folder.parents[2]), plan=plan_of(case),
                 test=found.test, data=found.describe(), engine=Engine.choose(device, "fp32"))
    return {one["name"]: 100 * one["robust"] / one["n"] for one in records.read_record(path, "eval")["results"]}


def row(case: Case, name: str, fast: list[float], plain: list[float]) -> dict[str, object]:
    """One comparison: means and spreads over the seeds, the difference, and its standard error over the pairs."""
    gaps = np.subtract(fast, plain)
    (fast_mean, fast_sd), (plain_mean, plain_sd) = mean_sd(fast), mean_sd(plain)
    spread = max(fast_sd or 0.0, plain_sd or 0.0)
    return {"training": case.title, "measured": name, "n": case.n, "seeds": len(fast), "fast": fast_mean,
            "fast_sd": fast_sd, "plain": plain_mean, "plain_sd": plain_sd, "difference": float(gaps.mean()),
            "standard_error": float(gaps.std(ddof=1) / math.sqrt(len(gaps))) if len(gaps) > 1 else None,
            "within_spread": bool(abs(gaps.mean()) <= spread)}


def table(rows: list[dict[str, object]], notes: tuple[str, ...]) -> Grid:
    """The rows in words."""
    def spread(mean: object, deviation: object) -> str:
        return f"{mean:.2f}" + ("" if deviation is None else f" ± {deviation:.2f}")

    lines = tuple((str(one["training"]), str(one["measured"]), str(one["n"]), str(one["seeds"]),
                   spread(one["fast"], one["fast_sd"]), spread(one["plain"], one["plain_sd"]),
                   spread(one["difference"], one["standard_error"]),
                   "yes" if one["within_spread"] else "no") for one in rows)
    return Grid("Accuracy of the fast and the plain path", ("training", "measured", "n", "seeds", "fast (bf16), %",
                "plain (float32), %", "difference, points", "within the spread of seeds"), lines, notes)


def main(argv: list[str] | None = None) -> int:
    parse = Parser(prog="python -m scripts.fast_vs_plain", description=__doc__.splitlines()[0].split(": make")[0])
    parse.add_argument("--data", help="real images besides the digits: npz:FILE, cifar10, ...")
    parse.add_argument("--seeds", type=count, default=5, help="so many, from 1 on")
    parse.add_argument("--n_train", type=count, default=2000, help="training images of --data")
    parse.add_argument("--epochs", type=count, default=6, help="of --data")
    parse.add_argument("--width", type=count, default=16, help="channels of the first stage, of --data")
    parse.add_argument("--n", type=count, default=500, help="test images of --data")
    parse.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    parse.add_argument("--results", type=Path, default=ROOT / "results", help="gets checks/fast-vs-plain/ and tables/")
    args = parse.parse_args(argv)
    cases = [(DIGITS, None)]
    if args.data:
        cases.append((images(args.data, args.n_train, args.epochs, args.width, args.n), args.data))
    root, rows, device = args.results / "checks" / "fast-vs-plain", [], ""
    for case, data in cases:
        found: dict[str, list[dict[str, float]]] = {precision: [] for precision in PATHS}
        for seed in range(1, args.seeds + 1):
            for precision in PATHS:
                folder = trained(case, seed, precision, root, args.device)
                found[precision].append(judged(folder, case, data, args.device))
                device = records.read_record(folder / "train.json", "train")["environment"]["device"]
        rows += [row(case, name, *([one[name] for one in found[precision]] for precision in PATHS))
                 for name in ("clean", "PGD-20")]
    notes = (f"PGD-AT (`{SCRIPT}`), each seed trained in bf16 and in float32 from the same weights, in the same order "
             f"of images, on {device}; judged in float32",
             "mean ± standard deviation over the seeds; difference: fast minus plain, mean ± standard error over the "
             "pairs; within the spread: not larger than the larger of the two standard deviations",
             "records: checks/fast-vs-plain/; short trainings of few images: read the differences, not the levels")
    text = markdown([table(rows, notes)])
    write_text(args.results / "tables" / "fast-vs-plain.md", text)
    write_text(args.results / "tables" / "fast-vs-plain.csv", comma_separated(rows))
    print(text)
    return 0


if __name__ == "__main__":
    exit_cleanly(main)
