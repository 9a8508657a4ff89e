"""Further kinds of evaluators, and the checks of their settings.  No torch here.

uniform-noise     U(-eps, eps) on every value, clipped
weak-pgd          x + share*(x' - x), x' from PGD
perception-*      how far the logits move from x to x' and to the image half way: x' from PGD, or from uniform noise
cw-l2, boundary, hopskipjump      foolbox's search for the nearest adversarial image, untargeted
fast-autoattack   AutoAttack's attacks on a fast view of the network (common.evaluation.searches)
corruption        the test images corrupted by our own code (common.data.corruptions); corruption-file: files
gaussian-noise, uniform-range-noise, salt-pepper-noise      the test images with noise, kept in each image's own range
                  (common.evaluation.range_noise)
transferred-fgsm  the test images moved by FGSM on another network (common.evaluation.transferred)
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from common.errors import UserError
from common.evaluation.searches import ARITHMETICS, KIND, LENGTH
from common.evaluation.searches import SETTINGS as FAST

NORMS = ("linf", "l2", "l1")
ITERATED = ("eps", "step_size", "steps", "restarts")
AGAINST = ("label", "prediction")
SEARCHES = ("geometric_progression", "grid_search")


class Kind(NamedTuple):
    """Which numbers a kind of evaluator uses, its own settings with their defaults, and the norms that it knows."""

    uses: tuple[str, ...]
    settings: dict[str, Any]
    norms: tuple[str, ...] = NORMS


# What a search must leave: the label, or the network's own prediction (then wrong images are attacked too).  A search
# that needs an adversarial start tries so many images of noise, and so many blends of the image with the noise.
START = {"against": "label", "directions": 1000, "blends": 50}
# The least and the largest value of the test images.
RANGE = {"low": 0.0, "high": 1.0}
MORE = {
    KIND: Kind(("eps",), {**LENGTH, **FAST}),
    "uniform-noise": Kind(("eps",), {}, ("linf",)),
    "weak-pgd": Kind(ITERATED, {"loss": "cross-entropy", "random_start": True, "share": 0.5}),
    "perception-pgd": Kind(("eps", "step_size", "steps"), {"loss": "cross-entropy", "random_start": True}),
    "perception-noise": Kind(("eps",), {}, ("linf",)),
    # The numbers of the searches are foolbox 3.3.4's own defaults.
    "cw-l2": Kind(("eps",), {"against": "label", "binary_search_steps": 9, "iterations": 10_000, "learning_rate": 0.01,
                             "confidence": 0.0, "initial_const": 1e-3, "abort_early": True}, ("l2",)),
    "boundary": Kind(("eps",), {**START, **RANGE, "first_channel": False, "iterations": 25_000,
                                "spherical_step": 0.01, "source_step": 0.01, "source_step_convergence": 1e-7,
                                "step_adaptation": 1.5, "update_every": 10}, ("l2",)),
    "hopskipjump": Kind(("eps",), {**START, "iterations": 64, "initial_evaluations": 100, "max_evaluations": 10_000,
                                   "step_search": "geometric_progression", "gamma": 1.0}, ("l2", "linf")),
    "corruption": Kind((), {"corruption": "gaussian_noise", "severity": 1}, ("linf",)),
    "corruption-file": Kind((), {"corruption": "gaussian_noise", "severity": 1, "set": "CIFAR-10-C", "sha256": ""},
                            ("linf",)),
    "gaussian-noise": Kind(("eps",), RANGE, ("linf",)),
    "uniform-range-noise": Kind(("eps",), RANGE, ("linf",)),
    "salt-pepper-noise": Kind(("eps",), RANGE, ("linf",)),
    "transferred-fgsm": Kind(("eps",), {"source": ""}, ("linf",)),
}
SEARCH_KINDS = ("cw-l2", "boundary", "hopskipjump")
CORRUPTION_KINDS = ("corruption", "corruption-file")
RANGE_NOISE_KINDS = ("gaussian-noise", "uniform-range-noise", "salt-pepper-noise")
TRANSFERRED = "transferred-fgsm"
# Accuracy on other images than the test images, whatever the network says of those; they are kept in no ball.
CHANGED_KINDS = (*CORRUPTION_KINDS, *RANGE_NOISE_KINDS, TRANSFERRED)
# Whose eps is no radius of an attack.
STRENGTH_KINDS = ("uniform-noise", "perception-noise", *RANGE_NOISE_KINDS, TRANSFERRED)

COUNTS = ("directions", "blends", "binary_search_steps", "update_every", "initial_evaluations", "max_evaluations")
POSITIVE = ("learning_rate", "initial_const", "spherical_step", "source_step", "source_step_convergence", "gamma")
CHOICES = {"against": AGAINST, "step_search": SEARCHES, "arithmetic": ARITHMETICS}

SHA256 = re.compile(r"[0-9a-f]{64}")

# eps outside these bounds is rarely meant in its norm: 8/255, 128/255 and 2000/255 are usual in L-inf, L2 and L1.
USUAL = {"linf": (0.0, 0.4, "8/255"), "l2": (0.06, 5.0, "128/255"), "l1": (1.2, 100.0, "2000/255")}

# By which share an L-inf radius may miss k/255 without and with a warning: 0.031 misses 8/255 by 1.2%.
NEARLY = (2e-4, 0.015)


def check_more(name: str, value: Any, where: str) -> None:
    """A UserError if a setting of one of the kinds above has a value that it cannot have."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if name in COUNTS and not (isinstance(value, int) and number and value >= 1):
        raise UserError(f"{where}: {name} must be a whole number of at least 1, not {value!r}", code="E-EVALUATOR")
    if name in POSITIVE and not (number and 0 < value < float("inf")):
        raise UserError(f"{where}: {name} must be a number above 0, not {value!r}", code="E-EVALUATOR")
    if name in CHOICES and value not in CHOICES[name]:
        raise UserError(f"{where}: {name} is one of {', '.join(CHOICES[name])}, not {value!r}", code="E-EVALUATOR")
    if name == "share" and not (number and 0 <= value <= 1):
        raise UserError(f"{where}: share is a number from 0 (the image) to 1 (all of x'), not {value!r}",
                        code="E-EVALUATOR")
    if name == "step_adaptation" and not (number and value > 1):
        raise UserError(f"{where}: step_adaptation must be a number above 1, not {value!r}", code="E-EVALUATOR")
    if name in ("abort_early", "first_channel", "finish") and not isinstance(value, bool):
        raise UserError(f"{where}: {name} is True or False, not {value!r}", code="E-EVALUATOR")
    if name in RANGE and not (number and 0 <= value <= 1):
        raise UserError(f"{where}: {name} is a value of images in [0,1], not {value!r}", code="E-EVALUATOR")
    if name == "source" and not SHA256.fullmatch(str(value)):
        raise UserError(f"{where}: source is the sha256 of a network's weights, 64 hexadecimal digits, not {value!r}",
                        code="E-EVALUATOR")
    if name == "severity" and not (isinstance(value, int) and number and 1 <= value <= 5):
        raise UserError(f"{where}: severity is a whole number from 1 to 5, not {value!r}", code="E-EVALUATOR")
    if name in ("corruption", "set") and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", str(value)):
        raise UserError(f"{where}: {name} is a name of letters, digits and . _ -, not {value!r}", code="E-EVALUATOR")
    if name == "sha256" and not SHA256.fullmatch(str(value)):
        raise UserError(f"{where}: sha256 is that of the file of images, 64 hexadecimal digits, not {value!r}",
                        code="E-EVALUATOR")


def check_range(settings: Mapping[str, Any], where: str) -> None:
    """A UserError if the settings of a kind leave no range between `low` and `high`."""
    if "low" in settings and settings["low"] >= settings["high"]:
        raise UserError(f"{where}: low {settings['low']:g} must be below high {settings['high']:g}, the least and the "
                        "largest value of the test images", code="E-EVALUATOR")


def unusual_size(norm: str, eps: float) -> str:
    """A line where `eps` has the size that is usual in another norm, or is nearly but not quite k/255; else empty."""
    least, most, usual = USUAL[norm]
    share = 255 * eps
    if norm == "linf" and 0.9 < share < 33 and NEARLY[0] < abs(share / round(share) - 1) <= NEARLY[1]:
        return (f"warning: eps {eps:g} is {share:.3f}/255: if {round(share)}/255 is meant, write it so, since others "
                "measure there")
    if eps == 0 or least <= eps <= most:
        return ""
    how = "small" if eps < least else "large"
    return (f"warning: eps {eps:g} ({share:g}/255) is {how} for {norm}, where {usual} is usual: is it meant for "
            "another norm?")
