"""Train or eval mode, and frozen parameters, for the length of a block."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase


@contextmanager
def mode(model: nn.Module, training: bool = False) -> Iterator[nn.Module]:
    """Put every module of `model` into train or eval mode; give each one its own flag back at the end.

    A block in eval mode in which a BatchNorm's running statistics moved is a RuntimeError: something in it switched the
    mode, and the network that comes out is not the one that went in.
    """
    flags = {module: module.training for module in model.modules()}
    before = _statistics(model) if not training else {}
    model.train(training)
    try:
        yield model
    finally:
        for module, flag in flags.items():
            module.training = flag
    moved = [name for name, state in _statistics(model).items() if name in before and before[name] != state]
    if moved:
        raise RuntimeError(f"running statistics moved in eval mode: {', '.join(moved[:3])} ({len(moved)} in all)")


@contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """Parameters without gradients for the length of a block; each one's own flag comes back at the end."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for parameter, _ in flags:
        parameter.requires_grad_(False)
    try:
        yield model
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


@contextmanager
def untracked(model: nn.Module) -> Iterator[nn.Module]:
    """BatchNorm keeps no running statistics for the length of a block: in train mode it normalises by the batch and
    forgets it.  Not for eval mode, where it would normalise by the batch as well.

    Statistics that move all the same, as something in the block switched them on, are a RuntimeError.
    """
    norms = [(module, module.track_running_stats) for module in model.modules() if isinstance(module, _NormBase)]
    before = _statistics(model)
    for module, _ in norms:
        module.track_running_stats = False
    try:
        yield model
    finally:
        for module, flag in norms:
            module.track_running_stats = flag
    moved = [name for name, state in _statistics(model).items() if before.get(name) != state]
    if moved:
        raise RuntimeError(f"running statistics moved although they are not tracked: {', '.join(moved[:3])} "
                           f"({len(moved)} in all)")


def _statistics(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Name -> (identity, version) of every running statistic: shows a write without reading from the device.

    BatchNorm writes its means past the version counter, but counts the batch in `num_batches_tracked`, which shows.
    """
    return {f"{name}.{key}": (id(buffer), buffer._version)
            for name, module in model.named_modules() if isinstance(module, _NormBase)
            for key, buffer in module.named_buffers(recurse=False) if isinstance(buffer, Tensor)}
