"""The benchmark's rows of AutoAttack: pyautoattack called with its defaults, our float32 search, our fast search."""

import copy
import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common import models
from common.attacks.pgd import PGD
from common.benchmark import Timings, learnt_by_heart, rounds, summary
from common.data.splits import Split, to_float
from common.engine import Engine
from common.evaluation import Evaluator, Plan, evaluate
from common.evaluation.autoattack import QUIET, Upstream, shorten
from common.evaluation.searches import KIND
from common.types import StepContext

WAYS = ("originals", "float32", "fast")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured.  iterations and queries: a twentieth of AutoAttack's; time is proportional to them."""

    model: str = "small"
    width: int | None = None
    images: int = 64
    rounds: int
    limit: float | None = None                      # seconds of both rows together, after which no third round begins
    matrix: int = 0
    iterations: int = 5
    queries: int = 250
    learn: int = 90                                 # steps in which the network learns the images


def pictures(count: int) -> Split:
    """Noise upon one of ten coarse patterns, its class: what a network learns in a few dozen steps."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 10, (count,), generator=generator)
    patterns = torch.randint(0, 256, (10, 3, 8, 8), generator=generator)
    coarse = patterns[labels].repeat_interleave(4, 2).repeat_interleave(4, 3)
    noise = torch.randint(0, 256, (count, 3, 32, 32), generator=generator)
    return Split(((coarse + noise) // 2).to(torch.uint8), labels)


def withstood(network: nn.Module, x: Tensor, y: Tensor, wanted: float = 0.75) -> float:
    """An eps in [0,1] at which about this share of the images withstands PGD-10."""
    low, high = 0.0, 0.5
    for _ in range(8):
        eps = (low + high) / 2
        found = PGD(eps, eps / 4, 10)(network, x, y, StepContext(generator=torch.Generator().manual_seed(0)))
        with torch.no_grad():
            share = (network(found).argmax(1) == y).float().mean().item()
        low, high = (eps, high) if share > wanted else (low, eps)
    return (low + high) / 2


def originals(network: nn.Module, split: Split, eps: float, settings: Settings, device: torch.device) -> int:
    """pyautoattack's own run, as it comes: images that stand."""
    theirs = Upstream(network, norm="Linf", eps=eps, version="standard", device=device, seed=0, **QUIET)
    for attack in (theirs.apgd, theirs.apgd_targeted):
        shorten(attack, settings.iterations)
    theirs.fab.n_iter, theirs.square.n_queries = settings.iterations, settings.queries
    x, y = to_float(split.images).to(device), split.labels.to(device)
    found = theirs.run_standard_evaluation(x, y)
    with torch.no_grad():
        return int((network(found[0] if isinstance(found, tuple) else found).argmax(1) == y).sum())


def ours(network: nn.Module, split: Split, evaluator: Evaluator, device: torch.device) -> int:
    """Our evaluation of one evaluator, all images in a chunk: images that stand."""
    with tempfile.TemporaryDirectory() as work:
        plan = Plan("bench", (evaluator,), chunk=len(split))
        return evaluate(network, split, plan, seed=0, device=device, work=Path(work), progress=False)[0].robust


def measure(settings: Settings, engine: Engine) -> list[dict[str, Any]]:
    """Both rows, each against the same blocks of the originals' way."""
    device = engine.device
    split = pictures(settings.images)
    x, y = to_float(split.images).to(device), split.labels.to(device)
    torch.manual_seed(0)
    network = models.build(settings.model, classes=10, width=settings.width)
    network = learnt_by_heart(network, engine, x, y, settings.learn).eval().to(memory_format=torch.contiguous_format)
    eps = withstood(network, x, y)
    shared = {"iterations": settings.iterations, "queries": settings.queries}
    plain, quick = (Evaluator("bench", kind, eps=eps, settings=shared) for kind in ("autoattack", KIND))
    theirs, live = copy.deepcopy(network), network
    blocks = {"originals": lambda: originals(theirs, split, eps, settings, device),
              "float32": lambda: ours(live, split, plain, device), "fast": lambda: ours(live, split, quick, device)}
    timings, robust = {way: Timings(settings.images) for way in WAYS}, {}
    logger, level = logging.getLogger("auto-attack"), logging.getLogger("auto-attack").level
    logger.setLevel(logging.ERROR)
    try:
        for _ in rounds(settings):
            for way, block in blocks.items():
                timings[way].time(device, lambda: robust.update({way: block()}))       # noqa: B023
    finally:
        logger.setLevel(level)
    done = []
    for way, title in (("float32", "AutoAttack, float32 search"), ("fast", "AutoAttack's attacks, fast search")):
        row = summary(f"autoattack-{way}", title, settings.images, timings["originals"], timings[way])
        done.append(row | {"eps": eps, "robust": {name: robust[name] for name in ("originals", way)}})
    return done


ROWS = {"autoattack": measure}


def notes(settings: dict[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    """What one must know to read the rows."""
    stands = {way: count for row in rows for way, count in row.get("robust", {}).items()}
    eps = next(row["eps"] for row in rows if row["name"].startswith("autoattack"))
    return [f"AutoAttack: {settings['images']} images of ten noisy patterns that the network ({settings['model']}) "
            f"has learnt in {settings['learn']} steps; L-inf, eps {255 * eps:.2f}/255, at which about three in four "
            f"withstand PGD-10; {settings['iterations']} iterations and {settings['queries']} queries instead of 100 "
            "and 5000; originals: pyautoattack's run_standard_evaluation with its defaults, parameters trainable; "
            "still standing: " + ", ".join(f"{stands[way]} ({way})" for way in WAYS)]
