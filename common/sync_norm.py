"""Batch norm over the images of all ranks (flag --sync-bn), on CPU and CUDA alike.

    mean = sum_r n_r*mean_r / N        var = sum_r ( S_r + n_r*(mean_r - mean)^2 ) / N        N = sum_r n_r

of the ranks' counts n_r, means and sums of squared deviations S_r, so that nothing is lost where the mean is large.
It is the network's own batch norm in eval mode and where there is one process: same parameters, buffers and names.
torch's SyncBatchNorm is for GPUs alone, and no subclass of the classes that attacks fold away.
"""

import torch
from torch import Tensor, nn

from common import group


class _Synchronised:
    """The forward pass of a batch norm, with the statistics of all ranks in train mode; x (n,C,...), n may be 0."""

    def forward(self, x: Tensor) -> Tensor:
        crew = group.current()
        if not self.training or crew.ranks == 1:
            return super().forward(x)
        self._check_input_dim(x)
        values, places = x.to(torch.promote_types(x.dtype, torch.float32)), [0, *range(2, x.dim())]
        channels = x.shape[1]
        count = x.numel() // channels
        own = values.sum(places) / max(count, 1)
        spread = (values - columns(own, x)).square().sum(places)
        # Each rank fills its own row, so that one sum hands every rank's numbers to all.
        table = torch.cat((own, spread, own.new_full((1,), count)))
        place = torch.zeros(crew.ranks, 1, dtype=table.dtype, device=x.device)
        place[crew.rank] = 1
        rows = group.SumOfAll.apply(place * table)
        means, spreads, counts = rows.split((channels, channels, 1), 1)
        everyone = counts.detach().sum()
        total = everyone.clamp_min(1)
        mean = (counts * means).sum(0) / total
        variance = (spreads + counts * (means - mean).square()).sum(0) / total
        if self.track_running_stats:
            self._follow(mean.detach(), variance.detach(), everyone)
        scale = torch.rsqrt(variance + self.eps)
        shift = -mean * scale
        if self.affine:
            scale, shift = scale * self.weight, shift * self.weight + self.bias
        return (values * columns(scale, x) + columns(shift, x)).to(x.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Move the running statistics, the variance without bias, as torch's batch norm does."""
        some = count > 0                                         # where no rank has an image nothing moves
        self.num_batches_tracked.add_(some)
        momentum = 1 / self.num_batches_tracked.clamp_min(1) if self.momentum is None else self.momentum
        weight = (momentum * some).to(mean.dtype)
        self.running_mean.lerp_(mean, weight)
        self.running_var.lerp_(variance * (count / (count - 1).clamp_min(1)), weight)


class SynchronisedBatchNorm1d(_Synchronised, nn.BatchNorm1d):
    """Of vectors (n,C) or (n,C,L)."""


class SynchronisedBatchNorm2d(_Synchronised, nn.BatchNorm2d):
    """Of images (n,C,H,W)."""


KINDS = {nn.BatchNorm1d: SynchronisedBatchNorm1d, nn.BatchNorm2d: SynchronisedBatchNorm2d}


def synchronise(network: nn.Module) -> nn.Module:
    """Let the batch norms of a network, which stay the same objects, take the statistics of all ranks; in place.

    A module with statistics of its own kind says so by an attribute `synchronised`, which becomes True.
    """
    for module in network.modules():
        if type(module) in KINDS:
            module.__class__ = KINDS[type(module)]
        elif hasattr(module, "synchronised"):
            module.synchronised = True
    return network


@torch.no_grad()
def channel_means(x: Tensor, of_all: bool) -> Tensor:
    """(C,) the mean per channel of x (n,C,...), over the images of this rank, or of all ranks together."""
    places = [0, *range(2, x.dim())]
    if not of_all or group.current().ranks == 1:
        return x.mean(places)
    total = group.current().total(torch.cat((x.sum(places), x.new_full((1,), x.numel() // x.shape[1]))))
    return total[:-1] / total[-1]


def columns(values: Tensor, x: Tensor) -> Tensor:
    """(C,) as a shape that multiplies x (n,C,...)."""
    return values.view(1, -1, *[1] * (x.dim() - 2))
