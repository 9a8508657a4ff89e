"""One training run of RPAT's part 1: settings in, records and weights out."""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.data import Batches, DataSet, Split, hold_out
from common.data.policies import uses_policy
from common.engine import Engine
from common.evaluation.harness import check_plan
from common.experiment import RESULTS, WEIGHTS, Experiment, build_network, load_data
from common.fit import SGD, TrainRecord, fit
from common.seeds import fold
from common.types import Attack, Objective
from common.verdicts import judge, print_results
from rpat import attacks
from rpat.flags import data_spec, dataset_folder
from rpat.method import AdversarialTraining, Consistency, Mart, Perception, StandardTraining, Trades
from rpat.plans import DEFAULT_PLAN, plan_named
from rpat.schedules import schedule
from rpat.settings import Settings, run_name
from rpat.validation import Validation, held_out_positions

STRIDED = ("resnet18", "resnet18-bottleneck", "preresnet18", "wrn-28-10", "wrn-34-10")   # stem stride 2 from 64 px on
SELECTED_ON = {"val": "PGD-{} on held-out training images", "test": "PGD-{} on the test images (quirk test-selected)"}


@dataclass(frozen=True)
class Images:
    """data: training images (validation taken off) and test images; validation: with --val."""

    data: DataSet
    validation: Split | None


def train(settings: Settings, args: argparse.Namespace) -> None:
    """Train as `settings` say; `args` says where things are and on what they run."""
    engine = Engine.choose(args.device, args.precision, args.sync_bn, args.speedups, args.deterministic)
    images = load_images(settings, args)
    budget = args.budget or "custom"
    marks = (*settings.marks, *([args.suffix] if args.suffix else []))
    name = args.run or run_name(settings.method, settings.variant, budget, settings.seed, marks)
    described = images.data.describe()
    model = describe_network(settings, images.data)
    config: dict[str, Any] = {
        **settings.config(), "precision": engine.precision, "model": model,
        "data": {"protocol": settings.dataset,
                 **{key: described[key] for key in ("train_fingerprint", "test_fingerprint", "n_train")},
                 **({"validation_fingerprint": images.validation.fingerprint} if images.validation else {})}}
    experiment = Experiment(paper="rpat", dataset=dataset_folder(args, settings.norm), run=name,
                            method=settings.method, variant=settings.variant, budget=budget, seed=settings.seed,
                            config=config, data=described, quirks=settings.quirks, spec=args.spec,
                            results=Path(args.results) if args.results else RESULTS,
                            weights_root=Path(args.weights) if args.weights else WEIGHTS)
    experiment.check_free()
    plan = plan_named(args.plan or DEFAULT_PLAN, settings) if args.final_test else None
    selected = settings.selects and SELECTED_ON[settings.selects].format(settings.n_iters)
    if experiment.finished():
        experiment.adopt()
        print(f"{name} is already trained")
    else:
        torch.manual_seed(fold(settings.seed, "init"))
        network = build_network(model)
        if plan is not None:
            check_plan(plan, network, images.data.test)
        batches = make_batches(settings, images.data.train.to(engine.device), engine)
        experiment.open(network)
        print(f"{name}: {settings.method} ({settings.variant}) on {described['source']}, {model['name']}, "
              f"{settings.epochs} epochs, {engine.precision} on {engine.describe()['device_name']}")
        trained = run_training(settings, experiment, network, images, batches, engine)
        experiment.close(trained, engine, selected_on=selected)
    if plan is not None:
        path = judge(folder=experiment.folder, weights=experiment.weights, test=images.data.test, data=described,
                     plan=plan, engine=engine, checkpoint="best" if settings.selects else "last", seed=settings.seed)
        print_results(path)


def run_training(settings: Settings, experiment: Experiment, network: nn.Module, images: Images, batches: Batches,
                 engine: Engine, method: Objective | None = None) -> TrainRecord:
    """Train the network, test it after each epoch, keep what is to be kept.  method: a loss in place of the settings'.
    """
    on, attack = settings.selects, attacks.pgd(settings.norm, settings.epsilon, settings.alpha, settings.n_iters)
    parts = {"test": images.data.test, **({"val": images.validation} if images.validation is not None else {})}
    most = settings.n_epoch_test
    parts = {name: split.subset(min(most or len(split), len(split))).to(engine.device)
             for name, split in parts.items()}
    validation = Validation(parts, attack=attack, seed=settings.seed, batch=settings.test_batch_size,
                            every=settings.error_step)
    return fit(model=network, objective=method or objective(settings), batches=batches, epochs=settings.epochs,
               schedule=schedule(settings.lr_scheduler, lr=settings.lr_init, epochs=settings.epochs,
                                 scaled=settings.scale_schedule),
               optim=SGD(weight_decay=settings.weight_decay), out=experiment.folder, weights=experiment.weights,
               seed=settings.seed, engine=engine, identity=experiment.config_sha256, validate=validation,
               select={"best": lambda numbers: numbers[f"{on}_pgd_accuracy"]} if on else {},
               snapshots=settings.snapshots, before_step=validation.before_step)


def load_images(settings: Settings, args: argparse.Namespace) -> Images:
    """The data set; with --val the released part of the training images is held out, then --n_train takes its first."""
    data = load_data(data_spec(args), args.data_dir, held_out=settings.hold_out)
    train, validation = data.train, None
    if settings.val:
        train, validation = hold_out(train, indices=held_out_positions(len(train)))
    if settings.n_train is not None:
        train = train.subset(settings.n_train)
    return Images(replace(data, train=train), validation)


def describe_network(settings: Settings, data: DataSet) -> dict[str, Any]:
    """What `common.experiment.build_network` takes."""
    channels, height, width = data.image_shape
    described: dict[str, Any] = {"name": settings.model, "classes": data.classes, "channels": channels}
    if settings.width is not None:
        described["width"] = settings.width
    if settings.model in STRIDED and min(height, width) >= 64:
        described["stem_stride"] = 2
    return described


def make_batches(settings: Settings, split: Split, engine: Engine) -> Batches:
    """The training batches; two views of each image for Consistency-AT."""
    kind, epochs = settings.augment_type, settings.epochs
    return Batches(split, settings.batch_size, seed=settings.seed, crop=4 if settings.augment else 0,
                   flip=settings.augment, views=2 if settings.consistency else 1,
                   policy=None if kind == "base" else lambda epoch: uses_policy(kind, epoch, epochs),
                   channels_last=engine.channels_last, **engine.shares)


def training_attack(settings: Settings) -> Attack:
    """The attack of the mode, in the run's norm."""
    if settings.mode == "adv_train" and settings.adv_method == "fgsm":
        return attacks.fgsm(settings.norm, settings.epsilon)
    make = {"adv_train": attacks.pgd, "adv_trades": attacks.trades, "adv_mart": attacks.mart}[settings.mode]
    return make(settings.norm, settings.epsilon, settings.alpha, settings.n_iters)


def objective(settings: Settings) -> Objective:
    """The method's loss, with its attack, and with --RA robust perception."""
    if settings.mode in ("ce", "ce_rand"):
        return StandardTraining(noise=settings.epsilon if settings.mode == "ce_rand" else 0.0)
    attack = training_attack(settings)
    perception = Perception(settings.lam, settings.RA_ip_rate, settings.RA_start) if settings.RA else None
    if settings.mode == "adv_trades":
        return Trades(attack, settings.beta, perception, third_pass="trades-third-pass" in settings.quirks)
    if settings.mode == "adv_mart":
        return Mart(attack, settings.beta, perception)
    return AdversarialTraining(attack, perception,
                               Consistency(settings.lam, settings.T) if settings.consistency else None)
