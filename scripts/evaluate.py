"""Evaluate a checkpoint, ours or anybody's, by a plan: python scripts/evaluate.py CHECKPOINT --plan PLAN

CHECKPOINT is a run of ours (results/PAPER/DATA/RUN, or a .pt under weights/), whose record says what network and data
it is of; a file of weights, with --model and --data; or MODULE:FUNCTION that returns a network with its weights.
PLAN: quick, standard, full (common/evaluation/standard.py); paper-adarat, paper-dyart, paper-rpat, paper-brainreg
(also paper-X-N-M: the first N images, AutoAttack on the first M); board-N-M; any of the run's paper.

python scripts/evaluate.py results/adarat/cifar10/RUN --plan paper-adarat
python scripts/evaluate.py model.pt --model resnet18 --data cifar10 --plan standard-1000
python scripts/evaluate.py results/rpat/cifar10/RUN --plan cifar-10-c-N --corruptions CIFAR-10-C
The last measures it on the first N images of the files of CIFAR-10-C or CIFAR-100-C; a network of one channel by the
plan cifar-10-c-grey[-N], on their images in grey.  First of all a preflight refuses what is wrong.
"""

import argparse
import importlib
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import board
from common.environment import ROOT
from common.errors import UserError, exit_cleanly
from common.evaluation import codes, standard, subject
from common.evaluation.corruptions import file_plan_named, open_files
from common.evaluation.plans import Plan, check_size
from common.evaluation.searches import searched
from common.flags import Parser, add_deterministic_flag, add_search_flag, count, number
from common.records import read_record

ALIKE = "the data set that the run was trained on"


def parser() -> Parser:
    """The command's flags."""
    parse = Parser(prog="python scripts/evaluate.py", description=__doc__.splitlines()[0].split(":")[0] + ".")
    parse.add_argument("subject", metavar="CHECKPOINT", help="results/PAPER/DATA/RUN, a file of weights, or "
                       "MODULE:FUNCTION")
    parse.add_argument("--plan", required=True, help="what to measure: quick, standard, full, paper-adarat, ...")
    add_search_flag(parse)
    parse.add_argument("--norm", choices=tuple(standard.RADII), default="linf", help="of quick, standard, full")
    parse.add_argument("--eps", type=number, default=None, help="of quick, standard, full: 8/255; by default the usual "
                       "one of the norm")
    parse.add_argument("--checkpoint", default=None, help="of a run: last (the default), best, average, ...")
    parse.add_argument("--data", default=None, help=f"as in training (default: {ALIKE})")
    parse.add_argument("--data_dir", "--data-dir", default=None, help="where data sets lie")
    parse.add_argument("--corruptions", type=Path, default=None, help="the folder CIFAR-10-C or CIFAR-100-C, for the "
                       "plans that are called after it")
    parse.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    add_deterministic_flag(parse)
    parse.add_argument("--batch_size", type=count, default=None, help="images per pass; changes no verdict")
    parse.add_argument("--allow", nargs="+", default=(), metavar="CODE", help="what the preflight refuses and is meant "
                       f"so: codes of {codes.PAGE}")
    parse.add_argument("--weights", type=Path, default=ROOT / "weights", help="folder of the weights of runs")
    parse.add_argument("--spec", default=None, help="hash that make compares to see whether this is up to date")
    parse.add_argument("--out", type=Path, default=None, help="of a file or function: write the record to this .json")
    parse.add_argument("--seed", type=int, default=None, help="of a file or function (default: 1)")
    parse.add_argument("--clean", type=number, default=None, metavar="PERCENT", help="the clean accuracy that its "
                       "authors state: the preflight refuses another")
    parse.add_argument("--receipt", type=Path, default=None, metavar="FILE.npz", help="write the adversarial images "
                       "too, with hashes: scripts/verify.py judges them again")
    subject.add_network_flags(parse)
    return parse


def plan_for(name: str, args: argparse.Namespace, run: Mapping[str, Any] | None, n_test: int | None = None) -> Plan:
    """The plan of that name, for a run of ours or (run: None) any network; n_test: how many test images there are."""
    if standard.is_standard(name):
        if args.eps is not None:
            check_size(args.eps, args.norm, "--eps")
        return searched(standard.plan_named(name, norm=args.norm, eps=args.eps, n_test=n_test), args.search)
    if args.eps is not None or args.norm != "linf":
        raise UserError(f"--norm and --eps are for {', '.join(standard.NAMES)}: {name} has its own", code="E-FLAG-PAIR")
    # The leaderboard's plan is one for all papers; the others are a paper's own.
    if (plan := board.plan_named(name)) is None:
        named = re.match(r"paper-([a-z]+)", name)
        paper = named[1] if named else run["paper"] if run else None
        if paper is None or not (ROOT / paper / "runs.py").is_file():
            raise UserError(f"unknown plan {name!r}: give {', '.join(standard.NAMES)}, paper-adarat, paper-dyart, "
                            "paper-rpat, paper-brainreg, board-N-M" + (", or a plan of the run's paper" if run else ""),
                            code="E-PLAN")
        runs = importlib.import_module(f"{paper}.runs")
        own = run is not None and run["paper"] == paper
        plan = runs.plan_of_run(name, run) if own else runs.plan_by_default(name)
    return searched(plan, args.search)


def main() -> None:
    """Run the command."""
    args = parser().parse_args()
    args.allow = codes.checked(args.allow)
    if args.receipt is not None and args.receipt.suffix != ".npz":
        raise UserError(f"--receipt {args.receipt}: name a file that ends in .npz", code="E-OUT")
    found = subject.find(args.subject, args.checkpoint)
    if found.folder is not None:
        evaluate_run(found, args)
    else:
        evaluate_other(found, args)


def evaluate_run(found: subject.Subject, args: argparse.Namespace) -> None:
    """A run of ours: into its folder."""
    run = read_record(found.folder / "run.json", "run")
    for flag in ("model", "out", "seed", "clean", "part"):
        if getattr(args, flag) is not None:
            raise UserError(f"--{flag}: {run['run']} is a run of ours, whose record says it; leave the flag out",
                            code="E-FLAG-PAIR")
    grey = run["config"]["model"].get("channels") == 1
    files = None
    if args.corruptions is not None:
        files = open_files(args.corruptions, grey=grey)
        plan = searched(file_plan_named(args.plan, files), args.search)
    else:
        plan = plan_for(args.plan, args, run)

    # torch comes only once the words are known to be right
    from common.data.grey import in_grey
    from common.engine import Engine
    from common.evaluation.preflight import check_data
    from common.experiment import load_data
    from common.verdicts import judge, print_results
    # Folders such as cifar10-l2 are not data sets: a run of theirs says which one's protocol it follows.
    usual = run["config"].get("data", {}).get("protocol", run["dataset"])
    data = load_data((args.data or usual).replace("{}", usual), args.data_dir)
    if grey:
        data = in_grey(data)
    described = data.describe()
    check_data(described, run["data"], ALIKE)
    if standard.is_standard(args.plan):
        plan = plan_for(args.plan, args, run, len(data.test))
    path = judge(folder=found.folder, weights=args.weights / run["paper"] / run["dataset"] / run["run"], plan=plan,
                 test=data.test, data=described, engine=Engine.of_judge(args),
                 checkpoint=found.checkpoint, seed=run["seed"], spec=args.spec, batch_size=args.batch_size,
                 corrupted=files, allow=args.allow, receipt=args.receipt)
    print_results(path)


def evaluate_other(found: subject.Subject, args: argparse.Namespace) -> None:
    """A file of weights, or what a function returns: the record goes where --out says."""
    if args.data is None:
        raise UserError("--data: say on which data set (cifar10, ..., npz:FILE, folder:DIR); only a run of ours knows",
                        code="E-FLAG-MISSING")
    if args.spec is not None or args.checkpoint is not None:
        raise UserError("--spec and --checkpoint are of runs of ours; --part says which weights of a file",
                        code="E-FLAG-PAIR")
    if found.function and args.model is not None:
        raise UserError(f"{found.function} brings its network along: leave --model out", code="E-FLAG-PAIR")
    plan_for(args.plan, args, None) if args.corruptions is None else open_files(args.corruptions)
    model = {"builder": found.function} if found.function else subject.model_of_flags(args, 3, 10)

    from common.commands import judge_file, print_counts
    from common.engine import Engine
    from common.evaluation.preflight import Stored
    from common.evaluation.stored import beside
    from common.experiment import load_data
    data = load_data(args.data, args.data_dir)
    files = None if args.corruptions is None else open_files(args.corruptions, grey=data.image_shape[0] == 1)
    plan = plan_for(args.plan, args, None, len(data.test)) if files is None else searched(
        file_plan_named(args.plan, files), args.search)
    if not found.function:
        model = subject.model_of_flags(args, data.image_shape[0], data.classes)
    stated = None if args.clean is None else Stored("--clean", accuracy=args.clean / 100)
    results = judge_file(found.file, model=model, told="the flags", plan=plan, test=data.test, data=data.describe(),
                         engine=Engine.of_judge(args), seed=1 if args.seed is None else args.seed,
                         out=args.out, corrupted=files, part=args.part, allow=args.allow,
                         stored=stated or (beside(found.file) if found.file else None), batch_size=args.batch_size,
                         receipt=args.receipt)
    print_counts(results, args.out)


if __name__ == "__main__":
    exit_cleanly(main)
