"""The boundary attack one image at a time and pairs chosen by a loop, as released, beside ours: see scripts/bench.

Facts, not text, of the released code: foolbox's boundary attack of 50 steps from its own starts, called for one image
after the other; pairs i < j listed by two nested loops in Python over the similarities.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from brainreg.plans import BOUNDARY_STEPS
from brainreg.similarity import pairs_in_range, pixel_similarity
from common import models
from common.benchmark import Timings, digits, peak_bytes, rounds, sentence, summary
from common.engine import Engine
from common.evaluation.decision import Search, boundary, foolbox
from common.evaluation.judging import judged
from common.evaluation.plans import Evaluator

THRESHOLD = 0.8


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured.  The searches: the small CNN of `width` on `batch` random images of `side` pixels.  The pairs:
    of `images` images ours, of `looped` the loop's; both are counted in pairs per second."""

    batch: int
    rounds: int
    limit: float | None = None                      # seconds, of both rows together
    width: int = 8
    side: int = 28
    images: int = 5000
    looped: int = 1000


def search(network: nn.Module, device: torch.device, batch: int) -> Search:
    """Our search of `batch` images together."""
    evaluator = Evaluator("boundary", "boundary", "l2", eps=0.0,
                          settings={"against": "prediction", "iterations": BOUNDARY_STEPS})
    return Search(evaluator, network, device, batch)


def one_by_one(ours: Search, x: Tensor) -> Tensor:
    """Where foolbox ends (B,C,H,W), starts included, image by image."""
    package = foolbox()
    model = package.PyTorchModel(ours.network, bounds=(0, 1), device=ours.device)
    ends = []
    for image in x.split(1):
        own = package.Misclassification(ours.predict(image))
        ends.append(boundary(package, ours.evaluator.setting).run(model, image, own))
    return torch.cat(ends)


def pairs_by_loop(similarity: Tensor, threshold: float) -> list[tuple[int, int]]:
    """The pairs of range high_positive, one after the other."""
    values, found = similarity.cpu().numpy(), []
    for row in range(len(values)):
        for column in range(row + 1, len(values)):
            if values[row, column] > threshold:
                found.append((row, column))
    return found


def measure_boundary(settings: Settings, engine: Engine, started: float, share: float) -> dict[str, Any]:
    """Searches of the same images of an untrained network; float32, as all evaluation is."""
    device = engine.device
    torch.manual_seed(0)
    network = models.build("small", classes=10, channels=1, width=settings.width).to(device)
    x = torch.rand(settings.batch, 1, settings.side, settings.side, device=device)
    spread_out(network, x)
    old, new = Timings(settings.batch), Timings(settings.batch)
    with judged(network, device) as plain:
        ours = search(plain, device, settings.batch)
        own = ours.predict(x)
        one_by_one(ours, x[:1])                                                 # warm-up
        ours.search(x[:4], own[:4], 0)
        for _ in rounds(settings, started, share):
            old.time(device, lambda: one_by_one(ours, x))
            new.time(device, lambda: ours.search(x, own, 1))
    title = f"boundary attack, {BOUNDARY_STEPS} steps, small CNN of width {settings.width}: batched, against one by one"
    return summary("brainreg-boundary", title, settings.batch, old, new)


@torch.no_grad()
def spread_out(network: nn.Module, x: Tensor) -> None:
    """Batch norm takes the statistics of x (B,C,H,W), and the classes are made equally likely: an untrained network
    would give every image of noise one label, and no search would find a start."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for module in norms:
        module.momentum = 1.0
    network.train()(x)
    network.eval()
    network.linear.bias -= network(x).mean(0)


def measure_pairs(settings: Settings, device: torch.device, started: float, share: float) -> dict[str, Any]:
    """Similarities and the pairs of one range, each of its own number of images."""
    images = torch.rand(settings.images, 1, settings.side, settings.side, device=device)
    counts = [count * (count - 1) // 2 for count in (settings.looped, settings.images)]
    old, new = map(Timings, counts)

    def ours() -> Tensor:
        return pairs_in_range(pixel_similarity(images), "all", THRESHOLD)

    def theirs() -> list[tuple[int, int]]:
        return pairs_by_loop(pixel_similarity(images[:settings.looped]), -2.0)

    ours()
    for _ in rounds(settings, started, share):
        old.time(device, theirs)
        new.time(device, ours)
    title = f"similarities and pairs of {settings.images:,} images, pairs/s: tensors, against a loop"
    return summary("brainreg-pairs", title, settings.images, old, new) | {"our_peak_bytes": peak_bytes(device, ours)}


def measure(settings: Settings, engine: Engine, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Both rows.  `say` gets a line as each row is done."""
    started = time.perf_counter()
    done = [measure_pairs(settings, engine.device, started, 0.3)]
    say(sentence(done[0]))
    done.append(measure_boundary(settings, engine, started, 1.0))
    say(sentence(done[1]))
    return done


def notes(settings: dict[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    """What one must know to read the rows."""
    row = next(each for each in rows if each["name"] == "brainreg-pairs")
    seconds, pairs = row["ours"]["seconds"], row["ours"]["images_per_block"]
    looped = pairs / row["originals"]["images_per_second"]["median"]
    said = ["regulariser, originals: foolbox's boundary attack for one image after the other, its own starts; pairs "
            f"listed by two nested loops in Python, measured on {settings['looped']:,} images, where all {pairs:,} "
            f"pairs of {settings['images']:,} would take {looped:.0f} s",
            f"regulariser, ours: similarities and all pairs of {settings['images']:,} images in "
            f"{digits(min(seconds))} to {digits(max(seconds))} s"]
    if row["our_peak_bytes"]:
        said[-1] += f", at most {row['our_peak_bytes'] / 2 ** 20:,.0f} MiB"
    return said
