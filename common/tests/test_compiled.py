"""torch.compile's place in the engine, with a backend that compiles nothing, and once with the real one."""

import copy

import pytest
import torch
from torch import nn

from common.attacks import PGD
from common.attacks.losses import cross_entropy
from common.attacks.pgd import input_gradient
from common.compiled import Compiled
from common.engine import Engine
from common.errors import UserError

CPU = torch.device("cpu")


def test_it_is_the_module_for_the_first_shape_and_all_others(tinybn):
    notes, module = [], tinybn.eval()
    compiled = Compiled(module, notes.append, backend="eager")
    ran, run = [], compiled.run
    compiled.run = lambda x: ran.append(len(x)) or run(x)
    for count in (4, 4, 3, 4):
        x = torch.rand(count, 3, 8, 8)
        assert torch.equal(compiled(x), module(x))
    assert ran == [4, 4, 4] and notes == []
    assert compiled.module is module and not isinstance(compiled, nn.Module)


def test_what_cannot_be_compiled_runs_as_it_is_and_says_so_once(tinybn):
    def broken(graph, inputs):
        raise ValueError("no\ncompiler")

    notes = []
    compiled = Compiled(tinybn.eval(), notes.append, backend=broken)
    for _ in range(3):
        x = torch.rand(4, 3, 8, 8)
        assert torch.equal(compiled(x), tinybn(x))
    assert len(notes) == 1 and notes[0].startswith("not compiled: ") and "no compiler" in notes[0]


def test_a_fault_of_the_modules_own_comes_through():
    class Faulty(nn.Module):
        def forward(self, x):
            raise ArithmeticError("its own")

    with pytest.raises(ArithmeticError, match="its own"):
        Compiled(Faulty(), [].append, backend="eager")(torch.rand(1))


def test_names_of_speedups():
    assert (Engine.choose("cpu", "fp32").graphs, Engine.choose("cpu", "fp32").compiles) == (False, False)
    engine = Engine.choose("cpu", "fp32", speedups="compile")
    assert engine.compiles and engine.describe()["speedups"] == ["compile"]
    assert "speedups" not in Engine.choose("cpu", "fp32", speedups="none").describe()
    with pytest.raises(UserError, match="CUDA graphs need a CUDA device, this is cpu"):
        Engine.choose("cpu", speedups="graphs,compile")
    with pytest.raises(UserError, match="there is no magic; choose from graphs, compile"):
        Engine.choose("cpu", speedups="magic")


@pytest.mark.slow
def test_compiled_networks_attack_and_train_as_they_do_uncompiled(tinybn):
    """The real compiler, which needs a C++ compiler here: attacks on folded bf16 copies, and a training pass."""
    x, y = torch.rand(32, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(32) % 10
    found, exact = [], Engine(CPU)
    for engine in (exact, *(Engine(CPU, "bf16", channels_last=True, fast_attacks=True, compiles=compiles)
                            for compiles in (False, True))):
        compiles = engine.compiles
        network = engine.place(copy.deepcopy(tinybn))
        with engine.attacking(network) as target:
            assert (target.compiled is not None) == compiles or engine is exact
            gradient, logits = input_gradient(target, x, y, cross_entropy)
            end = PGD(8 / 255, 2 / 255, 3).from_start(target, x, y, x)
        network.train()
        loss = cross_entropy(engine.runner(network)(x), y).sum()
        trained = torch.cat([one.flatten() for one in torch.autograd.grad(loss, [*network.parameters()])])
        found.append((logits, gradient, trained))
        assert not [note for note in engine.notes if "compiled" in note]
        assert (end - x).abs().max() <= 8 / 255 + 1e-6
    # Fused operations round less often than separate ones: nearer to float32, if anything.
    for float32, plain, compiled in zip(*found, strict=True):
        assert 0 < (compiled - float32).norm() <= 1.5 * (plain - float32).norm() < 0.3 * float32.norm()
