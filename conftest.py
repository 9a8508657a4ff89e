"""Fixtures that the tests of every folder use: golden values and the two small networks that they were made with."""

import os
import subprocess
import sys

# Before torch is imported: two torch processes with two threads each on two cores slow each other tenfold.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("MPLBACKEND", "Agg")

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

ROOT = Path(__file__).parent
# As on a machine without torch: sys.modules["torch"] = None would also trip up libraries that look for it there.
BLOCK_TORCH = """
import sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "torchattacks", "pyautoattack"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, NoTorch())
"""
GOLDEN = ROOT / "tests" / "golden"
torch.set_num_threads(1)


class Golden:
    """The golden values by key, as tensors: golden["adarat/pgd10"]."""

    def __init__(self, path: Path):
        self.arrays = np.load(path)

    def __getitem__(self, key: str) -> torch.Tensor:
        return torch.from_numpy(np.array(self.arrays[key]))

    def keys(self, prefix: str = "") -> list[str]:
        return [key for key in self.arrays.files if key.startswith(prefix)]

    def state(self, prefix: str) -> dict[str, torch.Tensor]:
        return {key.removeprefix(prefix): self[key] for key in self.keys(prefix)}


@pytest.fixture(scope="session")
def run_without_torch():
    """Run a piece of code, at the repository root, in a Python that has no torch: (code, *argv) -> what was printed."""
    def run(code: str, *argv: str) -> str:
        done = subprocess.run((sys.executable, "-c", BLOCK_TORCH + code, *argv), cwd=ROOT, capture_output=True,
                              text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout
    return run


@pytest.fixture(scope="session")
def golden() -> Golden:
    return Golden(GOLDEN / "golden.npz")


def tiny_network(batch_norm: bool) -> nn.Sequential:
    """The network of the golden values: (B,3,8,8) -> (B,10)."""
    layers: list[nn.Module] = []
    for channels_in, channels_out in ((3, 8), (8, 16)):
        layers.append(nn.Conv2d(channels_in, channels_out, 3, stride=2, padding=1))
        if batch_norm:
            layers.append(nn.BatchNorm2d(channels_out))
        layers.append(nn.ReLU())
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 10))


@pytest.fixture
def tiny(golden) -> nn.Sequential:
    network = tiny_network(batch_norm=False)
    network.load_state_dict(golden.state("tiny/"))
    return network.eval()


@pytest.fixture
def tinybn(golden) -> nn.Sequential:
    network = tiny_network(batch_norm=True)
    network.load_state_dict(golden.state("tinybn/"))
    return network.train()
