"""The images of a run: grey as Pillow's, of their own size, augmented once, fed as is right; ImageNet's middle."""

import numpy as np
import pytest
import torch
from PIL import Image

from brainreg import flags, images
from brainreg.images import imagenet, in_order, middle, regularisation_images, seen, task_data
from brainreg.tests.brainreg_images import arrays, data_folder, photograph
from common.data import Split, load, to_float
from common.errors import UserError


@pytest.fixture
def folder(tmp_path):
    return data_folder(tmp_path)


def both(folder, line):
    args = flags.parse([*line.split(), "--data_dir", str(folder), "--reg_image_num", "30"])
    settings = flags.settings_of(args)
    data = task_data(settings, args)
    return data, regularisation_images(settings, args, data) if settings.regularised else None


def pillow(pixels):
    return np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in pixels])


# --- the task's images ---

def test_grey_is_pillows(folder):
    data, _ = both(folder, "--task CIFAR10")
    assert data.image_shape == (1, 32, 32) and data.source.endswith("turned grey")
    for split, seed in ((data.train, 0), (data.test, 10)):
        assert np.array_equal(split.images[:, 0].numpy(), pillow(arrays(seed)))
    steps = np.stack(np.meshgrid(*[np.arange(0, 256, 5, dtype=np.uint8)] * 3), -1).reshape(1, 52 * 52, 52, 3)
    split = Split(torch.from_numpy(steps.transpose(0, 3, 1, 2).copy()), torch.zeros(1, dtype=torch.int64))
    assert np.array_equal(seen(split, False, "x").images[0, 0].numpy(), pillow(steps)[0])


def test_colour_stays_with_rgb_and_is_missed_where_there_is_none(folder):
    data, _ = both(folder, "--task CIFAR10 --rgb True")
    assert np.array_equal(data.train.images.numpy().transpose(0, 2, 3, 1), arrays(0)) and "grey" not in data.source
    with pytest.raises(UserError, match=r"needs images in colour, and npz:mnist\.npz has 1 channel"):
        both(folder, f"--task CIFAR10 --rgb True --data npz:{folder}/mnist.npz")


def test_grey_images_stay_what_they_are(folder):
    data, _ = both(folder, "--task MNIST")
    assert torch.equal(data.train.images[:, 0], torch.from_numpy(arrays(2, 40, 28, False)))
    assert "grey" not in data.source
    args = flags.parse(["--data", "digits"])
    assert task_data(flags.settings_of(args), args).train.fingerprint == load("digits").train.fingerprint


# --- the regularisation images ---

def ordered(one):
    """Images (N,...) as a sorted list of rows, so that their order does not count."""
    return sorted(map(tuple, one.flatten(1).tolist()))


@pytest.mark.parametrize(("line", "seed", "scaled"), [
    ("--task MNIST --reg_data MNIST", 2, False), ("--task FashionMNIST --reg_data MNIST", 2, False),
    ("--task MNIST --reg_data FashionMNIST", 3, False), ("--task CIFAR10 --reg_data FashionMNIST", 3, True)])
def test_the_first_images_shuffled_and_fed_as_the_task_is(folder, line, seed, scaled):
    _, found = both(folder, f"{line} --reg_alpha 1")
    plain = to_float(torch.from_numpy(arrays(seed, 40, 28, False)[:30]).unsqueeze(1))
    wanted = 5 * (plain - 0.5) if scaled else plain
    assert found.images.shape == (30, 1, 28, 28) and found.images.dtype == torch.float32       # they keep their size
    assert ordered(found.images) == ordered(wanted) and not torch.equal(found.images, wanted)
    assert found.described["n"] == 30 and found.described["source"].endswith(".npz in the data folder")
    again = both(folder, f"{line} --reg_alpha 1")[1].images
    assert torch.equal(found.images, again)
    assert not torch.equal(found.images, both(folder, f"{line} --reg_alpha 1 --seed 1")[1].images)


@pytest.mark.parametrize(("line", "channels"), [("--task MNIST", 1), ("--task CIFAR10", 1),
                                                ("--task CIFAR100 --rgb True", 3)])
def test_cifar_images_are_cropped_flipped_and_scaled_whatever_the_task(folder, line, channels):
    _, found = both(folder, f"{line} --reg_data CIFAR10 --reg_alpha 1")
    assert found.images.shape == (30, channels, 32, 32)
    data = arrays(0)[:30]
    data = data.transpose(0, 3, 1, 2) if channels == 3 else pillow(data)[:, None]
    padded = np.pad(data, ((0, 0), (0, 0), (4, 4), (4, 4)), mode="reflect")
    crops = {(5 * (padded[i, :, top:top + 32, left:left + 32][:, :, ::way].astype(np.float32) / 255 - 0.5)).tobytes()
             for i in range(30) for top in range(9) for left in range(9) for way in (1, -1)}
    kept = [5 * (image.astype(np.float32) / 255 - 0.5) for image in data]
    assert all(image.numpy().tobytes() in crops for image in found.images)
    assert sum(any(np.array_equal(image, one) for one in kept) for image in found.images.numpy()) < 10
    assert found.described["fingerprint"] == Split(torch.from_numpy(np.ascontiguousarray(data)),
                                                   torch.arange(30) % 10).fingerprint


@pytest.mark.parametrize("source", ["MNIST", "FashionMNIST"])
def test_more_images_than_there_are(folder, source):
    args = flags.parse(["--task", "MNIST", "--reg_data", source, "--reg_alpha", "1", "--reg_image_num", "41",
                        "--data_dir", str(folder)])
    settings = flags.settings_of(args)
    with pytest.raises(UserError) as caught:
        regularisation_images(settings, args, task_data(settings, args))
    name = "mnist" if source == "MNIST" else "fashion-mnist"
    assert f"--reg_image_num 41: npz file {name}.npz in the data folder has 40 training images" in str(caught.value)


# --- ImageNet ---

def test_the_middle_of_the_first_large_enough_images_by_sorted_path(tmp_path):
    files = [("a/2.png", 300, 200, "RGB"), ("a/1.png", 257, 145, "L"), ("b.png", 256, 144, "RGB"),
             ("a/0.png", 255, 200, "RGB"), ("c/d/0.jpeg", 320, 240, "RGB"), ("z.png", 400, 300, "RGB")]
    pixels = [photograph(tmp_path / name, width, height, seed, mode)
              for seed, (name, width, height, mode) in enumerate(files)]
    (tmp_path / "a/.hidden.png").write_bytes(b"")
    (tmp_path / "a/notes.txt").write_text("")
    assert [path.relative_to(tmp_path).as_posix() for path in in_order(tmp_path)] == [
        "a/0.png", "a/1.png", "a/2.png", "b.png", "c/d/0.jpeg", "z.png"]
    split = imagenet(tmp_path, 4)
    assert split.images.shape == (4, 1, 36, 64)
    for image, grey in zip(split.images[:, 0].numpy(), (pixels[1], pixels[0], pixels[2], pixels[4]), strict=True):
        height, width = grey.shape
        for row, column in ((0, 0), (35, 63), (17, 5)):
            assert image[row, column] == grey[height // 2 - 72 + 4 * row, width // 2 - 128 + 4 * column]
    with pytest.raises(UserError, match=r"has 5 images of at least 256x144 pixels \(1 smaller ones\)"):
        imagenet(tmp_path, 6)


def test_the_middle_of_a_ramp():
    rows, columns = np.meshgrid(np.arange(151), np.arange(259), indexing="ij")
    assert middle(rows)[:, 0].tolist() == list(range(3, 147, 4))
    assert middle(columns)[0].tolist() == list(range(1, 257, 4))


@pytest.mark.parametrize(("task", "scaled"), [("CIFAR10", True), ("MNIST", False)])
def test_imagenet_images_of_a_folder(folder, task, scaled):
    grey = [photograph(folder / f"imagenet/n1/{number}.png", 260, 150, number) for number in range(2)]
    args = flags.parse(["--task", task, "--reg_data", "ImageNet", "--reg_alpha", "1", "--reg_image_num", "2",
                        "--data_dir", str(folder)])
    settings = flags.settings_of(args)
    data = task_data(settings, args)
    found = regularisation_images(settings, args, data)
    wanted = torch.stack([torch.from_numpy(middle(one).astype(np.float32) / 255) for one in grey]).unsqueeze(1)
    assert ordered(found.images) == ordered(5 * (wanted - 0.5) if scaled else wanted)
    assert found.described["source"] == "ImageNet: ImageNet folder"
    args.reg_images = str(folder / "gone")
    with pytest.raises(UserError, match="gone, which is no folder: give theirs with --reg_images DIR"):
        regularisation_images(settings, args, data)


def test_what_is_augmented_and_how_images_are_fed():
    assert images.augmentation("cifar100") == {"crop": 4, "crop_mode": "reflect", "flip": True}
    assert images.augmentation("mnist") == images.augmentation("imagenet") == {}
    scale = {task: images.network_scale(flags.settings_of(flags.parse(["--task", task])))
             for task in ("CIFAR10", "CIFAR100", "MNIST", "FashionMNIST")}
    assert scale == {"CIFAR10": (5, .5), "CIFAR100": (5, .5), "MNIST": (1, 0), "FashionMNIST": (1, 0)}
