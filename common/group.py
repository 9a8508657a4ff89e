"""The processes that train or evaluate one network together, each with its share of every batch.

    torchrun --nproc-per-node 8 COMMAND        srun --ntasks 8 python COMMAND

Without either there is one process, and nothing here does anything.  A loss is a function of `mean`s over the global
batch, the same number on every rank; each rank differentiates it by its own images, and `average_gradients` then gives
all ranks the gradient of the global batch.  Weights, optimisers and averages so stay equal without being sent.

Gradients are averaged here by buckets after the backward pass, and not by DistributedDataParallel during it, though
DistributedDataParallel would stand several passes and one backward.  It regroups its buckets after the first step of a
process, so that a resumed run adds in another order and ends with other bits; here the order is that of the
parameters, always.  The step stays one plain forward and backward, which can be captured as a graph.  Ranks may pass
differently often (DyART's rank without a boundary point), and two learners need no second wrapper.  What is given up is
sending while the backward pass still runs: one of the eleven or so passes of an adversarial step.

Buffers (batch norm's statistics) are those of rank 0, after every step: every rank attacks the network that is saved.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from platform import node
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from common.errors import UserError
from common.launch import Place, place
from common.types import Share, local_first, local_mean, local_total
from common.watch import Watch, end

# A rank may wait this long for others: rank 0's validation, a slow share of an evaluation.  Those that are gone are
# noticed otherwise (common.watch).
PATIENCE = timedelta(days=1)
BUCKET = 2 ** 23                     # numbers sent at once: 32 MB
T = TypeVar("T")


class _OfAll(torch.autograd.Function):
    """The mean over the ranks; the gradient is each rank's own, as gradients are averaged later."""

    @staticmethod
    def forward(ctx, value, ranks):
        total = value.detach().clone()
        distributed.all_reduce(total, group=wire(total))
        return total / ranks

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


class SumOfAll(torch.autograd.Function):
    """The sum over the ranks of tensors that enter every rank's loss; so does the gradient come from every rank."""

    @staticmethod
    def forward(ctx, value):
        total = value.detach().clone()
        distributed.all_reduce(total, group=wire(total))
        return total

    @staticmethod
    def backward(ctx, gradient):
        return SumOfAll.forward(ctx, gradient)


@dataclass(frozen=True)
class Group:
    """This process among those of the run."""

    rank: int = 0
    ranks: int = 1
    local_rank: int = 0
    watch: Watch | None = field(default=None, compare=False, repr=False)

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    # -- of a step ----------------------------------------------------------------------------------------------------

    def of_step(self, share: Share | None, synchronised: bool = False) -> dict[str, Any]:
        """What a StepContext knows of the ranks, for a batch of which this one has `share`."""
        if self.ranks == 1:
            return {}
        return {"rank": self.rank, "ranks": self.ranks, "share": share, "synchronised": synchronised,
                "mean": self.mean(share), "total": self.total, "first": self.first}

    def weight(self, share: Share | None) -> float:
        """What this rank's mean of a batch counts for (`Share.weight`)."""
        return 1.0 if share is None else share.weight(self.ranks)

    def mean(self, share: Share | None = None) -> Callable[..., Tensor]:
        """`StepContext.mean` for a batch of which this rank has `share`."""
        return local_mean if self.ranks == 1 else partial(self._mean, share)

    def _mean(self, usual: Share | None, values: Tensor, share: Share | None = None) -> Tensor:
        return _OfAll.apply(self.weight(share or usual) * values.mean(), self.ranks)

    @property
    def total(self) -> Callable[[Tensor], Tensor]:
        """`StepContext.total`."""
        return local_total if self.ranks == 1 else self._total

    def _total(self, values: Tensor) -> Tensor:
        total = values.detach().clone()
        distributed.all_reduce(total, group=wire(total))
        return total

    @property
    def first(self) -> Callable[[Tensor], Tensor]:
        """`StepContext.first`: of the lowest rank that has a value; 0 where none has."""
        return local_first if self.ranks == 1 else self._first

    def _first(self, values: Tensor) -> Tensor:
        table = values.new_zeros(2, self.ranks)
        if len(values):
            table[:, self.rank] = torch.stack((values[0].detach(), torch.ones_like(values[0])))
        distributed.all_reduce(table, group=wire(table))
        value, there = table
        return torch.where((there == 1) & (there.cumsum(0) == 1), value, 0).sum().view(1)

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give each parameter the mean over the ranks of its gradients.  Those without one must have none anywhere."""
        if self.ranks == 1:
            return
        sent = []
        for bucket in buckets([parameter.grad for parameter in parameters if parameter.grad is not None]):
            flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
            sent.append((bucket, flat, distributed.all_reduce(flat, group=wire(flat), async_op=True)))
        for bucket, flat, work in sent:
            work.wait()
            flat /= self.ranks
            parts = flat.split([gradient.numel() for gradient in bucket])
            torch._foreach_copy_(bucket, [part.view(old.shape) for part, old in zip(parts, bucket, strict=True)])

    def take_over(self, tensors: Iterable[Tensor]) -> None:
        """Give all ranks rank 0's values of these tensors, in place."""
        if self.ranks == 1:
            return
        kinds: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors:
            kinds.setdefault(tensor.dtype, []).append(tensor.detach())
        for kind in kinds.values():
            flat = torch.cat([tensor.reshape(-1) for tensor in kind])
            distributed.broadcast(flat, 0, group=wire(flat))
            if self.rank:
                parts = flat.split([tensor.numel() for tensor in kind])
                torch._foreach_copy_(kind, [part.view(old.shape) for part, old in zip(parts, kind, strict=True)])

    # -- of an epoch --------------------------------------------------------------------------------------------------

    def check_alike(self, network: nn.Module) -> None:
        """RuntimeError where the ranks' parameters have come apart, which would be a defect, or broken hardware."""
        if self.ranks == 1:
            return
        sums = [parameter.detach().contiguous().view(torch.int32).sum() for parameter in network.parameters()]
        found = self.gather(torch.stack(sums).tolist())
        if any(other != found[0] for other in found):
            raise RuntimeError("the ranks' weights have come apart: a loss that differs between ranks, or a broken GPU")

    def from_first(self, value: T) -> T:
        """Rank 0's value (anything that pickles), on every rank."""
        return value if self.ranks == 1 else self.gather(value)[0]

    def gather(self, value: T) -> list[T]:
        """Every rank's value, in the order of the ranks, on every rank."""
        if self.ranks == 1:
            return [value]
        found: list[Any] = [None] * self.ranks
        distributed.all_gather_object(found, value)
        return found

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        self.gather(None)

    @contextmanager
    def machine_by_machine(self) -> Iterator[None]:
        """The first process of each machine goes through the block before the others, for what leaves a cache file."""
        if self.local_rank:
            self.barrier()
        yield
        if not self.local_rank:
            self.barrier()


def buckets(tensors: list[Tensor], most: int = BUCKET) -> Iterator[list[Tensor]]:
    """The tensors in order, as many together as have `most` numbers, of one type each; a larger one alone."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and (sum(one.numel() for one in bucket) + tensor.numel() > most or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


# -- the one of this process ------------------------------------------------------------------------------------------

ALONE = Group()
_here: list[Group] = []              # the group that this process is in, below those of `alone`
_nccl: list[Any] = []                # NCCL's process group, where each process has a GPU of its own


def current() -> Group:
    """The group of this process; at the first call the ranks meet.  UserError where they do not."""
    if not _here:
        where = place()
        _here.append(ALONE if where.ranks == 1 else _joined(where))
    return _here[-1]


def _joined(where: Place) -> Group:
    watch = Watch(where)
    distributed.init_process_group("gloo", store=distributed.PrefixStore("gloo", watch.store), rank=where.rank,
                                   world_size=where.ranks, timeout=PATIENCE)
    return Group(where.rank, where.ranks, where.local_rank, watch)


def settle(device: torch.device) -> torch.device:
    """The device of this process, and NCCL for its tensors where that is a GPU of its own.

    device: as the user asked; a CUDA device without a number means each process's own one.  One with a number is
    shared by all, through the host's memory.  UserError where there are not enough GPUs, and for mps.
    """
    crew = current()
    if crew.ranks == 1 or device.type == "cpu":
        return device
    if device.type != "cuda":
        raise UserError(f"--device {device.type}: {crew.ranks} processes work on CUDA devices or the CPU alone; start "
                        "one process", code="E-PROCESSES")
    # Of several GPUs the local rank's own; a scheduler may show each process a single one.
    chosen, count = device, torch.cuda.device_count()
    if device.index is None:
        chosen = torch.device("cuda", crew.local_rank if crew.local_rank < count else 0)
    torch.cuda.set_device(chosen)
    known = torch.cuda.get_device_properties(chosen)
    used = crew.gather((node(), str(getattr(known, "uuid", chosen.index))))
    if len(set(used)) == crew.ranks:
        _nccl.append(distributed.new_group(backend="nccl", timeout=PATIENCE))
    elif device.index is None:
        shared = next(name for name in used if used.count(name) > 1)
        raise UserError(f"{used.count(shared)} processes share a GPU of {shared[0]}: start one for each GPU (srun: "
                        f"--gpus-per-task 1); --device cuda:{chosen.index} shares it all the same, slowly",
                        code="E-PROCESSES")
    return chosen


def watch() -> Watch | None:
    """This process's part in stopping the run together; None where it is by itself."""
    return _here[0].watch if _here else None


def leave(status: int | str = 0) -> None:
    """Wait for the others at the end of a command, and end with it; a status that is not 0 ends them too.  Returns
    only where there are no others."""
    if (watching := watch()) is None:
        return
    if status:
        watching.fail(status if isinstance(status, int) else 1, status if isinstance(status, str) else "")
    _here[0].barrier()
    watching.leave()
    # At once: in an ordinary exit threads of the process group that still run now and then abort the process.
    end(0)


def wire(tensor: Tensor) -> distributed.ProcessGroup | None:
    """What sends a tensor: NCCL between GPUs, else gloo (None, the default)."""
    return _nccl[0] if tensor.is_cuda and _nccl else None


@contextmanager
def alone() -> Iterator[None]:
    """For the length of a block this process is by itself, for work that one rank does while the others wait."""
    _here.append(ALONE)
    try:
        yield
    finally:
        _here.pop()
