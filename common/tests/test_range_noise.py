"""Noise in each image's own range (arXiv 2410.03952): golden spreads, nothing clipped into a ball, plain accuracy."""

import pytest
import torch
from torch import nn

from common.data.splits import Split, to_float
from common.errors import UserError
from common.evaluation import Evaluator, Plan, evaluate, result_json
from common.evaluation.range_noise import noise, noisy
from common.seeds import fold

KINDS = {"Gaussian": "gaussian-noise", "Uniform": "uniform-range-noise", "SaltPepper": "salt-pepper-noise"}


def evaluator(kind: str, eps: float, **settings) -> Evaluator:
    return Evaluator("noise", kind, eps=eps, settings=settings)


def ramps(count: int = 20) -> torch.Tensor:
    return torch.linspace(0, 1, 64 * 64).view(1, 1, 64, 64).repeat(count, 1, 1, 1)


def run(model, split, evaluators, folder, **changes):
    plan = Plan("p", tuple(evaluators), chunk=16)
    return evaluate(model, split, plan, **{"seed": 1, "device": "cpu", "work": folder, "progress": False} | changes)


@pytest.mark.parametrize("name", KINDS)
def test_the_released_spreads_on_a_ramp(golden, name):
    """The std of (noisy - clean) after the clamp; theirs is of one draw on a small ramp, ours of 82,000 pixels."""
    x = ramps()
    spread = (noisy(evaluator(KINDS[name], 0.1), x, 5) - x).std().item()
    assert spread == pytest.approx(golden[f"brainreg/noise_{name}_0.1_std"].item(), rel=0.02)


def test_salt_and_pepper_are_equally_likely():
    x = ramps()
    change = noisy(evaluator("salt-pepper-noise", 0.1), x, 5) - x
    up, down = (change > 0).float().mean().item(), (change < 0).float().mean().item()
    assert up + down == pytest.approx(0.099, abs=0.003) and up == pytest.approx(down, rel=0.06)
    moved = (x + change)[change != 0]
    assert ((moved - 1).abs() < 1e-6).logical_or(moved.abs() < 1e-6).all()


def test_the_draws_are_what_their_names_say():
    shape, count = torch.Size((400, 1, 16, 16)), 400 * 256
    drawn = {kind: noise(kind, shape, 0.3, torch.Generator().manual_seed(0)).flatten() for kind in KINDS.values()}
    gaussian, uniform, hits = drawn.values()
    assert gaussian.std().item() == pytest.approx(0.3, rel=0.02) and abs(gaussian.mean()) < 0.005
    assert (gaussian.abs() > 0.6).float().mean().item() == pytest.approx(0.0455, rel=0.1)
    shares = torch.histc(uniform, 10, -0.3, 0.3) / count
    assert uniform.abs().max() <= 0.3 and shares.min() > 0.095 and shares.max() < 0.105
    assert set(hits.unique().tolist()) == {-1.0, 0.0, 1.0}
    assert [(hits == side).float().mean().item() for side in (1, -1)] == pytest.approx([0.15, 0.15], rel=0.05)


@pytest.mark.parametrize("kind", KINDS.values())
def test_noise_stays_in_each_images_range(kind):
    """Over its channels, not each channel's own, not the box, not a ball."""
    x = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    x = 0.2 + 0.5 * x * torch.linspace(0.2, 1, 12).view(-1, 1, 1, 1)
    x[:, 1] = 0.1 + 0.2 * x[:, 1]
    drawn = noisy(evaluator(kind, 0.4), x, 3)
    for image, before in zip(drawn, x, strict=True):
        assert image.min() >= before.min() and image.max() <= before.max()
        # Another channel's values may be reached.
        assert image[1].max() > before[1].max() and image[0].min() < before[0].min()
    assert (drawn - x).abs().max() > 0.401 or kind == "uniform-range-noise"
    assert torch.equal(noisy(evaluator(kind, 0.0), x, 3), x)
    assert not torch.equal(noisy(evaluator(kind, 0.4), x, 4), drawn)


def test_strengths_are_shares_of_the_test_sets_range():
    """u = (v - lo)/(hi - lo) + n, clamped to the image's own range, scaled back."""
    low, high = 0.25, 0.75
    x = low + (high - low) * torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    got = noisy(evaluator("gaussian-noise", 0.2, low=low, high=high), x, 7)
    n = noise("gaussian-noise", x.shape, 0.2, torch.Generator().manual_seed(fold(7, "range noise")))
    u = (x - low) / (high - low)
    expected = torch.stack([(one + part).clamp(one.min().item(), one.max().item())
                            for one, part in zip(u, n, strict=True)])
    assert torch.allclose(got, low + (high - low) * expected, atol=1e-6)
    assert not torch.allclose(got, noisy(evaluator("gaussian-noise", 0.2), x, 7), atol=1e-3)


@pytest.fixture
def split(tiny) -> Split:
    images = torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        best, second = tiny(images / 255).topk(2).indices.unbind(1)
    return Split(images, torch.where(torch.arange(40) % 5 == 0, second, best))


def test_the_flags_are_accuracy_on_the_noisy_images(tiny, split, tmp_path):
    """Also of images that are wrong clean; by seed and chunk, whatever batch_size."""
    one = Evaluator("noise", "gaussian-noise", eps=0.2)
    result = run(tiny, split, [one], tmp_path / "a")[0]
    expected = []
    for chunk, (x, y) in enumerate(zip(to_float(split.images).split(16), split.labels.split(16), strict=True)):
        expected += (tiny(noisy(one, x, fold(1, "evaluate", "noise", chunk))).argmax(1) == y).tolist()
    clean = (tiny(to_float(split.images)).argmax(1) == split.labels).tolist()
    assert result.flags.tolist() == expected and result.survivors == {}
    assert any(now and not before for now, before in zip(expected, clean, strict=True))
    assert run(tiny, split, [one], tmp_path / "b", batch_size=3)[0].flags.tolist() == expected
    assert run(tiny, split, [one], tmp_path / "c", seed=2)[0].flags.tolist() != expected
    nothing = Evaluator("noise", "salt-pepper-noise", eps=0.0)
    assert run(tiny, split, [nothing], tmp_path / "d")[0].flags.tolist() == clean
    written = result_json(result)
    assert (written["eps"], written["settings"]) == (0.2, {"low": 0.0, "high": 1.0}) and "survivors" in written


def test_no_ball_cuts_the_noise_off(tmp_path):
    """A network that says 1 where a value is far from 0.5 sees salt, although eps is 0.1."""
    class Far(nn.Module):
        def forward(self, x):
            far = (x - 0.5).abs().flatten(1).amax(1)
            return torch.stack([0.3 - far, far - 0.3], 1)
    images = torch.full((8, 1, 16, 16), 128, dtype=torch.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = 60, 196                  # the range: 0.5 - 0.265 to 0.5 + 0.269
    split = Split(images, torch.ones(8, dtype=torch.int64))
    assert run(Far(), split, [Evaluator("n", "salt-pepper-noise", eps=0.1)], tmp_path / "a")[0].robust == 0
    images[:, 0, 0, 0] = 0
    split = Split(images, torch.ones(8, dtype=torch.int64))
    assert run(Far(), split, [Evaluator("n", "salt-pepper-noise", eps=0.1)], tmp_path / "b")[0].robust == 8


@pytest.mark.parametrize(("given", "message"), [
    ({"kind": "gaussian-noise", "norm": "l2"}, "kind gaussian-noise has no norm 'l2'; give one of linf"),
    ({"kind": "salt-pepper-noise", "eps": 3}, "larger than the whole range"),
    ({"kind": "gaussian-noise", "settings": {"low": -1}}, "low is a value of images in"),
    ({"kind": "gaussian-noise", "settings": {"high": 255}}, "high is a value of images in"),
    ({"kind": "uniform-range-noise", "settings": {"low": 0.5, "high": 0.5}}, "low 0.5 must be below high 0.5"),
])
def test_bad_noise_is_refused(given, message):
    with pytest.raises(UserError, match=message):
        Evaluator(**{"name": "n", "eps": 0.1} | given)


def test_a_range_that_is_not_of_these_images_is_refused(tiny, split, tmp_path):
    for kind, norm, low, high in (("gaussian-noise", "linf", 0.2, 1.0), ("boundary", "l2", 0.0, 0.9)):
        plan = [Evaluator("n", kind, norm, eps=0.1, settings={"low": low, "high": high})]
        with pytest.raises(UserError, match=rf"'n' is for images in \[{low:g},{high:g}\], and these .* from 0 to 1"):
            run(tiny, split, plan, tmp_path / "work")
    assert not (tmp_path / "work").exists()
