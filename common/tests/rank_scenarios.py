"""What two or three processes do together, for test_group_processes.py: python rank_scenarios.py NAME FOLDER.

Each compares what the processes find with what one process, `group.alone()`, finds on the whole batch.
"""

import copy
import json
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from common import ema, group
from common.attacks.mode import untracked
from common.checkpoint import read_state
from common.data import Batches, Split
from common.engine import Engine
from common.errors import UserError, exit_cleanly
from common.evaluation import Evaluator, Plan, evaluate, harness
from common.evaluation.ledger import ledger_paths
from common.evaluation.validating import in_batches, mean
from common.fit import SGD, fit
from common.records import read_metrics
from common.schedules import steps
from common.signals import held
from common.sync_norm import synchronise
from common.types import LossOut, share_of

CPU = torch.device("cpu")


def close(first, second, tolerance=2e-6):
    torch.testing.assert_close(first, second, rtol=tolerance, atol=tolerance)


def noise(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=generator)
    return Split(images, torch.randint(0, 10, (count,), generator=generator))


def small(norm="group", seed=0):
    torch.manual_seed(seed)
    layer = {"group": lambda: nn.GroupNorm(2, 8), "batch": lambda: nn.BatchNorm2d(8)}[norm]
    return nn.Sequential(nn.Conv2d(3, 8, 3), layer(), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), layer(), nn.ReLU(),
                         nn.Flatten(), nn.Linear(32, 10))


# --- collectives ---

def collectives(folder):
    crew = group.current()
    values = torch.arange(7.0) ** 2
    for size in (7, 6, 1):
        share = share_of(size, crew.rank, crew.ranks)
        own = values[share.start:share.stop].clone().requires_grad_()
        average = crew.mean(share)(own)
        close(average.detach(), values[:size].mean())
        (average ** 2).backward()
        # The mean over the ranks of these gradients is what one process would have: d(m^2)/dv = 2m/size.
        close(own.grad * share.copies / crew.ranks, torch.full_like(own, 2 * average.item() / size))
    assert crew.total(torch.tensor([crew.rank, 1])).tolist() == [sum(range(crew.ranks)), crew.ranks]
    for there in range(crew.ranks):
        found = crew.first(torch.tensor([crew.rank + 0.5, 9.0]) if crew.rank >= there else torch.empty(0))
        assert found.tolist() == [there + 0.5]
    assert crew.first(torch.empty(0)).tolist() == [0]
    parameters = [nn.Parameter(torch.zeros(3, 2)), nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(1))]
    parameters[0].grad = torch.arange(6.0).view(2, 3).T * (crew.rank + 1)            # not contiguous
    parameters[1].grad = torch.full((4,), float(crew.rank))
    crew.average_gradients(parameters)
    close(parameters[0].grad, torch.arange(6.0).view(2, 3).T * (crew.ranks + 1) / 2)
    assert parameters[1].grad.unique().tolist() == [(crew.ranks - 1) / 2] and parameters[2].grad is None
    mixed = [torch.full((2, 2), float(crew.rank)), torch.tensor(crew.rank), torch.full((3,), 1.0 + crew.rank)]
    crew.take_over(mixed)
    assert [tensor.unique().tolist() for tensor in mixed] == [[0], [0], [1]]
    assert crew.from_first({"rank": crew.rank}) == {"rank": 0} and crew.gather(crew.rank) == list(range(crew.ranks))
    network = nn.Linear(2, 2)
    crew.take_over(network.parameters())
    crew.check_alike(network)
    if crew.rank:
        network.weight.data[0, 0] += 1e-7
    try:
        crew.check_alike(network)
    except RuntimeError as error:
        assert "weights have come apart" in str(error)
    else:
        raise AssertionError("weights that differ were not noticed")


def norms(folder):
    """Synchronised batch norm: outputs, gradients of images and weights, running statistics; also of no image."""
    crew = group.current()
    torch.manual_seed(0)
    x, y = torch.randn(7, 3, 8, 8) * 3 + 5, torch.randint(0, 10, (7,))
    for cuts in ([0, 3, 7], [0, 7, 7], [0, 0, 7]):
        plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 6),
                              nn.BatchNorm1d(6, momentum=None), nn.Linear(6, 10))
        crew.take_over(plain.parameters())
        together = synchronise(copy.deepcopy(plain))
        whole = x.clone().requires_grad_()
        with group.alone():
            logits = plain(whole)
            F.cross_entropy(logits, y).backward()
        mine = slice(cuts[crew.rank], cuts[crew.rank + 1])
        own = x[mine].clone().requires_grad_()
        found = together(own)
        # As Group.mean weighs shares: the ranks' losses have the mean over all images as their plain mean.
        (crew.ranks / len(x) * F.cross_entropy(found, y[mine], reduction="sum")).backward()
        crew.average_gradients(together.parameters())
        close(found, logits[mine], 1e-5)
        close(own.grad / crew.ranks, whole.grad[mine], 1e-5)
        for one, other in zip(together.parameters(), plain.parameters(), strict=True):
            close(one.grad, other.grad, 1e-5)
        for one, other in zip(together.buffers(), plain.buffers(), strict=True):
            close(one, other, 1e-5)
        before = [buffer.clone() for buffer in together.buffers()]
        with untracked(together):
            together(x[mine])
        together(x[:0])                              # no rank has an image
        assert all(torch.equal(*pair) for pair in zip(before, together.buffers(), strict=True))
        close(together.eval()(x), plain.eval()(x), 1e-5)


# --- training ---

@dataclass
class Noisy:
    """CE of noisy images, squared so that it is not linear in the batch mean; breaks off at a step."""

    breaks: int = -1

    def modules(self):
        return {}

    def __call__(self, model, batch, ctx):
        if ctx.step == self.breaks:
            raise Broken
        with ctx.attacking(model, True) as target:
            target(batch.x)                                      # moves the statistics
        logits = model(batch.x + 0.1 * ctx.uniform(batch.x))
        loss = ctx.mean(F.cross_entropy(logits, batch.y, reduction="none")) ** 2
        return LossOut(loss, {"clean_accuracy": (logits.argmax(1) == batch.y).float().mean()})


class Broken(Exception):
    pass


def trained(folder, norm, sync_bn=False, breaks=-1, epochs=3, **changes):
    """29 images in batches of 8: 8, 8, 8 and 5, shared as 2 and 3."""
    engine, split = Engine(CPU, sync_bn=sync_bn), noise(29)

    def validate(judged):
        right = [(judged(pixels / 255).argmax(1) == y).float() for pixels, y, _ in in_batches(split, 4, 1)]
        return {"accuracy": mean(right), "by_batches": mean(right, of_batches=True)}

    batches = Batches(split, 8, seed=2, crop=1, flip=True, **engine.shares)
    given = {"model": small(norm), "objective": Noisy(breaks), "batches": batches, "epochs": epochs,
             "schedule": steps(0.1, (1.5,), (0.1,)), "optim": SGD(clip_norm=0.5), "seed": 5, "engine": engine,
             "average": ema.Averaging(ema.warmed_up(0.9)), "validate": validate, "out": folder / "results",
             "weights": folder / "weights", "select": {"best": lambda numbers: numbers["accuracy"]}, "snapshots": {0}}
    return fit(**given | changes)


def same(first, second, tolerance):
    for name in ("last", "average", "0", "best"):
        one, other = (read_state(folder / "weights" / f"{name}.pt") for folder in (first, second))
        for key in one:
            close(one[key], other[key], tolerance)
    rows = [[{key: value for key, value in row.items() if key not in ("seconds", "images_per_second")}
             for row in read_metrics(folder / "results/metrics.jsonl")] for folder in (first, second)]
    for one, other in zip(*rows, strict=True):
        assert one.keys() == other.keys()
        assert all(abs(one[key] - other[key]) <= tolerance for key in one), (one, other)


def training(folder):
    """As one process: with group norm, and with batch norm over all ranks.  Batch norm per rank differs."""
    crew = group.current()
    # Once network and data are the same, one process that trains alone must agree.
    for norm, sync_bn in (("group", False), ("batch", True)):
        record = trained(folder / f"{norm}-all", norm, sync_bn)
        assert crew.gather(record.weights) == [record.weights] * crew.ranks and len(record.weights) == 4
        if crew.leads:
            with group.alone():
                trained(folder / f"{norm}-one", norm, sync_bn)
            same(folder / f"{norm}-all", folder / f"{norm}-one", 1e-5)
    model = small("batch")
    trained(folder / "own", "batch", model=model)
    if crew.leads:
        apart = read_state(folder / "own/weights/last.pt")
        together = read_state(folder / "batch-all/weights/last.pt")
        assert (apart["0.weight"] - together["0.weight"]).abs().max() > 1e-4
    # After every step all ranks have rank 0's statistics.
    states = crew.gather({name: tensor.tolist() for name, tensor in model.state_dict().items()})
    assert all(state == states[0] for state in states)


def resuming(folder):
    """A run of two processes that was broken off ends with the same bits; so does one that goes on alone, nearly."""
    crew = group.current()
    trained(folder / "whole", "batch")
    for breaks in (2, 6):
        try:
            trained(folder / f"cut-{breaks}", "batch", breaks=breaks)
        except Broken:
            pass
        else:
            raise AssertionError("it was not broken off")
        crew.barrier()
        trained(folder / f"cut-{breaks}", "batch", model=small("batch", seed=0 if breaks < 4 else 3))
        if crew.leads:
            same(folder / "whole", folder / f"cut-{breaks}", 0.0)
    trained(folder / "group", "group")
    trained(folder / "alone", "group", epochs=2)
    if crew.leads:
        with group.alone():
            trained(folder / "alone", "group")
        same(folder / "group", folder / "alone", 1e-5)
    # A state that one process alone can see is refused by all, not trained past.
    try:
        trained(folder / "whole" if crew.leads else folder / "nowhere", "batch", epochs=4)
    except UserError as error:
        assert "is there for some of the" in str(error)
    else:
        raise AssertionError("folders that differ were not noticed")


# --- evaluation ---

EVALUATORS = (Evaluator("clean", "clean"), Evaluator("PGD", "pgd", eps=0.03, step_size=0.01, steps=3, restarts=2),
              Evaluator("short", "fgsm", eps=0.02, n=9), Evaluator("noise", "uniform-noise", eps=0.05),
              Evaluator("moved", "perception-pgd", eps=0.03, step_size=0.01, steps=2),
              Evaluator("four", "autoattack", eps=0.02, n=12, settings={"iterations": 2, "queries": 5}))


class Stopped(Exception):
    pass


def evaluated(network, split, folder, stops=None):
    """Everything but the times; stops: after so many chunks of this process."""
    plan, counted, append = Plan("p", EVALUATORS, chunk=7), [], harness.Ledger.append

    def counting(self, name, chunk):
        append(self, name, chunk)
        counted.append(name)
        if len(counted) == stops:
            raise Stopped

    harness.Ledger.append = counting
    try:
        results = evaluate(network, split, plan, seed=3, device="cpu", work=folder, progress=False)
    except Stopped:
        return None, len(counted)
    finally:
        harness.Ledger.append = append
    return [(one.name, one.flags.tolist(), one.survivors, {key: array.tolist() for key, array in one.arrays.items()},
             one.values) for one in results], len(counted)


def evaluation(folder):
    """The flags of one process, in chunks of 7 of 40 images; broken off, gone on by any number of processes."""
    crew, split, network = group.current(), noise(40), small().eval()
    with torch.no_grad():
        labels = network(split.images / 255).argmax(1)
    labels[::7] = (labels[::7] + 1) % 10
    split = Split(split.images, labels)
    with group.alone():
        alone, chunks = evaluated(network, split, folder / f"alone-{crew.rank}")
    assert chunks == 4 * 6 + 2 + 2
    for shared in (folder / "shared", folder / f"apart-{crew.rank}"):       # one folder for all, or for each machine
        together, own = evaluated(network, split, shared)
        assert together == alone and sum(crew.gather(own)) == chunks
        assert max(crew.gather(own)) - min(crew.gather(own)) <= 1
    # Each breaks off at another place, with its part on the disk.
    _, own = evaluated(network, split, folder / "cut", stops=2 + 3 * crew.rank)
    done = sum(crew.gather(own))
    if crew.leads:
        with group.alone():
            evaluated(network, split, folder / "cut", stops=4)
    crew.barrier()
    together, own = evaluated(network, split, folder / "cut")
    assert together == alone and sum(crew.gather(own)) == chunks - done - 4
    assert len(ledger_paths(folder / "cut", Plan("p", EVALUATORS))) == crew.ranks
    crew.barrier()
    harness.forget(folder / "cut", Plan("p", EVALUATORS))
    crew.barrier()
    assert not any((folder / "cut").iterdir())


def validation(folder):
    """The very numbers of one process, whatever the share; also where a process has no batch."""
    crew, split = group.current(), noise(23)
    for size in (4, 10, 23):
        def numbers(size=size):
            found = [(y.float() * torch.rand(len(y), generator=ctx.generator)) for _, y, ctx in
                     in_batches(split, size, 1, "part")]
            return mean(found), mean(found, of_batches=True)

        together = numbers()
        with group.alone():
            assert together == numbers()
    assert len(list(in_batches(split, 23, 1))) == (1 if crew.leads else 0)


# --- endings ---

def ending(folder):
    """Ends as FOLDER/how.json says: {rank: how}."""
    crew, told = group.current(), json.loads((folder / "how.json").read_text())
    how = told.get(str(crew.rank))
    if how == "mistake":
        raise UserError(f"a mistake on rank {crew.rank}: mend it")
    if how == "defect":
        raise ZeroDivisionError("a defect")
    if how == "exit":
        sys.exit(5)
    if how == "gone":
        os._exit(9)
    if how == "asked":
        with held():                     # as in a step, for whose end no process of several waits
            os.kill(os.getpid(), signal.SIGTERM)
            raise AssertionError("the signal waited")
    crew.barrier()
    crew.gather(crew.rank)


if __name__ == "__main__":
    exit_cleanly(lambda: globals()[sys.argv[1]](Path(sys.argv[2])))
