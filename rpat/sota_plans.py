"""What part 2's tables and its final test measure, by name.  Imports no torch.

    paper-sotas[-N[-M]][-QUIRK...][-CHECKPOINT]     clean, PGD-20 and AutoAttack in the run's norm and radius, on the
                                                    first N images, AutoAttack on the first M of them
    QUIRK        pgd20-is-pgd10: PGD takes --attack-iters steps in L-inf, whatever its name (`released PGD-20`)
                 aa-l2-fixed: AutoAttack in L2, whatever the norm (`AutoAttack L2`)
         half-test-inputs: on images rounded to float16 (`clean half`, ...)
    CHECKPOINT   another name for the same, in the evaluators' names too (`clean last`, ...), since a run has several
                 weights.  None: the average at its best epoch, in a run that chooses none at its last one; last: at
                 the last one, where a best one is chosen; online, online-last: likewise of the model; eN: the average
                 at the end of 0-based epoch N
    A name that ends in -fast or -fast-float32 has AutoAttack by another search (common.evaluation.searches).
"""

import re

from common.errors import UserError
from common.evaluation.plans import Evaluator, Plan
from common.evaluation.searches import searchable, split_name, suffix
from rpat.plans import chunk_for
from rpat.sota_settings import SotaSettings

DEFAULT_PLAN = "paper-sotas"
PLAN_QUIRKS = ("pgd20-is-pgd10", "aa-l2-fixed", "half-test-inputs")
_PAPER = re.compile(rf"paper-sotas(?:-(\d+)(?:-(\d+))?)?((?:-(?:{'|'.join(PLAN_QUIRKS)}))*)"
                    r"(-last|-online|-online-last|-e\d+)?")


@searchable
def plan_named(name: str, settings: SotaSettings) -> Plan:
    """The plan that a name stands for (see above); UserError for a name that stands for none."""
    match = _PAPER.fullmatch(name)
    if match is None:
        raise UserError(f"unknown plan {name!r}: give paper-sotas, paper-sotas-N (first N images) or paper-sotas-N-M "
                        f"(AutoAttack on the first M), then perhaps {', '.join(f'-{word}' for word in PLAN_QUIRKS)}",
                        code="E-PLAN")
    n = int(match[1]) if match[1] else None
    return paper_plan(name, settings, n, int(match[2]) if match[2] else n,
                      quirks=tuple(quirk for quirk in PLAN_QUIRKS if f"-{quirk}" in match[3]),
                      suffix=(match[4] or "").replace("-", " "))


def full_name(name: str, quirks: tuple[str, ...], checkpoint: str, *, chosen: bool) -> str:
    """The plan's name for these weights, with those quirks of the run that change a plan, unless it has them.

    checkpoint: average, best, last, best-online or an epoch; chosen: whether the run has a best one.
    """
    plain, search = split_name(name)
    known = _PAPER.fullmatch(plain)
    if known is None or known[4]:
        return name
    more = "".join(f"-{quirk}" for quirk in PLAN_QUIRKS if quirk in quirks and f"-{quirk}" not in known[3])
    last = "-last" if chosen else ""
    ends = {"best": "", "average": last, "best-online": "-online", "last": f"-online{last}"}
    return plain + more + ends.get(checkpoint, f"-e{checkpoint}") + suffix(search)


def paper_plan(name: str, settings: SotaSettings, n: int | None, n_autoattack: int | None, *,
               quirks: tuple[str, ...] = (), suffix: str = "") -> Plan:
    """Clean and PGD-20 on n images, AutoAttack on n_autoattack (None: all); PGD-20 takes the run's step."""
    released, fixed, half = (quirk in quirks for quirk in PLAN_QUIRKS)
    suffix = " half" * half + suffix
    pgd = Evaluator(f"{'released ' if released else ''}PGD-20{suffix}", "pgd", "linf" if released else settings.norm,
                    settings.eps, settings.step_size, steps=settings.attack_iters if released else 20, n=n)
    attack = Evaluator(f"AutoAttack{' L2' if fixed else ''}{suffix}", "autoattack", "l2" if fixed else settings.norm,
                       settings.eps, n=n_autoattack)
    return Plan(name, (Evaluator(f"clean{suffix}", "clean", n=n), pgd, attack), chunk=chunk_for(n_autoattack),
                half_inputs=half)
