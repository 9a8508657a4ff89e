"""Regions, with a recorder that does again what it recorded in the place of a CUDA graph."""

import pytest
import torch
from torch import nn

from common import capture
from common.attack_view import AttackView
from common.attacks import PGD, cross_entropy
from common.attacks.pgd import TradesPGD
from common.capture import MOST, WARM, Regions, statistics
from common.tests.recorders import Again


class Counted:
    """Regions of Again recorders, and what they said."""

    def __init__(self, norms=(), **how):
        self.notes, self.recorders = [], []
        self.regions = Regions(lambda: self.made(norms, how), self.notes.append, norms)

    def made(self, norms, how):
        self.recorders.append(Again(statistics(norms), **how))
        return self.recorders[-1]


def double(x):
    return 2 * x


def test_a_region_is_run_recorded_and_replayed_with_each_calls_inputs():
    counted = Counted()
    found = [counted.regions.run("double", double, torch.full((3,), float(turn))) for turn in range(WARM + 4)]
    assert [one.tolist() for one in found] == [[2.0 * turn] * 3 for turn in range(WARM + 4)]
    assert len(counted.recorders) == 1 and counted.recorders[0].replays == 1 + 3 and counted.notes == []


def test_a_result_is_the_callers_own():
    counted = Counted()
    pair = [counted.regions.run("pair", lambda x: (x + 1, x - 1), torch.full((2,), float(turn))) for turn in range(8)]
    assert [[one.tolist() for one in each] for each in pair] == [[[turn + 1.0] * 2, [turn - 1.0] * 2]
                                                                 for turn in range(8)]


def test_other_shapes_strides_types_keys_and_modes_are_other_regions():
    counted = Counted()
    image = torch.rand(2, 3, 4, 4)
    given = [("a", image), ("a", image[:1]), ("a", image.contiguous(memory_format=torch.channels_last)),
             ("a", image.double()), ("b", image)]
    for _ in range(WARM + 2):
        for key, x in given:
            assert torch.equal(counted.regions.run(key, double, x), 2 * x)
    with torch.no_grad():
        for _ in range(WARM + 2):
            counted.regions.run("a", double, image)
    assert len(counted.recorders) == len(counted.regions.known) == len(given) + 1


def test_statistics_move_once_a_call():
    norm = nn.BatchNorm2d(3)
    alone = nn.BatchNorm2d(3)
    counted = Counted([norm])
    for turn in range(7):
        x = torch.rand(4, 3, 2, 2, generator=torch.Generator().manual_seed(turn))
        assert torch.equal(counted.regions.run("norm", norm, x).detach(), alone(x).detach())
        for name, value in alone.state_dict().items():
            assert torch.equal(norm.state_dict()[name], value), (turn, name)
    assert counted.recorders[0].replays == 1 + 4 and counted.notes == []


def test_what_batch_norms_do_is_part_of_the_kind():
    """A recording would go on moving statistics that are not tracked any more."""
    norm, alone = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    counted, x = Counted([norm]), torch.rand(5, 2)
    for turn in range(3 * (WARM + 2)):
        for each in (norm, alone):
            each.momentum, each.track_running_stats = 0.1 + 0.2 * (turn % 3 == 1), turn % 3 != 2
        assert torch.equal(counted.regions.run("norm", lambda x: norm(x).detach(), x), alone(x).detach())
        assert torch.equal(norm.running_var, alone.running_var)
    assert len(counted.recorders) == 3


@pytest.mark.parametrize(("how", "says"), [
    ({"fails": "operation not permitted\n when stream is capturing"},
     "not recorded as a CUDA graph: operation not permitted when stream is capturing"),
    ({"spoil": 0.1}, "not run as a CUDA graph: the recording is off by 6.7%"),
    ({"spoil": torch.nan}, "not run as a CUDA graph: the recording is off by nan%")])
def test_what_cannot_be_recorded_runs_as_it_is_and_says_so_once(how, says):
    norm, alone = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    counted = Counted([norm], **how)

    def both(x):
        return norm(x).detach() * 0 + 1.5

    for turn in range(6):
        x = torch.rand(5, 2, generator=torch.Generator().manual_seed(turn))
        alone(x)
        assert torch.equal(counted.regions.run("x", both, x), torch.full((5, 2), 1.5))
        assert torch.equal(norm.running_mean, alone.running_mean)
    assert len(counted.recorders) == 1 and counted.notes == [says]


def test_the_least_recent_region_goes():
    counted = Counted()
    x = torch.ones(1)
    for _ in range(WARM + 1):
        counted.regions.run("first", double, x)
    for number in range(MOST - 1):
        counted.regions.run(number, double, x)
    counted.regions.run("first", double, x)                   # used again: not the oldest any more
    counted.regions.run("one more", double, x)
    assert len(counted.regions.known) == MOST and len(counted.recorders) == 1
    counted.regions.run("first", double, x)
    assert len(counted.recorders) == 1
    assert not any(key[0] == 0 for key in counted.regions.known)


# --- attacks ---

@pytest.mark.parametrize("attack", [PGD(0.03, 0.01, 4), PGD(0.5, 0.2, 3, norm="l2"), TradesPGD(0.03, 0.01, 3)])
def test_a_whole_attack_is_one_region(tinybn, attack):
    """The network's weights move between the attacks, and the recording sees them."""
    view, plain = (AttackView(tinybn.eval(), False, torch.float32) for _ in range(2))
    counted = Counted()
    view.regions = counted.regions
    generator = torch.Generator().manual_seed(3)
    for _ in range(WARM + 3):
        with torch.no_grad():
            for parameter in tinybn.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        view.refresh()
        plain.refresh()
        x = torch.rand(4, 3, 8, 8, generator=generator)
        y = torch.randint(0, 10, (4,), generator=generator)
        start = (x + 0.02 * torch.rand(x.shape, generator=generator)).clamp(0, 1)
        assert torch.equal(attack.from_start(view, x, y, start), attack.from_start(plain, x, y, start))
    assert len(counted.recorders) == 2 and all(one.replays > 2 for one in counted.recorders) and not counted.notes
    assert {key[0] if isinstance(key[0], str) else key[0][1] for key in counted.regions.known} == {"refresh",
                                                                                                   "from_start"}


def test_attacks_that_differ_in_a_setting_are_different_regions(tinybn):
    from adarat.attacks import FriendlyPGD
    view = AttackView(tinybn.eval(), False, torch.float32)
    counted = Counted()
    view.regions = counted.regions
    view.refresh()
    x, y = torch.rand(4, 3, 8, 8), torch.tensor([1, 2, 3, 4])
    attacks = [lambda: FriendlyPGD(0.3, 0.1, 3).from_start(view, x, y, x, tau=0),
               lambda: FriendlyPGD(0.3, 0.1, 3).from_start(view, x, y, x, tau=3),
               lambda: PGD(0.3, 0.1, 3).from_start(view, x, y, x), lambda: PGD(0.3, 0.1, 2).from_start(view, x, y, x),
               lambda: PGD(0.3, 0.1, 3, loss=lambda logits, y: -cross_entropy(logits, y)).from_start(view, x, y, x)]
    for attack in attacks[:4]:
        expected = attack()
        for _ in range(WARM + 2):
            assert torch.equal(attack(), expected)
    attacks[4]()
    names = [key for key in counted.regions.known if key[0] != "refresh"]
    assert len(names) == 5


def test_distance_sees_what_is_not_finite_and_nothing_in_nothing():
    assert capture.distance(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 2.0])) == pytest.approx(1 / 3)
    assert not capture.distance(torch.tensor([torch.nan]), torch.tensor([1.0])) <= capture.APART
    assert capture.distance(torch.zeros(0), torch.zeros(0)) == 0
