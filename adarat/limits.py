"""Choose the barrier's floor and ceiling for another network, budget or data set, on held-out training images.

    python -m adarat.limits --out FILE.json -- --data digits --model small ...

What stands behind `--` goes to the train script.  The base method is trained first, on 80% of the training images.  Its
clean training loss c tells what the network reaches: a candidate puts the gate (0.7*ceiling) where c stands after a
part of the training, and the floor at a share of the last c.  Each candidate is trained with AdaRAT; the one with the
highest mean of clean and PGD accuracy on the held-out 20% is taken, among those whose barrier is at work (open gate,
B > 0) in the last third of training.  The test images are not looked at.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from adarat.settings import GATE
from common.environment import ROOT, portable, relative_command
from common.errors import UserError, exit_cleanly
from common.files import write_json
from common.flags import Parser, count
from common.records import read_metrics
from common.signals import status_of

# Part of the training at which c marks the gate, and share of the last c that is the floor.
CANDIDATES = ((1 / 6, 0.9), (1 / 3, 0.9), (1 / 6, 0.5), (1 / 3, 0.5))


def candidate(curve: list[float], gate_at: float, floor_share: float) -> tuple[float, float]:
    """(up_lim, down_lim), to two digits, from the base run's clean training loss by epoch."""
    gate = curve[max(0, round(gate_at * len(curve)) - 1)]
    return float(f"{gate / GATE:.2g}"), float(f"{floor_share * curve[-1]:.2g}")


def from_base_run(folder: Path) -> tuple[float, float]:
    """(up_lim, down_lim) of the first candidate, from a base run's metrics; UserError if there are none."""
    rows = read_metrics(folder / "metrics.jsonl")
    if not rows or not (folder / "train.json").exists():
        raise UserError(f"--limits_from {folder.name}: {portable(str(folder))} holds no finished run; train the base "
                        "method first, or give --up_lim and --down_lim")
    up_lim, down_lim = candidate([row["clean_loss"] for row in rows], *CANDIDATES[0])
    if down_lim >= up_lim:
        raise UserError(f"--limits_from {folder.name}: its clean loss did not fall, so a floor of {down_lim} would not "
                        f"be below the ceiling of {up_lim}; train it longer, or give --up_lim and --down_lim")
    return up_lim, down_lim


def score(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Held-out accuracy after the last epoch, and how much the barrier did in the last third of training."""
    last, tail = rows[-1], rows[-max(1, len(rows) // 3):]
    return {"clean_accuracy": last["test_clean_accuracy"], "pgd_accuracy": last["test_pgd_accuracy"],
            "score": (last["test_clean_accuracy"] + last["test_pgd_accuracy"]) / 2,
            "barrier": sum(row["barrier"] for row in tail) / len(tail),
            "gated": sum(row["gated"] for row in tail) / len(tail)}


def trained(script: Path, folder: Path, name: str, flags: list[str]) -> list[dict[str, Any]]:
    """Train one run on 80% of the training images and return its metrics."""
    command = [sys.executable, str(script), *flags, "--hold_out", "0.2", "--final_test", "False", "--budget", "search",
               "--run", name, "--dataset_name", folder.name, "--results", str(folder.parents[1]),
               "--weights", str(folder.parents[1] / "weights")]
    if status_of(command):
        raise UserError(f"the run {name} failed; its message stands above")
    return read_metrics(folder / name / "metrics.jsonl")


def main() -> None:
    """Run the command."""
    parse = Parser(prog="python -m adarat.limits", description=__doc__.splitlines()[0],
                   formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parse.add_argument("--script", type=Path, default=ROOT / "adarat/train/PGD_AT/train_cifar10.py",
                       help="train script of the base method")
    parse.add_argument("--out", type=Path, required=True, help="JSON file for the choice and all that it was made from")
    parse.add_argument("--candidates", type=count, default=len(CANDIDATES), help="how many pairs to try")
    parse.add_argument("--work", type=Path, default=ROOT / "build" / "limits", help="folder for the runs")
    parse.add_argument("flags", nargs="*", help="behind --: flags of the train script")
    args = parse.parse_args()
    if not args.script.is_file():
        raise UserError(f"--script {args.script}: there is no such file")
    folder = args.work / "adarat" / args.out.stem
    base = trained(args.script, folder, "base", args.flags)
    curve = [row["clean_loss"] for row in base]
    tried = []
    for part in CANDIDATES[:args.candidates]:
        up_lim, down_lim = candidate(curve, *part)
        if down_lim >= GATE * up_lim:
            print(f"ceiling {up_lim}, floor {down_lim}: the floor is not below the gate, left out")
            continue
        rows = trained(args.script, folder, f"up{up_lim}-down{down_lim}", [
            *args.flags, "--FixRAT", "True", "--AdaRAT", "True", "--up_lim", str(up_lim), "--down_lim", str(down_lim)])
        tried.append({"up_lim": up_lim, "down_lim": down_lim, "gate_at": part[0], "floor_share": part[1],
                      "held_out": score(rows)})
    working = [entry for entry in tried if entry["held_out"]["barrier"] > 0 and entry["held_out"]["gated"] < 1]
    if not working:
        raise UserError("no candidate has its barrier at work in the last third of training: train longer")
    best = max(working, key=lambda entry: entry["held_out"]["score"])
    write_json(args.out, {"up_lim": best["up_lim"], "down_lim": best["down_lim"], "tried": tried, "base": score(base),
                          "base_clean_loss": curve, "command": relative_command(module="adarat.limits", argv=sys.argv),
                          "chosen_on": "the held-out 20% of the training images"})
    print(f"--up_lim {best['up_lim']} --down_lim {best['down_lim']}   ({args.out})")


if __name__ == "__main__":
    exit_cleanly(main)
