"""The networks of the four originals as tests/golden/models.* describe them, and the rule of their weights."""

import json
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

GOLDEN = Path(__file__).parents[2] / "tests" / "golden"
DESCRIBED = json.loads((GOLDEN / "models.json").read_text(encoding="utf-8"))


def rule_state(described: dict[str, list[int]]) -> dict[str, Tensor]:
    """The weights that the golden logits were made with: a function of place and name in the original's state dict.

    An input normalisation keeps its values there, which the rule does not know, so it is left out here.
    """
    state = {}
    for k, (name, shape) in enumerate(described.items()):
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(0)
            continue
        if name in ("mean", "std"):
            continue
        wave = torch.sin(0.37 * torch.arange(math.prod(shape), dtype=torch.float64) + k).reshape(shape)
        if name.endswith("running_var"):
            wave = 1 + 0.1 * wave
        elif name.endswith(("running_mean", "bias")):
            wave = 0.05 * wave
        elif len(shape) == 1:
            wave = 1 + 0.1 * wave
        else:
            wave = wave * math.sqrt(2 / math.prod(shape[1:]))
        state[name] = wave.float()
    return state


def rule_input(shape: list[int]) -> Tensor:
    return (0.5 + 0.5 * torch.sin(0.11 * torch.arange(math.prod(shape), dtype=torch.float64))).reshape(shape).float()


def check_logits(model: nn.Module, original: str) -> None:
    reference = torch.from_numpy(np.load(GOLDEN / "models.npz")[original])
    with torch.inference_mode():
        logits = model.eval()(rule_input(DESCRIBED[original]["input"]))
    scale = reference.abs().max().item()
    torch.testing.assert_close(logits, reference, rtol=1e-3, atol=1e-4 * scale)
