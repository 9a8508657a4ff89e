"""AutoAttack chunk by chunk gives the official verdict; torchattacks' version gives its own."""

import logging
import random

import numpy as np
import pytest
import torch
import torchattacks
from torch import nn

from common.data.splits import Split, to_float
from common.evaluation import Evaluator, Plan, evaluate
from common.evaluation.autoattack import NORMS, Official, Upstream, shorten
from common.evaluation.judging import Network, seeded
from common.seeds import fold

EPS = {"linf": 0.012, "l2": 0.1, "l1": 0.8}        # some images fall and some stand


def network(classes: int) -> nn.Module:
    """Untrained, with a pool, a residual sum and batch norm: (B,3,8,8) -> (B,classes)."""
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.conv = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
            self.bn, self.head = nn.BatchNorm2d(8), nn.Linear(128, classes)

        def forward(self, x):
            x = self.stem(x)
            return self.head(nn.functional.avg_pool2d(x + self.bn(self.conv(x)).relu(), 2).flatten(1))
    with seeded(classes):
        return Block().eval()


def noise(model: nn.Module, count: int, size: int = 8) -> Split:
    """Images of noise on which the model is right, except for every tenth."""
    images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8,
                           generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        logits = model(to_float(images))
    labels = logits.argmax(1)
    labels[::10] = logits[::10].argmin(1)
    return Split(images, labels)


def run(model, split, plan, folder):
    return evaluate(model, split, plan, seed=3, device="cpu", work=folder, progress=False)


def short(norm: str, **changes) -> Evaluator:
    return Evaluator("short-AA", "autoattack", norm, EPS[norm], settings={"iterations": 6, "queries": 30}, **changes)


def official(model, split, norm, eps, seed, iterations=100, queries=5000) -> list[bool]:
    """The package's own run_standard_evaluation on all of `split` in one batch."""
    theirs = Upstream(Network(model), norm=NORMS[norm], eps=eps, version="standard", device="cpu", seed=seed)
    if iterations != 100:
        for attack in (theirs.apgd, theirs.apgd_targeted):
            shorten(attack, iterations)
    theirs.fab.n_iter, theirs.square.n_queries = iterations, queries
    _, predicted = theirs.run_standard_evaluation(to_float(split.images), split.labels, batch_size=len(split))
    return (predicted == split.labels).tolist()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_each_chunk_has_the_official_verdict(tiny, tmp_path, norm):
    split = noise(tiny, 24)
    evaluator = short(norm)
    result = run(tiny, split, Plan("p", (evaluator,), chunk=14), tmp_path)[0]
    expected = []
    for chunk, part in enumerate((torch.arange(14), torch.arange(14, 24))):
        seed = fold(3, "evaluate", "short-AA", chunk)
        expected += official(tiny, split.subset(part), norm, evaluator.eps, seed, iterations=6, queries=30)
    assert result.flags.tolist() == expected
    assert 0 < result.robust < result.survivors["clean"] == 21
    assert list(result.survivors) == ["clean", "apgd-ce", "apgd-t", "fab-t", "square"]
    left = list(result.survivors.values())
    assert left == sorted(left, reverse=True) and left[-1] == result.robust


def test_the_standard_version_is_what_runs_by_default(tiny):
    for norm, restarts, targets in (("linf", 1, 9), ("l2", 1, 9), ("l1", 5, 5)):
        stages = Official(Evaluator("AutoAttack", "autoattack", norm, 0.1), tiny, 10, torch.device("cpu")).stages
        assert (stages["apgd-ce"].n_iter, stages["apgd-ce"].n_restarts, stages["apgd-ce"].loss) == (100, restarts, "ce")
        assert (stages["apgd-t"].n_iter, stages["apgd-t"].n_restarts, stages["apgd-t"].n_target_classes) == (
            100, 1, targets)
        assert (stages["fab-t"].n_iter, stages["fab-t"].n_restarts, stages["fab-t"].n_target_classes,
                stages["fab-t"].targeted) == (100, 1, 9, True)
        assert (stages["square"].n_queries, stages["square"].n_restarts) == (5000, 1)
        assert stages["apgd-ce"].use_largereps == stages["apgd-t"].use_largereps == (norm == "l1")


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_each_stage_starts_from_the_seed_of_its_chunk(tiny, norm):
    # A radius at which Square succeeds: an attack that fails returns the clean image.
    split, eps = noise(tiny, 4), 10 * EPS[norm]
    evaluator = Evaluator("short-AA", "autoattack", norm, eps, settings={"iterations": 6, "queries": 30})
    ours = Official(evaluator, tiny, 10, torch.device("cpu"))
    x, y, standing = to_float(split.images), split.labels, torch.tensor([3, 1])
    found = {seed: {name: stage(standing) for name, stage in ours(x, y, seed)} for seed in (5, 6)}
    theirs = Upstream(tiny, norm=NORMS[norm], eps=eps, version="standard", device="cpu", seed=5)
    shorten(theirs.apgd, 6)
    theirs.square.n_queries = 30
    for name, attack in (("apgd-ce", theirs.apgd), ("square", theirs.square)):
        assert torch.equal(found[5][name], attack.perturb(x[standing], y[standing]))
    assert not torch.equal(found[5]["square"], found[6]["square"])


def test_masked_gradients_are_said_once_and_not_by_the_logger(tiny, tmp_path, caplog, capsys):
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.tiny = tiny

        def forward(self, x):
            return self.tiny(x.detach()) + 0 * x.sum()
    evaluator = Evaluator("short-AA", "autoattack", eps=0.1, settings={"iterations": 2, "queries": 200})
    with caplog.at_level(logging.WARNING):
        result = evaluate(Masked(), noise(tiny, 12), Plan("p", (evaluator,), chunk=6), seed=3, device="cpu",
                          work=tmp_path, allow=("E-GRADIENT",))[0]
    said = capsys.readouterr().err
    assert result.survivors["square"] < result.survivors["fab-t"]
    assert said.count("gradients may be masked") == 1 and caplog.text == ""


@pytest.mark.slow
def test_the_standard_version_has_the_official_verdict(tiny, tmp_path):
    split, eps = noise(tiny, 16), EPS["linf"]
    result = run(tiny, split, Plan("p", (Evaluator("AutoAttack", "autoattack", eps=eps),)), tmp_path)[0]
    assert result.flags.tolist() == official(tiny, split, "linf", eps, fold(3, "evaluate", "AutoAttack", 0))
    assert 0 < result.robust < result.survivors["clean"]


@pytest.mark.slow
def test_torchattacks_has_its_own_verdict(tiny, tmp_path):
    split = noise(tiny, 16)
    result = run(tiny, split, Plan("p", (Evaluator("ten-steps", "torchattacks-autoattack", eps=0.012),)), tmp_path)[0]
    x, seed = to_float(split.images), fold(3, "evaluate", "ten-steps", 0)
    with torch.no_grad():
        right = tiny(x).argmax(1) == split.labels
    theirs = torchattacks.AutoAttack(tiny, eps=0.012, n_classes=10, seed=seed)(x[right], split.labels[right])
    expected = right.clone()
    expected[right] = tiny(theirs).argmax(1) == split.labels[right]
    assert result.flags.tolist() == expected.tolist()
    assert 0 < result.robust < result.survivors["clean"]


@pytest.mark.parametrize("kind", ["autoattack", "torchattacks-autoattack"])
@pytest.mark.parametrize("classes", [4, 5, 12])
def test_it_is_quiet_reproducible_and_leaves_everything_alone(tmp_path, capfd, caplog, recwarn, kind, classes):
    # Channels-last, with four classes or more, nothing printed, and the global generators where they were.
    model = network(classes).to(memory_format=torch.channels_last).train()
    split = noise(model.eval(), 12)
    model.train()
    plan = Plan("p", (Evaluator("short", kind, eps=0.02, settings={"iterations": 3, "queries": 8}),), chunk=7)
    states = torch.random.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    with caplog.at_level(logging.WARNING):
        once = run(model, split, plan, tmp_path / "once")[0]
    assert torch.equal(torch.random.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1] and random.getstate() == states[2]
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    torch.manual_seed(99)
    again = run(model, split, plan, tmp_path / "again")[0]
    assert once.flags.tolist() == again.flags.tolist() and once.survivors == again.survivors
    assert once.robust <= once.survivors["clean"] == 10
    written = capfd.readouterr()
    assert written.out == "" and written.err == "" and caplog.text == "" and len(recwarn) == 0


def test_an_image_alone_and_none_left(tiny, tmp_path):
    split = noise(tiny, 3)
    one = run(tiny, split, Plan("p", (short("linf"),), chunk=1), tmp_path / "one")[0]
    assert one.n == 3 and not one.flags[0]
    wrong = Split(split.images, (split.labels + 1) % 10)
    wrong = run(tiny, wrong, Plan("p", (short("linf", n=3),)), tmp_path / "none")[0]
    assert wrong.robust <= 1 and wrong.survivors["square"] == wrong.robust


def test_it_finds_more_than_pgd(tiny, tmp_path):
    split = noise(tiny, 40)
    plan = Plan("p", (Evaluator("FGSM", "fgsm", eps=EPS["linf"]), short("linf")))
    weak, strong = run(tiny, split, plan, tmp_path)
    assert strong.robust <= weak.robust


def test_a_network_sees_plain_layout_and_gives_plain_gradients():
    model = network(5).to(memory_format=torch.channels_last)
    x = torch.rand(2, 3, 8, 8).requires_grad_()
    plain, = torch.autograd.grad(model(x).sum(), x)
    wrapped, = torch.autograd.grad(Network(model)(x).sum(), x)
    assert wrapped.is_contiguous() and torch.equal(plain, wrapped)
