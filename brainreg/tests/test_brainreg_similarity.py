"""Pixel similarities, targets and pairs: the released code's values, a float64 reference, and brute force."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from brainreg.similarity import RANGES, boosted, pairs_in_range, pixel_similarity
from common.errors import UserError

GRID = [sixteenth / 16 for sixteenth in range(-16, 17)]              # exact in float32, so that limits are met exactly


def symmetric(values, images):
    """A matrix (N,N) with ones on its diagonal and `values` above it, row by row."""
    matrix = torch.eye(images)
    for value, (i, j) in zip(values, combinations(range(images), 2), strict=True):
        matrix[i, j] = matrix[j, i] = value
    return matrix


def by_a_loop(matrix, kind, threshold, second):
    """The pairs as the paper's file says them, one by one."""
    values = matrix.tolist()
    pairs = {pair: values[pair[0]][pair[1]] for pair in combinations(range(len(values)), 2)}
    high = [pair for pair, s in pairs.items() if s > threshold]
    negative = [pair for pair, s in pairs.items() if s < -threshold]
    low = [pair for pair, s in pairs.items() if abs(s) < threshold]
    least = [pair for pair, s in pairs.items() if abs(s) < second]
    outer = [pair for pair, s in pairs.items() if abs(s) > threshold]
    return {"all": list(pairs), "high": high + negative, "low": low, "positive": high + low,
            "negative": negative + low, "high_positive": high, "double": least + outer}[kind]


class Allocated(TorchDispatchMode):
    """Bytes of all tensors that operations in the block return."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.bytes += out.nbytes if isinstance(out, torch.Tensor) else 0
        return out


# --- similarities and targets ---

def test_similarity_of_the_released_code(golden):
    found = pixel_similarity(golden["brainreg/images"])
    torch.testing.assert_close(found, golden["brainreg/similarity"], rtol=0, atol=1e-6)
    assert found.dtype == torch.float32


@pytest.mark.parametrize("threshold", [0.2, 0.4, 0.6])
def test_targets_of_the_released_code(golden, threshold):
    assert torch.equal(boosted(golden["brainreg/similarity"], threshold), golden[f"brainreg/boosted_th{threshold}"])


@pytest.mark.parametrize("shape", [(40, 1, 9, 7), (40, 3, 8, 8), (5, 3, 16, 16)])
def test_similarity_equals_a_float64_reference(shape):
    images = np.random.default_rng(0).uniform(0, 1, shape).astype(np.float32)
    grey = images.astype(np.float64).sum(1).reshape(shape[0], -1) / shape[1]
    apart = grey - sum(grey) / shape[0]
    reference = np.array([[(a @ b) / np.sqrt((a @ a) * (b @ b)) for b in apart] for a in apart])
    found = pixel_similarity(torch.from_numpy(images))
    np.testing.assert_allclose(found.numpy(), reference, atol=2e-6)
    np.testing.assert_allclose(pixel_similarity(torch.from_numpy(images).double()).numpy(), reference, atol=1e-12)


def test_similarity_knows_no_scale():
    images = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(pixel_similarity(5 * (images - 0.5)), pixel_similarity(images), rtol=0, atol=1e-5)


def test_an_image_that_is_the_mean_image_is_similar_to_none():
    images = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.5, 0.5]])[:, None, None]
    torch.testing.assert_close(pixel_similarity(images), torch.tensor([[1.0, -1, 0], [-1, 1, 0], [0, 0, 0]]))


def test_targets_at_the_threshold_and_of_another_size():
    values = torch.tensor([-1.0, -0.75, -0.5, 0.0, 0.5, 0.75, 1.0])
    assert boosted(values, 0.5).tolist() == [-1, -1, 0, 0, 0, 1, 1]
    assert boosted(values, 0.75, 0.9).tolist() == pytest.approx([-0.9, 0, 0, 0, 0, 0, 0.9])
    assert boosted(values.double(), 0.5).dtype == torch.float64


# --- pairs ---

@pytest.mark.parametrize("kind", RANGES)
def test_pairs_of_the_released_code_in_their_order(golden, kind):
    found = pairs_in_range(golden["brainreg/similarity"], kind, 0.3, 0.1)
    assert torch.equal(found, golden[f"brainreg/pairs_{kind}_th0.3_th2_0.1"])


@settings(max_examples=60, deadline=None)
@given(data=st.data(), images=st.integers(2, 9), kind=st.sampled_from(list(RANGES)),
       threshold=st.sampled_from([0.125, 0.5, 0.875]), second=st.sampled_from([0.0625, 0.5, 0.9375]))
def test_pairs_equal_brute_force(data, images, kind, threshold, second):
    count = images * (images - 1) // 2
    matrix = symmetric(data.draw(st.lists(st.sampled_from(GRID), min_size=count, max_size=count)), images)
    wanted = by_a_loop(matrix, kind, threshold, second)
    found = pairs_in_range(matrix, kind, threshold, second, boosted=False, at_least=0)
    assert found.dtype == torch.int64 and found.shape == (len(wanted), 2)
    assert [tuple(pair) for pair in found.tolist()] == wanted


def test_a_pair_in_both_halves_of_double_counts_twice():
    matrix = symmetric([0.5, 0.1, -0.9], 3)
    assert pairs_in_range(matrix, "double", 0.25, 0.75, boosted=False).tolist() == [[0, 1], [0, 2], [0, 1], [1, 2]]


def test_all_pairs_of_many_images():
    assert pairs_in_range(torch.zeros(51, 51), "all", 0.8).shape == (1275, 2)


@pytest.mark.slow
def test_all_pairs_of_the_papers_5000_images():
    assert pairs_in_range(torch.zeros(5000, 5000), "all", 0.8).shape == (12_497_500, 2)


@pytest.mark.parametrize("kind", RANGES)
def test_memory_is_bounded_by_the_matrix(kind):
    """All that is ever allocated, freed or not, is below 40 bytes a pair (i,j): 1 GB for 5,000 images."""
    similarity = pixel_similarity(torch.rand(200, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    with Allocated() as allocated:
        pairs = pairs_in_range(similarity, kind, 0.1, 0.05)
    assert 0 < pairs.nbytes <= allocated.bytes < 40 * 200 ** 2


# --- what a user can get wrong ---

def test_a_range_without_pairs_names_the_largest_similarity():
    matrix = symmetric([0.5, 0.1, -0.625], 3)
    with pytest.raises(UserError, match=r"no pair .* --reg_range high \(--reg_thresh 0.7; the largest \|S\| is 0.625"):
        pairs_in_range(matrix, "high", 0.7)
    with pytest.raises(UserError, match=r"no pair .* low .* the least 0.1"):
        pairs_in_range(matrix, "low", 0.05)


def test_fewer_pairs_than_a_batch():
    matrix = symmetric([0.5, 0.1, -0.625], 3)
    assert len(pairs_in_range(matrix, "high", 0.2, at_least=2)) == 2
    with pytest.raises(UserError, match=r"only 2 of the 3 pairs .* are in --reg_range high .* a batch takes 3"):
        pairs_in_range(matrix, "high", 0.2, at_least=3)
    with pytest.raises(UserError, match=r"only 3 of the 3 pairs of regularisation images are in --reg_range all, and"):
        pairs_in_range(matrix, "all", 0.2, at_least=16)
    with pytest.raises(UserError, match=r"there is 1: raise --reg_image_num"):
        pairs_in_range(torch.ones(1, 1), "all", 0.2)


def test_the_second_threshold():
    matrix = symmetric([0.5, 0.1, -0.625], 3)
    with pytest.raises(UserError, match="give Th_2 as --reg_thresh_2"):
        pairs_in_range(matrix, "double", 0.2)
    for second in (0.2, 0.3):
        with pytest.raises(UserError, match=f"--reg_thresh_2 {second} must be below --reg_thresh 0.2"):
            pairs_in_range(matrix, "double", 0.2, second)
    assert len(pairs_in_range(matrix, "high", 0.2, 0.3)) == 2


def test_an_unknown_range():
    with pytest.raises(ValueError, match="no range of similarities is called 'higher'"):
        pairs_in_range(torch.eye(3), "higher", 0.2)
