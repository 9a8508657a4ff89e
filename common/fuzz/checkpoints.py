"""The readers of checkpoints as targets."""

from pathlib import Path
from random import Random

import torch
from torch import nn

from common.checkpoint import load_tree, load_weights
from common.fuzz import Target
from common.fuzz.mutations import damage, damage_zip, rewrite
from common.safetensor_files import write_tensors

FILES = {True: "a.pt", False: "old.pt"}        # by whether it is zipped


def network() -> nn.Module:
    """A small network, always of the same weights."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def make_checkpoint(folder: Path, *, zipped: bool) -> None:
    state = network().state_dict()
    torch.save({"state_dict": state, "ema": dict(state), "epoch": 3, "args": {"lr": 0.1}}, folder / FILES[zipped],
               _use_new_zipfile_serialization=zipped)


def damage_old(random: Random, content: bytes) -> bytes:
    """Mostly of the pickles, which stand before the values."""
    end = content.find(b"e.") + 2 if random.randrange(4) else len(content)
    return damage(random, content[:end]) + content[end:]


def load_checkpoint(path: Path) -> None:
    """As what a run needs to go on, then as a network's weights."""
    load_tree(path)
    load_weights(network(), path)


TARGETS = (
    Target("checkpoint", lambda folder: make_checkpoint(folder, zipped=True),
           lambda random, folder: rewrite(random, folder / "a.pt", damage_zip),
           lambda folder: load_checkpoint(folder / "a.pt")),
    Target("checkpoint-old", lambda folder: make_checkpoint(folder, zipped=False),
           lambda random, folder: rewrite(random, folder / "old.pt", damage_old),
           lambda folder: load_checkpoint(folder / "old.pt")),
    Target("safetensors", lambda folder: write_tensors(folder / "a.safetensors", network().state_dict(), {"a": "b"}),
           lambda random, folder: rewrite(random, folder / "a.safetensors"),
           lambda folder: load_checkpoint(folder / "a.safetensors")),
)
