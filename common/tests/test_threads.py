"""Rows over threads: the same values, in order, whatever the number of threads."""

import threading

import pytest
import torch
from torch import nn

from common.threads import FEWEST, by_rows


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_rows_come_back_in_order_and_threads_are_used(threads):
    x, y, seen = torch.arange(30.0).view(15, 2), torch.arange(15), []

    def function(x, y):
        seen.append((threading.get_ident(), len(x), torch.get_num_threads()))
        return x * 2, y + 1

    doubled, more = by_rows(function, x, y)
    assert torch.equal(doubled, 2 * x) and torch.equal(more, y + 1)
    assert len(seen) == threads and sum(rows for _, rows, _ in seen) == 15
    if threads > 1:
        assert {number for _, _, number in seen} == {1} and threading.get_ident() not in {who for who, _, _ in seen}
    assert torch.get_num_threads() == threads


def test_gradients_and_values_of_a_network(threads):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
                            nn.Linear(8 * 64, 1)).eval()
    x = torch.rand(17, 3, 8, 8)

    def value_and_gradient(x):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            value = network(x).squeeze(1)
            gradient, = torch.autograd.grad(value.sum(), x)
        return value.detach(), gradient

    with torch.no_grad():
        value, gradient = by_rows(value_and_gradient, x)
        assert not by_rows(network, x).requires_grad
    wanted = value_and_gradient(x)
    torch.testing.assert_close(value, wanted[0])
    torch.testing.assert_close(gradient, wanted[1])


def test_few_rows_are_not_shared_out_and_errors_come_through(threads):
    calls = []
    few = torch.zeros(2 * FEWEST - 1, 1)
    by_rows(lambda x: calls.append(len(x)) or x, few)
    assert calls == [len(few)] and by_rows(lambda x: x, few[:0]).shape == (0, 1)

    def broken(x):
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        by_rows(broken, torch.zeros(20, 1))
