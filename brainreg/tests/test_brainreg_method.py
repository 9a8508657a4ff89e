"""The regulariser and the objective: the released code's values, the paper's constants, limits, and who moves what."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from brainreg.method import PairBatch, Regularised, regulariser, transform
from brainreg.network import Pair, PairResNet
from common.engine import Engine
from common.types import Batch, StepContext

SIMILARITY = st.floats(-1, 1, width=32)


def small():
    torch.manual_seed(0)
    return PairResNet((1, 1, 1, 1), classes=5, width=4).train()


def batch():
    """Six class images of 16 pixels; four pairs of another size."""
    generator = torch.Generator().manual_seed(1)
    images = [torch.rand(count, 1, *size, generator=generator) for count, size in ((6, (16, 16)), *[(4, (12, 20))] * 2)]
    return Batch(images[0], torch.arange(6) % 5, PairBatch(Pair(*images[1:]), torch.tensor([1.0, -1.0, 0.0, 0.3])))


def context():
    return StepContext(generator=torch.Generator())


def statistics(network):
    """Names and values of all running statistics of batch norm."""
    return {name: value.clone() for name, value in network.named_buffers()}


# --- the regulariser ---

def test_regulariser_and_gradient_of_the_released_code(golden):
    s = golden["brainreg/atanh_x"].requires_grad_()
    loss = regulariser(s, golden["brainreg/atanh_y"]).mean()
    torch.testing.assert_close(loss.detach(), golden["brainreg/atanh_loss"])
    torch.testing.assert_close(torch.autograd.grad(loss, s)[0], golden["brainreg/atanh_grad"], rtol=1e-5, atol=1e-6)


def test_constants_of_the_transform():
    values = torch.tensor([1.0, 0.8, 0.0, -0.8, -1.0], dtype=torch.float64)
    want = [12.206078, 2.197180, 0, -2.197180, -12.206078]
    assert transform(values).tolist() == pytest.approx(want, abs=5e-6)
    assert regulariser(torch.zeros(1), torch.ones(1)).item() == pytest.approx(148.988, rel=2e-3)
    assert regulariser(torch.zeros(1).double(), torch.ones(1).double()).item() == pytest.approx(148.988, abs=1e-3)
    assert transform(torch.tensor(0.3)).item() == pytest.approx(2 * math.atanh(0.3), abs=1e-4)


@given(SIMILARITY, st.booleans())
def test_equal_similarities_cost_nothing(value, arctanh):
    s = torch.tensor([value])
    assert regulariser(s, s.clone(), arctanh).item() == 0


@given(st.sampled_from([-1.0, 1.0]) | SIMILARITY, st.sampled_from([-1.0, 1.0]))
def test_the_ends_are_finite(value, target):
    s = torch.tensor([value], requires_grad=True)
    loss = regulariser(s, torch.tensor([target])).sum()
    loss.backward()
    assert loss.isfinite() and s.grad.isfinite().all() and loss >= 0


def test_without_arctanh():
    found = regulariser(torch.tensor([0.5, -0.25]), torch.tensor([1.0, 0.0]), arctanh=False)
    assert found.tolist() == [0.25, 0.0625]


# --- the objective ---

@pytest.mark.parametrize("arctanh", [True, False])
@pytest.mark.parametrize("moves", [True, False])
def test_loss_and_gradient_are_the_formulas(arctanh, moves):
    network, given = small(), batch()
    out = Regularised(10.0, arctanh, moves)(network, given, context())
    twin = small()
    logits, s = twin(given.x), twin(given.extra.pair)
    clean, pulled = F.cross_entropy(logits, given.y), regulariser(s, given.extra.target, arctanh).mean()
    torch.testing.assert_close(out.loss, clean + 10 * pulled)
    torch.testing.assert_close(out.logs, {"clean_loss": clean.detach(), "regulariser": pulled.detach(),
                                          "clean_accuracy": (logits.argmax(1) == given.y).float().mean()})
    assert not any(value.requires_grad for value in out.logs.values())
    out.loss.backward()
    (clean + 10 * pulled).backward()
    for (name, ours), theirs in zip(network.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=name)


@pytest.mark.parametrize("alpha", [None, 0, 0.0])
def test_without_alpha_only_the_class_batch_passes(alpha):
    network, twin, given = small(), small(), batch()
    out = Regularised(alpha)(network, given, context())
    loss = F.cross_entropy(twin(given.x), given.y)
    assert torch.equal(out.loss, loss) and set(out.logs) == {"clean_loss", "clean_accuracy"}
    assert all(torch.equal(a, b) for a, b in zip(network.state_dict().values(), twin.state_dict().values(),
                                                 strict=True))
    assert torch.equal(Regularised(alpha)(small(), Batch(given.x, given.y), context()).loss, loss)


def test_alpha_needs_pairs():
    given = batch()
    with pytest.raises(ValueError, match="no pairs of images"):
        Regularised(4.0)(small(), Batch(given.x, given.y), context())


def test_passes_and_their_order():
    network, given, seen = small(), batch(), []
    network.core["sections"][0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    Regularised(10.0)(network, given, context())
    assert len(seen) == 3
    assert all(map(torch.equal, seen, (given.x, *given.extra.pair)))


@pytest.mark.parametrize(("moves", "per_step"), [(True, 3), (False, 1)])
def test_quirk_pair_bn_counts(moves, per_step):
    """The released code moves batch norm three times a step."""
    network, objective = small(), Regularised(10.0, move_statistics=moves)
    for _ in range(2):
        objective(network, batch(), context()).loss.backward()
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 12 and {int(norm.num_batches_tracked) for norm in norms} == {2 * per_step}
    assert all(norm.track_running_stats for norm in norms)


def test_quirk_pair_bn_values():
    """Off, the statistics are those of the class pass alone, and mu moves all the same; on, they are another's."""
    given, plain, off, on = batch(), small(), small(), small()
    plain(given.x)
    Regularised(10.0, move_statistics=False)(off, given, context())
    Regularised(10.0)(on, given, context())
    for name, value in statistics(plain).items():
        assert torch.equal(statistics(off)[name], value)
        assert not torch.equal(statistics(on)[name], value)
    for mean, same, still in zip(off.running_mean, on.running_mean, plain.running_mean, strict=True):
        torch.testing.assert_close(mean, same)
        assert mean.abs().sum() > 0 and not still.any()


def test_no_gradient_for_mu_but_for_all_else():
    network = small()
    Regularised(10.0)(network, batch(), context()).loss.backward()
    without = {name for name, parameter in network.named_parameters() if parameter.grad is None}
    assert without == {f"running_mean.{layer}" for layer in range(5)}
    assert network.layer_weight.grad.abs().sum() > 0


def test_it_has_no_networks_of_its_own():
    assert Regularised(10.0).modules() == {}


@pytest.mark.parametrize("engine", [Engine(torch.device("cpu")),
                                    Engine(torch.device("cpu"), "bf16", channels_last=True, fast_attacks=True)],
                         ids=["fp32", "bf16"])
def test_training_pulls_similarities_towards_their_targets(engine):
    network, given = engine.place(small()), batch()
    before, runner = copy.deepcopy(network.state_dict()), engine.runner(network)
    found = []
    for _ in range(25):
        loss, logs = Regularised(1.0, arctanh=False)(runner, given, context())
        network.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.requires_grad:
                    parameter -= 0.05 * parameter.grad
        found.append(logs["regulariser"].item())
    assert loss.dtype == torch.float32 and found[-1] < 0.5 * found[0]
    assert not torch.equal(before["layer_weight"], network.layer_weight)
