"""Weights in the form of RobustBench's networks load, and give the logits that robustbench 1.1.1 gave for them.

tests/golden/robustbench.json holds names and shapes of its state dicts, what they keep of their input normalisation,
and logits of the images and weights that `images` and `weights` draw; no code or weights of its.
"""

import json
import math

import numpy as np
import pytest
import torch

from common.checkpoint import load_weights
from common.environment import ROOT
from common.errors import UserError
from common.models import build

GOLDEN = json.loads((ROOT / "tests" / "golden" / "robustbench.json").read_text(encoding="utf-8"))
NETWORKS = GOLDEN["networks"]


def weights(state, kept):
    """A state dict of these names and shapes: numbers of a legacy generator, which never change."""
    draws, found = np.random.RandomState(0), {}
    for name, shape in state.items():
        normal = draws.standard_normal(math.prod(shape)).reshape(shape)
        if name in kept:
            found[name] = torch.tensor(kept[name]).reshape(shape)
        elif name.endswith("num_batches_tracked"):
            found[name] = torch.tensor(0)
        elif name.endswith("running_var"):
            found[name] = torch.from_numpy(0.5 + np.abs(normal)).float()
        elif len(shape) == 1:
            found[name] = torch.from_numpy(0.1 * normal + (not name.endswith(("bias", "running_mean")))).float()
        else:
            found[name] = torch.from_numpy(normal * math.sqrt(2 / math.prod(shape[1:]))).float()
    return found


def images():
    """(2,3,32,32) in [0,1]"""
    return torch.from_numpy(np.random.RandomState(1).uniform(size=(2, 3, 32, 32))).float()


def given(golden, tmp_path):
    path = tmp_path / "theirs.pt"
    torch.save(weights(golden["state"], golden["kept"]), path)
    return path


@pytest.mark.parametrize("name", NETWORKS)
def test_their_weights_give_their_logits(name, tmp_path):
    golden = NETWORKS[name]
    model = build(classes=10, **golden["ours"]).eval()
    load_weights(model, given(golden, tmp_path))
    with torch.no_grad():
        found = model(images())
    theirs = torch.tensor(golden["logits"])
    assert theirs.std() > 0.1                                  # the images decide them, not the last layer's bias
    assert (theirs[0] - theirs[1]).abs().max() > 0.01 * theirs.abs().max()
    torch.testing.assert_close(found, theirs, rtol=1e-4, atol=1e-5 * theirs.abs().max().item())


@pytest.mark.parametrize("name", ["ResNet50 (Engstrom2019Robustness)", "PreActResNet18 (Wong2020Fast)"])
def test_a_normalisation_in_the_file_is_asked_for(name, tmp_path):
    golden = NETWORKS[name]
    model = build(golden["ours"]["name"], classes=10)
    with pytest.raises(UserError, match="normalises its input and the model does not: build it with normalise="):
        load_weights(model, given(golden, tmp_path))


def test_members_of_one_family_do_not_load_into_each_other(tmp_path):
    path = given(NETWORKS["PreActResNet18 (Andriushchenko2020Understanding)"], tmp_path)
    with pytest.raises(UserError, match=r"another network than the model: missing bn\.weight"):
        load_weights(build("preactresnet18", classes=10), path)
