"""What torch says of itself and of the devices, asked in a process of its own: python -m common.doctor.torch_probe

A torch that does not fit may crash, or hang on a broken driver: then what was said before is still there.  Prints JSON
objects, one a line.
"""

import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

from common.environment import ROOT

LIMIT_S = 180                  # a cold network disk takes a minute to import torch


def ask(limit: float = LIMIT_S) -> dict[str, Any]:
    """All that the probe says; "broken" says in words where it ended early."""
    command = (sys.executable, "-m", "common.doctor.torch_probe")
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit)
        lines = done.stdout
        ended = f"ended with status {done.returncode}: {_last(done.stderr)}" if done.returncode else ""
    except subprocess.TimeoutExpired as late:
        lines = late.stdout.decode(errors="replace") if isinstance(late.stdout, bytes) else late.stdout or ""
        ended = f"said nothing more for {limit:.0f} s"
    except OSError as error:
        lines, ended = "", str(error)
    said: dict[str, Any] = {}
    for line in lines.splitlines():
        if line.startswith("{"):
            said |= json.loads(line)
    return {**said, "broken": ended} if ended else said


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no message"


def _try(name: str, look: Callable[[], Any]) -> None:
    """Print what `look` returns under `name`, or its failure under NAME_error."""
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            said = {name: look()}
        if words := [" ".join(str(one.message).split()) for one in caught]:
            said[f"{name}_warning"] = words[0][:400]
    except Exception as error:
        said = {f"{name}_error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    print(json.dumps(said), flush=True)


def _torch() -> Any:
    import torch

    return torch


def _devices() -> list[dict[str, Any]]:
    from common.engine import bf16_is_fast

    torch, found = _torch(), []
    for number in range(torch.cuda.device_count()):
        device = torch.device("cuda", number)
        free, total = torch.cuda.mem_get_info(device)
        torch.ones(8, 8, device=device) @ torch.ones(8, 8, device=device)
        torch.cuda.synchronize(device)
        found.append({"name": torch.cuda.get_device_name(device), "free": free, "total": total,
                      "capability": list(torch.cuda.get_device_capability(device)), "bf16": bf16_is_fast(device)})
    return found


def _cpu_bf16() -> bool:
    from common.engine import bf16_is_fast

    return bf16_is_fast(_torch().device("cpu"))


def _vision() -> str:
    import torchvision

    return torchvision.__version__


def _attacks() -> bool:
    import pyautoattack  # noqa: F401

    return True


def main() -> None:
    """Print the objects."""
    _try("torch", lambda: _torch().__version__)
    _try("cuda_build", lambda: _torch().version.cuda)
    _try("cuda", lambda: _torch().cuda.is_available())
    _try("devices", _devices)
    _try("mps", lambda: _torch().backends.mps.is_available())
    _try("cpu_bf16", _cpu_bf16)
    _try("numpy", lambda: _torch().zeros(2).numpy().tolist())
    _try("torchvision", _vision)
    _try("pyautoattack", _attacks)


if __name__ == "__main__":
    main()
