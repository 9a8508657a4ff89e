"""One training run of DyART's repository: settings in, records and weights out."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common import group
from common.data import Batches, DataSet
from common.data.ddpm import ExtraImages, load_extra
from common.data.mixed import MixedBatches
from common.engine import Engine
from common.environment import ROOT
from common.errors import UserError
from common.evaluation.harness import check_plan
from common.experiment import RESULTS, WEIGHTS, Experiment, build_network
from common.fit import SGD, BatchSource, TrainRecord, fit
from common.seeds import fold
from common.types import Objective
from common.verdicts import judge, print_results
from dyart.averaging import averaging, released_steps
from dyart.baselines import AT, MART, TRADES, CleanTraining, training_attack
from dyart.boundary import FAB
from dyart.flags import dataset_folder
from dyart.inputs import Images, describe_network, find_burn_in, load_burn_in, load_images
from dyart.method import DyART
from dyart.norm_momentum import FirstStep
from dyart.observe import Observer
from dyart.plans import DEFAULT_PLAN, plan_named
from dyart.schedules import schedule
from dyart.settings import Settings, run_name
from dyart.validation import Validation

SELECTED_ON = "PGD-40 on held-out training images"


def train(settings: Settings, args: argparse.Namespace) -> None:
    """Train as `settings` say; `args` says where things are and on what they run."""
    engine = Engine.choose(args.device, args.precision, args.sync_bn, args.speedups, args.deterministic)
    images = load_images(settings, args)
    folder = dataset_folder(args)
    budget = args.budget or "custom"
    name = args.run or run_name(settings.method, settings.variant, budget, settings.seed, args.fname_extra)
    roots = {"results": Path(args.results) if args.results else RESULTS,
             "weights_root": Path(args.weights) if args.weights else WEIGHTS}
    burn_in, needs = find_burn_in(settings, args, budget, roots["weights_root"] / "dyart" / folder)
    with group.current().machine_by_machine():                # it may leave a cache file
        extra = None if settings.clean_training else find_extra(args, images)
    described = images.data.describe()
    model = describe_network(settings, images.data)
    config: dict[str, Any] = {
        **settings.config(), "precision": engine.precision, "model": model,
        "data": {"protocol": settings.data, "validation_fingerprint": images.validation.fingerprint,
                 **{key: described[key] for key in ("train_fingerprint", "test_fingerprint", "n_train")}}}
    if burn_in is not None:
        config["pretrained"] = next(iter(needs.values()))
    if extra is not None:
        config["data"]["extra_fingerprint"] = extra.fingerprint
        described["extra"] = extra.describe()
    experiment = Experiment(paper="dyart", dataset=folder, run=name, method=settings.method, variant=settings.variant,
                            budget=budget, seed=settings.seed, config=config, data=described, quirks=settings.quirks,
                            needs=needs, spec=args.spec, **roots)
    experiment.check_free()
    tested = args.final_test and not settings.clean_training
    plan = plan_named(args.plan or DEFAULT_PLAN, settings) if tested else None
    if experiment.finished():
        experiment.adopt()
        print(f"{name} is already trained")
    else:
        torch.manual_seed(fold(settings.seed, "init"))
        network = build_network(model)
        if burn_in is not None:
            load_burn_in(network, burn_in)
        if plan is not None:
            check_plan(plan, network, images.data.test)
        batches = make_batches(settings, images, extra, engine)
        experiment.open(network)
        print(f"{name}: {settings.method} ({settings.variant}) on {described['source']}, {settings.model}, "
              f"{settings.last_epoch} epochs, {engine.precision} on {engine.describe()['device_name']}")
        trained = run_training(settings, experiment, network, images, batches, engine)
        experiment.close(trained, engine, selected_on=None if settings.clean_training else SELECTED_ON)
    if plan is not None:
        path = judge(folder=experiment.folder, weights=experiment.weights, test=images.data.test, data=described,
                     plan=plan, engine=engine, checkpoint="best", seed=settings.seed)
        print_results(path)


def run_training(settings: Settings, experiment: Experiment, network: nn.Module, images: Images, batches: BatchSource,
                 engine: Engine) -> TrainRecord:
    """Train the network with everything that the released code does beside the objective."""
    steps = len(batches)
    released = released_steps(images.released_total, settings.batch_size)
    quirks = settings.quirks
    method = objective(settings)
    optim = SGD(weight_decay=settings.weight_decay, nesterov=settings.nesterov, clip_norm=settings.clip_grad,
                decays=lambda name, parameter: "batchnorm" not in name)
    plan = schedule(settings.scheduler, lr=settings.lr, epochs=settings.epochs, steps_per_epoch=steps,
                    released_steps=released)
    robust = not settings.clean_training
    validation = validate(settings, images, engine, robust)
    select = {}
    if robust:
        select["best"] = lambda numbers: numbers["val_robust_accuracy"]
        if "test-best" in quirks:
            select["test-best"] = lambda numbers: numbers["test_robust_accuracy"]
    observer = None
    if settings.observe:
        shown = images.data.train.subset(min(settings.observe, len(images.data.train))).to(engine.device)
        # Rank 0 observes by itself, so that the step which it looks at is on the whole of each batch.
        whole = replace(batches, rank=0, ranks=1)
        observer = Observer(experiment.folder / "dynamics.npz", shown, batches=whole, objective=method,
                            rival=rival(settings), ruler=boundary_training(settings), optim=optim, schedule=plan,
                            epochs=settings.last_epoch, seed=settings.seed, device=engine.device,
                            method=settings.method)
    return fit(model=network, objective=method, batches=batches, schedule=plan, optim=optim,
               epochs=settings.last_epoch, out=experiment.folder, weights=experiment.weights, seed=settings.seed,
               engine=engine, identity=experiment.config_sha256, validate=validation, validate_first=robust,
               select=select, snapshots=settings.snapshots, observe=observer,
               before_step=FirstStep() if "bn-first-step" in quirks else None,
               average=averaging(epochs=settings.epochs, steps_per_epoch=steps, tau=settings.tau,
                                 released_steps=released if "tiny-step-count" in quirks else steps,
                                 offset="wa-step-offset" in quirks))


def boundary_training(settings: Settings) -> DyART:
    """The DyART objective of these settings; for other methods the ruler that their margins are measured with."""
    return DyART(alpha=settings.h_prime_alpha, r0=settings.h_prime_r0, lam_robust=settings.lam_robust,
                 temperature=settings.temperature, use_high_quality=settings.use_high_quality,
                 search=FAB(eps=settings.eps_FAB, steps=settings.iter_FAB,
                            shared_alpha="scalar-alpha" in settings.quirks))


def rival(settings: Settings) -> tuple[str, Objective]:
    """The method whose step is put beside this run's: AT beside DyART, DyART beside all others."""
    if settings.method != "DyART":
        return "DyART", boundary_training(settings)
    return "AT", objective(replace(settings, DyART=False, beta=-1.0, quirks=()))


def objective(settings: Settings) -> Objective:
    """The method's loss, with its training attack."""
    if settings.method == "clean":
        return CleanTraining()
    if settings.method == "DyART":
        return boundary_training(settings)
    attack = training_attack(settings.method, name=settings.attack, eps=settings.attack_eps,
                             step_size=settings.attack_step, steps=settings.attack_iter)
    if settings.method == "AT":
        return AT(attack, clean_pass="at-clean-pass" in settings.quirks, keep_clean=settings.keep_clean)
    if settings.method == "MART":
        return MART(attack, settings.beta)
    return TRADES(attack, settings.beta, smooth="smooth-trades" in settings.quirks)


def validate(settings: Settings, images: Images, engine: Engine, robust: bool) -> Validation:
    """The test after each epoch, on held-out training images and, as released, on test images."""
    parts = {"val": images.validation, "test": images.data.test}
    most = settings.n_epoch_test
    parts = {name: split.subset(min(most or len(split), len(split))).to(engine.device)
             for name, split in parts.items()}
    return Validation(parts, attack=settings.attack, eps=settings.attack_eps, step_size=settings.attack_step,
                      steps=4 * settings.attack_iter, seed=settings.seed, robust=robust,
                      batch=settings.batch_size_validation, batch_means="batch-mean-acc" in settings.quirks)


def find_extra(args: argparse.Namespace, images: Images) -> ExtraImages | None:
    """The extra training images of --aux-data-filename, or None."""
    asked = args.aux_data_filename
    if asked is None:
        return None
    data: DataSet = images.data
    if asked == "rest":
        if images.left_out is None:
            raise UserError("--aux-data-filename rest means the training images that --n_train leaves out: give "
                            "--n_train, or name an npz file", code="E-FLAG-PAIR")
        return ExtraImages.of_split(images.left_out, "training images that --n_train leaves out")
    # A record names files from the repository root.
    files = [word if not word or Path(word).exists() else ROOT / word for word in asked.split(",")]
    return load_extra(files, classes=data.classes, image_shape=data.image_shape, index=args.aux_ind_pth,
                      cache=args.data_dir)


def make_batches(settings: Settings, images: Images, extra: ExtraImages | None, engine: Engine) -> BatchSource:
    """The training batches: of the released number an epoch, mixed with the extra images where there are any."""
    split = images.data.train.to(engine.device)
    crop = 4 if settings.augment else 0
    # Tiny-ImageNet goes once through its images; CIFAR counts its steps by all 50,000 images, whatever validates.
    steps = None if settings.data == "tiny-imagenet" else -(-images.released_total // settings.batch_size)
    options: dict[str, Any] = {"seed": settings.seed, "crop": crop, "flip": settings.augment, "steps": steps,
                               "rotate": 15 if settings.augment and settings.data == "cifar100" else 0,
                               "channels_last": engine.channels_last, **engine.shares}
    if extra is not None:
        return MixedBatches(split, extra, settings.batch_size, unsup_fraction=settings.unsup_fraction, **options)
    return Batches(split, settings.batch_size, **options)
