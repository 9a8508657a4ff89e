"""Narrow pair networks, images and pairs for the tests, and a float64 reference of the cosines."""

import torch

from brainreg.network import Pair, build


def small(name="resnet18", **options):
    """A narrow network whose running statistics and mu are no longer those of the start."""
    torch.manual_seed(0)
    network = build(name, **{"classes": 5, "width": 4, **options}).train()
    network(torch.rand(8, options.get("channels", 1), 16, 16))
    for mean in network.running_mean:
        mean.data.uniform_(-0.2, 0.4)
    network.layer_weight.data.normal_()
    return network


def pictures(count, *size, seed=1):
    return torch.rand(count, *size, generator=torch.Generator().manual_seed(seed))


def a_pair(count=4, size=(1, 12, 20)):
    return Pair(pictures(count, *size, seed=2), pictures(count, *size, seed=3))


def cosines(network, pair):
    """c (5,k) float64 of the features that the network has, after mu_l as it stands."""
    found = []
    for a, b, mean in zip(network.features(pair.rows), network.features(pair.columns), network.running_mean,
                          strict=True):
        a, b = ((half.double() - mean.double()[:, None, None]).flatten(1) for half in (a, b))
        found.append((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)))
    return torch.stack(found)
