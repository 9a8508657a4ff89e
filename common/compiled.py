"""A module through torch.compile where that works, and as it is where it does not.

For first derivatives only, and for inputs of the shape that comes first, so that a short last batch does not compile
everything once more.  Compiling takes up to a minute for a network; docs/speed.md says where it has paid.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Compiled:
    """module(x), compiled.

    note     takes a line where the module cannot be compiled, and then runs as it is
    backend  of torch.compile; None: its own default
    """

    def __init__(self, module: nn.Module, note: Callable[[str], None], backend: str | None = None):
        self.module, self.note = module, note
        self.run = torch.compile(module, dynamic=False, **({"backend": backend} if backend else {}))
        self.shape: torch.Size | None = None
        self.plain = False                           # for good
        self.proven: set[tuple[bool, bool]] = set()  # (train mode, with gradients) in which it ran once

    def __call__(self, x: Any) -> Tensor:
        if not isinstance(x, Tensor):
            return self.module(x)
        self.shape = self.shape or x.shape
        if self.plain or x.shape != self.shape:
            return self.module(x)
        manner = (self.module.training, torch.is_grad_enabled())
        if manner in self.proven:
            return self.run(x)
        try:
            answer = self.run(x)
        # Compilers fail in many ways, before anything is computed; a fault of the module's own comes up again below.
        except Exception as error:
            self.plain = True
            self.note(f"not compiled: {' '.join(str(error).split())[:120]}")
            return self.module(x)
        self.proven.add(manner)
        return answer
