"""Statistics against scipy and against brute force."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from common.stats import Paired, mcnemar, mean_sd, newcombe, nrr, paired, wilson


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (0, 200), (1, 3), (97, 200), (200, 200), (4762, 10000)])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_wilson_is_scipys(successes, n, confidence):
    wanted = scipy.stats.binomtest(successes, n).proportion_ci(confidence, "wilson")
    assert wilson(successes, n, confidence) == pytest.approx((wanted.low, wanted.high), abs=1e-12)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_proportion(pair):
    low, high = wilson(*pair)
    assert 0 <= low <= pair[0] / pair[1] <= high <= 1


@pytest.mark.parametrize(("successes", "n", "confidence"), [(1, 0, 0.95), (-1, 5, 0.95), (6, 5, 0.95), (1, 5, 1.0)])
def test_wilson_refuses_nonsense(successes, n, confidence):
    with pytest.raises(ValueError):
        wilson(successes, n, confidence)


def test_mean_and_sd_are_numpys():
    values = [0.41, 0.44, 0.39]
    assert mean_sd(values) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    assert mean_sd([0.5]) == (0.5, None)


def test_nrr_is_the_harmonic_mean():
    assert nrr(0.8, 0.5) == pytest.approx(scipy.stats.hmean([0.8, 0.5]))
    assert nrr(0.8, 0.0) == 0.0 == nrr(0.0, 0.0)


def test_paired_counts():
    a = np.array([True, True, True, False, False, False, True])
    b = np.array([True, False, True, True, False, False, False])
    table = paired(a, b)
    assert table == Paired(both=2, only_a=2, only_b=1, neither=2)
    assert table.n == 7 and table.difference == pytest.approx(a.mean() - b.mean())


@pytest.mark.parametrize(("a", "b"), [(np.ones(3, bool), np.ones(2, bool)), (np.ones(3), np.ones(3)),
                                      (np.ones(0, bool), np.ones(0, bool)), (np.ones((2, 2), bool),) * 2])
def test_paired_refuses_what_cannot_be_paired(a, b):
    with pytest.raises(ValueError, match="flags"):
        paired(a, b)


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (1, 0), (3, 3), (2, 9), (15, 4), (120, 80), (900, 1100)])
def test_mcnemar_is_the_exact_binomial_test(only_a, only_b):
    wanted = scipy.stats.binomtest(only_a, only_a + only_b, 0.5).pvalue if only_a + only_b else 1.0
    assert mcnemar(Paired(50, only_a, only_b, 7)) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize(("only_a", "only_b"), [(1, 6), (5, 5), (0, 8)])
def test_mcnemar_by_going_through_every_outcome(only_a, only_b):
    outcomes = [sum(signs) for signs in itertools.product((0, 1), repeat=only_a + only_b)]
    far = abs(only_a - (only_a + only_b) / 2)
    wanted = sum(abs(one - (only_a + only_b) / 2) >= far for one in outcomes) / len(outcomes)
    assert mcnemar(Paired(1, only_a, only_b, 1)) == pytest.approx(wanted)


def test_mcnemar_of_a_huge_difference_does_not_overflow():
    assert mcnemar(Paired(0, 5000, 0, 0)) == 0.0


def test_newcombe_of_two_independent_columns_squares_and_adds_wilson():
    """Where both*neither = only_a*only_b the correlation is zero: Newcombe's method for independent samples."""
    table = Paired(both=30, only_a=30, only_b=20, neither=20)
    low_a, high_a = wilson(60, 100)
    low_b, high_b = wilson(50, 100)
    wanted = (0.1 - math.hypot(0.6 - low_a, high_b - 0.5), 0.1 + math.hypot(0.5 - low_b, high_a - 0.6))
    assert newcombe(table) == pytest.approx(wanted)


def test_newcombe_by_bootstrap():
    """Near the percentile interval of a paired bootstrap, and narrower than for independent samples."""
    generator = np.random.default_rng(0)
    a = generator.random(2000) < 0.5
    b = np.where(generator.random(2000) < 0.1, ~a, a)
    table = paired(a, b)
    shares = np.array([table.both, table.only_a, table.only_b, table.neither]) / 2000
    differences = generator.multinomial(2000, shares, size=20000) @ [0, 1, -1, 0] / 2000
    assert newcombe(table) == pytest.approx(tuple(np.quantile(differences, [0.025, 0.975])), abs=0.002)


def test_newcombe_covers_the_truth_about_as_often_as_it_says():
    generator, cells = np.random.default_rng(1), np.array([0.4, 0.12, 0.05, 0.43])
    drawn = generator.multinomial(100, cells, size=2000)
    hits = sum(low <= 0.07 <= high for low, high in (newcombe(Paired(*map(int, row))) for row in drawn))
    assert 0.93 < hits / 2000 < 0.98


@given(st.tuples(*[st.integers(0, 60)] * 4).filter(sum))
def test_newcombe_holds_the_difference_and_turns_around(counts):
    table, swapped = Paired(*counts), Paired(counts[0], counts[2], counts[1], counts[3])
    low, high = newcombe(table)
    assert -1 <= low <= table.difference <= high <= 1
    assert newcombe(swapped) == pytest.approx((-high, -low))
