"""Which process is which, what each draws of a global batch, and what is refused; without a second process."""

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from common import group, sync_norm
from common.engine import Engine
from common.environment import ROOT, environment
from common.errors import UserError
from common.fit import seeded_step, statistics
from common.group import Group, buckets
from common.launch import Place, first_host, place
from common.tests.fit_parts import Noise, train
from common.types import Share, StepContext, share_of

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "node7", "MASTER_PORT": "1234",
            "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "2"}
SRUN = {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "77",
        "SLURM_STEP_ID": "2", "SLURM_STEP_NODELIST": "gpu-[07,09-12],login1"}


# --- places ---

def test_torchruns_words():
    assert place(TORCHRUN) == Place(5, 8, 1, "node7", 1234, True, 2)
    assert place({"RANK": "0", "WORLD_SIZE": "2"}) == Place(0, 2, 0, "127.0.0.1", 29500)
    assert place(TORCHRUN | SRUN).rank == 5                          # torchrun inside a step of srun


def test_srun_words():
    found = place(SRUN)
    assert found[:4] == (3, 4, 1, "gpu-07") and not found.hosted
    other = place(SRUN | {"SLURM_STEP_ID": "3"})
    assert found.port != other.port and 1024 < min(found.port, other.port) < max(found.port, other.port) < 32768
    assert place(SRUN | {"MASTER_ADDR": "head", "MASTER_PORT": "99"})[3:5] == ("head", 99)


@pytest.mark.parametrize("given", [
    {}, {"RANK": "1"}, {"WORLD_SIZE": "8"}, {"RANK": "0", "WORLD_SIZE": "1"},
    {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "5"}])           # the script of a batch job
def test_who_is_alone(given):
    assert place(given).ranks == 1


@pytest.mark.parametrize(("given", "says"), [
    ({"RANK": "2", "WORLD_SIZE": "2"}, "process 2 of 2"), ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK is 'x', no whole"),
    (SRUN | {"SLURM_LOCALID": ""}, "SLURM_LOCALID is ''")])
def test_words_that_cannot_be(given, says):
    with pytest.raises(UserError, match=says):
        place(given)


@pytest.mark.parametrize(("nodes", "first"), [
    ("n1", "n1"), ("n1,n2", "n1"), ("gpu-[07,09-12],login1", "gpu-07"), ("gpu[3-5]", "gpu3"),
    ("rack[1-2]n[04-06].site", "rack1n04.site")])
def test_the_first_host_of_slurms_list(nodes, first):
    assert first_host(nodes) == first


def test_a_process_alone_knows_nothing_of_groups(monkeypatch):
    monkeypatch.setattr(group, "_here", [])
    crew, values = group.current(), torch.arange(3.0)
    assert crew == Group() and crew.leads and group.watch() is None and group.settle(torch.device("cuda")).index is None
    assert crew.of_step(None) == {} and crew.gather("a") == ["a"] and crew.from_first("a") == "a"
    assert crew.mean()(values) == 1 and crew.total(values) is values and crew.first(values).tolist() == [0]
    crew.average_gradients([nn.Parameter(values)])
    crew.barrier()
    assert Engine(torch.device("cpu")).shares == {"rank": 0, "ranks": 1}
    assert environment("cpu", "fp32")["ranks"] == 1


def test_flags_are_read_without_torch_where_there_is_one_process():
    code = ("import sys\nfrom common.errors import exit_cleanly\n"
            "exit_cleanly(lambda: print('torch' in sys.modules))")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300,
                          env={**os.environ, "RANK": "0", "WORLD_SIZE": "1"})
    assert (done.returncode, done.stdout) == (0, "False\n")


# --- shares of a batch ---

def context(share=None, **more):
    return StepContext(torch.Generator().manual_seed(3), share=share, **more)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 5), st.integers(1, 3))
def test_the_ranks_draw_what_one_process_draws(size, ranks, views):
    whole = context().uniform(torch.empty(views * size, 2, 3)).view(views, size, 2, 3)
    for rank in range(ranks):
        share = share_of(size, rank, ranks)
        like = torch.empty(views * (share.stop - share.start), 2, 3)
        mine = context(share, rank=rank, ranks=ranks)
        assert mine.rows(like) == views * size
        assert torch.equal(mine.uniform(like).view(views, -1, 2, 3), whole[:, share.start:share.stop])


def test_equal_shares_need_no_word():
    x = torch.empty(4, 2)
    for rank in range(3):
        told = context(share_of(12, rank, 3), rank=rank, ranks=3).normal(x)
        assert torch.equal(told, context(rank=rank, ranks=3).normal(x))
    assert context(rank=1, ranks=3).rows(x) == 12


@pytest.mark.parametrize("rows", [0, 2, 4])
def test_rows_that_are_no_views_are_a_defect(rows):
    with pytest.raises(ValueError, match=f"{rows} rows are no views of the 3 images"):
        context(Share(3, 6, 9), rank=1, ranks=3).uniform(torch.empty(rows, 2))


def test_batches_that_are_not_shared_out_are_a_defect(tmp_path, monkeypatch):
    monkeypatch.setattr(group, "_here", [Group(rank=1, ranks=2)])
    with pytest.raises(ValueError, match="the batches are for 1 processes, there are 2"):
        train(tmp_path, batches=Noise())
    assert not any(tmp_path.iterdir())
    with group.alone():
        train(tmp_path, batches=Noise(), epochs=1)
    assert group.current().ranks == 2


def test_dropout_differs_between_ranks_and_nothing_else():
    drawn = [(seeded_step(torch.Generator(), 1, 4, rank).initial_seed(), torch.rand(1).item()) for rank in (0, 1, 2)]
    assert len({seed for seed, _ in drawn}) == 1 and len({value for _, value in drawn}) == 3
    seeded_step(torch.Generator(), 1, 4)
    assert torch.rand(1).item() == drawn[0][1]


def test_buckets_hold_all_in_order():
    tensors = [torch.zeros(size) for size in (3, 4, 9, 1, 1)] + [torch.zeros(2, dtype=torch.float64)]
    assert [[len(one) for one in bucket] for bucket in buckets(tensors, 7)] == [[3, 4], [9], [1, 1], [2]]
    assert list(buckets([])) == []


# --- batch norm over all ranks ---

def test_synchronised_norms_are_the_networks_own():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.BatchNorm1d(32), nn.GroupNorm(2, 4))
    names, kept, x = list(network.state_dict()), network[1], torch.rand(4, 1, 6, 6)
    plain = network[:4](x)
    before = [tensor.clone() for tensor in statistics(network)]
    assert sync_norm.synchronise(network) is network and network[1] is kept and list(network.state_dict()) == names
    assert type(kept) is sync_norm.SynchronisedBatchNorm2d and isinstance(kept, nn.BatchNorm2d)
    assert type(network[3]) is sync_norm.SynchronisedBatchNorm1d and type(network[4]) is nn.GroupNorm
    assert torch.equal(network[:4](x), plain) and len(before) == 6       # one process: batch norm, to the last bit
    assert not torch.equal(before[0], kept.running_mean)
    placed = Engine(torch.device("cpu"), sync_bn=True).place(nn.Sequential(nn.BatchNorm2d(1)))
    assert type(placed[0]) is sync_norm.SynchronisedBatchNorm2d


@pytest.mark.parametrize("training", [False, True])
def test_the_fast_attack_path_knows_synchronised_norms(training):
    engine = Engine(torch.device("cpu"), fast_attacks=True)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    x = torch.rand(8, 1, 6, 6)
    outputs = []
    for model in (network, sync_norm.synchronise(network)):
        with engine.attacking(model, training) as target:
            outputs.append(target(x))
        engine = Engine(torch.device("cpu"), fast_attacks=True)
    assert torch.equal(*outputs) and not engine.notes
    assert int(network[1].num_batches_tracked) == 2 * training
