"""Transferred FGSM: the gradient comes from the source, in eval mode, float32; batches of 64 share their range."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from common.data.splits import Split, to_float
from common.errors import UserError
from common.evaluation import Evaluator, Plan, evaluate, result_json
from common.evaluation.transferred import limits, moved

SHA, OTHER = "ab" * 32, "cd" * 32


def evaluator(eps: float, name: str = "transferred", source: str = SHA, n: int | None = None) -> Evaluator:
    return Evaluator(name, "transferred-fgsm", eps=eps, n=n, settings={"source": source})


@pytest.fixture
def split(tiny) -> Split:
    """150 images of noise, every 64 in a narrower range: a last batch of 22; on every fifth the network is wrong."""
    images = torch.randint(0, 256, (150, 3, 8, 8), generator=torch.Generator().manual_seed(0)).float()
    for start, (low, high) in ((0, (10, 250)), (64, (40, 200)), (128, (90, 140))):
        images[start:start + 64] = low + (high - low) * images[start:start + 64] / 255
    images = images.round().to(torch.uint8)
    with torch.no_grad():
        best, second = tiny(images / 255).topk(2).indices.unbind(1)
    return Split(images, torch.where(torch.arange(150) % 5 == 0, second, best))


@pytest.fixture
def source() -> nn.Sequential:
    """Another network: with batch norm, left in train mode."""
    torch.manual_seed(4)
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(216, 10))
    network[1].running_mean.normal_(generator=torch.Generator().manual_seed(1))
    return network.train()


def run(model, split, evaluators, folder, sources, **changes):
    plan = Plan("p", tuple(evaluators), chunk=changes.pop("chunk", 50))
    return evaluate(model, split, plan, sources=sources,
                    **{"seed": 1, "device": "cpu", "work": folder, "progress": False} | changes)


def as_released(source: nn.Module, split: Split, eps: float) -> torch.Tensor:
    """v' (N,C,H,W), batch of 64 by batch of 64, from their mean's gradient in eval mode."""
    network, found = copy.deepcopy(source).eval(), []
    for x, y in zip(to_float(split.images).split(64), split.labels.split(64), strict=True):
        x = x.clone().requires_grad_(True)
        gradient, = torch.autograd.grad(F.cross_entropy(network(x), y), x)
        span = (x.max() - x.min()).item()
        found.append((x + eps * span * gradient.sign()).detach().clamp(x.min().item(), x.max().item()))
    return torch.cat(found)


@pytest.mark.parametrize(("chunk", "batch_size"), [(50, None), (150, 7), (64, 64)])
def test_the_flags_are_those_of_the_sources_images(tiny, split, source, tmp_path, chunk, batch_size):
    state = copy.deepcopy(source.state_dict())
    result = run(tiny, split, [evaluator(0.15)], tmp_path, {SHA: source, OTHER: tiny}, chunk=chunk,
                 batch_size=batch_size)[0]
    expected, by_itself, clean = (tiny(images).argmax(1) == split.labels for images in (
        as_released(source, split, 0.15), as_released(tiny, split, 0.15), to_float(split.images)))
    assert result.flags.tolist() == expected.tolist()
    assert by_itself.sum() < expected.sum() < clean.sum() and (expected & ~clean).any()
    assert source.training and all(torch.equal(state[name], value) for name, value in source.state_dict().items())
    assert result.survivors == {} and result_json(result)["settings"] == {"source": SHA}


def test_the_first_images_are_those_of_the_whole_test_set(tiny, split, source, tmp_path):
    """A batch's range is of all its 64 images, also of those that are not judged."""
    whole = run(tiny, split, [evaluator(0.15)], tmp_path / "a", {SHA: source})[0]
    some = run(tiny, split, [evaluator(0.15, n=70)], tmp_path / "b", {SHA: source}, chunk=20)[0]
    assert some.flags.tolist() == whole.flags[:70].tolist()
    low, high = limits(split, slice(60, 70))
    assert low.shape == high.shape == (10, 1, 1, 1)
    assert low.flatten().tolist() == [int(split.images[:64].min())] * 4 + [int(split.images[64:128].min())] * 6
    assert high.flatten().tolist() == [int(split.images[:64].max())] * 4 + [int(split.images[64:128].max())] * 6
    low, high = limits(split, slice(128, 150))
    assert set(low.flatten().tolist()) == {90} and set(high.flatten().tolist()) == {140}


def test_eps_0_changes_nothing(tiny, split, source, tmp_path):
    clean, none = run(tiny, split, [Evaluator("clean", "clean"), evaluator(0.0)], tmp_path, {SHA: source})
    assert none.flags.tolist() == clean.flags.tolist() and 0 < clean.robust < 150
    x = to_float(split.images[:64])
    assert torch.equal(moved(0.0, x, torch.ones_like(x), x.amin().expand(64, 1, 1, 1), x.amax().expand(64, 1, 1, 1)), x)


def test_gradients_are_taken_once_for_all_strengths(tiny, split, source, tmp_path):
    passes = []
    source.register_forward_hook(lambda module, inputs, output: passes.append(len(inputs[0])))
    strengths = [evaluator(eps, f"t {eps}") for eps in (0.0, 0.05, 0.15)]
    results = run(tiny, split, strengths, tmp_path, {SHA: source}, chunk=64)
    assert passes == [1, 64, 64, 22]                                            # the first asks for its classes
    for result in results:
        expected = tiny(as_released(source, split, result.evaluator.eps)).argmax(1) == split.labels
        assert result.flags.tolist() == expected.tolist()


def test_each_evaluator_has_its_own_source(tiny, split, source, tmp_path):
    """Which may be the judged network itself."""
    both = [evaluator(0.1, "other", OTHER), evaluator(0.1, "own", SHA)]
    results = run(tiny, split, both, tmp_path, {SHA: tiny, OTHER: source})
    for result, network in zip(results, (source, tiny), strict=True):
        expected = tiny(as_released(network, split, 0.1)).argmax(1) == split.labels
        assert result.flags.tolist() == expected.tolist()
    assert results[0].flags.tolist() != results[1].flags.tolist()


def test_a_missing_source_stops_the_plan_before_anything_runs(tiny, split, source, tmp_path):
    evaluators = [Evaluator("clean", "clean"), evaluator(0.1)]
    for sources in (None, {}, {OTHER: source}):
        with pytest.raises(UserError, match=rf"'transferred' takes .* sha256 {SHA[:12]}\.\.\., .*not here"):
            run(tiny, split, evaluators, tmp_path / "work", sources)
    with pytest.raises(UserError, match="has 3 classes, the judged one 10"):
        run(tiny, split, evaluators, tmp_path / "work", {SHA: nn.Sequential(nn.Flatten(), nn.Linear(192, 3))})
    with pytest.raises(UserError, match=r"gradients are to be taken cannot take images of shape \(3, 8, 8\)"):
        run(tiny, split, evaluators, tmp_path / "work", {SHA: nn.Sequential(nn.Flatten(), nn.Linear(5, 10))})
    with pytest.raises(UserError, match="test_crop crops the test images"):
        evaluate(tiny, split, Plan("p", [evaluator(0.1)], test_crop=True), seed=1, device="cpu", work=tmp_path / "work",
                 progress=False, sources={SHA: source})
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(("given", "message"), [
    ({}, "source is the sha256 of a network's weights"),
    ({"settings": {"source": "unregularised_short_s0"}}, "64 hexadecimal digits"),
    ({"settings": {"source": SHA}, "eps": 1.5}, "larger than the whole range"),
])
def test_bad_evaluators_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        Evaluator(**{"name": "t", "kind": "transferred-fgsm", "eps": 0.1} | given)
