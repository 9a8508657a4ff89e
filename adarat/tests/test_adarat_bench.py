"""The originals' way of a training step computes what ours does; only time and memory differ."""

import copy

import pytest
import torch

from adarat import bench
from common.bench_step import network
from common.tests.bench_parts import CPU, SameDraws, apart, plain, tiny


@pytest.mark.parametrize("name", ["pgd-training", "pgd-training-attack-train-bn", "trades"])
def test_both_ways_take_the_same_steps_in_float32(name, monkeypatch):
    SameDraws(monkeypatch)
    settings = tiny()
    ours, theirs = bench.STEPS[name](settings, plain()), bench.Originals(network(settings), CPU, settings)

    def step(x, y):
        if name == "pgd-training":
            theirs.plain(x, y, training=False, steps=settings.steps)
        else:
            theirs.released(x, y, steps=settings.steps, trades=name == "trades")

    weights, statistics = apart(ours, theirs.network, step, settings.steps)
    assert weights < 0.02 and statistics < 0.02


def test_trades_is_not_pgd_at():
    settings = tiny()
    theirs = bench.Originals(network(settings), CPU, settings)
    x, y, start = torch.rand(8, 3, 32, 32), torch.arange(8), torch.rand(8, 3, 32, 32)
    found = [theirs.attack(x, y, training=True, steps=3, start=start, trades=trades) for trades in (False, True)]
    assert not torch.allclose(*found, atol=1e-3)


def test_generalist_ends_with_the_same_learners_and_mix(monkeypatch):
    SameDraws(monkeypatch)
    settings = tiny()
    ours = bench.STEPS["generalist"](settings, plain())
    theirs = bench.OriginalGeneralist(network(settings), CPU, settings)
    weights, statistics = apart(ours, theirs.network, lambda x, y: theirs.step(x, y, steps=settings.steps),
                                settings.steps)
    assert weights < 0.02 and statistics < 0.02
    start, st, mixed = network(settings).state_dict(), ours.five.st.state_dict(), ours.five.mixed.state_dict()
    for name, value in theirs.st.network.state_dict().items():
        assert torch.allclose(value, st[name], atol=1e-5), name
    for name, _ in theirs.network.named_parameters():
        assert torch.allclose(theirs.shadows[2][name], mixed[name], atol=1e-5), name
        assert name.startswith("bn") or not torch.equal(start[name], mixed[name]), name


def test_a_row_says_what_is_useful(monkeypatch):
    settings = tiny(steps=2)
    one = bench.forward_operations(network(settings))
    passes = {"pgd-training": 2 * 2 + 3, "pgd-training-attack-train-bn": 2 * 2 + 3 + 1, "pgd-attack": 2 * 2,
              "trades": 1 + 2 * 2 + 3 + 3, "generalist": 2 * 2 + 3 + 1 + 3}
    assert set(passes) == set(bench.ROWS)
    for name, wanted in passes.items():
        row, = bench.ROWS[name](settings, plain())
        assert row["name"] == name and row["operations_per_image"] == wanted * one
        for way in ("originals", "ours"):
            assert row[way]["peak_bytes"] > 0
            assert row[way]["share_of_matrix_rate"] == pytest.approx(
                row[way]["images_per_second"]["median"] * wanted * one / row["matrix_operations_per_second"])


def test_our_attack_stays_in_the_ball_and_theirs_too():
    settings = tiny()
    theirs = bench.Originals(copy.deepcopy(network(settings)), CPU, settings)
    x, y = torch.rand(8, 3, 32, 32), torch.arange(8)
    found = theirs.attack(x, y, training=False, steps=10)
    assert (found - x).abs().max() <= settings.eps + 1e-6 and found.min() >= 0 and found.max() <= 1
    assert theirs.network.training and not theirs.network.bn1.running_mean.any()
