"""The originals' way of RPAT's training steps computes what ours does; only time and memory differ."""

import pytest
import torch

from common.bench_step import network
from common.benchmark import forward_operations
from common.tests.bench_parts import SameDraws, apart, plain, tiny
from rpat import bench


# In float16 a start is rounded twice in their way and once in ours: a few pixels end a step apart.
@pytest.mark.parametrize(("name", "most"), [("rpat", 0.02), ("rpat-trades", 0.02), ("consistency", 0.02),
                                            ("rebat", 0.05), ("rpat++", 0.05)])
def test_both_ways_take_the_same_steps_in_float32(name, most, monkeypatch):
    SameDraws(monkeypatch)
    settings = tiny()
    ours, theirs = bench.STEPS[name](settings, plain()), bench.Originals(network(settings), settings)
    step = bench.METHODS[name][2]
    weights, statistics = apart(ours, theirs.network, lambda x, y: step(theirs, x, y, settings.steps), settings.steps)
    assert weights < most and statistics < most
    if name in ("rebat", "rpat++"):
        for (label, value), average in zip(ours.averaged.named_parameters(), theirs.average.parameters(), strict=True):
            assert torch.allclose(value, average, atol=1e-5), label
        assert torch.allclose(ours.averaged.bn1.running_mean, theirs.average.bn1.running_mean, atol=1e-5)
        assert not torch.equal(ours.averaged.conv1.weight, network(settings).conv1.weight)


@pytest.mark.parametrize("name", ["rpat", "rebat"])
def test_their_attacks_pile_up_gradients_of_the_weights(name):
    settings = tiny()
    theirs = bench.Originals(network(settings), settings)
    x, y = torch.rand(8, 3, 32, 32), torch.arange(8)
    if name == "rpat":
        found = theirs.pgd(x, y, 2)
        assert not theirs.network.bn1.running_mean.any()                        # eval mode
    else:
        found = x + theirs.half_pgd(x.half(), y, 2)
        assert theirs.network.bn1.running_mean.any()                            # train mode
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in theirs.network.parameters()
               if parameter.dim() == 4)
    assert 0 < (found - x).abs().max() <= settings.eps + 1e-4


def test_rows_count_useful_passes_of_each_image():
    settings = tiny(steps=2)
    one = forward_operations(network(settings))
    passes = {"rpat": 4 + 3 * 3, "rpat-trades": 1 + 4 + 3 * 3 + 1, "consistency": 2 * (4 + 3),
              "rebat": 4 + 1 + 3 + 1 + 1, "rpat++": 4 + 1 + 3 + 2 + 1}
    assert set(passes) == set(bench.ROWS) == set(bench.STEPS)
    for name, wanted in passes.items():
        row, = bench.ROWS[name](settings, plain())
        assert row["name"] == name and row["operations_per_image"] == wanted * one
        assert row["ours"]["images_per_block"] == settings.batch and row["ours"]["peak_bytes"] > 0
