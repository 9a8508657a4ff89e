"""The boundary attack as arXiv 2410.03952 runs it: against the own prediction, within the range of the test images, its
distance a mean of squares; the same medians as foolbox's own search, one image at a time."""

import numpy as np
import pytest
import torch
from torch import nn

from common.data.splits import Split, to_float
from common.errors import UserError
from common.evaluation import Evaluator, Plan, evaluate, result_json
from common.evaluation.decision import Search, boundary, foolbox, starting_points
from common.evaluation.judging import judged, seeded
from common.evaluation.measuring import quantiles
from common.evaluation.summaries import said


def evaluator(n: int | None = None, name: str = "B", **settings) -> Evaluator:
    return Evaluator(name, "boundary", "l2", eps=0.0, n=n,
                     settings={"against": "prediction", "iterations": 50, **settings})


def run(model, split, evaluators, folder, **changes):
    plan = Plan("p", tuple(evaluators), chunk=changes.pop("chunk", 100))
    return evaluate(model, split, plan, **{"seed": 1, "device": "cpu", "work": folder, "progress": False} | changes)


@pytest.fixture
def split(tiny) -> Split:
    """40 images of values 51 to 204, every fourth with another label than the network's."""
    images = torch.randint(51, 205, (40, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[0, 0, 0, :2] = torch.tensor([51, 204], dtype=torch.uint8)
    with torch.no_grad():
        labels = tiny(to_float(images)).argmax(1)
    return Split(images, torch.where(torch.arange(40) % 4 == 0, (labels + 1) % 10, labels))


def ends_of(model, split, one) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and where our search ended."""
    x = to_float(split.images)
    with judged(model, torch.device("cpu")) as network:
        search = Search(one, network, torch.device("cpu"), 100)
        with seeded(1):
            ends, found = search.search(x, search.predict(x), 1)
    assert found.all()
    return x, ends


def test_the_distance_is_a_mean_of_squares_in_units_of_the_range(tiny, split, tmp_path):
    low, high = 0.2, 0.8
    results = run(tiny, split, [evaluator(low=low, high=high)], tmp_path / "a")
    arrays = results[0].arrays
    expected = (arrays["distance"].astype(np.float64) / (high - low)) ** 2 / 192
    np.testing.assert_allclose(arrays["mean_square"], expected, rtol=1e-5)
    values = results[0].values
    assert (values["attacked"], values["found"], values["failed"], values["correct_clean"]) == (40, 40, 0, 30)
    assert values["mean_square"]["median"] == pytest.approx(np.median(arrays["mean_square"]), rel=1e-6)
    # eps 0: what is counted are the images that are right clean, wherever the search took them.
    assert results[0].robust == 30 and results[0].survivors == {"clean": 30} and values["correct_unbounded"] == 0
    assert result_json(results[0])["values"]["mean_square"].keys() == {"q10", "q25", "median", "q75", "q90"}
    line, = said(result_json(results[0]))
    assert line.startswith("B              searched 40, nothing found for 0; median distance")
    assert line.endswith(f"median of mean squares {values['mean_square']['median']:.3g}")
    line, more = said({**result_json(results[0]), "eps": 0.5})
    assert "(30 of 40 images)" in line and more.startswith("  searched 40")


def test_the_first_channel_alone_is_counted_with_the_quirk(tiny, split):
    x, ends = ends_of(tiny, split, evaluator())
    displacement = (ends - x).double()
    whole, first = (Search(evaluator(first_channel=quirk, low=0.1, high=0.9), tiny, torch.device("cpu"),
                           100).mean_square(displacement) for quirk in (False, True))
    assert torch.allclose(first, (displacement[:, 0] / 0.8).square().sum((1, 2)) / 64)
    assert torch.allclose(whole, (displacement / 0.8).square().sum((1, 2, 3)) / 192)
    assert not torch.allclose(first, whole)


def test_the_search_stays_within_the_range_of_the_test_images(tiny, split):
    low, high = 51 / 255, 204 / 255
    for one in (evaluator(low=low, high=high), evaluator(low=round(low + 4e-9, 9), high=round(high - 4e-9, 9))):
        x, ends = ends_of(tiny, split, one)
        assert ends.min() >= low - 1e-6 and ends.max() <= high + 1e-6 and (ends - x).abs().max() > 0.05
    _, ends = ends_of(tiny, split, evaluator())
    assert ends.min() < low - 0.01 and ends.max() > high + 0.01


def test_starts_are_drawn_within_the_range():
    x, target = torch.full((4, 1, 4, 4), 0.5), torch.zeros(4, dtype=torch.int64)
    seen = []
    def predict(images):
        seen.append(images.clone())
        return torch.zeros(len(images), dtype=torch.int64)
    starting_points(predict, x, target, torch.Generator().manual_seed(0), directions=3, blends=5, bounds=(0.4, 0.7))
    drawn = torch.cat(seen[:3])
    assert drawn.min() >= 0.4 and drawn.max() <= 0.7 and drawn.max() - drawn.min() > 0.25


class Deaf(nn.Module):
    """Class 1 for images darker than 0.2 on average, else class 0, as every image of noise."""

    def forward(self, x):
        dark = 10 * (0.2 - x.flatten(1).mean(1))
        return torch.stack([-dark, dark], 1)


def test_failed_starts_are_left_out_of_the_medians_and_counted(tmp_path):
    images = torch.full((9, 1, 8, 8), 20, dtype=torch.uint8)
    images[::3] = 128                                                  # like all noise: no start has another class
    images[1] = 10                                                     # farther away than the others
    split = Split(images, torch.tensor([0, 1, 1] * 3))
    result = run(Deaf(), split, [evaluator(directions=10)], tmp_path)[0]
    values, squares = result.values, result.arrays["mean_square"]
    assert (values["attacked"], values["found"], values["failed"]) == (9, 6, 3)
    assert np.isnan(squares[::3]).all() and not np.isnan(np.delete(squares, [0, 3, 6])).any()
    assert values["mean_square"]["median"] == pytest.approx(np.median(np.delete(squares, [0, 3, 6])), rel=1e-6)
    assert squares[1] == np.nanmax(squares)
    none = run(Deaf(), split, [evaluator(directions=10, n=1)], tmp_path / "none")[0].values
    assert none["mean_square"] is None and none["failed"] == 1
    assert quantiles(np.array([np.nan, 3.0, 1.0, 2.0]))["median"] == 2.0


@pytest.mark.slow
def test_the_medians_are_those_of_foolbox_one_by_one(tiny, split, tmp_path):
    """Within four standard errors of the repeats."""
    repeats, count = 4, 24
    some = split.subset(count)
    x = to_float(some.images)
    results = run(tiny, some, [evaluator(name=f"B{repeat}") for repeat in range(repeats)], tmp_path)
    ours = np.array([np.median(result.arrays["mean_square"]) for result in results])
    package, theirs, each = foolbox(), [], []
    with judged(tiny, torch.device("cpu")) as network:
        model = package.PyTorchModel(network, bounds=(0, 1), device="cpu")
        own = network(x).argmax(1)
        for repeat in range(repeats):
            squares = []
            with seeded(repeat):
                for image, label in zip(x.split(1), own.split(1), strict=True):
                    end = boundary(package, evaluator().setting).run(model, image, package.Misclassification(label))
                    squares.append(((end - image) ** 2).mean().item())
            theirs.append(np.median(squares))
            each.append(squares)
    error = np.hypot(ours.std(ddof=1), np.std(theirs, ddof=1)) / np.sqrt(repeats)
    assert abs(ours.mean() - np.mean(theirs)) < 4 * error < np.mean(theirs)
    # Sharper, image by image: the ratio of the two means over the repeats is 1 on average.
    ratio = np.log(np.mean([result.arrays["mean_square"] for result in results], 0) / np.mean(each, 0))
    spread = ratio.std(ddof=1) / np.sqrt(count)
    assert abs(ratio.mean()) < 4 * spread < 0.6


@pytest.mark.parametrize(("settings", "message"), [
    ({"first_channel": 1}, "first_channel is True or False"),
    ({"low": 0.6, "high": 0.4}, "low 0.6 must be below high 0.4"),
    ({"low": 2}, "low is a value of images"),
])
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        evaluator(**settings)
