"""The released flags: defaults, types, what they mean together, and what is refused."""

import json

import pytest

from common.errors import UserError
from dyart import flags
from dyart.settings import QUIRKS, Settings

TRAINING = tuple(sorted(name for name, kind in QUIRKS.items() if kind == "training"))


def settings(line=""):
    return flags.settings_of(flags.parse(line.split()))


def test_the_defaults_are_the_released_ones():
    found = settings()
    assert found == Settings(quirks=TRAINING)
    assert (found.method, found.data, found.model) == ("DyART", "cifar10", "wrn-28-10-swish")
    assert (found.h_prime_r0, found.eps_FAB) == (16 / 255, 8 / 255)
    assert (found.attack_eps, found.attack_step) == (8 / 255, 2 / 255)
    assert (found.h_prime_alpha, found.lam_robust, found.temperature, found.iter_FAB) == (0, 1000, 5, 20)
    assert (found.lr, found.clip_grad, found.weight_decay) == (.1, None, 5e-4)
    assert (found.tau, found.unsup_fraction, found.save_intermediate_models) == (.995, .7, 0)
    assert (found.beta, found.mart, found.attack_iter, found.batch_size, found.epochs) == (6, False, 10, 256, 200)
    assert (found.scheduler, found.attack, found.nesterov, found.augment) == ("cosinew", "linf-pgd", True, True)
    assert not (found.normalize or found.GroupNorm or found.keep_clean)


@pytest.mark.parametrize(("line", "expected"), [
    ("--h_prime_r0 32/255 --h_prime_alpha 5 --lam_robust 500 --clip_grad 1 -d tiny-imagenet --model preact-resnet18",
     {"h_prime_r0": 32 / 255, "h_prime_alpha": 5, "lam_robust": 500, "clip_grad": 1, "data": "tiny-imagenet",
      "model": "preactresnet18"}),
    ("--h-prime-r0 0.05 --attack_eps 16/255 --batch_size 512 --clip_grad none --weight_decay 0",
     {"h_prime_r0": .05, "attack_eps": 16 / 255, "batch_size": 512, "clip_grad": None, "weight_decay": 0}),
    ("--use_high_quality F --nesterov 0 --augment no --GroupNorm TRUE --DyART t",
     {"use_high_quality": False, "nesterov": False, "augment": False, "GroupNorm": True, "DyART": True}),
    ("--data cifar100s --scheduler cyclic --model preact-resnet34-swish",
     {"data": "cifar100", "scheduler": "cyclic", "model": "preactresnet34-swish"}),
    ("--debug --epochs 100", {"train_epochs": 1, "epochs": 100}),
    ("--quirks none --tau 0.9 --unsup-fraction -1", {"quirks": (), "tau": .9, "unsup_fraction": -1}),
    ("--data npz:some/cifar10.npz", {"data": "cifar10"}),
    ("--data npz:some/tiny-imagenet-200.npz", {"data": "tiny-imagenet"}),
    ("--data folder:pictures --dataset_name cifar100-mine", {"data": "cifar100"}),
    ("--data digits", {"data": "digits"})])
def test_flags_mean_what_they_say(line, expected):
    found = settings(line)
    assert {key: getattr(found, key) for key in expected} == expected


@pytest.mark.parametrize(("line", "method"), [
    ("", "DyART"), ("--clean_training true", "clean"), ("--clean_training true --DyART false --beta -1", "clean"),
    ("--DyART false", "TRADES"), ("--DyART false --mart", "MART"), ("--DyART false --beta -1", "AT"),
    ("--DyART false --beta 0 --mart", "AT")])
def test_which_method_is_trained(line, method):
    assert settings(line).method == method


@pytest.mark.parametrize(("line", "said"), [
    ("--attack-eps 16/0", "divides by zero"), ("--h_prime_r0 16", "write 16/255"), ("--tau 0", "above 0 and below 1"),
    ("--unsup-fraction 1", "below 1"), ("--unsup-fraction 1.5", "below 1"), ("--scheduler cosine", "fails there"),
    ("--scheduler linear", "choose one of cosinew, step, cyclic"), ("--attack linf-apgd", "fails there"),
    ("--attack cw", "choose one of linf-pgd, fgsm, l2-pgd"), ("--model wrn-32-10", "fails there"),
    ("--data svhn", "fails there"), ("--DyART perhaps", "neither True nor False"), ("--epochs 0", "at least 1"),
    ("--iter_FAB 2.5", "no whole number"), ("--clip_grad 0", "above 0"), ("--quirks tiny", "unknown"),
    ("--lam_robus 3", "did you mean --lam_robust"), ("--DyART false --mart --attack fgsm", "MART has linf-pgd only"),
    ("--DyART false --attack fgsm", "TRADES has"), ("--attack l2-pgd", "for L-inf"), ("--keep-clean true", "for AT"),
    ("--aux-ind-pth rows.npy", "--aux-data-filename, which is not given"), ("--resume true", "needs --resume_fname"),
    ("--resume true --resume_fname nowhere", "nowhere is no run"), ("--run a/b", "cannot name a run")])
def test_what_cannot_be_meant_is_refused_in_a_line(line, said):
    with pytest.raises(UserError) as caught:
        settings(line)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_swish_network_normalises_itself_and_normalize_comes_before_it():
    swish, raw = settings(), settings("--model preact-resnet18")
    assert raw.normalise is None and swish.normalise == ((.4914, .4822, .4465), (.2471, .2435, .2616))
    assert settings("--model resnet18 --normalize true").normalise == ((.4914, .4822, .4465), (.2023, .1994, .2010))
    mean, std = settings("--normalize true").normalise
    for value in (0.0, 0.3, 1.0):
        twice = ((value - .4914) / .2023 - .4914) / .2471
        assert (value - mean[0]) / std[0] == pytest.approx(twice)


def test_snapshots_are_every_nth_epoch_but_the_first():
    assert settings("--epochs 42 --save_intermediate_models 10").snapshots == (10, 20, 30, 40)
    assert settings("--epochs 22 --train_epochs 11 --save_intermediate_models 10").snapshots == (10,)
    assert settings("--epochs 22").snapshots == ()


def record(folder, command, **more):
    folder.mkdir(parents=True)
    run = {"schema": 1, "paper": "dyart", "dataset": "digits", "run": folder.name, "command": command, "method": "AT",
           "variant": "plain", "budget": "custom", "seed": 1, "config": {"model": {"name": "small"}},
           "config_sha256": "0", "spec_sha256": None, "quirks": [], "needs": {}, "model": {},
           "data": {"name": "digits", "test_fingerprint": "0", "train_fingerprint": "0"}, **more}
    (folder / "run.json").write_text(json.dumps(run))
    return folder


def test_resuming_takes_up_the_recorded_flags_and_those_given_now_win(tmp_path):
    folder = record(tmp_path / "dyart_x_s1", "python dyart/train.py --data npz:gone.npz --lr 0.05 --epochs 7",
                    dataset="mine")
    found = flags.parse(["--resume", "True", "--resume_fname", str(folder), "--data", "npz:here.npz"])
    assert (found.lr, found.epochs, found.run, found.data) == (.05, 7, "dyart_x_s1", "npz:here.npz")
    assert flags.dataset_folder(found) == "mine"


@pytest.mark.parametrize(("command", "said"), [
    ("python dyart/train.py --lr 0.05", "trained to its end"),
    ("python adarat/train/ST/train_cifar10.py", "is no run of")])
def test_a_finished_or_foreign_run_is_not_resumed(tmp_path, command, said):
    folder = record(tmp_path / "a_run", command)
    (folder / "train.json").write_text("{}")
    with pytest.raises(UserError, match=said):
        flags.parse(["--resume", "true", "--resume_fname", str(folder)])


def test_a_folder_of_the_original_repository_is_told_apart(tmp_path):
    (tmp_path / "ResumeParameter.pth").write_bytes(b"")
    with pytest.raises(UserError, match="a folder of the original repository"):
        flags.parse(["--resume", "true", "--resume_fname", str(tmp_path)])


def test_extra_data_have_records_of_their_own():
    assert flags.dataset_folder(flags.parse(["--aux-data-filename", "a.npz"])) == "cifar10-extra"
    assert flags.dataset_folder(flags.parse(["--aux-data-filename", "a.npz", "--clean_training", "true"])) == "cifar10"
    assert flags.data_spec(flags.parse(["-d", "tiny-imagenet", "--allow-subset"])) == "tiny-imagenet?subset"
