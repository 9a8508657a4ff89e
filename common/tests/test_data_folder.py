"""Folders of images: decoding, sizes, colours, classes, and the cache."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.data import folder_cache, load, splits


@pytest.fixture(autouse=True)
def in_order(monkeypatch):
    """Without the fixed permutation, which has a test of its own."""
    monkeypatch.setattr(splits, "fixed_order", np.arange)


def pixels(seed: int, shape: tuple[int, ...] = (6, 5, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def make(root: Path, files: dict[str, np.ndarray]) -> Path:
    for name, array in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(root / name)
    return root


def small(root: Path, second: str = "test") -> Path:
    return make(root, {"train/b/1.png": pixels(1), "train/b/0.png": pixels(2), "train/a/deep/er/9.PNG": pixels(3),
                       "train/a/2.png": pixels(4), f"{second}/b/x.png": pixels(5), f"{second}/a/y.png": pixels(6)})


def test_classes_and_files_come_sorted(tmp_path):
    root = small(tmp_path / "my set")
    (root / "train/a/notes.txt").touch()
    (root / "train/a/.hidden.png").touch()
    (root / "train/.hidden").mkdir()
    data = load(f"folder:{root}", data_dir=tmp_path / "data")
    assert (data.name, data.source, data.classes, data.class_names) == ("my-set", "folder:my-set", 2, ("a", "b"))
    assert data.image_shape == (3, 6, 5)
    assert data.train.labels.tolist() == [0, 0, 1, 1] and data.test.labels.tolist() == [0, 1]
    for split, seeds in ((data.train, (4, 3, 2, 1)), (data.test, (6, 5))):
        for image, seed in zip(split.images, seeds, strict=True):
            assert np.array_equal(image.numpy(), pixels(seed).transpose(2, 0, 1))


def test_val_stands_in_for_test(tmp_path):
    root = small(tmp_path / "f", "val")
    data = load(f"folder:{root}", data_dir=tmp_path)
    assert data.source == "folder:f (val taken as test)" and len(data.test) == 2
    make(root, {"test/a/1.png": pixels(7), "test/b/1.png": pixels(8), "test/b/2.png": pixels(9)})
    data = load(f"folder:{root}", data_dir=tmp_path)
    assert data.source == "folder:f" and len(data.test) == 3


def test_grey_stays_grey_until_one_image_has_colour(tmp_path):
    grey = pixels(0, (4, 4))
    root = make(tmp_path / "f", {"train/a/1.png": grey, "train/b/1.png": grey, "test/a/1.png": grey,
                                 "test/b/1.png": grey})
    data = load(f"folder:{root}", data_dir=tmp_path)
    assert data.image_shape == (1, 4, 4) and np.array_equal(data.train.images[0, 0].numpy(), grey)
    make(root, {"test/b/1.png": pixels(1, (4, 4, 3))})
    data = load(f"folder:{root}", data_dir=tmp_path)
    assert data.image_shape == (3, 4, 4)
    assert all(np.array_equal(data.train.images[0, channel].numpy(), grey) for channel in range(3))


def test_palettes_and_transparency_become_rgb(tmp_path):
    opaque = pixels(0, (4, 4, 4))
    root = make(tmp_path / "f", {"train/a/1.png": opaque, "test/a/1.png": opaque})
    Image.fromarray(np.full((4, 4, 3), (255, 0, 0), np.uint8)).convert("P").save(root / "train/a/2.png")
    data = load(f"folder:{root}", data_dir=tmp_path)
    assert np.array_equal(data.train.images[0].numpy(), opaque[..., :3].transpose(2, 0, 1))
    assert data.train.images[1, :, 0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("shape", [(20, 40, 3), (40, 20, 3), (31, 17, 3), (17, 31, 3), (8, 8, 3), (3, 5, 3)])
def test_resizing_keeps_the_proportions_and_cuts_the_centre(tmp_path, shape):
    other = pixels(1, (8, 8, 3))
    root = make(tmp_path / "f", {"train/a/1.png": pixels(0, shape), "test/a/1.png": other})
    data = load(f"folder:{root}?size=8", data_dir=tmp_path)
    assert data.image_shape == (3, 8, 8) and data.source == "folder:f?size=8"
    assert np.array_equal(data.test.images[0].numpy(), other.transpose(2, 0, 1))
    # Against torch's own antialiased bilinear resize, from which Pillow differs by rounding twice.
    height, width = shape[:2]
    size = round(height * 8 / min(height, width)), round(width * 8 / min(height, width))
    image = torch.from_numpy(pixels(0, shape)).permute(2, 0, 1)[None].float()
    resized = torch.nn.functional.interpolate(image, size, mode="bilinear", antialias=True)
    top, left = (size[0] - 8) // 2, (size[1] - 8) // 2
    assert (resized[0, :, top:top + 8, left:left + 8] - data.train.images[0].float()).abs().max() <= 1.01


def test_jpegs_are_decoded_as_pillow_does(tmp_path):
    root = make(tmp_path / "f", {"train/a/1.jpg": pixels(0, (16, 16, 3)), "test/a/1.JPEG": pixels(1, (16, 16, 3))})
    data = load(f"folder:{root}", data_dir=tmp_path)
    with Image.open(root / "train/a/1.jpg") as image:
        assert np.array_equal(data.train.images[0].numpy(), np.asarray(image).transpose(2, 0, 1))


def test_links_within_the_folder_are_followed(tmp_path):
    root = small(tmp_path / "f")
    (root / "train/b/2.png").symlink_to(root / "train/a/2.png")
    (tmp_path / "link").symlink_to(root)
    data = load(f"folder:{tmp_path}/link", data_dir=tmp_path)
    assert data.train.labels.tolist() == [0, 0, 1, 1, 1]
    assert torch.equal(data.train.images[4], data.train.images[0])


def test_many_images_keep_their_places(tmp_path):
    """More than the threads take at a time."""
    files = {f"{part}/{label}/{number:03}.png": np.full((2, 2), number * 2 + label, np.uint8)
             for part in ("train", "test") for label in (0, 1) for number in range(100)}
    data = load(f"folder:{make(tmp_path / 'f', files)}", data_dir=tmp_path)
    want = [number * 2 + label for label in (0, 1) for number in range(100)]
    assert data.train.images[:, 0, 0, 0].tolist() == want and data.test.images[:, 0, 1, 1].tolist() == want


# --- the cache

@pytest.fixture
def cached(tmp_path, monkeypatch):
    """(folder, load it, the cache file, how often it was decoded)."""
    from common.data import folder

    root = small(tmp_path / "f")
    decoded = []
    original = folder._decoded
    monkeypatch.setattr(folder, "_decoded", lambda *given: decoded.append(1) or original(*given))

    def again(option: str = ""):
        return load(f"folder:{root}{option}", data_dir=tmp_path / "data")

    first = again()
    (cache,) = (tmp_path / "data/.cache").iterdir()
    return root, again, cache, decoded, first


def test_decoded_images_are_cached(cached):
    _, again, cache, decoded, first = cached
    second = again()
    assert len(decoded) == 1 and cache.name.startswith("f-") and cache.suffix == ".npz"
    assert second.describe() == first.describe()
    assert torch.equal(second.train.images, first.train.images) and second.train.images.is_contiguous()


def test_a_changed_folder_is_decoded_again(cached):
    root, again, cache, decoded, first = cached
    path = root / "train/a/2.png"
    status = path.stat()
    make(root, {"train/a/2.png": pixels(99)})
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert again().train.fingerprint != first.train.fingerprint and len(decoded) == 2
    path.rename(root / "train/b/3.png")
    assert again().train.labels.tolist() == [0, 1, 1, 1] and len(decoded) == 3
    assert again("?size=5").image_shape == (3, 5, 5) and len(decoded) == 4
    assert cache.exists() and len(list(cache.parent.iterdir())) == 4


@pytest.mark.parametrize("how", ["cut", "empty", "text", "bit", "foreign", "other shape", "floats"])
def test_a_torn_or_foreign_cache_is_made_again(cached, how):
    _, again, cache, decoded, first = cached
    whole = cache.read_bytes()
    key = str(np.load(cache)["key"])
    if how == "cut":
        cache.write_bytes(whole[:len(whole) // 2])
    elif how == "empty":
        cache.write_bytes(b"")
    elif how == "text":
        cache.write_bytes(b"no cache")
    elif how == "bit":                      # in the middle of the pixels
        position = whole.index(first.train.images.numpy().tobytes()) + 7
        cache.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1:])
    elif how == "foreign":
        folder_cache.write(cache, "0" * 64, [first.train.images.numpy(), first.test.images.numpy()])
    elif how == "other shape":
        folder_cache.write(cache, key, [first.train.images.numpy()[:1], first.test.images.numpy()])
    else:
        folder_cache.write(cache, key, [first.train.images.float().numpy(), first.test.images.numpy()])
    assert again().describe() == first.describe() and len(decoded) == 2
    again()
    assert len(decoded) == 2                # and is sound again
    assert [path.name for path in cache.parent.iterdir()] == [cache.name]


def test_data_can_be_used_where_no_cache_can_be_written(tmp_path, capsys):
    root = small(tmp_path / "f")
    (tmp_path / "file").touch()
    data = load(f"folder:{root}", data_dir=tmp_path / "file")
    assert len(data.train) == 4
    said = capsys.readouterr().err
    assert f"note: the images will be decoded again next time: cannot write {tmp_path}/file/.cache" in said


def test_the_first_images_are_a_sample_of_all_classes(tmp_path, monkeypatch):
    names = {f"{part}/{label}/{number}.png": pixels(100 * label + number)
             for part in ("train", "test") for label in range(4) for number in range(8)}
    root = make(tmp_path / "classes", names)
    plain = load(f"folder:{root}", data_dir=tmp_path)
    monkeypatch.undo()
    mixed = load(f"folder:{root}", data_dir=tmp_path)
    for part, whole in ((mixed.train, plain.train), (mixed.test, plain.test)):
        assert set(part.labels[:12].tolist()) == {0, 1, 2, 3} and whole.labels[:8].tolist() == [0] * 8
        order = torch.from_numpy(splits.fixed_order(32))
        assert torch.equal(part.images, whole.images[order]) and torch.equal(part.labels, whole.labels[order])
