"""Part 1's released flags: defaults, the seed's command lines, what they mean together, what is refused; resuming."""

import json

import pytest

from common.errors import UserError
from rpat import flags
from rpat.settings import PART_ONE, PART_TWO, QUIRKS, Settings, folder_name, run_name, threat

TRAINING = ("bottleneck-resnet18", "trades-third-pass")


def settings(line="--dataset cifar10"):
    return flags.settings_of(flags.parse(line.split()))


def test_the_defaults_are_the_released_ones():
    found = settings()
    assert found == Settings(quirks=TRAINING)
    assert (found.mode, found.model, found.seed, found.epochs) == ("adv_train", "resnet18-bottleneck", 0, 200)
    assert (found.error_step, found.save_step, found.batch_size, found.test_batch_size) == (1, 25, 128, 100)
    assert (found.lr_init, found.weight_decay, found.lr_scheduler, found.optimizer) == (
        .1, 5e-4, "multi_step_decay", "sgd")
    assert (found.epsilon, found.alpha, found.n_iters, found.distance, found.adv_method) == (
        8 / 255, 2 / 255, 10, "Linf", "pgd")
    assert (found.beta, found.T, found.lam, found.RA_ip_rate, found.RA_start) == (6, .5, 1, .5, 0)
    assert not (found.RA or found.consistency or found.val or found.scale_schedule)
    assert found.augment_type == "base" and found.augment
    args = flags.parse(["--dataset", "cifar10"])
    assert (args.local_rank, args.no_strict, args.load_path, args.resume_path, args.suffix, args.weak) == (
        0, False, None, None, None, None) and not args.final_test


SEED_LINE = "--model {} --distance {} --epsilon {} --alpha {} --epochs 200 --dataset {}"


@pytest.mark.parametrize(("model", "ours"), [("resnet18", "resnet18-bottleneck"), ("pre_resnet18", "preresnet18"),
                                             ("wrn2810", "wrn-28-10"), ("wrn3410", "wrn-34-10")])
@pytest.mark.parametrize(("distance", "epsilon", "alpha"), [
    ("Linf", "0.03137", "0.00784"), ("Linf", "8/255", "2/255"), ("L2", "128/255", "15/255"),
    ("L1", "2000/255", "400/255")])
@pytest.mark.parametrize(("dataset", "named"), [("cifar10", "cifar10"), ("cifar100", "cifar100"),
                                                ("tinyimagenet", "tiny-imagenet")])
def test_the_seeds_command_lines(model, ours, distance, epsilon, alpha, dataset, named, capsys):
    line = SEED_LINE.format(model, distance, epsilon, alpha, dataset)
    numbers = [eval(text) for text in (epsilon, alpha)]                    # a fraction, as Python reads it
    for start, method in (("--mode adv_train --RA ", "PGD-AT"), ("--mode adv_train --consistency --RA ",
                                                                 "Consistency-AT")):
        found = settings(start + line)
        assert (found.method, found.variant, found.model, found.dataset) == (method, "rpat", ours, named)
        assert [found.epsilon, found.alpha] == pytest.approx(numbers, rel=1e-15)
        assert (found.norm, found.epochs, found.n_iters) == (distance.lower(), 200, 10)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("line", "method", "variant"), [
    ("", "PGD-AT", "plain"), ("--mode adv_trades", "TRADES", "plain"), ("--mode adv_mart --RA", "MART", "rpat"),
    ("--consistency", "Consistency-AT", "plain"), ("--mode ce", "ce", "plain"), ("--mode ce_rand", "ce_rand", "plain"),
    ("--adv_method fgsm --RA", "PGD-AT", "rpat")])
def test_which_method_is_trained(line, method, variant):
    found = settings(f"--dataset cifar10 {line}")
    assert (found.method, found.variant) == (method, variant)


@pytest.mark.parametrize(("line", "sizes", "said"), [
    ("--distance Linf", (8, 2), ""), ("--distance L2", (128, 15), "the norm's own values"),
    ("--distance L1", (2000, 400), "the norm's own values"), ("--distance L2 --epsilon 0.5", (127.5, 2), "--alpha"),
    ("--distance L2 --alpha 15/255", (8, 15), "without --epsilon"), ("--distance L1 --epsilon 8", (2040, 2), "--alpha"),
    ("--distance L2 --epsilon 64/255 --alpha 8/255", (64, 8), "")])
def test_a_norms_own_sizes_hold_where_none_is_given_and_are_said(line, sizes, said, capsys):
    found = settings(f"--dataset cifar10 {line}")
    assert (found.epsilon * 255, found.alpha * 255) == pytest.approx(sizes)
    printed = capsys.readouterr().out
    assert said in printed and bool(said) == bool(printed)
    assert threat("l2", None, None) == (128 / 255, 15 / 255) and threat("l2", None, 1.0) == (8 / 255, 1.0)


def test_the_size_of_another_norm_warns(capsys):
    settings("--dataset cifar10 --distance L2 --epsilon 8/255 --alpha 2/255")
    assert "is small for l2" in capsys.readouterr().err
    settings("--dataset cifar10 --epsilon 128/255 --alpha 15/255")
    assert "is large for linf" in capsys.readouterr().err


@pytest.mark.parametrize(("line", "said"), [
    ("--mode adv_train", "--dataset must be given"), ("--dataset svhn", "invalid choice: 'svhn'"),
    ("--dataset cifar10 --consistency --mode adv_trades", "--consistency is for --mode adv_train, not for adv_trades"),
    ("--dataset cifar10 --consistency --mode ce", "--consistency is for"),
    ("--dataset cifar10 --RA --mode ce", "--RA needs adversarial images"),
    ("--dataset cifar10 --distance L1 --mode adv_trades", "adv_trades has Linf and L2 only"),
    ("--dataset cifar10 --distance L1 --mode adv_mart", "adv_mart has Linf and L2 only"),
    ("--dataset cifar10 --distance L1 --adv_method fgsm", "fgsm has Linf and L2 only"),
    ("--dataset cifar10 --adv_method fgsm --mode adv_mart", "--adv_method fgsm is for adv_train"),
    ("--dataset cifar10 --epsilon 8", "--epsilon 8 with --distance Linf is larger than 1: images are in [0,1], so "
                                      "write 8/255"),
    ("--dataset cifar10 --distance L2 --epsilon 128", "write 128/255"),
    ("--dataset cifar10 --distance L2 --epsilon 2000/255", "is meant for another norm"),
    ("--dataset cifar10 --distance L1 --epsilon 2000", "write 2000/255"),
    ("--dataset cifar10 --alpha 2", "--alpha 2 with"), ("--dataset cifar10 --epsilon 8/0", "divides by zero"),
    ("--dataset cifar10 --epsilon -1", "negative"), ("--dataset cifar10 --RA_ip_rate 1.5", "from 0 to 1"),
    ("--dataset cifar10 --mode test_mce", "--mode test_mce is for eval.py"),
    ("--dataset cifar10 --load_path x.pt", "--load_path is for eval.py"),
    ("--dataset cifar10 --optimizer adam", "invalid choice: 'adam'"), ("--dataset cifar10 --T 0", "above 0"),
    ("--dataset cifar10 --error_step 0", "at least 1"), ("--dataset cifar10 --quirks half-inputs", "unknown"),
    ("--dataset cifar10 --lamb 2", "did you mean --lam"), ("--resume_path nowhere", "nowhere is no run"),
    ("--dataset cifar10 --suffix a/b", "cannot name a run")])
def test_what_cannot_be_meant_is_refused_in_a_line(line, said):
    with pytest.raises(UserError) as caught:
        settings(line)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_every_quirk_belongs_to_a_part_and_test_selected_to_both():
    assert PART_ONE.keys() | PART_TWO.keys() == QUIRKS.keys() and PART_ONE.keys() & PART_TWO.keys() == {"test-selected"}
    assert settings("--dataset cifar10 --quirks none").model == "resnet18"
    assert settings("--dataset cifar10 --quirks all").quirks == tuple(sorted(PART_ONE))
    assert settings("--dataset cifar10 --quirks trades-third-pass --model pre_resnet18").model == "preresnet18"


@pytest.mark.parametrize(("line", "selects"), [("", None), ("--val", "val"), ("--quirks test-selected", "test"),
                                               ("--val --quirks test-selected", "val")])
def test_what_best_is_chosen_on(line, selects):
    assert settings(f"--dataset cifar10 {line}").selects == selects


@pytest.mark.parametrize(("line", "name", "folder"), [
    ("--dataset cifar10 --RA", "pgd-at-rpat_short_s0", "cifar10"),
    ("--dataset cifar10", "pgd-at_short_s0", "cifar10"),
    ("--dataset cifar100 --mode ce_rand --seed 3", "ce-rand_short_s3", "cifar100"),
    ("--dataset cifar10 --mode adv_trades --RA --distance L2 --epsilon 0.5 --alpha 0.06", "trades-rpat-l2_short_s0",
     "cifar10-l2"),
    ("--dataset tinyimagenet --consistency --model wrn3410 --augment_type autoaug_sche",
     "consistency-at-autoaug-sche-wrn3410_short_s0", "tiny-imagenet"),
    ("--dataset cifar10 --adv_method fgsm --model pre_resnet18", "pgd-at-fgsm-pre-resnet18_short_s0", "cifar10"),
    ("--data npz:some/cifar10.npz --quirks none", "pgd-at_short_s0", "cifar10"),
    ("--data digits --dataset_name mine --distance L1 --model small", "pgd-at-l1-small_short_s0", "mine")])
def test_how_runs_and_their_folders_are_called(line, name, folder):
    args = flags.parse(line.split())
    found = flags.settings_of(args)
    assert run_name(found.method, found.variant, "short", found.seed, found.marks) == name
    assert flags.dataset_folder(args, found.norm) == folder and folder_name("cifar10", "linf") == "cifar10"


def test_data_sets():
    found = flags.parse(["--dataset", "tinyimagenet", "--allow-subset"])
    assert flags.data_spec(found) == "tiny-imagenet?subset" and flags.protocol(found) == "tiny-imagenet"
    found = flags.parse(["--dataset", "cifar100", "--data", "npz:a/b.npz"])
    assert (flags.data_spec(found), flags.protocol(found)) == ("npz:a/b.npz", "cifar100")


def test_snapshots_are_every_nth_epoch_counted_from_one():
    assert settings("--dataset cifar10 --epochs 60").snapshots == (24, 49)
    assert settings("--dataset cifar10 --epochs 3 --save_step 1").snapshots == (0, 1, 2)
    assert settings("--dataset cifar10 --save_step 0").snapshots == ()


def record(folder, command, **more):
    folder.mkdir(parents=True)
    run = {"schema": 1, "paper": "rpat", "dataset": "cifar10-l2", "run": folder.name, "command": command,
           "method": "PGD-AT", "variant": "plain", "budget": "custom", "seed": 0,
           "config": {"model": {"name": "small"}}, "config_sha256": "0", "spec_sha256": None, "quirks": [],
           "needs": {}, "model": {},
           "data": {"name": "cifar10", "test_fingerprint": "0", "train_fingerprint": "0"}, **more}
    (folder / "run.json").write_text(json.dumps(run))
    return folder


def test_resuming_takes_up_the_recorded_flags_and_those_given_now_win(tmp_path):
    command = "python rpat/benchmarks/train.py --dataset cifar10 --distance L2 --data npz:gone.npz --lr_init 0.05"
    folder = record(tmp_path / "results/rpat/cifar10-l2/pgd-at-l2_x_s0", command)
    found = flags.parse(["--resume_path", str(folder), "--data", "npz:here.npz"])
    assert (found.lr_init, found.run, found.data, found.distance) == (.05, folder.name, "npz:here.npz", "L2")
    assert flags.dataset_folder(found, "l2") == "cifar10-l2"
    assert (found.results, found.weights) == (str(tmp_path / "results"), str(tmp_path / "weights"))


@pytest.mark.parametrize(("command", "said"), [
    ("python rpat/benchmarks/train.py --dataset cifar10", "trained to its end"),
    ("python rpat/sotas/train_cifar_ra.py", "is no run of rpat/benchmarks/train.py")])
def test_a_finished_or_foreign_run_is_not_resumed(tmp_path, command, said):
    folder = record(tmp_path / "a_run", command)
    (folder / "train.json").write_text("{}")
    with pytest.raises(UserError, match=said) as caught:
        flags.parse(["--resume_path", str(folder)])
    assert "\n" not in str(caught.value)


def test_a_folder_of_the_original_repository_is_told_apart(tmp_path):
    (tmp_path / "last.model").write_bytes(b"")
    with pytest.raises(UserError, match="a folder of the original repository"):
        flags.parse(["--resume_path", str(tmp_path)])
