"""Projections onto hyperplanes in the box: the released code's values, a reference by sorting, and their bounds."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings

from common.attacks import projection
from common.attacks.projection import PROJECTIONS, SMALLEST
from dyart.tests.references import by_sorting, size

NORMS = ("linf", "l2")


@pytest.mark.parametrize("norm", NORMS)
def test_projections_of_the_released_code(golden, norm):
    z, w, b = golden["dyart/proj_points"], golden["dyart/proj_w"], golden["dyart/proj_b"]
    ours, theirs = PROJECTIONS[norm](z, w, b), golden[f"dyart/proj_{norm}"]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-7)
    misses = ((z + ours) * w).sum(1) - b
    assert (misses[:10].abs() < 1e-5).all() and (misses[10:].abs() > 100).all(), "rows 10 and 11 end in a corner"
    torch.testing.assert_close(by_sorting(z, w, b, norm), theirs, rtol=0, atol=2e-7)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("share", [0.01, 0.3, 0.9, 0.99])
def test_projection_of_images_is_that_by_sorting(norm, share):
    generator = torch.Generator().manual_seed(1)
    z = torch.rand(16, 3072, generator=generator)
    z = torch.where(torch.rand(z.shape, generator=generator) < 0.2, z.round(), z)          # black and white pixels
    w = torch.randn(z.shape, generator=generator)
    b = ((z + share * ((w > 0).float() - z)) * w).sum(1)                # `share` of the way to the farthest corner
    ours, exact = PROJECTIONS[norm](z, w, b), by_sorting(z.double(), w.double(), b.double(), norm)
    assert ((z + ours).double() * w - (z + exact) * w).sum(1).abs().max() < 2e-7 * w.abs().sum(1).max()
    torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-5 if share > 0.5 else 1e-6)


@st.composite
def planes(draw):
    """Points in the box, normals of very different sizes, other points of the box, and whether the planes go there."""
    rows, pixels = draw(st.integers(1, 3)), draw(st.integers(1, 12))
    unit = st.sampled_from([0.0, 1.0]) | st.floats(0, 1, width=32)
    slope = st.sampled_from([0.0, 1.0, -1.0, 1e-9, 1e3, -1e-3]) | st.floats(-1, 1, width=32)
    z, other, w = (torch.tensor(draw(st.lists(each, min_size=rows * pixels, max_size=rows * pixels))).view(rows, pixels)
                   for each in (unit, unit, slope))
    # Not at SMALLEST itself, which is another number in float32 than in the reference's float64.
    w = torch.where((w.abs() > SMALLEST / 2) & (w.abs() < 2 * SMALLEST), 0, w)
    return z, other, w, draw(st.booleans())


@pytest.mark.parametrize("norm", NORMS)
@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(case=planes())
def test_projection_stays_in_the_box_meets_the_plane_and_goes_no_farther_than_needed(norm, case):
    z, other, w, within = case
    corner = (w > 0).float()
    b = (other * w).sum(1) if within else (corner * w).sum(1) + 0.5 * w.abs().sum(1) + 1
    d = PROJECTIONS[norm](z, w, b)
    rounding = 2e-6 * w.abs().sum(1) + 1e-9 * z.shape[1]
    assert (z + d >= -1e-6).all() and (z + d <= 1 + 1e-6).all()
    reference = by_sorting(z.double(), w.double(), b.double(), norm)
    assert (((z + d).double() * w).sum(1) - ((z + reference) * w).sum(1)).abs().le(rounding).all()
    moves = (w != 0) if norm == "linf" else w.abs() >= SMALLEST
    assert (d[~moves] == 0).all()
    if within:
        assert (((z + d) * w).sum(1) - b).abs().le(rounding).all()
    else:
        torch.testing.assert_close(torch.where(moves, z + d, 0), torch.where(moves, corner, 0), rtol=0, atol=1e-6)
    # Shorter than `other - z`, which also leads there, up to what rounding of the plane can move the flattest pixel.
    flattest = torch.where(moves, w.abs(), torch.inf).amin(1)
    slack = (rounding / flattest).clamp_max(1) + 1e-6
    assert (size(d, norm) <= size(reference, norm) + slack).all()
    if within:
        assert (size(d, norm) <= size(other - z, norm) + slack).all()


def test_the_rounds_suffice_where_newton_passes_one_stop_at_a_time():
    """Rates that fall and stops that rise geometrically: the gap and the slope shrink as slowly as they can."""
    pixels = 20
    rates = 4.0 ** -torch.arange(pixels, dtype=torch.float64)
    stops = 2.0 ** -torch.arange(pixels - 1, -1, -1, dtype=torch.float64)
    for share in (0.5, 0.9, 0.999, 0.999999):
        gap = share * (rates * stops).sum()
        d = PROJECTIONS["linf"](stops[None], rates[None], ((stops * rates).sum() - gap)[None])
        assert abs((-d * rates).sum() - gap) < 2.0 ** -24 * rates.sum()


@pytest.mark.parametrize("norm", NORMS)
def test_a_handful_of_rounds_will_mostly_do(norm, monkeypatch):
    """The time of a search: rounding does not set l swinging, and a plane out of reach is not run after."""
    rounds, compare = [], torch.gt
    monkeypatch.setattr(projection.torch, "gt", lambda *args, **kwargs: rounds.append(1) or compare(*args, **kwargs))
    generator = torch.Generator().manual_seed(0)
    z, w = torch.rand(64, 3072, generator=generator), torch.randn(64, 3072, generator=generator)
    for share, most in ((0.01, 5), (0.1, 6), (0.5, 8), (0.9, 10), (0.999, 16), (0.9999, 18), (0.99999, 20), (2, 2)):
        rounds.clear()
        PROJECTIONS[norm](z, w, ((z + share * ((w > 0).float() - z)) * w).sum(1))
        assert len(rounds) <= most
