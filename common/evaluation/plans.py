"""What is to be measured: evaluators with every setting, and plans of them.  Frozen, hashable, JSON; imports no torch.

"AutoAttack" (or "AA") means the standard version of the official attacks and nothing else: any other evaluator needs
another name, and one that searches otherwise the name that `common.evaluation.searches` gives it.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from common.errors import UserError
from common.evaluation.codes import refusal
from common.evaluation.kinds import ITERATED, MORE, Kind, check_more, check_range
from common.evaluation.searches import LENGTH, SEARCHES, name_fits, search_of
from common.files import sha256_of_json

LOSSES = ("cross-entropy", "dlr", "margin")
KINDS = {
    "clean": Kind((), {}),
    "fgsm": Kind(("eps",), {}),
    "pgd": Kind(ITERATED, {"loss": "cross-entropy", "random_start": True}),
    "cw": Kind(ITERATED, {"confidence": 50.0}),
    "autoattack": Kind(("eps",), {**LENGTH}),
    "torchattacks-autoattack": Kind(("eps",), {"iterations": 10, "queries": 5000, "targets": 9}, norms=("linf", "l2")),
    "custom-autoattack": Kind(("eps",), {"iterations": 100}, norms=("linf", "l2")),
    "plus-autoattack": Kind(("eps",), {"iterations": 100, "queries": 5000}, norms=("linf", "l2")),
    **MORE,
}
UNUSED = {"eps": 0.0, "step_size": 0.0, "steps": 0, "restarts": 1}


@dataclass(frozen=True)
class Evaluator:
    """One attack (or none) on the first `n` test images (None: all of them).

    kind: clean, fgsm, pgd, cw, autoattack; torchattacks-autoattack, which that package calls standard; of the official
    attacks custom-autoattack (no square: DyART's released choice) and plus-autoattack (version "plus");
    fast-autoattack, the standard version's attacks by a faster search.  eps and step_size are in units of [0,1] images,
    measured in `norm` (linf, l2, l1).  `settings` are the kind's own, as a mapping or as pairs: pgd: loss
    (cross-entropy, dlr, margin), random_start; cw: confidence; autoattack and plus-autoattack: iterations, queries;
    custom-autoattack: iterations; torchattacks-autoattack: iterations, queries, targets; fast-autoattack: iterations,
    queries, arithmetic (bf16, tf32), targets (how many classes apgd-t tries in float32 too), finish (whether all
    attacks try the survivors in float32 again).  The kinds of common.evaluation.kinds and their settings stand there.
    Numbers that a kind does not use are set to zero, and settings left out to their defaults, so that equal
    measurements are equal records.
    """

    name: str
    kind: str
    norm: str = "linf"
    eps: float = 8 / 255
    step_size: float = 2 / 255
    steps: int = 10
    restarts: int = 1
    n: int | None = None
    settings: tuple[tuple[str, Any], ...] | Mapping[str, Any] = field(default=())

    def __post_init__(self):
        where = f"evaluator {self.name!r}"
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 ._+=()-]*", str(self.name)):
            raise UserError(f"{where}: a name has letters, digits, spaces and . _ + = - ( ) only", code="E-EVALUATOR")
        if self.kind not in KINDS:
            raise UserError(f"{where}: unknown kind {self.kind!r}; give one of {', '.join(KINDS)}", code="E-EVALUATOR")
        kind = KINDS[self.kind]
        for name, nothing in UNUSED.items():
            if name not in kind.uses:
                object.__setattr__(self, name, nothing)
        if self.kind == "clean":
            object.__setattr__(self, "norm", "linf")
        given = dict(self.settings)
        unknown = sorted(set(given) - set(kind.settings))
        if unknown:
            raise UserError(f"{where}: kind {self.kind} has no setting {unknown[0]!r}; it has "
                            f"{', '.join(kind.settings) or 'none'}", code="E-EVALUATOR")
        object.__setattr__(self, "settings", tuple(sorted((kind.settings | given).items())))
        self._check(where, kind)

    def _check(self, where: str, kind: Kind) -> None:
        if self.norm not in kind.norms:
            raise UserError(f"{where}: kind {self.kind} has no norm {self.norm!r}; give one of {', '.join(kind.norms)}",
                            code="E-EVALUATOR")
        for name in ("eps", "step_size"):
            check_size(getattr(self, name), self.norm, f"{where}: {name}")
        if "step_size" in kind.uses and self.step_size == 0 < self.eps:
            raise UserError(f"{where}: step_size 0 never leaves the start", code="E-EVALUATOR")
        if self.kind.endswith("autoattack") and self.eps == 0:
            raise UserError(f"{where}: eps must be above 0", code="E-EVALUATOR")
        for name, least in (("steps", 1), ("restarts", 1), ("n", 1)):
            value = getattr(self, name)
            if (name in kind.uses or (name == "n" and value is not None)) and not whole(value, least):
                raise UserError(f"{where}: {name} must be a whole number of at least {least}, not {value!r}",
                                code="E-EVALUATOR")
        for name, value in self.settings:
            check_setting(name, value, where)
        check_range(dict(self.settings), where)
        search = search_of(self.kind, dict(self.settings), KINDS["autoattack"].settings)
        if not name_fits(self.name, search):
            raise UserError(f"{where}: only the standard version of the official attacks is called AutoAttack; "
                            f"give this one {f'the name {SEARCHES[search].title}' if search else 'another name'}",
                            code="E-EVALUATOR")

    def setting(self, name: str) -> Any:
        """One of the kind's own settings."""
        return dict(self.settings)[name]

    def to_json(self) -> dict[str, Any]:
        """Every field, settings as an object."""
        return {entry.name: getattr(self, entry.name) for entry in fields(self)} | {"settings": dict(self.settings)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Evaluator":
        """The inverse of `to_json`."""
        return cls(**value)


@dataclass(frozen=True)
class Plan:
    """Evaluators that are run on the same images, in chunks of `chunk` images.

    Randomness is drawn per chunk, and AutoAttack runs chunk by chunk, so `chunk` is part of the measurement.
    `test_crop`: random-crop (padding 4) the test images, anew for every evaluator: AdaRAT's measuring quirk.
    `half_inputs`: round the test images to float16, that is by up to 0.062/255: RPAT's measuring quirk.
    """

    name: str
    evaluators: tuple[Evaluator, ...]
    chunk: int = 100
    test_crop: bool = False
    half_inputs: bool = False

    def __post_init__(self):
        object.__setattr__(self, "evaluators", tuple(self.evaluators))
        if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", str(self.name)):
            raise UserError(f"plan {self.name!r}: a name has small letters, digits and . _ - only (it names files)",
                            code="E-EVALUATOR")
        if not self.evaluators:
            raise UserError(f"plan {self.name!r} has no evaluators", code="E-EVALUATOR")
        names = [evaluator.name for evaluator in self.evaluators]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UserError(f"plan {self.name!r} has two evaluators called {twice[0]!r}", code="E-EVALUATOR")
        if not whole(self.chunk, 1):
            raise UserError(f"plan {self.name!r}: chunk must be a whole number of at least 1, not {self.chunk!r}",
                            code="E-EVALUATOR")

    def to_json(self) -> dict[str, Any]:
        """Everything that decides the measurement, besides seed, weights and images."""
        # Said only where it is on: plans of records that are older than it keep their hash.
        half = {"half_inputs": True} if self.half_inputs else {}
        return {"name": self.name, "chunk": self.chunk, "test_crop": self.test_crop, **half,
                "evaluators": [evaluator.to_json() for evaluator in self.evaluators]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Plan":
        """The inverse of `to_json`."""
        return cls(**{**value, "evaluators": tuple(map(Evaluator.from_json, value["evaluators"]))})


def plan_sha256(plan: Plan) -> str:
    """Hex digest of a plan's JSON."""
    return sha256_of_json(plan.to_json())


def whole(value: Any, least: int) -> bool:
    """Is it a whole number (a bool is none) of at least `least`?"""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def check_size(value: Any, norm: str, what: str) -> None:
    """A UserError if `value` cannot be a distance between images in [0,1], such as 8 for 8/255."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise UserError(f"{what} must be a number of at least 0, not {value!r}", code="E-RADIUS")
    if norm == "linf" and value > 1:
        raise refusal("E-EPS", f"{what} {value:g} is larger than the whole range [0,1]; {value:g} looks like "
                      f"{value:g}/255: give {value:g}/255 or {value / 255:.4f}")


def check_setting(name: str, value: Any, where: str) -> None:
    """A UserError if a kind's own setting has a value that it cannot have."""
    if name == "loss" and value not in LOSSES:
        raise UserError(f"{where}: unknown loss {value!r}; give one of {', '.join(LOSSES)}", code="E-EVALUATOR")
    if name == "random_start" and not isinstance(value, bool):
        raise UserError(f"{where}: random_start is True or False, not {value!r}", code="E-EVALUATOR")
    if name in ("iterations", "queries", "targets") and not whole(value, 1):
        raise UserError(f"{where}: {name} must be a whole number of at least 1, not {value!r}", code="E-EVALUATOR")
    if name == "confidence" and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise UserError(f"{where}: confidence must be a number, not {value!r}", code="E-EVALUATOR")
    check_more(name, value, where)
