"""What the measuring quirks of released code do to a number: one checkpoint, measured as it should be and as coded.

Each line is a pair of evaluators on the same images.  No torch here.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from common.evaluation.plans import Evaluator, Plan
from common.render import Grid
from common.stats import newcombe, paired

PLAIN, CROPPED, HALF = "quirks", "quirks-test-crop", "quirks-half"


class Line(NamedTuple):
    """quirk: what the code does; where: whose quirk, by its switch; right and wrong: (plan, evaluator)."""

    quirk: str
    where: str
    right: tuple[str, str]
    wrong: tuple[str, str]


def lines(eps_text: str) -> tuple[Line, ...]:
    """The quirks, for L-inf radius eps_text over 255."""
    crop = "random crops (padding 4) of the test images"
    return (
        Line(f"{crop}: clean", "AdaRAT, test-crop", (PLAIN, "clean"), (CROPPED, "clean")),
        Line(f"{crop}: PGD-20", "AdaRAT, test-crop", (PLAIN, "PGD-20"), (CROPPED, "PGD-20")),
        Line("test images rounded to float16: clean", "RPAT, half-test-inputs", (PLAIN, "clean"), (HALF, "clean")),
        Line("a 10-step PGD called PGD-20", "RPAT, pgd20-is-pgd10", (PLAIN, "PGD-20"), (PLAIN, "PGD-10")),
        Line("AutoAttack without Square (three attacks)", "DyART, one-restart-aa", (PLAIN, "AutoAttack"),
             (PLAIN, "apgd-ce+apgd-t+fab-t")),
        Line("torchattacks' AutoAttack, 10 iterations", "AdaRAT, aa-ten-steps", (PLAIN, "AutoAttack"),
             (PLAIN, "torchattacks-AA 10 steps")),
        Line(f"AutoAttack in L2 with the L-inf radius {eps_text}/255", "RPAT, aa-l2-fixed", (PLAIN, "AutoAttack"),
             (PLAIN, "AutoAttack L2")),
    )


def plans(eps: float, n: int, attacked: int) -> tuple[Plan, ...]:
    """What is measured: clean and PGD on the first n images, AutoAttack in its versions on the first `attacked`."""
    clean = Evaluator("clean", "clean", n=n)
    pgd = [Evaluator(f"PGD-{steps}", "pgd", eps=eps, step_size=eps / 4, steps=steps, n=n) for steps in (10, 20)]
    attacks = (Evaluator("AutoAttack", "autoattack", eps=eps, n=attacked),
               Evaluator("apgd-ce+apgd-t+fab-t", "custom-autoattack", eps=eps, n=attacked),
               Evaluator("torchattacks-AA 10 steps", "torchattacks-autoattack", eps=eps, n=attacked),
               Evaluator("AutoAttack L2", "autoattack", "l2", eps, n=attacked))
    return (Plan(PLAIN, (clean, *pgd, *attacks), chunk=100), Plan(CROPPED, (clean, pgd[1]), chunk=100, test_crop=True),
            Plan(HALF, (clean,), chunk=100, half_inputs=True))


def compare(flags: Mapping[tuple[str, str], np.ndarray], eps_text: str) -> list[dict[str, Any]]:
    """One row per quirk: counts, difference (quirk minus right, points) and its paired 95% interval.

    flags: (plan, evaluator) -> bool (n,).
    """
    rows = []
    for line in lines(eps_text):
        right, wrong = flags[line.right], flags[line.wrong]
        table = paired(wrong, right)
        low, high = newcombe(table)
        rows.append({"quirk": line.quirk, "of": line.where, "n": len(right), "right": int(right.sum()),
                     "quirk_count": int(wrong.sum()), "difference": 100 * table.difference, "low": 100 * low,
                     "high": 100 * high, "moved": int((right != wrong).sum())})
    return rows


def grid(title: str, rows: list[dict[str, Any]], notes: tuple[str, ...]) -> Grid:
    """The table."""
    def shown(row: dict[str, Any]) -> tuple[str, ...]:
        return (row["quirk"], row["of"], str(row["n"]), f"{100 * row['right'] / row['n']:.1f}",
                f"{100 * row['quirk_count'] / row['n']:.1f}",
                f"{row['difference']:+.1f} [{row['low']:+.1f}, {row['high']:+.1f}]", str(row["moved"]))
    return Grid(title, ("measuring quirk", "whose, switch", "n", "as it should be, %", "with the quirk, %",
                        "difference, points [95%]", "images moved"), tuple(map(shown, rows)), notes)
