"""What runs are called, what decides their weights, and which images validate."""

from dataclasses import replace
from random import Random

import pytest

from brainreg.settings import LABELS, QUIRKS, SOURCES, Settings, folder_name, run_name, usual, validation_positions

REGULARISED = Settings(task="cifar10", reg_data="imagenet", reg_alpha=10.0, reg_thresh=0.8)


@pytest.mark.parametrize(("changes", "name", "variant"), [
    ({"reg_alpha": None, "reg_data": None, "reg_thresh": 0.6}, "unregularised_short_s0", "none"),
    ({"reg_alpha": None, "reg_data": None, "archi": "resnet34", "seed": 3}, "unregularised-resnet34_short_s3",
     "none-resnet34"),
    ({}, "imagenet_short_s0", "ImageNet"),
    ({"reg_image_num": 1000}, "imagenet-n1000_short_s0", "ImageNet-n1000"),
    ({"task": "mnist", "reg_data": "mnist", "reg_alpha": 4.0, "reg_thresh": 0.2, "seed": 1}, "mnist_short_s1", "MNIST"),
    ({"task": "mnist", "reg_data": "mnist"}, "mnist-th0.8-a10_short_s0", "MNIST-th0.8-a10"),
    ({"task": "fashion-mnist", "reg_data": "mnist", "reg_thresh": 0.4}, "mnist_short_s0", "MNIST"),
    ({"reg_batch_size": 32, "reg_thresh": 0.4, "reg_range": "high"}, "imagenet-k32-th0.4-high_short_s0",
     "ImageNet-k32-th0.4-high"),
    ({"reg_range": "double", "reg_thresh_2": 0.1}, "imagenet-double0.1_short_s0", "ImageNet-double0.1"),
    ({"reg_range": "high_positive", "reg_thresh_2": 0.1}, "imagenet-high-positive_short_s0", "ImageNet-high-positive"),
    ({"reg_boosting": False, "arctanh": False, "archi": "resnet50"}, "imagenet-plain-linear-resnet50_short_s0",
     "ImageNet-plain-linear-resnet50"),
    ({"reg_boost_val_1": 0.5, "reg_data": "digits"}, "digits-b0.5_short_s0", "digits-b0.5")])
def test_how_runs_are_called(changes, name, variant):
    settings = replace(REGULARISED, **changes)
    assert (run_name(settings, "short"), settings.variant) == (name, variant)
    assert settings.method == ("regularised" if settings.reg_alpha else "unregularised")


def test_names_of_data_sets_and_folders():
    assert folder_name("cifar10", True) == "cifar10-rgb" and folder_name("mnist", False) == "mnist"
    assert LABELS["fashion-mnist"] == "FashionMNIST" and len(LABELS) == len(SOURCES) == 5
    assert usual("mnist", "mnist") == (4.0, 0.2) and usual("fashion-mnist", "mnist") == (10.0, 0.4)
    assert usual("cifar100", "imagenet") == usual("mnist", "fashion-mnist") == (10.0, 0.8)


def test_the_configuration_holds_what_decides_the_weights():
    config = REGULARISED.config()
    assert config["reg_thresh"] == 0.8 and config["momentum"] == 0.9 and config["quirks"] == []
    assert config == replace(REGULARISED, num_epsilons=3).config() and "reg_thresh_2" not in config
    assert {"n_train", "num_epsilons"}.isdisjoint(config)
    for changed in ({"reg_batch_size": 8}, {"quirks": ("pair-bn",)}, {"n_epoch_test": 10}, {"arctanh": False}):
        assert replace(REGULARISED, **changed).config() != config
    assert set(QUIRKS.values()) == {"training", "measuring"}


@pytest.mark.parametrize(("count", "first", "boundary"), [(50_000, [25247, 49673, 27562], [689, 3537, 2397]),
                                                          (60_000, [55340, 25247, 49673], [3304, 1948, 8144])])
def test_the_validation_images_are_the_released_ones(count, first, boundary):
    draws = Random(0)
    held = validation_positions(count, 0.01, draws)
    assert held[:3] == first and len(set(held)) == count // 100
    assert draws.sample(range(10_000), 1000)[:3] == boundary              # the next draw is the boundary attack's


def test_what_a_task_looks_like():
    assert [Settings(task=task).colour_task for task in ("cifar10", "cifar100", "mnist", "digits")] == [
        True, True, False, False]
    assert Settings(rgb=True).channels == 3 and Settings().channels == 1
    assert REGULARISED.regularised and not Settings(reg_alpha=0.0).regularised
