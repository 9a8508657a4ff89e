"""Statistics of counts and of per-image flags.  Accuracies are fractions in [0, 1]; nothing here draws or prints."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from types import MappingProxyType

import numpy as np
from scipy.stats import binomtest, norm, t

from common.seeds import fold


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a binomial proportion (Wilson, JASA 22, 1927): (low, high) in [0, 1].

    successes of n trials, 0 <= successes <= n, n >= 1; else ValueError.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n} trials")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence} is not between 0 and 1")
    found = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    # Rounding must not put the bound of 0 or n successes beyond the proportion itself.
    return min(max(0.0, float(found.low)), successes / n), max(min(1.0, float(found.high)), successes / n)


def mean_sd(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation (S - 1) over S seeds; the latter is None for one seed."""
    return fmean(values), stdev(values) if len(values) > 1 else None


def nrr(clean: float, robust: float) -> float:
    """Natural-robustness ratio 2ab/(a+b), the harmonic mean of clean and robust accuracy; 0 if both are 0."""
    return 2 * clean * robust / (clean + robust) if clean + robust > 0 else 0.0


def mean(clean: float, robust: float) -> float:
    """Plain mean of clean and robust accuracy."""
    return (clean + robust) / 2


# What is made of two accuracies; each rises in both.
FORMULAS: Mapping[str, Callable[[float, float], float]] = MappingProxyType({"mean": mean, "NRR": nrr})


@dataclass(frozen=True)
class Paired:
    """Two classifiers judged on the same images.  Counts of images that ..."""

    both: int         # ... both get right
    only_a: int
    only_b: int
    neither: int

    @property
    def n(self) -> int:
        return self.both + self.only_a + self.only_b + self.neither

    @property
    def accuracies(self) -> tuple[float, float]:
        """Of a and of b."""
        return (self.both + self.only_a) / self.n, (self.both + self.only_b) / self.n

    @property
    def difference(self) -> float:
        """Accuracy of a minus accuracy of b, in [-1, 1]."""
        return (self.only_a - self.only_b) / self.n


def paired(a: np.ndarray, b: np.ndarray) -> Paired:
    """Cross-table of two bool arrays (n,) of the same images; ValueError if they differ in shape or are empty."""
    a, b = np.asarray(a), np.asarray(b)
    if a.dtype != np.bool_ or b.dtype != np.bool_ or a.shape != b.shape or a.ndim != 1 or not len(a):
        raise ValueError(f"flags must be two bool arrays of one length: {a.dtype} {a.shape}, {b.dtype} {b.shape}")
    return Paired(int((a & b).sum()), int((a & ~b).sum()), int((~a & b).sum()), int((~a & ~b).sum()))


def mcnemar(table: Paired) -> float:
    """Two-sided p of McNemar's exact test that a and b are right equally often (binomial over discordant images)."""
    discordant = table.only_a + table.only_b
    return float(binomtest(table.only_a, discordant).pvalue) if discordant else 1.0


def newcombe(table: Paired, confidence: float = 0.95) -> tuple[float, float]:
    """Interval (low, high) of `table.difference`: method 10 of Newcombe, Statistics in Medicine 17 (1998) 2635.

    It squares and adds the Wilson limits of both accuracies, with their correlation (continuity corrected).
    """
    (a, low_a, high_a, b, low_b, high_b), phi = _limits(table, confidence), _correlation(table, corrected=True)
    down = (a - low_a) ** 2 - 2 * phi * (a - low_a) * (high_b - b) + (high_b - b) ** 2
    up = (b - low_b) ** 2 - 2 * phi * (b - low_b) * (high_a - a) + (high_a - a) ** 2
    return (max(-1.0, table.difference - math.sqrt(max(0.0, down))),
            min(1.0, table.difference + math.sqrt(max(0.0, up))))


def bootstrap(differences: np.ndarray, *, seed: int = 1, resamples: int = 10_000, confidence: float = 0.95
              ) -> tuple[float, float]:
    """Percentile interval (low, high) of the mean of (n,) differences per image, images drawn with replacement.

    The same input gives the same interval.  (Efron, Annals of Statistics 7, 1979.)
    """
    # Images with one value are alike, so that a draw of n images is a draw of how often each value comes.
    values, counts = np.unique(np.asarray(differences, np.float64), return_counts=True)
    drawn = np.random.default_rng(fold(seed, "bootstrap")).multinomial(counts.sum(), counts / counts.sum(), resamples)
    low, high = np.quantile(drawn @ values / counts.sum(), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def images_needed(difference: float, sd: float, *, alpha: float = 0.05, power: float = 0.8) -> int | None:
    """How many images show a true `difference` of accuracies at level alpha with that power; None if it is 0.

    sd: standard deviation of the difference per image.  The normal approximation: ((z_alpha/2 + z_power)*sd/d)^2.
    """
    if difference == 0:
        return None
    return max(1, math.ceil((_normal_width(alpha, power) * sd / difference) ** 2))


def smallest_shown(n: int, sd: float, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """The difference of accuracies that n images show at level alpha with that power; see `images_needed`."""
    return _normal_width(alpha, power) * sd / math.sqrt(n)


def _normal_width(alpha: float, power: float) -> float:
    return float(norm.ppf(1 - alpha / 2) + norm.ppf(power))


def over_seeds(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float] | None:
    """Student's interval (low, high) of the mean of S seeds' values; None for one seed."""
    middle, sd = mean_sd(values)
    if sd is None:
        return None
    half = float(t.ppf((1 + confidence) / 2, len(values) - 1)) * sd / math.sqrt(len(values))
    return middle - half, middle + half


def accuracy_interval(accuracies: Sequence[float], n: int) -> tuple[float, float]:
    """95% interval (low, high) of a method's accuracy from S seeds' accuracies on the same n images.

    One seed: Wilson's.  Several: Student's over the seeds, and never narrower than Wilson's of their mean, since more
    seeds do not make more images.
    """
    middle = fmean(accuracies)
    low, high = wilson(round(middle * n), n)
    if (seeds := over_seeds(accuracies)) is not None:
        low, high = max(0.0, min(low, seeds[0])), min(1.0, max(high, seeds[1]))
    return low, high


def combined(table: Paired, formula: str, confidence: float = 0.95) -> tuple[float, float]:
    """Interval (low, high) of a formula of FORMULAS of the accuracies of a and b, in [0, 1].

    As `newcombe`, for a function that rises in both (Zou and Donner, Statistics in Medicine 27 (2008) 1693): what it
    loses where one accuracy falls to its Wilson limit, squared and added with their correlation.
    """
    value, (a, low_a, high_a, b, low_b, high_b) = FORMULAS[formula], _limits(table, confidence)
    found, phi = value(a, b), _correlation(table, corrected=False)

    def distance(of_a: float, of_b: float) -> float:
        one, other = value(of_a, b) - found, value(a, of_b) - found
        return math.sqrt(max(0.0, one ** 2 + 2 * phi * one * other + other ** 2))

    return max(0.0, found - distance(low_a, low_b)), min(1.0, found + distance(high_a, high_b))


def _limits(table: Paired, confidence: float) -> tuple[float, float, float, float, float, float]:
    """Accuracy and Wilson's limits of a, then of b."""
    a, b = table.accuracies
    return (a, *wilson(table.both + table.only_a, table.n, confidence),
            b, *wilson(table.both + table.only_b, table.n, confidence))


def _correlation(table: Paired, *, corrected: bool) -> float:
    """Of the flags of a and b; corrected: for continuity, as Newcombe does; 0 where one of them never varies."""
    n, right_a, right_b = table.n, table.both + table.only_a, table.both + table.only_b
    cross = table.both * table.neither - table.only_a * table.only_b
    if corrected and cross > 0:
        cross = max(cross - n / 2, 0)
    margins = right_a * (n - right_a) * right_b * (n - right_b)
    return cross / math.sqrt(margins) if margins else 0.0
