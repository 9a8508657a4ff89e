"""What DyART's tables and its eval_aa.py measure, by name.  Imports no torch.

    paper-dyart[-N[-M]]           clean, PGD-40 and AutoAttack at eps 2, 4, 8, 12, 16 over 255, on the first N images,
                                  AutoAttack on the first M of them
    VERSION-NORM-EPS[-N][-train]  the official attacks alone.  VERSION: aa (standard), custom, plus; NORM: linf (EPS
                                  over 255) or l2 (EPS as it is), several EPS joined by _; on the first N images, of
                                  the training images where the name ends so: aa-linf-8, aa-linf-8_16, plus-l2-0.5-1000
    NAME-fast[-float32]           AutoAttack by another search, under its own name (common.evaluation.searches)
"""

import re
from collections.abc import Sequence
from decimal import Decimal

from common.errors import UserError
from common.evaluation.plans import Evaluator, Plan
from common.evaluation.searches import searchable
from dyart.settings import Settings

DEFAULT_PLAN = "paper-dyart"
PAPER_EPS = ("2", "4", "8", "12", "16")
LARGEST_L2 = 5.0          # AutoAttack leaves no network standing here; an eps counted in 255ths is larger
# Version of the released eval_aa.py -> start of a plan's name, evaluator's name and kind.
VERSIONS = {"standard": ("aa", "AutoAttack", "autoattack"),
            "custom": ("custom", "apgd-ce+apgd-t+fab-t", "custom-autoattack"),
            "plus": ("plus", "apgd-ce+apgd-dlr+fab+square+apgd-t+fab-t", "plus-autoattack")}
NORMS = {"linf": "Linf", "l2": "L2"}
_NUMBER = r"\d+(?:\.\d+)?"
_SINGLE = re.compile(rf"({'|'.join(word for word, _, _ in VERSIONS.values())})-({'|'.join(NORMS)})-"
                     rf"({_NUMBER}(?:_{_NUMBER})*)(?:-(\d+))?(-train)?")


@searchable
def plan_named(name: str, settings: Settings) -> Plan:
    """The plan that a name stands for (see above); UserError for a name that stands for none.

    PGD-40 takes the run's radius, step and norm.  The quirk one-restart-aa puts the released script's own choice of
    attacks in AutoAttack's place, under its own name; it does not touch the plans that name their version.
    """
    if match := re.fullmatch(r"paper-dyart(?:-(\d+)(?:-(\d+))?)?", name):
        n = int(match[1]) if match[1] else None
        return paper_plan(name, settings, n, int(match[2]) if match[2] else n)
    if match := _SINGLE.fullmatch(name):
        version = next(version for version, (word, _, _) in VERSIONS.items() if word == match[1])
        return attack_plan(version, match[2], match[3].split("_"), n=int(match[4]) if match[4] else None,
                           train=match[5] is not None)
    raise UserError(f"unknown plan {name!r}: give paper-dyart, paper-dyart-N (first N images), paper-dyart-N-M "
                    "(AutoAttack on the first M), or one attack such as aa-linf-8, aa-l2-0.5-1000, custom-linf-8, "
                    "plus-linf-8", code="E-PLAN")


def paper_plan(name: str, settings: Settings, n: int | None, n_autoattack: int | None) -> Plan:
    """The measurements of the paper's tables: clean on n images, AutoAttack on n_autoattack (None: all)."""
    version = "custom" if "one-restart-aa" in settings.quirks else "standard"
    _, called, kind = VERSIONS[version]
    return Plan(name, (
        Evaluator("clean", "clean", n=n),
        Evaluator("PGD-40", "pgd", "l2" if settings.attack == "l2-pgd" else "linf", settings.attack_eps,
                  settings.attack_step, steps=40, n=n, settings={"loss": "margin", "random_start": True}),
        *(Evaluator(f"{called} eps={eps}", kind, eps=radius("linf", eps), n=n_autoattack) for eps in PAPER_EPS)),
        chunk=chunk_for(n_autoattack))


def attack_plan(version: str, norm: str, eps: Sequence[str], *, n: int | None = None, train: bool = False) -> Plan:
    """One version of the official attacks at each eps, on the first n images (None: all).

    version: a key of VERSIONS; norm: linf or l2; eps: numbers as text, as the plan's name gets them (see `eps_text`).
    """
    word, called, kind = VERSIONS[version]
    name = "-".join([word, norm, "_".join(eps), *([str(n)] if n is not None else []), *(["train"] if train else [])])
    # Other names than the paper plan's, so that a table never finds one evaluator in two plans.
    suffix = " train" if train else ""
    return Plan(name, tuple(Evaluator(f"{called} {NORMS[norm]} eps={text}{suffix}", kind, norm, radius(norm, text), n=n)
                            for text in eps), chunk=chunk_for(n))


def chunk_for(n: int | None) -> int:
    """Images whose attacks draw their random numbers together."""
    return 100 if n is not None and n < 1000 else 500


def radius(norm: str, text: str) -> float:
    """An eps as plans write it, in [0,1] units; UserError for one that no image pair needs."""
    value = float(text)
    if value <= 0:
        raise UserError(f"eps {text}: it must be above 0", code="E-RADIUS")
    if norm == "linf" and value > 255:
        raise UserError(f"eps {text}: in L-inf it is counted in 255ths (8 means 8/255), and {text}/255 is larger than "
                        "the whole range of a pixel", code="E-RADIUS")
    if norm == "l2" and value > LARGEST_L2:
        raise UserError(f"eps {text}: in L2 it is taken as it is, for images in [0,1], and no network withstands "
                        f"{text}; give 0.5 or 128/255, say", code="E-RADIUS")
    return value / 255 if norm == "linf" else value


def eps_text(norm: str, value: float) -> str:
    """An eps in [0,1] units as plans write it: `radius` gives it back.  UserError for one that is not above 0."""
    # A quotient such as 8/255, times 255, may be off by the last bit.
    shown = round(value * 255, 9) if norm == "linf" else value
    if shown <= 0:
        raise UserError(f"eps {value:g}: it must be above 0", code="E-RADIUS")
    text = format(Decimal(repr(float(shown))), "f")            # 1e-05 as 0.00001
    return text.rstrip("0").rstrip(".") if "." in text else text
