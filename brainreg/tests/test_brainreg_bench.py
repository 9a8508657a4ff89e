"""The released training step with pairs computes what ours does; rows of the regulariser."""

import itertools

import pytest
import torch

from brainreg import bench
from brainreg.network import build
from common.benchmark import forward_operations
from common.tests.bench_parts import apart, plain, tiny


def both_ways():
    settings = tiny(width=4, batch=4, images=40)
    ours = bench.our_step(settings, plain())
    torch.manual_seed(0)
    network = build("resnet18", classes=10, channels=1, width=4, scale=bench.SCALE, shift=bench.SHIFT)
    batches = ours.batches
    theirs = bench.Originals(network, batches.images / bench.SCALE + bench.SHIFT, batches.similarity, batches.pairs)
    return ours, theirs


def test_both_ways_take_the_same_steps_in_float32():
    ours, theirs = both_ways()
    drawn = ours.batches.drawn(0)[0]
    theirs.waiting = itertools.repeat(drawn)                   # the pairs of our first batch, which `apart` repeats
    weights, statistics = apart(ours, theirs.network, theirs.step, 1)
    assert weights < 0.01 and statistics < 0.01
    means = zip(ours.network.running_mean, theirs.network.running_mean, strict=True)
    assert all(torch.allclose(a, b, atol=1e-4) and a.any() for a, b in means)


def test_pairs_are_drawn_again_when_they_are_used_up():
    _, theirs = both_ways()
    theirs.pairs = theirs.pairs[:2 * bench.PAIRS + 1]
    theirs.__post_init__()
    drawn = [theirs.draw() for _ in range(3)]
    assert all(each.shape == (bench.PAIRS, 2) for each in drawn)
    assert not torch.equal(drawn[0], drawn[2])


def test_the_row_of_the_step():
    settings = bench.Settings(batch=4, rounds=1, matrix=32, network_width=2)
    row, = bench.measure_step(settings, plain())
    network = build("resnet18", classes=10, channels=1, width=2)
    assert row["operations_per_image"] == pytest.approx(3 * (1 + 2 * 16 / 4) * forward_operations(network, channels=1))
    assert row["ours"]["images_per_block"] == 4 and row["originals"]["peak_bytes"] > 0
    said, = bench.notes({"network": "resnet18", "network_width": 2}, [row])
    assert "class images" in said
