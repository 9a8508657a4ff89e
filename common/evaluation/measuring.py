"""Evaluators that find more than a verdict: numbers per image, and what a record says of them.

A measuring runner has `measure` instead of stages: it sees the whole chunk, also what is classified wrong, and judges
in float32 itself.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch import Tensor

from common.evaluation.plans import Evaluator

QUANTILES = {"q10": 0.1, "q25": 0.25, "median": 0.5, "q75": 0.75, "q90": 0.9}


class Measured(NamedTuple):
    """Of a chunk: flags (B,) bool, correct clean and under the attack; arrays: name -> (B,) float32, NaN for none."""

    flags: Tensor
    arrays: dict[str, Tensor]


class Measuring(Protocol):
    """A runner that measures a chunk."""

    stage: str

    def measure(self, x: Tensor, y: Tensor, right: Tensor, seed: int) -> Measured:
        """x (B,C,H,W) float32 in [0,1], labels (B,), right (B,) bool: classified correctly clean; the chunk's seed."""
        ...


def search_values(evaluator: Evaluator, arrays: Mapping[str, np.ndarray], clean: int) -> dict[str, Any]:
    """Of a search for the nearest adversarial image: how many were attacked, found and not; how many images are
    classified correctly clean and (unbounded: wherever the search ended) afterwards; quantiles of the distances of
    those found, in the evaluator's norm and units of [0,1] images (null if none was), and of the boundary attack's
    other distance, `mean_square` (common.evaluation.decision).
    """
    distance = arrays["distance"]
    found = int((~np.isnan(distance)).sum())
    attacked = clean if evaluator.setting("against") == "label" else len(distance)
    distances = {name: quantiles(arrays[name]) for name in ("distance", "mean_square") if name in arrays}
    return {"attacked": attacked, "found": found, "failed": attacked - found, "correct_clean": clean,
            "correct_unbounded": int(arrays["correct_unbounded"].sum()), **distances}


def quantiles(numbers: np.ndarray) -> dict[str, float] | None:
    """QUANTILES of the numbers (n,) without those that are NaN; None if all are."""
    found = numbers[~np.isnan(numbers)].astype(np.float64)
    return {name: float(np.quantile(found, share)) for name, share in QUANTILES.items()} if len(found) else None


PAIRS = ("clean-adversarial", "clean-middle", "middle-adversarial")


def perception_values(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Group (all; defended: x' is classified correctly; fooled: the rest) -> n, and the sum over its images of the
    mean squared difference of the logits of each of PAIRS.  A mean is sum/n; a group of n = 0 has none.
    """
    defended = arrays["defended"] == 1
    groups = {"all": np.ones_like(defended), "defended": defended, "fooled": ~defended}
    return {name: {"n": int(members.sum()),
                   "sum": {pair: float(arrays[pair][members].astype(np.float64).sum()) for pair in PAIRS}}
            for name, members in groups.items()}


def values_of(evaluator: Evaluator, arrays: Mapping[str, np.ndarray], clean: int) -> dict[str, Any]:
    """What the record says of a result's numbers per image; nothing for evaluators that find flags alone."""
    if "distance" in arrays:
        return search_values(evaluator, arrays, clean)
    if "disputed" in arrays:
        # Images that the fast search took for fooled and plain float32 did not, in some stage.
        return {"disputed": int(arrays["disputed"].sum())}
    return perception_values(arrays) if "defended" in arrays else {}
