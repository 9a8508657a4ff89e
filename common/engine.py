"""Where and how a network runs: device, precision, memory format, and the network that an attack sees.

Training and attacking may run in bf16 autocast and channels-last; what is reported is judged elsewhere, in float32.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common import determinism, group
from common.attack_view import AttackView, SearchView, cannot_view
from common.attacks.mode import frozen, mode
from common.capture import CudaGraph, Regions, norms_of
from common.compiled import Compiled
from common.environment import processor, processors
from common.errors import UserError
from common.sync_norm import synchronise

PRECISIONS = ("auto", "fp32", "bf16")
SPEEDUPS = ("graphs", "compile")


class Runner(nn.Module):
    """A network seen through an engine: x (B,C,H,W) float32 -> logits (B,K) float32, computed in the precision.

    In the place of x a NamedTuple of such images goes to a network that takes one, whose answer is float32 as well.
    It owns no parameters of its own: `state_dict` of the wrapped `network` is what is saved.
    """

    def __init__(self, network: nn.Module, engine: "Engine"):
        super().__init__()
        self.network = network
        self.engine = engine
        self.compiled = engine.compiled(network)

    def begin(self) -> None:
        """A training step begins; for runners that count its calls."""

    def forward(self, x: Tensor | tuple[Tensor, ...]) -> Tensor:
        engine = self.engine
        if engine.channels_last:
            x = in_channels_last(x)
        with torch.autocast(engine.device.type, torch.bfloat16, enabled=engine.precision == "bf16"):
            answer = (self.compiled or self.network)(x)
        return answer.float()


def in_channels_last(x: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
    """Images (B,C,H,W), or each tensor of a NamedTuple of them, in the memory format channels-last."""
    if isinstance(x, tuple):
        return type(x)(*map(in_channels_last, x))
    return x.contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Engine:
    """Device, precision and memory format of a run.  `choose` makes one from what a user asks for.

    sync_bn: batch norms take the statistics of all processes, instead of each its own.
    graphs: attacks and training passes are recorded as CUDA graphs (common.capture, common.capture_training).
    compiles: networks and what attacks see of them go through torch.compile (common.compiled).
    deterministic: the process computes deterministically (common.determinism).
    """

    device: torch.device
    precision: str = "fp32"
    channels_last: bool = False
    fast_attacks: bool = False
    sync_bn: bool = False
    graphs: bool = False
    compiles: bool = False
    deterministic: bool = False
    notes: list[str] = field(default_factory=list, compare=False)
    _views: dict[tuple[int, bool, bool], Any] = field(default_factory=dict, compare=False, repr=False)
    _compiled: dict[int, tuple[nn.Module, Any]] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def choose(cls, device: str = "auto", precision: str = "auto", sync_bn: bool = False, speedups: str = "auto",
               deterministic: bool = False) -> "Engine":
        """The engine for `device` ("auto", "cpu", "cuda", "cuda:1", "mps") and `precision` ("auto", "fp32", "bf16").

        `auto` takes a CUDA device if there is one, and bf16 where the device multiplies it faster than float32.
        speedups: "graphs", "compile", both with a comma, "none", or "auto": graphs on CUDA, none elsewhere.
        Of several processes (common.group) each has a CUDA device of its own.
        deterministic: the whole process from here on (common.determinism); attacks stay as fast, graphs stay on.
        Raises UserError for a device that is not here.
        """
        if deterministic:
            determinism.switch_on()
        chosen = group.settle(find_device(device))
        if precision not in PRECISIONS:
            raise UserError(f"--precision {precision}: choose one of {', '.join(PRECISIONS)}", code="E-FLAG-VALUE")
        if precision == "auto":
            precision = "bf16" if bf16_is_fast(chosen) else "fp32"
        fast, wanted = precision == "bf16", chosen_speedups(speedups, chosen)
        if deterministic and "compile" in wanted and chosen.type == "cuda":
            raise UserError(f"--deterministic with --speedups {speedups}: on CUDA torch.compile takes the kernels that "
                            "win a race, which differ from run to run: leave compile out", code="E-DETERMINISTIC")
        return cls(chosen, precision, channels_last=fast, fast_attacks=fast, sync_bn=sync_bn,
                   graphs="graphs" in wanted, compiles="compile" in wanted, deterministic=deterministic)

    @classmethod
    def of_judge(cls, args: argparse.Namespace) -> "Engine":
        """The engine of a command that evaluates: float32, --device, --deterministic."""
        return cls.choose(args.device, "fp32", deterministic=args.deterministic)

    @property
    def shares(self) -> dict[str, int]:
        """Which of the processes that train together this one is, as the makers of batches take it."""
        crew = group.current()
        return {"rank": crew.rank, "ranks": crew.ranks}

    def place(self, network: nn.Module) -> nn.Module:
        """Move a network to the device, in the memory format; in place."""
        network.to(self.device)
        if self.sync_bn:
            synchronise(network)
        return network.to(memory_format=torch.channels_last) if self.channels_last else network

    def runner(self, network: nn.Module) -> Runner:
        """The network as objectives call it."""
        return Runner(network, self)

    def compiled(self, module: nn.Module) -> Compiled | None:
        """The module through torch.compile, one and the same for a module always; None if this engine does not."""
        if not self.compiles:
            return None
        # The module is kept beside it, so that no other one can come by its id.
        return self._compiled.setdefault(id(module), (module, Compiled(module, self.notes.append)))[1]

    @contextmanager
    def attacking(self, model: nn.Module, training: bool = False, fast: bool = True) -> Iterator[nn.Module]:
        """Yield the network to attack: parameters frozen, in train or eval mode, on the fastest path that works.

        Not `fast`: on the plain path, the network itself in float32 (see common.fast_check).

        In eval mode the fast path folds batch norm into the convolutions and keeps bf16 copies of the weights; in
        train mode it keeps bf16 copies and shares the batch norms, whose statistics move as the plain path's do.
        """
        network = model.network if isinstance(model, Runner) else model
        with mode(network, training=training), frozen(network):
            if not fast:
                yield network
                return
            view = self._view(network, training)
            yield self.runner(network) if view is None else view

    @contextmanager
    def searching(self, model: nn.Module) -> Iterator[nn.Module]:
        """Yield the network in float32, eval mode, parameters frozen, whatever the engine's precision.

        On the fast path batch norm is folded into the convolutions, and on a CPU wide 3x3 convolutions are computed
        with fewer products (`common.winograd`), which rounds them more coarsely.
        """
        network = model.network if isinstance(model, Runner) else model
        with mode(network, training=False), frozen(network):
            view = self._view(network, training=False, searches=True)
            if view is None:
                yield network
            else:
                with view.held():
                    yield view

    def _view(self, network: nn.Module, training: bool, searches: bool = False) -> AttackView | None:
        if not self.fast_attacks:
            return None
        key = (id(network), training, searches)
        if key not in self._views:
            reason = cannot_view(network)
            if reason:
                self.notes.append(f"{'searches' if searches else 'attacks'} run on the plain path: {reason}")
            # The network is kept beside its view, so that no other one can come by its id.
            self._views[key] = (network, None if reason else self._new_view(network, training, searches))
        _, view = self._views[key]
        if view is not None:
            view.refresh()
        return view

    def _new_view(self, network: nn.Module, training: bool, searches: bool) -> AttackView:
        if searches:
            return SearchView(network)
        view = AttackView(network, training, torch.bfloat16)
        view.compiled = self.compiled(view.graph)
        if self.graphs and not (training and self.sync_bn):           # no recording waits for other processes
            pool = torch.cuda.graph_pool_handle()
            view.regions = Regions(lambda: CudaGraph(pool), lambda line: self.notes.append(f"attacks: {line}"),
                                   norms_of(view) if training else ())
        return view

    def forget(self) -> None:
        """Free what attacks see of networks, and their recordings; they are made anew when asked for."""
        self._views.clear()
        self._compiled.clear()

    def describe(self) -> dict[str, Any]:
        """What a record says of the engine."""
        name = (torch.cuda.get_device_name(self.device) if self.device.type == "cuda"
                else f"{processor()}, {processors()} cores")
        return {"device": self.device.type, "device_name": name, "precision": self.precision,
                "channels_last": self.channels_last, "fast_attacks": self.fast_attacks,
                "torch_threads": torch.get_num_threads(), "deterministic": self.deterministic,
                **({"sync_bn": True} if self.sync_bn else {}),
                **({"speedups": found} if (found := [name for name, on in zip(SPEEDUPS, (self.graphs, self.compiles),
                                                                             strict=True) if on]) else {}),
                "notes": list(self.notes)}


def find_device(name: str) -> torch.device:
    """The torch device that a user means; UserError where it is not here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--device {name} is no device: try auto, cpu, cuda or cuda:1", code="E-DEVICE") from error
    here = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not here.get(device.type, False):
        raise UserError(f"--device {name}: this machine has no {device.type} device; --device auto takes what there is",
                        code="E-DEVICE")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: there are {torch.cuda.device_count()} CUDA devices, counted from 0",
                        code="E-DEVICE")
    return device


def chosen_speedups(words: str, device: torch.device) -> set[str]:
    """What --speedups means on a device; UserError for another word, and for graphs without CUDA."""
    if words == "auto":
        return {"graphs"} if device.type == "cuda" else set()
    wanted = {word.strip() for word in words.split(",")} - {"none"}
    if unknown := wanted - set(SPEEDUPS):
        raise UserError(f"--speedups {words}: there is no {', '.join(sorted(unknown))}; choose from "
                        f"{', '.join(SPEEDUPS)}, or auto or none", code="E-SPEEDUPS")
    if "graphs" in wanted and device.type != "cuda":
        raise UserError(f"--speedups {words}: CUDA graphs need a CUDA device, this is {device.type}: leave them out",
                        code="E-SPEEDUPS")
    return wanted


def cpu_flags() -> set[str]:
    """Instruction-set flags of the processor, as Linux lists them; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return set(next((line.split(":", 1)[1] for line in lines if line.startswith("flags")), "").split())


def bf16_is_fast(device: torch.device) -> bool:
    """Whether the device multiplies bf16 matrices faster than float32 ones."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and bool(cpu_flags() & {"avx512_bf16", "amx_bf16"})
