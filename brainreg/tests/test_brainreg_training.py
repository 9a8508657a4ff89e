"""Trainings on the digits: what runs leave, what chooses their weights, how they go on, what stops them."""

import json
import random

import numpy as np
import pytest
import torch

from brainreg import flags, training
from brainreg.method import Regularised
from brainreg.pairs import PairBatches
from brainreg.settings import Settings
from brainreg.training import make_network, split_off, train
from brainreg.validation import Validation
from common.attacks.losses import predictions
from common.checkpoint import read_state
from common.data import Batches, Split, augment, load
from common.data.splits import to_float
from common.errors import UserError
from common.evaluation.validating import in_batches
from common.experiment import build_network
from common.fit import fit

SMALL = ("--data digits --base_channels 4 --epoch_num 2 --n_train 64 --n_epoch_test 40 --resnet_batch_size 32 "
         "--lr 0.01 --reg_image_num 40 --reg_batch_size 4 --reg_thresh 0.3 --precision fp32 --budget smoke "
         "--device cpu")
UNREGULARISED, REGULARISED = "unregularised_smoke_s0", "digits-n40-k4-th0.3-a2_smoke_s0"


def run(folder, line="", start=f"{SMALL} --attack False"):
    args = flags.parse([*f"{start} {line}".split(), "--save_dir", str(folder)])
    train(flags.settings_of(args), args)


def record(folder, name, kind="train"):
    return json.loads((folder / "results/brainreg/digits" / name / f"{kind}.json").read_text())


def metrics(folder, name):
    text = (folder / "results/brainreg/digits" / name / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def weights(folder, name, kind):
    return read_state(folder / "weights/brainreg/digits" / name / f"{kind}.pt")


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def digits(count):
    return load("digits").train.subset(count)


# --- what runs leave ---

def test_a_regularised_run_and_what_it_leaves(tmp_path, capsys):
    run(tmp_path, "--reg_alpha 2")
    made, left, lines = (record(tmp_path, REGULARISED, "run"), record(tmp_path, REGULARISED),
                         metrics(tmp_path, REGULARISED))
    assert set(left["weights"]) == {"last", "best"}
    assert left["selected_on"] == "least cross-entropy on validation images"
    assert (made["method"], made["variant"], made["seed"]) == ("regularised", "digits-n40-k4-th0.3-a2", 0)
    assert made["quirks"] == ["init-forward", "pair-bn"] and made["config"]["model"] == {
        "builder": "brainreg.network:build", "name": "resnet18", "classes": 10, "channels": 1, "width": 4, "scale": 1.0,
        "shift": 0.0}
    assert (made["config"]["low"], made["config"]["high"]) == (0.0, 1.0)
    assert made["config"]["regularisation"] == {"source": f"digits: {load('digits').source}", "n": 40,
                                                "fingerprint": digits(40).fingerprint}
    assert made["config"]["data"]["protocol"] == "digits" and made["config"]["data"]["n_train"] == 64
    parts = {f"{part}_{what}" for part in ("train", "val", "test") for what in ("loss", "clean_accuracy")}
    assert len(lines) == 2 and all(parts | {"clean_loss", "regulariser"} <= set(line) for line in lines)
    assert {f"untrained_{name}" for name in parts} <= set(lines[0]) and not any("untrained" in key for key in lines[1])
    assert [lines[0][f"n_{part}"] for part in ("train", "val", "test")] == [40, 13, 40]
    printed = capsys.readouterr().out
    assert "regularised on 780 pairs of 40 images" in printed and "8x8" not in printed
    tracked = weights(tmp_path, REGULARISED, "last")["core.sections.0.1.num_batches_tracked"]
    assert tracked == 1 + 3 * 2 * 2                                       # quirks init-forward and pair-bn
    run(tmp_path, "--reg_alpha 2")
    assert f"{REGULARISED} is already trained" in capsys.readouterr().out


@pytest.mark.parametrize(("quirks", "tracked"), [("init-forward", 1 + 4), ("pair-bn", 12), ("none", 4)])
def test_quirks_move_batch_norm_or_do_not(tmp_path, quirks, tracked):
    run(tmp_path, f"--reg_alpha 2 --quirks {quirks}")
    assert weights(tmp_path, REGULARISED, "last")["core.sections.0.1.num_batches_tracked"] == tracked


def test_without_regularisation_no_pairs_are_made(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "regularisation_images", None)
    run(tmp_path, "--quirks none")
    made = record(tmp_path, UNREGULARISED, "run")
    assert (made["method"], made["variant"]) == ("unregularised", "none") and "regularisation" not in made["config"]
    assert "regulariser" not in metrics(tmp_path, UNREGULARISED)[0]
    last = weights(tmp_path, UNREGULARISED, "last")
    assert last["core.sections.0.1.num_batches_tracked"] == 4 and not last["running_mean.0"].any()


def test_the_untrained_state_competes_and_validation_alone_chooses(tmp_path, monkeypatch):
    script = {}

    def scripted(self, model):
        script.setdefault("states", []).append({key: value.clone() for key, value in model.state_dict().items()})
        number = len(script["states"]) - 1
        return {"val_loss": script["losses"][number], "test_loss": float(number), "val_clean_accuracy": number / 10}

    monkeypatch.setattr(Validation, "__call__", scripted)
    for losses, best in (([1.0, 2.0, 1.0], 0), ([2.0, 1.0, 1.0], 1), ([3.0, 3.0, 2.0], 2)):
        script.clear()
        script["losses"] = losses
        run(tmp_path / str(losses), "--lr 0.05")
        assert equal(weights(tmp_path / str(losses), UNREGULARISED, "best"), script["states"][best])
        assert equal(weights(tmp_path / str(losses), UNREGULARISED, "last"), script["states"][2])


def test_train_again_on_demand_and_only_then(tmp_path, monkeypatch):
    check, seen = Validation.__call__, []

    def counted(self, model):
        seen.append(self.epochs_done)
        return check(self, model)

    monkeypatch.setattr(Validation, "__call__", counted)
    run(tmp_path, "--epoch_num 1")
    first, stale = record(tmp_path, UNREGULARISED), tmp_path / "results/brainreg/digits" / UNREGULARISED / "eval-x.json"
    stale.write_text("{}")
    run(tmp_path, "--epoch_num 1")
    assert seen == [0, 1] and stale.exists()
    run(tmp_path, "--epoch_num 1 --ignore_existing")
    assert seen == [0, 1, 0, 1] and not stale.exists()                    # from the start, not from where it ended
    assert record(tmp_path, UNREGULARISED)["weights"] == first["weights"]
    with pytest.raises(UserError, match="another configuration"):
        run(tmp_path, "--epoch_num 1 --ignore_existing --lr 0.02")


def test_a_killed_training_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    name, line = REGULARISED, "--reg_alpha 2"
    run(tmp_path / "whole", line)
    check, seen = Validation.__call__, []

    def stop(self, model):
        seen.append(1)
        if len(seen) == 3:                                                # after the second epoch's steps
            raise KeyboardInterrupt
        return check(self, model)

    with monkeypatch.context() as patched:
        patched.setattr(Validation, "__call__", stop)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "cut", line)
    assert len(metrics(tmp_path / "cut", name)) == 1
    run(tmp_path / "cut", line)
    for kind in ("last", "best"):
        assert equal(weights(tmp_path / "whole", name, kind), weights(tmp_path / "cut", name, kind))
    for one, other in zip(metrics(tmp_path / "whole", name), metrics(tmp_path / "cut", name), strict=True):
        timed = {"seconds", "images_per_second"}
        assert {key: one[key] for key in one.keys() - timed} == {key: other[key] for key in other.keys() - timed}


# --- what stops a run: one line, nothing written ---

@pytest.mark.parametrize(("line", "said"), [
    ("--reg_alpha 1 --reg_range high --reg_thresh 0.999", "the largest |S| is"),
    ("--reg_alpha 1 --reg_image_num 1400", "has 1397 training images"),
    ("--reg_alpha 1 --reg_image_num 5 --reg_batch_size 16", "only 10 of the 10 pairs"),
    ("--valid_portion 0.0005", "is not one image"), ("--n_train 2000", "cannot take the first 2000"),
    ("--reg_alpha 1 --reg_data ImageNet --reg_images nowhere", "nowhere, which is no folder")])
def test_bad_input_writes_nothing(tmp_path, line, said, capsys):
    (tmp_path / "out").mkdir()
    line = [*f"{SMALL} {line}".replace("--reg_batch_size 4", "--reg_batch_size 16").split(), "--save_dir",
            str(tmp_path / "out"), "--attack", "False"]
    with pytest.raises(SystemExit) as left:
        flags.main(line)
    error = capsys.readouterr().err.strip()
    assert left.value.code == 2 and said in error and len(error.splitlines()) == 1
    assert list((tmp_path / "out").rglob("*")) == []


# --- what a run is built of ---

def test_validation_images_are_no_training_images():
    split = load("digits").train
    rest, held = split_off(Settings(seed=3, n_train=200), split)
    positions = random.Random(3).sample(range(1397), 13)
    kept = [position for position in range(1397) if position not in set(positions)][:200]
    assert torch.equal(held.images, split.images[torch.tensor(positions)])
    assert torch.equal(rest.images, split.images[torch.tensor(kept)])


def test_a_regularised_and_an_unregularised_network_start_alike():
    model = {"builder": "brainreg.network:build", "name": "resnet18", "classes": 10, "channels": 1, "width": 4}
    settings = Settings(quirks=("init-forward",))
    one, two = (make_network(settings, model, (1, 28, 28)).state_dict() for _ in range(2))
    assert equal(one, two) and one["core.sections.4.1.layer1.2.num_batches_tracked"] == 1
    plain = make_network(Settings(), model, (1, 28, 28)).state_dict()
    assert plain["core.sections.4.1.layer1.2.num_batches_tracked"] == 0
    moved = {key for key in one if not torch.equal(one[key], plain[key])}
    assert moved and all(key.endswith(("running_mean", "running_var", "num_batches_tracked")) and "core" in key
                         for key in moved)
    other = make_network(Settings(seed=1), model, (1, 28, 28)).state_dict()
    assert not torch.equal(other["linear.weight"], plain["linear.weight"])
    fed = torch.randn(1, 1, 28, 28, generator=torch.Generator().manual_seed(
        training.fold(0, "init-forward")))                                # N(0,1) as fed, not scaled again
    network = build_network({**model, "scale": 5.0, "shift": 0.5})
    network.load_state_dict(plain)
    network.train().classify(fed)
    found = make_network(settings, {**model, "scale": 5.0, "shift": 0.5}, (1, 28, 28)).state_dict()
    assert equal(found, network.state_dict())


def test_what_fit_is_given(tmp_path, monkeypatch):
    seen = {}

    def spied(**given):
        seen.update(given)
        return fit(**given)

    monkeypatch.setattr(training, "fit", spied)
    run(tmp_path, "--reg_alpha 2 --arctanh False --quirks none --epoch_num 1 --task CIFAR10 --weight_decay 0.01 "
                  "--decay_rate 0.5 --phase_num 2 --phase_duration 3 --momentum 0.8 --lr 0.02 --no-reg_boosting "
                  "--reg_images digits")
    assert seen["objective"] == Regularised(2.0, False, move_statistics=False)
    assert seen["optim"].weight_decay == 0.01 and not seen["optim"].nesterov and seen["optim"].clip_norm is None
    hyper = [seen["schedule"](epoch) for epoch in range(8)]
    assert [one.lr for one in hyper] == pytest.approx([.02] * 3 + [.01] * 3 + [.02] * 2) and hyper[0].momentum == 0.8
    stream = seen["batches"]
    assert isinstance(stream, PairBatches) and stream.boost is None and stream.size == 4 and stream.seed == 0
    assert (stream.classes.crop, stream.classes.crop_mode, stream.classes.flip) == (4, "reflect", True)
    assert not stream.classes.drop_last and stream.classes.batch_size == 32 and len(stream.classes.split) == 64
    assert stream.images.min() < -1 and seen["model"].scale == 5.0 and seen["model"].shift == 0.5
    assert seen["validate"].augmented == {"train": {"crop": 4, "crop_mode": "reflect", "flip": True}}
    assert {name: len(part) for name, part in seen["validate"].parts.items()} == {"train": 40, "val": 13, "test": 40}
    run(tmp_path, "--epoch_num 1")
    assert isinstance(seen["batches"], Batches) and not seen["batches"].crop and not seen["objective"].alpha


def test_devices(capsys):
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patched:
        patched.setattr(torch.cuda, "is_available", lambda: False)
        for word in ("cuda", "cuda:all"):
            assert training.choose_engine(word, "fp32").device.type == "cpu"
            assert "there is no cuda device here" in capsys.readouterr().err
        with pytest.raises(UserError, match="cuda:7"):
            training.choose_engine("cuda:7", "fp32")


# --- validation ---

def test_validation_measures_cross_entropy_and_accuracy_in_eval_mode():
    generator = torch.Generator().manual_seed(0)
    network = build_network({"builder": "brainreg.network:build", "name": "resnet18", "classes": 10, "width": 4})
    split = Split(torch.randint(0, 256, (23, 1, 12, 12), dtype=torch.uint8, generator=generator),
                  torch.randint(0, 10, (23,), generator=generator))
    told = {"crop": 2, "crop_mode": "reflect", "flip": True}
    validation = Validation({"train": split, "val": split}, seed=3, augmented={"train": told}, batch=8)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    untrained = validation(network.train())
    assert network.training and equal(before, network.state_dict()) and untrained["n_val"] == 23
    network.eval()
    with torch.no_grad():
        logits = network(to_float(split.images))
        moved = torch.cat([network(to_float(augment(images, ctx.generator, **told)))
                           for images, _, ctx in in_batches(split, 8, 3, "train", 0)])
    for part, found in (("val", logits), ("train", moved)):
        loss = torch.nn.functional.cross_entropy(found, split.labels).item()
        assert untrained[f"{part}_loss"] == pytest.approx(loss, rel=1e-5)
        assert untrained[f"{part}_clean_accuracy"] == pytest.approx(
            (predictions(found) == split.labels).float().mean().item())
    assert untrained["train_loss"] != untrained["val_loss"] and not any("untrained" in key for key in untrained)
    for epoch in range(2):
        validation.before_step(network, None, type("Ctx", (), {"epoch": epoch})())
        numbers = validation(network)
        assert numbers["val_loss"] == untrained["val_loss"] and numbers["train_loss"] != untrained["train_loss"]
        assert ("untrained_val_loss" in numbers) == (epoch == 0)          # augmented anew, said once
    assert np.isfinite(list(numbers.values())).all()
