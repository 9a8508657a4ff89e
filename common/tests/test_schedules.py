"""Schedules at their boundaries, averages of counters, streams of randomness."""

import pytest
import torch
from torch import nn

from common import ema
from common.schedules import constant, interpolate, steps
from common.seeds import fold

FROZEN = (5335264006404972409, 5309090757887129264)
PAPER = steps(0.1, (60, 90, 110), (0.1, 0.01, 0.005))


def test_adarats_learning_rate_by_epoch_is_the_released_codes(golden):
    assert [PAPER(epoch).lr for epoch in range(120)] == golden["adarat/lr_by_epoch"].tolist()


@pytest.mark.parametrize(("progress", "lr"), [
    (0, 0.1), (59.999, 0.1), (60, 0.01), (60.5, 0.01), (89.999, 0.01), (90, 0.001), (109.999, 0.001), (110, 0.0005),
    (1000, 0.0005)])
def test_a_boundary_counts_from_the_epoch_that_it_names(progress, lr):
    assert PAPER(progress).lr == pytest.approx(lr, rel=1e-12)
    assert PAPER(progress).momentum == 0.9


def test_a_schedule_of_steps_needs_a_factor_per_boundary_in_order():
    for boundaries, factors in (((1, 2), (0.1,)), ((2, 1), (0.1, 0.01))):
        with pytest.raises(ValueError, match="one factor per boundary"):
            steps(0.1, boundaries, factors)
    assert steps(0.1, (), ())(5).lr == 0.1
    assert steps(0.1, (1,), (0.5,), momentum=0.8)(1) == (0.05, 0.8)


def test_constant():
    assert constant(0.3)(0) == constant(0.3)(99.5) == (0.3, 0.9)
    assert constant(0.3, 0.5)(1).momentum == 0.5


@pytest.mark.parametrize(("at", "value"), [(-5, 1.0), (0, 1.0), (5, 2.0), (10, 3.0), (15, 1.5), (20, 0.0), (99, 0.0)])
def test_interpolation_at_its_knots_between_and_outside_them(at, value):
    assert interpolate((0, 10, 20), (1.0, 3.0, 0.0), at) == pytest.approx(value, abs=1e-12)


def test_interpolation_takes_the_later_value_at_a_doubled_knot_inside():
    """floor(E/3) and floor(2E/3) of Generalist meet for few epochs."""
    assert interpolate((0, 0, 1, 2), (1.0, 1.0, 0.5, 0.25), 1) == 0.5
    assert interpolate((0, 1, 1, 2), (1.0, 1.0, 0.5, 0.25), 1.5) == pytest.approx(0.375)


@pytest.mark.parametrize(("decay", "average", "value", "expected"), [
    (0.1, 0, 13, 11), (0.5, 3, 4, 3), (0.999, 100, 1000, 100), (0.0, 5, 9, 9)])
def test_a_counter_is_averaged_and_truncated(decay, average, value, expected):
    counters, floats = torch.tensor(average), torch.tensor([float(average)])
    ema.move([counters, floats], [torch.tensor(value), torch.tensor([float(value)])], decay)
    assert counters.dtype == torch.int64 and counters.item() == expected
    torch.testing.assert_close(floats, torch.tensor([decay * average + (1 - decay) * value]))


def test_an_average_covers_buffers_unless_they_are_copied():
    first, second = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    with torch.no_grad():
        second.weight.fill_(3.0)
        second.running_mean.fill_(2.0)
        second.num_batches_tracked.fill_(7)
    average = ema.averaged_copy(first)
    assert not average.training and not average.weight.requires_grad
    ema.update(average, second, 0.5, "copy")
    assert average.weight.tolist() == [2.0, 2.0] and average.running_mean.tolist() == [0.0, 0.0]
    ema.update(average, second, 0.5)
    assert average.running_mean.tolist() == [1.0, 1.0] and average.num_batches_tracked == 3
    ema.copy_buffers(average, second)
    assert average.running_mean.tolist() == [2.0, 2.0] and average.num_batches_tracked == 7
    assert second.weight.tolist() == [3.0, 3.0]


def test_streams_of_randomness_differ_and_never_change():
    assert fold(1, "step", 0) == FROZEN[0]
    assert fold(1, "order", 3) == FROZEN[1]
    streams = {fold(seed, purpose, number) for seed in (0, 1, 12) for purpose in ("step", "order", "augment")
               for number in range(50)}
    assert len(streams) == 3 * 3 * 50
    assert len({fold(1, 23), fold(12, 3), fold(1, "2", 3), fold(1, 2, 3), fold(1, "23")}) == 5
    assert all(0 <= stream < 2 ** 63 for stream in streams)
    torch.Generator().manual_seed(max(streams))
