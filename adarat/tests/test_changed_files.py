"""Files that changed under a run: refused with what changed, nothing written, and mended by putting them back."""

import json

import numpy as np
import pytest

from adarat.tests.test_train import UNTESTED, Place
from common.data import load
from common.files import sha256_of

NPZ = ["--dataset_name", "digits", "--budget", "smoke"]


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


def data_file(path, change=None, labels=False):
    """The digits as an npz file, with image 3 of a part ("train", "test") or its label changed."""
    digits = load("digits")
    parts = {"train": digits.train, "test": digits.test}
    arrays = {}
    for part, split in parts.items():
        images, numbers = split.images.numpy().transpose(0, 2, 3, 1).copy(), split.labels.numpy().copy()
        if part == change and labels:
            numbers[3] = (numbers[3] + 1) % 10
        elif part == change:
            images[3, 2, 2] ^= 1
        arrays |= {f"{part}_images": images, f"{part}_labels": numbers}
    np.savez(path, **arrays)


def killed(place, run):
    """As a kill after the first of two epochs leaves it: no train.json."""
    (place.root / "results/adarat/digits" / run / "train.json").unlink()


@pytest.mark.parametrize(("part", "labels"), [("train", False), ("train", True), ("test", False)])
def test_another_data_file_under_the_same_name(place, capsys, part, labels):
    path = place.root / "mine.npz"
    data_file(path)
    argv = ["PGD-AT", "--data", f"npz:{path}", *NPZ, *UNTESTED]
    assert place.start(*argv) == 0
    killed(place, "pgd-at_smoke_s1")
    data_file(path, part, labels)
    before = place.contents()
    capsys.readouterr()
    assert place.start(*argv) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    what = {"train": "training", "test": "test"}[part]
    assert "was started on other files, the last time on 20" in line and line.endswith("[E-DATA-CHANGED]")
    assert f" UTC: {what} images or labels (" in line and "mine.npz" in line and " then, " in line
    assert ("test images" in line) == (part == "test") and ("training images" in line) == (part == "train")
    assert place.contents() == before
    data_file(path)
    assert place.start(*argv) == 0 and place.record("pgd-at_smoke_s1").train["epochs"] == 1


def test_a_teacher_that_was_trained_again(place, capsys):
    for method in ("PGD-AT", "ST"):
        assert place.start(method, *NPZ, *UNTESTED) == 0
    assert place.start("KD-AT", *NPZ, *UNTESTED) == 0
    killed(place, "kd-at_smoke_s1")
    other = place.weights("pgd-at_smoke_s2")
    assert place.start("PGD-AT", *NPZ, *UNTESTED, "--seed", "2") == 0
    old, old_hash = place.weights("pgd-at_smoke_s1").read_bytes(), sha256_of(place.weights("pgd-at_smoke_s1"))
    place.weights("pgd-at_smoke_s1").write_bytes(other.read_bytes())
    before = place.contents()
    capsys.readouterr()
    assert place.start("KD-AT", *NPZ, *UNTESTED) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    told = f"sha256 {old_hash[:12]} then, {sha256_of(other)[:12]} now"
    assert f"robust teacher's weights (pgd-at_smoke_s1): {told}" in line
    assert line.endswith("[E-DATA-CHANGED]") and place.contents() == before
    place.weights("pgd-at_smoke_s1").write_bytes(old)
    assert place.start("KD-AT", *NPZ, *UNTESTED) == 0


def test_a_base_run_whose_limits_are_other_ones_now(place, capsys):
    assert place.start("PGD-AT", *NPZ, *UNTESTED, epochs=2) == 0
    argv = ["PGD-AT", "--FixRAT", "True", "--AdaRAT", "True", "--limits_from", "pgd-at_smoke_s1", *NPZ, *UNTESTED]
    metrics = place.root / "results/adarat/digits/pgd-at_smoke_s1/metrics.jsonl"

    def curve(last):
        lines = [json.loads(line) for line in metrics.read_text().splitlines()]
        metrics.write_text("".join(json.dumps({**line, "clean_loss": loss}) + "\n"
                                   for line, loss in zip(lines, (2.0, last), strict=True)))
    curve(1.0)
    assert place.start(*argv) == 0
    curve(0.5)
    before = place.contents()
    capsys.readouterr()
    assert place.start(*argv) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "the run pgd-at_smoke_s1 of --limits_from: its curve gives down_lim 0.45, and gave 0.9" in line
    assert line.endswith("[E-DATA-CHANGED]") and place.contents() == before


def test_other_flags_are_another_configuration_all_the_same(place, capsys):
    path = place.root / "mine.npz"
    data_file(path)
    argv = ["PGD-AT", "--data", f"npz:{path}", *NPZ, *UNTESTED]
    assert place.start(*argv) == 0
    data_file(path, "train")
    assert place.start(*argv, "--learning_rate", "0.2") == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "holds a run of another configuration (data.train_fingerprint" in line and "E-DATA-CHANGED" not in line
