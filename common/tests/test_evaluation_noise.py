"""Uniform noise and weak attacks: what is judged is exactly the image that the formula says."""

import pytest
import torch

from common.attacks import PGD, ball
from common.data.splits import Split, to_float
from common.errors import UserError
from common.evaluation import Evaluator, Plan, evaluate, runners
from common.evaluation.noise import noisy
from common.seeds import fold
from common.types import StepContext

EPS = 0.03
CPU = torch.device("cpu")


@pytest.fixture
def split(tiny) -> Split:
    """40 images of noise, near-black and near-white ones among them; the network is right on 32 of them."""
    images = torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        labels = tiny(images / 255).argmax(1)
    labels[::5] = (labels[::5] + 1) % 10
    return Split(images, labels)


def run(model, split, evaluator, folder, **changes):
    return evaluate(model, split, Plan("p", (evaluator,), chunk=16),
                    **{"seed": 1, "device": "cpu", "work": folder, "progress": False} | changes)[0]


def test_noise_is_uniform_in_the_ball_and_clipped(split):
    x = to_float(split.images)
    drawn = noisy(ball("linf", 8 / 255), x, 7)
    inner = ((x > 8 / 255) & (x < 247 / 255))
    shift = (drawn - x)[inner] * 255 / 8
    assert drawn.min() >= 0 and drawn.max() <= 1 and (drawn[x == 0] >= 0).all() and shift.abs().max() <= 1 + 1e-5
    shares = torch.histc(shift, 8, -1, 1) / len(shift)
    assert shares.min() > 0.11 and shares.max() < 0.14                    # 1/8 each: uniform, also in the corners
    assert not torch.equal(noisy(ball("linf", 8 / 255), x, 8), drawn)


def test_the_flags_are_those_of_the_noisy_images(tiny, split, tmp_path):
    evaluator = Evaluator("noise", "uniform-noise", eps=0.3)
    result = run(tiny, split, evaluator, tmp_path / "a")
    expected = []
    for chunk, (x, y) in enumerate(zip(to_float(split.images).split(16), split.labels.split(16), strict=True)):
        x_noisy = noisy(ball("linf", 0.3), x, fold(1, "evaluate", "noise", chunk))
        expected += ((tiny(x).argmax(1) == y) & (tiny(x_noisy).argmax(1) == y)).tolist()
    assert result.flags.tolist() == expected and 0 < result.robust < 32 and result.survivors == {"clean": 32}
    assert run(tiny, split, evaluator, tmp_path / "b", batch_size=3).flags.tolist() == expected
    assert run(tiny, split, evaluator, tmp_path / "c", seed=2).flags.tolist() != expected
    assert run(tiny, split, Evaluator("noise", "uniform-noise", eps=0.0), tmp_path / "d").robust == 32


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_weak_attack_goes_part_of_the_way(tiny, split, norm):
    eps = {"linf": EPS, "l2": 0.3, "l1": 3.0}[norm]
    pgd = PGD(eps, eps / 4, 5, norm=norm)
    x, y, standing = to_float(split.images[:16]), split.labels[:16], torch.tensor([1, 4, 9])
    ctx = StepContext(torch.Generator().manual_seed(fold(5, "restart", 0)))
    whole = pgd(tiny, x, y, ctx)
    for share in (0.0, 3 / 8, 1.0):
        evaluator = Evaluator("w", "weak-pgd", norm, eps, eps / 4, 5, settings={"share": share})
        runner = runners.runner_for(evaluator, tiny, classes=10, device=CPU, batch_size=2)
        (stage, attack), = runner(x, y, 5)
        weak = attack(standing)
        assert stage == "restart-1"
        assert torch.allclose(weak, x[standing] + share * (whole[standing] - x[standing]), atol=1e-6)
        assert (weak - x[standing]).abs().max() > 0 or share == 0


def test_weak_attacks_by_strength(tiny, split, tmp_path):
    """RPAT's w/8: w = 0 is clean, w = 8 is PGD itself, and in between accuracy falls."""
    pgd = run(tiny, split, Evaluator("P", "pgd", eps=EPS, step_size=EPS / 4, steps=5), tmp_path / "pgd")
    left = [run(tiny, split, Evaluator("P", "weak-pgd", eps=EPS, step_size=EPS / 4, steps=5,
                                       settings={"share": w / 8}), tmp_path / str(w)) for w in (0, 1, 4, 8)]
    assert left[0].robust == 32 and left[3].flags.tolist() == pgd.flags.tolist()
    assert 32 > left[2].robust > left[3].robust and left[1].robust >= left[2].robust


@pytest.mark.parametrize(("given", "message"), [
    ({"kind": "uniform-noise", "norm": "l1"}, "kind uniform-noise has no norm 'l1'; give one of linf"),
    ({"kind": "uniform-noise", "norm": "l2"}, "no norm 'l2'"),
    ({"kind": "uniform-noise", "eps": 8}, "give 8/255"),
    ({"kind": "weak-pgd", "settings": {"share": 1.5}}, "share is a number from 0"),
    ({"kind": "weak-pgd", "settings": {"share": True}}, "share is a number from 0"),
    ({"kind": "weak-pgd", "settings": {"loss": "mse"}}, "unknown loss 'mse'"),
])
def test_bad_noise_is_refused(given, message):
    with pytest.raises(UserError, match=message):
        Evaluator(**{"name": "n"} | given)
