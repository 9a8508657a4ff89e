"""The readers of data sets as targets."""

import io
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from common.data import load
from common.data.corruption_files import CorruptionFiles
from common.data.ddpm import load_extra
from common.fuzz import Target
from common.fuzz.mutations import damage, damage_text, damage_zip, disturb, rewrite

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".gif": "GIF", ".bmp": "BMP", ".tif": "TIFF", ".webp": "WEBP", ".ppm": "PPM"}


def images(count: int, side: int = 4) -> np.ndarray:
    """uint8 (count,side,side,3), the same at every call."""
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)


def make_npz(folder: Path) -> None:
    np.savez(folder / "a.npz", train_images=images(4), train_labels=np.arange(4) % 2, test_images=images(2),
             test_labels=np.arange(2), class_names=np.array(["a", "b"]), test_exact=np.ones(2, bool))


def make_extra(folder: Path) -> None:
    np.savez(folder / "a.npz", image=images(4), label=np.arange(4) % 2, source=np.array("made"))
    np.save(folder / "index.npy", np.array([2, 0, 1]))


def mutate_extra(random: Random, folder: Path) -> None:
    if random.randrange(3):
        rewrite(random, folder / "a.npz", damage_zip)
    else:
        rewrite(random, folder / "index.npy", random.choice((damage, damage_text)))


def load_all(folder: Path) -> None:
    extra = load_extra([folder / "a.npz"], classes=2, image_shape=(3, 4, 4), index=folder / "index.npy",
                       cache=folder / "cache")
    extra.gather(np.arange(len(extra))[:8], np.empty((min(8, len(extra)), 4, 4, 3), np.uint8))


def make_folder(folder: Path) -> None:
    endings = list(FORMATS)
    for number, place in enumerate(("train/a/1", "train/a/2", "train/b/1", "train/b/2", "train/b/3", "test/a/1",
                                    "test/b/1")):
        path = folder / f"{place}{endings[number]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images(7)[number]).save(path, FORMATS[path.suffix])


def make_tiny(folder: Path) -> None:
    root = folder / "tiny-imagenet-200"
    packed = io.BytesIO()
    Image.fromarray(images(1, 64)[0]).save(packed, "JPEG")
    lines = []
    for wnid in ("n01443537", "n01629819"):
        (root / "train" / wnid / "images").mkdir(parents=True)
        (root / "train" / wnid / "images" / f"{wnid}_0.JPEG").write_bytes(packed.getvalue())
        (root / "val" / "images").mkdir(parents=True, exist_ok=True)
        (root / "val" / "images" / f"{wnid}.JPEG").write_bytes(packed.getvalue())
        lines.append(f"{wnid}.JPEG\t{wnid}\t0\t0\t63\t63\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    (root / "wnids.txt").write_text("n01443537\nn01629819\n")
    (root / "words.txt").write_text("n01443537\tgoldfish\nn01629819\tsalamander\n")


def make_corruptions(folder: Path) -> None:
    np.save(folder / "fog.npy", images(10))
    np.save(folder / "labels.npy", np.tile(np.arange(2), 5))


def mutate_corruptions(random: Random, folder: Path) -> None:
    if random.randrange(3) == 0:
        return disturb(random, folder)
    rewrite(random, folder / random.choice(("fog.npy", "labels.npy")), random.choice((damage, damage_text)))


def load_corruptions(folder: Path) -> None:
    files = CorruptionFiles(folder, "CIFAR-10-C", ("fog",))
    files.check_fits(np.arange(2), (3, 4, 4))
    files.images("fog", 5, slice(0, 2))


TARGETS = (
    Target("npz", make_npz, lambda random, folder: rewrite(random, folder / "a.npz", damage_zip),
           lambda folder: load(f"npz:{folder}/a.npz")),
    Target("extra", make_extra, mutate_extra, load_all, may_write=("cache",)),
    Target("folder", make_folder, disturb, lambda folder: load(f"folder:{folder}", data_dir=folder / "data"),
           may_write=("data",)),
    Target("tiny-imagenet", make_tiny, disturb, lambda folder: load("tiny-imagenet?subset", data_dir=folder),
           may_write=(".cache",)),
    Target("corruptions", make_corruptions, mutate_corruptions, load_corruptions),
)
