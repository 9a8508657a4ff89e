"""Cells that are no single evaluator's accuracy: means over an attack's strengths, measured values.  No torch.

Both are put together from several seeds as `common.cells` does, and never from two protocols.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.cells import Shown, Unlike, cell, judging, result_of, short
from common.records import RunRecord
from common.stats import mean_sd

WIDE = 1.96                                    # standard errors either side: 95%


@dataclass(frozen=True)
class Averaged(Shown):
    """The mean of several evaluators' accuracies on the same n images, per seed; errors: standard errors."""

    seeds: tuple[int, ...]
    accuracies: tuple[float, ...]
    errors: tuple[float, ...]
    n: int
    records: tuple[str, ...]

    @property
    def interval(self) -> tuple[float, float] | None:
        """95% by the normal distribution, where there is one seed."""
        if len(self.seeds) > 1:
            return None
        mean, half = self.accuracies[0], WIDE * self.errors[0]
        return max(0.0, mean - half), min(1.0, mean + half)


@dataclass(frozen=True)
class Measured(Shown):
    """A number of results' `values`, times a factor, per seed; no share of images and without an interval."""

    seeds: tuple[int, ...]
    accuracies: tuple[float, ...]              # the values
    n: int
    records: tuple[str, ...]

    interval = None
    unit = 1.0

    def text(self) -> str:
        """'mean ± sd' over seeds, or the value."""
        mean, sd = mean_sd(self.accuracies)
        return f"{mean:.2f}" if sd is None else f"{mean:.2f} ± {sd:.2f}"


def per_image(run: RunRecord, evaluators: Sequence[str], plans: Sequence[str] = ()) -> np.ndarray | None:
    """(n,) share of the evaluators under which an image is right; None where one is missing.

    ValueError if they were run on other images.
    """
    verdicts = [result_of(run, evaluator, plans) for evaluator in evaluators]
    if not verdicts or not all(verdicts):
        return None
    images = {record.arrays["index"][:result["n"]].tobytes() for record, result in verdicts}
    if len(images) > 1:
        raise Unlike(f"a mean of {run.name}, other images: " + ", ".join(evaluators))
    return np.mean([record.arrays[result["name"]] for record, result in verdicts], axis=0)


def averaged(runs: Sequence[RunRecord], evaluators: Sequence[str], plans: Sequence[str] = ()) -> Averaged | None:
    """The mean over the evaluators of one method's seeds (see `common.cells.group`); ValueError if protocols differ."""
    found = [(run.run["seed"], shares) for run in runs if (shares := per_image(run, evaluators, plans)) is not None]
    if not found:
        return None
    cells = [cell(runs, evaluator, plans) for evaluator in evaluators]     # refuses two protocols
    seeds, shares = zip(*found, strict=True)
    return Averaged(seeds, tuple(float(one.mean()) for one in shares), tuple(map(standard_error, shares)),
                    len(shares[0]), tuple(dict.fromkeys(name for one in cells if one for name in one.records)))


def measured(runs: Sequence[RunRecord], evaluators: Sequence[str], path: str, factor: float = 1.0,
             plans: Sequence[str] = ()) -> Measured | None:
    """The mean over the evaluators of a number that their results hold beside their counts, per seed; see `number`.

    Runs that lack one, or one of whose numbers is not there, are passed over.  ValueError if protocols differ.
    """
    found = []
    for run in runs:
        verdicts = [result_of(run, evaluator, plans) for evaluator in evaluators]
        numbers = [number(verdict[1], path) if verdict else None for verdict in verdicts]
        if verdicts and all(one is not None for one in numbers):
            found.append((run.run["seed"], factor * float(np.mean(numbers)), verdicts))
    if not found:
        return None
    if len({tuple(judging(*one) for one in verdicts) for *_, verdicts in found}) > 1:
        raise Unlike(f"one cell ({path} of {', '.join(evaluators)}), two protocols: "
                     + ", ".join(str(verdicts[0][0].path) for *_, verdicts in found))
    return Measured(tuple(seed for seed, *_ in found), tuple(value for _, value, _ in found), found[0][2][0][1]["n"],
                    tuple(dict.fromkeys(short(record.path) for *_, verdicts in found for record, _ in verdicts)))


def number(result: Mapping[str, Any], path: str) -> float | None:
    """What a result's `values` hold at "key.key"; None where there is nothing, or no finite number."""
    found: Any = result.get("values", {})
    for key in path.split("."):
        found = found.get(key) if isinstance(found, Mapping) else None
    return float(found) if isinstance(found, int | float) and math.isfinite(found) else None


def standard_error(values: np.ndarray) -> float:
    """Of the mean of (n,) values; 0 for one."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0


def difference(first: Sequence[RunRecord], second: Sequence[RunRecord], evaluators: Sequence[str],
               plans: Sequence[str] = ()) -> tuple[int, tuple[int, ...], str] | None:
    """(n, seeds, points) of `first` minus `second`, image by image and seed by seed, of the mean over evaluators.

    points: percentage points, mean ± sd over seeds, or for one seed with the normal distribution's 95% interval.
    ValueError if a pair of runs was judged by two protocols.
    """
    others = {run.run["seed"]: run for run in second}
    found = []
    for run in first:
        pair = (run, others.get(run.run["seed"]))
        shares = [per_image(one, evaluators, plans) if one else None for one in pair]
        if any(one is None for one in shares):
            continue
        for evaluator in evaluators:
            told = [result_of(one, evaluator, plans) for one in pair]
            if len({judging(*one) for one in told}) > 1:
                raise Unlike(f"one comparison, two protocols: {told[0][0].path}, {told[1][0].path}")
        found.append((run.run["seed"], shares[0] - shares[1]))
    if not found:
        return None
    mean, sd = mean_sd([float(shares.mean()) for _, shares in found])
    if sd is None:
        half = WIDE * standard_error(found[0][1])
        points = f"{100 * mean:+.2f} [{100 * (mean - half):+.1f}, {100 * (mean + half):+.1f}]"
    else:
        points = f"{100 * mean:+.2f} ± {100 * sd:.2f}"
    return len(found[0][1]), tuple(seed for seed, _ in found), points
