"""Part 1's learning rates at their boundaries."""

import math

import pytest

from rpat.schedules import schedule


def rates(name, epochs, **options):
    """The learning rate of each epoch's first and last step."""
    found = schedule(name, lr=0.1, epochs=epochs, **options)
    assert {found(epoch).momentum for epoch in range(epochs)} == {0.9}
    for epoch in range(epochs):
        assert found(epoch).lr == found(epoch + 0.999).lr
    return [found(epoch).lr for epoch in range(epochs)]


@pytest.mark.parametrize(("epochs", "falls"), [(200, (100, 150)), (201, (100, 150)), (300, (150, 225)),
                                               (110, (100, 105)), (199, (100, 105))])
def test_the_rate_falls_where_it_is_released_to(epochs, falls):
    found = rates("multi_step_decay", epochs)
    want = [0.1] * falls[0] + [0.01] * (falls[1] - falls[0]) + [0.001] * (epochs - falls[1])
    assert found == pytest.approx(want)


def test_short_runs_have_one_rate_unless_the_schedule_is_scaled():
    assert rates("multi_step_decay", 100) == [0.1] * 100
    assert rates("multi_step_decay", 10, scaled=True) == pytest.approx([0.1] * 5 + [0.01] * 2 + [0.001] * 3)
    assert rates("multi_step_decay", 1, scaled=True) == [0.1]
    assert rates("multi_step_decay", 200, scaled=True) == rates("multi_step_decay", 200)


def test_cosine_goes_by_epochs_counted_from_one():
    found = rates("cosine", 8)
    assert found == pytest.approx([0.05 * (1 + math.cos(math.pi * (e - 1) / 8)) for e in range(1, 9)])
    assert found[0] == 0.1 and found[4] == pytest.approx(0.05) and found[7] > 0


def test_what_is_no_schedule():
    with pytest.raises(ValueError, match="no schedule"):
        schedule("linear", lr=0.1, epochs=2)
    with pytest.raises(ValueError, match="positive"):
        schedule("cosine", lr=0.1, epochs=0)
