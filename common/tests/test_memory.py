"""Out of memory: which batch was tried, which one fits, what to type; the last state stays."""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from adarat.generalist import Plan as GeneralistPlan
from adarat.generalist import fit_generalist
from adarat.method import StandardTraining
from common import memory
from common.data import Batches, Split
from common.engine import Engine
from common.environment import ROOT
from common.errors import UserError
from common.evaluation import Evaluator, Plan, evaluate
from common.fit import SGD
from common.tests.fit_parts import CPU, CrossEntropy, network, rows, train
from common.types import Batch, LossOut

LIMITED = """
import resource, sys
from pathlib import Path
import torch
from torch import nn
torch.set_num_threads(1)
from common.data import Batches, Split
from common.engine import Engine
from common.errors import exit_cleanly
from common.evaluation import Evaluator, Plan, evaluate
from common.fit import SGD
from common.tests.fit_parts import CrossEntropy, train

def main():
    what, folder = sys.argv[1], Path(sys.argv[2])
    wide = nn.Sequential(nn.Conv2d(1, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 2))
    images = torch.randint(0, 256, (2048, 1, 16, 16), dtype=torch.uint8)
    split = Split(images, torch.arange(2048) % 2)
    train(folder / "warm", model=wide, batches=Batches(split.subset(32), 32, seed=1), epochs=1)  # libraries, threads
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (220 << 20),) * 2)
    if what == "train":
        train(folder, model=wide, batches=Batches(split, 2048, seed=1), epochs=1)
    else:
        plan = Plan("p", (Evaluator("FGSM", "fgsm", eps=0.1),), chunk=2048)
        evaluate(wide, split, plan, seed=1, device="cpu", work=folder, progress=False)

exit_cleanly(main)
"""


def limited(what, folder):
    done = subprocess.run((sys.executable, "-c", LIMITED, what, str(folder)), cwd=ROOT, capture_output=True, text=True,
                          timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"})
    assert done.returncode == 2, done.stdout + done.stderr
    line, = done.stderr.strip().splitlines()[-1:]
    return line


def test_on_a_cpu_whose_memory_ends_a_training_says_what_fits(tmp_path):
    line = limited("train", tmp_path)
    assert line.startswith("error: out of memory in a training step with 2048 images, on cpu (")
    assert " more were asked for). A step with " in line and line.endswith("[E-MEMORY]")
    fits = int(line.split("A step with ")[1].split()[0])
    assert fits in (1024, 512, 256, 128, 64) and f"give --batch_size {fits} and another name with --run" in line
    assert not (tmp_path / "weights/last.pt").exists()


def test_on_a_cpu_whose_memory_ends_an_evaluation_says_what_fits(tmp_path):
    line = limited("evaluate", tmp_path)
    assert line.startswith("error: out of memory while evaluating by plan p, 2048 images at a time, on cpu")
    fits = int(line.split("A pass with ")[1].split()[0])
    assert fits < 2048 and f"--batch_size {fits}" in line and line.endswith("[E-MEMORY]")


class Cramped(CrossEntropy):
    """Runs out of a GPU's memory for more than `most` images, from epoch `since` on, and remembers the sizes."""

    def __init__(self, most, since=0, where="forward"):
        super().__init__()
        self.most, self.since, self.where, self.sizes = most, since, where, []

    def __call__(self, model, batch, ctx):
        self.sizes.append(len(batch.y))
        if ctx.epoch < self.since or len(batch.y) <= self.most:
            return super().__call__(model, batch, ctx)
        if self.where == "forward":
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total")
        loss, logs = super().__call__(model, batch, ctx)
        return LossOut(Burst.apply(loss), logs)


class Burst(torch.autograd.Function):
    """Runs out of memory in the backward pass."""

    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")


def test_the_largest_half_that_fits_is_found_and_the_last_state_kept(tmp_path):
    objective = Cramped(3, since=1)
    with pytest.raises(UserError, match=r"with 8 images, on cpu \(2\.50 GiB more were asked for\)\. A step with 2 "
                                        r"images fits here: give --batch_size 2 ") as caught:
        train(tmp_path, objective=objective)
    assert caught.value.code == "E-MEMORY" and "is kept in" in str(caught.value)
    assert objective.sizes == [8] * 5 + [4, 2] and len(rows(tmp_path)) == 1
    train(tmp_path)                                                        # memory is there again
    train(tmp_path / "whole")
    ends = [torch.load(folder / "weights/last.pt", weights_only=True) for folder in (tmp_path, tmp_path / "whole")]
    assert all(torch.equal(one, other) for one, other in zip(*map(dict.values, ends), strict=True))


def test_the_backward_pass_counts(tmp_path):
    with pytest.raises(UserError, match="A step with 4 images fits here"):
        train(tmp_path, objective=Cramped(4, where="backward"))


def test_where_nothing_fits_none_is_promised(tmp_path):
    with pytest.raises(UserError, match="none of fewer images was found to fit: free memory") as caught:
        train(tmp_path, objective=Cramped(0))
    assert caught.value.code == "E-MEMORY"


def test_trying_ends_when_the_time_is_up(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "SECONDS", 0.0)
    objective = Cramped(4)
    with pytest.raises(UserError, match="none of fewer images"):
        train(tmp_path, objective=objective)
    assert objective.sizes == [8]


def test_other_errors_stay_what_they_are(tmp_path):
    def broken(ctx):
        raise RuntimeError("size mismatch")
    with pytest.raises(RuntimeError, match="size mismatch"):
        train(tmp_path, objective=CrossEntropy(broken))


def test_a_validation_that_does_not_fit_is_told_apart(tmp_path):
    def validate(model):
        raise MemoryError
    with pytest.raises(UserError, match=r"^out of memory in the validation between epochs, on cpu: let it take fewer"):
        train(tmp_path, validate=validate)


def test_both_learners_of_generalist(tmp_path):
    images = torch.randint(0, 256, (16, 1, 4, 4), dtype=torch.uint8)
    batches = Batches(Split(images, torch.arange(16) % 2), 8, seed=1, flag="--size")

    class Cramp(StandardTraining):
        def __call__(self, model, batch, ctx):
            if len(batch.y) > 4:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
            return super().__call__(model, batch, ctx)

    with pytest.raises(UserError, match=r"with 8 images, on cpu\. A step with 4 images fits here: give --size 4 "):
        fit_generalist(network=network(), at=StandardTraining(), st=Cramp(), batches=batches, plan=GeneralistPlan(3),
                       at_optim=SGD(), st_optim=SGD(), out=tmp_path, weights=tmp_path, seed=1, engine=Engine(CPU),
                       identity="a", validate=lambda five: {})


def test_views_are_cut_alike():
    x = torch.arange(12.0).view(6, 1, 1, 2)
    whole = Batch(x, torch.tensor([0, 1, 2]), torch.tensor([5, 6, 7]))
    half = memory.cut(whole, 2)
    assert half.x[:, 0, 0, 0].tolist() == [0, 2, 6, 8] and half.y.tolist() == [0, 1] and half.extra.tolist() == [5, 6]
    assert memory.cut(whole._replace(extra="pairs"), 1).extra == "pairs"


class Narrow(nn.Module):
    """A GPU that holds so many images."""

    def __init__(self, most):
        super().__init__()
        self.most, self.linear = most, nn.Linear(16, 2)

    def forward(self, x):
        if len(x) > self.most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return self.linear(F.relu(x.flatten(1)))


@pytest.mark.parametrize("kind", ["fgsm", "autoattack"])
def test_an_evaluation_names_the_batch_that_fits_and_goes_on_with_it(tmp_path, kind):
    torch.manual_seed(1)
    split = Split(torch.randint(0, 256, (60, 1, 4, 4), dtype=torch.uint8), torch.arange(60) % 2)
    plan = Plan("p", (Evaluator("clean", "clean"), Evaluator("FGSM", kind, eps=0.1)), chunk=40)
    given = {"seed": 1, "device": "cpu", "work": tmp_path, "progress": False, "allow": ("E-CLEAN", "W-CLEAN")}
    if kind == "autoattack":
        with pytest.raises(UserError, match="AutoAttack takes the plan's whole chunks of 40 images"):
            memory.in_evaluation(lambda *_: None)(out)(None, split, plan, **given)
        return
    with pytest.raises(UserError, match=r"by plan p, 40 images at a time, on cpu\. A pass with 20 images and its "
                                        r"gradient fits here: evaluate with --batch_size 20 ") as caught:
        evaluate(Narrow(30), split, plan, **given)
    assert caught.value.code == "E-MEMORY"
    assert [result.n for result in evaluate(Narrow(30), split, plan, batch_size=20, **given)] == [60, 60]


def out(*_, **__):
    raise torch.cuda.OutOfMemoryError("CUDA out of memory.")


def test_a_validation_keeps_its_state_within_the_loop():
    """Else what it remembers would not go into the resume file."""
    class Remembering:
        def __call__(self, network):
            raise MemoryError

        def state_dict(self):
            return {"untrained": 1.0}

    given = memory.in_training()(lambda **given: given["validate"])(validate=Remembering())
    assert given.state_dict() == {"untrained": 1.0} and not hasattr(given, "load_state_dict")
    with pytest.raises(MemoryError) as ended:
        given(None)
    assert memory.VALIDATING in ended.value.__notes__
