"""Part 2's learning rates, weights of D, weight average and --scale_schedule: the constants of the released code."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpat.rebat import Beta
from rpat.sota_schedules import at_the_end_of_steps, averaging, learning_rate
from rpat.sota_settings import scaled

STEPS = 391


def lr_of_step(kind, epoch, index, **options):
    """What `fit` gives a step: it asks with the progress before it."""
    return at_the_end_of_steps(learning_rate(kind, **options), STEPS)(epoch + index / STEPS).lr


@pytest.mark.parametrize(("epoch", "index", "lr"), [
    (98, 390, 0.1), (99, 389, 0.1), (99, 390, 0.066667), (100, 0, 0.066667), (149, 389, 0.066667),
    (149, 390, 0.044444), (199, 390, 0.044444), (0, 0, 0.1)])
def test_piecewise_falls_in_the_last_step_of_the_epoch_before_a_stage(epoch, index, lr):
    assert lr_of_step("piecewise", epoch, index) == pytest.approx(lr, abs=1e-6)


def test_the_other_schedules_end_where_they_should():
    assert lr_of_step("linear", 199, 390) == pytest.approx(0.001)
    assert lr_of_step("cosine", 199, 390) == 0
    assert lr_of_step("constant", 199, 390) == 0.1
    assert lr_of_step("linear", 65, 390) == pytest.approx(0.1) == lr_of_step("linear", 10, 5)
    assert lr_of_step("linear", 132, 390) == pytest.approx(0.01)           # 2*200//3 = 133
    assert lr_of_step("cosine", 99, 390) == pytest.approx(0.05)
    assert lr_of_step("piecewise", 9, 390, lr_max=0.2, factor=2, stage1=5, stage2=10) == pytest.approx(0.05)
    with pytest.raises(ValueError, match="steps"):
        learning_rate("steps")


@given(epoch=st.integers(0, 250), index=st.integers(0, 400), steps=st.integers(1, 400))
def test_a_step_is_found_again_from_its_progress(epoch, index, steps):
    index %= steps
    asked = []
    at_the_end_of_steps(lambda t: asked.append(t) or 0.1, steps)(epoch + index / steps)
    assert asked == [(epoch * steps + index + 1) / steps]


def test_the_dependent_weight_follows_the_rate_and_leaves_out_the_end_of_a_cosine():
    beta = Beta(schedule="dependent", lr=learning_rate("piecewise"))
    assert beta(105, 0, STEPS) == pytest.approx(0.25) and beta(150, 0, STEPS) == pytest.approx(0.625)
    assert beta(104, 390, STEPS) == 0 and beta(149, 390, STEPS) == pytest.approx(0.625)
    beta = Beta(schedule="dependent", lr=learning_rate("cosine"))
    assert math.isfinite(beta(199, 389, STEPS)) and beta(199, 390, STEPS) == 0


def test_the_average_begins_with_the_warm_ups_last_step_done():
    average = averaging(warmup_epochs=105, decay_rate=0.999, steps_per_epoch=STEPS)
    assert [average.decay(step) for step in (0, 105 * STEPS - 1, 105 * STEPS, 200 * STEPS)] == [0, 0, 0.999, 0.999]
    assert average.buffers == "statistics"


@pytest.mark.parametrize(("epochs", "stages"), [(200, [100, 150, 105]), (100, [50, 75, 53]), (20, [10, 15, 11]),
                                                (10, [5, 8, 5]), (2, [1, 2, 1])])
def test_the_stages_of_a_short_run(epochs, stages):
    assert [scaled(stage, epochs) for stage in (100, 150, 105)] == stages
