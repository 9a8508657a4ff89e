"""Checkpoints that are no run of ours: the original repository's folders, and files that stand alone.  No torch here.

A folder of the original holds args.txt (JSON, the flags of its training) beside val_best.pt, test_best.pt,
latest_checkpoint.pt and N.pt; the averaged network, which its authors evaluate, is the part `wa_model` of each.
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.environment import ROOT, portable
from common.errors import UserError
from common.files import read_json
from common.flags import boolean, number
from common.inputs import check_is_file
from dyart.flags import our_model
from dyart.settings import PROTOCOLS, Settings

FILES = {"best": "val_best.pt", "test-best": "test_best.pt", "last": "latest_checkpoint.pt"}
# What of a training's flags decides the network, the images and the paper's plan: name in args.txt -> its reader.
READERS: dict[str, Callable[[str], Any]] = {
    "model": our_model, "data": str, "GroupNorm": boolean, "normalize": boolean, "attack": str, "attack_eps": number,
    "attack_step": number, "seed": int}


@dataclass(frozen=True)
class Checkpoint:
    """file: the weights.  settings: of its training, as args.txt says, or as the flags say where there is none.
    data: the training's --data as typed.  by_flags: whether it was the flags.  told: what said the settings."""

    file: Path
    settings: Settings
    data: str
    by_flags: bool
    told: str


def find(text: str, checkpoint: str | None, flags: Mapping[str, Any]) -> Checkpoint | None:
    """The checkpoint that a file's or an original folder's name stands for, seen from here or from the repository root.

    checkpoint: best (default), last, test-best or N, of a folder.  flags: the training's flags, used where no args.txt
    stands beside a file.  None where the path is neither a file nor a folder of the original.
    """
    check_is_file(text)
    for base in (Path(text), ROOT / text):
        if base.is_file():
            return described(base, flags)
        if (base / "args.txt").is_file() or any((base / name).is_file() for name in FILES.values()):
            wanted = checkpoint or "best"
            file = base / FILES.get(wanted, f"{wanted}.pt")
            if not file.is_file():
                there = ", ".join(sorted(path.name for path in base.glob("*.pt"))) or "none"
                raise UserError(f"{text} has no {file.name}; checkpoints there: {there}: choose with --checkpoint "
                                "best, last, test-best or a number", code="E-CHECKPOINT-MISSING")
            return described(file, flags)
    return None


def described(file: Path, flags: Mapping[str, Any]) -> Checkpoint:
    """A checkpoint with the settings of its training."""
    beside = file.parent / "args.txt"
    saved = read_json(beside) if beside.is_file() else None
    if saved is not None and not isinstance(saved, dict):
        raise UserError(f"{beside} is not the JSON object that the original's training writes", code="E-RECORD")
    given = flags if saved is None else saved
    told = "the flags (there is no args.txt beside the file)" if saved is None else portable(str(beside))
    known = {}
    for name, read in READERS.items():
        if given.get(name) is not None:
            try:
                known[name] = read(str(given[name]))
            except (ValueError, argparse.ArgumentTypeError) as error:
                raise UserError(f"{told}: {name} {given[name]!r}: {error}", code="E-RECORD") from error
    data = known.pop("data", "cifar10s")
    protocol = PROTOCOLS.get(data, data.partition("?")[0])
    settings = Settings(data=protocol, width=flags.get("width"), **known)
    return Checkpoint(file, settings, data, by_flags=saved is None, told=told)
