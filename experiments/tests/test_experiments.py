"""AdaRAT's barrier on RPAT's loss: RPAT's loss without the barrier, AdaRAT's without perception; its runs and flags."""

import pytest
import torch

from adarat.method import AdversarialTraining as AdaRAT
from adarat.method import Ratio
from common.engine import Engine
from common.errors import UserError
from common.types import Batch, StepContext
from experiments.flags import parser, settings_of
from experiments.method import BarrierOnPerception
from experiments.runs import run_name, runs
from rpat.method import AdversarialTraining as RPAT
from rpat.method import Perception

CPU = Engine(torch.device("cpu"))


def context():
    return StepContext(generator=torch.Generator().manual_seed(5), attacking=CPU.attacking)


def brighter(model, x, y, ctx):
    return (x + 8 / 255).clamp(0, 1)


def loss_and_gradient(objective, model, golden):
    out = objective(model, Batch(golden["x"], golden["y"]), context())
    return out, torch.cat([g.flatten() for g in torch.autograd.grad(out.loss, list(model.parameters()))])


@pytest.mark.parametrize(("lam", "rate"), [(1.0, 0.5), (3.0, 0.2)])
def test_without_the_barrier_it_is_rpats_loss(golden, tinybn, lam, rate):
    perception = Perception(lam, rate)
    ours, gradient = loss_and_gradient(BarrierOnPerception(brighter, Ratio("plain"), perception), tinybn, golden)
    theirs, expected = loss_and_gradient(RPAT(brighter, perception), tinybn, golden)
    torch.testing.assert_close(ours.loss, theirs.loss)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("up", [2.0, 4.0])                       # gate closed, and open: c is about 2.3
def test_without_perception_it_is_adarats_loss(golden, tiny, up):
    ratio = Ratio("adarat", up_lim=up, down_lim=0.5)
    ours, gradient = loss_and_gradient(BarrierOnPerception(brighter, ratio, Perception(lam=0.0)), tiny, golden)
    theirs, expected = loss_and_gradient(AdaRAT(brighter, ratio, attack_in_train_mode=False), tiny, golden)
    assert float(ours.logs["gated"]) == (up == 2.0)
    torch.testing.assert_close(ours.loss, theirs.loss)
    torch.testing.assert_close(gradient, expected)


def test_below_the_gate_perception_stands_in_the_loss(golden, tiny):
    ratio = Ratio("adarat", up_lim=4.0, down_lim=0.5)
    values = [loss_and_gradient(BarrierOnPerception(brighter, ratio, Perception(lam=lam)), tiny, golden)[0]
              for lam in (0.0, 1.0, 2.0)]
    term = values[1].logs["perception_term"]
    assert float(term) > 0
    torch.testing.assert_close(values[1].loss - values[0].loss, term)
    torch.testing.assert_close(values[2].loss - values[0].loss, 2 * term)
    closed = Ratio("adarat", up_lim=2.0, down_lim=0.5)
    alone, _ = loss_and_gradient(BarrierOnPerception(brighter, closed, Perception()), tiny, golden)
    torch.testing.assert_close(alone.loss.detach(), alone.logs["clean_loss"])


def test_its_run_is_rpats_with_the_barrier():
    one, = runs(dataset="cifar10", budget="board", seeds=(3,), data="npz:x.npz")
    assert one.name == run_name("board", 3) == "pgd-at-rpat-barrier_board_s3"
    args = parser().parse_args([*one.argv, *one.place])
    settings = settings_of(args)
    assert (settings.method, settings.variant, settings.seed, settings.epsilon) == ("PGD-AT", "rpat", 3, 8 / 255)
    assert args.limits_from == "pgd-at_board_s3" and one.plans[0].checkpoint == "best" and settings.val


@pytest.mark.parametrize(("words", "said"), [
    (("--mode", "adv_trades"), "is --mode adv_train with --RA"), (("--consistency",), "without --consistency"),
    (("--up_lim", "0.3"), "--down_lim 0.4 must be below --up_lim 0.3"),
    (("--epsilon", "0"), "--epsilon 0: the ratio term")])
def test_what_has_no_barrier_is_said(words, said):
    with pytest.raises(UserError, match=said):
        settings_of(parser().parse_args(["--dataset", "cifar10", *words]))


@pytest.mark.slow
def test_it_trains_on_the_digits_and_takes_adarats_limits(tmp_path):
    import json

    from adarat import flags as adarat_flags
    from adarat.train import train as train_adarat
    from common.records import read_run
    from experiments.training import train

    where = ["--data", "digits", "--dataset_name", "digits", "--results", str(tmp_path / "results"), "--weights",
             str(tmp_path / "weights"), "--device", "cpu", "--precision", "fp32", "--n_train", "128",
             "--n_epoch_test", "32", "--model", "small", "--budget", "board"]
    base = ["--epoch", "3", "--scale_schedule", "True", "--augment", "False", "--final_test", "False", *where]
    args = adarat_flags.parser("PGD-AT", "cifar10").parse_args(base)
    train_adarat(adarat_flags.settings_of("PGD-AT", "cifar10", args), args)
    args = parser().parse_args(["--epochs", "2", "--scale_schedule", "true", "--augment", "false", "--val", *where,
                                "--limits_from", "pgd-at_board_s1", "--seed", "1"])
    train(settings_of(args), args)
    run = read_run(tmp_path / "results/experiments/digits/pgd-at-rpat-barrier_board_s1")
    assert run.run["config"]["down_lim"] < run.run["config"]["up_lim"] and set(run.train["weights"]) == {"last", "best"}
    assert {"barrier", "perception_term", "gated"} <= run.metrics[-1].keys() and json.dumps(run.run)
