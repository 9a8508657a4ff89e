"""python -m scripts.bench: which rows, the record's shape, the tables.  No timing is asserted."""

import json

import pytest

from common import bench_autoattack, bench_pipeline, bench_step
from common.errors import UserError
from scripts import bench

TRAINING = ["pgd-training", "pgd-training-attack-train-bn", "trades", "generalist", "rpat", "rpat-trades",
            "consistency", "rebat", "rpat++", "dyart-step", "brainreg-step"]
TINY = {
    "adarat": bench_step.Settings(batch=4, rounds=2, model="small", width=4, steps=2, images=16, matrix=32),
    "rpat": bench_step.Settings(batch=4, rounds=2, model="small", width=4, steps=2, images=16, matrix=32),
    "dyart": bench.dyart_bench.Settings(batch=4, rounds=2, model="small", width=4, iterations=2, learn=1, planes=8,
                                        projections=1, matrix=32),
    "brainreg": bench.brainreg_bench.Settings(batch=4, rounds=2, width=2, side=8, images=40, looped=10, network_width=2,
                                              matrix=32),
    "autoattack": bench_autoattack.Settings(width=4, images=6, rounds=2, iterations=2, queries=3, learn=2),
    "pipeline": bench_pipeline.Settings(rounds=2, batch=8, loads=2, images=64)}


@pytest.fixture
def small(monkeypatch):
    """The command measures tiny networks, whatever it is asked."""
    monkeypatch.setattr(bench, "settings_of", lambda args, engine: TINY)


def run(tmp_path, *flags):
    """The record and its text."""
    assert bench.main(["--device", "cpu", *flags, "--out", str(tmp_path)]) == 0
    written, = tmp_path.glob("*.json")
    return json.loads(written.read_text()), written.with_suffix(".md").read_text(), written


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_the_command_writes_record_and_table(tmp_path, capsys):
    record, text, written = run(tmp_path, "--batch", "4")
    names = [row["name"] for row in record["rows"]]
    assert set(TRAINING) < set(names) and {"autoattack-float32", "autoattack-fast", "input-pipeline"} < set(names)
    assert written.stem.endswith("-b4") and record["settings"]["rpat"]["steps"] == 2 and record["schema"] == 2
    assert record["environment"]["engine"]["device"] == "cpu" and record["environment"]["threads"] >= 1
    assert str(tmp_path) not in written.read_text()
    for row in record["rows"]:
        for way in ("originals", "ours"):
            said, seconds = row[way]["images_per_second"], row[way]["seconds"]
            assert len(seconds) == 2 and min(seconds) > 0
            assert said["max"] == row[way]["images_per_block"] / min(seconds)
            assert said["min"] <= said["median"] <= said["max"]
            step = row["name"] in TRAINING or row["name"] == "pgd-attack"
            assert (row[way].get("share_of_matrix_rate", 0) > 0) == bool(row[way]["peak_bytes"]) == step, row["name"]
        assert row["ratio"] == row["ours"]["images_per_second"]["median"] / (
            row["originals"]["images_per_second"]["median"])
        assert row["title"] in text
    assert text in capsys.readouterr().out and "check of the attacks' fast path" in text
    assert "GFLOP/s" in text and "glibc's default for both" in text


@pytest.mark.parametrize(("only", "names", "told", "untold"), [
    (["rebat", "pipeline"], ["rebat", "input-pipeline"], "loss.backward()", "learnt by heart"),
    (["dyart"], ["dyart-projection", "dyart-step"], "learnt by heart", "nested loops"),
    (["brainreg-pairs"], ["brainreg-pairs"], "nested loops", "GFLOP/s"),
    (["autoattack"], ["autoattack-float32", "autoattack-fast"], "ten noisy patterns", "DataLoader")])
@pytest.mark.usefixtures("small")
def test_some_parts_and_rows_alone(only, names, told, untold, tmp_path):
    record, text, written = run(tmp_path, "--only", *only)
    assert [row["name"] for row in record["rows"]] == names and written.stem.endswith("-".join(only))
    assert told in text and untold not in text
    assert not record["checks"] and "check of" not in text
    for row in record["rows"] if only == ["autoattack"] else ():
        stands = row["robust"]
        assert abs(stands["originals"] - stands[row["name"].removeprefix("autoattack-")]) <= 1
        assert max(stands.values()) <= 6 and 0 < row["eps"] < 0.5


@pytest.mark.usefixtures("small")
def test_the_check_has_a_table_of_its_own(tmp_path):
    record, text, _ = run(tmp_path, "--only", "check")
    assert record["rows"] == [] and "images/s" not in text
    found = {(line["network"], line["training"]): line for line in record["checks"]}
    assert len(found) == 6 and all(line["seconds"] > 0 for line in found.values())
    for (network, _), line in found.items():
        assert line["passed"] == (line["loss_gap"] <= 0.005 and line["same_sign"] >= 0.99)
        assert not (line["passed"] and network.startswith("pixels shifted"))
        assert f"{line['same_sign']:.2%}" in text
    assert any(line["passed"] for line in found.values())


@pytest.mark.parametrize("flags", [("--device", "abacus"), ("--model", "resnet19"), ("--batch", "0"), ("--fast",),
                                   ("--only", "adarat", "rpat2"), ("--grow", "--only", "adarat")])
def test_a_wrong_flag_is_one_line_and_writes_nothing(flags, tmp_path):
    with pytest.raises(UserError):
        bench.main([*flags, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("flags", "batch", "most", "limit"), [
    ((), 128, 5, 40), (("--quick",), 16, 2, 4), (("--rounds", "3"), 128, 3, None), (("--batch", "7"), 7, 5, 40)])
def test_the_papers_batch_on_a_cpu_and_a_limit_for_each_row(flags, batch, most, limit, tmp_path, monkeypatch):
    asked = {}

    def measure(settings, engine, names, check, say):
        asked.update(settings)
        return {"rows": [], "checks": [], "seconds": 0.0, "forward_operations_per_image": 1}

    monkeypatch.setattr(bench, "measure", measure)
    run(tmp_path, *flags)
    for part in ("adarat", "rpat", "dyart"):
        assert (asked[part].batch, asked[part].rounds, asked[part].limit) == (batch, most, limit)
    assert asked["brainreg"].batch == (7 if "--batch" in flags else 64)


def test_what_changes_the_allocator_is_said(monkeypatch):
    record = {"environment": {"engine": {"precision": "fp32", "channels_last": False, "fast_attacks": False,
                                         "device": "cpu", "notes": []}, "load_average": 0.0, "device": "a CPU",
                              "threads": 2, "torch": "2", "started": "now", "allocator": []},
              "command": "bench", "seconds": 60}
    assert any("glibc's default" in line for line in bench.surroundings(record))
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "8000000000")
    record["environment"]["allocator"] = bench.allocator()
    assert any("MALLOC_TRIM_THRESHOLD_" in line for line in bench.surroundings(record))


@pytest.mark.usefixtures("small")
def test_growth_has_a_table_and_a_figure(tmp_path, monkeypatch):
    monkeypatch.setattr(bench.bench_grow, "points", lambda middle, on_cpu, quick: [
        (what, value, bench.bench_grow.replace(TINY["adarat"], **{what: value}))
        for what, values in (("batch", (2, 4)), ("size", (8, 16))) for value in values])
    record, text, written = run(tmp_path, "--grow")
    rows = record["growth"]["rows"]
    assert [(row["what"], row["value"]) for row in rows] == [("batch", 2), ("batch", 4), ("size", 8), ("size", 16)]
    assert [row["batch"] for row in rows] == [2, 4, 4, 4]
    assert rows[3]["operations_per_image"] == pytest.approx(4 * rows[2]["operations_per_image"], rel=0.2)
    assert "-grow" in written.stem and written.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "number of GPUs: not measured, there are 0 here" in text and "image side, pixels" in text
