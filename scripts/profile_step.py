"""Where the time of a training step goes, by part and by operator: make profile, or python -m scripts.profile_step

    python -m scripts.profile_step --method rpat++ --batch 128 --trace step.json        # METHODs: --help

Parts are timed with a clock that waits for the device at their borders, operators by torch's profiler, on CPU and CUDA
alike; both slow the step down, so its time without them stands beside.  What a part contains of another one counts for
the inner one.
"""

import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from adarat import bench as adarat_bench
from brainreg import bench as brainreg_bench
from common.bench_step import OurStep, Settings, warm_up
from common.benchmark import digits, padded, synchronise
from common.engine import PRECISIONS, Engine
from common.environment import begin, environment, relative_command
from common.errors import UserError, exit_cleanly
from common.files import replacing, write_json, write_text
from common.flags import Parser, count
from common.render import Grid, markdown
from dyart import bench as dyart_bench
from rpat import bench as rpat_bench

STEPS = {**adarat_bench.STEPS, **rpat_bench.STEPS, **dyart_bench.STEPS, **brainreg_bench.STEPS}
FORWARD, BACKWARD, OTHER, REST = "attack, forward and steps", "attack, backward", "other networks", "training, forward"
PARTS = ("data", FORWARD, BACKWARD, OTHER, REST, "training, backward", "other processes", "optimiser", "average",
         "rest")
# Kinds of operators (CPU) and kernels (CUDA), by what their names contain; the first that fits.
KINDS = (("convolution, backward", ("convolution_backward", "dgrad", "wgrad")),
         ("batch norm", ("batch_norm", "bn_fw", "bn_bw")), ("convolution, forward", ("conv", "fprop")),
         ("optimiser, average", ("foreach", "fused", "multi_tensor")),
         ("matrix products", ("mm", "linear", "matmul")), ("ReLU, pooling", ("relu", "threshold", "pool", "mean")),
         ("copies, casts", ("copy", "contiguous", "clone", "aten::cat", "Cat", "index", "Memcpy", "Memset", "fill",
                            "zero", "nchwToNhwc", "nhwcToNchw")),
         ("random numbers", ("uniform", "rand", "normal", "bernoulli", "distribution")),
         ("waits for the device", ("Synchronize", "_local_scalar_dense")))
MOST = 12                       # operators listed


class Clock:
    """Seconds of named blocks, each without the blocks inside it."""

    def __init__(self, device: torch.device):
        self.device, self.seconds, self.inner = device, defaultdict(float), []

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        synchronise(self.device)
        started = time.perf_counter()
        self.inner.append(0.0)
        try:
            yield
        finally:
            synchronise(self.device)
            spent = time.perf_counter() - started
            self.seconds[name] += spent - self.inner.pop()
            if self.inner:
                self.inner[-1] += spent


@dataclass(frozen=True)
class TimedEngine(Engine):
    """An engine whose attacks and searches are timed while it has a clock."""

    clock: Clock | None = None
    network: nn.Module | None = None                # the one that is trained: what others are given is no attack

    def watch(self, clock: Clock | None, network: nn.Module) -> None:
        object.__setattr__(self, "clock", clock)
        object.__setattr__(self, "network", network)

    @contextmanager
    def timed(self, model: nn.Module) -> Iterator[None]:
        if self.clock is None:
            yield
            return
        own = getattr(model, "network", model) is self.network
        with self.clock(FORWARD if own else OTHER):
            yield

    @contextmanager
    def attacking(self, model: nn.Module, training: bool = False, fast: bool = True) -> Iterator[nn.Module]:
        with self.timed(model), super().attacking(model, training, fast) as target:
            yield target

    @contextmanager
    def searching(self, model: nn.Module) -> Iterator[nn.Module]:
        with self.timed(model), super().searching(model) as target:
            yield target


@contextmanager
def gradients_timed(clock: Clock) -> Iterator[None]:
    """While it lasts, torch.autograd.grad counts as the attack's backward pass."""
    plain = torch.autograd.grad

    def timed(*given: Any, **named: Any) -> Any:
        with clock(BACKWARD):
            return plain(*given, **named)

    torch.autograd.grad = timed
    try:
        yield
    finally:
        torch.autograd.grad = plain


def by_part(step: OurStep, engine: TimedEngine, steps: int, rounds: int) -> tuple[list[float], dict[str, float]]:
    """(seconds of whole steps, timed by nothing else; mean seconds of each part of a step)."""
    whole, clock = [], Clock(engine.device)
    for _ in range(rounds):
        synchronise(engine.device)
        started = time.perf_counter()
        step(steps)
        synchronise(engine.device)
        whole.append(time.perf_counter() - started)
    engine.watch(clock, step.network)
    objective, unclocked = step.objective, step.parts
    step.parts = lambda name: clock("training, backward" if name == "backward" else name)
    step.objective = lambda asked: in_clock(clock, objective(asked))
    with gradients_timed(clock):
        for _ in range(rounds):
            with clock("rest"):
                step(steps)
    engine.watch(None, step.network)
    step.objective, step.parts = objective, unclocked
    return whole, {name: clock.seconds[name] / rounds for name in PARTS if name in clock.seconds}


def in_clock(clock: Clock, objective: Callable[..., Any]) -> Callable[..., Any]:
    """The objective, timed: what is neither attack nor another network in it is the training's forward pass."""
    def timed(*given: Any) -> Any:
        with clock(REST):
            return objective(*given)
    return timed


def by_operator(step: OurStep, device: torch.device, steps: int, trace: Path | None) -> list[dict[str, Any]]:
    """Operators of one step (on CUDA kernels, also those of graphs) and their own seconds, the longest first.

    trace: where to write the trace for chrome://tracing.
    """
    cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities, acc_events=True) as profiled:
        step(steps)
        synchronise(device)
    if trace is not None:
        with replacing(trace) as temporary:
            profiled.export_chrome_trace(str(temporary))
    found = [{"name": event.key, "calls": event.count,
              "seconds": (event.self_device_time_total if cuda else event.self_cpu_time_total) / 1e6}
             for event in profiled.key_averages()
             if not cuda or event.device_type == torch.autograd.DeviceType.CUDA]
    return sorted((each for each in found if each["seconds"] > 0), key=lambda each: -each["seconds"])


def kind(name: str) -> str:
    """What an operator does, in words."""
    return next((words for words, parts in KINDS if any(part in name for part in parts)), "others: elementwise, losses")


def tables(record: dict[str, Any]) -> list[Grid]:
    """Parts, kinds of operators, operators."""
    where, whole, parts = record["environment"], median(record["step_seconds"]), record["parts"]
    total, operators = sum(parts.values()), record["operators"]
    settings, engine = record["settings"], record["environment"]["engine"]
    notes = [f"{where['device']}; {where['threads']} threads; torch {where['torch']}; {where['started']}; "
             f"`{record['command']}`",
             f"{record['method']}, {settings['model']}, batch {settings['batch']}, {record['attack_steps']} attack "
             f"steps, {engine['precision']}{', fast attacks' * engine['fast_attacks']}",
             f"a step takes {digits(1000 * whole)} ms, {digits(1000 * total)} ms with the clock that parts it",
             *engine["notes"]]
    rows = [(name, digits(1000 * seconds), f"{seconds / total:.1%}") for name, seconds in parts.items()]
    grids = [padded(("part", "ms a step", "share"), rows, f"Where a step of {record['method']} goes", notes)]
    kinds, spent = defaultdict(float), sum(each["seconds"] for each in operators) or 1.0
    for each in operators:
        kinds[kind(each["name"])] += each["seconds"]
    rows = [(name, digits(1000 * seconds), f"{seconds / spent:.1%}")
            for name, seconds in sorted(kinds.items(), key=lambda each: -each[1])]
    grids.append(padded(("kind of operator", "ms a step", "share"), rows, "By kind of operator", []))
    rows = [(each["name"], f"{each['calls']:,}", digits(1000 * each["seconds"]), f"{each['seconds'] / spent:.1%}")
            for each in operators[:MOST]]
    return [*grids, padded(("operator", "calls", "ms a step", "share"), rows, "By operator",
                           ["its own time on the device, without that of operators that it calls"])]


def main(argv: list[str] | None = None) -> int:
    parse = Parser(prog="python -m scripts.profile_step", description=__doc__.splitlines()[0])
    parse.add_argument("--method", default="pgd-training", metavar="METHOD", help=", ".join(STEPS))
    parse.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    parse.add_argument("--precision", default="auto", choices=PRECISIONS, help="of attacks and training")
    parse.add_argument("--batch", type=count, help="images per step; by default 128, on a CPU 32")
    parse.add_argument("--steps", type=count, default=10, help="attack steps; iterations of DyART's search")
    parse.add_argument("--rounds", type=count, default=3, help="steps that are timed")
    parse.add_argument("--model", default="resnet18", help="see common/models; brainreg: its own")
    parse.add_argument("--width", type=count, help="channels of its first stage")
    parse.add_argument("--trace", type=Path, help="also write the profiler's trace there (chrome://tracing, Perfetto)")
    parse.add_argument("--out", type=Path, default=Path("results/bench"), help="folder of the record")
    args = parse.parse_args(argv)
    if args.method not in STEPS:
        raise UserError(f"--method {args.method}: choose one of {', '.join(STEPS)}", code="E-FLAG-VALUE")
    begin()
    engine = TimedEngine.choose(args.device, args.precision)
    cpu = engine.device.type == "cpu"
    settings = Settings(batch=args.batch or (32 if cpu else 128), rounds=args.rounds, model=args.model,
                        width=args.width, images=4096)
    step = STEPS[args.method](settings, engine)
    warm_up(engine.device, args.steps, step)
    whole, parts = by_part(step, engine, args.steps, args.rounds)
    operators = by_operator(step, engine.device, args.steps, args.trace)
    says = engine.describe()
    record = {"schema": 1, "method": args.method, "attack_steps": args.steps, "step_seconds": whole, "parts": parts,
              "operators": operators, "settings": {"model": args.model, "width": args.width, "batch": settings.batch},
              "command": relative_command(argv and ["profile_step", *argv], module="scripts.profile_step"),
              "environment": {**environment(says["device_name"], engine.precision, says["torch_threads"]),
                              "engine": says}}
    machine = re.sub(r"[^a-z0-9]+", "-", says["device_name"].lower()).strip("-")
    stem = args.out / f"{machine}-{record['environment']['started'][:10].replace('-', '')}-profile-{args.method}"
    text = markdown(tables(record))
    write_json(Path(f"{stem}.json"), record)
    write_text(Path(f"{stem}.md"), text)
    print(f"{text}\nwritten to {stem}.json and .md{f', trace to {args.trace}' if args.trace else ''}")
    return 0


if __name__ == "__main__":
    exit_cleanly(main)
