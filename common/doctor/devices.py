"""torch, torchvision and the GPU: what `torch_probe` said, beside what nvidia-smi says."""

import os
import shutil
import subprocess
from collections.abc import Mapping
from typing import Any, NamedTuple

from common.doctor.findings import NOTE, OK, PROBLEM, Finding, number, size
from common.doctor.packages import repair

GPU, TORCH = "GPU", "torch"
QUERY = ("nvidia-smi", "--query-gpu=name,driver_version,memory.total,memory.used,utilization.gpu",
         "--format=csv,noheader,nounits")


class Card(NamedTuple):
    """A GPU as nvidia-smi lists it: memory in bytes, busy in percent, both None where it does not say."""

    name: str
    driver: str
    total: int | None
    used: int | None
    busy: int | None


def cards() -> list[Card] | None:
    """The GPUs that nvidia-smi lists; None without it, empty where it fails."""
    if shutil.which("nvidia-smi") is None:
        return None
    try:
        done = subprocess.run(QUERY, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return []
    return parsed(done.stdout) if done.returncode == 0 else []


def parsed(text: str) -> list[Card]:
    """The lines of nvidia-smi as cards."""
    found = []
    for line in text.splitlines():
        words = [word.strip() for word in line.split(",")]
        if len(words) == 5:
            total, used, busy = (int(word) if word.isdigit() else None for word in words[2:])
            found.append(Card(words[0], words[1], total and total << 20, None if used is None else used << 20, busy))
    return found


def check_torch(said: Mapping[str, Any]) -> list[Finding]:
    """Whether torch, numpy, torchvision and pyautoattack import and fit one another."""
    if "torch" not in said:
        reason = said.get("torch_error") or said.get("broken", "it said nothing")
        return [Finding(PROBLEM, TORCH, "import", f"torch cannot be imported: {reason}", repair())]
    found = []
    if "numpy_error" in said:
        found.append(Finding(PROBLEM, TORCH, "numpy", f"torch {said['torch']} and numpy do not fit each other: "
                             f"{said['numpy_error']}", repair()))
    if "torchvision_error" in said:
        found.append(Finding(PROBLEM, TORCH, "vision", f"torchvision does not fit torch {said['torch']}, so CIFAR and "
                             f"MNIST cannot be read: {said['torchvision_error']}", repair()))
    if "pyautoattack_error" in said:
        found.append(Finding(PROBLEM, TORCH, "attack", "pyautoattack cannot be imported, so AutoAttack cannot run: "
                             f"{said['pyautoattack_error']}", repair()))
    if "broken" in said:
        found.append(Finding(PROBLEM, TORCH, "crash", f"a Python that tried torch, its devices and torchvision "
                             f"{said['broken']}", repair()))
    if not found:
        found.append(Finding(OK, TORCH, "fits", f"{said['torch']} with torchvision {said.get('torchvision')}, numpy "
                             "and pyautoattack import and fit"))
    return found


def check_gpu(said: Mapping[str, Any], listed: list[Card] | None, asked: str | None = None) -> list[Finding]:
    """Whether torch can use the GPUs that are here.  asked: CUDA_VISIBLE_DEVICES."""
    found = []
    if listed == []:
        found.append(Finding(PROBLEM, GPU, "driver", "nvidia-smi is here but fails: the NVIDIA driver does not run",
                             "nvidia-smi"))
    if listed and "torch" in said and not said.get("cuda"):
        found.append(_unused(said, listed, asked))
    if "devices_error" in said:
        found.append(Finding(PROBLEM, GPU, "broken", f"torch sees a GPU but cannot compute on it: "
                             f"{said['devices_error']}", "nvidia-smi"))
    for at, device in enumerate(said.get("devices", [])):
        fast = "bf16 (--precision auto takes it)" if device["bf16"] else "no fast bf16 (--precision auto takes float32)"
        found.append(Finding(OK, GPU, "device", f"cuda:{at} is {device['name']}, {size(device['free'])} of "
                             f"{size(device['total'])} free, {fast}"))
        if device["free"] < 0.5 * device["total"]:
            found.append(Finding(NOTE, GPU, "memory", f"only {size(device['free'])} of {size(device['total'])} are "
                                 f"free on cuda:{at}: another program uses it", "nvidia-smi"))
    for card in listed or []:
        if card.busy is not None and card.busy >= 20:
            found.append(Finding(NOTE, GPU, "busy", f"{card.name} is {card.busy} % busy with another program: times "
                                 "measured now will be too long", "nvidia-smi"))
    if said.get("mps"):
        found.append(Finding(OK, GPU, "mps", "Apple's mps is here; it is used with --device mps only"))
    if not found:
        found.append(Finding(OK, GPU, "none", "none: everything runs on the CPU (BUDGET=short is made for that)"
                             if listed is None else f"{number(len(listed), 'card')}, which torch was not asked about"))
    return found


def _unused(said: Mapping[str, Any], listed: list[Card], asked: str | None) -> Finding:
    names = ", ".join(dict.fromkeys(card.name for card in listed))
    if asked is not None and asked.strip() in ("", "-1"):
        return Finding(NOTE, GPU, "hidden", f"{names} is here, but CUDA_VISIBLE_DEVICES hides it",
                       "unset CUDA_VISIBLE_DEVICES")
    if said.get("cuda_build") is None:
        return Finding(PROBLEM, GPU, "cpu-build", f"{names} is here, but torch {said['torch']} is a build without "
                       "CUDA: everything would run on the CPU", repair())
    warned = said.get("cuda_warning", "")
    reason = f": {warned}" if warned else ""
    return Finding(PROBLEM, GPU, "driver-old", f"{names} is here (driver {listed[0].driver}), but torch "
                   f"{said['torch']} (CUDA {said['cuda_build']}) cannot use it{reason}; update the driver, "
                   "or install a torch for an older CUDA", "nvidia-smi")


def visible() -> str | None:
    """CUDA_VISIBLE_DEVICES, if it is set."""
    return os.environ.get("CUDA_VISIBLE_DEVICES")
