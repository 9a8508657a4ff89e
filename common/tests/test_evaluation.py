"""The harness: counts, independence of batch size, resuming, distrust of attacks, everything put back, bad input."""

import copy
import json
import random
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from common.attacks import PGD, fgsm
from common.data.batches import augment
from common.data.splits import Split, to_float
from common.errors import UserError
from common.evaluation import Evaluator, Plan, evaluate, forget, harness, result_json, runners
from common.evaluation.harness import Result, chunk_images
from common.evaluation.judging import exact_float32, weights_sha256
from common.evaluation.ledger import ledger_path
from common.seeds import fold
from common.types import StepContext

EPS = 0.01
PGD_5 = Evaluator("PGD-5", "pgd", eps=EPS, step_size=EPS / 4, steps=5)
CLEAN = Evaluator("clean", "clean")
SIMPLE = (CLEAN, Evaluator("FGSM", "fgsm", eps=EPS), PGD_5,
          Evaluator("CW-5", "cw", eps=EPS, step_size=EPS / 4, steps=5))


@pytest.fixture
def split(tiny) -> Split:
    """45 images of noise; the network is right on 40 of them."""
    images = torch.randint(0, 256, (45, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        labels = tiny(images / 255).argmax(1)
    labels[::9] = (labels[::9] + 1) % 10
    return Split(images, labels)


def run(model, split, plan, folder, **changes):
    return evaluate(model, split, plan, **{"seed": 1, "device": "cpu", "work": folder, "progress": False} | changes)


# --- what is counted ---

def test_flags_are_those_of_the_attack_itself(tiny, split, tmp_path):
    clean, one_step, pgd, _ = run(tiny, split, Plan("p", SIMPLE, chunk=20), tmp_path)
    x, y = to_float(split.images), split.labels
    right = tiny(x).argmax(1) == y
    assert clean.flags.tolist() == right.tolist() and clean.robust == 40 and clean.n == 45
    adversarial = fgsm(EPS)(tiny, x, y, StepContext(torch.Generator()))
    assert one_step.flags.tolist() == (right & (tiny(adversarial).argmax(1) == y)).tolist()
    expected = []
    for chunk in range(3):
        part = slice(20 * chunk, min(20 * chunk + 20, 45))
        seed = fold(fold(1, "evaluate", "PGD-5", chunk), "restart", 0)
        ctx = StepContext(torch.Generator().manual_seed(seed))
        end = PGD(EPS, EPS / 4, 5)(tiny, x[part], y[part], ctx)
        expected += (right[part] & (tiny(end).argmax(1) == y[part])).tolist()
    assert pgd.flags.tolist() == expected
    assert 0 < pgd.robust < clean.robust and 0 < one_step.robust < clean.robust       # some fall, some stand
    assert pgd.flags.dtype == np.bool_ and pgd.survivors == {"clean": 40}


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_batch_size_decides_nothing(tiny, split, tmp_path, norm):
    eps = {"linf": EPS, "l2": 0.08, "l1": 0.6}[norm]
    evaluators = (Evaluator("PGD", "pgd", norm, eps, eps / 4, 5, restarts=2), Evaluator("FGSM", "fgsm", norm, eps))
    verdicts = [[result.flags.tolist() for result in run(tiny, split, Plan("p", evaluators, 20), tmp_path / str(size),
                                                         batch_size=size)] for size in (None, 1, 7, 1000)]
    assert verdicts[0] == verdicts[1] == verdicts[2] == verdicts[3]
    assert 0 < sum(verdicts[0][0]) < 40


def test_only_the_first_n_images_count(tiny, split, tmp_path):
    plan = Plan("p", (Evaluator("few", "clean", n=13), CLEAN), chunk=5)
    few, all_of_them = run(tiny, split, plan, tmp_path)
    assert few.n == 13 and few.flags.tolist() == all_of_them.flags[:13].tolist()


def test_seeds_are_reproducible_and_matter(tiny, split, tmp_path):
    plan = Plan("p", (Evaluator("noise", "pgd", eps=0.05, step_size=1e-4, steps=1),))
    verdicts = [run(tiny, split, plan, tmp_path / str(i), seed=seed)[0].flags.tolist()
                for i, seed in enumerate((1, 1, 2, 3, 4, 5))]
    assert verdicts[0] == verdicts[1]
    assert any(verdict != verdicts[0] for verdict in verdicts[2:])


def test_more_restarts_never_help_the_model(tiny, split, tmp_path):
    once, often = (run(tiny, split, Plan("p", (Evaluator("noise", "pgd", eps=0.05, step_size=1e-4, steps=1,
                                                        restarts=restarts),)), tmp_path / str(restarts))[0]
                   for restarts in (1, 8))
    assert not (often.flags & ~once.flags).any() and often.robust < once.robust
    left = list(often.survivors.values())
    assert list(often.survivors) == ["clean", *(f"restart-{i}" for i in range(1, 9))]
    assert left == sorted(left, reverse=True) and left[-1] == often.robust


def test_result_json(tiny, split, tmp_path):
    result = run(tiny, split, Plan("p", (PGD_5,)), tmp_path)[0]
    written = result_json(result)
    assert json.loads(json.dumps(written)) == written
    assert {key: written[key] for key in ("name", "kind", "norm", "eps", "n", "robust", "survivors")} == {
        "name": "PGD-5", "kind": "pgd", "norm": "linf", "eps": EPS, "n": 45, "robust": result.robust,
        "survivors": {"clean": 40}}
    assert written["settings"] == {"step_size": EPS / 4, "steps": 5, "restarts": 1, "loss": "cross-entropy",
                                   "random_start": True}


def test_caution_where_square_beats_the_gradients():
    evaluator = Evaluator("AutoAttack", "autoattack")
    def caution(square):
        survivors = {"clean": 90, "apgd-ce": 60, "apgd-t": 60, "fab-t": 60, "square": square}
        return Result(evaluator, np.arange(100) < square, survivors, 1.0).caution
    assert caution(60) == ""
    assert "Square broke 10 images of 100" in caution(50)


# --- distrust ---

@dataclass(frozen=True)
class Liar:
    """An attack that returns whatever it likes."""

    value: float

    def start(self, x, ctx):
        return x

    def from_start(self, model, x, y, start):
        return torch.full_like(x, self.value)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_an_attack_that_leaves_the_ball_is_brought_back(tiny, split, tmp_path, monkeypatch, norm):
    monkeypatch.setattr(runners, "gradient_attack", lambda evaluator: Liar(40.0))
    seen = []
    tiny.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    result = run(tiny, split, Plan("p", (Evaluator("PGD", "pgd", norm, 0.001, 0.001, 1),)), tmp_path)[0]
    assert result.robust >= 38                        # the image that the liar returned would break nearly all
    clean, judged = seen[-2], seen[-1]
    distance = (judged - clean[tiny(clean).argmax(1) == split.labels]).flatten(1)
    order = {"linf": torch.inf, "l2": 2, "l1": 1}[norm]
    assert 0 < distance.norm(order, dim=1).max() <= 0.001 + 1e-5
    assert judged.min() >= 0 and judged.max() <= 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_attack_that_returns_no_number_breaks_nothing(tiny, split, tmp_path, monkeypatch, value):
    monkeypatch.setattr(runners, "gradient_attack", lambda evaluator: Liar(value))
    assert run(tiny, split, Plan("p", (PGD_5,)), tmp_path)[0].robust == 40


def test_everything_is_put_back(tinybn, split, tmp_path):
    tinybn[1].eval()
    tinybn[0].weight.requires_grad_(False)
    flags = [module.training for module in tinybn.modules()]
    trained = [parameter.requires_grad for parameter in tinybn.parameters()]
    state = {name: value.clone() for name, value in tinybn.state_dict().items()}
    states = torch.random.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    run(tinybn, split, Plan("p", SIMPLE), tmp_path)
    assert [module.training for module in tinybn.modules()] == flags
    assert [parameter.requires_grad for parameter in tinybn.parameters()] == trained
    assert all(parameter.grad is None for parameter in tinybn.parameters())
    assert all(torch.equal(value, state[name]) for name, value in tinybn.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1] and random.getstate() == states[2]


def test_a_network_that_draws_numbers_is_judged_reproducibly(tiny, split, tmp_path):
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.tiny = tiny

        def forward(self, x):
            return self.tiny(x + 0.05 * torch.randn_like(x))
    verdicts, plan = [], Plan("p", (CLEAN,), chunk=15)
    for folder in "ab":
        torch.manual_seed(ord(folder))
        state = torch.random.get_rng_state()
        verdicts.append(run(Noisy(), split, plan, tmp_path / folder)[0].flags.tolist())
        assert torch.equal(torch.random.get_rng_state(), state)
    assert verdicts[0] == verdicts[1] != run(tiny, split, plan, tmp_path / "c")[0].flags.tolist()
    assert run(Noisy(), split, plan, tmp_path / "d", seed=2)[0].flags.tolist() != verdicts[0]


def test_float32_switches_are_put_back_after_an_error():
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic
    torch.set_float32_matmul_precision("medium")
    torch.backends.cudnn.allow_tf32 = True
    with pytest.raises(KeyError), torch.autocast("cpu", torch.bfloat16), exact_float32(torch.device("cpu")):
        assert torch.get_float32_matmul_precision() == "highest" and not torch.backends.cudnn.allow_tf32
        assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == torch.float32
        raise KeyError
    assert torch.get_float32_matmul_precision() == "medium" and torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = before[1:]


def test_a_network_that_is_not_float32_is_no_judge(tiny, split, tmp_path):
    class Casting(nn.Module):
        def __init__(self):
            super().__init__()
            self.tiny = tiny

        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16):
                return self.tiny(x).float()
    with pytest.raises(ValueError, match=r"computes in torch\.bfloat16"):
        run(Casting(), split, Plan("p", (CLEAN,)), tmp_path)
    with pytest.raises(ValueError, match=r"holds torch\.bfloat16"):
        run(tiny.to(torch.bfloat16), split, Plan("p", (CLEAN,)), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_statistics_that_move_are_an_error(tinybn, split, tmp_path):
    class Restless(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = tinybn

        def forward(self, x):
            return self.inner.train()(x)
    with pytest.raises(RuntimeError, match="running statistics moved"):
        run(Restless(), split, Plan("p", (CLEAN,)), tmp_path)


# --- going on after an interruption ---

def count_chunks(monkeypatch) -> list[str]:
    counted, verdicts = [], harness.verdicts
    def counting(network, runner, evaluator, *rest):
        counted.append(evaluator.name)
        return verdicts(network, runner, evaluator, *rest)
    monkeypatch.setattr(harness, "verdicts", counting)
    return counted


def interrupted(tiny, split, plan, folder, monkeypatch, after: int) -> None:
    append, written = harness.Ledger.append, []
    def stop(self, name, chunk):
        append(self, name, chunk)
        written.append(name)
        if len(written) == after:
            raise KeyboardInterrupt
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(harness.Ledger, "append", stop)
        run(tiny, split, plan, folder)


@pytest.mark.parametrize("after", [1, 4, 8])
def test_an_interrupted_evaluation_goes_on_at_the_next_chunk(tiny, split, tmp_path, monkeypatch, after):
    plan = Plan("p", SIMPLE[:3], chunk=15)                 # 3 evaluators of 3 chunks
    whole = run(tiny, split, plan, tmp_path / "whole")
    interrupted(tiny, split, plan, tmp_path / "cut", monkeypatch, after)
    counted = count_chunks(monkeypatch)
    again = run(tiny, split, plan, tmp_path / "cut", batch_size=4)
    assert len(counted) == 9 - after
    for one, other in zip(whole, again, strict=True):
        assert one.flags.tolist() == other.flags.tolist() and one.survivors == other.survivors
    counted.clear()
    run(tiny, split, plan, tmp_path / "cut")
    assert counted == []
    forget(tmp_path / "cut", plan)
    forget(tmp_path / "cut", plan)
    run(tiny, split, plan, tmp_path / "cut")
    assert len(counted) == 9


def test_progress_of_another_evaluation_is_not_used(tiny, split, tmp_path, monkeypatch):
    plan, cropped = Plan("p", (PGD_5,), chunk=15), Plan("p", (PGD_5,), chunk=15, test_crop=True)
    other = copy.deepcopy(tiny)
    other[0].bias.data += 1e-4
    changes = [(tiny, split, plan, 2), (tiny, Split(255 - split.images, split.labels), plan, 1),
               (tiny, split, cropped, 1), (other, split, plan, 1)]
    for number, (model, data, changed, seed) in enumerate(changes):
        run(tiny, split, plan, tmp_path / str(number))
        with monkeypatch.context() as patch:
            counted = count_chunks(patch)
            run(tiny, split, plan, tmp_path / str(number))
            assert len(counted) == 0
            run(model, data, changed, tmp_path / str(number), seed=seed)
            assert len(counted) == 3


@pytest.mark.parametrize("damage", [
    lambda text: text[:len(text) // 2], lambda text: "", lambda text: "[]", lambda text: "\udc80",
    lambda text: text.replace('"flags": "', '"flags": "1'), lambda text: text.replace('"flags": "', '"flags": "2', 1),
    lambda text: text.replace('"survivors"', '"survivor"'), lambda text: text.replace('"PGD-5": [', '"PGD-6": ['),
])
def test_damaged_progress_is_started_afresh(tiny, split, tmp_path, monkeypatch, capsys, damage):
    plan = Plan("p", (PGD_5,), chunk=15)
    whole = run(tiny, split, plan, tmp_path)[0]
    path = ledger_path(tmp_path, plan)
    path.write_text(damage(path.read_text()), errors="surrogateescape")
    counted = count_chunks(monkeypatch)
    assert run(tiny, split, plan, tmp_path, progress=True)[0].flags.tolist() == whole.flags.tolist()
    assert len(counted) == 3
    assert "starting afresh" in capsys.readouterr().err


def test_weights_hash(tiny):
    before = weights_sha256(tiny)
    assert weights_sha256(tiny.to(memory_format=torch.channels_last)) == before
    with torch.no_grad():
        tiny[5].bias[0] += 1e-6
    assert weights_sha256(tiny) != before


# --- test-crop ---

def test_crops_are_drawn_anew_for_every_evaluator(tiny, split, tmp_path):
    plan = Plan("p", (CLEAN, Evaluator("again", "clean")), chunk=20, test_crop=True)
    first, second = run(tiny, split, plan, tmp_path)
    assert first.flags.tolist() != second.flags.tolist()
    seed = fold(1, "crop", "again", 1)
    cropped = augment(split.images[20:40], torch.Generator().manual_seed(seed), crop=4)
    x, y = chunk_images(split, slice(20, 40), True, seed, torch.device("cpu"))
    assert torch.equal(x, to_float(cropped)) and torch.equal(y, split.labels[20:40])
    assert second.flags[20:40].tolist() == (tiny(x).argmax(1) == y).tolist()


def test_images_rounded_to_float16_are_what_is_attacked(split, tmp_path):
    seen = []

    class Watched(nn.Module):
        def forward(self, x):
            seen.append(x)
            return x.flatten(1)[:, :10]
    run(Watched(), split, Plan("p", (CLEAN,), chunk=20, half_inputs=True), tmp_path)
    exact = to_float(split.images[:20])
    assert torch.equal(seen[1], exact.half().float()) and not torch.equal(seen[1], exact)


# --- bad input: refused before anything runs ---

def test_what_does_not_fit_is_refused_before_anything_runs(tiny, split, tmp_path):
    few = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    three = Split(split.images, split.labels % 3)
    grey = Split(split.images[:, :1], split.labels)
    cases = [
        (few, three, Evaluator("AutoAttack", "autoattack"),
         "AutoAttack's DLR loss needs at least 4 classes; this model has 3"),
        (few, three, Evaluator("ta", "torchattacks-autoattack"), "needs at least 4 classes; this model has 3"),
        (nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), Split(split.images, split.labels % 2),
         Evaluator("P", "pgd", settings={"loss": "dlr"}), "'P': the DLR loss needs at least 3 classes"),
        (few, split, CLEAN, "labels up to 8, the model has 3 classes"),
        (tiny, grey, CLEAN, r"cannot take images of shape \(1, 8, 8\)"),
        (tiny, split, Evaluator("P", "pgd", "l2", 128.0, 15.0), r"eps 128 reaches .* did you mean 128/255 = 0\.5020"),
        (tiny, split, Evaluator("P", "pgd", n=46), "wants 46 images, the test set has 45"),
    ]
    for model, data, evaluator, message in cases:
        plan = Plan("p", (CLEAN, evaluator) if evaluator is not CLEAN else (CLEAN,))
        with pytest.raises(UserError, match=message):
            run(model, data, plan, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_pgd_works_with_three_classes(split, tmp_path):
    torch.manual_seed(0)
    few = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    plan = Plan("p", (Evaluator("P", "pgd", settings={"loss": "dlr"}), Evaluator("C", "cw"),
                      Evaluator("M", "pgd", settings={"loss": "margin", "random_start": False})))
    assert all(result.n == 45 for result in run(few, Split(split.images, split.labels % 3), plan, tmp_path))
