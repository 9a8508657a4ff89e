"""One training run of ReBAT or RPAT++: settings in, records and weights out, then the final test."""

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from common.checkpoint import load_tree
from common.data import Batches, DataSet, Split
from common.engine import Engine
from common.environment import portable
from common.errors import UserError
from common.evaluation.harness import check_plan
from common.experiment import Experiment, build_network
from common.fit import SGD, TrainRecord, fit
from common.seeds import fold
from common.types import Attack
from rpat.attacks import FromEpoch, no_attack
from rpat.rebat import Beta, ReBAT, RPATpp, clean_forward, penalised
from rpat.rebat_attack import RebatPGD
from rpat.sota_evaluation import check_wanted, final_test, plan_of
from rpat.sota_inputs import Inputs, experiment_of, load_inputs
from rpat.sota_schedules import Rate, at_the_end_of_steps, averaging, learning_rate
from rpat.sota_settings import SotaSettings
from rpat.sota_validation import SotaValidation

OBJECTIVES = {"ReBAT": ReBAT, "RPAT++": RPATpp}


def train(settings: SotaSettings, args: argparse.Namespace) -> None:
    """Train as `settings` say, test as the flags of the evaluation say; `args` also says where and on what.

    A run that was stopped goes on from its last whole epoch; one that is trained is tested alone.
    """
    check_wanted(args, bool(settings.selection))
    engine = Engine.choose(args.device, args.precision, args.sync_bn, args.speedups, args.deterministic)
    inputs = load_inputs(settings, args)
    experiment = experiment_of(settings, args, inputs, engine)
    experiment.check_free()
    trained = experiment.finished()
    check_resume(args, experiment, settings.epochs if trained else None)
    if trained:
        experiment.adopt()
        print(f"{experiment.run} is already trained")
    else:
        torch.manual_seed(fold(settings.seed, "init"))
        network = build_network(experiment.config["model"])
        if args.final_test:
            check_plan(plan_of(args, settings, "average", chosen=bool(settings.selection)), network, inputs.data.test)
        batches = make_batches(inputs.data, settings, engine)      # refuses what fits no batch
        experiment.open(network)
        print(f"{experiment.run}: {settings.method} on {experiment.data['source']}, {settings.model}, "
              f"{settings.epochs} epochs, {engine.precision} on {engine.describe()['device_name']}")
        experiment.close(run_training(settings, experiment, network, inputs, batches, engine), engine,
                         selected_on=selected_on(settings))
    if args.final_test:
        final_test(experiment.folder, experiment.weights, settings, args, inputs.data, engine)


def check_resume(args: argparse.Namespace, experiment: Experiment, finished: int | None) -> None:
    """A UserError unless --resume N (0: not given) is the number of whole epochs that the run has."""
    if not args.resume:
        return
    here = {experiment.folder.resolve(), experiment.weights.resolve()}
    if args.load_folder and Path(args.load_folder).resolve() not in here:
        raise UserError(f"--resume goes on with {experiment.run} itself, from {portable(str(experiment.weights))}: "
                        "leave --load-folder out (optimiser states of other folders are not read)", code="E-FLAG-PAIR")
    path = experiment.weights / "resume.pt"
    if finished is None and not path.exists():
        raise UserError(f"--resume {args.resume}: {experiment.run} has no whole epoch in "
                        f"{portable(str(experiment.weights))}; leave --resume out to begin it", code="E-RESUME")
    there = finished if finished is not None else load_tree(path)["epoch"]
    if there != args.resume:
        raise UserError(f"--resume {args.resume}: {experiment.run} has {there} whole epochs; give --resume {there}, or "
                        "leave it out: a run goes on from its last whole epoch by itself", code="E-RESUME")


def run_training(settings: SotaSettings, experiment: Experiment, network: nn.Module, inputs: Inputs, batches: Batches,
                 engine: Engine) -> TrainRecord:
    """Train the network with everything that the released code does beside the objective."""
    rate = learning_rate(settings.lr_schedule, lr_max=settings.lr_max, factor=settings.lr_factor,
                         stage1=settings.stage1, stage2=settings.stage2, epochs=settings.epochs)
    quirks, part = settings.quirks, settings.judged_part
    scores = {"average": f"{part}_wa_pgd_accuracy", "model": f"{part}_pgd_accuracy"}
    select = {name: (lambda numbers, key=scores[whose]: numbers[key]) for whose, name in settings.selection.items()}
    return fit(model=network, objective=objective(settings, rate), batches=batches,
               schedule=at_the_end_of_steps(rate, len(batches)), optim=optimiser(settings), epochs=settings.epochs,
               out=experiment.folder, weights=experiment.weights, seed=settings.seed, engine=engine,
               identity=experiment.config_sha256, validate=validation(settings, network, inputs, engine),
               select=select, online=tuple(name for whose, name in settings.selection.items() if whose == "model"),
               snapshots=settings.snapshots,
               average=averaging(warmup_epochs=settings.warmup_epochs, decay_rate=settings.decay_rate,
                                 steps_per_epoch=len(batches)),
               after_step=clean_forward("half-inputs" in quirks) if "clean-forward" in quirks else None)


def objective(settings: SotaSettings, rate: Rate) -> ReBAT:
    """The method's loss with its training attack; rate: t -> learning rate."""
    weight = Beta(settings.beta, settings.warmup_epochs, settings.reg_schedule if settings.use_reg_schedule else None,
                  lr=rate, lr_max=settings.lr_max, factor=settings.beta_factor, stage2=settings.stage2)
    return OBJECTIVES[settings.method](
        training_attack(settings), weight, train_mode_attack="train-mode-attack" in settings.quirks,
        wa_train_mode="wa-train-mode" in settings.quirks, half_inputs="half-inputs" in settings.quirks, l1=settings.l1)


def training_attack(settings: SotaSettings) -> Attack:
    """--attack, with --stronger-attack from stage1 on."""
    if settings.attack == "none":
        return no_attack
    usual = RebatPGD(settings.eps, settings.step_size, settings.attack_iters, settings.norm, settings.restarts)
    if not settings.stronger_attack:
        return usual
    stronger = replace(usual, eps=settings.stronger_epsilon / 255, steps=settings.stronger_attack_iters)
    return FromEpoch(usual, stronger, settings.stage1)


def optimiser(settings: SotaSettings) -> SGD:
    """SGD; --l2 replaces the weight decay of all parameters by one of those that `penalised` names."""
    if settings.l2:
        return SGD(weight_decay=settings.l2, decays=lambda name, parameter: penalised(name))
    return SGD(weight_decay=5e-4)


def make_batches(data: DataSet, settings: SotaSettings, engine: Engine) -> Batches:
    """The training batches: crop with reflecting borders, flip, and CutMix if asked for."""
    return Batches(data.train.to(engine.device), settings.batch_size, seed=settings.seed, crop=4, crop_mode="reflect",
                   flip=True, channels_last=engine.channels_last,
                   cutmix=(settings.cutmix_alpha, settings.cutmix_beta) if settings.cutmix else None,
                   classes=data.classes if settings.cutmix else None, **engine.shares)


def validation(settings: SotaSettings, network: nn.Module, inputs: Inputs, engine: Engine) -> SotaValidation:
    """What is measured after each epoch; --n_epoch_test limits the images."""
    def first(split: Split) -> Split:
        return split.subset(min(settings.n_epoch_test or len(split), len(split))).to(engine.device)

    seen_again = None
    if settings.eval_train_robust:
        seen_again = Batches(first(inputs.data.train), settings.batch_size, seed=fold(settings.seed, "train robust"),
                             crop=4, crop_mode="reflect", flip=True)
    judged = inputs.data.test if inputs.validation is None else inputs.validation
    return SotaValidation(network, first(judged), settings, train=seen_again)


def selected_on(settings: SotaSettings) -> str | None:
    """What the checkpoints of `selection` are chosen on, in words."""
    if not settings.selection:
        return None
    images = "held-out training images" if settings.val else "test images (quirk test-selected)"
    return f"PGD accuracy after each epoch on {images}"
