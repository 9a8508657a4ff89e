"""What a run keeps of its similarities: those of the first regularisation images, before training and of the weights
that are judged, beside their pixels' and their targets.  The figures are drawn from it."""

from pathlib import Path

import numpy as np
import torch

from brainreg.network import PairResNet, similarity_matrix
from brainreg.pairs import PairBatches
from brainreg.similarity import boosted
from common.files import replacing

FILE = "similarities.npz"
OBSERVED = 64                                  # M, images


def network_similarities(network: PairResNet, batches: PairBatches) -> np.ndarray:
    """s (M,M) float32 in [-1,1] of the first M = 64 (or all) regularisation images, in eval mode; the network stays on
    its device and in its mode."""
    device = network.layer_weight.device
    return similarity_matrix(network, batches.images[:OBSERVED].to(device)).cpu().numpy()


def write_similarities(path: Path, batches: PairBatches, before: np.ndarray, after: np.ndarray) -> None:
    """Write an npz of positions (M,) int64, among the run's shuffled regularisation images, and float32 (M,M) each:
    pixel: S; target: S^Th, or S where nothing is boosted; before, after: see `network_similarities`.

    ValueError if the matrices are of other numbers of images.
    """
    pixel = batches.similarity[:OBSERVED, :OBSERVED]
    target = pixel if batches.boost is None else boosted(pixel, batches.threshold, batches.boost)
    arrays = {"pixel": pixel.numpy(), "target": target.numpy(), "before": before, "after": after}
    if unfit := [name for name, array in arrays.items() if array.shape != tuple(pixel.shape)]:
        raise ValueError(f"{unfit[0]} is {arrays[unfit[0]].shape}, of {len(pixel)} images")
    with replacing(path) as temporary, open(temporary, "wb") as stream:
        np.savez_compressed(stream, positions=torch.arange(len(pixel)).numpy(),
                            **{name: array.astype(np.float32) for name, array in arrays.items()})
