"""How the cost of a PGD-AT training step grows with its work: rows of make bench-grow, a table and a figure.

The attack runs in eval mode; both ways as in adarat/bench.py, but the originals' images lie ready on the device.  Over
the number of GPUs the batch of each GPU stays the same; the originals train on one GPU, so only ours is there.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes

from adarat.bench import STEPS, Originals
from common.bench_step import Settings, network, warm_up
from common.benchmark import Timings, cells, compare, digits, forward_operations, padded, spread
from common.engine import Engine
from common.environment import ROOT
from common.errors import UserError
from common.plots import BLUE, ORANGE, figure
from common.render import Grid

TITLES = {"batch": "batch size", "steps": "attack steps", "width": "width (channels of the first stage)",
          "size": "image side, pixels", "ranks": "GPUs, the batch of each the same"}


def middle_of(settings: Settings, on_cpu: bool, quick: bool) -> Settings:
    """What stays the same where something else grows."""
    return replace(settings, batch=8 if quick else 16 if on_cpu else 128, images=1024, limit=8.0)


def points(middle: Settings, on_cpu: bool, quick: bool) -> list[tuple[str, int, Settings]]:
    """(what grows, its value, what is measured there), from the same middle in each direction."""
    values = {"batch": (8, 16, 32, 64, 128) if on_cpu else (32, 64, 128, 256, 512, 1024), "steps": (1, 2, 5, 10, 20),
              "width": (16, 32, 64) if on_cpu else (16, 32, 64, 128), "size": (16, 32, 64)}
    if quick:
        values = {what: each[:2] for what, each in values.items()}
    found = [(what, value, replace(middle, **{what: value})) for what, each in values.items() for value in each]
    return [(what, value, replace(each, images=max(each.images, each.batch))) for what, value, each in found]


def measure(settings: Settings, engine: Engine, quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """The rows of each direction; GPUs where there are two or more.  `say` gets a line as each point is done."""
    on_cpu, rows = engine.device.type == "cpu", []
    middle = middle_of(settings, on_cpu, quick)
    for what, value, each in points(middle, on_cpu, quick):
        rows.append({"what": what, "value": value, **one(each, engine)})
        say(f"{TITLES[what]} {value}: {' -> '.join(cells(rows[-1])[2:5])}")
    gpus = torch.cuda.device_count() if engine.device.type == "cuda" else 0
    counts = [count for count in (1, 2, 4, 8, 16) if count <= gpus]
    said = f"number of GPUs: not measured, there are {gpus} here" if gpus < 2 else ""
    ranks = [] if said else over_ranks(replace(middle, block=5), "cuda", counts, say)
    return {"middle": asdict(middle), "rows": rows, "ranks": ranks, "said": said}


def one(settings: Settings, engine: Engine) -> dict[str, Any]:
    """Both ways at one point."""
    ours, theirs = STEPS["pgd-training"](settings, engine), Originals(network(settings), engine.device, settings)
    batch = next(ours.waiting)
    x = batch.x.contiguous()

    def plain(steps: int) -> None:
        theirs.plain(x, batch.y, training=False, steps=steps)

    warm_up(engine.device, settings.steps, plain, ours)
    operations = (2 * settings.steps + 3) * forward_operations(ours.network, settings.size)
    return compare(settings, engine, "pgd-training", "PGD-AT", theirs=lambda: plain(settings.steps),
                   ours=lambda: ours(settings.steps), batch=settings.batch, block=settings.block,
                   operations=operations)


# --- several processes ---

def over_ranks(settings: Settings, device: str, counts: Sequence[int], say: Callable[[str], None]
               ) -> list[dict[str, Any]]:
    """Our step on each number of processes, `settings.batch` images for each of them."""
    rows = []
    for count in counts:
        asked = json.dumps(asdict(replace(settings, batch=count * settings.batch)))
        done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
                               str(count), "-m", "adarat.bench_ranks", "--device", device, "--settings", asked],
                              cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"the step on {count} processes failed: {done.stderr.strip()[-300:]}", code="E-STEP-FAILED")
        rows.append(json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{"))))
        say(f"{TITLES['ranks']} {count}: {digits(rows[-1]['images_per_second']['median'])} images/s")
    return rows


def timed(settings: Settings, engine: Engine) -> dict[str, Any]:
    """Our step's timings on this process and those that train with it."""
    step, timings = STEPS["pgd-training"](settings, engine), Timings(settings.block * settings.batch)
    warm_up(engine.device, settings.steps, step)
    for _ in range(settings.rounds):
        timings.time(engine.device, lambda: [step(settings.steps) for _ in range(settings.block)])
    return {"ranks": step.crew.ranks, **timings.record()}


# --- what a reader sees ---

def milliseconds(row: dict[str, Any], way: str) -> dict[str, float]:
    """Of one training step: median, min and max over the rounds."""
    steps = row[way]["images_per_block"] / row["batch"]
    return spread([1000 * each / steps for each in row[way]["seconds"]])


def tables(growth: dict[str, Any], notes: list[str]) -> list[Grid]:
    """One table of all directions, and that of the processes."""
    header = ("what grows", "value", "originals, ms/step", "ours, ms/step", "ratio", "originals, share", "ours, share")
    rows = []
    for row in growth["rows"]:
        old, new = (milliseconds(row, way) for way in ("originals", "ours"))
        said = [f"{digits(way['median'])} ({digits(way['min'])} to {digits(way['max'])})" for way in (old, new)]
        shares = [f"{row[way]['share_of_matrix_rate']:.0%}" for way in ("originals", "ours")]
        rows.append((TITLES[row["what"]], str(row["value"]), *said, cells(row)[4], *shares))
    middle = growth["middle"]
    notes = [*notes, f"a PGD-AT step, attack in eval mode; one thing grows, the others are {middle['model']}, batch "
             f"{middle['batch']}, {middle['steps']} attack steps, {middle['size']} pixels; milliseconds of a step: "
             "median (min to max); the originals' images lie ready on the device"]
    notes += [growth["said"]] * bool(growth["said"])
    grids = [padded(header, rows, "How the cost of a PGD-AT step grows", notes)]
    if growth["ranks"]:
        first = growth["ranks"][0]["images_per_second"]["median"]
        lines = [(str(row["ranks"]), digits(row["images_per_second"]["median"]),
                  f"{row['images_per_second']['median'] / first / row['ranks'] * growth['ranks'][0]['ranks']:.0%}")
                 for row in growth["ranks"]]
        grids.append(padded(("GPUs", "ours, images/s", "of proportional"), lines, "Over GPUs", []))
    return grids


def draw(growth: dict[str, Any], device: str, path: Path) -> None:
    """Milliseconds of a step over each direction, both ways, the rounds' range as a band."""
    directions = list(dict.fromkeys(row["what"] for row in growth["rows"]))
    with figure(path, 3.2 * len(directions), 3.2) as drawn:
        panels = drawn.subplots(1, len(directions), squeeze=False, sharey=True)[0]
        for what, axes in zip(directions, panels, strict=True):
            panel(axes, [row for row in growth["rows"] if row["what"] == what], TITLES[what])
        panels[0].set_ylabel("milliseconds per training step")
        panels[0].legend()
        drawn.suptitle(f"PGD-AT step on {device}", fontsize=11)


def panel(axes: Axes, rows: list[dict[str, Any]], label: str) -> None:
    values = [row["value"] for row in rows]
    for way, name, colour, marker in (("originals", "originals' way", ORANGE, "s"), ("ours", "ours", BLUE, "o")):
        found = [milliseconds(row, way) for row in rows]
        axes.plot(values, [each["median"] for each in found], color=colour, marker=marker, label=name)
        axes.fill_between(values, [each["min"] for each in found], [each["max"] for each in found], color=colour,
                          alpha=0.2, linewidth=0)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xticks(values, [str(value) for value in values])
    axes.set_xlabel(label)
