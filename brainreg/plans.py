"""What the paper measures of a network, and what is set beside it, by name.  Imports no torch.

    paper-brainreg[-N[-B]][-eE]     clean; Gaussian, Uniform, SaltPepper, TransferredFGSM at E strengths each (10) from
                                    0 to the task's largest; BoundaryAttack, 5 times on the first B images (1000; 0: not
                                    at all).  On the first N test images, whose number caps B
    corruptions-brainreg[-N]        clean, and our own corruptions in every severity
    small-eps[-N[-M]]               beyond the paper: clean, PGD-20 in small L-inf balls, on the first M (N if it is not
                                    given; 0: not at all) AutoAttack in the smaller ones of them
    small-eps...-fast[-float32]     AutoAttack by another search, under its own name (common.evaluation.searches)

TransferredFGSM takes the gradients of an unregularised run of the same task, which a run's record names (`needs`, from
--transfer_id), and is left out where none is named.  The released code draws the boundary attack's images at random;
ours are the first.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from statistics import fmean
from typing import Any

from brainreg.settings import Settings
from common.errors import UserError
from common.evaluation.corruptions import own_plan
from common.evaluation.plans import Evaluator, Plan
from common.evaluation.searches import searchable

# Attack -> kind of evaluator, and the largest eps of each task; other tasks have MNIST's.
ATTACKS = {"Gaussian": "gaussian-noise", "Uniform": "uniform-range-noise", "SaltPepper": "salt-pepper-noise",
           "TransferredFGSM": "transferred-fgsm"}
GREY_TOPS = {"Gaussian": 0.5, "Uniform": 0.5, "SaltPepper": 0.3, "TransferredFGSM": 0.5}
TOPS = {"cifar10": dict.fromkeys(ATTACKS, 0.1) | {"TransferredFGSM": 0.02},
        "cifar100": dict.fromkeys(ATTACKS, 0.1) | {"TransferredFGSM": 0.005}}
BOUNDARY = "BoundaryAttack"
REPEATS, BOUNDARY_IMAGES, BOUNDARY_STEPS = 5, 1000, 50
STRENGTHS = 10
# As names have them -> eps; AutoAttack takes those up to its own.  A network that was not trained adversarially has
# nothing left at the usual 8/255, and on MNIST little at 0.3.
SMALL = {"colour": {"0.5 of 255": 0.5 / 255, "1 of 255": 1 / 255, "2 of 255": 2 / 255, "4 of 255": 4 / 255},
         "grey": {"0.02": 0.02, "0.05": 0.05, "0.1": 0.1, "0.2": 0.2}}
AUTOATTACK = {"colour": ("1 of 255",), "grey": ("0.05", "0.1")}
PGD_STEPS = 20
_PAPER = re.compile(r"paper-brainreg(?:-(\d+)(?:-(\d+))?)?(?:-e(\d+))?")
_CORRUPTIONS = re.compile(r"corruptions-brainreg(?:-(\d+))?")
_SMALL = re.compile(r"small-eps(?:-(\d+)(?:-(\d+))?)?")


@searchable
def plan_named(name: str, settings: Settings, *, low: float = 0.0, high: float = 1.0, n_test: int | None = None,
               source: str | None = None) -> Plan:
    """The plan that a name stands for (see above); UserError for a name that stands for none.

    low, high: the least and the largest value of the test images, in [0,1]; n_test: how many there are.  source: the
    sha256 of the weights whose gradients TransferredFGSM takes.
    """
    if match := _PAPER.fullmatch(name):
        n, boundary, strengths = (int(word) if word else None for word in match.groups())
        if strengths == 1:
            raise UserError(f"plan {name!r}: 1 strength is eps 0 alone; give -e2 or more", code="E-PLAN")
        if strengths is not None:
            settings = replace(settings, num_epsilons=strengths)
        if boundary is None:
            boundary = min([BOUNDARY_IMAGES, *(count for count in (n, n_test) if count)])
        return paper_plan(name, settings, n, boundary, low, high, source)
    if match := _CORRUPTIONS.fullmatch(name):
        own = own_plan(settings.channels, n=int(match[1]) if match[1] else None)
        clean = Evaluator("clean", "clean", n=own.evaluators[0].n)
        return replace(own, name=name, evaluators=(clean, *own.evaluators))
    if match := _SMALL.fullmatch(name):
        n, attacked = (int(word) if word else None for word in match.groups())
        return small_plan(name, settings, n, n if attacked is None else attacked)
    raise UserError(f"unknown plan {name!r}: give paper-brainreg, paper-brainreg-N (first N images), "
                    "paper-brainreg-N-B (boundary attack on the first B), any of them with -eE behind (E strengths), "
                    "corruptions-brainreg[-N], or small-eps[-N[-M]] (AutoAttack on the first M)", code="E-PLAN")


def paper_plan(name: str, settings: Settings, n: int | None, boundary: int, low: float, high: float,
               source: str | None) -> Plan:
    """The measurements of the paper's figures, in the released order, TransferredFGSM before the last."""
    own = {"gaussian-noise": {"low": low, "high": high}, "transferred-fgsm": {"source": source}}
    evaluators = [Evaluator("clean", "clean", n=n)]
    for attack, kind in ATTACKS.items():
        if kind == "transferred-fgsm" and source is None:
            continue
        evaluators += [Evaluator(called, kind, eps=eps, n=n, settings=own.get(kind, own["gaussian-noise"]))
                       for called, eps in strengths(attack, settings).items()]
    if boundary:
        search = {"against": "prediction", "iterations": BOUNDARY_STEPS, "low": low, "high": high,
                  "first_channel": "first-channel" in settings.quirks}
        evaluators += [Evaluator(called, "boundary", "l2", eps=0.0, n=boundary, settings=search)
                       for called in boundary_names()]
    return Plan(name, tuple(evaluators), chunk=chunk_for(n))


def strengths(attack: str, settings: Settings) -> dict[str, float]:
    """Name of the evaluator -> eps, settings.num_epsilons of them from 0 to the task's largest; attack: of ATTACKS.

    "Gaussian 0", "Gaussian 0.0556", ...: three figures, or as many as tell them apart.
    """
    top, count = TOPS.get(settings.task, GREY_TOPS)[attack], settings.num_epsilons
    sizes = [top * (step / (count - 1)) for step in range(count)]
    figures = next(figures for figures in range(3, 18) if len({f"{eps:.{figures}g}" for eps in sizes}) == count)
    return {f"{attack} {eps:.{figures}g}": eps for eps in sizes}


def boundary_names() -> tuple[str, ...]:
    """Of the evaluators of the boundary attack, one per repeat."""
    return tuple(f"{BOUNDARY} {repeat}" for repeat in range(1, REPEATS + 1))


def small_plan(name: str, settings: Settings, n: int | None, attacked: int | None) -> Plan:
    """PGD-20 (steps of an eighth of eps) and AutoAttack in small L-inf balls; attacked: AutoAttack's images."""
    sort = "colour" if settings.colour_task else "grey"
    evaluators = [Evaluator("clean", "clean", n=n)]
    evaluators += [Evaluator(f"PGD-{PGD_STEPS} {size}", "pgd", eps=eps, step_size=2.5 * eps / PGD_STEPS,
                             steps=PGD_STEPS, n=n) for size, eps in SMALL[sort].items()]
    if attacked != 0:
        evaluators += [Evaluator(f"AutoAttack {size}", "autoattack", eps=SMALL[sort][size], n=attacked)
                       for size in AUTOATTACK[sort]]
    # By n alone: seeds with and without AutoAttack then have the same starts of PGD.
    return Plan(name, tuple(evaluators), chunk=chunk_for(n))


def chunk_for(n: int | None) -> int:
    """Images whose attacks draw their random numbers together, and are searched together."""
    return 100 if n is not None and n < 1000 else 500


# -- from records ----------------------------------------------------------------------------------------------------

def settings_of_run(run: Mapping[str, Any]) -> Settings:
    """The settings of a run, given its run.json."""
    known = {key: value for key, value in run["config"].items() if key in Settings.__dataclass_fields__}
    return Settings(**known | {"quirks": tuple(run["quirks"])})


def source_of_run(run: Mapping[str, Any]) -> str | None:
    """The sha256 of the weights whose gradients are shown to a run, given its run.json."""
    return next(iter(run["needs"].values()), None)


def plan_of_run(name: str, run: Mapping[str, Any]) -> Plan:
    """The plan `name` for a run, given its run.json."""
    config = run["config"]
    return plan_named(name, settings_of_run(run), low=config["low"], high=config["high"],
                      n_test=run["data"].get("n_test"), source=source_of_run(run))


def curve(results: Iterable[Mapping[str, Any]], attack: str) -> list[tuple[float, int, int]]:
    """(eps, images classified correctly, images) of an attack of ATTACKS, by eps, from the results of a record."""
    return sorted((result["eps"], result["robust"], result["n"]) for result in results
                  if result["kind"] == ATTACKS[attack])


def boundary_medians(results: Iterable[Mapping[str, Any]]) -> tuple[float | None, list[float]]:
    """The paper's number of the boundary attack, the mean of the medians over the images of each repeat, and these.

    A repeat in which every search failed has no median; None where none has.
    """
    found = [result["values"]["mean_square"]["median"] for result in results
             if result["kind"] == "boundary" and result["values"].get("mean_square")]
    return (fmean(found) if found else None), found
