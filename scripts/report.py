"""Make every table and figure again from results/ alone: python -m scripts.report [--paper P] [--dataset D] [...]

A paper takes part if its package has runs.py (with TABLE); figures are drawn where it has figures.py (with draw).
Neither needs torch.
"""

import importlib
from pathlib import Path
from types import ModuleType

from common import reported
from common.against import grid
from common.errors import UserError, exit_cleanly
from common.files import write_text
from common.flags import Parser
from common.records import read_runs
from common.render import comma_separated, latex, markdown
from common.report import REPORTED_TITLE, build
from common.runs import BUDGETS, measuring_quirks

PARTS_WORK = ("quick", "smoke")                # budgets that show that all parts work: nothing to hold against a paper


def papers(root: Path) -> list[str]:
    """Packages at the repository root that plan runs."""
    return sorted(path.parent.name for path in root.glob("*/runs.py") if path.parent.name != "common")


def tables(paper: ModuleType, name: str, results: Path, out: Path, dataset: str | None, budget: str | None,
           ) -> list[tuple[Path, str]]:
    """Write OUT/tables/<paper>-<dataset>-<budget>.{md,csv,tex} for every data set and budget with a finished run, and
    OUT/tables/<paper>-against-reported.{md,csv,tex} for all of them, whichever are asked for, but PARTS_WORK.

    Runs that a user made with settings of their own are of no budget in BUDGETS and enter no table.
    Returns the Markdown files with the part of their text that is ours.
    """
    known = reported.read(results / "reported" / f"{paper.TABLE.reported_file or name}.csv")
    runs = [run for run in read_runs(results, name)
            if run.train and run.run["budget"] in (*BUDGETS, *([budget] if budget else ()))]
    written, against = [], []
    for data, cost in sorted({(run.run["dataset"], run.run["budget"]) for run in runs}):
        report = build(paper.TABLE, runs, known, data, cost, measuring_quirks(name))
        against += report.against if cost not in PARTS_WORK else ()
        if dataset not in (None, data) or budget not in (None, cost):
            continue
        stem, text = out / "tables" / f"{name}-{data}-{cost}", markdown(report.grids)
        write_text(stem.with_suffix(".md"), text)
        write_text(stem.with_suffix(".csv"), comma_separated(report.values))
        write_text(stem.with_suffix(".tex"), latex(report.grids))
        # What others report fills screens: on the terminal a line says where it stands.
        ours = [grid for grid in report.grids if grid.title != REPORTED_TITLE]
        more = f"{REPORTED_TITLE}: see {stem.with_suffix('.md')}\n" if len(ours) < len(report.grids) else ""
        written.append((stem.with_suffix(".md"), markdown(ours) + more))
    if against and written:
        stem = out / "tables" / f"{name}-against-reported"
        compared = grid(f"{paper.TABLE.title}: reported against ours", against)
        write_text(stem.with_suffix(".md"), markdown([compared]))
        write_text(stem.with_suffix(".csv"), comma_separated(against))
        write_text(stem.with_suffix(".tex"), latex([compared]))
        written.append((stem.with_suffix(".md"), f"{compared.title}: see {stem.with_suffix('.md')}\n"))
    return written


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m scripts.report", description=(__doc__ or "").split(":")[0])
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of records")
    parser.add_argument("--out", type=Path, help="folder that gets tables/ and figures/; by default that of records")
    parser.add_argument("--paper", help="only this one")
    parser.add_argument("--dataset", help="only this one")
    parser.add_argument("--budget", choices=BUDGETS, help="only this one")
    parser.add_argument("--show", action="store_true", help="print the tables as well")
    args = parser.parse_args(argv)
    known, out = papers(Path(".")), args.out or args.results
    if args.paper and args.paper not in known:
        raise UserError(f"no paper {args.paper!r} with tables here: there are {', '.join(known) or 'none'}",
                        code="E-PAPER")
    if not args.results.is_dir():
        raise UserError(f"{args.results} is no folder: name the one that holds the records with --results",
                        code="E-RESULTS")
    count = 0
    for name in [args.paper] if args.paper else known:
        written = tables(importlib.import_module(f"{name}.runs"), name, args.results, out, args.dataset, args.budget)
        drawn = []
        if Path(name, "figures.py").is_file():
            drawn = importlib.import_module(f"{name}.figures").draw(args.results, out, dataset=args.dataset,
                                                                    budget=args.budget)
        for path, text in written:
            print(text if args.show else f"table  {path} (and .csv, .tex)")
        if args.show:
            print(*(f"table  {path} (and .csv, .tex)" for path, _ in written), sep="\n")
        print("".join(f"figure {path}\n" for path in drawn), end="")
        count += len(written)
    if not count:
        print(f"no finished run under {args.results}" + (f"/{args.paper}" if args.paper else ""))
    return 0


if __name__ == "__main__":
    exit_cleanly(main)
