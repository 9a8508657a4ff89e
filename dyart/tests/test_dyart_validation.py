"""DyART's validation: against plain PGD, against margins that are known exactly, in every epoch the same."""

import copy
from itertools import pairwise

import pytest
import torch
from torch import nn

from common.attacks import PGD, cw_loss
from common.data import Split
from common.data.splits import to_float
from common.evaluation.validating import in_batches, mean
from common.seeds import fold
from common.types import StepContext
from dyart.validation import Validation, validation_attack, withstands

EPS, STEP = 8 / 255, 2 / 255


def context(seed=3):
    return StepContext(generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def split(golden):
    """The golden images and their shadows: 64 of them."""
    images = (255 * golden["x"]).round().to(torch.uint8)
    images = torch.cat([(images.float() * shade).to(torch.uint8) for shade in (1, 0.9, 0.8, 0.7)])
    return Split(images, golden["y"].repeat(4))


@pytest.fixture
def lasting(tiny):
    """A network of which a fair share of the images withstands."""
    with torch.no_grad():
        tiny[0].weight *= 0.5
    return tiny


class Counted(nn.Module):
    """Notes the images of each pass, and whether a gradient is asked for."""

    def __init__(self, network):
        super().__init__()
        self.network, self.passes, self.modes = network, [], []

    def forward(self, x):
        self.passes.append((len(x), x.requires_grad))
        self.modes.append(self.network.training)
        return self.network(x)


@pytest.mark.parametrize(("name", "eps", "step"), [("linf-pgd", EPS, STEP), ("linf-pgd", 2 / 255, 1 / 255),
                                                   ("l2-pgd", 0.3, 0.05), ("fgsm", EPS, STEP)])
def test_dropping_fallen_images_changes_no_verdict(split, lasting, name, eps, step):
    attack = validation_attack(name, eps=eps, step_size=step, steps=11)
    x, y = to_float(split.images), split.labels
    ends = attack(lasting, x, y, context())                                  # nothing is dropped here
    plain = lasting(ends).argmax(1) == y
    assert 0 < plain.sum() < (lasting(x).argmax(1) == y).sum()
    assert torch.equal(withstands(lasting, attack, x, y, context()), plain)


def test_images_stop_once_they_are_misclassified(split, lasting):
    attack = validation_attack("linf-pgd", eps=EPS, step_size=STEP)
    assert attack == PGD(EPS, STEP, 40, loss=attack.loss) and attack.loss.args == cw_loss(0.0).args
    x, y = to_float(split.images), split.labels
    start = attack.start(x, context())
    fallen = lasting(start).argmax(1) != y
    assert fallen.any() and not fallen.all()
    still = (attack.from_start(lasting, x, y, start) == start).flatten(1).all(1)
    assert torch.equal(still, fallen)


def test_passes_shrink_as_images_fall(split, lasting):
    network, attack = Counted(lasting), validation_attack("linf-pgd", eps=EPS, step_size=STEP, steps=40)
    verdict = withstands(network, attack, to_float(split.images), split.labels, context())
    sizes = [count for count, _ in network.passes]
    assert [wants for _, wants in network.passes] == [True] * 40 + [False] and sizes[0] == 64
    changes = [step for step, (before, after) in enumerate(pairwise(sizes)) if before != after]
    assert sizes == sorted(sizes, reverse=True) and set(changes) <= {0, 1, 2, 4, 8, 16, 32}
    assert sizes[-1] >= verdict.sum() > 0 and sizes[1] < 64


def test_nothing_is_left_where_all_have_fallen(split, tiny):
    attack = validation_attack("linf-pgd", eps=EPS, step_size=STEP)
    network, wrong = Counted(tiny), (tiny(to_float(split.images)).argmax(1) + 1) % 10
    verdict = withstands(network, attack, to_float(split.images), wrong, context())
    assert not verdict.any() and verdict.dtype == torch.bool and len(network.passes) == 1
    # A network that answers NaN is never right, also where no step is taken.
    for given in (attack, validation_attack("linf-pgd", eps=EPS, step_size=STEP, steps=0)):
        labels = torch.zeros_like(wrong)
        assert not withstands(lambda x: tiny(x) * torch.nan, given, to_float(split.images), labels, context()).any()


def test_robust_accuracy_of_a_network_whose_margins_are_known():
    """z = (m - 0.5, 0.5 - m), m the mean of the image: an image withstands eps if m is farther than eps from 0.5."""
    class MeanSign(nn.Module):
        def forward(self, x):
            m = x.mean((1, 2, 3)) - 0.5
            return torch.stack((m, -m), 1)

    levels = torch.arange(100, 156)
    images = levels.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 4, 4).contiguous()
    distance = levels / 255 - 0.5
    split = Split(images, (distance < 0).long())
    found = Validation({"val": split}, attack="linf-pgd", eps=EPS, step_size=STEP, seed=1)(MeanSign())
    assert found["val_clean_accuracy"] == 1 and found["n_val"] == 56
    assert found["val_robust_accuracy"] == pytest.approx((distance.abs() > EPS).float().mean().item()) == 40 / 56


def test_parts_names_and_modes(split, tinybn):
    parts = {"val": split.subset(20), "test": split}
    before = copy.deepcopy(tinybn.state_dict())
    network = Counted(tinybn).train()
    numbers = Validation(parts, attack="linf-pgd", eps=EPS, step_size=STEP, steps=2, seed=1, batch=32)(network)
    assert list(numbers) == ["val_clean_accuracy", "val_robust_accuracy", "n_val", "test_clean_accuracy",
                             "test_robust_accuracy", "n_test"]
    assert (numbers["n_val"], numbers["n_test"]) == (20, 64) and not any(network.modes)
    assert network.training and tinybn.training and all(p.requires_grad for p in tinybn.parameters())
    assert all(torch.equal(value, before[name]) for name, value in tinybn.state_dict().items())
    clean = Validation(parts, attack="linf-pgd", eps=EPS, step_size=STEP, seed=1, robust=False)(network)
    assert clean == {name: value for name, value in numbers.items() if "robust" not in name}
    right = (tinybn.eval()(to_float(split.images)).argmax(1) == split.labels).float().mean()
    assert clean["test_clean_accuracy"] == pytest.approx(right.item())


def test_every_epoch_starts_from_the_same_noise(split, lasting):
    def measured(seed):
        seen = []
        network = Counted(lasting)
        network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().clone()))
        given = {"attack": "linf-pgd", "eps": EPS, "step_size": STEP, "steps": 1, "batch": 40}
        return seen, Validation({"val": split}, seed=seed, **given), network

    seen, validation, network = measured(4)
    first = validation(network)
    torch.rand(17)                                       # the global generator has gone on
    assert validation(network) == first
    once, again = seen[:len(seen) // 2], seen[len(seen) // 2:]
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
    other, validation, network = measured(5)
    validation(network)
    assert torch.equal(other[0], once[0]) and not torch.equal(other[2], once[2])     # two clean passes, then attacks


def test_plain_means_over_batches_count_a_small_last_batch_for_more(lasting, split):
    right = lasting(to_float(split.images)).argmax(1) == split.labels
    order = right.int().argsort(stable=True)                                 # the right ones come last
    sorted_split = split.subset(order)
    given = {"attack": "linf-pgd", "eps": EPS, "step_size": STEP, "steps": 3, "seed": 1, "batch": 60}
    by_image = Validation({"val": sorted_split}, **given)(lasting)
    by_batch = Validation({"val": sorted_split}, batch_means=True, **given)(lasting)
    share = right[order].float()
    assert by_image["val_clean_accuracy"] == pytest.approx(share.mean().item())
    assert by_batch["val_clean_accuracy"] == pytest.approx((share[:60].mean() + share[60:].mean()).item() / 2)
    assert by_batch["val_clean_accuracy"] > by_image["val_clean_accuracy"] + 0.01
    assert by_batch["val_robust_accuracy"] != by_image["val_robust_accuracy"]


def test_batches_of_a_split_and_means(split):
    batches = list(in_batches(split, 30, 7, "val"))
    assert [len(y) for _, y, _ in batches] == [30, 30, 4]
    assert torch.equal(torch.cat([images for images, _, _ in batches]), split.images)
    assert torch.equal(torch.cat([y for _, y, _ in batches]), split.labels)
    assert [ctx.generator.initial_seed() for *_, ctx in batches] == [fold(7, "validate", "val", n) for n in range(3)]
    values = [torch.tensor([1.0, 1, 1]), torch.tensor([0.0])]
    assert mean(values) == 0.75 and mean(values, of_batches=True) == 0.5


def test_what_is_refused(split):
    with pytest.raises(ValueError, match="apgd"):
        validation_attack("linf-apgd", eps=EPS, step_size=STEP)
    with pytest.raises(ValueError, match="batch"):
        Validation({"val": split}, attack="linf-pgd", eps=EPS, step_size=STEP, seed=1, batch=0)
