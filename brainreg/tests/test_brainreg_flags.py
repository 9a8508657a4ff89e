"""The released flags: defaults, the seed's command lines, the ways to write a flag, what is refused."""

import pytest

from brainreg import flags
from brainreg.settings import Settings, run_name
from common.errors import UserError

TRAINING = ("init-forward", "pair-bn")
ROWS = [("CIFAR10", "CIFAR10", 10, 0.8), ("CIFAR10", "CIFAR100", 10, 0.8), ("CIFAR10", "ImageNet", 10, 0.8),
        ("CIFAR100", "CIFAR10", 10, 0.8), ("CIFAR100", "CIFAR100", 10, 0.8), ("CIFAR100", "ImageNet", 10, 0.8),
        ("MNIST", "MNIST", 4, 0.2), ("MNIST", "FashionMNIST", 10, 0.8), ("FashionMNIST", "MNIST", 10, 0.4),
        ("FashionMNIST", "FashionMNIST", 10, 0.8)]
OURS = {"CIFAR10": "cifar10", "CIFAR100": "cifar100", "MNIST": "mnist", "FashionMNIST": "fashion-mnist",
        "ImageNet": "imagenet"}


def settings(line=""):
    return flags.settings_of(flags.parse(line.split()))


def test_the_defaults_are_the_released_ones():
    assert settings() == Settings(quirks=TRAINING)
    found, args = settings("--reg_alpha 10"), flags.parse([])
    assert (found.reg_data, found.reg_range, found.reg_thresh, found.reg_thresh_2) == ("cifar10", "all", .6, None)
    assert (found.reg_image_num, found.reg_batch_size, found.reg_boost_val_1) == (5000, 16, 1)
    assert found.reg_boosting and found.arctanh and not found.rgb
    assert (found.seed, found.epoch_num, found.resnet_batch_size, found.base_channels) == (0, 40, 64, 64)
    assert (found.lr, found.momentum, found.weight_decay, found.decay_rate) == (.1, .9, 0, .3)
    assert (found.phase_num, found.phase_duration, found.valid_portion, found.num_epsilons) == (5, 4, .01, 10)
    assert (args.attack, args.disp_num, args.save_period, args.transfer_id) == (True, 6, 1, None)
    assert (args.reg_type, args.basis_num, args.modulator_features, args.select_criterion) == (
        "pixel", None, [10, 10], "random")
    assert (args.core_shared, args.conditioning, args.max_best, args.reg_boosting_val) == (False, None, 5, 1)
    assert (args.reg_grab, args.start_fine_tune, args.fine_tune_epochs, args.ignore_existing) == (False, 0, 0, False)


@pytest.mark.parametrize(("task", "source", "alpha", "threshold"), ROWS)
def test_the_seeds_command_lines(task, source, alpha, threshold, capsys):
    plain = f"--task={task} --archi=ResNet18"
    found = settings(plain)
    assert found == Settings(task=OURS[task], quirks=TRAINING) and run_name(found, "x") == "unregularised_x_s0"
    line = f"{plain} --reg_data={source} --reg_alpha={alpha} --reg_thresh={threshold}"
    found = settings(line)
    assert found == Settings(task=OURS[task], reg_data=OURS[source], reg_alpha=alpha, reg_thresh=threshold,
                             quirks=TRAINING)
    assert run_name(found, "x") == f"{OURS[source]}_x_s0"             # the usual alpha and threshold leave no mark
    for kind in ("low", "high", "positive", "negative"):
        assert settings(f"{line} --reg_range={kind}").reg_range == kind
    double = settings(f"{line} --reg_range=double --reg_thresh_2=0.1 --reg_image_num 1000 --reg_batch_size=8")
    assert (double.reg_thresh_2, double.reg_image_num, double.reg_batch_size) == (0.1, 1000, 8)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("words", ["--rgb True", "--rgb=True", "rgb=True", "--rgb yes", "rgb=T"])
@pytest.mark.parametrize("before", ["--task=CIFAR10", "--task CIFAR100", "--core_shared", "seed=3",
                                    "--modulator_features 10 10"])
def test_a_flag_with_and_without_dashes(before, words):
    for line in (f"{before} {words}", f"{words} {before}"):
        found = flags.parse(line.split())
        assert found.rgb is True and flags.settings_of(found).channels == 3


def test_what_only_looks_like_a_flag_without_dashes():
    assert flags.parse(["--data", "rgb=True"]).data == "rgb=True" and not flags.parse(["--data", "rgb=True"]).rgb
    assert flags.parse(["--data", "x", "rgb=False"]).rgb is False
    with pytest.raises(UserError, match="unknown flag colour=True"):
        flags.parse(["colour=True"])


def test_booleans_switches_and_other_names():
    assert not settings("--arctanh False --reg_alpha 1").arctanh and not flags.parse(["--attack", "False"]).attack
    assert not settings("--no-reg_boosting --reg_alpha 1").reg_boosting
    assert settings("--width 4").base_channels == settings("--base_channels 4").base_channels == 4
    assert settings("--task fashion-mnist --archi resnet50 --reg_alpha 1 --reg_data mnist") == settings(
        "--task FashionMNIST --archi ResNet50 --reg_alpha 1 --reg_data MNIST")
    args = flags.parse(["--save_dir", "a", "--weights", "b"])
    assert (args.results, args.weights) == ("a/results", "b")


def test_without_alpha_nothing_of_the_regulariser_counts(capsys):
    assert settings("--reg_data MNIST --reg_thresh 0.3 --reg_batch_size 4 --reg_alpha 0 --arctanh False") == settings()
    assert "without --reg_alpha there is no regularisation" in capsys.readouterr().err
    assert settings("--reg_alpha none") == settings() and settings("--reg_thresh_2 0 --reg_alpha 1") == settings(
        "--reg_alpha 1")


@pytest.mark.parametrize(("line", "said"), [
    ("--reg_thresh 0", "above 0 and below 1"), ("--reg_thresh 1", "above 0 and below 1"),
    ("--reg_thresh -0.2", "above 0 and below 1"), ("--reg_thresh x", "no number"),
    ("--reg_thresh_2 1.5", "above 0 and below 1"),
    ("--reg_range double", "give it with --reg_thresh_2"),
    ("--reg_alpha 10 --reg_range double", "give it with --reg_thresh_2, below --reg_thresh 0.6"),
    ("--reg_alpha 10 --reg_range double --reg_thresh_2 0", "give it with --reg_thresh_2"),
    ("--reg_alpha 10 --reg_range double --reg_thresh_2 0.7", "--reg_thresh_2 0.7 must be below --reg_thresh 0.6"),
    ("--reg_alpha 10 --reg_range double --reg_thresh_2 0.6", "must be below --reg_thresh 0.6"),
    ("--reg_alpha 10 --reg_thresh_2 0.7", "must be below --reg_thresh 0.6"),
    ("--reg_alpha 10 --reg_boost_val_1 1.5", "has no value above 1"), ("--reg_boost_val_1 0", "above 0"),
    ("--reg_alpha -1", "negative"), ("--reg_alpha 10 --reg_image_num 1", "makes no pair"),
    ("--reg_range some", "invalid choice: 'some'"), ("--reg_image_num 0", "at least 1"),
    ("--reg_data SVHN", "--reg_data SVHN: there are none"), ("--reg_alpha 1 --reg_data SVHN", "there are none"),
    ("--archi ViT", "--archi ViT is named by the original, which cannot build it"),
    ("--archi CVT7", "cannot build it"), ("--archi cct7", "cannot build it"),
    ("--archi VGG", "--archi VGG is no network of this paper: choose one of ResNet18, ResNet34, ResNet50, ResNet101"),
    ("--task ImageNet", "is named by the original, which has no data for it"), ("--task SVHN", "is no task"),
    ("--model small", "choose one with --archi"), ("--valid_portion 0", "without validation images"),
    ("--valid_portion 1", "below 1"), ("--rgb True --task MNIST", "--rgb True needs CIFAR10 or CIFAR100"),
    ("--rgb True --task CIFAR10 --reg_alpha 1 --reg_data ImageNet", "--rgb True needs CIFAR10 or CIFAR100"),
    ("--rgb True --data digits", "--rgb True needs"), ("--rgb maybe", "neither True nor False"), ("rgb=2", "neither"),
    ("--data npz:x/{}.npz", "say which one with --task"), ("--quirks fgsm-off", "unknown"),
    ("--lr 0", "above 0"), ("--momentum 1", "below 1"), ("--weight_decay -1", "must be at least 0"),
    ("--num_epsilons 1", "must be at least 2"), ("--num_epsilons two", "no whole number"),
    ("--epoch_num 0", "at least 1"), ("--reg_tresh 0.3", "did you mean --reg_thresh")])
def test_what_cannot_be_meant_is_refused_in_a_line(line, said):
    with pytest.raises(UserError) as caught:
        settings(line)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_odd_but_meant(capsys):
    found = settings("--reg_alpha 10 --reg_range double --reg_thresh 0.3 --reg_thresh_2 0.5 --no-reg_boosting")
    assert found.reg_thresh_2 == 0.5 and "between 0.3 and 0.5 count twice" in capsys.readouterr().err
    assert settings("--reg_alpha 10 --reg_boost_val_1 2 --arctanh False").reg_boost_val_1 == 2


@pytest.mark.parametrize(("line", "task", "data", "source", "folder"), [
    ("", "cifar10", "cifar10", "cifar10", "cifar10"),
    ("--task MNIST --reg_data FashionMNIST", "mnist", "mnist", "fashion-mnist", "mnist"),
    ("--task MNIST --reg_data FashionMNIST --data npz:a/{}.npz", "mnist", "npz:a/mnist.npz", "npz:a/fashion-mnist.npz",
     "mnist"),
    ("--task MNIST --data npz:a/b.npz", "mnist", "npz:a/b.npz", "npz:a/b.npz", "b"),
    ("--data npz:a/mnist.npz --reg_data MNIST", "mnist", "npz:a/mnist.npz", "npz:a/mnist.npz", "mnist"),
    ("--data digits", "digits", "digits", "digits", "digits"),
    ("--data digits --reg_data digits", "digits", "digits", "digits", "digits"),
    ("--data digits --task MNIST --reg_data CIFAR10 --reg_images digits", "mnist", "digits", "digits", "digits"),
    ("--reg_data ImageNet --reg_images a/b", "cifar10", "cifar10", "a/b", "cifar10"),
    ("--reg_data ImageNet", "cifar10", "cifar10", "imagenet", "cifar10"),
    ("--task CIFAR100 --rgb True --reg_data CIFAR10", "cifar100", "cifar100", "cifar10", "cifar100-rgb"),
    ("--dataset_name mine --rgb True", "cifar10", "cifar10", "cifar10", "mine")])
def test_where_images_come_from(line, task, data, source, folder):
    args = flags.parse([*line.split(), "--reg_alpha", "1"])
    found = flags.settings_of(args)
    assert (found.task, flags.data_spec(args, found.task), flags.source_spec(args, found)) == (task, data, source)
    assert flags.dataset_folder(args, found) == folder


def test_every_flag_says_what_it_does():
    assert all(action.help for action in flags.parser()._actions)
    assert "rgb=True" in flags.parser().format_help()
