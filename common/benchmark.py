"""What benchmarks measure with: seconds of blocks of work, their spread, memory, the useful operations of a network."""

import copy
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from common.engine import Engine
from common.render import DASH, Grid


class Pace(Protocol):
    """How often a row is measured."""

    rounds: int
    limit: float | None                             # seconds of a row, after which no third round is begun
    matrix: int                                     # rows of the square matrices whose product gives the matrix rate


@dataclass
class Timings:
    """Seconds of each block of `images` images; on CUDA the memory that blocks needed beyond what lay there."""

    images: int
    seconds: list[float] = field(default_factory=list)
    peak_bytes: int | None = None

    @property
    def rates(self) -> list[float]:
        """Images per second, block by block."""
        return [self.images / seconds for seconds in self.seconds]

    def time(self, device: torch.device, block: Callable[[], Any]) -> None:
        """Run the block and note how long the device took."""
        synchronise(device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
        started = time.perf_counter()
        block()
        synchronise(device)
        self.seconds.append(time.perf_counter() - started)
        if device.type == "cuda":
            self.peak_bytes = max(self.peak_bytes or 0, torch.cuda.max_memory_allocated(device) - before)

    def record(self) -> dict[str, Any]:
        return {"images_per_block": self.images, "seconds": self.seconds, "peak_bytes": self.peak_bytes,
                "images_per_second": spread(self.rates)}


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def spread(values: list[float]) -> dict[str, float]:
    return {"median": median(values), "min": min(values), "max": max(values)}


def peak_bytes(device: torch.device, block: Callable[[], Any]) -> int | None:
    """The most memory that tensors took at once during the block, beyond what lay there before it; None on devices
    that do not say.  On a CPU every allocation of a tensor is listed by the profiler, which is slow.
    """
    if device.type == "cuda":
        timed = Timings(1)
        timed.time(device, block)
        return timed.peak_bytes
    if device.type != "cpu":
        return None
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiled:
        block()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiled.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    taken, most = 0, 0
    for event in sorted((each for each in events if each.get("name") == "[memory]"), key=lambda each: each["ts"]):
        taken += event["args"]["Bytes"]
        most = max(most, taken)
    return most


class Product:
    """A product of two square matrices in the engine's precision: what the device multiplies at best."""

    def __init__(self, engine: Engine, size: int):
        self.device, self.size, self.timings = engine.device, size, Timings(1)
        self.matrix = torch.randn(size, size, device=engine.device).to(
            torch.bfloat16 if engine.precision == "bf16" else torch.float32)
        self.time()
        self.timings.seconds.clear()

    def time(self) -> None:
        self.timings.time(self.device, lambda: repeat(4, torch.mm, self.matrix, self.matrix))

    @property
    def rate(self) -> float:
        """Operations per second, 2 per multiply-add: the median of the blocks timed."""
        return 4 * 2 * self.size ** 3 / median(self.timings.seconds)


def forward_operations(network: nn.Module, size: int = 32, channels: int = 3) -> int:
    """Useful operations of one image's forward pass: 2 per multiply-add, products with zero padding not counted."""
    total = 0

    def add(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Linear):
            total += 2 * module.weight.numel()
            return
        ones = torch.ones(1, 1, *inputs[0].shape[2:])
        taps = F.conv2d(ones, torch.ones(1, 1, *module.kernel_size), None, module.stride, module.padding)
        total += 2 * int(taps.sum()) * module.weight.shape[0] * module.weight.shape[1]

    twin = copy.deepcopy(network).cpu().float().eval()
    for module in twin.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(add)
    with torch.no_grad():
        twin(torch.zeros(1, channels, size, size))
    return total


def learnt_by_heart(network: nn.Module, engine: Engine, x: Tensor, y: Tensor, steps: int) -> nn.Module:
    """The network after some steps on one batch, so that its images are on the right side and there is a boundary.

    Its batch norms end with the batch's own statistics, and keep them.
    """
    runner = engine.runner(engine.place(network))
    optimiser = torch.optim.SGD(network.parameters(), 0.02, 0.9)
    network.train()
    for _ in range(steps):
        optimiser.zero_grad()
        F.cross_entropy(runner(x), y).backward()
        optimiser.step()
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for momentum in (1.0, 0.0):
        for module in norms:
            module.momentum = momentum
        if momentum:
            with torch.no_grad():
                network(x)
    return network


def repeat(times: int, run: Callable[..., Any], *values: Any) -> None:
    for _ in range(times):
        run(*values)


def rounds(settings: Pace) -> Iterator[None]:
    """The rounds of a row: no third one is begun after the limit, and two make a spread."""
    started = time.perf_counter()
    for index in range(settings.rounds):
        if index > 1 and settings.limit is not None and time.perf_counter() - started > settings.limit:
            return
        yield


# --- rows of a table: the originals' way beside ours ---

def compare(settings: Pace, engine: Engine, name: str, title: str, *, theirs: Callable[[], Any],
            ours: Callable[[], Any], batch: int, block: int = 1, operations: float | None = None) -> dict[str, Any]:
    """The row of two ways that were warmed up, each called `block` times per round, for `batch` images a call.

    operations: useful ones per image, of either way; with them the row has shares of the device's matrix rate.
    """
    device, old, new = engine.device, Timings(block * batch), Timings(block * batch)
    product = Product(engine, settings.matrix) if operations else None
    for _ in rounds(settings):
        old.time(device, lambda: repeat(block, theirs))
        new.time(device, lambda: repeat(block, ours))
        if product:
            product.time()
    row = summary(name, title, batch, old, new)
    return with_shares(row, operations, product) if product else row


def with_shares(row: dict[str, Any], operations: float, product: Product) -> dict[str, Any]:
    """The row with what share of the matrix rate the useful operations of both ways are."""
    for way in ("originals", "ours"):
        row[way]["share_of_matrix_rate"] = row[way]["images_per_second"]["median"] * operations / product.rate
    return row | {"operations_per_image": operations, "matrix_seconds": product.timings.seconds,
                  "matrix_operations_per_second": product.rate}


def with_memory(row: dict[str, Any], device: torch.device, **brief: Callable[[], Any]) -> dict[str, Any]:
    """The row with the peak memory of brief blocks originals=..., ours=..., where no timed block told it (CPU)."""
    for way, block in brief.items():
        if row[way]["peak_bytes"] is None:
            row[way]["peak_bytes"] = peak_bytes(device, block)
    return row


def summary(name: str, title: str, batch: int, old: Timings, new: Timings) -> dict[str, Any]:
    """A row: both ways, the ratio of the medians, and how far the rounds' own ratios spread."""
    each = [ours / theirs for theirs, ours in zip(old.rates, new.rates, strict=True)]
    return {"name": name, "title": title, "batch": batch, "originals": old.record(), "ours": new.record(),
            "ratio": median(new.rates) / median(old.rates), "ratio_min": min(each), "ratio_max": max(each)}


def digits(value: float) -> str:
    """Three figures, or all before the point."""
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """The row as text."""
    found = [row["title"], str(row["batch"])]
    for way in ("originals", "ours"):
        middle, low, high = (digits(row[way]["images_per_second"][key]) for key in ("median", "min", "max"))
        found.append(f"{middle} ({low} to {high})")
    found.append(f"{row['ratio']:.2f} ({row['ratio_min']:.2f} to {row['ratio_max']:.2f})")
    for way in ("originals", "ours"):
        share, peak = row[way].get("share_of_matrix_rate"), row[way]["peak_bytes"]
        found += [DASH if share is None else f"{share:.0%}", DASH if not peak else f"{peak / 2 ** 20:,.0f} MiB"]
    return tuple(found)


def sentence(row: dict[str, Any]) -> str:
    """What is said as soon as the row is done."""
    title, batch, old, new, ratio, *_ = cells(row)
    return f"{title}, batch {batch}: {old} -> {new} images/s, ratio {ratio}"


HEADER = ("what", "batch", "originals, images/s", "ours, images/s", "ratio", "originals, share", "memory",
          "ours, share", "memory")


def padded(header: tuple[str, ...], rows: list[tuple[str, ...]], title: str, notes: list[str]) -> Grid:
    """A grid whose columns are as wide as their widest cell, to be read as it is."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    head, *body = (tuple(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
                   for line in (header, *rows))
    return Grid(title, head, tuple(body), tuple(notes))
