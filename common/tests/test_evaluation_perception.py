"""Perception consistency: known answers, groups, records, resuming."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from common import records
from common.attacks import PGD
from common.data.splits import Split, to_float
from common.errors import UserError
from common.evaluation import Evaluator, Plan, evaluate, harness, result_json
from common.evaluation.measuring import PAIRS, perception_values
from common.evaluation.perception import moves
from common.seeds import fold
from common.tests.fabricate import fabricate
from common.types import StepContext

PGD_5 = Evaluator("perception", "perception-pgd", eps=0.02, step_size=0.005, steps=5)
NOISE = Evaluator("noise", "perception-noise", eps=0.3)


@pytest.fixture
def split(tiny) -> Split:
    """40 images of noise; the network is right on 32 of them."""
    images = torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        labels = tiny(images / 255).argmax(1)
    labels[::5] = (labels[::5] + 1) % 10
    return Split(images, labels)


def run(model, split, plan, folder, **changes):
    return evaluate(model, split, plan, **{"seed": 1, "device": "cpu", "work": folder, "progress": False} | changes)


class Answers(nn.Module):
    """Says for each image the logits of a table, whose row is the image's first value."""

    def __init__(self, table):
        super().__init__()
        self.table = torch.tensor(table)

    def forward(self, x):
        return self.table[x[:, 0, 0, 0].round().long()]


def test_moves_of_known_logits():
    """f(x) = (2,0,-1), f(x') = (0,1,0), f(mid) = (1,1,1): 6/3, 6/3 and 2/3; half way in logits would be 1.5/3."""
    network = Answers([[2.0, 0.0, -1.0], [1.0, 1.0, 1.0], [0.0, 1.0, 0.0]])
    x, x_adv = torch.zeros(2, 1, 2, 2), torch.zeros(2, 1, 2, 2)
    x_adv[0] = 2.0
    distances, predicted = moves(network, x, x_adv)
    assert torch.allclose(distances, torch.tensor([[2.0, 2.0, 2 / 3], [0, 0, 0]])) and predicted.tolist() == [1, 0]


def test_a_linear_network_moves_evenly(tmp_path, split):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
    for evaluator in (PGD_5, NOISE):
        arrays = run(network, split, Plan("p", (evaluator,)), tmp_path / evaluator.name)[0].arrays
        whole, first, second = (arrays[pair].astype(np.float64) for pair in PAIRS)
        assert (whole > 0).all()
        np.testing.assert_allclose(first / whole, 0.25, rtol=1e-3)
        np.testing.assert_allclose(second / whole, 0.25, rtol=1e-3)


def test_the_images_are_those_of_pgd_and_every_image_counts(tiny, split, tmp_path):
    result = run(tiny, split, Plan("p", (PGD_5,), chunk=16), tmp_path / "a")[0]
    expected, defended, right = [], [], []
    for chunk, (x, y) in enumerate(zip(to_float(split.images).split(16), split.labels.split(16), strict=True)):
        seed = fold(fold(1, "evaluate", "perception", chunk), "restart", 0)
        x_adv = PGD(0.02, 0.005, 5)(tiny, x, y, StepContext(torch.Generator().manual_seed(seed)))
        with torch.no_grad():
            clean, middle, adversarial = tiny(x), tiny((x + x_adv) / 2), tiny(x_adv)
        expected.append(torch.stack([((one - other) ** 2).mean(1) for one, other in
                                     ((clean, adversarial), (clean, middle), (middle, adversarial))], 1))
        defended.append(adversarial.argmax(1) == y)
        right.append(clean.argmax(1) == y)
    expected, defended, right = torch.cat(expected).numpy(), torch.cat(defended).numpy(), torch.cat(right).numpy()
    for column, pair in enumerate(PAIRS):
        np.testing.assert_allclose(result.arrays[pair], expected[:, column], rtol=1e-4, atol=1e-9)
    assert (result.arrays["defended"] == defended).all() and result.flags.tolist() == (right & defended).tolist()
    assert 0 < defended.sum() < 40 and result.survivors == {"clean": 32}
    groups = result.values
    assert groups["all"]["n"] == 40 and groups["defended"]["n"] + groups["fooled"]["n"] == 40
    assert groups["fooled"]["n"] == (~defended).sum() >= 8                 # images that are wrong clean count as fooled
    for pair, column in zip(PAIRS, expected.T, strict=True):
        assert groups["fooled"]["sum"][pair] == pytest.approx(column[~defended].sum(), rel=1e-4)
        assert groups["all"]["sum"][pair] == pytest.approx(
            groups["fooled"]["sum"][pair] + groups["defended"]["sum"][pair], rel=1e-9)
    other = run(tiny, split, Plan("p", (PGD_5,), chunk=16), tmp_path / "b", batch_size=5)[0]
    assert other.flags.tolist() == result.flags.tolist()


def test_an_image_that_noise_mends_is_defended_but_not_robust(tiny, split, tmp_path):
    with torch.no_grad():
        second = tiny(to_float(split.images)).topk(2).indices[:, 1]
    labels = torch.where(torch.arange(40) % 2 == 0, second, split.labels)
    result = run(tiny, Split(split.images, labels), Plan("p", (NOISE, Evaluator("clean", "clean"))), tmp_path)
    defended, right = result[0].arrays["defended"] == 1, result[1].flags
    assert (defended & ~right).any() and result[0].flags.tolist() == (defended & right).tolist()


def test_a_group_without_images_has_n_0():
    arrays = {"defended": np.ones(3, np.float32)} | {pair: np.full(3, 2, np.float32) for pair in PAIRS}
    values = perception_values(arrays)
    assert values["fooled"] == {"n": 0, "sum": dict.fromkeys(PAIRS, 0.0)}
    assert values["defended"] == values["all"] == {"n": 3, "sum": dict.fromkeys(PAIRS, 6.0)}


def test_an_interrupted_measurement_goes_on(tiny, split, tmp_path, monkeypatch):
    plan = Plan("p", (PGD_5, NOISE), chunk=16)
    whole = run(tiny, split, plan, tmp_path / "whole")
    append, written = harness.Ledger.append, []
    def stop(self, name, chunk):
        append(self, name, chunk)
        written.append(name)
        if len(written) == 4:
            raise KeyboardInterrupt
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(harness.Ledger, "append", stop)
        run(tiny, split, plan, tmp_path / "cut")
    again = run(tiny, split, plan, tmp_path / "cut")
    for one, other in zip(whole, again, strict=True):
        assert one.values == other.values and one.flags.tolist() == other.flags.tolist()
        assert all(np.array_equal(one.arrays[name], other.arrays[name]) for name in one.arrays)


def test_records_keep_values_and_numbers_per_image(tiny, split, tmp_path):
    results = run(tiny, split, Plan("p", (Evaluator("clean", "clean"), PGD_5)), tmp_path / "work")
    folder = fabricate(tmp_path, accuracies={"clean": 0.5})
    record = json.loads((folder / "eval-adarat.json").read_text()) | {
        "plan": "perception", "results": [result_json(result) for result in results]}
    path = records.write_eval(folder, record, {result.name: result.flags for result in results},
                              np.arange(40), {result.name: result.arrays for result in results})
    read = records.EvalRecord(path, records.read_record(path, "eval"))
    assert read.results["perception"]["values"] == results[1].values and "values" not in read.results["clean"]
    numbers = read.numbers("perception")
    assert set(numbers) == {*PAIRS, "defended"} and read.numbers("clean") == {}
    assert all(np.array_equal(numbers[name], results[1].arrays[name]) for name in numbers)
    assert read.arrays["clean"].tolist() == results[0].flags.tolist()
    with pytest.raises(ValueError, match=r"perception/defended must have one number per image"):
        records.write_eval(folder, record, {result.name: result.flags for result in results}, np.arange(40),
                           {"perception": {"defended": np.ones(3)}})
    broken = {**record, "results": [{**record["results"][0], "values": [1]}]}
    assert "'values' of result 'clean' is [1], not dict" in records.problems("eval", broken)


@pytest.mark.parametrize(("given", "message"), [
    ({"kind": "perception-noise", "norm": "l2"}, "no norm 'l2'; give one of linf"),
    ({"kind": "perception-pgd", "settings": {"random_start": 1}}, "random_start is True or False"),
    ({"kind": "perception-pgd", "steps": 0}, "steps must be"),
])
def test_bad_measurements_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        Evaluator(**{"name": "n"} | given)
