"""The 1,797 real handwritten digits (8x8) that come with scikit-learn: no network, no file."""

import hashlib

import numpy as np

from common.data.npz import checked_split
from common.data.splits import DataSet

TEST_IMAGES = 400


def load_digits() -> DataSet:
    """1,397 training and 400 test images, uint8 (N,1,8,8), 10 classes, the split stratified and always the same.

    The values 0..16 become 0..255, rounded.  Which images are test images is decided by a hash of their position, so
    that it depends on no library's random numbers.
    """
    from sklearn.datasets import load_digits as sklearn_digits

    bunch = sklearn_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    labels = bunch.target.astype(np.int64)
    test = np.zeros(len(labels), dtype=bool)
    for label, count in enumerate(_test_counts(np.bincount(labels))):
        members = sorted(np.flatnonzero(labels == label).tolist(), key=_shuffled)
        test[members[:count]] = True
    return DataSet("digits", checked_split(images[~test], labels[~test], "digits: train_"),
                   checked_split(images[test], labels[test], "digits: test_"), 10,
                   tuple(str(digit) for digit in range(10)),
                   "scikit-learn's digits, 400 of the 1797 as test, stratified")


def _shuffled(position: int) -> str:
    return hashlib.sha256(f"digits {position}".encode()).hexdigest()


def _test_counts(sizes: np.ndarray) -> np.ndarray:
    """TEST_IMAGES shared over the classes by size, by largest remainders."""
    exact = sizes * TEST_IMAGES / sizes.sum()
    counts = np.floor(exact).astype(int)
    short = TEST_IMAGES - counts.sum()
    counts[np.argsort(counts - exact, kind="stable")[:short]] += 1
    return counts
