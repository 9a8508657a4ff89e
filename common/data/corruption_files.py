"""The files of CIFAR-10-C and CIFAR-100-C (Hendrycks and Dietterich 2019): corrupted test images, memory-mapped.

Shape letters: n test images, C channels, H and W pixels; images are uint8, in files NHWC, elsewhere NCHW.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from common.data.grey import grey_images
from common.data.unchanged import Seen
from common.errors import UserError
from common.files import sha256_of
from common.inputs import check_is_file
from common.npz_files import UNREADABLE, mapped_npy

SEVERITIES = 5


@dataclass(frozen=True)
class CorruptionFiles:
    """A folder with NAME.npy for each of `names`, uint8 (5n,H,W,3), severity 1 first, and labels.npy (5n,), integers.

    name: what the set is called in records; grey: its images are handed out in grey (Pillow's L), for networks of one
    channel.  The images are memory-mapped.  Opening it checks every file's header and the labels: a missing file,
    another dtype or length is a UserError.
    """

    folder: Path
    name: str
    names: tuple[str, ...]
    grey: bool = False
    _maps: dict[str, np.ndarray] = field(default_factory=dict, repr=False)
    _seen: dict[str, Seen] = field(default_factory=dict, repr=False)
    _digests: dict[str, str] = field(default_factory=dict, repr=False)

    def __post_init__(self):
        if not self.folder.is_dir():
            raise UserError(f"{self.folder} is no folder: unpack {self.name}.tar there", code="E-CORRUPTION-FILES")
        missing = [f"{name}.npy" for name in (*self.names, "labels") if not (self.folder / f"{name}.npy").is_file()]
        if missing:
            raise UserError(f"{self.folder} lacks {', '.join(missing[:4])}{' ...' if len(missing) > 4 else ''} "
                            f"({len(missing)} of {len(self.names) + 1} files): unpack {self.name}.tar again",
                            code="E-CORRUPTION-FILES")
        labels = self._open("labels")
        if labels.ndim != 1 or labels.dtype.kind not in "iu" or len(labels) == 0 or len(labels) % SEVERITIES:
            raise UserError(f"{self.folder}/labels.npy is {labels.dtype} {labels.shape}: labels are integers, five "
                            "times as many as test images", code="E-CORRUPTION-FILES")
        if (labels.reshape(SEVERITIES, -1) != labels[:len(labels) // SEVERITIES]).any():
            raise UserError(f"{self.folder}/labels.npy has other labels in other severities: it is damaged; unpack "
                            f"{self.name}.tar again", code="E-CORRUPTION-FILES")
        for name in self.names:
            images = self._open(name)
            if images.dtype != np.uint8 or images.ndim != 4 or len(images) != len(labels) or images.shape[3] != 3:
                raise UserError(f"{self.folder}/{name}.npy is {images.dtype} {images.shape}, not uint8 ({len(labels)}, "
                                f"height, width, 3): unpack {self.name}.tar again", code="E-CORRUPTION-FILES")

    def _open(self, name: str) -> np.ndarray:
        if name not in self._maps:
            check_is_file(self.folder / f"{name}.npy")
            try:
                self._seen[name] = Seen.now(self.folder / f"{name}.npy")
                self._maps[name] = mapped_npy(self.folder / f"{name}.npy")
            except UNREADABLE as error:
                raise UserError(f"{self.folder}/{name}.npy cannot be read as an array ({error}): it is damaged or "
                                f"half copied; unpack {self.name}.tar again", code="E-CORRUPTION-FILES") from error
        return self._maps[name]

    @property
    def labels(self) -> np.ndarray:
        """int64 (n,): of the test images."""
        labels = self._open("labels")
        return np.asarray(labels[:len(labels) // SEVERITIES], np.int64)

    def images(self, name: str, severity: int, where: slice) -> np.ndarray:
        """uint8 (B,C,H,W): the test images at the positions `where`, corrupted.  UserError where the file has changed
        since it was opened."""
        self._seen[name].check()
        images, count = self._open(name), len(self.labels)
        of_severity = images[(severity - 1) * count:severity * count]
        channels_first = np.ascontiguousarray(of_severity[where].transpose(0, 3, 1, 2))
        return grey_images(torch.from_numpy(channels_first)).numpy() if self.grey else channels_first

    def sha256(self, name: str) -> str:
        """Hex digest of a file, read once."""
        if name not in self._digests:
            self._digests[name] = sha256_of(self.folder / f"{name}.npy")
        return self._digests[name]

    def check_fits(self, labels: np.ndarray, shape: tuple[int, ...]) -> None:
        """UserError unless these are the labels (N,) and the shape (C,H,W) of the files' test images, in order."""
        sizes = {name: self._open(name).shape[1:] for name in self.names}
        for name, (height, width, channels) in sizes.items():
            if (1 if self.grey else channels, height, width) != tuple(shape):
                raise UserError(f"{self.folder}/{name}.npy has images of {height}x{width}x{channels}, the test images "
                                f"are {shape[1]}x{shape[2]}x{shape[0]}: they are of another data set",
                                code="E-CORRUPTION-OTHER")
        if not np.array_equal(self.labels, labels):
            raise UserError(f"{self.folder}/labels.npy is not what the test images are labelled ({len(self.labels)} "
                            f"labels for {len(labels)} images, or another order): {self.name} goes with the whole "
                            "test set in its original order", code="E-CORRUPTION-OTHER")
