"""What benchmarks time as our training step is the body of `common.fit`'s loop; how rows are measured."""

from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from common import bench_pipeline, ema
from common.attacks import PGD
from common.bench_step import LR, WARM, OneBatch, OurStep, random_images, warm_up
from common.bench_step import network as make
from common.benchmark import Product, compare, forward_operations, rounds, with_memory
from common.engine import Engine
from common.fit import SGD, fit
from common.tests.bench_parts import CPU, plain, tiny
from common.types import Batch, Hyper, LossOut


@dataclass(frozen=True)
class Attacked:
    """PGD-AT in train mode, whose start is drawn from the step's generator."""

    steps: int

    def modules(self):
        return {}

    def __call__(self, model, batch, ctx):
        with ctx.attacking(model, True) as target:
            x = PGD(8 / 255, 2 / 255, self.steps)(target, batch.x, batch.y, ctx)
        loss = ctx.mean(F.cross_entropy(model(x), batch.y, reduction="none"))
        return LossOut(loss, {"progress": loss.new_full((), ctx.progress)})


def test_a_step_is_that_of_fit(tmp_path):
    settings = tiny()
    batches = bench_pipeline.our_batches(random_images(settings, CPU), settings.batch, plain())
    step = OurStep(make(settings), plain(), Attacked, batches, average=0.9)
    trained = make(settings)
    fit(model=trained, objective=Attacked(2), batches=batches, schedule=lambda progress: Hyper(LR), optim=SGD(),
        epochs=1, out=tmp_path / "out", weights=tmp_path / "weights", seed=0, engine=plain(),
        average=ema.Averaging(lambda step: 0.9))
    progress = [step(2)["progress"].item() for _ in range(len(batches))]
    average = torch.load(tmp_path / "weights" / "average.pt", weights_only=True)
    for name, value in trained.state_dict().items():
        assert torch.equal(value, step.network.state_dict()[name]), name
        assert torch.equal(average[name], step.averaged.state_dict()[name]), name
    assert progress == [index / 4 for index in range(4)]
    first, *rest = [next(step.waiting) for _ in range(5)]
    assert torch.equal(first.x, rest[-1].x) and not torch.equal(first.x, rest[0].x)         # epoch 0 again and again


def test_a_late_step_tells_the_objective_its_epoch():
    seen = []

    def late(model, batch, ctx):
        seen.append((ctx.epoch, ctx.step, ctx.steps_per_epoch, ctx.average))
        return LossOut(model(batch.x).sum(), {})

    settings = tiny()
    step = OurStep(make(settings), plain(), lambda steps: late,
                   OneBatch(Batch(torch.rand(2, 3, 32, 32), torch.arange(2))), epoch=7, optim=SGD(clip_norm=1e-6))
    before = [parameter.clone() for parameter in step.network.parameters()]
    step(1), step(1)
    assert seen == [(7, 7, 1, None)] * 2
    moved = sum((new - old).norm() for new, old in zip(step.network.parameters(), before, strict=True))
    assert 0 < moved < 1e-3                                     # weight decay alone: the gradient is clipped


def test_warm_ups_are_brief_on_a_cpu_and_whole_on_a_gpu():
    asked = []
    warm_up(CPU, 10, asked.append)
    warm_up(torch.device("cuda"), 10, asked.append)
    assert asked == [1] + [10] * WARM and WARM > 2


def test_two_rounds_are_made_whatever_the_limit_and_no_third_after_it():
    assert len(list(rounds(tiny(rounds=5, limit=0.0)))) == 2
    assert len(list(rounds(tiny(rounds=5, limit=60.0)))) == 5
    assert len(list(rounds(tiny(rounds=5)))) == 5 and len(list(rounds(tiny(rounds=1, limit=0.0)))) == 1


def test_ways_take_turns_and_shares_are_of_the_product_of_the_same_rounds(monkeypatch):
    turns = []
    monkeypatch.setattr(Product, "time", lambda self: (turns.append("product"), self.timings.seconds.append(0.5)))
    row = compare(tiny(rounds=2), plain(), "name", "title", theirs=lambda: turns.append("theirs"),
                  ours=lambda: turns.append("ours"), batch=4, block=2, operations=100.0)
    assert turns == ["product"] + ["theirs", "theirs", "ours", "ours", "product"] * 2
    assert row["matrix_operations_per_second"] == 4 * 2 * 32 ** 3 / 0.5 and row["ours"]["images_per_block"] == 8
    assert "matrix_seconds" not in compare(tiny(), plain(), "n", "t", theirs=int, ours=int, batch=1)


def test_memory_is_listed_where_no_block_told_it():
    row = {"originals": {"peak_bytes": None}, "ours": {"peak_bytes": 5}}
    found = with_memory(row, CPU, originals=lambda: torch.zeros(1000, 100), ours=lambda: torch.zeros(1))
    assert found["originals"]["peak_bytes"] == pytest.approx(4e5, rel=0.01) and found["ours"]["peak_bytes"] == 5


def test_operations_of_grey_images_and_of_products_with_padding_left_out():
    # On 4x4 pixels a 3x3 window covers 4 of them at each of 4 corners, 6 at 8 edges, 9 at the 4 places inside.
    taps = 4 * 4 + 8 * 6 + 4 * 9
    for channels in (1, 3):
        assert forward_operations(nn.Conv2d(channels, 5, 3, padding=1), size=4, channels=channels) == (
            2 * taps * channels * 5)
    head = nn.Sequential(nn.Flatten(), nn.Linear(48, 7))
    assert forward_operations(head, size=4) == 2 * 48 * 7


def test_the_fast_path_is_what_is_measured_where_the_engine_has_one():
    engine, settings = Engine(CPU, "bf16", channels_last=True, fast_attacks=True), tiny()
    batches = bench_pipeline.our_batches(random_images(settings, CPU), settings.batch, engine)
    OurStep(make(settings), engine, Attacked, batches)(1)
    assert not engine.notes and len(engine._views) == 1


def test_both_pipelines_deliver_the_same_kind_of_batches():
    split, engine = random_images(tiny(), CPU), plain()
    for way in (bench_pipeline.originals(split, 8, CPU), bench_pipeline.ours(split, 8, engine)):
        found = [next(way) for _ in range(5)]                   # 4 batches make an epoch
        for x, y in found:
            assert x.shape == (8, 3, 32, 32) and x.dtype == torch.float32 and x.min() >= 0 and x.max() <= 1
            assert y.shape == (8,) and y.dtype == torch.int64
        assert not any(torch.equal(one, other) for (one, _), (other, _) in pairwise(found))
