"""One page on whether a checkpoint's robust accuracy is real: python scripts/masking.py CHECKPOINT --out FOLDER

CHECKPOINT as for scripts/evaluate.py: a run of ours, a file of weights with --model and --data, or MODULE:FUNCTION.
Writes NAME-masking.md, .json and .png: loss and accuracy against eps and steps, noise against gradient, FGSM against
PGD, Square alone, margins, a loss surface; what would look suspicious, and whether it does.  Minutes on a CPU.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import masking_plot, masking_words
from common.environment import portable
from common.errors import UserError, exit_cleanly
from common.evaluation import standard, subject
from common.evaluation.plans import check_size
from common.files import write_json, write_text
from common.flags import Parser, count, number


def parser() -> Parser:
    """The command's flags."""
    parse = Parser(prog="python scripts/masking.py", description=__doc__.splitlines()[0].split(":")[0] + ".")
    subject.add_subject_flags(parse)
    parse.add_argument("--out", type=Path, required=True, help="the folder for the page")
    parse.add_argument("--norm", choices=tuple(standard.RADII), default="linf", help="of the attacks")
    parse.add_argument("--eps", type=number, default=None, help="radius (default: the norm's usual one)")
    parse.add_argument("--n", type=count, default=100, help="the first N test images")
    parse.add_argument("--queries", type=count, default=1000, help="of Square, per image")
    parse.add_argument("--grid", type=count, default=11, help="points along each axis of the loss surface")
    parse.add_argument("--seed", type=int, default=1, help="of starts, noise, Square and random directions")
    subject.add_network_flags(parse)
    return parse


def main() -> None:
    """Run the command."""
    args = parser().parse_args()
    eps = standard.RADII[args.norm] if args.eps is None else args.eps
    check_size(eps, args.norm, "--eps")
    if eps == 0:
        raise UserError("--eps 0 attacks nothing: give a radius above 0", code="E-RADIUS")

    from common.evaluation.masking import measure
    from common.evaluation.opened import open_subject
    opened = open_subject(args)
    n = min(args.n, len(opened.test))
    notes = [opened.said, *opened.findings(standard.plan_named(f"quick-{n}", norm=args.norm, eps=eps))]
    found = measure(opened.network, opened.test, norm=args.norm, eps=eps, n=n, queries=args.queries, grid=args.grid,
                    seed=args.seed, device=opened.engine.device)
    paths = [args.out / f"{opened.name}-masking.{suffix}" for suffix in ("json", "png", "md")]
    signs = masking_words.signs(found)
    write_json(paths[0], {"of": opened.said, "found": found, "signs": [sign._asdict() for sign in signs]})
    masking_plot.draw(found, paths[1])
    write_text(paths[2], masking_words.page(f"Masked gradients? {opened.name}", found, figure=paths[1].name,
                                            notes=notes))
    print(masking_words.verdict(found))
    for sign in signs:
        print(f"  {'YES' if sign.there else 'no ':<3}  {sign.what}: {sign.said}")
    print("\n".join(portable(str(path)) for path in paths))


if __name__ == "__main__":
    exit_cleanly(main)
