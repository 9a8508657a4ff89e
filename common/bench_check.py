"""The check of the attacks' fast path (common.fast_check), shown on networks that pass it and on some that do not."""

import copy
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from common.benchmark import learnt_by_heart, synchronise
from common.engine import Engine
from common.fast_check import IMAGES, LOSS_GAP, SAME_SIGN, Comparison, compare
from common.render import Grid

LEARN = 15


class Shifted(nn.Module):
    """The network behind a shift of the pixels by 1,000 and back, which float32 survives and bf16 does not."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network((x + 1000) - 1000)


def cases(network: nn.Module, engine: Engine, x: Tensor, y: Tensor) -> Iterator[tuple[str, bool, nn.Module]]:
    """(what, attack in train mode, network): fresh, after some steps on the images, and spoilt for bf16."""
    fresh = engine.place(copy.deepcopy(network))
    learnt = learnt_by_heart(copy.deepcopy(network), engine, x, y, LEARN)
    for what, each in (("fresh", fresh), (f"after {LEARN} steps", learnt), ("pixels shifted by 1,000 and back",
                                                                           Shifted(learnt))):
        for training in (False, True):
            yield what, training, each


def measure(network: nn.Module, engine: Engine, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """A line per case.  network: x (B,3,32,32) -> logits (B,10); it stays as it is."""
    generator, done = torch.Generator().manual_seed(1), []
    x = torch.rand(IMAGES, 3, 32, 32, generator=generator).to(engine.device)
    y = torch.randint(0, 10, (IMAGES,), generator=generator).to(engine.device)
    for what, training, each in cases(network, engine, x, y):
        synchronise(engine.device)
        started = time.perf_counter()
        found = Comparison(*(values.mean().item() for values in compare(each, x, y, engine, training=training)))
        done.append({"network": what, "training": training, "loss_gap": found.loss_gap, "same_sign": found.same_sign,
                     "passed": found.passed, "seconds": time.perf_counter() - started})
        say(", ".join(cells(done[-1])))
    return done


def cells(line: dict[str, Any]) -> tuple[str, ...]:
    """A case as text."""
    return (line["network"], "train" if line["training"] else "eval", f"{line['loss_gap']:.3%}",
            f"{line['same_sign']:.2%}", "fast" if line["passed"] else "plain", f"{line['seconds']:.2f}")


def table(lines: list[dict[str, Any]], model: str) -> Grid:
    """The cases as a table."""
    return Grid(f"The check of the attacks' fast path, {model}",
                ("network", "mode", "final loss off by", "gradient of equal sign", "path", "seconds"),
                tuple(map(cells, lines)),
                (f"The fast path (bf16) is taken where the final loss of PGD-10 is off by at most {LOSS_GAP:.1%} and "
                 f"at least {SAME_SIGN:.0%} of the L1 mass of the input gradient keeps its sign, on {IMAGES} images "
                 "of noise; else attacks run in float32.",))
