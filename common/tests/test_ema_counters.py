"""An average whose integer buffers are the model's: ReBAT's."""

import pytest
import torch
from torch import nn

from common import ema


def networks():
    """Two networks with batch norms in different states."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    average = ema.averaged_copy(model)
    for _ in range(3):
        model(torch.rand(4, 1, 5, 5))
    with torch.no_grad():
        model[0].weight.add_(1)
    return average, model


@pytest.mark.parametrize("decay", [0.0, 0.75, 1.0])
def test_statistics_are_averaged_and_counters_copied(decay):
    average, model = networks()
    before = {name: tensor.clone() for name, tensor in average.state_dict().items()}
    ema.update(average, model, decay, "statistics")
    after, there = average.state_dict(), model.state_dict()
    assert after["1.num_batches_tracked"] == there["1.num_batches_tracked"] == 3
    for name in ("0.weight", "1.running_mean", "1.running_var"):
        assert torch.allclose(after[name], decay * before[name] + (1 - decay) * there[name], atol=1e-7)
        assert not torch.equal(before[name], there[name])


def test_without_decay_the_average_is_the_model_to_the_last_bit():
    average, model = networks()
    ema.update(average, model, 0.0, "statistics")
    assert all(torch.equal(average.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


def test_the_usual_average_still_truncates_counters_and_copying_leaves_buffers_alone():
    average, model = networks()
    ema.update(average, model, 0.5, "average")
    assert average[1].num_batches_tracked == 1                      # half of 3
    average, model = networks()
    ema.update(average, model, 0.5, "copy")
    assert average[1].num_batches_tracked == 0 and torch.equal(average[1].running_mean, torch.zeros(2))


def test_an_unknown_way_is_refused():
    with pytest.raises(ValueError, match="statistic"):
        ema.Averaging(lambda step: 0.5, buffers="statistic")
