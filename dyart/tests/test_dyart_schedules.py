"""DyART's rates and momenta: against torch's own schedulers, the table of papers/dyart.md, and rounded progress."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dyart.schedules import one_cycle, schedule


def by_torch(make, steps, lr=0.1):
    """(lr, momentum) that torch's scheduler gives at each of `steps` steps."""
    optimiser = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=lr, momentum=0.9)
    scheduler, seen = make(optimiser), []
    for step in range(steps):
        group = optimiser.param_groups[0]
        seen.append((group["lr"], group["momentum"]))
        optimiser.step()
        if step + 1 < steps:
            scheduler.step()
    return seen


def close(ours, theirs):
    return [tuple(one) for one in ours] == [pytest.approx(two, rel=1e-12, abs=1e-18) for two in theirs]


@pytest.mark.parametrize(("epochs", "lr", "table"), [
    (200, 0.1, {0: (0.004, 0.95), 1: (0.0180588745, 0.93535534), 2: (0.052, 0.9), 3: (0.0859411255, None),
                4: (0.1, 0.85), 5: (0.0999935113, None), 50: (0.0868865865, 0.86311347),
                100: (0.0512083824, 0.89879181), 199: (4e-7, 0.95)}),
    (800, 0.1, {0: (0.004, None), 10: (0.0559638086, None), 19: (0.1, 0.85), 400: (0.0518122531, 0.89818794),
                799: (4e-7, None)}),
    (100, 0.1, {0: (0.004, None), 1: (0.076, 0.875), 2: (0.0999935113, 0.85000649), 50: (0.0504029623, 0.89959724),
                99: (4e-7, None)}),
    (100, 0.05, {0: (0.002, None), 1: (0.038, 0.875), 2: (0.04999675565, 0.85000649), 50: (0.02520148115, 0.89959724),
                 99: (2e-7, None)})])
def test_the_table_of_cosinew(epochs, lr, table):
    rates = schedule("cosinew", lr=lr, epochs=epochs, steps_per_epoch=196)
    for epoch, (rate, momentum) in table.items():
        assert rates(epoch).lr == pytest.approx(rate, rel=2e-8), epoch
        if momentum is not None:
            assert rates(epoch).momentum == pytest.approx(momentum, abs=6e-9), epoch


@pytest.mark.parametrize("epochs", [1, 2, 10, 39, 41, 79, 80, 81, 100, 200, 800])
def test_cosinew_is_torchs_cycle_in_every_epoch(epochs):
    rates = schedule("cosinew", lr=0.1, epochs=epochs, steps_per_epoch=7)
    theirs = by_torch(lambda optimiser: torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=0.1, pct_start=0.025, total_steps=epochs), epochs)
    assert close([rates(epoch) for epoch in range(epochs)], theirs)
    assert close([rates(epoch + 6 / 7) for epoch in range(epochs)], theirs)          # nothing moves within an epoch


@pytest.mark.parametrize(("epochs", "batches", "planned"), [(3, 196, None), (5, 7, None), (1, 1, None), (2, 352, 391)])
def test_cyclic_is_torchs_cycle_in_every_batch(epochs, batches, planned):
    rates = schedule("cyclic", lr=0.1, epochs=epochs, steps_per_epoch=batches, released_steps=planned)
    theirs = by_torch(lambda optimiser: torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=0.1, pct_start=0.25, steps_per_epoch=planned or batches, epochs=epochs), epochs * batches)
    assert close([rates(e + i / batches) for e in range(epochs) for i in range(batches)], theirs)


@pytest.mark.parametrize("epochs", [1, 2, 3, 22, 42, 101])
def test_step_is_torchs_multi_step(epochs):
    rates = schedule("step", lr=0.1, epochs=epochs, steps_per_epoch=5)
    theirs = by_torch(lambda optimiser: torch.optim.lr_scheduler.MultiStepLR(
        optimiser, gamma=0.1, milestones=[int(epochs * 0.5), int(epochs * 0.75)]), epochs)
    assert close([rates(epoch) for epoch in range(epochs)], theirs)
    assert close([rates(epoch + 0.8) for epoch in range(epochs)], theirs)


def test_the_burn_ins_have_their_first_rate_to_the_end():
    # 11 of 22 epochs and 21 of 42 are used.
    for epochs, last in ((22, 10), (42, 20)):
        rates = schedule("step", lr=0.1, epochs=epochs, steps_per_epoch=196)
        assert rates(last + 195 / 196) == (0.1, 0.9) and rates(last + 1).lr == pytest.approx(0.01)


def test_below_40_epochs_cosinew_has_no_warm_up():
    falling = schedule("cosinew", lr=0.1, epochs=39, steps_per_epoch=1)
    rates = [falling(epoch).lr for epoch in range(39)]
    assert rates == sorted(rates, reverse=True) and rates[0] == pytest.approx(0.1, rel=1e-4)
    # 40 epochs: torch divides 0 by 0; the warm-up has shrunk to its last moment.
    with pytest.raises(ZeroDivisionError):
        by_torch(lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=0.1, pct_start=0.025, total_steps=40), 1)
    at_40 = schedule("cosinew", lr=0.1, epochs=40, steps_per_epoch=1)
    assert at_40(0) == pytest.approx((0.1, 0.85)) and at_40(39) == pytest.approx((4e-7, 0.95))
    assert [at_40(epoch).lr for epoch in range(40)] == sorted((at_40(epoch).lr for epoch in range(40)), reverse=True)
    # In the next longer run the first epoch alone is below the rates that follow.
    at_41 = schedule("cosinew", lr=0.1, epochs=41, steps_per_epoch=1)
    assert at_41(0).lr == pytest.approx(0.004) and at_41(1).lr > 0.099


def test_the_end_is_held():
    for name in ("cosinew", "cyclic"):
        rates = schedule(name, lr=0.1, epochs=50, steps_per_epoch=4)
        assert rates(50) == rates(60) == pytest.approx((4e-7, 0.95))


@given(epochs=st.integers(1, 2000), steps=st.integers(1, 3000), share=st.floats(0, 1, exclude_max=True),
       place=st.floats(0, 1, exclude_max=True))
def test_rounded_progress_means_the_step_that_it_was_made_from(epochs, steps, share, place):
    epoch, index = int(share * epochs), int(place * steps)
    progress = epoch + index / steps
    by_epoch = schedule("cosinew", lr=0.1, epochs=epochs, steps_per_epoch=steps)
    by_batch = schedule("cyclic", lr=0.1, epochs=epochs, steps_per_epoch=steps)
    assert by_epoch(progress) == one_cycle(epoch, epochs, 0.1, 0.025)
    assert by_batch(progress) == one_cycle(epoch * steps + index, epochs * steps, 0.1, 0.25)


def test_what_is_no_schedule_is_refused():
    with pytest.raises(ValueError, match="cosine"):
        schedule("cosine", lr=0.1, epochs=10, steps_per_epoch=3)
    for lr, epochs, steps in ((0, 10, 3), (0.1, 0, 3), (0.1, 10, 0)):
        with pytest.raises(ValueError, match="positive"):
            schedule("cosinew", lr=lr, epochs=epochs, steps_per_epoch=steps)
