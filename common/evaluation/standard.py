"""Plans that belong to no paper and fit every network.  No torch here.

    quick[-N]            clean and PGD-20 on the first N test images (1,000)
    standard[-N[-M]]     clean on the first N, AutoAttack on the first M (all; M is N where only N is given)
    full[-N[-M]]         clean, FGSM, PGD-10, PGD-20, PGD-50 with 5 restarts, CW-20 and PGD-20 on the DLR loss on the
                         first N, AutoAttack on the first M
    NAME-fast[-float32]  AutoAttack by another search, under its own name (common.evaluation.searches)

in L-inf 8/255, L2 128/255 or L1 12, or any radius that is given; steps of a quarter of it.
"""

import re

from common.errors import UserError
from common.evaluation.plans import Evaluator, Plan
from common.evaluation.searches import searchable, split_name

RADII = {"linf": 8 / 255, "l2": 128 / 255, "l1": 12.0}
QUICK = 1000
NAMES = ("quick", "standard", "full")
_NAME = re.compile(rf"({'|'.join(NAMES)})(?:-(\d+))?(?:-(\d+))?")


def is_standard(name: str) -> bool:
    """Whether `plan_named` knows a name."""
    return _NAME.fullmatch(split_name(name)[0]) is not None


@searchable
def plan_named(name: str, *, norm: str = "linf", eps: float | None = None, n_test: int | None = None) -> Plan:
    """The plan that a name stands for (see above); UserError for a name that stands for none.

    norm: linf, l2, l1; eps: in units of [0,1] images.  n_test: how many images there are; a default of more is cut.
    """
    match = _NAME.fullmatch(name)
    if match is None or (match[1] == "quick" and match[3]):
        raise UserError(f"unknown plan {name!r}: give quick[-N], standard[-N[-M]] (AutoAttack on the first M), "
                        "full[-N[-M]], or paper-PAPER[-N[-M]]", code="E-PLAN")
    eps = RADII[norm] if eps is None else eps
    if eps == 0:
        raise UserError("--eps 0 attacks nothing: give a radius above 0", code="E-RADIUS")
    n = int(match[2]) if match[2] else None
    attacked = int(match[3]) if match[3] else n
    if match[1] == "quick" and n is None:
        n = QUICK if n_test is None else min(QUICK, n_test)
    threat = {"norm": norm, "eps": eps, "n": n}
    iterated = {**threat, "step_size": eps / 4}
    clean = Evaluator("clean", "clean", n=n)
    autoattack = Evaluator("AutoAttack", "autoattack", norm, eps, n=attacked)
    evaluators = {
        "quick": (clean, Evaluator("PGD-20", "pgd", steps=20, **iterated)),
        "standard": (clean, autoattack),
        "full": (clean, Evaluator("FGSM", "fgsm", **threat),
                 *(Evaluator(f"PGD-{steps}", "pgd", steps=steps, **iterated) for steps in (10, 20)),
                 Evaluator("PGD-50-5", "pgd", steps=50, restarts=5, **iterated),
                 Evaluator("CW-20", "cw", steps=20, **iterated),
                 Evaluator("PGD-20 DLR", "pgd", steps=20, settings={"loss": "dlr"}, **iterated), autoattack),
    }[match[1]]
    return Plan(name, evaluators, chunk=100 if attacked is not None and attacked < 1000 else 500)
