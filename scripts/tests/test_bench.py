"""python -m scripts.bench: the record's shape, and that both ways compute the same.  No timing is asserted."""

import copy
import json
from dataclasses import replace

import pytest
import torch

from common import models
from common.engine import Engine
from common.errors import UserError
from scripts import bench

CPU = torch.device("cpu")
ADARAT = ["pgd-training", "pgd-training-attack-train-bn", "pgd-attack", "input-pipeline"]
DYART = ["dyart-projection", "dyart-step"]
BRAINREG = ["brainreg-pairs", "brainreg-boundary"]
AUTOATTACK = ["autoattack-float32", "autoattack-fast"]


def tiny(**changes):
    return bench.Settings(**{"model": "small", "width": 4, "batch": 4, "steps": 2, "rounds": 2, "images": 64,
                             "load_batch": 8, "loads": 2, "matrix": 32, **changes})


def ways(settings, engine=None):
    """The originals' way and ours, of the same weights; a batch."""
    torch.manual_seed(3)
    network = models.build("small", classes=10, width=8)
    x, y = torch.rand(16, 3, 32, 32), torch.randint(0, 10, (16,))
    ours = bench.Ours(copy.deepcopy(network), engine or Engine(CPU), settings)
    return bench.Originals(network, CPU, settings), ours, x, y


@pytest.fixture
def small(monkeypatch):
    """The command measures a small network only, for as many rounds and images as it is asked to."""
    one, two = tiny(), bench.dyart_bench.Settings(batch=4, rounds=1, iterations=2, learn=1, planes=8, projections=1)
    three = bench.brainreg_bench.Settings(batch=4, rounds=1, width=2, side=8, images=40, looped=10)
    four = bench.bench_autoattack.Settings(width=4, images=6, rounds=1, iterations=2, queries=3, learn=2)
    monkeypatch.setattr(bench.bench_autoattack, "Settings", lambda **asked: replace(four, rounds=asked["rounds"]))
    for module, settings in ((bench, one), (bench.dyart_bench, two), (bench.brainreg_bench, three)):
        monkeypatch.setattr(module, "Settings", lambda settings=settings, **asked: replace(
            settings, rounds=asked["rounds"], batch=asked["batch"]))


@pytest.mark.usefixtures("small")
def test_the_command_writes_record_and_table(tmp_path, capsys):
    assert bench.main(["--device", "cpu", "--batch", "4", "--rounds", "2", "--out", str(tmp_path)]) == 0
    written, = tmp_path.glob("*.json")
    record = json.loads(written.read_text())
    assert [row["name"] for row in record["rows"]] == ADARAT + DYART + BRAINREG + AUTOATTACK
    assert written.stem.endswith("-b4") and record["settings"]["steps"] == 2 and record["schema"] == 1
    assert record["environment"]["engine"]["device"] == "cpu" and record["environment"]["threads"] >= 1
    assert str(tmp_path) not in written.read_text()
    for row in record["rows"]:
        for way in ("originals", "ours"):
            said, seconds = row[way]["images_per_second"], row[way]["seconds"]
            assert len(seconds) == 2 and min(seconds) > 0 and row[way]["peak_bytes"] is None
            assert said["max"] == row[way]["images_per_block"] / min(seconds)
            assert said["min"] <= said["median"] <= said["max"]
            assert (row[way].get("share_of_matrix_rate", 0) > 0) == row["name"].startswith("pgd")
        assert row["ratio"] == row["ours"]["images_per_second"]["median"] / (
            row["originals"]["images_per_second"]["median"])
    passes = [row["operations_per_image"] / record["forward_operations_per_image"] for row in record["rows"][:3]]
    assert passes == [2 * 2 + 3, 2 * 2 + 3, 2 * 2]
    table = written.with_suffix(".md").read_text()
    assert table in capsys.readouterr().out and all(row["title"] in table for row in record["rows"])


@pytest.mark.parametrize(("only", "names"), [("adarat", ADARAT), ("dyart", DYART), ("brainreg", BRAINREG),
                                             ("autoattack", AUTOATTACK)])
@pytest.mark.usefixtures("small")
def test_the_rows_of_one_paper_alone(only, names, tmp_path):
    assert bench.main(["--device", "cpu", "--rounds", "1", "--only", only, "--out", str(tmp_path)]) == 0
    written, = tmp_path.glob(f"*-{only}.json")
    record, text = json.loads(written.read_text()), written.with_suffix(".md").read_text()
    assert [row["name"] for row in record["rows"]] == names
    assert ("GFLOP/s" in text) == (only == "adarat")
    assert ("learnt by heart" in text) == (only == "dyart")
    assert ("nested loops" in text) == (only == "brainreg")
    assert not record["checks"] and "check of" not in text
    for row in record["rows"] if only == "autoattack" else ():
        stands = row["robust"]
        assert abs(stands["originals"] - stands[row["name"].removeprefix("autoattack-")]) <= 1
        assert max(stands.values()) <= 6 and 0 < row["eps"] < 0.5
        assert "pyautoattack" in text and "ten noisy patterns" in text


@pytest.mark.usefixtures("small")
def test_the_check_has_a_table_of_its_own(tmp_path):
    assert bench.main(["--device", "cpu", "--rounds", "1", "--only", "check", "--out", str(tmp_path)]) == 0
    written, = tmp_path.glob("*-check.json")
    record, text = json.loads(written.read_text()), written.with_suffix(".md").read_text()
    assert record["rows"] == [] and "images/s" not in text
    found = {(line["network"], line["training"]): line for line in record["checks"]}
    assert len(found) == 6 and all(line["seconds"] > 0 for line in found.values())
    for (network, _), line in found.items():
        assert line["passed"] == (line["loss_gap"] <= 0.005 and line["same_sign"] >= 0.99)
        assert not (line["passed"] and network.startswith("pixels shifted"))
        assert f"{line['same_sign']:.2%}" in text
    assert any(line["passed"] for line in found.values())


@pytest.mark.parametrize("flags", [("--device", "abacus"), ("--model", "resnet19"), ("--batch", "0"), ("--fast",),
                                   ("--only", "rpat")])
def test_a_wrong_flag_is_one_line_and_writes_nothing(flags, tmp_path):
    with pytest.raises(UserError):
        bench.main([*flags, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("training", [False, True])
def test_both_ways_find_the_same_adversarial_images_in_float32(training):
    theirs, ours, x, y = ways(tiny(steps=10))
    start = (x + 8 / 255 * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
    # For 16 images the mean differs from the sum by a power of 2: not a rounding apart.
    old, new = (way.attack(x, y, training=training, steps=10, start=start) for way in (theirs, ours))
    assert ((old - new).abs() <= 1e-6).float().mean() >= 0.999
    assert (old - start).abs().mean() > 1 / 255 and (old - x).abs().max() <= 8 / 255 + 1e-6
    moved = ours.network.bn1.running_mean
    assert torch.allclose(theirs.network.bn1.running_mean, moved, atol=1e-6)
    assert bool(moved.any()) == training


def test_both_ways_take_the_same_training_step_in_float32():
    theirs, ours, x, y = ways(tiny(eps=0.0))
    before = copy.deepcopy(theirs.network.state_dict())
    for way in (theirs, ours):
        way.step(x, y, training=False, steps=2)
        way.step(x, y, training=False, steps=2)
    after = ours.network.state_dict()
    for name, value in theirs.network.state_dict().items():
        assert torch.allclose(value, after[name], atol=1e-5), name
    assert not torch.allclose(before["linear.weight"], after["linear.weight"], atol=1e-4)


def test_the_fast_path_is_what_is_measured_where_the_engine_has_one():
    _, ours, x, y = ways(tiny(), Engine(CPU, "bf16", channels_last=True, fast_attacks=True))
    ours.attack(x, y, training=False, steps=1)
    assert not ours.engine.notes and len(ours.engine._views) == 1


def test_operations_are_counted_without_the_products_with_padding():
    # On 4x4 pixels a 3x3 window covers 4 of them at each of 4 corners, 6 at 8 edges, 9 at the 4 places inside.
    layer = torch.nn.Conv2d(3, 5, 3, padding=1)
    taps = 4 * 4 + 8 * 6 + 4 * 9
    assert bench.forward_operations(layer, size=4) == 2 * taps * 3 * 5
    head = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 7))
    assert bench.forward_operations(head, size=4) == 2 * 48 * 7


def test_the_originals_pipeline_delivers_what_ours_does():
    theirs, ours, *_ = ways(tiny())
    images = torch.randint(1, 256, (32, 3, 32, 32), dtype=torch.uint8)
    labels = torch.arange(32) % 10
    for way in (theirs, ours):
        x, y = next(way.loader(images, labels, 8))
        assert x.shape == (8, 3, 32, 32) and x.dtype == torch.float32 and x.min() >= 0 and x.max() <= 1
        assert y.shape == (8,) and y.dtype == torch.int64


def test_no_round_is_begun_after_the_time_limit():
    assert len(list(bench.rounds(tiny(rounds=3, limit=0.0), -1.0, 1.0))) == 1
    assert len(list(bench.rounds(tiny(rounds=3), -1.0, 1.0))) == 3
