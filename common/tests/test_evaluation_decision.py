"""Searches for the nearest adversarial image: known answers on linear networks, failures counted, resuming."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from common.attacks import ball
from common.data.splits import Split, to_float
from common.environment import ROOT
from common.errors import UserError
from common.evaluation import Evaluator, Plan, decision, evaluate, harness, result_json
from common.evaluation.decision import Search, starting_points, within

FAST = {
    "cw-l2": {"binary_search_steps": 8, "iterations": 60, "initial_const": 0.3},
    "boundary": {"iterations": 1000, "spherical_step": 0.2, "source_step": 0.05, "update_every": 2},
    "hopskipjump": {"iterations": 12},
}


def linear(seed: int = 0) -> nn.Sequential:
    """(B,3,4,4) -> 2 classes, the boundary through the middle of the box, near the images of `grey`."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        network[1].weight.normal_(generator=generator)
        network[1].bias.copy_(-0.5 * network[1].weight.sum(1))
    return network


def grey(network: nn.Module, count: int = 12) -> Split:
    """Images near the middle of the box, labelled as the network predicts, but for every fourth."""
    images = torch.randint(90, 166, (count, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        labels = network(to_float(images)).argmax(1)
    labels[::4] = 1 - labels[::4]
    return Split(images, labels)


def nearest(network: nn.Sequential, split: Split, order: float = 2) -> np.ndarray:
    """(N,) distance of each image from the boundary: |f_1 - f_0| over the dual norm of the difference of weights."""
    with torch.no_grad():
        logits = network(to_float(split.images))
    slope = network[1].weight[1] - network[1].weight[0]
    return ((logits[:, 1] - logits[:, 0]).abs() / slope.norm(order)).detach().numpy()


def run(model, split, plan, folder, **changes):
    return evaluate(model, split, plan, **{"seed": 1, "device": "cpu", "work": folder, "progress": False} | changes)


def search(kind, settings=(), *, norm="l2", eps=0.2, **changes) -> Evaluator:
    return Evaluator(kind, kind, norm, eps, settings={**FAST[kind], **dict(settings)}, **changes)


# --- known answers ---

@pytest.mark.parametrize(("kind", "norm", "slack"), [("cw-l2", "l2", 1.03), ("boundary", "l2", 1.03),
                                                    ("hopskipjump", "l2", 1.04), ("hopskipjump", "linf", 1.35)])
def test_the_nearest_image_of_a_linear_network(tmp_path, kind, norm, slack):
    network = linear()
    split = grey(network)
    exact = nearest(network, split, 2 if norm == "l2" else 1)
    right = np.arange(12) % 4 != 0
    eps = float(np.sort(exact[right])[4] * 1.0001 * slack)              # between two images: some fall, some stand
    result = run(network, split, Plan("p", (search(kind, norm=norm, eps=eps),)), tmp_path)[0]
    distance = result.arrays["distance"]
    assert np.isnan(distance[~right]).all() and not np.isnan(distance[right]).any()
    ratio = distance[right] / exact[right]
    assert ratio.min() >= 1 - 1e-4 and np.median(ratio) < slack
    # Within eps: at least those whose found image is; never one whose nearest is farther; none that is wrong clean.
    assert not result.flags[~right].any()
    assert not result.flags[right & (distance <= eps)].any() and result.flags[right & (exact > eps)].all()
    assert 0 < result.robust < 9
    values = result.values
    assert (values["attacked"], values["found"], values["failed"]) == (9, 9, 0)
    assert values["correct_clean"] == 9 and values["correct_unbounded"] == 0 and result.survivors == {"clean": 9}
    assert values["distance"]["median"] == pytest.approx(np.median(distance[right]))
    assert values["distance"]["q10"] < values["distance"]["q90"]


def test_the_searches_end_on_the_other_side(tmp_path):
    """What is judged are the images themselves: each counted one is misclassified, in [0,1], at its distance."""
    network = linear().eval()
    split = grey(network)
    x, y = to_float(split.images), split.labels
    for kind in FAST:
        runner = Search(search(kind, {"iterations": 5}), network, torch.device("cpu"), 100)
        ends, found = runner.search(x, network(x).argmax(1), 3)
        assert found.any() and (network(ends).argmax(1) != network(x).argmax(1))[found].all()
        assert ends.min() >= 0 and ends.max() <= 1
        measured = runner.measure(x, y, network(x).argmax(1) == y, 3)
        assert not measured.arrays["correct_unbounded"][~measured.arrays["distance"].isnan()].any()


def test_hopskipjump_is_as_good_in_a_batch(tmp_path):
    """foolbox 3.3.4 scales probes and gradients of a batch together: 8 steps for 48 images end at 1.8, not 1.03."""
    network = linear()
    split = grey(network, 48)
    plan = Plan("p", (search("hopskipjump", {"iterations": 8, "against": "prediction"}),), chunk=48)
    ratio = run(network, split, plan, tmp_path)[0].arrays["distance"] / nearest(network, split)
    assert 1 <= np.median(ratio) < 1.06 and ratio.max() < 1.15


# --- what is searched, and what is not found ---

def test_against_the_own_prediction_wrong_images_are_searched_too(tmp_path):
    network = linear()
    split = grey(network)
    by_label, by_prediction = (
        run(network, split, Plan("p", (search("boundary", {"iterations": 50, "against": what}),)), tmp_path / what)[0]
        for what in ("label", "prediction"))
    assert by_prediction.values["attacked"] == by_prediction.values["found"] == 12
    assert not np.isnan(by_prediction.arrays["distance"]).any()
    assert by_label.values["attacked"] == 9
    # An image that was wrong stays wrong in the counts, wherever the search takes it.
    assert not by_prediction.flags[::4].any() and by_prediction.values["correct_unbounded"] == 0


class Deaf(nn.Module):
    """Says class 1 for images darker than 0.2 on average, else class 0: uniform noise is always class 0."""

    def forward(self, x):
        dark = 10 * (0.2 - x.flatten(1).mean(1))
        return torch.stack([-dark, dark], 1)


@pytest.mark.parametrize("kind", ["boundary", "hopskipjump"])
def test_images_without_a_start_are_dropped_and_counted(tmp_path, kind):
    images = torch.full((6, 3, 4, 4), 26, dtype=torch.uint8)                      # class 1: noise is elsewhere
    images[::2] = 128                                                            # class 0, as all noise
    split = Split(images, torch.tensor([0, 1] * 3))
    evaluator = search(kind, {"iterations": 8, "directions": 20})
    result = run(Deaf(), split, Plan("p", (evaluator,)), tmp_path)[0]
    assert result.values["attacked"] == 6 and result.values["found"] == 3 and result.values["failed"] == 3
    assert np.isnan(result.arrays["distance"][::2]).all() and not np.isnan(result.arrays["distance"][1::2]).any()
    assert result.values["correct_unbounded"] == 3 and result.flags[::2].all()
    exact = 0.2 - 26 / 255                                                       # per pixel, in 48 of them
    assert result.arrays["distance"][1] > exact * math.sqrt(48) * 0.999
    written = json.loads(json.dumps(result_json(result)))
    assert written["values"]["failed"] == 3 and written["settings"]["directions"] == 20


def test_nothing_found_at_all(tmp_path):
    class Constant(nn.Module):
        def forward(self, x):
            return torch.stack([1 + 0 * x.flatten(1).sum(1), 0 * x.flatten(1).sum(1)], 1)
    split = Split(torch.full((3, 3, 4, 4), 100, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64))
    plan = Plan("p", tuple(search(kind, {"iterations": 5} | ({"directions": 3} if kind != "cw-l2" else {}))
                           for kind in FAST))
    for result in run(Constant(), split, plan, tmp_path, allow=("E-GRADIENT", "E-SOFTMAX")):
        assert result.robust == 3 and result.values["found"] == 0 and result.values["failed"] == 3
        assert result.values["distance"] is None and result.values["correct_unbounded"] == 3


def test_a_black_image_is_not_what_carlini_and_wagner_found(tmp_path):
    """foolbox returns zeros where it found nothing; here they even have another class."""
    class Step(nn.Module):
        def forward(self, x):
            dark = (x.flatten(1).mean(1) < 0.05).float() + 0 * x.flatten(1).sum(1)
            return torch.stack([1 - dark, dark], 1)
    split = Split(torch.full((3, 3, 4, 4), 100, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64))
    result = run(Step(), split, Plan("p", (search("cw-l2", {"iterations": 5}, eps=6.0),)), tmp_path,
                 allow=("E-GRADIENT", "E-SOFTMAX"))[0]
    assert result.values["failed"] == 3 and result.values["correct_unbounded"] == 3 and result.robust == 3


def test_what_lies_within_eps_is_judged_as_it_was_found():
    """Projected, x + (end - x) would round, and an end that hugs the boundary could fall back."""
    generator = torch.Generator().manual_seed(0)
    # Roots: sums and differences of what torch.rand draws, multiples of 2^-24, are exact.
    x, ends = (torch.rand(50, 3, 4, 4, generator=generator).sqrt() for _ in range(2))
    threat = ball("l2", 2.3)
    distance = threat.size(ends - x)
    inside = distance <= 2.3
    assert 0 < inside.sum() < 50 and not torch.equal(threat.project(x, ends)[inside], ends[inside])
    brought = within(threat, x, ends, distance)
    assert torch.equal(brought[inside], ends[inside])
    assert (threat.size(brought - x)[~inside] <= 2.3 + 1e-5).all()


def test_starts_are_the_first_blend_that_has_another_class():
    split = Split(torch.full((3, 3, 4, 4), 26, dtype=torch.uint8), torch.ones(3, dtype=torch.int64))
    x, network = to_float(split.images), Deaf()
    def predict(images):
        return network(images).argmax(1)
    starts, found = starting_points(predict, x, split.labels, torch.Generator().manual_seed(5), directions=3, blends=10)
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(5))
    assert found.all() and (predict(starts) == 0).all()
    shares = ((starts - x) / (noise - x)).flatten(1)
    for row in shares:
        share = row.median().item()
        assert torch.allclose(row, row.median().expand(48), atol=1e-3)
        assert 10 * share == pytest.approx(round(10 * share))
        before = x[:1] + (share - 0.1) * (noise[:1] - x[:1])
        assert share > 0 and predict(before)[0] == 1


def starts_one_by_one(predict, x, target, generator, directions, blends):
    """What starting_points promises, try after try and image after image."""
    starts, found, tries = x.clone(), torch.zeros(len(x), dtype=torch.bool), []
    noises = [torch.rand(x.shape, generator=generator) for _ in range(directions)]
    for index in range(len(x)):
        of_image = [noise[index] for noise in noises]
        wrong = [bool(predict(noise[None])[0] != target[index]) for noise in of_image]
        found[index] = any(wrong)
        tries.append(wrong.index(True) if any(wrong) else None)
        if any(wrong):
            noise = of_image[wrong.index(True)]
            share = next(share for share in [blend / blends for blend in range(blends)] + [1.0]
                         if predict(((1 - share) * x[index] + share * noise)[None])[0] != target[index] or share == 1)
            starts[index] = (1 - share) * x[index] + share * noise
    return starts, found, tries


@pytest.mark.parametrize("count", [1, 5, 40])
def test_starts_are_those_of_one_try_after_another_in_far_fewer_calls(count):
    """Images of which some have a start at once, some late and some never, by a network that mostly says class 0."""
    network = nn.Linear(27, 3).requires_grad_(False)
    seeds = torch.Generator().manual_seed(2)
    network.weight.copy_(torch.randn(3, 27, generator=seeds))
    network.bias.copy_(torch.tensor([9.0, 0.0, -6.0]))
    calls = []
    def predict(images):
        calls.append(len(images))
        return network(images.flatten(1)).argmax(1)
    x = torch.rand((count, 3, 3, 3), generator=seeds)
    target = torch.arange(count) % 3
    given = {"directions": 60, "blends": 100}
    starts, found = starting_points(predict, x, target, torch.Generator().manual_seed(4), **given)
    assert len(calls) <= 15 and max(calls) <= 1024
    expected, there, tries = starts_one_by_one(predict, x, target, torch.Generator().manual_seed(4), **given)
    assert torch.equal(found, there) and torch.allclose(starts, expected, atol=1e-6)
    if count == 40:
        assert {0, None} < set(tries) and any(number is not None and number > 3 for number in tries)


def test_one_image_without_a_start_among_many_costs_the_memory_of_one(monkeypatch):
    kept, stack = [], torch.stack
    def noted(tensors):
        made = stack(tensors)
        kept.append(made.shape[0] * made.shape[1])
        return made
    monkeypatch.setattr(torch, "stack", noted)
    x = torch.rand(200, 1, 5, 5)
    target = torch.ones(200, dtype=torch.int64)
    target[7] = 0
    _, found = starting_points(lambda images: torch.zeros(len(images), dtype=torch.int64), x, target,
                               torch.Generator().manual_seed(0), directions=1000, blends=10)
    assert found.sum() == 199 and not found[7] and len(kept) < 12 and max(kept) <= 1024


def test_a_network_of_one_class_is_asked_in_blocks_and_no_image_has_a_start():
    calls = []
    def predict(images):
        calls.append(len(images))
        return torch.zeros(len(images), dtype=torch.int64)
    x = torch.rand(10, 1, 5, 5)
    starts, found = starting_points(predict, x, torch.zeros(10, dtype=torch.int64), torch.Generator().manual_seed(0),
                                    directions=1000, blends=1000)
    assert not found.any() and torch.equal(starts, x) and sum(calls) == 10_000 and len(calls) < 20


# --- seeds, resuming, imports, bad input ---

def test_an_interrupted_search_goes_on_at_the_next_chunk(tmp_path, monkeypatch):
    network = linear()
    split = grey(network)
    plan = Plan("p", tuple(search(kind, {"iterations": 8}) for kind in FAST), chunk=4)
    whole = run(network, split, plan, tmp_path / "whole")
    append, written = harness.Ledger.append, []
    def stop(self, name, chunk):
        append(self, name, chunk)
        written.append(name)
        if len(written) == 5:
            raise KeyboardInterrupt
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(harness.Ledger, "append", stop)
        run(network, split, plan, tmp_path / "cut")
    searched, measure = [], decision.Search.measure
    def counting(self, *given):
        searched.append(self.evaluator.name)
        return measure(self, *given)
    monkeypatch.setattr(decision.Search, "measure", counting)
    again = run(network, split, plan, tmp_path / "cut")
    assert len(searched) == 4
    for one, other in zip(whole, again, strict=True):
        assert one.values == other.values and one.flags.tolist() == other.flags.tolist()
        for what, array in one.arrays.items():
            np.testing.assert_array_equal(array, other.arrays[what])
            assert other.arrays[what].dtype == np.float32
    other_seed = run(network, split, plan, tmp_path / "seed", seed=2)
    assert (other_seed[1].arrays["distance"] != whole[1].arrays["distance"])[1:4].any()


def test_a_damaged_ledger_of_numbers_starts_afresh(tmp_path):
    network = linear()
    split, plan = grey(network), Plan("p", (search("hopskipjump", {"iterations": 3}),))
    first = run(network, split, plan, tmp_path)[0]
    path, = tmp_path.iterdir()
    content = json.loads(path.read_text())
    content["chunks"]["hopskipjump"][0]["arrays"]["distance"].pop()
    path.write_text(json.dumps(content))
    np.testing.assert_array_equal(run(network, split, plan, tmp_path)[0].arrays["distance"], first.arrays["distance"])


@pytest.mark.slow
def test_foolbox_is_imported_late_and_quietly():
    code = ("import sys, common.evaluation.runners\nassert 'foolbox' not in sys.modules\n"
            "from common.evaluation.decision import foolbox\nfoolbox()\nassert 'foolbox' in sys.modules\n")
    done = subprocess.run((sys.executable, "-c", code), cwd=ROOT, capture_output=True, text=True, timeout=120,
                          env={"PATH": "/nowhere", "OMP_NUM_THREADS": "1", "HOME": str(ROOT)})
    assert done.returncode == 0 and done.stdout == "" and "git" not in done.stderr, done.stderr


@pytest.mark.parametrize(("given", "message"), [
    ({"kind": "boundary", "norm": "l1"}, "kind boundary has no norm 'l1'; give one of l2"),
    ({"kind": "hopskipjump", "norm": "l1"}, "kind hopskipjump has no norm 'l1'; give one of l2, linf"),
    ({"kind": "cw-l2", "norm": "linf"}, "no norm 'linf'; give one of l2"),
    ({"kind": "boundary", "settings": {"iterations": 0}}, "iterations must be a whole number"),
    ({"kind": "boundary", "settings": {"directions": 2.5}}, "directions must be a whole number"),
    ({"kind": "boundary", "settings": {"source_step": 0}}, "source_step must be a number above 0"),
    ({"kind": "boundary", "settings": {"step_adaptation": 1}}, "above 1"),
    ({"kind": "boundary", "settings": {"against": "labels"}}, "one of label, prediction, not 'labels'"),
    ({"kind": "cw-l2", "settings": {"abort_early": 1}}, "abort_early is True or False"),
    ({"kind": "cw-l2", "settings": {"confidence": "0"}}, "confidence must be a number"),
    ({"kind": "hopskipjump", "settings": {"step_search": "grid"}}, "one of geometric_progression, grid_search"),
])
def test_bad_searches_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        Evaluator(**{"name": "s", "norm": "l2", "eps": 0.5} | given)


def test_a_radius_of_another_norm_warns_and_an_impossible_one_stops(tmp_path, capsys):
    network = linear()
    split = grey(network)
    def errors_of(norm, eps):
        plan = Plan("p", (Evaluator("clean", "clean"), Evaluator("F", "fgsm", norm, eps)))
        run(network, split, plan, tmp_path / f"{norm}{eps}", progress=True)
        return [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert errors_of("l2", 8 / 255) == ["warning: W-EPS: eps 0.0313725 (8/255) is small for l2, where 128/255 is "
                                       "usual: is it meant for another norm?"]
    assert "large for linf" in errors_of("linf", 128 / 255)[0] and "small for l1" in errors_of("l1", 0.5)[0]
    assert errors_of("l2", 128 / 255) == errors_of("linf", 8 / 255) == errors_of("l1", 2000 / 255) == []
    with pytest.raises(UserError, match="eps 128 reaches"):
        run(network, split, Plan("p", (Evaluator("F", "fgsm", "l2", 128.0),)), tmp_path)
