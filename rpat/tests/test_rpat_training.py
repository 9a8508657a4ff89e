"""Part 1's training on the digits: what runs leave, what they are built of, how they go on, what stops them."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from common import experiment
from common.attacks.losses import predictions
from common.checkpoint import read_state
from common.data import Split, load
from common.data.splits import DataSet, to_float
from common.engine import Engine
from common.errors import UserError
from common.evaluation.validating import in_batches
from rpat import attacks, flags, training
from rpat.method import AdversarialTraining, Consistency, Mart, Perception, StandardTraining, Trades
from rpat.perception import consistency, distances
from rpat.settings import Settings
from rpat.training import describe_network, load_images, make_batches, objective, train
from rpat.validation import Validation, held_out_positions

SMALL = ("--data digits --model small --width 4 --epochs 1 --n_train 64 --n_epoch_test 16 --batch_size 32 --n_iters 1 "
         "--save_step 0 --precision fp32 --budget smoke --device cpu")


def words(folder, line, start=SMALL):
    return [*f"{start} {line}".split(), "--results", str(folder / "results"), "--weights", str(folder / "weights")]


def run(folder, line, start=SMALL):
    args = flags.parse(words(folder, line, start))
    train(flags.settings_of(args), args)


def record(folder, name, kind="train"):
    return json.loads((folder / "results/rpat/digits" / name / f"{kind}.json").read_text())


def metrics(folder, name):
    text = (folder / "results/rpat/digits" / name / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def weights(folder, name, kind):
    return read_state(folder / "weights/rpat/digits" / name / f"{kind}.pt")


@pytest.mark.parametrize(("line", "name", "logged"), [
    ("", "pgd-at-small_smoke_s0", {"adversarial_loss", "adversarial_accuracy"}),
    ("--RA", "pgd-at-rpat-small_smoke_s0", {"adversarial_loss", "perception_term", "clean_accuracy"}),
    ("--mode adv_trades --RA", "trades-rpat-small_smoke_s0", {"clean_loss", "divergence_term", "perception_term"}),
    ("--mode adv_mart --RA", "mart-rpat-small_smoke_s0", {"adversarial_loss", "divergence_term", "perception_term"}),
    ("--consistency --RA --augment_type autoaug", "consistency-at-rpat-autoaug-small_smoke_s0",
     {"adversarial_loss", "consistency_term", "perception_term"}),
    ("--mode ce", "ce-small_smoke_s0", {"clean_loss", "clean_accuracy"}),
    ("--mode ce_rand --suffix again", "ce-rand-small-again_smoke_s0", {"clean_loss", "clean_accuracy"}),
    ("--adv_method fgsm --RA --RA_start 2", "pgd-at-rpat-fgsm-small_smoke_s0", {"adversarial_loss"}),
    ("--distance L1 --RA --dataset_name digits", "pgd-at-rpat-l1-small_smoke_s0", {"perception_term"})])
def test_every_method_trains_and_says_what_it_is(tmp_path, line, name, logged):
    run(tmp_path, line)
    made, left = record(tmp_path, name, "run"), record(tmp_path, name)
    assert set(left["weights"]) == {"last"} and left["selected_on"] is None and left["epochs"] == 1
    assert logged | {"test_clean_accuracy", "test_pgd_accuracy", "n_test", "test_mse_all_clean-adversarial"} <= set(
        left["final"]) and ("perception_term" in left["final"]) == ("perception_term" in logged)
    assert (made["variant"], made["seed"], made["dataset"]) == ("rpat" if "--RA" in line else "plain", 0, "digits")
    assert made["quirks"] == ["bottleneck-resnet18", "trades-third-pass"] and made["model"]["name"] == "small"
    assert made["config"]["data"]["protocol"] == "digits" and made["config"]["mode"] == flags.parse(
        words(tmp_path, line)).mode


def test_best_is_chosen_on_held_out_images_and_snapshots_are_kept(tmp_path, capsys):
    run(tmp_path, "--val --epochs 3 --save_step 2 --error_step 2 --lr_init 0.05 --run a")
    left = record(tmp_path, "a")
    assert set(left["weights"]) == {"last", "best", "1"} and left["selected_on"] == "PGD-1 on held-out training images"
    assert ["val_pgd_accuracy" in line for line in metrics(tmp_path, "a")] == [False, True, False]
    best, first, last = (weights(tmp_path, "a", kind) for kind in ("best", "1", "last"))
    assert all(torch.equal(best[key], first[key]) for key in best)          # the only epoch that was tested
    assert any(not torch.equal(best[key], last[key]) for key in best)
    run(tmp_path, "--val --epochs 3 --save_step 2 --error_step 2 --lr_init 0.05 --run a")
    assert "a is already trained" in capsys.readouterr().out


def test_the_measuring_quirk_chooses_on_the_test_images_and_says_so(tmp_path):
    run(tmp_path, "--epochs 2 --quirks default,test-selected --run a")
    left, lines = record(tmp_path, "a"), metrics(tmp_path, "a")
    assert left["selected_on"] == "PGD-1 on the test images (quirk test-selected)" and "best" in left["weights"]
    best = max(range(2), key=lambda epoch: lines[epoch]["test_pgd_accuracy"])      # the first of equal ones
    run(tmp_path, "--epochs 2 --save_step 1 --quirks default,test-selected --run b")
    kept, epoch = weights(tmp_path, "a", "best"), weights(tmp_path, "b", str(best))
    assert all(torch.equal(kept[key], epoch[key]) for key in kept)
    assert not any("val" in key for key in lines[0])


def test_the_final_test_judges_the_paper_plan(tmp_path):
    run(tmp_path, "--final_test True --plan test-adv-acc-n8 --val --run a")
    judged = json.loads((tmp_path / "results/rpat/digits/a/eval-test-adv-acc-n8.json").read_text())
    assert judged["checkpoint"] == "best" and judged["results"][0]["settings"]["steps"] == 1


# --- going on ---

def typed(monkeypatch, line):
    """Let records say that this was typed."""
    monkeypatch.setattr(experiment, "relative_command", lambda: f"python rpat/benchmarks/train.py {line}")


def test_a_run_goes_on_with_its_own_flags_where_it_stopped(tmp_path, monkeypatch):
    line = "--RA --consistency --epochs 2 --val --lr_init 0.05 --run a"
    run(tmp_path / "whole", line)
    check, seen = Validation.__call__, []

    def stop(self, model):
        seen.append(1)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return check(self, model)

    with monkeypatch.context() as patched:
        typed(patched, f"{SMALL} {line}")
        patched.setattr(Validation, "__call__", stop)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "cut", line)
    assert len(metrics(tmp_path / "cut", "a")) == 1
    resume = ["--resume_path", str(tmp_path / "cut/results/rpat/digits/a")]
    for given, said in (("--lr_init 0.1", "another configuration (lr_init 0.05 there, 0.1 here)"),
                        ("--distance L2", "another configuration"), ("--width 8", "another configuration")):
        with pytest.raises(UserError) as caught:
            go_on([*resume, *given.split()])
        assert said in str(caught.value)
    typed(monkeypatch, "--resume_path results/rpat/digits/a")
    go_on(resume)
    assert record(tmp_path / "cut", "a", "run")["command"] == f"python rpat/benchmarks/train.py {SMALL} {line}"
    for kind in ("last", "best"):
        one, other = weights(tmp_path / "whole", "a", kind), weights(tmp_path / "cut", "a", kind)
        assert all(torch.equal(one[key], other[key]) for key in one)
    with pytest.raises(UserError, match="trained to its end"):
        go_on(resume)


def go_on(given):
    args = flags.parse(given)
    train(flags.settings_of(args), args)


# --- what a run is built of ---

def test_the_held_out_images_are_the_released_ones():
    assert held_out_positions(50_000)[:5] == [11841, 19602, 45519, 25747, 42642]
    assert len(held_out_positions(50_000)) == len(held_out_positions(100_000)) == 1000
    assert len(held_out_positions(640)) == 64 and len(set(held_out_positions(640))) == 64
    assert held_out_positions(3) and max(held_out_positions(7)) < 7


def test_no_validation_image_is_trained_on():
    args = flags.parse(words_of := ["--data", "digits", "--val", "--n_train", "200"])
    images, whole = load_images(flags.settings_of(args), args), load("digits").train
    held = held_out_positions(len(whole))
    assert torch.equal(images.validation.images, whole.images[torch.tensor(held)])
    rest = [position for position in range(len(whole)) if position not in set(held)]
    assert torch.equal(images.data.train.images, whole.images[torch.tensor(rest[:200])])
    args = flags.parse(words_of[:2])
    images = load_images(flags.settings_of(args), args)
    assert images.validation is None and len(images.data.train) == len(whole)


def test_objectives_and_attacks_are_those_of_the_flags(monkeypatch):
    monkeypatch.setattr(attacks, "gaussian", lambda: "normal noise")         # each call's is another function
    base = Settings(quirks=("trades-third-pass",))
    perceives = Perception(2.0, 0.25, 7)
    told = {"RA": True, "lam": 2.0, "RA_ip_rate": 0.25, "RA_start": 7, "beta": 5.0, "T": 0.7}
    pgd, sizes = attacks.pgd("linf", 8 / 255, 2 / 255, 10), (0.5, 0.1, 3)
    l2 = {"distance": "L2", **dict(zip(("epsilon", "alpha", "n_iters"), sizes, strict=True))}
    assert objective(base) == AdversarialTraining(pgd, None, None)
    assert objective(replace(base, **told)) == AdversarialTraining(pgd, perceives, None)
    assert objective(replace(base, consistency=True, **told)) == AdversarialTraining(pgd, perceives,
                                                                                    Consistency(2.0, 0.7))
    assert objective(replace(base, adv_method="fgsm", **l2)) == AdversarialTraining(attacks.fgsm("l2", 0.5))
    assert objective(replace(base, mode="adv_trades", **told)) == Trades(
        attacks.trades("linf", 8 / 255, 2 / 255, 10), 5.0, perceives, third_pass=True)
    assert not objective(replace(base, mode="adv_trades", quirks=())).third_pass
    assert objective(replace(base, mode="adv_mart", **told, **l2)) == Mart(attacks.mart("l2", *sizes), 5.0, perceives)
    assert objective(replace(base, mode="ce")) == StandardTraining(0.0)
    assert objective(replace(base, mode="ce_rand", epsilon=0.05)) == StandardTraining(0.05)


@pytest.mark.parametrize(("kind", "epochs"), [("base", []), ("autoaug", [0, 1, 2, 3, 4]), ("autoaug_sche", [2, 3, 4])])
def test_batches_are_augmented_as_asked(kind, epochs):
    split, engine = load("digits").train.subset(96), Engine.choose("cpu", "fp32")
    batches = make_batches(Settings(augment_type=kind, epochs=5, batch_size=40), split, engine)
    assert [epoch for epoch in range(5) if batches.policy and batches.policy(epoch)] == epochs
    assert (batches.crop, batches.crop_mode, batches.flip, batches.views, len(batches)) == (4, "zero", True, 1, 3)
    assert make_batches(Settings(consistency=True), split, engine).views == 2
    plain = make_batches(Settings(augment=False), split, engine)
    assert (plain.crop, plain.flip) == (0, False)


def data(side, classes=7):
    split = Split(torch.zeros(4, 3, side, side, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64))
    return DataSet("x", split, split, classes, tuple(map(str, range(classes))), "nowhere")


@pytest.mark.parametrize(("model", "side", "stride"), [
    ("resnet18-bottleneck", 32, None), ("resnet18-bottleneck", 64, 2), ("preresnet18", 64, 2),
    ("preresnet18", 32, None), ("wrn-34-10", 64, 2), ("small", 64, None)])
def test_the_stem_halves_images_of_64_pixels_only(model, side, stride):
    found = describe_network(Settings(model=model, width=None), data(side))
    assert found == {"name": model, "classes": 7, "channels": 3, **({"stem_stride": 2} if stride else {})}
    assert describe_network(Settings(model=model, width=8), data(32))["width"] == 8


def test_the_run_is_tested_with_the_released_attack(tmp_path, monkeypatch):
    seen = {}

    def fit(**given):
        seen.update(given)
        raise UserError("enough")

    monkeypatch.setattr(training, "fit", fit)
    with pytest.raises(UserError, match="enough"):
        run(tmp_path, "--adv_method fgsm --distance L2 --epsilon 0.5 --alpha 0.1 --test_batch_size 7 --n_iters 3 "
                      "--weight_decay 0.01 --scale_schedule True --epochs 4 --val")
    validation = seen["validate"]
    assert validation.attack == attacks.pgd("l2", 0.5, 0.1, 3) and (validation.batch, validation.every) == (7, 1)
    whole, held = load("digits"), torch.tensor(held_out_positions(1397)[:16])
    assert torch.equal(validation.parts["test"].images, whole.test.images[:16])
    assert torch.equal(validation.parts["val"].images, whole.train.images[held])
    assert seen["optim"].weight_decay == 0.01 and not seen["optim"].nesterov and seen.get("average") is None
    assert [seen["schedule"](epoch).lr for epoch in range(4)] == pytest.approx([0.1, 0.1, 0.01, 0.001])


# --- validation ---

def test_validation_measures_what_its_attack_leaves(tinybn):
    generator = torch.Generator().manual_seed(0)
    split = Split(torch.randint(0, 256, (22, 3, 8, 8), dtype=torch.uint8, generator=generator),
                  torch.randint(0, 10, (22,), generator=generator))
    with torch.no_grad():            # half of the labels are the network's own, so that there is something to lose
        own = predictions(tinybn.eval()(to_float(split.images[:11])))
    split = Split(split.images, torch.cat((own, split.labels[11:])))
    tinybn.train()
    attack = attacks.pgd("linf", 8 / 255, 2 / 255, 3)
    before = {key: value.clone() for key, value in tinybn.state_dict().items()}
    numbers = Validation({"test": split}, attack=attack, seed=3, batch=8)(tinybn)
    assert tinybn.training and all(torch.equal(before[key], value) for key, value in tinybn.state_dict().items())
    tinybn.eval()
    right, moved = [], []
    for images, y, ctx in in_batches(split, 8, 3, "test"):
        x = to_float(images)
        x_adv = attack(tinybn, x, y, ctx)
        with torch.no_grad():
            right.append((tinybn(x).argmax(1) == y).float())
        moved.append(distances(tinybn, x, x_adv, y))
    assert numbers["n_test"] == 22 and numbers["test_clean_accuracy"] == pytest.approx(torch.cat(right).mean().item())
    defended = torch.cat([batch.defended for batch in moved])
    assert numbers["test_pgd_accuracy"] == pytest.approx(defended.float().mean().item())
    assert 0 < numbers["test_pgd_accuracy"] < 1 and numbers["test_clean_accuracy"] >= 0.5
    for group, pairs in consistency(moved).items():
        for pair, value in pairs.items():
            assert numbers[f"test_mse_{group}_{pair}"] == pytest.approx(value)
    assert len(numbers) == 3 + 9 and all(np.isfinite(value) for value in numbers.values())


def test_a_group_without_images_has_no_mean_and_other_epochs_no_numbers(tiny):
    split = Split(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64))
    with torch.no_grad():
        split = Split(split.images, predictions(tiny(to_float(split.images))))
    validation = Validation({"val": split}, attack=attacks.pgd("linf", 0.0, 2 / 255, 1), seed=0, every=3)
    assert validation(tiny) == {}
    context = type("Ctx", (), {"epoch": 2})()
    validation.before_step(tiny, None, context)
    numbers = validation(tiny)
    assert numbers["val_pgd_accuracy"] == 1 and not any("fooled" in key for key in numbers)
