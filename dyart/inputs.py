"""What a run trains on: the released splits of the data, and the burn-in checkpoint that it starts from."""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.checkpoint import load_weights
from common.data import DataSet, Split, hold_out
from common.environment import portable
from common.errors import UserError
from common.experiment import load_data
from common.files import sha256_of
from dyart.flags import data_spec
from dyart.settings import BURN_IN, VALIDATION, Settings, run_name


@dataclass(frozen=True)
class Images:
    """data: training images (validation taken off) and test images; validation; left_out: what n_train leaves out;
    released_total: the number of training images that the released code counts an epoch's steps by."""

    data: DataSet
    validation: Split
    left_out: Split | None
    released_total: int


def load_images(settings: Settings, args: argparse.Namespace) -> Images:
    """The data set, split as released.  CIFAR: the first 1,024 training images validate.  Tiny-ImageNet: the last
    10,000 of a fixed permutation, in which they are loaded.  A smaller data set gives at most a tenth of its images.
    """
    data = load_data(data_spec(args), args.data_dir, held_out=settings.hold_out)
    count = len(data.train)
    if settings.data == "tiny-imagenet":
        size = min(10_000, count // 10)
        held = list(range(count - size, count))              # the loader's order is the released permutation
    else:
        held = list(range(max(1, min(VALIDATION, count // 10))))
    train, validation = hold_out(data.train, indices=held)
    left_out, total = None, count
    if settings.n_train is not None:
        if settings.n_train < len(train):
            left_out = train.subset(torch.arange(settings.n_train, len(train)))
        train, total = train.subset(settings.n_train), settings.n_train
    return Images(replace(data, train=train), validation, left_out, total)


def describe_network(settings: Settings, data: DataSet) -> dict[str, Any]:
    """What `common.experiment.build_network` takes."""
    described: dict[str, Any] = {"name": settings.model, "classes": data.classes, "channels": data.image_shape[0]}
    if settings.width is not None:
        described["width"] = settings.width
    if settings.GroupNorm:
        described["norm"] = "group"
    if settings.normalise is not None:
        described["normalise"] = [list(part) for part in settings.normalise]
    return described


def find_burn_in(settings: Settings, args: argparse.Namespace, budget: str, weights: Path
                 ) -> tuple[Path | None, dict[str, str]]:
    """The checkpoint of --pretrained, and {run or file name: sha256} for the record; UserError where there is none.

    weights: folder of the data set's runs.  A run's name or folder means its released epoch's weights (10.pt, Tiny
    20.pt), else its average; `auto` the burn-in of the same budget and seed.
    """
    asked = args.pretrained
    if asked is None:
        return None, {}
    if Path(asked).is_file():
        return Path(asked), {Path(asked).name: sha256_of(Path(asked))}
    run = asked
    if asked == "auto":
        run = run_name("clean", settings.variant, budget, settings.seed)
    names = [f"{BURN_IN.get(settings.data, 10)}.pt", "average.pt"]
    folders = [weights / Path(run).name, weights.with_name(weights.name.removesuffix("-extra")) / Path(run).name]
    found = next((folder / name for folder in folders for name in names if (folder / name).is_file()), None)
    if found is None:
        script = "TinyImgNet" if settings.data == "tiny-imagenet" else "Cifar10"
        mending = (f"make it with: bash dyart/scripts/{script}_clean_training.sh (same --data, --model, --GroupNorm, "
                   "--budget, --seed), or name a checkpoint with --pretrained FILE")
        raise UserError(f"the burn-in checkpoint is missing: there is no {folders[0] / names[0]}; "
                        f"{mending}", code="E-BURN-IN")
    return found, {found.parent.name: sha256_of(found)}


def load_burn_in(network: nn.Module, path: Path) -> None:
    """Load the averaged weights; UserError where architecture or norm layers differ."""
    print(f"starts from {portable(str(load_weights(network, path)))}")
