"""Train the same networks on the fast path (bf16) and on the plain one (float32), and compare: make fast-vs-plain

PGD-AT on the digits, and with --data on real images too: a subset, a narrow ResNet-18, few epochs, once with the
learning rate at 0.1 to the end and once with the released schedule scaled to the training's length.  Each seed is
trained once on each path, by the command that users type, and judged in float32: clean and under PGD-20.  A row says
whether the two means differ by more than seeds do.  --control trains the plain path again, with convolutions that round
in another order: how far two trainings of one seed part for no other reason.  Started again it goes on where it was.
"""

import math
import os
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common import records
from common.data import DataSet
from common.engine import Engine
from common.environment import ROOT
from common.errors import UserError, exit_cleanly
from common.evaluation import plan_sha256
from common.evaluation.plans import Evaluator, Plan
from common.experiment import load_data
from common.files import write_text
from common.flags import Parser, count
from common.render import Grid, comma_separated, markdown
from common.signals import status_of
from common.stats import mean_sd
from common.verdicts import judge

SCRIPT = "adarat/train/PGD-AT/train_cifar10.py"
WEIGHTS = ROOT / "weights" / "fast-vs-plain"
PATHS = {"fast": "bf16", "plain": "fp32", "control": "fp32"}
# oneDNN then takes its AVX2 kernels, whose sums run in another order; on CUDA a repetition differs by itself.
CONTROL = {"ONEDNN_MAX_CPU_ISA": "AVX2"}


class Case(NamedTuple):
    """flags: of the training; eps, step: of its attack and of PGD-20; n: test images; name: what its runs are called;
    paths: which of PATHS are trained."""

    title: str
    flags: str
    eps: float
    step: float
    n: int
    name: str = "pgd-at"
    paths: tuple[str, ...] = ("fast", "plain")


DIGITS = Case("digits, small network, 15 epochs", "--data digits --model small --augment False --epoch 15 "
              "--epsilon 0.1 --step_size 0.025", 0.1, 0.025, 400)


def images(data: str, n_train: int, epochs: int, width: int, n: int, decays: bool) -> Case:
    """Of the data set `data`, as --data takes it; decays: by the released schedule, scaled."""
    case = Case(f"CIFAR-10, first {n_train:,} images, ResNet-18 of width {width}, {epochs} epochs, learning rate "
                f"{'decays' if decays else '0.1 to the end'}",
                f"--data {shlex.quote(data)} --dataset_name cifar10 --n_train {n_train} --epoch {epochs} "
                f"--width {width} --batch_size 64 --n_epoch_test 200", 8 / 255, 2 / 255, n)
    return case if not decays else case._replace(flags=f"{case.flags} --scale_schedule True", name="pgd-at-decay")


def plan_of(case: Case) -> Plan:
    """Clean and PGD-20."""
    return Plan(f"clean-pgd20-{case.n}", (
        Evaluator("clean", "clean", n=case.n),
        Evaluator("PGD-20", "pgd", eps=case.eps, step_size=case.step, steps=20, n=case.n)), chunk=min(case.n, 500))


def folder_of(case: Case, seed: int, path: str, root: Path) -> Path:
    """Where a run's records are."""
    return root / "adarat" / ("digits" if "--data digits" in case.flags else "cifar10") / f"{case.name}-{path}_s{seed}"


def trained(case: Case, seed: int, path: str, root: Path, device: str) -> Path:
    """The results folder of a run, trained if it is not there."""
    folder = folder_of(case, seed, path, root)
    words = [sys.executable, SCRIPT, *shlex.split(case.flags), "--seed", str(seed), "--precision", PATHS[path], "--run",
             folder.name, "--results", str(root.resolve()), "--weights", str(WEIGHTS),
             "--device", device, "--final_test", "False"]
    changed = {**os.environ, **(CONTROL if path == "control" else {})}
    if (status := status_of(words, cwd=ROOT, env=changed)) != 0:
        raise UserError(f"a training ended with status {status}: {shlex.join(words[1:])}", code="E-STEP-FAILED")
    return folder


def known(folder: Path, plan: Plan, fingerprint: str) -> dict[str, float] | None:
    """evaluator -> accuracy in percent of the run in `folder`, where a record of this plan on the test images with this
    fingerprint is there: records are kept, weights are not."""
    path = folder / f"eval-{plan.name}.json"
    if not path.exists():
        return None
    record = records.read_record(path, "eval")
    if record["plan_sha256"] != plan_sha256(plan) or record["data"]["test_fingerprint"] != fingerprint:
        return None
    return {one["name"]: 100 * one["robust"] / one["n"] for one in record["results"]}


def measured(case: Case, data: DataSet, seed: int, path: str, root: Path, device: str) -> dict[str, float]:
    """evaluator -> accuracy in percent of a run, trained and judged where no record says it."""
    plan, described = plan_of(case), data.describe()
    fingerprint = described["test_fingerprint"]
    if (found := known(folder_of(case, seed, path, root), plan, fingerprint)) is None:
        folder = trained(case, seed, path, root, device)
        judge(folder=folder, weights=WEIGHTS / folder.relative_to(root), plan=plan, test=data.test, data=described,
              engine=Engine.choose(device, "fp32"))
        found = known(folder, plan, fingerprint)
    return found


def row(case: Case, name: str, what: str, ours: list[float], plain: list[float]) -> dict[str, object]:
    """One comparison: means and spreads over the seeds, the difference, and its standard error over the pairs."""
    gaps = np.subtract(ours, plain)
    (mean, deviation), (plain_mean, plain_sd) = mean_sd(ours), mean_sd(plain)
    spread = max(deviation or 0.0, plain_sd or 0.0)
    return {"training": case.title, "measured": name, "n": case.n, "seeds": len(ours), "path": what, "mean": mean,
            "sd": deviation, "plain": plain_mean, "plain_sd": plain_sd, "difference": float(gaps.mean()),
            "standard_error": float(gaps.std(ddof=1) / math.sqrt(len(gaps))) if len(gaps) > 1 else None,
            "within_spread": bool(abs(gaps.mean()) <= spread)}


def table(rows: list[dict[str, object]], notes: tuple[str, ...]) -> Grid:
    """The rows in words."""
    def spread(mean: object, deviation: object) -> str:
        return f"{mean:.2f}" + ("" if deviation is None else f" ± {deviation:.2f}")

    lines = tuple((str(one["training"]), str(one["measured"]), str(one["n"]), str(one["seeds"]), str(one["path"]),
                   spread(one["mean"], one["sd"]), spread(one["plain"], one["plain_sd"]),
                   spread(one["difference"], one["standard_error"]),
                   "yes" if one["within_spread"] else "no") for one in rows)
    return Grid("Accuracy of the fast and the plain path", ("training", "measured", "n", "seeds", "path",
                "on this path, %", "plain (float32), %", "difference, points", "within the spread of seeds"), lines,
                notes)


def main(argv: list[str] | None = None) -> int:
    parse = Parser(prog="python -m scripts.fast_vs_plain", description=__doc__.splitlines()[0].split(": make")[0])
    parse.add_argument("--data", help="real images besides the digits: npz:FILE, cifar10, ...")
    parse.add_argument("--seeds", type=count, default=5, help="so many, from 1 on")
    parse.add_argument("--n_train", type=count, default=2000, help="training images of --data")
    parse.add_argument("--epochs", type=count, default=6, help="of --data")
    parse.add_argument("--width", type=count, default=16, help="channels of the first stage, of --data")
    parse.add_argument("--n", type=count, default=2000, help="test images of --data")
    parse.add_argument("--n_constant", type=count, default=5000, help="likewise, of the trainings at one learning rate")
    parse.add_argument("--control", action="store_true", help="train the plain path once more, rounding otherwise")
    parse.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    parse.add_argument("--results", type=Path, default=ROOT / "results", help="gets checks/fast-vs-plain/ and tables/")
    args = parse.parse_args(argv)
    cases = [(DIGITS, "digits")]
    if args.data:
        cases += [(images(args.data, args.n_train, args.epochs, args.width, n, decays), args.data)
                  for decays, n in ((False, args.n_constant), (True, args.n))]
    if args.control:
        cases = [(case._replace(paths=tuple(PATHS)), spec) for case, spec in cases]
    root, rows, device = args.results / "checks" / "fast-vs-plain", [], ""
    for case, spec in cases:
        data = load_data(spec, None)
        found = {path: [measured(case, data, seed, path, root, args.device) for seed in range(1, args.seeds + 1)]
                 for path in case.paths}
        device = records.read_record(folder_of(case, 1, "plain", root) / "train.json", "train")["environment"]["device"]
        words = {"fast": "fast (bf16)", "control": "control (float32, other kernels)"}
        rows += [row(case, name, words[path], *([one[name] for one in found[which]] for which in (path, "plain")))
                 for path in case.paths if path != "plain" for name in ("clean", "PGD-20")]
    notes = (f"PGD-AT (`{SCRIPT}`), each seed trained on each path from the same weights, in the same order "
             f"of images, on {device}; judged in float32",
             "mean ± standard deviation over the seeds; difference: this path minus plain, mean ± standard error over "
             "the pairs; within the spread: not larger than the larger of the two standard deviations",
             *(["control: the plain path trained again with ONEDNN_MAX_CPU_ISA=AVX2, so that sums run in another order"]
               if args.control else []),
             "records: checks/fast-vs-plain/; short trainings of few images: read the differences, not the levels")
    text = markdown([table(rows, notes)])
    write_text(args.results / "tables" / "fast-vs-plain.md", text)
    write_text(args.results / "tables" / "fast-vs-plain.csv", comma_separated(rows))
    print(text)
    return 0


if __name__ == "__main__":
    exit_cleanly(main)
