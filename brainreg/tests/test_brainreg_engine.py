"""How the pair ResNet runs on an engine: pairs through the runner, float32 cosines under autocast, attacks' views."""

import copy

import pytest
import torch
from torch import nn

from brainreg.network import Pair
from brainreg.tests.brainreg_networks import a_pair, cosines, pictures, small
from common.engine import Engine

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_cosines_are_float32_under_autocast(name):
    """Convolutions run in bf16; from their features on, nothing does."""
    engine, network, pair = Engine(CPU, "bf16", channels_last=True), small(name).eval(), a_pair()
    with torch.autocast("cpu", torch.bfloat16):
        assert network.features(pair.rows)[2].dtype == torch.bfloat16
        wanted = network.layer_weight.double().softmax(0)[:, None] * cosines(network, pair)
    found = engine.runner(engine.place(copy.deepcopy(network)))(pair)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), wanted.sum(0), rtol=0, atol=2e-6)
    assert not torch.allclose(found, network(pair), rtol=0, atol=1e-6)


def test_mu_stays_float32_and_moves_alike_under_autocast():
    engine, network, plain = Engine(CPU, "bf16", channels_last=True), small(), small()
    engine.runner(engine.place(network))(a_pair()).sum().backward()
    plain(a_pair())
    for ours, theirs in zip(network.running_mean, plain.running_mean, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, rtol=0.02, atol=2e-3)
    assert network.layer_weight.grad.isfinite().all()


@pytest.mark.parametrize("last", [True, False])
def test_the_runner_hands_pairs_through(last):
    """Each tensor of a NamedTuple in the engine's memory format, as the same NamedTuple, also of a class batch."""
    class Records(nn.Module):
        def forward(self, x):
            self.seen = x
            return torch.zeros(4, dtype=torch.bfloat16)

    network, pair = Records(), a_pair(size=(3, 12, 20))
    answer = Engine(CPU, channels_last=last).runner(network)(pair)
    assert isinstance(network.seen, Pair) and answer.dtype == torch.float32
    for given, seen in zip(pair, network.seen, strict=True):
        assert torch.equal(given, seen)
        assert seen.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_attacks_and_searches_see_the_same_network(name):
    """The network can be traced, so the fast views are used, and their logits are the network's."""
    engine = Engine(CPU, "bf16", channels_last=True, fast_attacks=True)
    network, x = engine.place(small(name, scale=5, shift=0.5)).eval(), pictures(6, 1, 16, 16)
    logits = network(x).detach()
    with engine.searching(network) as view:
        assert view is not network
        torch.testing.assert_close(view(x), logits, rtol=1e-4, atol=1e-5)
    with engine.attacking(network) as view:
        torch.testing.assert_close(view(x), logits, rtol=0, atol=0.02 * logits.abs().max().item())
    assert engine.notes == []
