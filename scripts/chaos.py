"""Kill every kind of job at random moments, start it again, and count what is lost: python -m scripts.chaos

Each kind is a command that users type, on small data: the trainings of the papers, an evaluation, caches, tables, a
chain of make.  It runs once untouched; then it is struck by SIGKILL and SIGTERM in turns, at random moments and while
it writes, and started again with the same command until it ends.  After SIGKILL, files that had no name yet are cut off
at random, as by a power cut.  Lost is: any tensor, flag, metric, record, table or figure that differs in a bit, a file
that is not whole, a file left over, a traceback, a refusal to go on, an end that takes longer than 10 seconds.
Then the faults of disks and users (common/chaos_faults.py).  The record is results/checks/reliability/chaos.json.
"""

import random
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from common import chaos, chaos_faults, chaos_judge
from common.chaos import Job, Outcome, Sitting
from common.data.digits import load_digits
from common.environment import ROOT, begin, environment, portable
from common.errors import exit_cleanly
from common.files import write_json
from common.flags import Parser, count
from common.reliability import fault_grid, kill_grid
from common.render import markdown

FOLDERS = ("--results", "{place}/results", "--weights", "{place}/weights")
SMALL = "--model small --width 4 --precision fp32 --budget smoke --device cpu --final_test False --n_epoch_test 20"
TRAININGS = {
    "adarat": f"adarat/train/PGD-AT/train_cifar10.py {SMALL} --data digits --augment False --n_train 256 "
              "--batch_size 32 --epoch 9 --step_num 5 --FixRAT True --AdaRAT True --run run",
    "generalist": f"adarat/train/Generalist/train_cifar10.py {SMALL} --data digits --augment False --n_train 512 "
                  "--epochs 9 --scale_schedule True --run run",
    "dyart": f"dyart/train.py {SMALL} --data digits --augment false --batch-size 20 --epochs 12 --iter_FAB 3 "
             "--n_train 90 --run run",
    "rpat": f"rpat/benchmarks/train.py {SMALL} --data digits --n_train 200 --batch_size 20 --epochs 12 --n_iters 2 "
            "--save_step 0 --RA --run run",
    "rpat-sotas": f"rpat/sotas/train_cifar_ra.py {SMALL} --data digits --epochs 12 --warmup-epochs 1 --stage1 4 "
                  "--stage2 8 --n_train 200 --batch-size 20 --attack-iters 2 --fname run",
    "brainreg": "brainreg/train.py --data digits --base_channels 4 --precision fp32 --budget smoke --device cpu "
                "--attack False --epoch_num 10 --n_train 90 --resnet_batch_size 20 --n_epoch_test 20 --lr 0.001 "
                "--reg_image_num 40 --reg_batch_size 5 --reg_thresh 0.3 --reg_alpha 0.1 --run run",
}
PICTURES, EXTRA = 2000, 1_000_000              # images of the folder; of the compressed npz, 64 MB unpacked
KINDS = ("evaluation", "cache-npz", "cache-folder", "make", "tables", "leaderboard", *TRAININGS)
FAULTS = "faults"
KILLING = 0.65                                 # share of the time that is for kills where faults are to come


def python(words: str, *more: str) -> tuple[str, ...]:
    """A command of ours."""
    return (sys.executable, *words.split(), *more)


@dataclass
class Bench:
    """The jobs, their data and their undisturbed runs, all under `root`, made when first asked for."""

    root: Path
    known: dict[str, Sitting] = field(default_factory=dict)

    def job(self, kind: str) -> Job:
        """One of KINDS, or npz: a training on a file in its own place."""
        if kind in TRAININGS:
            return Job(kind, python(TRAININGS[kind], *FOLDERS))
        if kind == "npz":
            words = TRAININGS["adarat"].replace("--data digits", "--dataset_name digits --data npz:{place}/digits.npz")
            return Job(kind, python(words, *FOLDERS), fill=write_digits)
        standard = f"adarat/train/ST/train_cifar10.py {SMALL} --epoch 1 --n_train 100 --run run"
        decoded = ("--data_dir", "{place}/data")
        if kind == "evaluation":
            return Job(kind, python("-m scripts.evaluate {place}/results/adarat/digits/run --plan paper-adarat-24-12 "
                                    "--device cpu", *FOLDERS[2:]), fill=self.copy_trained)
        if kind == "cache-folder":
            return Job(kind, python(standard, "--data", f"folder:{self.pictures()}", *decoded, *FOLDERS))
        if kind == "cache-npz":
            return Job(kind, python(TRAININGS["dyart"].replace("--epochs 12", "--epochs 2"), "--aux-data-filename",
                                    str(self.extra()), *decoded, *FOLDERS))
        if kind == "make":
            return Job(kind, ("make", "--no-print-directory", f"PYTHON={sys.executable}", "SETUP=0", "BUDGET=smoke",
                              "METHODS=unregularised", "reproduce-brainreg-mnist"), fill=copy_code, inside=True)
        script = {"tables": "report --paper adarat", "leaderboard": "leaderboard"}[kind]
        return Job(kind, python(f"-m scripts.{script} --results", "{place}/results"), fill=copy_records)

    def whole(self, kind: str) -> Sitting:
        """The undisturbed run of a kind, in `place_of(kind)`."""
        if kind not in self.known:
            self.known[kind] = chaos.run_undisturbed(self.job(kind), self.place_of(kind))
        return self.known[kind]

    def place_of(self, kind: str) -> Path:
        """Where the undisturbed run of a kind is."""
        return self.root / kind / "whole"

    def faults(self, stop: float) -> list[dict[str, Any]]:
        """What the faults of common.chaos_faults do, none of which begins after `stop` (time.monotonic)."""
        training, evaluation, cache, tables = (
            chaos_faults.Whole(self.job(kind), self.place_of(kind), self.whole(kind))
            for kind in ("npz", "evaluation", "cache-npz", "tables"))
        return chaos_faults.all_faults(training=training, evaluation=evaluation, cache=cache, tables=tables,
                                       data="digits.npz", root=self.root / FAULTS, stop=stop)

    def copy_trained(self, place: Path) -> None:
        """Give a place the run that the job adarat trained."""
        self.whole("adarat")
        shutil.copytree(self.place_of("adarat"), place, dirs_exist_ok=True)

    def pictures(self) -> Path:
        """A folder of small PNG images, train/CLASS and test/CLASS."""
        folder = self.root / "data" / "pictures"
        if not folder.exists():
            from PIL import Image

            draw = np.random.default_rng(0)
            for number in range(PICTURES):
                path = folder / ("test" if number % 10 == 9 else "train") / f"class{number // 10 % 4}" / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(draw.integers(0, 256, (32, 32, 3), np.uint8)).save(path)
        return folder

    def extra(self) -> Path:
        """A compressed npz of extra digits, as DyART takes them."""
        path = self.root / "data" / "extra.npz"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            digits = load_digits().train
            which = np.arange(EXTRA) % len(digits)
            np.savez_compressed(path, image=digits.images.permute(0, 2, 3, 1).numpy()[which],
                                label=digits.labels.numpy()[which])
        return path


def write_digits(place: Path) -> None:
    """Give a place the digits as a file."""
    arrays = {}
    for name, split in (("train", (digits := load_digits()).train), ("test", digits.test)):
        arrays |= {f"{name}_images": split.images.permute(0, 2, 3, 1).numpy(), f"{name}_labels": split.labels.numpy()}
    np.savez(place / "digits.npz", **arrays)


def copy_records(place: Path) -> None:
    """Give a place the repository's records, without the tables and figures made from them."""
    shutil.copytree(ROOT / "results", place / "results", dirs_exist_ok=True,
                    ignore=shutil.ignore_patterns("tables", "figures", "leaderboard", "checks", "bench", "*_smoke_*",
                                                  "*_quick_*"))


def copy_code(place: Path) -> None:
    """Give a place the repository's code and what others report."""
    skip = shutil.ignore_patterns(".*", "build", "weights", "results", "data", "__pycache__", "tests", "docs")
    shutil.copytree(ROOT, place, dirs_exist_ok=True, ignore=lambda folder, names: (
        {name for name in skip(folder, names) if name != "data" or Path(folder) == ROOT}))
    shutil.copytree(ROOT / "results" / "reported", place / "results" / "reported")


def shared_out(kills: int, kinds: list[str]) -> dict[str, int]:
    """How many kills each kind gets: as many as any other, or one more."""
    return {kind: kills // len(kinds) + (number < kills % len(kinds)) for number, kind in enumerate(kinds)}


def torment(bench: Bench, kind: str, kills: int, draw: random.Random, first: int, stop: float) -> dict[str, Any]:
    """Strike a kind so many times, in as many runs as that takes, and say in JSON what came of it.

    first: 0 begins with SIGKILL, 1 with SIGTERM.  stop: no run begins after that moment (time.monotonic).
    """
    whole, place = bench.whole(kind), bench.place_of(kind)
    done, runs = Outcome(), 0
    planned = chaos.strikes(kills, draw, first)
    while planned and time.monotonic() < stop and runs < 2 * kills + 2:
        now = planned[:draw.randint(1, 2)]
        runs += 1
        cut = place.with_name(f"cut-{runs}")
        outcome = chaos.run_struck(bench.job(kind), cut, whole, now, draw, judge=lambda cut: (
            chaos_judge.losses(place, cut)), checks=lambda cut: chaos_judge.torn(cut, place))
        planned = planned[len(outcome.hits):]
        done.hits += outcome.hits
        done.restarts += outcome.restarts
        done.losses += outcome.losses
        say(kind, outcome)
        if not outcome.losses:
            shutil.rmtree(cut)
    return {"kind": kind, "command": portable(" ".join(bench.job(kind).words).replace(sys.executable, "python")),
            "undisturbed_seconds": round(whole.total, 2), "runs": runs, "restarts": done.restarts,
            "kills": [hit_json(hit) for hit in done.hits], "losses": [portable(line) for line in done.losses]}


def hit_json(hit: Sitting) -> dict[str, Any]:
    return {"signal": hit.strike.signal.name, "aim": hit.strike.aim, "after_seconds": round(hit.struck, 3),
            "ending_seconds": round(hit.ending, 3), "status": hit.status, "writing": hit.writing}


def say(kind: str, outcome: Outcome) -> None:
    """A line for each kill and each loss."""
    for hit in outcome.hits:
        print(f"{kind:<13} {hit.strike.signal.name} after {hit.struck:6.2f} s, ended in {hit.ending:5.2f} s"
              + (", a file was being written" if hit.writing else ""), flush=True)
    for line in outcome.losses:
        print(f"{kind:<13} LOST: {line}", flush=True)


def parser() -> Parser:
    """The command's flags."""
    parse = Parser(prog="python -m scripts.chaos", description=__doc__.splitlines()[0].split(": python")[0] + ".")
    parse.add_argument("--kills", type=count, default=20, help="in all, over the kinds of jobs")
    parse.add_argument("--seed", type=int, default=1, help="of the moments")
    parse.add_argument("--only", nargs="+", choices=(*KINDS, FAULTS), metavar="KIND", default=(*KINDS, FAULTS),
                       help=f"of {', '.join((*KINDS, FAULTS))} (default: all)")
    parse.add_argument("--seconds", type=count, default=600, help="no run begins after so many")
    parse.add_argument("--out", type=Path, default=ROOT / "results" / "checks" / "reliability" / "chaos.json",
                       help="the record")
    parse.add_argument("--work", type=Path, default=None, help="folder in which the jobs run (default: a temporary "
                       "one); runs with losses are left there")
    return parse


def main(argv: list[str] | None = None) -> int:
    """Run the command; the exit status: 1 where something was lost."""
    args = parser().parse_args(argv)
    begin()
    began = time.monotonic()
    root = args.work or Path(tempfile.mkdtemp(prefix="chaos-"))
    bench, draw, found, hits = Bench(root.resolve()), random.Random(args.seed), [], 0
    kinds = [kind for kind in KINDS if kind in args.only]
    stop = began + args.seconds
    stop_kills = stop if FAULTS not in args.only else began + KILLING * args.seconds
    shares = shared_out(args.kills, draw.sample(kinds, len(kinds))) if kinds else {}
    for kind in kinds:
        if shares[kind] and time.monotonic() < stop_kills:
            found.append(torment(bench, kind, shares[kind], draw, hits % 2, stop_kills))
            hits += len(found[-1]["kills"])
    faults = bench.faults(stop) if FAULTS in args.only else []
    lost = sum(len(one["losses"]) for one in (*found, *faults))
    terms = [kill["ending_seconds"] for one in found for kill in one["kills"] if kill["signal"] == "SIGTERM"]
    record = {"seed": args.seed, "asked": sum(shares.values()), "kills": hits, "jobs": found, "faults": faults,
              "losses": lost, "slowest_sigterm_seconds": max(terms, default=None), "limit_seconds": args.seconds,
              "seconds": round(time.monotonic() - began, 1), "environment": environment("cpu", "fp32", 1)}
    write_json(args.out, record)
    print(markdown([kill_grid(record), *([fault_grid(record)] if faults else [])]))
    if lost:
        print(f"runs with losses: {root}")
    elif args.work is None:
        shutil.rmtree(root)
    return 1 if lost else 0


if __name__ == "__main__":
    exit_cleanly(main)
