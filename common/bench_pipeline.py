"""The input pipeline as the originals have it, beside `common.data.Batches`: random crop, flip, batches on the device.

Released: a DataLoader over torchvision's data set, PIL transforms; workers: 1 in AdaRAT (data/load_cifar10.py) and
brainreg (utils.py), 2 in AdaRAT's Generalist, 8 in consistency-adversarial, of which RPAT's part 1 is made
(common/train.py).  One is taken, which lives on from epoch to epoch; that spares them restarts.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from common.benchmark import Timings, repeat, rounds, summary
from common.data.batches import Batches
from common.data.splits import Split
from common.engine import Engine


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A block of the originals' is `loads` batches, of ours ten times as many, to be long enough to time."""

    rounds: int
    limit: float | None = None
    matrix: int = 0
    batch: int = 128
    loads: int = 40
    images: int = 50_000
    size: int = 32


class PILImages(Dataset):
    """(N,H,W,3) uint8 in memory, handed out as the originals' data sets do: PIL image, transforms, float tensor."""

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        self.images, self.labels = images, labels
        self.transform = transforms.Compose([transforms.RandomCrop(images.shape[1], padding=4),
                                             transforms.RandomHorizontalFlip(), transforms.ToTensor()])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


def originals(split: Split, batch: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Their batches on the device, without end."""
    data = PILImages(split.images.cpu().permute(0, 2, 3, 1).contiguous().numpy(), split.labels.cpu().numpy())
    loader = DataLoader(data, batch, shuffle=True, num_workers=1, drop_last=True, persistent_workers=True,
                        pin_memory=device.type == "cuda")
    while True:
        for x, y in loader:
            yield x.to(device, non_blocking=True), y.to(device, non_blocking=True)


def our_batches(split: Split, batch: int, engine: Engine, **changes: Any) -> Batches:
    """Our batches, cropped and flipped on the device."""
    return Batches(split.to(engine.device), batch, **{"seed": 0, "crop": 4, "flip": True, "drop_last": True,
                                                      "channels_last": engine.channels_last, **engine.shares,
                                                      **changes})


def ours(split: Split, batch: int, engine: Engine) -> Iterator[tuple[Tensor, Tensor]]:
    """The same, without end."""
    batches, epoch = our_batches(split, batch, engine), 0
    while True:
        for one in batches.epoch(epoch):
            yield one.x, one.y
        epoch += 1


def measure(settings: Settings, engine: Engine) -> list[dict[str, Any]]:
    """Batches on the device and nothing else."""
    generator = torch.Generator().manual_seed(1)
    split = Split(torch.randint(0, 256, (settings.images, 3, settings.size, settings.size), dtype=torch.uint8,
                                generator=generator), torch.randint(0, 10, (settings.images,), generator=generator))
    device, images = engine.device, settings.loads * settings.batch
    old, new = Timings(images), Timings(10 * images)
    theirs, mine = originals(split, settings.batch, device), ours(split, settings.batch, engine)
    repeat(10, next, mine)
    for _ in rounds(settings):
        repeat(3, next, theirs)                     # what the worker had made ready while it was not its turn
        old.time(device, lambda: repeat(settings.loads, next, theirs))
        new.time(device, lambda: repeat(10 * settings.loads, next, mine))
    title = f"input pipeline alone, {settings.size}x{settings.size}: random crop, flip"
    return [summary("input-pipeline", title, settings.batch, old, new)]


ROWS = {"input-pipeline": measure}


def notes(settings: dict[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    """What one must know to read the row."""
    return ["input pipeline, originals: a DataLoader with one worker (as AdaRAT and brainreg; others have 2 or 8) and "
            "PIL transforms; ours: bytes on the device, cropped and flipped there"]
