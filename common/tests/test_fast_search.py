"""AutoAttack's fast search: nobody is called fooled that float32 gets right, and nobody is given up for that."""

import copy
import io

import pytest
import torch
from torch import nn

from common import models
from common.attacks import PGD
from common.data import load
from common.data.splits import to_float
from common.errors import UserError
from common.evaluation import Evaluator, Plan, bar, evaluate, fast_search
from common.evaluation.autoattack import Official
from common.evaluation.fast_search import FastSearch, FastView
from common.evaluation.judging import Network, seeded
from common.evaluation.searches import SEARCHES
from common.tests.test_autoattack import EPS, network, noise

CPU = torch.device("cpu")
SHORT = {"iterations": 6, "queries": 30}


def fast(norm="linf", name="fast", **settings):
    return Evaluator(name, "fast-autoattack", norm, EPS[norm], settings={**SHORT, **settings})


def runner(model, evaluator, batch_size=50):
    return FastSearch(evaluator, Network(model).eval(), 10, CPU, batch_size)


def run(model, split, folder, *evaluators, seed=3, **options):
    return evaluate(model, split, Plan("p", evaluators, chunk=14), seed=seed, device="cpu", work=folder,
                    progress=False, **options)


# --- the view ---

@pytest.mark.parametrize("make", [lambda: network(5), lambda: models.build("small", classes=5, width=8),
                                  lambda: models.build("resnet18", classes=5, width=4)])
def test_the_view_is_the_network_with_its_logits_in_float32(make):
    torch.manual_seed(1)
    model, x = make().eval(), torch.rand(6, 3, 8, 8)
    exact, rough = FastView(model, torch.float32), FastView(model, torch.bfloat16)
    torch.testing.assert_close(exact(x), model(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(rough(x), model(x), rtol=0.05, atol=0.05)
    assert rough(x).dtype == torch.float32 and not torch.equal(rough(x), rough(x).bfloat16().float())
    kept = {name: each.weight.dtype for name, each in rough.graph.named_modules()
            if isinstance(each, (nn.Conv2d, nn.Linear))}
    assert list(kept.values()).count(torch.float32) == 1 and kept[list(kept)[-1]] == torch.float32
    assert model.training is False and all(each.dtype == torch.float32 for each in model.parameters())


def test_a_network_that_does_not_end_in_a_linear_layer_has_a_view_too():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, 8), nn.Flatten(), nn.Softplus()).eval()
    x = torch.rand(4, 3, 8, 8)
    torch.testing.assert_close(FastView(model, torch.bfloat16)(x), model(x), rtol=0.05, atol=0.02)


# --- verdicts ---

@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_every_image_that_it_calls_fooled_is_misclassified_in_float32(tiny, norm):
    split = noise(tiny, 20)
    x, y = to_float(split.images), split.labels
    search, standing = runner(tiny, fast(norm)), torch.tensor([1, 2, 3, 5, 7, 8, 11, 13])
    with torch.no_grad():
        for name, stage in search(x, y, 5):
            found = stage(standing)
            changed = (found != x[standing]).flatten(1).any(1)
            if name == "apgd-ce":
                assert changed.any() and not changed.all()
            assert ((tiny(found).argmax(1) != y[standing]) == changed).all()
    assert not search.arrays["disputed"][[0, 4, 6]].any()


class Shifted(nn.Module):
    """A network and a view of it that is wrong: its first logits are lifted, so that it takes much for fooled."""

    def __init__(self, model, dtype, lift=0.3):
        super().__init__()
        self.model, self.lift = copy.deepcopy(model), lift

    def forward(self, x):
        logits = self.model(x)
        return logits + self.lift * nn.functional.one_hot(logits.argmin(1), logits.shape[1])


@pytest.mark.parametrize("finish", [False, True])
def test_what_the_view_alone_believes_fooled_is_attacked_again_in_float32(tiny, monkeypatch, finish):
    monkeypatch.setattr(fast_search, "FastView", lambda model, dtype: Shifted(model, dtype, lift=10.0))
    split = noise(tiny, 12)
    x, y = to_float(split.images), split.labels
    standing = torch.tensor([1, 2, 3, 4, 5])
    search = runner(tiny, fast(finish=finish))
    exact = dict(Official(Evaluator("e", "autoattack", eps=EPS["linf"], settings=SHORT), tiny, 10, CPU)(x, y, 5))
    stages = list(search(x, y, 5))
    extra = [f"float32 {name}" for name in exact]
    assert [name for name, _ in stages] == ["brief apgd-ce", *([*exact, *extra] if finish else [
        "apgd-ce", "apgd-t", "float32 apgd-t", "fab-t", "square"])]
    assert torch.equal(stages.pop(0)[1](standing), x[standing])
    # The view is wrong on every clean image: it would attack none of them.
    for name, stage in stages:
        if name == "float32 apgd-t" and not finish:
            continue
        expected = exact[name.removeprefix("float32 ")](standing)
        if finish and not name.startswith("float32"):
            expected = x[standing]
        assert torch.equal(stage(standing), expected)
    assert search.arrays["disputed"].nonzero().flatten().tolist() == standing.tolist()


def test_only_the_disputed_images_are_attacked_again(tiny, monkeypatch):
    split, asked = noise(tiny, 12), []
    x, y = to_float(split.images), split.labels
    with torch.no_grad():
        grey, logits = tiny(torch.full((1, 3, 8, 8), 0.5)).argmax(1), tiny(x)
    # The surest of them: bf16 is right on them too.
    best = logits.topk(2).values
    margin = torch.where((logits.argmax(1) == y) & (y != grey), best[:, 0] - best[:, 1], -1)
    search, standing = runner(tiny, fast()), margin.topk(4).indices
    assert margin[standing].min() > 0.01 * logits.abs().max()
    third = standing[2].item()

    def pretend(which):
        """The second is untouched and right, the third changed but right in float32, the others changed and wrong."""
        found = x[which].clone()
        found[[0, 3]] = 0.5
        found[2] += 1e-4
        return found

    def again(which):
        asked.append(which.tolist())
        return x[which] + 0.25
    disputed = torch.zeros(12)
    monkeypatch.setattr(fast_search, "allowed", lambda threat, clean, found: found)
    found = search._attack(pretend, again, x, y, disputed, standing)
    assert asked == [[third]] and disputed.nonzero().flatten().tolist() == [third]
    assert torch.equal(found[2], x[third] + 0.25) and torch.equal(found[1], x[standing[1]])
    assert (found[[0, 3]] == 0.5).all()


def test_the_record_of_a_short_search(tiny, tmp_path):
    split = noise(tiny, 24)
    plain, quick, first = run(tiny, split, tmp_path, Evaluator("plain", "autoattack", eps=EPS["linf"], settings=SHORT),
                              fast(), fast(name="first", finish=True))
    stages = ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert list(quick.survivors) == ["clean", "brief apgd-ce", *stages[:2], "float32 apgd-t", *stages[2:]]
    assert list(first.survivors) == ["clean", "brief apgd-ce", *stages, *(f"float32 {name}" for name in stages)]
    for result in (quick, first):
        left = list(result.survivors.values())
        assert left == sorted(left, reverse=True) and left[-1] == result.robust > 0
        assert list(result.values) == ["disputed"] and result.arrays["disputed"].shape == (24,)
        assert result.values["disputed"] == result.arrays["disputed"].sum()
    assert abs(quick.robust - plain.robust) <= 2 and first.robust <= plain.robust < plain.survivors["clean"]
    again = run(tiny, split, tmp_path / "again", fast())[0]
    assert (again.flags == quick.flags).all() and again.survivors == quick.survivors


def test_it_leaves_the_network_and_the_random_states_alone(tmp_path):
    model = network(5).to(memory_format=torch.channels_last)
    split = noise(model, 9)
    before, state = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    model.train()
    run(model, split, tmp_path, fast())
    assert torch.equal(torch.random.get_rng_state(), state) and model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(each.requires_grad and each.grad is None for each in model.parameters())


def test_what_cannot_be_searched_fast_is_said_before_anything_runs(tiny, tmp_path):
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.tiny = tiny

        def forward(self, x):
            return self.tiny(x) if x.sum() > 0 else self.tiny(-x)
    with pytest.raises(UserError, match=r"there is no fast view, the network cannot be traced .*: use --search fl"):
        run(Branching(), noise(tiny, 4), tmp_path, fast())
    with pytest.raises(UserError, match="TF32 is an arithmetic of CUDA devices, this is cpu: search in bf16"):
        run(tiny, noise(tiny, 4), tmp_path, fast(arithmetic="tf32"))
    assert not list(tmp_path.iterdir())


def test_tf32_is_switched_on_for_the_search_alone(tiny, monkeypatch):
    split, seen = noise(tiny, 4), []
    x, y = to_float(split.images), split.labels
    search = runner(tiny, fast(arithmetic="tf32"))
    switches = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32

    def now():
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    monkeypatch.setattr(fast_search, "correct", lambda *_: seen.append(now()) or torch.ones(2, dtype=torch.bool))
    search._attack(lambda which: seen.append(now()) or x[which], None, x, y, torch.zeros(4), torch.tensor([1, 2]))
    assert seen == [("high", True), switches] and now() == switches
    view = search.view.model
    assert all(each.dtype == torch.float32 for each in view.parameters())


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_projections_of_our_own_find_what_the_official_ones_find(tiny, norm):
    split, standing = noise(tiny, 16), torch.tensor([1, 2, 3, 4, 5, 6, 7, 8])
    x, y = to_float(split.images), split.labels
    plain, ours = (Official(Evaluator("e", "autoattack", norm, 2 * EPS[norm], settings=SHORT), tiny, 10, CPU)
                   for _ in range(2))
    fast_search.project_by_ours(ours.stages["fab-t"])
    ends = [Official.run(each.stages["fab-t"], x, y, 5, standing) for each in (plain, ours)]
    assert (ends[0] != x[standing]).any() and not torch.equal(*ends)
    torch.testing.assert_close(*ends, rtol=0, atol=1e-5)


def test_what_falls_to_a_tenth_of_the_first_attack_is_spared_the_rest(tiny, tmp_path, monkeypatch):
    asked, whole = [], Official.run

    def run_of(attack, x, y, seed, standing):
        asked.append((type(attack).__name__, attack.n_iter, len(standing)) if hasattr(attack, "n_iter") else None)
        return whole(attack, x, y, seed, standing)
    monkeypatch.setattr(Official, "run", staticmethod(run_of))
    strong = fast(iterations=40)
    result, = run(tiny, noise(tiny, 14), tmp_path, Evaluator("f", strong.kind, eps=0.05, settings=strong.settings))
    brief, first = asked[:2]
    assert brief[0] == first[0] == "APGDAttack" and (brief[1], first[1]) == (4, 40)
    assert brief[2] == result.survivors["clean"] > first[2] == result.survivors["brief apgd-ce"]


# --- the bar ---

def test_the_bar_moves_on_within_a_chunk(tiny, tmp_path, monkeypatch):
    places = []

    class Bar(bar.tqdm):
        def __init__(self, **options):
            super().__init__(**{**options, "disable": False, "file": io.StringIO()})

        def set_postfix_str(self, text="", refresh=True):
            places.append((self.n, text))
    monkeypatch.setattr(bar, "tqdm", Bar)
    evaluate(tiny, noise(tiny, 28), Plan("p", (fast(), fast(name="first", finish=True)), chunk=14), seed=3,
             device="cpu", work=tmp_path)
    # Of 390 passes' worth the brief apgd-ce takes 6, apgd-ce 12, apgd-t 108 and in float32 72, FAB 162, Square 30.
    of_14 = [int(14 * share / 390) for share in (0, 6, 18, 126, 198, 360)] + [14]
    assert [n for n, _ in places[:14]] == [*of_14, *(14 + n for n in of_14)]
    assert len(places) == 14 + 20 and places[6][1].startswith("square: at most ")
    assert places[14][0] == 0 and places[23][0] == 14 and [n for n, _ in places[14:24]] == sorted(
        n for n, _ in places[14:24])


def test_the_nearest_classes_are_tried_in_float32_too(tiny):
    split = noise(tiny, 8)
    x, y, standing = to_float(split.images), split.labels, torch.tensor([1, 2, 5])
    for targets, expected in ((3, 3), (20, 9)):
        search = runner(tiny, fast(targets=targets))
        assert search.near.n_target_classes == expected and search.near.model.model is tiny
        theirs = Official(Evaluator("e", "autoattack", eps=EPS["linf"], settings=SHORT), tiny, 10, CPU).stages["apgd-t"]
        theirs.n_target_classes = expected
        assert torch.equal(dict(search(x, y, 5))["float32 apgd-t"](standing), Official.run(theirs, x, y, 5, standing))


# --- the whole length ---

def trained(split, eps, epochs):
    """A small network, adversarially trained for a while."""
    x, y, generator = to_float(split.images), split.labels, torch.Generator().manual_seed(0)
    with seeded(0):
        model = models.build("small", classes=10, channels=1, width=16)
    optimiser = torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=5e-4)
    for _ in range(epochs):
        for which in torch.randperm(len(x), generator=generator).split(64):
            start = x[which] + eps * (2 * torch.rand(x[which].shape, generator=generator) - 1)
            bad = PGD(eps, eps / 4, 5).from_start(model.eval(), x[which], y[which], start.clamp(0, 1))
            optimiser.zero_grad()
            nn.functional.cross_entropy(model.train()(bad), y[which]).backward()
            optimiser.step()
    return model.eval()


@pytest.mark.slow
def test_it_agrees_with_autoattack_on_the_digits(tmp_path):
    """400 images are all test images that there are: one of them is 0.25 points."""
    data, eps = load("digits", data_dir=tmp_path), 0.1
    model = trained(data.train, eps, 6)
    evaluators = [Evaluator("AutoAttack", "autoattack", eps=eps),
                  *(Evaluator(SEARCHES[search].title, "fast-autoattack", eps=eps, settings=SEARCHES[search].settings)
                    for search in ("fast", "fast+float32"))]
    plain, quick, first = evaluate(model, data.test, Plan("p", tuple(evaluators), chunk=400), seed=1, device="cpu",
                                   work=tmp_path, progress=False)
    assert plain.n == 400 and 0.3 < plain.robust / plain.n < 0.9
    assert abs(quick.robust - plain.robust) / plain.n <= 0.003
    assert first.robust <= plain.robust and first.robust <= quick.robust
