"""The learning rate by epoch: the released code's values, and the cycle at other lengths."""

import pytest

from brainreg.schedules import phases


def test_the_released_codes_rate_of_every_epoch(golden):
    theirs = golden["brainreg/lr_by_epoch"].tolist()
    assert [phases()(epoch).lr for epoch in range(40)] == pytest.approx(theirs, rel=1e-12)


def test_the_five_rates_and_their_return():
    found = [phases()(epoch).lr for epoch in (0, 3, 4, 8, 12, 16, 19, 20, 24, 39, 40)]
    assert found == pytest.approx([0.1, 0.1, 0.03, 0.009, 0.0027, 0.00081, 0.00081, 0.1, 0.03, 0.00081, 0.1])


def test_the_rate_changes_between_epochs_only():
    for epoch in range(25):
        assert phases()(epoch) == phases()(epoch + 0.5) == phases()(epoch + 0.999)


def test_other_phases():
    short = phases(0.2, decay=0.5, count=3, duration=1, momentum=0.8)
    assert [short(epoch) for epoch in range(5)] == [(0.2, 0.8), (0.1, 0.8), (0.05, 0.8), (0.2, 0.8), (0.1, 0.8)]
    assert {phases(0.2, count=1, duration=3)(epoch).lr for epoch in range(9)} == {0.2}


@pytest.mark.parametrize("wrong", [{"lr": 0}, {"lr": -0.1}, {"decay": 0}, {"count": 0}, {"duration": 0}])
def test_what_is_no_cycle(wrong):
    with pytest.raises(ValueError, match="must be positive"):
        phases(**wrong)
