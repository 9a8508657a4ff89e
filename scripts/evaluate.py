"""Evaluate a finished run, by a plan of its paper.

python -m scripts.evaluate results/adarat/cifar10/RUN --plan PLAN
The plan's names are the paper's (adarat: paper-adarat, paper-adarat-N, paper-adarat-N-M), and the leaderboard's
board-N-M.  Needs the run's weights, and of a plan with transferred attacks those of the run that they are taken from.
python -m scripts.evaluate results/rpat/cifar10/RUN --plan cifar-10-c-N --corruptions CIFAR-10-C
measures a run of any paper on the first N images of the files of CIFAR-10-C or CIFAR-100-C; a network of one channel by
the plan cifar-10-c-grey[-N], on their images in grey.
"""

import importlib
from pathlib import Path

from common import board
from common.environment import ROOT
from common.errors import exit_cleanly
from common.evaluation import codes
from common.evaluation.corruptions import file_plan_named, open_files
from common.evaluation.searches import searched
from common.flags import Parser, add_search_flag, count
from common.records import read_record

ALIKE = "the data set that the run was trained on"


def parser() -> Parser:
    """The command's flags."""
    parse = Parser(prog="python -m scripts.evaluate", description=__doc__.splitlines()[0])
    parse.add_argument("folder", type=Path, help="results/<paper>/<dataset>/<run>")
    parse.add_argument("--plan", required=True, help="what to measure")
    add_search_flag(parse)
    parse.add_argument("--checkpoint", default="last", help="last, best, average, ...")
    parse.add_argument("--data", default=None, help=f"as in training (default: {ALIKE})")
    parse.add_argument("--data_dir", "--data-dir", default=None, help="where data sets lie")
    parse.add_argument("--corruptions", type=Path, default=None, help="the folder CIFAR-10-C or CIFAR-100-C, for the "
                       "plans that are called after it")
    parse.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    parse.add_argument("--batch_size", type=count, default=None, help="images per pass; changes no verdict")
    parse.add_argument("--allow", nargs="+", default=(), metavar="CODE", help="what the preflight refuses and is meant "
                       f"so: codes of {codes.PAGE}")
    parse.add_argument("--weights", type=Path, default=ROOT / "weights", help="folder of the weights")
    parse.add_argument("--spec", default=None, help="hash that make compares to see whether this is up to date")
    return parse


def main() -> None:
    """Run the command."""
    args = parser().parse_args()
    allow = codes.checked(args.allow)
    run = read_record(args.folder / "run.json", "run")
    grey = run["config"]["model"].get("channels") == 1
    files = None
    if args.corruptions is not None:
        files = open_files(args.corruptions, grey=grey)
        plan = file_plan_named(args.plan, files)
    else:
        # The leaderboard's plan is one for all papers; the others are the paper's own.
        plan = board.plan_named(args.plan) or importlib.import_module(
            f"{run['paper']}.runs").plan_of_run(args.plan, run)
    plan = searched(plan, args.search)

    # torch comes only once the words are known to be right
    from common.data.grey import in_grey
    from common.engine import Engine
    from common.evaluation.preflight import check_data
    from common.experiment import judge, load_data, print_results
    # Folders such as cifar10-l2 are not data sets: a run of theirs says which one's protocol it follows.
    usual = run["config"].get("data", {}).get("protocol", run["dataset"])
    data = load_data((args.data or usual).replace("{}", usual), args.data_dir)
    if grey:
        data = in_grey(data)
    found = data.describe()
    check_data(found, run["data"], ALIKE)
    path = judge(folder=args.folder, weights=args.weights / run["paper"] / run["dataset"] / run["run"], plan=plan,
                 test=data.test, data=found, engine=Engine.choose(args.device, "fp32"), checkpoint=args.checkpoint,
                 seed=run["seed"], spec=args.spec, batch_size=args.batch_size, corrupted=files,
                 allow=allow)
    print_results(path)


if __name__ == "__main__":
    exit_cleanly(main)
