"""What the tests of checkpoints share."""

from pathlib import Path

import pytest
import torch
from torch import nn

from common.checkpoint import load_weights
from common.errors import UserError
from common.models import build


def network(seed: int = 0, **options) -> nn.Module:
    """A small network with batch norm whose entries, running statistics too, differ from seed to seed."""
    torch.manual_seed(seed)
    model = build("small", **{"classes": 10, "width": 4, **options})
    model(torch.rand(4, options.get("channels", 3), 8, 8))
    return model.eval()


def same(model: nn.Module, state: dict[str, torch.Tensor]) -> bool:
    ours = model.state_dict()
    return list(ours) == list(state) and all(torch.equal(ours[name], state[name]) for name in ours)


def prefixed(state: dict, prefix: str) -> dict:
    return {prefix + name: value for name, value in state.items()}


def refused(model: nn.Module, path: Path, said: str, **options) -> str:
    """Loading raises one line that matches `said` and names the file, and the model stays as it was."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UserError, match=said) as caught:
        load_weights(model, path, **options)
    assert same(model, before)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)
