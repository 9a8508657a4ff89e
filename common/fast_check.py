"""Whether a run's attacks may take the engine's fast path: found out on the run's own network and images.

On the first images of a step's batch, PGD from one random start runs on the fast path and in plain float32.  The fast
path is trusted if both end points have the same mean cross-entropy, as float32 sees it, to within 0.5%, and if at least
99% of the L1 mass of the first input gradient keeps its sign.  (A plain count of signs would refuse every network: bf16
flips those of the tiniest entries.)  Else the attacks run on the plain path: the network itself, in float32.

A network that has learnt nothing is a hard case, in train mode above all: bf16 keeps 96% of the gradient of a fresh
ResNet-18 there, and 99.9% after ten steps.  So the question is put again at a few fixed steps, and the last answer
holds for the rest of the run.  Answers go into the resume file: a resumed run goes on as it would have done.
"""

import copy
import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from tqdm import tqdm

from common.attack_view import AttackView, cannot_view
from common.attacks.losses import cross_entropy
from common.attacks.pgd import PGD, input_gradient
from common.engine import Engine, Runner
from common.seeds import fold
from common.types import Batch, StepContext

IMAGES = 32
LOSS_GAP, SAME_SIGN = 0.005, 0.99
STEPS = (0, 32, 128, 512)               # of the run: an answer from before one of them is asked for again
ATTACK = PGD(8 / 255, 2 / 255, 10)


class Comparison(NamedTuple):
    """Means over the images: the attack's final loss on both paths, seen by float32; the L1 norm of the first input
    gradient in float32, and of its entries whose sign is the same on the fast path."""

    fast_loss: float
    plain_loss: float
    mass: float
    same: float

    @property
    def loss_gap(self) -> float:
        """|difference| of the final losses over the plain one."""
        gap = abs(self.fast_loss - self.plain_loss)
        if gap == 0:
            return 0.0
        return gap / self.plain_loss if self.plain_loss else math.inf

    @property
    def same_sign(self) -> float:
        """The share of the gradient's L1 mass whose sign is the same."""
        return self.same / self.mass if self.mass else 1.0

    @property
    def passed(self) -> bool:
        """False where a number is not finite."""
        return self.loss_gap <= LOSS_GAP and self.same_sign >= SAME_SIGN

    def __str__(self) -> str:
        return (f"the attack's final loss is {self.loss_gap:.2%} off, {self.same_sign:.2%} of the input gradient's L1 "
                "mass keeps its sign")


def compare(network: nn.Module, x: Tensor, y: Tensor, engine: Engine, *, training: bool = False) -> list[Tensor]:
    """What `Comparison` means over, (B,) each.  x (B,C,H,W) in [0,1]; y (B,), or (B,K) mixed labels.

    It works on copies, without dropout, whose masks would differ: the network and all random states stay as they are.
    """
    plain = copy.deepcopy(network).train(training).requires_grad_(False)
    for module in plain.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0
    devices = [x.device] if x.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        if cannot_view(plain) is None:
            fast = AttackView(plain, training, torch.bfloat16)
            fast.refresh()
        else:
            fast = Runner(plain, engine)
        generator = torch.Generator().manual_seed(fold(0, "fast check"))
        start = ATTACK.start(x, StepContext(generator=generator))
        exact, rough = (input_gradient(each, start, y, cross_entropy)[0].flatten(1) for each in (plain, fast))
        found = []
        for each in (fast, plain):
            end = ATTACK.from_start(each, x, y, start)
            with torch.no_grad():
                found.append(cross_entropy(plain(end).float(), y))
    return [*found, exact.abs().sum(1), (exact.abs() * (exact.sign() == rough.sign())).sum(1)]


class FastCheck:
    """Guards the attacks of a run on an engine.  networks: by the names that notes and the resume file give them."""

    def __init__(self, engine: Engine, networks: Mapping[str, nn.Module | None]):
        self.engine = engine
        self.names = {id(bare(network)): name for name, network in networks.items() if network is not None}
        self.answers: list[dict[str, Any]] = []

    def guard(self, ctx: StepContext, batch: Batch) -> StepContext:
        """The context, its attacks on the path that is trusted at this step; `batch`: what a question is put on."""
        return replace(ctx, attacking=partial(self._attacking, ctx, batch)) if self.engine.fast_attacks else ctx

    @contextmanager
    def _attacking(self, ctx: StepContext, batch: Batch, model: nn.Module, training: bool = False
                   ) -> Iterator[nn.Module]:
        fast = self._trusted(ctx, batch, bare(model), training)
        with self.engine.attacking(model, training, fast=fast) as target:
            yield target

    def _trusted(self, ctx: StepContext, batch: Batch, network: nn.Module, training: bool) -> bool:
        who = {"network": self.names.get(id(network), "another network"), "training": training}
        last = next((one for one in reversed(self.answers) if who.items() <= one.items()), None)
        if last is None or any(last["step"] < step <= ctx.step for step in STEPS):
            count = min(IMAGES, len(batch.y))        # x may hold further views of the images, one after another
            found = compare(network, batch.x[:count], batch.y[:count], self.engine, training=training)
            # The mean over all ranks, so that all of them answer alike.
            numbers = Comparison(*(ctx.mean(values.detach()).item() for values in found))
            answer = {**who, "step": ctx.step, **numbers._asdict()}
            self._note(answer, aloud=ctx.rank == 0 and numbers.passed != (last is None or trusted(last)))
            self.answers.append(answer)
            last = answer
        return trusted(last)

    def _note(self, answer: Mapping[str, Any], aloud: bool) -> None:
        numbers = comparison(answer)
        path = "in bf16" if numbers.passed else "on the plain path, in float32"
        bounds = "" if numbers.passed else f" (at most {LOSS_GAP:.1%}, at least {SAME_SIGN:.0%})"
        text = (f"attacks on {answer['network']} in {'train' if answer['training'] else 'eval'} mode run {path} from "
                f"step {answer['step']} on: in bf16 {numbers}{bounds}")
        self.engine.notes.append(text)
        if aloud:
            tqdm.write(f"note: {text}", file=sys.stderr)

    def state_dict(self) -> dict[str, Any]:
        """The answers so far, for the resume file; empty if nothing was asked."""
        return {"answers": self.answers} if self.answers else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.answers = list(state.get("answers", ()))
        for answer in self.answers:
            self._note(answer, aloud=False)


def comparison(answer: Mapping[str, Any]) -> Comparison:
    """The numbers of an answer."""
    return Comparison(*(answer[name] for name in Comparison._fields))


def trusted(answer: Mapping[str, Any]) -> bool:
    """Whether the answer was yes."""
    return comparison(answer).passed


def bare(network: nn.Module) -> nn.Module:
    """The network itself, where it is seen through an engine."""
    return network.network if isinstance(network, Runner) else network
