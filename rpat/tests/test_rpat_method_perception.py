"""Perception consistency: means by hand, groups, and the quirk of batch means."""

import math

import pytest
import torch
from torch import nn

from rpat.perception import GROUPS, PAIRS, Distances, consistency, distances
from rpat.tests.rpat_references import Fixed, pictures


def test_distances_of_given_logits():
    clean, middle = torch.tensor([[1.0, 0.0], [3.0, 1.0]]), torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    adversarial = torch.tensor([[2.0, 1.0], [0.0, 4.0]])
    x, x_adv = torch.zeros(2, 1, 1, 1), torch.full((2, 1, 1, 1), 0.5)
    model = Fixed(clean, middle, adversarial)
    found = distances(model, x, x_adv, torch.tensor([0, 0]))
    assert found.values.tolist() == [[1.0, 2.0, 1.0], [9.0, 5.0, 8.0]] and found.defended.tolist() == [True, False]
    assert [asked.flatten()[0].item() for asked in model.asked] == [0, 0.25, 0.5]


def test_a_linear_network_moves_evenly():
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(48, 7))
    found = distances(linear, pictures(9), pictures(9, seed=5), torch.zeros(9, dtype=torch.int64)).values
    torch.testing.assert_close(found[:, 1], found[:, 0] / 4)
    torch.testing.assert_close(found[:, 2], found[:, 0] / 4)


def batches():
    """Two batches of 3 and 1 images."""
    first = Distances(torch.tensor([[1.0, 2, 3], [4, 5, 6], [7, 8, 9]]), torch.tensor([True, False, False]))
    return first, Distances(torch.tensor([[3.0, 2, 2]]), torch.tensor([True]))


def test_means_are_over_images():
    found = consistency(batches())
    assert tuple(found) == GROUPS and all(tuple(row) == PAIRS for row in found.values())
    assert list(found["all"].values()) == [3.75, 4.25, 5.0]
    assert list(found["defended"].values()) == [2.0, 2.0, 2.5]
    assert list(found["fooled"].values()) == [5.5, 6.5, 7.5]


def test_quirk_batch_means():
    found = consistency(batches(), batch_means=True)
    assert list(found["all"].values()) == [3.75, 4.25, 5.0]                          # the same: it is all of the batch
    assert list(found["defended"].values()) == [(3 * 1 + 3) / 4, (3 * 2 + 2) / 4, (3 * 3 + 2) / 4]
    assert all(math.isnan(value) for value in found["fooled"].values())              # the second batch has none


def test_groups_without_images_are_nan_and_no_batch_is_an_error():
    whole = [Distances(torch.ones(2, 3), torch.tensor([True, True]))]
    assert all(math.isnan(value) for value in consistency(whole)["fooled"].values())
    with pytest.raises(ValueError, match="no batch"):
        consistency([])


def test_a_broken_prediction_is_never_defended():
    nan = torch.tensor([[float("nan"), 0.0]])
    found = distances(Fixed(nan), torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), torch.tensor([0]))
    assert found.defended.tolist() == [False]
