"""What measuring quirks do to one checkpoint's numbers: python scripts/quirks.py CHECKPOINT --out FOLDER

Random crops of test images, images in float16, a 10-step "PGD-20", AutoAttack of three attacks, of 10 steps, in L2:
each beside the right measurement, on the same images.  Writes quirks.md, .csv and .tex.  CHECKPOINT as for
scripts/evaluate.py.  An interrupted one goes on where it was.
"""

import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common.environment import portable
from common.errors import UserError, exit_cleanly
from common.evaluation import quirks, subject
from common.files import write_text
from common.flags import Parser, count, radius
from common.locks import locked
from common.render import comma_separated, latex, markdown


def parser() -> Parser:
    """The command's flags."""
    parse = Parser(prog="python scripts/quirks.py", description=__doc__.splitlines()[0].split(":")[0] + ".")
    subject.add_subject_flags(parse)
    parse.add_argument("--out", type=Path, required=True, help="the folder for the table")
    parse.add_argument("--eps", type=radius, default=8 / 255, help="radius in L-inf")
    parse.add_argument("--n", type=count, default=500, help="the first N test images, for clean accuracy and PGD")
    parse.add_argument("--attacked", type=count, default=100, help="the first N, for AutoAttack and its versions")
    parse.add_argument("--seed", type=int, default=1, help="of starts and crops")
    subject.add_network_flags(parse)
    return parse


def main() -> None:
    """Run the command."""
    args = parser().parse_args()
    if args.eps == 0:
        raise UserError("--eps 0 attacks nothing: give a radius above 0")

    from common.evaluation import evaluate, forget
    from common.evaluation.opened import open_subject
    opened = open_subject(args)
    n = min(args.n, len(opened.test))
    planned = quirks.plans(args.eps, n, min(args.attacked, n))
    flags, work = {}, args.out / "quirks-work"
    with locked(args.out / ".quirks.lock", str(args.out)):
        for plan in planned:
            results = evaluate(opened.network, opened.test, plan, seed=args.seed, device=opened.engine.device,
                               work=work)
            flags |= {(plan.name, result.name): result.flags for result in results}
        rows = quirks.compare(flags, f"{255 * args.eps:g}")
        grid = quirks.grid(f"What measuring quirks do to {opened.name}", rows, (
            f"One checkpoint: {opened.said}. L-inf radius {255 * args.eps:g}/255, seed {args.seed}.",
            "Every pair is on the same images; the interval is Newcombe's for paired shares. Above 0 the quirk "
            "flatters.",
            f"python scripts/quirks.py {portable(args.subject)} --n {n} --attacked {min(args.attacked, n)}"))
        write_text(args.out / "quirks.md", markdown([grid]))
        write_text(args.out / "quirks.csv", comma_separated(rows))
        write_text(args.out / "quirks.tex", latex([grid]))
        for plan in planned:
            forget(work, plan)
        shutil.rmtree(work, ignore_errors=True)
    print(markdown([grid]))


if __name__ == "__main__":
    exit_cleanly(main)
