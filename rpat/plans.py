"""What RPAT's tables and its eval.py measure, by name.  Imports no torch.

    paper-rpat[-N[-M]][-last]     clean, PGD-10, PGD-20 and AutoAttack in the run's norm and eps, on the first N images,
                                  AutoAttack on the first M of them; `-last` is another name for the same (evaluators
                                  `clean last`, ...), for the last weights beside the best ones
    perception-rpat[-N]           how far the logits move under PGD-20 and under uniform noise of 8/255
    own-corruptions[-N]           our own corruptions, every severity, on the first N images
    MODE[-fgsm][-NORM-EPS[-ALPHA-STEPS]][-wW][-nN]
                                  a mode of eval.py, on the first N images: test-adv-acc, test-auto-attack-l2-128,
                                  test-adv-acc-weak-w4, test-cw-attack-n50, ...  EPS and ALPHA over 255 in every norm;
                                  where they are left out the run's own
    NAME-fast[-float32]           AutoAttack by another search, under its own name (common.evaluation.searches)
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from common.errors import UserError
from common.evaluation.corruptions import own_plan
from common.evaluation.plans import Evaluator, Plan
from common.evaluation.searches import searchable
from rpat.settings import LARGEST, NORMS, THREATS, Settings

DEFAULT_PLAN = "paper-rpat"
NOISE = 8 / 255                        # of test_random, whatever --epsilon
SEARCHED = 100                         # images of the searches by foolbox
FLAGS = {norm: flag for flag, norm in NORMS.items()}
# Mode -> does it have a threat of its own, a step and a number of steps, FGSM, and is it on a few images only?
MODES = {"test_clean_acc": "", "test_adv_acc": "threat steps fgsm", "test_adv_acc_weak": "threat steps fgsm",
         "test_adv_acc_MSE": "threat steps fgsm", "test_random": "", "test_random_MSE": "",
         "test_auto_attack": "threat", "test_cw_attack": "threat steps few", "test_boundary_attack": "threat few",
         "test_hopskipjump_attack": "threat few"}
_NUMBER = r"\d+(?:\.\d+)?"
_PAPER = re.compile(r"paper-rpat(?:-(\d+)(?:-(\d+))?)?(-last)?")
_MODE = re.compile(rf"({'|'.join(mode.lower().replace('_', '-') for mode in MODES)})(-fgsm)?"
                   rf"(?:-(linf|l2|l1)-({_NUMBER})(?:-({_NUMBER})-(\d+))?)?(?:-w({_NUMBER}))?(?:-n(\d+))?")


@searchable
def plan_named(name: str, settings: Settings) -> Plan:
    """The plan that a name stands for (see above); UserError for a name that stands for none."""
    if match := _PAPER.fullmatch(name):
        n = int(match[1]) if match[1] else None
        return paper_plan(name, settings, n, int(match[2]) if match[2] else n, " last" if match[3] else "")
    if match := re.fullmatch(r"perception-rpat(?:-(\d+))?", name):
        return perception_plan(name, settings, int(match[1]) if match[1] else None)
    if match := re.fullmatch(r"own-corruptions(?:-(\d+))?", name):
        return own_plan(3, n=int(match[1]) if match[1] else None)
    if match := _MODE.fullmatch(name):
        mode = next(mode for mode in MODES if mode.lower().replace("_", "-") == match[1])
        kind = MODES[mode].split()
        if (match[3] and "threat" not in kind) or (match[5] and "steps" not in kind) or (
                match[2] and "fgsm" not in kind) or bool(match[7]) != (mode == "test_adv_acc_weak"):
            raise UserError(f"plan {name!r}: {match[1]} takes {', '.join(kind) or 'no numbers'}; -wW (0 to 8) belongs "
                            "to test-adv-acc-weak", code="E-PLAN")
        changes: dict[str, Any] = {"adv_method": "fgsm" if match[2] else "pgd"}
        if match[3]:
            changes |= {"distance": FLAGS[match[3]], "epsilon": size(match[3], match[4])}
            if match[3] != settings.norm:
                changes["alpha"] = THREATS[match[3]][1]
        if match[5]:
            changes |= {"alpha": size(match[3], match[5]), "n_iters": int(match[6])}
        n = int(match[8]) if match[8] else None
        evaluator = mode_evaluator(mode, replace(settings, **changes), float(match[7]) if match[7] else None,
                                   SEARCHED if n is None and "few" in kind else n)
        return Plan(name, (evaluator,), chunk=chunk_for(evaluator.n))
    raise UserError(f"unknown plan {name!r}: give paper-rpat, paper-rpat-N (first N images), paper-rpat-N-M "
                    "(AutoAttack on the first M), perception-rpat, own-corruptions, or a mode of eval.py such as "
                    "test-auto-attack-linf-8", code="E-PLAN")


def mode_name(mode: str, settings: Settings, usual: Settings, *, weak: float | None = None, n: int | None = None
              ) -> str:
    """The name of the plan of a mode: what differs from a run's `usual` settings is in it."""
    kind, name = MODES[mode].split(), mode.lower().replace("_", "-")
    if settings.adv_method == "fgsm" and "fgsm" in kind:
        name += "-fgsm"
    wanted, own = ((one.norm, one.epsilon, *((one.alpha, one.n_iters) if "steps" in kind else ()))
                   for one in (settings, usual))
    if "threat" in kind and wanted != own:
        name += f"-{settings.norm}-{in_255ths(settings.epsilon)}"
        name += f"-{in_255ths(settings.alpha)}-{settings.n_iters}" if "steps" in kind else ""
    if mode == "test_adv_acc_weak":
        if weak is None:
            raise UserError("--mode test_adv_acc_weak needs --weak W: the share W/8 of the perturbation, W from 0 to 8",
                            code="E-FLAG-MISSING")
        name += f"-w{decimal(weak)}"
    return name + (f"-n{n}" if n is not None else "")


def mode_evaluator(mode: str, settings: Settings, weak: float | None, n: int | None) -> Evaluator:
    """What a mode measures.  FGSM is PGD of one step of length eps without a start."""
    norm, eps, alpha, steps = settings.norm, settings.epsilon, settings.alpha, settings.n_iters
    shown = f"{settings.distance} eps={in_255ths(eps)}"
    fgsm = settings.adv_method == "fgsm"
    attack = {"norm": norm, "eps": eps, "n": n, "step_size": eps if fgsm else alpha, "steps": 1 if fgsm else steps}
    if norm == "l1" and "few" in MODES[mode].split():
        raise UserError(f"--mode {mode} has no search in L1: give --distance Linf or L2", code="E-NORM")
    own = {"random_start": not fgsm}
    called = f"FGSM {shown}" if fgsm else f"PGD-{steps} {shown} step={in_255ths(alpha)}"
    if mode == "test_clean_acc":
        return Evaluator("clean accuracy", "clean", n=n)
    if mode == "test_adv_acc":
        return Evaluator(called, "pgd", settings=own, **attack)
    if mode == "test_adv_acc_MSE":
        return Evaluator(f"perception {called}", "perception-pgd", settings=own, **attack)
    if mode == "test_adv_acc_weak":
        if weak is None or not 0 <= weak <= 8:
            raise UserError(f"--weak {weak}: give 0 (the clean image) to 8 (all of the perturbation)",
                            code="E-FLAG-VALUE")
        return Evaluator(f"weak w={decimal(weak)} {called}", "weak-pgd", settings=own | {"share": weak / 8}, **attack)
    if mode == "test_random":
        return Evaluator("random noise eps=8", "uniform-noise", eps=NOISE, n=n)
    if mode == "test_random_MSE":
        return Evaluator("perception random noise eps=8", "perception-noise", eps=NOISE, n=n)
    if mode == "test_auto_attack":
        return Evaluator(f"AutoAttack {shown}", "autoattack", norm, eps, n=n)
    if mode == "test_cw_attack":
        if norm == "linf":
            return Evaluator(f"CW {called}", "cw", **attack)
        return Evaluator(f"CW {shown}", "cw-l2", norm, eps, n=n)
    if mode == "test_hopskipjump_attack":
        return Evaluator(f"HopSkipJump {shown}", "hopskipjump", norm, eps, n=n)
    # The boundary attack is for L2: an L-inf run is searched in L2, and counted within L2's own radius.
    eps = THREATS["l2"][0] if norm == "linf" else eps
    return Evaluator(f"boundary L2 eps={in_255ths(eps)}", "boundary", "l2" if norm == "linf" else norm, eps, n=n)


def paper_plan(name: str, settings: Settings, n: int | None, n_autoattack: int | None, suffix: str = "") -> Plan:
    """The measurements of the paper's tables: clean and PGD on n images, AutoAttack on n_autoattack (None: all)."""
    threat = {"norm": settings.norm, "eps": settings.epsilon}
    return Plan(name, (
        Evaluator(f"clean{suffix}", "clean", n=n),
        *(Evaluator(f"PGD-{steps}{suffix}", "pgd", step_size=settings.alpha, steps=steps, n=n, **threat)
          for steps in (10, 20)),
        Evaluator(f"AutoAttack{suffix}", "autoattack", n=n_autoattack, **threat)), chunk=chunk_for(n_autoattack))


def perception_plan(name: str, settings: Settings, n: int | None) -> Plan:
    """How far the logits move, under PGD-20 in the run's threat and under noise: the paper's motivation."""
    return Plan(name, (
        Evaluator("perception PGD-20", "perception-pgd", settings.norm, settings.epsilon, settings.alpha, 20, n=n),
        Evaluator("perception noise", "perception-noise", eps=NOISE, n=n)), chunk=chunk_for(n))


def settings_of_run(run: Mapping[str, Any]) -> Settings:
    """The settings of a part-1 run, given its run.json."""
    config = run["config"]
    known = {key: value for key, value in config.items() if key in Settings.__dataclass_fields__}
    return Settings(**known | {"model": config["model"]["name"], "quirks": tuple(run["quirks"])})


def chunk_for(n: int | None) -> int:
    """Images whose attacks draw their random numbers together."""
    return 100 if n is not None and n < 1000 else 500


def in_255ths(value: float) -> str:
    """A size in [0,1] units as names have it: 8/255 is 8; `size` gives it back."""
    return decimal(value * 255)


def decimal(value: float) -> str:
    """A number without an exponent and without zeros at the end."""
    return f"{value:.9f}".rstrip("0").rstrip(".")


def size(norm: str, text: str) -> float:
    """A size as names have it, in [0,1] units; UserError for one that is larger than any that is meant in the norm."""
    value = float(text) / 255
    if value > LARGEST[norm]:
        raise UserError(f"{norm} {text}: sizes are counted in 255ths, and {text}/255 is larger than {LARGEST[norm]:g}",
                        code="E-RADIUS")
    return value
