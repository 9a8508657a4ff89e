"""A training step with pairs, the choice of pairs, the boundary attack, as released, beside ours: rows of make bench.

Facts, not text, of the released code (elieattias1/pixel-reg, models.py, classification_and_regularization.py, utils.py
and adversarialAttacks): float32 in contiguous NCHW, eager; three passes, of class batch, row and column images, each
batch scaled to 5*(v - 0.5) first; pairs and targets fetched by indices that lie on the host; a mean of both halves put
together for each layer's running mean; torch.optim.SGD.  No attack takes part in training.  foolbox's boundary attack
of 50 steps from its own starts, called for one image after the other; pairs i < j listed by two nested loops in Python
over the similarities.  Class images lie ready on the device (in the released code one worker reads them): the cheaper.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brainreg.images import SCALE, SHIFT
from brainreg.method import Regularised, regulariser
from brainreg.network import PairResNet, build
from brainreg.pairs import PairBatches
from brainreg.plans import BOUNDARY_STEPS
from brainreg.similarity import pairs_in_range, pixel_similarity
from common import bench_pipeline, fit, models
from common.bench_step import LR, OurStep, random_images, warm_up
from common.bench_step import Settings as StepSettings
from common.benchmark import (
    Timings,
    compare,
    digits,
    forward_operations,
    peak_bytes,
    rounds,
    summary,
    with_memory,
)
from common.data.splits import to_float
from common.engine import Engine
from common.evaluation.decision import Search, boundary, foolbox
from common.evaluation.judging import judged
from common.evaluation.plans import Evaluator

THRESHOLD = 0.8
PAIRS = 16                      # in a step


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured.  The step: `network` of `network_width` on `batch` grey images of 32 pixels and 16 pairs.  The
    searches: the small CNN of `width` on `batch` random images of `side` pixels.  The pairs: of `images` images ours,
    of `looped` the loop's; both are counted in pairs per second."""

    batch: int
    rounds: int
    limit: float | None = None                      # seconds of a row, after which no third round is begun
    matrix: int = 2048
    network: str = "resnet18"
    network_width: int = 64
    block: int = 1
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


@dataclass(eq=False)
class Originals:
    """The released training step, with the network in float32 and contiguous NCHW.

    images (N,1,H,W) in [0,1] and similarity (N,N) on the device, pairs int64 (P,2) on the host.
    """

    network: PairResNet
    images: Tensor
    similarity: Tensor
    pairs: Tensor
    alpha: float = 10.0

    def __post_init__(self) -> None:
        self.network.train()
        self.optimiser = torch.optim.SGD(self.network.parameters(), lr=LR, momentum=0.9)
        self.loader = torch.utils.data.DataLoader(self.pairs, PAIRS, shuffle=True, drop_last=True)
        self.waiting = iter(self.loader)

    def draw(self) -> Tensor:
        """The next pairs (k,2), on the host."""
        drawn = next(self.waiting, None)
        if drawn is None:
            self.waiting = iter(self.loader)
            drawn = next(self.waiting)
        return drawn

    def similarities(self, rows: Tensor, columns: Tensor) -> Tensor:
        """s (k,) of the images as fed; the running means move."""
        first, second = self.network.features(rows), self.network.features(columns)
        scores = []
        for a, b, mean in zip(first, second, self.network.running_mean, strict=True):
            both = torch.cat([a.data, b.data]).mean(dim=(0, 2, 3))
            mean.data = 0.9 * mean.data + 0.1 * both
            centred = [(half - mean[:, None, None]).flatten(1) for half in (a, b)]
            scores.append(F.cosine_similarity(*centred))
        return (torch.stack(scores, 1) * self.network.layer_weight.softmax(0)).sum(1)

    def step(self, x: Tensor, y: Tensor) -> None:
        """x (B,1,H,W) in [0,1]: class pass, both passes of the pairs, update."""
        loss = F.cross_entropy(self.network.classify(SCALE * (x - SHIFT)), y)
        rows, columns = self.draw().unbind(1)
        targets = self.similarity[rows, columns]
        fed = [SCALE * (self.images[which] - SHIFT) for which in (rows, columns)]
        loss = loss + self.alpha * regulariser(self.similarities(*fed), targets).mean()
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()


def our_step(settings: StepSettings, engine: Engine, name: str = "resnet18", width: int | None = None) -> OurStep:
    """The paper's objective in our loop, on grey images of `settings.size` pixels."""
    split = random_images(settings, engine.device, channels=1)
    classes = bench_pipeline.our_batches(split, settings.batch, engine, crop_mode="reflect")
    images = to_float(split.images[:1000]).cpu()
    similarity = pixel_similarity(images)
    batches = PairBatches(classes, (SCALE * (images - SHIFT)).to(engine.device), pairs_in_range(similarity, "all", 0.0),
                          similarity, PAIRS, seed=0)
    torch.manual_seed(0)
    network = build(name, classes=10, channels=1, width=width or settings.width or 64, scale=SCALE, shift=SHIFT)
    return OurStep(network, engine, lambda steps: Regularised(10.0), batches, optim=fit.SGD(weight_decay=0.0))


def measure_step(settings: Settings, engine: Engine) -> list[dict[str, Any]]:
    """A training step with pairs, counted in class images."""
    shape = StepSettings(batch=settings.batch, rounds=settings.rounds, images=max(1000, settings.batch))
    ours = our_step(shape, engine, settings.network, settings.network_width)
    torch.manual_seed(0)
    twin = build(settings.network, classes=10, channels=1, width=settings.network_width, scale=SCALE, shift=SHIFT)
    batches = ours.batches
    theirs = Originals(twin.to(engine.device), batches.images / SCALE + SHIFT, batches.similarity.to(engine.device),
                       batches.pairs)
    batch = next(ours.waiting)
    x = batch.x.contiguous()
    warm_up(engine.device, 1, ours, lambda steps: theirs.step(x, batch.y))
    passes = 3 * (settings.batch + 2 * PAIRS) / settings.batch
    title = f"brain-inspired regulariser: training step with {PAIRS} pairs, {settings.network}, grey"
    row = compare(settings, engine, "brainreg-step", title, theirs=lambda: theirs.step(x, batch.y),
                  ours=lambda: ours(1), batch=settings.batch, block=settings.block,
                  operations=passes * forward_operations(ours.network, channels=1))
    return [with_memory(row, engine.device, originals=lambda: theirs.step(x, batch.y), ours=lambda: ours(1))]


def measure_boundary(settings: Settings, engine: Engine) -> list[dict[str, Any]]:
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
        for _ in rounds(settings):
            old.time(device, lambda: one_by_one(ours, x))
            new.time(device, lambda: ours.search(x, own, 1))
    title = f"boundary attack, {BOUNDARY_STEPS} steps, small CNN of width {settings.width}: batched, against one by one"
    return [summary("brainreg-boundary", title, settings.batch, old, new)]


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


def measure_pairs(settings: Settings, engine: Engine) -> list[dict[str, Any]]:
    """Similarities and the pairs of one range, each of its own number of images."""
    device = engine.device
    images = torch.rand(settings.images, 1, settings.side, settings.side, device=device)
    counts = [count * (count - 1) // 2 for count in (settings.looped, settings.images)]
    old, new = map(Timings, counts)

    def ours() -> Tensor:
        return pairs_in_range(pixel_similarity(images), "all", THRESHOLD)

    def theirs() -> list[tuple[int, int]]:
        return pairs_by_loop(pixel_similarity(images[:settings.looped]), -2.0)

    ours()
    for _ in rounds(settings):
        old.time(device, theirs)
        new.time(device, ours)
    title = f"similarities and pairs of {settings.images:,} images, pairs/s: tensors, against a loop"
    return [summary("brainreg-pairs", title, settings.images, old, new) | {"our_peak_bytes": peak_bytes(device, ours)}]


STEPS = {"brainreg-step": our_step}
ROWS = {"brainreg-step": measure_step, "brainreg-pairs": measure_pairs, "brainreg-boundary": measure_boundary}


def notes(settings: dict[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    """What one must know to read the rows."""
    said = []
    for row in rows:
        if row["name"] == "brainreg-step":
            said.append(f"regulariser, step: {settings['network']} of width {settings['network_width']}, grey images; "
                        "images/s of the class images; originals: pairs fetched by indices on the host; images lie "
                        "ready on the device")
        if row["name"] == "brainreg-boundary":
            said.append("regulariser, boundary attack, originals: foolbox's for one image after the other, its own "
                        "starts")
        if row["name"] == "brainreg-pairs":
            said += about_pairs(settings, row)
    return said


def about_pairs(settings: dict[str, Any], row: dict[str, Any]) -> list[str]:
    """How long all pairs take either way."""
    seconds, pairs = row["ours"]["seconds"], row["ours"]["images_per_block"]
    looped = pairs / row["originals"]["images_per_second"]["median"]
    said = [f"regulariser, pairs, originals: two nested loops in Python, measured on {settings['looped']:,} images, "
            f"where all {pairs:,} pairs of {settings['images']:,} would take {looped:.0f} s",
            f"regulariser, pairs, ours: similarities and all pairs of {settings['images']:,} images in "
            f"{digits(min(seconds))} to {digits(max(seconds))} s"]
    if row["our_peak_bytes"]:
        said[-1] += f", at most {row['our_peak_bytes'] / 2 ** 20:,.0f} MiB"
    return said
