"""One table of all papers' methods, from the records under results/: python -m scripts.leaderboard [--dataset D] [...]

Writes tables/leaderboard.{md,csv,tex} and -differences.csv, figures/leaderboard.png and -differences.png, and
leaderboard/index.html under --out.  Needs no torch and no weights.  A paper takes part if its package has runs.py with
TABLE; effort_of_run there gives its passes, QUIRKS in settings.py what changes its measuring.
"""

import importlib
from pathlib import Path

from common import leaderboard_differences, leaderboard_differences_plot, leaderboard_plot
from common.errors import UserError, exit_cleanly
from common.files import write_text
from common.flags import Parser, radius
from common.leaderboard import Paper, Threat, build
from common.leaderboard_page import page
from common.leaderboard_table import grids, rows
from common.records import read_runs
from common.render import comma_separated, latex, markdown
from common.runs import BUDGETS, measuring_quirks

TITLE = "Leaderboard of all papers' methods"
NO_METHODS = ("quick", "smoke")                # show that all parts work: no numbers to compare


def papers(root: Path) -> list[Paper]:
    """Every package at the repository root that plans runs."""
    names = sorted(path.parent.name for path in root.glob("*/runs.py") if path.parent.name != "common")
    modules = {name: importlib.import_module(f"{name}.runs") for name in names}
    return [Paper(name, module.TABLE, getattr(module, "effort_of_run", None), measuring_quirks(name))
            for name, module in modules.items()]


def parser() -> Parser:
    """The command's flags."""
    parse = Parser(prog="python -m scripts.leaderboard", description=__doc__.splitlines()[0].split(":")[0] + ".")
    parse.add_argument("--results", type=Path, default=Path("results"), help="folder of records")
    parse.add_argument("--out", type=Path, default=None, help="folder that gets tables, figure and page (that of "
                                                              "records, if not given)")
    parse.add_argument("--dataset", default=None, help="only this data set, as records name it: cifar10, ...")
    parse.add_argument("--budget", default=None, choices=BUDGETS, help="only this budget")
    parse.add_argument("--norm", default="linf", choices=("linf", "l2"), help="of AutoAttack")
    parse.add_argument("--eps", type=radius, default=8 / 255, help="of AutoAttack, images in [0,1]")
    return parse


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    args = parser().parse_args(argv)
    if not args.results.is_dir():
        raise UserError(f"{args.results} is no folder: name the one that holds the records with --results",
                        code="E-RESULTS")
    known = papers(Path("."))
    budgets = [args.budget] if args.budget else [name for name in BUDGETS if name not in NO_METHODS]
    found = [run for paper in known for run in read_runs(args.results, paper.name)
             if run.train and run.run["budget"] in budgets and args.dataset in (None, run.run["data"]["name"])]
    board = build(known, found, Threat(args.norm, args.eps))
    if not board.groups:
        raise UserError(f"no finished run under {args.results} has clean accuracy and AutoAttack at {board.threat} at "
                        f"budget {', '.join(budgets)}: train some with make leaderboard BUDGET=board", code="E-RESULTS")
    out = args.out or args.results
    # What is asked for in part must not take the place of the whole.
    stem = "-".join(["leaderboard", *filter(None, (args.dataset, args.budget)),
                     *([] if board.threat == Threat() else [f"{args.norm}-{255 * args.eps:g}"])])
    tables, figure = out / "tables" / f"{stem}.md", out / "figures" / f"{stem}.png"
    changes = leaderboard_differences.changes(board, known)
    shown = grids(board, TITLE, changes)
    write_text(tables, markdown(shown))
    write_text(tables.with_suffix(".csv"), comma_separated(rows(board)))
    write_text(tables.with_suffix(".tex"), latex(shown))
    leaderboard_plot.draw(board, figure)
    files = [tables, tables.with_suffix(".csv"), tables.with_suffix(".tex"), figure]
    if any(group.rows for group in changes.values()):
        beside = [path.with_stem(f"{stem}-differences") for path in (tables.with_suffix(".csv"), figure)]
        write_text(beside[0], comma_separated(leaderboard_differences.rows(changes)))
        leaderboard_differences_plot.draw(changes, leaderboard_plot.colours(board), beside[1])
        files += beside
    name = "index" if stem == "leaderboard" else stem.removeprefix("leaderboard-")
    where = out / "leaderboard" / f"{name}.html"
    write_text(where, page(board, TITLE, where, files, changes))
    print(markdown(shown) + f"\ntable  {tables} (and .csv, .tex)\n"
          + "".join(f"figure {path}\n" for path in files if path.suffix == ".png") + f"page   {where}")


if __name__ == "__main__":
    exit_cleanly(main)
