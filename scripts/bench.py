"""Our way against the originals' way, measured in one process, round by round: make bench, or python -m scripts.bench

Rows: the PGD-10 training step with the attack in eval mode and in train mode (quirk attack-train-bn), the attack alone,
the input pipeline alone; DyART's projection and training step, whose original's way dyart/bench.py states; the choice
of pairs and the boundary attack of the brain-inspired regulariser, as brainreg/bench.py states; AutoAttack by its
float32 and its fast search (common/bench_autoattack.py); and figures of the check of the attacks' fast path.  PGD-AT's
original's way: float32, contiguous NCHW, eager, parameters left trainable during the attack, torch.optim.SGD, a
DataLoader with one worker and PIL transforms.  Whether the released code takes the gradient by loss.backward() is not
known; it is taken by torch.autograd.grad, which is the cheaper for them.

Images are random bytes (speed does not depend on what they show), but for AutoAttack's, whose work depends on what
falls.  A round times a block of each way, one after the other; the ratio is that of the median images per second.
Useful operations: 2 per multiply-add of convolutions and linear layers, products with zero padding left out; a step of
N attack steps is N*2 + 3 forward passes' worth.
"""

import copy
import os
import re
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from adarat.method import AdversarialTraining
from brainreg import bench as brainreg_bench
from common import bench_autoattack, bench_check, fit, models
from common.attacks import PGD
from common.benchmark import Timings, cells, forward_operations, repeat, rounds, sentence, summary
from common.data.batches import Batches
from common.data.splits import Split
from common.engine import Engine
from common.environment import environment, relative_command
from common.errors import exit_cleanly
from common.files import write_json, write_text
from common.flags import Parser, count
from common.render import Grid, markdown
from common.types import Batch, StepContext
from dyart import bench as dyart_bench

LR = 0.01                                           # labels are random: a larger one only blows the weights up


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured.  eps and step_size in [0,1]; a block of the originals' pipeline is `loads` batches."""

    model: str = "resnet18"
    width: int | None = None
    batch: int
    steps: int = 10
    eps: float = 8 / 255
    step_size: float = 2 / 255
    rounds: int
    limit: float | None = None                      # seconds, of all rows together
    block: int = 1                                  # training steps, or attacks, per block
    images: int = 50_000
    load_batch: int = 128
    loads: int = 40
    matrix: int = 2048                              # rows of the square matrices whose product gives the matrix rate


class Parts(NamedTuple):
    """What is measured beside: of two papers, and of evaluation."""

    dyart: dyart_bench.Settings
    brainreg: brainreg_bench.Settings
    autoattack: bench_autoattack.Settings


class PILImages(Dataset):
    """(N,H,W,3) uint8 in memory, handed out as the originals' data sets do: PIL image, transforms, float tensor."""

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        self.images, self.labels = images, labels
        self.transform = transforms.Compose([transforms.RandomCrop(images.shape[1], padding=4),
                                             transforms.RandomHorizontalFlip(), transforms.ToTensor()])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


@dataclass(eq=False)
class Originals:
    """The originals' way, with the network in float32 and contiguous NCHW."""

    network: nn.Module
    device: torch.device
    settings: Settings

    def __post_init__(self) -> None:
        self.network.to(self.device).train()
        self.optimiser = torch.optim.SGD(self.network.parameters(), lr=LR, momentum=0.9, weight_decay=5e-4)

    def attack(self, x: Tensor, y: Tensor, *, training: bool, steps: int, start: Tensor | None = None) -> Tensor:
        """PGD on the mean cross-entropy from `start`, else from a uniform one; every parameter wants a gradient."""
        eps = self.settings.eps
        self.network.train(training)
        x_adv = start if start is not None else (x + eps * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
        for _ in range(steps):
            x_adv = x_adv.detach().requires_grad_(True)
            gradient, = torch.autograd.grad(F.cross_entropy(self.network(x_adv), y), [x_adv])
            x_adv = x_adv.detach() + self.settings.step_size * gradient.sign()
            x_adv = torch.min(torch.max(x_adv, x - eps), x + eps).clamp(0, 1)
        self.network.train()
        return x_adv.detach()

    def step(self, x: Tensor, y: Tensor, *, training: bool, steps: int) -> None:
        """Attack, forward, backward, update."""
        loss = F.cross_entropy(self.network(self.attack(x, y, training=training, steps=steps)), y)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()

    def loader(self, images: Tensor, labels: Tensor, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches on the device without end.  The worker lives on from epoch to epoch, which spares them restarts."""
        data = PILImages(images.permute(0, 2, 3, 1).contiguous().numpy(), labels.numpy())
        loader = DataLoader(data, batch, shuffle=True, num_workers=1, drop_last=True, persistent_workers=True,
                            pin_memory=self.device.type == "cuda")
        while True:
            for x, y in loader:
                yield x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)


@dataclass(eq=False)
class Ours:
    """Our way, made of what `common.fit` is given: engine, objective, optimiser, batches."""

    network: nn.Module
    engine: Engine
    settings: Settings

    def __post_init__(self) -> None:
        self.engine.place(self.network).train()
        self.runner = self.engine.runner(self.network)
        self.optimiser = fit.SGD().build(self.network)
        fit.set_hyper(self.optimiser, LR, 0.9)
        self.generator = torch.Generator(self.engine.device)
        self.done = 0

    def context(self) -> StepContext:
        self.done += 1
        return StepContext(generator=fit.seeded_step(self.generator, 0, self.done), attacking=self.engine.attacking)

    def attack(self, x: Tensor, y: Tensor, *, training: bool, steps: int, start: Tensor | None = None) -> Tensor:
        """PGD on the engine's fast path, from `start` or from a uniform one."""
        ctx, pgd = self.context(), PGD(self.settings.eps, self.settings.step_size, steps)
        with ctx.attacking(self.runner, training) as target:
            return pgd(target, x, y, ctx) if start is None else pgd.from_start(target, x, y, start)

    def step(self, x: Tensor, y: Tensor, *, training: bool, steps: int) -> None:
        """PGD-AT's objective and the body of fit's loop."""
        attack = PGD(self.settings.eps, self.settings.step_size, steps)
        objective = AdversarialTraining(attack=attack, attack_in_train_mode=training, clean_pass=False)
        self.network.train()
        loss, _ = objective(self.runner, Batch(x, y), self.context())
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()

    def loader(self, images: Tensor, labels: Tensor, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches on the device without end."""
        batches = Batches(Split(images, labels).to(self.engine.device), batch, seed=0, crop=4, flip=True,
                          drop_last=True, channels_last=self.engine.channels_last)
        epoch = 0
        while True:
            for one in batches.epoch(epoch):
                yield one.x, one.y
            epoch += 1


def measure(settings: Settings, parts: Parts, engine: Engine, only: str | None = None,
            say: Callable[[str], None] = print) -> dict[str, Any]:
    """All rows, or only those of a part, with every timing.  `say` gets a line as each row is done."""
    started, rows = time.perf_counter(), []
    torch.manual_seed(0)
    network = models.build(settings.model, classes=10, width=settings.width)
    if only in (None, "adarat"):
        rows += measure_adarat(settings, network, engine, say)
    if only in (None, "dyart"):
        rows += dyart_bench.measure(parts.dyart, copy.deepcopy(network), engine, say)
    if only in (None, "brainreg"):
        rows += brainreg_bench.measure(parts.brainreg, engine, say)
    if only in (None, "autoattack"):
        rows += bench_autoattack.measure(parts.autoattack, engine, say)
    checks = bench_check.measure(network, engine, say) if only in (None, "check") else []
    return {"rows": rows, "checks": checks, "forward_operations_per_image": forward_operations(network),
            "seconds": time.perf_counter() - started}


def measure_adarat(settings: Settings, network: nn.Module, engine: Engine, say: Callable[[str], None]
                   ) -> list[dict[str, Any]]:
    """The rows of PGD-AT and the input pipeline."""
    device, started, done = engine.device, time.perf_counter(), []
    images = torch.randint(0, 256, (settings.images, 3, 32, 32), dtype=torch.uint8)
    labels = torch.randint(0, 10, (settings.images,))
    operations = forward_operations(network)
    ours, theirs = (Ours(copy.deepcopy(network), engine, settings),
                    Originals(copy.deepcopy(network), device, settings))
    our_batches = ours.loader(images, labels, settings.batch)
    their_batches = theirs.loader(images, labels, settings.batch)
    x, y = next(our_batches)
    contiguous = x.contiguous()
    matrix = torch.randn(settings.matrix, settings.matrix, device=device).to(
        torch.bfloat16 if engine.precision == "bf16" else torch.float32)

    # name, title, forward passes' worth of operations, one step of the originals and of ours
    plan = [(name, f"PGD-{settings.steps} training step, attack in {mode} mode", 2 * settings.steps + 3,
             lambda steps, training=training: theirs.step(*next(their_batches), training=training, steps=steps),
             lambda steps, training=training: ours.step(*next(our_batches), training=training, steps=steps))
            for name, mode, training in (("pgd-training", "eval", False),
                                         ("pgd-training-attack-train-bn", "train", True))]
    plan.append(("pgd-attack", f"PGD-{settings.steps} attack alone, eval mode", 2 * settings.steps,
                 lambda steps: theirs.attack(contiguous, y, training=False, steps=steps),
                 lambda steps: ours.attack(x, y, training=False, steps=steps)))
    for index, (name, title, passes, their_step, our_step) in enumerate(plan):
        old, new = Timings(settings.block * settings.batch), Timings(settings.block * settings.batch)
        product = Timings(1)
        their_step(1)                               # warm-up: kernels are chosen, the attack's copies are made
        our_step(1)
        product.time(device, lambda: repeat(4, torch.mm, matrix, matrix))
        product.seconds.clear()
        for _ in rounds(settings, started, (index + 1) / len(plan)):
            old.time(device, lambda: repeat(settings.block, their_step, settings.steps))       # noqa: B023
            new.time(device, lambda: repeat(settings.block, our_step, settings.steps))         # noqa: B023
            product.time(device, lambda: repeat(4, torch.mm, matrix, matrix))
        rate = 4 * 2 * settings.matrix ** 3 / median(product.seconds)
        row = {**summary(name, title, settings.batch, old, new), "operations_per_image": passes * operations,
               "matrix_seconds": product.seconds, "matrix_operations_per_second": rate}
        for way in ("originals", "ours"):
            speed = row[way]["images_per_second"]["median"]
            row[way]["share_of_matrix_rate"] = speed * passes * operations / rate
        done.append(row)
        say(sentence(row))
    done.append(pipeline(settings, device, theirs.loader(images, labels, settings.load_batch),
                         ours.loader(images, labels, settings.load_batch)))
    say(sentence(done[-1]))
    return done


def pipeline(settings: Settings, device: torch.device, theirs: Iterator[Any], ours: Iterator[Any]) -> dict[str, Any]:
    """Batches on the device and nothing else; ours runs ten times as many in a block, to be long enough to time."""
    images = settings.loads * settings.load_batch
    old, new = Timings(images), Timings(10 * images)
    repeat(10, next, ours)
    for _ in range(settings.rounds):
        repeat(3, next, theirs)                     # what the worker had made ready while it was not its turn
        old.time(device, lambda: repeat(settings.loads, next, theirs))
        new.time(device, lambda: repeat(10 * settings.loads, next, ours))
    return summary("input-pipeline", "input pipeline alone, 32x32: random crop, flip", settings.load_batch, old, new)


def table(record: dict[str, Any]) -> Grid:
    """The table, its columns as wide as their widest cell, and what one must know to read it."""
    header = ("what", "batch", "originals, images/s", "ours, images/s", "ratio", "originals, share", "memory",
              "ours, share", "memory")
    lines = [header, *(cells(row) for row in record["rows"])]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    header, *rows = (tuple(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
    where, settings = record["environment"], record["settings"]
    engine, load, names = where["engine"], where["load_average"], {row["name"] for row in record["rows"]}
    notes = [f"{where['device']}; {where['threads']} threads; torch {where['torch']}; {where['started']}; "
             f"`{record['command']}`",
             "images per second: median (min to max) over the rounds; ratio: of the medians (min to max of the rounds)",
             f"ours: {engine['precision']}{', channels-last' * engine['channels_last']}"
             f"{', attacks on copies of the weights (folded in eval mode)' * engine['fast_attacks']}"]
    if "pgd-training" in names:
        rate, size = record["rows"][0]["matrix_operations_per_second"], settings["matrix"]
        notes += ["originals: float32 (torch's default: TF32 in CUDA's convolutions), contiguous NCHW, eager, "
                  "parameters trainable while attacking, torch.autograd.grad, a DataLoader with one worker and PIL "
                  "transforms",
                  f"share: useful operations (zero padding left out) per second, of the {rate / 1e9:,.0f} GFLOP/s (row "
                  f"1) of a {engine['precision']} product of {size} x {size} in the same rounds; a forward pass takes "
                  f"{record['forward_operations_per_image'] / 1e9:.3f} GFLOP, N attack steps 2N, training 3 more"]
    notes.append("memory: peak on the device beyond what lay there before the block (CUDA only); images: random bytes")
    if "dyart-step" in names:
        notes += dyart_bench.notes(record["dyart_settings"], record["rows"])
    if "brainreg-pairs" in names:
        notes += brainreg_bench.notes(record["brainreg_settings"], record["rows"])
    if "autoattack-fast" in names:
        notes += bench_autoattack.notes(record["autoattack_settings"], record["rows"])
    if load is not None and load > 0.3:
        notes.append(f"other work ran here (load average {load:.1f} before the start): the figures are disturbed")
    return Grid(f"Speed of {settings['model']} on {where['device']}", header, tuple(rows), tuple(notes))


def tables(record: dict[str, Any]) -> list[Grid]:
    """The table of speeds and that of the check, whichever was measured."""
    model = record["settings"]["model"]
    return [table(record)] * bool(record["rows"]) + [bench_check.table(record["checks"], model)
                                                     ] * bool(record["checks"])


def main(argv: list[str] | None = None) -> int:
    parse = Parser(prog="python -m scripts.bench", description=__doc__.splitlines()[0])
    parse.add_argument("--quick", action="store_true", help="about a minute on 2 cores: half the batch, two rounds")
    parse.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    parse.add_argument("--batch", type=count, help="images per step; by default 128, on a CPU 32, quick 16")
    parse.add_argument("--rounds", type=count, help="without a time limit; by default 5, quick 2, in about 7 minutes")
    parse.add_argument("--only", choices=("adarat", "dyart", "brainreg", "autoattack", "check"),
                       help="the rows of one paper or part only")
    parse.add_argument("--model", default="resnet18", help="see common/models")
    parse.add_argument("--width", type=count, help="channels of its first stage")
    parse.add_argument("--out", type=Path, default=Path("results/bench"), help="folder of the records")
    args = parse.parse_args(argv)
    engine, load = Engine.choose(args.device), os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    on_cpu, quick, says = engine.device.type == "cpu", args.quick, engine.describe()
    settings = Settings(
        model=args.model, width=args.width, batch=args.batch or (128 if not on_cpu else 16 if quick else 32),
        rounds=args.rounds or (2 if quick else 5), limit=None if args.rounds else 22 if quick else 180,
        block=1 if on_cpu else 5, images=10_000 if quick else 50_000, loads=15 if quick else 40,
        matrix=2048 if on_cpu else 8192)
    dyart = dyart_bench.Settings(
        batch=settings.batch, rounds=settings.rounds, limit=None if args.rounds else 15 if quick else 180,
        iterations=6 if quick else 20, learn=8 if quick else 15, projections=2 if on_cpu else 20)
    brainreg = brainreg_bench.Settings(batch=args.batch or 64, rounds=settings.rounds,
                                       limit=None if args.rounds else 15 if quick else 60)
    usual = {} if on_cpu else {"images": 250, "model": "resnet18"}
    autoattack = bench_autoattack.Settings(rounds=settings.rounds, limit=dyart.limit, **(
        {"images": 16, "iterations": 2, "queries": 50} if quick else usual))
    parts = Parts(dyart, brainreg, autoattack)
    record = {"schema": 1, "settings": asdict(settings),
              **{f"{name}_settings": asdict(part) for name, part in parts._asdict().items()},
              "command": relative_command(argv and ["bench", *argv], module="scripts.bench"),
              "environment": {**environment(says["device_name"], engine.precision, says["torch_threads"]),
                              "engine": says, "load_average": load},
              **measure(settings, parts, engine, args.only, lambda line: print(line, flush=True))}
    stem, text = str(args.out / record_name(record, args)), markdown(tables(record))
    write_json(Path(stem + ".json"), record)
    write_text(Path(stem + ".md"), text)
    print(f"\n{text}\nwritten to {stem}.json and .md")
    return 0


def record_name(record: dict[str, Any], args: Namespace) -> str:
    """<machine>-<yyyymmdd>, and the flags that were not the default: a small try must not replace the day's record."""
    where = record["environment"]
    parts = [re.sub(r"[^a-z0-9]+", "-", where["device"].lower()).strip("-"), where["started"][:10].replace("-", "")]
    parts += ["quick"] * args.quick + [args.only] * bool(args.only) + [args.model] * (args.model != "resnet18")
    parts += [f"{flag}{value}" for flag, value in (("w", args.width), ("b", args.batch)) if value]
    return "-".join(parts)


if __name__ == "__main__":
    exit_cleanly(main)
