"""The leaderboard's common shape: what every paper's runs at budget board share, and what a pass is."""

import importlib
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import adarat.method
import brainreg.flags
import brainreg.images
import brainreg.training
import dyart.baselines
import dyart.flags
import rpat.flags
import rpat.method
import rpat.sota_flags
from adarat import runs_cost
from adarat.flags import parser, settings_of
from common import board
from common.attacks import PGD, TradesPGD
from common.engine import Engine
from common.environment import ROOT
from common.errors import UserError
from common.evaluation import plans
from common.experiment import build_network
from common.leaderboard import network
from common.models import count_parameters
from common.records import read_runs
from common.runs import BUDGETS, check
from common.types import Batch, StepContext
from dyart.runs import BASELINE_PASSES
from rpat.runs_cost import effort_of_run as rpat_effort
from rpat.runs_cost import passes as rpat_passes

TARGETS = (("adarat", "cifar10"), ("dyart", "cifar10"), ("rpat", "cifar10"), ("rpat", "cifar10-sotas"),
           ("brainreg", "cifar10-rgb"), ("experiments", "cifar10"))


def planned(paper, target, **more):
    return importlib.import_module(f"{paper}.runs").runs(dataset=target, budget=board.BUDGET, seeds=(1,), **more)


def settings(run):
    """What a run's flags come to, whoever's they are."""
    argv = [*run.argv, *run.place, "--run", run.name, "--spec", "hash"]
    if run.script.startswith("adarat"):
        return settings_of(run.method, "cifar10", parser(run.method, "cifar10").parse_args(argv))
    if run.script.startswith("dyart"):
        return dyart.flags.settings_of(dyart.flags.parse(argv))
    if run.script.startswith("brainreg"):
        one = brainreg.flags.settings_of(brainreg.flags.parse(argv))
        return SimpleNamespace(model=one.archi, width=one.base_channels, n_train=one.n_train, epochs=one.epoch_num,
                               batch_size=one.resnet_batch_size, n_epoch_test=one.n_epoch_test, brainreg=one)
    if run.script.startswith("rpat/sotas"):
        return rpat.sota_flags.settings_of(run.method, rpat.sota_flags.parser(run.method).parse_args(argv))
    module = importlib.import_module(f"{run.script.partition('/')[0]}.flags")
    return module.settings_of(module.parser().parse_args(argv))


@pytest.mark.parametrize(("paper", "target"), TARGETS)
def test_every_method_has_the_same_shape(paper, target):
    found = planned(paper, target)
    check(found)
    assert found
    for run in found:
        one = settings(run)
        burn_in = run.method == "clean"
        epochs = getattr(one, "last_epoch", None) or getattr(one, "epoch", None) or one.epochs
        assert (one.model, one.width, one.n_train, one.batch_size) == ("resnet18", 16, board.N_TRAIN, 128)
        assert epochs == (11 if burn_in else board.EPOCHS) and one.n_epoch_test == board.N_EPOCH_TEST
        assert [plan.plan for plan in run.plans] == ([] if burn_in else ["board-1000-100"])
        assert run.cost.gflop == board.GFLOP


def test_the_board_takes_every_paper():
    names = [(run.method, run.variant) for paper, target in TARGETS for run in planned(paper, target)]
    # Whatever a paper trains at its full budget is here, too, and AdaRAT's standard training is judged.
    adarat = [(method, variant) for method in ("PGD-AT", "FAT", "DAT", "TRADES", "KD-AT", "IAD", "Generalist")
              for variant in ("plain", "fixrat", "adarat")]
    rpat = [(method, variant) for method in ("PGD-AT", "TRADES", "MART", "Consistency-AT")
            for variant in ("plain", "rpat")]
    dyart = [(method, "plain") for method in ("clean", "DyART", "AT", "TRADES", "MART")]
    assert names == [("ST", "plain"), *adarat, *dyart, *rpat, ("ReBAT", "plain"), ("RPAT++", "plain"),
                     ("unregularised", "none"), ("regularised", "CIFAR10-n2500"), ("PGD-AT", "rpat-barrier")]
    assert board.BUDGET in BUDGETS
    rules = (ROOT / "Makefile").read_text()
    assert f"BOARD_CIFAR10  := {' '.join('/'.join(pair) for pair in TARGETS)}\n" in rules


def test_the_evaluation_is_one_for_all():
    plan = board.plan_named(board.PLAN)
    clean, pgd, attacked = plan.evaluators
    assert (clean.kind, clean.n, pgd.steps, attacked.kind, attacked.n) == ("clean", 1000, 20, "autoattack", 100)
    assert {pgd.eps, attacked.eps} == {8 / 255} and {pgd.norm, attacked.norm} == {"linf"}
    assert board.plan_named("paper-adarat-1000-200") is None and plan == plans.Plan.from_json(plan.to_json())


def test_brainregs_classifier_is_the_other_papers_network_on_the_same_images():
    plain, regularised = (settings(run).brainreg for run in planned("brainreg", "cifar10-rgb"))
    assert plain.rgb and regularised.rgb and regularised.reg_data == "cifar10" and regularised.reg_alpha == 10
    assert regularised.reg_image_num == board.N_TRAIN                   # it sees no image that the others do not
    scale, shift = brainreg.images.network_scale(plain)
    told = {"builder": brainreg.training.BUILDER, "name": plain.archi, "channels": 3, "width": plain.base_channels,
            "stem": plain.stem, "scale": scale, "shift": shift}
    pairs, ours = build_network(told), build_network({"name": "resnet18", "classes": 10, "width": board.WIDTH})
    parameters = sum(parameter.numel() for parameter in pairs.parameters())
    assert network({**told, "parameters": parameters, "parameters_beside": pairs.beside_logits}) == network(
        {"name": "resnet18", "width": board.WIDTH, "parameters": count_parameters(ours)})
    # Both list the tensors in the order of the layers, the similarities' own ones aside.
    beside = ("layer_weight", "running_mean.")
    taken = [tensor for name, tensor in pairs.state_dict().items() if not name.startswith(beside)]
    ours.load_state_dict(dict(zip(ours.state_dict(), taken, strict=True)))
    x = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(pairs.eval()(x), ours.eval()(scale * (x - shift)), atol=1e-5)


def test_there_is_no_board_where_the_shape_does_not_fit():
    for paper, target in (("dyart", "tiny-imagenet"), ("rpat", "cifar10-l2"), ("experiments", "tiny-imagenet"),
                          ("brainreg", "mnist-rgb"), ("brainreg", "cifar10")):
        with pytest.raises(UserError, match=f"{target}' at budget board"):
            planned(paper, target)
    with pytest.raises(UserError, match="one method, PGD-AT\\+RPAT\\+barrier, not DyART"):
        planned("experiments", "cifar10", methods=("DyART",))


# -- passes ----------------------------------------------------------------------------------------------------------

class Counting(nn.Module):
    """Counts what `common.runs` counts: 1/3 for a forward pass, 2/3 with the image's gradient, 1 with the weights'."""

    def __init__(self, network):
        super().__init__()
        self.network, self.passes = network, 0.0

    def forward(self, x):
        trains = any(parameter.requires_grad for parameter in self.parameters())
        self.passes += len(x) * (1 / 3 if not torch.is_grad_enabled() else 1.0 if trains else 2 / 3)
        return self.network(x)


def counted(objective, tiny, golden, views=1):
    """Passes per image of one step."""
    model, engine = Counting(tiny).train(), Engine(torch.device("cpu"))
    ctx = StepContext(generator=torch.Generator().manual_seed(5), attacking=engine.attacking)
    x = golden["x"].repeat(views, 1, 1, 1)
    out = objective(model, Batch(x, golden["y"]), ctx)
    out.loss.backward()
    return model.passes / len(golden["y"])


SMALL = (8 / 255, 2 / 255, 10)


@pytest.mark.parametrize(("method", "variant"), [(method, variant) for method in ("PGD-AT", "TRADES")
                                                 for variant in ("plain", "fixrat", "adarat")])
def test_adarats_passes_are_what_a_step_does(tiny, golden, method, variant):
    trades = method == "TRADES"
    one = adarat.method.AdversarialTraining((TradesPGD if trades else PGD)(*SMALL), adarat.method.Ratio(variant),
                                            6.0 if trades else None)
    assert counted(one, tiny, golden) == pytest.approx(runs_cost.passes(method, variant))


@pytest.mark.parametrize(("method", "variant"), [("KD-AT", "plain"), ("KD-AT", "adarat"), ("IAD", "fixrat")])
def test_teachers_are_counted(tiny, golden, method, variant):
    teachers = [Counting(tiny).eval() for _ in range(2)]
    one = adarat.method.Distillation(PGD(*SMALL), *teachers, adarat.method.Ratio(variant),
                                     begin=5 if method == "IAD" else None)
    found = counted(one, tiny, golden) + sum(teacher.passes for teacher in teachers) / len(golden["y"])
    assert found == pytest.approx(runs_cost.passes(method, variant))


@pytest.mark.parametrize("variant", ["plain", "rpat"])
@pytest.mark.parametrize("method", ["PGD-AT", "TRADES", "MART", "Consistency-AT"])
def test_rpats_passes_are_what_a_step_does(tiny, golden, method, variant):
    perception = rpat.method.Perception() if variant == "rpat" else None
    make = importlib.import_module("rpat.attacks")
    made = {"PGD-AT": lambda: rpat.method.AdversarialTraining(make.pgd("linf", *SMALL), perception),
            "TRADES": lambda: rpat.method.Trades(make.trades("linf", *SMALL), 6.0, perception),
            "MART": lambda: rpat.method.Mart(make.mart("linf", *SMALL), 6.0, perception),
            "Consistency-AT": lambda: rpat.method.AdversarialTraining(make.pgd("linf", *SMALL), perception,
                                                                      rpat.method.Consistency())}
    views = 2 if method == "Consistency-AT" else 1
    assert counted(made[method](), tiny, golden, views) == pytest.approx(rpat_passes(method, variant))


@pytest.mark.parametrize("method", ["AT", "TRADES", "MART"])
def test_dyarts_baselines_passes_are_what_a_step_does(tiny, golden, method):
    attack = dyart.baselines.training_attack(method, name="linf-pgd", eps=8 / 255, step_size=2 / 255, steps=10)
    one = getattr(dyart.baselines, method)(attack, **({} if method == "AT" else {"beta": 6.0}))
    assert counted(one, tiny, golden) == pytest.approx(BASELINE_PASSES[method])


def test_effort_is_read_off_the_records():
    found = {(run.run["paper"], run.name): importlib.import_module(f"{run.run['paper']}.runs").effort_of_run(run)
             for paper in ("adarat", "dyart") for run in read_runs(ROOT / "results", paper, "cifar10")}
    barrier = found["adarat", "pgd-at-adarat_short_s1"]
    assert barrier.after == ("pgd-at_short_s1",) and barrier.passes == pytest.approx(10 * 2 / 3 + 2)
    dyart_run = found["dyart", "dyart_short_s1"]
    assert dyart_run.after == ("clean_short_s1",) and 9 < dyart_run.passes < 13
    assert found["dyart", "clean_short_s1"].passes == 1.0


def test_other_steps_cost_accordingly():
    def run(**config):
        return SimpleNamespace(run={"method": "PGD-AT", "variant": "plain", "quirks": ["clean-pass"], "needs": {},
                                    "config": config})

    assert runs_cost.effort_of_run(run(step_num=20)).passes == pytest.approx(20 * 2 / 3 + 4 / 3)
    assert rpat_effort(run(n_iters=5)).passes == pytest.approx(5 * 2 / 3 + 1)
    assert rpat_effort(run(attack_iters=10)).passes == pytest.approx(rpat_passes("PGD-AT", "plain"))
