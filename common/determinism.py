"""--deterministic: the same bits from the same seed, on the same machine with the same versions and number of threads.

The switch is the process's own and stays on.  What torch has in no deterministic version then raises an error, which
becomes one line.  It is no part of a run's configuration: like the device and the number of threads it says how the
numbers are computed, not which, so that a run has the same hash with and without it.
"""

import os
import re

from common.errors import UserError

# cuBLAS reads it when its first handle is made; 8 buffers of 4,096 KiB, which cost least time.
WORKSPACE, BUFFERS = "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
FIXED = (":4096:8", ":16:8")
# What torch says where an operation has no deterministic version, with the operation's name, and where cuBLAS has none.
LACKING = re.compile(r"(\S+) does not have a deterministic implementation")
CUBLAS = "this operation is not deterministic because it uses CuBLAS"


def switch_on() -> None:
    """Let torch compute deterministically in this process, and in float32 where it says so: TF32 is off.

    To be called before the first product on a CUDA device.  UserError where the environment sets cuBLAS otherwise.
    """
    if (given := os.environ.setdefault(WORKSPACE, BUFFERS)) not in FIXED:
        raise UserError(f"--deterministic: the environment has {WORKSPACE}={given}, with which products on a GPU are "
                        f"not deterministic: unset it, or set it to {BUFFERS}", code="E-DETERMINISTIC")
    # Slow to import, and not needed by what only asks for `in_words`.
    import torch

    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")


def is_on() -> bool:
    """Whether this process computes deterministically."""
    import torch

    return torch.are_deterministic_algorithms_enabled()


def in_words(error: BaseException) -> UserError | None:
    """The UserError that torch's complaint about an operation becomes; None for any other error."""
    said = str(error) if isinstance(error, RuntimeError) else ""
    if found := LACKING.search(said):
        name = found[1]
    elif CUBLAS in said:
        name = "a matrix product of cuBLAS"
    else:
        return None
    return UserError(f"--deterministic: torch has no deterministic version of {name} on this device, which is needed "
                     "here: leave --deterministic out, or give --device cpu", code="E-DETERMINISTIC")
