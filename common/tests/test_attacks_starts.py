"""Where attacks start, and batch norm that keeps no statistics while they run."""

import copy

import pytest
import torch
from torch import nn

from common.attacks import L2, PGD, Linf, TradesPGD, gaussian, in_ball, mode, towards_noise, untracked
from common.engine import Engine
from common.types import StepContext

EPS = 8 / 255


def context(seed=5):
    return StepContext(generator=torch.Generator().manual_seed(seed))


def images(count=64, seed=1):
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_in_the_ball_is_the_start_that_attacks_have_by_themselves():
    x = images()
    for norm, threat in (("linf", Linf(EPS)), ("l2", L2(0.5))):
        displaced = (x + threat.start(x, context())).clamp(0, 1)
        assert torch.equal(PGD(threat.eps, 0.01, 3, norm=norm).start(x, context()), displaced)
        assert torch.equal((x + in_ball(threat, x, context())).clamp(0, 1), displaced)


def test_towards_noise_ends_on_the_sphere_and_inside_the_box():
    x, eps = images(), 0.5
    start = PGD(eps, 0.1, 3, norm="l2", displace=towards_noise).start(x, context())
    noise = context().uniform(x)
    moved, whole = (start - x).flatten(1), (noise - x).flatten(1)
    torch.testing.assert_close(moved.norm(dim=1), torch.full((64,), eps), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(moved, eps * whole / whole.norm(dim=1, keepdim=True), rtol=1e-4, atol=1e-6)
    assert start.min() >= 0 and start.max() <= 1
    # A ball that holds the noise: the start is the noise itself.
    torch.testing.assert_close(x + towards_noise(L2(100.0), x, context()), noise)


def test_gaussian_noise_is_of_its_deviation_and_unclipped_where_asked():
    x = images().round()
    start = PGD(EPS, 0.01, 3, displace=gaussian(0.001), clip_start=False).start(x, context())
    assert torch.equal(start, x + 0.001 * context().normal(x))
    assert (start - x).std().item() == pytest.approx(0.001, rel=0.05) and start.min() < 0 and start.max() > 1
    clipped = TradesPGD(EPS, 0.01, 3, displace=gaussian(0.001)).start(x, context())
    assert torch.equal(clipped, start.clamp(0, 1))


def statistics(network):
    return {name: value.clone() for name, value in network.named_buffers()}


def test_untracked_batch_norm_normalises_by_the_batch_and_forgets_it(tinybn):
    x, before = images(), statistics(tinybn)
    tracked = copy.deepcopy(tinybn)(x)
    with untracked(tinybn) as same:
        assert torch.equal(same(x), tracked)
    after = statistics(tinybn)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    tinybn(x)
    assert not any(torch.equal(value, before[name]) for name, value in statistics(tinybn).items())


def test_untracked_gives_every_flag_back_also_after_an_error(tinybn):
    tinybn[4].track_running_stats = False
    with pytest.raises(KeyError), untracked(tinybn):
        assert not tinybn[1].track_running_stats
        raise KeyError
    assert tinybn[1].track_running_stats and not tinybn[4].track_running_stats
    bare = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.GroupNorm(1, 3))
    with untracked(bare):
        bare(images())
    assert not bare[0].track_running_stats and bare[0].running_mean is None


def test_statistics_that_move_all_the_same_are_an_error(tinybn):
    with pytest.raises(RuntimeError, match="not tracked"), untracked(tinybn):
        tinybn[1].track_running_stats = True
        tinybn(images())


@pytest.mark.parametrize("fast", [False, True])
def test_an_attack_in_train_mode_leaves_no_trace(golden, tinybn, fast):
    engine = Engine(torch.device("cpu"), fast_attacks=fast)
    x, y, before = golden["x"], golden["y"], statistics(tinybn)
    ctx = context()
    with engine.attacking(tinybn, True) as target, untracked(target):
        assert target.training and all(module.training for module in tinybn.modules())
        x_adv = TradesPGD(EPS, 2 / 255, 3)(target, x, y, ctx)
    assert (x_adv - x).abs().max() > EPS / 2 and not engine.notes
    assert all(torch.equal(value, before[name]) for name, value in statistics(tinybn).items())
    with mode(tinybn, training=True):
        tinybn(x)
    assert tinybn[1].num_batches_tracked == before["1.num_batches_tracked"] + 1
