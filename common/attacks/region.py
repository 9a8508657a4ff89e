"""The part of an attack that a GPU may run as one recording (common.capture): all its steps."""

from collections.abc import Callable, Hashable
from functools import wraps
from typing import Any

from torch import Tensor, nn


def region(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Mark `method(self, model, *tensors, **settings)` as a function of the model's weights and of what it is given.

    It must draw no random numbers, wait for no value from the device, and treat `self` and `settings` as constants:
    then a network that brings `regions` (common.capture.Regions) may record it.  Any other network runs it as it is.
    """
    @wraps(method)
    def run(self: Hashable, model: nn.Module, *tensors: Tensor, **settings: Any) -> Tensor:
        regions = getattr(model, "regions", None)
        if regions is None:
            return method(self, model, *tensors, **settings)
        key = (type(self), method.__name__, self, tuple(sorted(settings.items())))
        return regions.run(key, lambda *given: method(self, model, *given, **settings), *tensors)

    return run
