"""Training runs on the digits: what they leave, how they start, and what stops them before anything is written."""

import json

import numpy as np
import pytest
import torch

from common.checkpoint import read_state
from common.data import load
from common.errors import UserError
from dyart import flags
from dyart.inputs import load_images
from dyart.training import train

SMALL = ("--data digits --model small --width 8 --epochs 2 --n_train 96 --n_epoch_test 16 --batch-size 32 "
         "--augment false --precision fp32 --iter_FAB 2 --attack-iter 1 --budget smoke --device cpu")


def run(folder, line):
    args = flags.parse([*f"{SMALL} {line}".split(), "--results", str(folder / "results"), "--weights",
                        str(folder / "weights")])
    train(flags.settings_of(args), args)
    return args


def record(folder, name, kind):
    return json.loads((folder / "results/dyart/digits" / name / f"{kind}.json").read_text())


def weights(folder, name, kind):
    return read_state(folder / "weights/dyart/digits" / name / f"{kind}.pt")


def written(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def burnt_in(tmp_path_factory):
    folder = tmp_path_factory.mktemp("burnt-in")
    run(folder, "--clean_training true --epochs 24 --train_epochs 11 --scheduler step --save_intermediate_models 10")
    return folder


def test_the_burn_in_keeps_its_released_epoch_and_selects_nothing(burnt_in):
    left = record(burnt_in, "clean_smoke_s1", "train")
    assert set(left["weights"]) == {"last", "average", "10"} and left["selected_on"] is None and left["epochs"] == 11
    average, tenth = weights(burnt_in, "clean_smoke_s1", "average"), weights(burnt_in, "clean_smoke_s1", "10")
    assert all(torch.equal(average[name], tenth[name]) for name in average)
    assert record(burnt_in, "clean_smoke_s1", "run")["method"] == "clean"


def test_dyart_starts_from_the_burn_in_of_its_budget_and_observes(burnt_in, capsys):
    run(burnt_in, "--pretrained auto --observe 8 --train_epochs 1")
    made = record(burnt_in, "dyart_smoke_s1", "run")
    assert list(made["needs"]) == ["clean_smoke_s1"]
    assert made["needs"]["clean_smoke_s1"] == record(burnt_in, "clean_smoke_s1", "train")["weights"]["10"]["sha256"]
    assert made["config"]["pretrained"] == made["needs"]["clean_smoke_s1"]
    assert "starts from" in capsys.readouterr().out
    left = record(burnt_in, "dyart_smoke_s1", "train")
    assert set(left["weights"]) == {"last", "average", "best"} and "held-out" in left["selected_on"]
    line = left["final"]
    assert {"val_clean_accuracy", "val_robust_accuracy", "kept", "searched", "no_boundary"} <= set(line)
    seen = np.load(burnt_in / "results/dyart/digits/dyart_smoke_s1/dynamics.npz", allow_pickle=False)
    assert seen["epoch"].tolist() == [0, 1] and seen["radius"].shape == seen["speed"].shape == (2, 8)
    assert json.loads(str(seen["about"]))["method"] == "DyART" and seen["speed_AT"].shape == (2, 8)
    kept = np.isfinite(seen["speed"])
    assert kept.any() and np.array_equal(kept, np.isfinite(seen["speed_AT"]))
    assert not np.array_equal(seen["speed"][kept], seen["speed_AT"][kept])
    assert np.nanmax(seen["radius"]) > 0 and not np.array_equal(seen["radius"][0], seen["radius"][1])
    run(burnt_in, "--pretrained auto --observe 8 --train_epochs 1")
    assert "already trained" in capsys.readouterr().out


@pytest.mark.parametrize(("line", "method"), [("--beta -1", "AT"), ("--beta 6", "TRADES"), ("--beta 6 --mart", "MART"),
                                              ("--beta -1 --GroupNorm true --scheduler cyclic", "AT")])
def test_baselines_train_from_scratch(tmp_path, line, method):
    run(tmp_path, f"--DyART false {line} --train_epochs 1")
    name = f"{method.lower()}{'-gn' if 'Group' in line else ''}_smoke_s1"
    made = record(tmp_path, name, "run")
    assert made["method"] == method and made["needs"] == {}
    left = weights(tmp_path, name, "last")
    assert any("running_mean" in key for key in left) == ("Group" not in line)


def test_extra_images_are_mixed_in_and_named(tmp_path):
    run(tmp_path, "--DyART false --beta -1 --train_epochs 1 --aux-data-filename rest --dataset_name digits")
    made = record(tmp_path, "at_smoke_s1", "run")
    assert "that --n_train leaves out" in made["data"]["extra"]["source"]
    assert made["data"]["extra"]["n"] == 1258 - 96
    assert made["config"]["data"]["extra_fingerprint"] == made["data"]["extra"]["fingerprint"]


def test_the_validation_images_are_the_first_ones_and_no_training_images():
    args = flags.parse(SMALL.split())
    images, whole = load_images(flags.settings_of(args), args), load("digits")
    held = len(whole.train) // 10
    assert torch.equal(images.validation.images, whole.train.images[:held])
    assert torch.equal(images.data.train.images, whole.train.images[held:held + 96])
    assert torch.equal(images.left_out.images, whole.train.images[held + 96:])
    args = flags.parse(["--data", "digits"])
    assert load_images(flags.settings_of(args), args).released_total == len(whole.train)


@pytest.mark.parametrize(("line", "said"), [
    ("--pretrained auto --seed 7", "Cifar10_clean_training.sh"), ("--pretrained no/such.pt", "is missing"),
    ("--pretrained auto --GroupNorm true", "clean-gn_smoke_s1"),
    ("--pretrained {weights}/clean_smoke_s1/10.pt --GroupNorm true --run gn", "norm"),
    ("--pretrained {weights}/clean_smoke_s1/10.pt --width 4 --run narrow", "nothing was loaded"),
    ("--aux-data-filename missing.npz --run extra", "missing.npz"), ("--aux-data-filename rest --n_train 1258", "rest"),
    ("--n_train 5000", "5000"), ("--model no-such", "no-such"),
    ("--aux-data-filename rest --unsup-fraction 0.001", "fraction")])
def test_a_bad_start_writes_nothing(burnt_in, line, said):
    before = written(burnt_in)
    with pytest.raises(UserError) as caught:
        run(burnt_in, line.format(weights=burnt_in / "weights/dyart/digits"))
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert written(burnt_in) == before


def test_a_network_that_gets_nothing_right_trains_on_with_cross_entropy(tmp_path):
    """No image is searched: the step is one of clean training, and is counted."""
    run(tmp_path, "--train_epochs 1 --lr 1e-9 --h_prime_r0 0.01 --temperature 0.0001")
    line = record(tmp_path, "dyart_smoke_s1", "train")["final"]
    assert line["searched"] == line["kept"] == 0 and line["no_boundary"] == 1
    assert line["boundary_term"] == 0 and line["loss"] == pytest.approx(line["clean_loss"])
