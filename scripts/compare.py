"""Compare two runs on the same images, or two methods over several seeds: python scripts/compare.py A B

A and B are folders results/PAPER/DATA/RUN or files eval-PLAN.json in them; several seeds of one method:
python scripts/compare.py A_s1 A_s2 A_s3 --against B_s1 B_s2 B_s3
Records that do not measure the same are refused.  Needs no torch and no weights.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common.compare import check_side, compare, read_judged
from common.compare_words import caution, described, sentence, table
from common.errors import UserError, exit_cleanly
from common.files import write_text
from common.flags import Parser
from common.render import markdown
from common.runs import measuring_quirks, of_paper


def parser() -> Parser:
    """The command's flags."""
    parse = Parser(prog="python scripts/compare.py", description=__doc__.splitlines()[0].split(":")[0] + ".")
    parse.add_argument("runs", nargs="+", type=Path, help="A and B; with --against: the runs of A, one per seed")
    parse.add_argument("--against", nargs="+", type=Path, default=None, metavar="RUN", help="the runs of B")
    parse.add_argument("--common", action="store_true",
                       help="where the two judged different numbers of images: compare the first that both judged")
    parse.add_argument("--out", type=Path, default=None, metavar="FILE.md", help="write the table there too")
    return parse


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    args = parser().parse_args(argv)
    if args.against is None and len(args.runs) != 2:
        raise UserError("give two runs, A and B, or the runs of A, then --against and the runs of B",
                        code="E-FLAG-MISSING")
    chosen = (args.runs, args.against) if args.against else (args.runs[:1], args.runs[1:])
    sides = [[read_judged(path) for path in paths] for paths in chosen]
    for side in sides:
        shown = of_paper(side[0].run.run["paper"], "runs")
        check_side(side, shown.TABLE.per_seed if shown else ())
    measuring = {paper: measuring_quirks(paper) for paper in {one.run.run["paper"] for side in sides for one in side}}
    found, left = compare(*sides, common=args.common, measuring=measuring)
    heads = [described(letter, side) for letter, side in zip("AB", sides, strict=True)]
    said = [caution(found), f"Only one of the two has: {', '.join(left)}." if left else ""]
    text = "\n".join([markdown([table(found)]), *(f"- {sentence(one)}" for one in found),
                      *(f"\n{line}" for line in said if line)])
    print("\n".join([*heads, "", text]))
    if args.out:
        write_text(args.out, "\n".join([*(f"- {head}" for head in heads), "", text, ""]))


if __name__ == "__main__":
    exit_cleanly(main)
