"""Data sets turned grey, for networks of one channel: Pillow's L (luma), rounded as Pillow does it."""

from dataclasses import replace

import torch
from torch import Tensor

from common.data.splits import DataSet, Split
from common.data.transforms import grey

CHUNK = 4096                                 # images at a time: grey needs 4 bytes a value


def grey_images(images: Tensor) -> Tensor:
    """uint8 (N,C,H,W), C 1 or 3 -> (N,1,H,W); of one channel themselves."""
    if images.shape[1] == 1:
        return images
    return torch.cat([grey(part).to(torch.uint8) for part in images.split(CHUNK)])


def in_grey(data: DataSet) -> DataSet:
    """The data set in grey, and its `source` says so; one of one channel itself."""
    if data.image_shape[0] == 1:
        return data
    train, test = (Split(grey_images(split.images), split.labels, split.note) for split in (data.train, data.test))
    return replace(data, train=train, test=test, source=f"{data.source}, turned grey")
