"""DyART's average: the table of papers/dyart.md, the released updates (tests/golden), and its two quirks."""

import copy

import pytest
import torch
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from common import ema
from dyart.averaging import averaging, decay_at, released_steps

CIFAR, TINY = 50_000, 100_000


def first(decay, steps_per_epoch, wanted, limit=200_000):
    """The first step whose decay is `wanted`, as (epoch from 0, batch from 1) and the decay."""
    step = next(step for step in range(limit) if wanted(decay(step)))
    return (step // steps_per_epoch, step % steps_per_epoch + 1), decay(step)


@pytest.mark.parametrize(("n", "batch", "epochs", "u", "batches", "warmup", "starts", "decay", "full"), [
    (CIFAR, 256, 200, 196, 196, 980, (5, 196), 0.1, (15, 26)),
    (CIFAR, 256, 100, 196, 196, 490, (3, 98), 0.1, (12, 124)),
    (CIFAR, 512, 800, 98, 98, 1960, (20, 98), 0.1, (39, 26)),
    (CIFAR, 256, 22, 196, 196, 107.8, (1, 108), 0.1176471, (10, 134)),
    (TINY, 256, 100, 391, 352, 977.5, (3, 196), 0.1428571, (8, 31)),
    (TINY, 256, 42, 391, 352, 410.55, (2, 20), 0.1387560, (6, 246))])
def test_the_table(n, batch, epochs, u, batches, warmup, starts, decay, full):
    assert released_steps(n, batch) == u
    average = averaging(epochs=epochs, steps_per_epoch=batches, released_steps=u)
    assert average.buffers == "copy"
    where, value = first(average.decay, batches, lambda decay: decay > 0)
    assert where == starts and value == pytest.approx(decay, abs=5e-8)
    g = (starts[0] - 1) * u + starts[1]
    assert 0 <= g - warmup < 1 and decay_at(g, warmup) == pytest.approx(value)
    assert first(average.decay, batches, lambda decay: decay >= 0.995) == (full, 0.995)
    assert [average.decay(step) for step in (0, 10**6)] == [0, 0.995]


def test_released_steps_counts_one_more_where_the_batch_divides_the_images():
    assert [released_steps(CIFAR, batch) for batch in (500, 512, 50_000, 50_001)] == [101, 98, 2, 1]


def test_the_released_updates(golden, tinybn):
    steps = [int(key.split("step")[1].split("_")[0]) for key in golden.keys("dyart/ema_after_step")]
    assert sorted(steps) == [-3, 0, 4, 5, 50, 5000]
    for step in steps:
        average, model = tinybn, copy.deepcopy(tinybn)
        vector_to_parameters(golden["dyart/ema_wa_0"], average.parameters())
        vector_to_parameters(golden["dyart/ema_model"], model.parameters())
        ema.update(average, model, decay_at(step, 5), "copy")
        torch.testing.assert_close(parameters_to_vector(average.parameters()).detach(),
                                   golden[f"dyart/ema_after_step{step}_warmup5"], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("d", "decay"), [(0, 0.1), (1, 2 / 11), (8, 0.5), (1789, 1790 / 1799), (1790, 0.995),
                                          (1791, 0.995), (10**9, 0.995)])
def test_the_decay_by_updates_since_the_warm_up(d, decay):
    assert decay_at(100 + d, 100) == pytest.approx(decay, rel=1e-12)
    assert decay_at(99, 100) == decay_at(-(10**6), 100) == 0
    assert (decay_at(100 + d, 100) == 0.995) == (d >= 1790)


def global_steps(steps, **options):
    """The g of the first steps, read off their decays: (1+d)/(10+d) names d, where W is far below."""
    decays = [averaging(tau=1.0, **options).decay(step) for step in range(steps)]
    warmup = 0.025 * options["epochs"] * options["released_steps"]
    return [round((10 * decay - 1) / (1 - decay) + warmup) if decay else None for decay in decays]


def test_without_the_offset_the_first_step_is_the_first():
    # 1 epoch of 4 steps: W = 0.1.
    assert global_steps(4, epochs=1, steps_per_epoch=4, released_steps=4, offset=False) == [1, 2, 3, 4]
    assert global_steps(9, epochs=1, steps_per_epoch=4, released_steps=4) == [None] * 4 + [1, 2, 3, 4, 5]


def test_a_step_count_that_is_too_high_makes_g_jump():
    assert global_steps(9, epochs=1, steps_per_epoch=3, released_steps=5) == [None] * 3 + [1, 2, 3, 6, 7, 8]
    assert global_steps(6, epochs=1, steps_per_epoch=3, released_steps=5, offset=False) == [1, 2, 3, 6, 7, 8]


def test_tau_is_a_share_above_0():
    for tau in (0, -0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="tau"):
            averaging(epochs=1, steps_per_epoch=1, released_steps=1, tau=tau)
    assert averaging(epochs=1, steps_per_epoch=1, released_steps=1, tau=0.3).decay(100) == 0.3
    for wrong in ({"epochs": 0}, {"steps_per_epoch": 0}, {"released_steps": 0}):
        with pytest.raises(ValueError, match="positive"):
            averaging(**{"epochs": 1, "steps_per_epoch": 1, "released_steps": 1} | wrong)
