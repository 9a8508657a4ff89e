"""What part 2's settings make: data, attacks, objectives, optimiser, batches, and what validation sees."""

import numpy as np
import pytest
import torch

from common import models
from common.data import Batches, Split
from common.engine import Engine
from rpat import sota_training
from rpat.attacks import FromEpoch, no_attack
from rpat.rebat import ReBAT, RPATpp
from rpat.sota_flags import parser, settings_of
from rpat.sota_inputs import describe_network, load_inputs
from rpat.sota_schedules import learning_rate
from rpat.sota_validation import SotaValidation, selection_attack
from rpat.validation import held_out_positions


def parsed(line="", method="RPAT++"):
    args = parser(method).parse_args(line.split())
    return settings_of(method, args), args


def settings(line="", method="RPAT++"):
    return parsed(line, method)[0]


def test_the_released_validation_images_and_steps():
    held = held_out_positions(50_000)
    assert held[:5] == [11841, 19602, 45519, 25747, 42642] and len(set(held)) == 1000
    assert len(held_out_positions(300)) == 30
    kept = Split(torch.zeros(49_000, 1, 1, 1, dtype=torch.uint8), torch.zeros(49_000, dtype=torch.int64))
    assert len(Batches(kept, settings("").batch_size, seed=0)) == 383


def test_val_holds_images_out_of_the_training():
    found, args = parsed("--data digits --val --n_train 1258")
    inputs, whole = load_inputs(found, args), load_inputs(*parsed("--data digits"))
    positions = np.random.RandomState(0).permutation(1397)[:139]
    assert torch.equal(inputs.validation.images, whole.data.train.images[positions])
    assert len(inputs.data.train) == 1397 - 139 and whole.validation is None


@pytest.mark.parametrize(("line", "first", "last"), [
    ("", (8 / 255, 10), (8 / 255, 10)), ("--stronger-attack", (8 / 255, 10), (10 / 255, 12)),
    ("--norm l_2 --epsilon 128 --pgd-alpha 15 --restarts 2", (128 / 255, 10), (128 / 255, 10))])
def test_training_attacks(line, first, last):
    found = settings(line)
    attack = sota_training.training_attack(found)
    before, after = (attack.before, attack.after) if isinstance(attack, FromEpoch) else (attack, attack)
    assert [(one.eps, one.steps) for one in (before, after)] == [first, last]
    assert {before.step_size, after.step_size} == {found.step_size} and before.norm == after.norm == found.norm
    assert before.restarts == found.restarts and getattr(attack, "epoch", 100) == 100
    assert sota_training.training_attack(settings("--attack none")) is no_attack


@pytest.mark.parametrize(("line", "eps", "step", "steps"), [
    ("--epsilon 4 --pgd-alpha 1 --attack-iters 7", 4, 1, 7), ("--norm l_2 --epsilon 128 --pgd-alpha 15", 128, 15, 10),
    ("--epsilon 4 --pgd-alpha 1 --attack-iters 7 --quirks select-attack-fixed", 8, 2, 10),
    ("--norm l_2 --epsilon 128 --quirks select-attack-fixed", 8, 2, 10),
    ("--stronger-attack --stronger-eval --pgd-alpha 3 --quirks select-attack-fixed", 10, 3, 12),
    ("--stronger-eval --epsilon 4", 4, 2, 10)])
def test_selection_attacks(line, eps, step, steps):
    found = settings(line)
    attack = selection_attack(found)
    assert (attack.eps, attack.step_size, attack.steps) == (eps / 255, step / 255, steps) and attack.norm == found.norm
    assert selection_attack(found, stronger=False).steps != 12
    assert selection_attack(settings(f"{line} --eval-attack none")) is None


def test_objectives_get_their_quirks_and_weights():
    rate = learning_rate("piecewise")
    made = sota_training.objective(settings("--beta 2 --l1 0.5 --use-reg-schedule --reg-schedule piecewise"), rate)
    assert type(made) is RPATpp and made.rate == 0.5 and made.l1 == 0.5
    assert made.train_mode_attack and made.wa_train_mode and made.half_inputs
    assert [made.weight(epoch, 0, 391) for epoch in (104, 105, 150)] == [0, 2, 3]
    made = sota_training.objective(settings("--quirks none", "ReBAT"), rate)
    assert type(made) is ReBAT and made.weight.schedule is None
    assert not (made.train_mode_attack or made.wa_train_mode or made.half_inputs)
    dependent = sota_training.objective(settings("--use-reg-schedule"), rate).weight
    assert dependent(105, 0, 391) == pytest.approx(0.25)


def test_l2_decays_weights_alone_and_replaces_the_usual_decay():
    network = models.build("preactresnet18", classes=10, width=8)
    usual = sota_training.optimiser(settings("")).build(network)
    assert [(group["weight_decay"], len(group["params"])) for group in usual.param_groups] \
        == [(5e-4, len(list(network.parameters())))]
    split = sota_training.optimiser(settings("--l2 0.01")).build(network)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    decayed, free = ({names[id(p)] for p in group["params"]} for group in split.param_groups)
    assert [group["weight_decay"] for group in split.param_groups] == [0.01, 0]
    assert "conv1.weight" in decayed and "linear.weight" in decayed
    assert free == {name for name in names.values() if "bn" in name or "bias" in name}


def test_coloured_images_are_normalised_by_cifar10s_numbers_and_training_is_augmented():
    found, args = parsed("--data digits --cutmix --batch-size 16")
    data = load_inputs(found, args).data
    engine = Engine.choose("cpu", "fp32")
    batches = sota_training.make_batches(data, found, engine)
    assert (batches.crop, batches.crop_mode, batches.flip, batches.drop_last) == (4, "reflect", True, False)
    batch = next(batches.epoch(0))
    assert batch.y.shape == (16, 10) and batch.extra.shape == (16,)
    coloured = Split(data.train.images.repeat(1, 3, 1, 1), data.train.labels)
    described = describe_network(settings("--model PreActResNet18 --width 8"),
                                 type(data)("c", coloured, coloured, 10, data.class_names, "c"))
    assert described == {"name": "preactresnet18", "width": 8, "classes": 10, "channels": 3,
                         "normalise": [[0.4914, 0.4822, 0.4465], [0.2471, 0.2435, 0.2616]]}


def test_half_test_inputs_are_what_validation_sees():
    found, args = parsed("--data digits --quirks half-test-inputs --eval-attack none")
    seen = []

    class Watched(torch.nn.Module):
        def forward(self, x):
            seen.append(x)
            return x.new_zeros(len(x), 10)
    split = load_inputs(found, args).data.test.subset(4)
    network = Watched()
    SotaValidation(network, split, found)(network)
    exact = split.float_images()
    assert seen[0].dtype == torch.float32 and torch.equal(seen[0], exact.half().float())
    assert not torch.equal(seen[0], exact) and (seen[0] - exact).abs().max() <= 0.063 / 255
