"""One training run of AdaRAT's repository: settings in, records and weights out."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from adarat import settings as released
from adarat.attacks import DynamicPGD, FriendlyPGD
from adarat.generalist import Plan as GeneralistPlan
from adarat.generalist import Quintet, fit_generalist
from adarat.limits import from_base_run
from adarat.method import AdversarialTraining, Distillation, Ratio, StandardTraining
from adarat.runs import DEFAULT_PLAN, plan_named, run_name
from adarat.settings import Settings
from adarat.validation import Validation
from common.attacks import PGD, TradesPGD
from common.checkpoint import load_weights
from common.data import Batches, DataSet
from common.engine import Engine
from common.environment import portable
from common.errors import UserError
from common.evaluation.harness import check_plan
from common.experiment import RESULTS, WEIGHTS, Experiment, build_network, load_data
from common.files import sha256_of
from common.fit import SGD, TrainRecord, fit
from common.flags import dataset_name
from common.schedules import steps
from common.seeds import fold
from common.types import Attack, Objective
from common.verdicts import judge, print_results


def train(settings: Settings, args: argparse.Namespace) -> None:
    """Train as `settings` say and, unless told otherwise, test; `args` says where things are and on what they run."""
    engine = Engine.choose(args.device, args.precision, args.sync_bn, args.speedups, args.deterministic)
    spec = args.data or settings.dataset
    data = load_data(spec, args.data_dir or original_path(args), n_train=settings.n_train,
                     held_out=settings.hold_out)
    check_classes(args, data)
    folder = args.dataset_name or dataset_name(spec)
    budget = args.budget or ("full" if settings == as_released(settings) and args.data is None else "custom")
    name = args.run or run_name(settings.method, settings.variant, budget, settings.seed) + ablation(args)
    roots = {"results": Path(args.results) if args.results else RESULTS,
             "weights_root": Path(args.weights) if args.weights else WEIGHTS}
    if settings.limits_from and settings.variant == "adarat":
        up_lim, down_lim = from_base_run(roots["results"] / "adarat" / folder / settings.limits_from)
        settings = replace(settings, up_lim=up_lim, down_lim=down_lim)
    model = describe_network(settings, data)
    teachers, needs = find_teachers(settings, args, budget, roots["weights_root"] / "adarat" / folder)
    plan = None
    if args.final_test and settings.method != "ST":
        plan = plan_named(args.plan or DEFAULT_PLAN, settings)
    described = data.describe()
    config = {**settings.config(), "precision": engine.precision, "model": model,
              "data": {key: described[key] for key in ("train_fingerprint", "test_fingerprint", "n_train")}}
    if teachers:
        config["teachers"] = {role: sha256_of(path) for role, path in teachers.items()}
    experiment = Experiment(paper="adarat", dataset=folder, run=name, method=settings.method, variant=settings.variant,
                            budget=budget, seed=settings.seed, config=config, data=described, quirks=settings.quirks,
                            needs=needs, spec=args.spec, **roots)
    experiment.check_free()
    data = data.to(engine.device)
    if experiment.finished():
        experiment.adopt()
        print(f"{name} is already trained")
    elif getattr(args, "resume", False):
        raise UserError(f"--resume True tests saved weights, but {name} is not trained to its end: leave the flag out",
                        code="E-NOT-TRAINED")
    else:
        torch.manual_seed(fold(settings.seed, "init"))
        network = build_network(model)
        taught_by = load_teachers(teachers, model, engine)
        if plan is not None:
            check_plan(plan, network, data.test)
        batches = make_batches(settings, data, engine)
        experiment.open(network)
        print(f"{name}: {settings.method} ({settings.variant}) on {described['source']}, {model['name']}, "
              f"{settings.epoch} epochs, {engine.precision} on {engine.describe()['device_name']}")
        trained = run_training(settings, experiment, network, data, batches, engine, taught_by)
        experiment.close(trained, engine, selected_on=None)
    if plan is not None:
        path = judge(folder=experiment.folder, weights=experiment.weights, plan=plan, test=data.test, data=described,
                     engine=engine, seed=settings.seed)
        print_results(path)


def make_batches(settings: Settings, data: DataSet, engine: Engine) -> Batches:
    """The training batches."""
    return Batches(data.train, settings.batch_size, seed=settings.seed, crop=settings.crop, flip=settings.flip,
                   drop_last=settings.drop_last, channels_last=engine.channels_last, **engine.shares)


def run_training(settings: Settings, experiment: Experiment, network: nn.Module, data: DataSet, batches: Batches,
                 engine: Engine, teachers: dict[str, nn.Module]) -> TrainRecord:
    """Train the network; every method but Generalist by the one loop."""
    test = data.test.subset(min(settings.n_epoch_test or len(data.test), len(data.test)))
    generalist = settings.method == "Generalist"
    eps_of_tests = 8 / 255 if settings.method == "FAT" and "fat-test-eps" in settings.quirks else settings.epsilon
    validation = Validation(test, epsilon=eps_of_tests, step_size=settings.step_size, steps=settings.step_num,
                            seed=settings.seed, test_crop=test_crop(settings),
                            batch_means=generalist and "generalist-batch-mean" in settings.quirks)
    shared = {"batches": batches, "out": experiment.folder, "weights": experiment.weights, "seed": settings.seed,
              "engine": engine, "identity": experiment.config_sha256}
    if generalist:
        plan = GeneralistPlan(settings.epoch, settings.learning_rate, settings.at(released.GENERALIST_RELOADS_FROM))
        return fit_generalist(network=network, at=objective(settings, teachers), st=StandardTraining(), plan=plan,
                              at_optim=SGD(weight_decay=settings.weight_decay),
                              st_optim=SGD(weight_decay=settings.standard_weight_decay),
                              saves_at="generalist-saves-at" in settings.quirks,
                              validate=lambda five: validate_generalist(five, validation, settings), **shared)
    decay = settings.standard_weight_decay if settings.method == "ST" else settings.weight_decay
    boundaries = [settings.at(epoch) for epoch in released.LR_EPOCHS]
    return fit(model=network, objective=objective(settings, teachers), epochs=settings.epoch, validate=validation,
               schedule=steps(settings.learning_rate, boundaries, released.LR_FACTORS),
               optim=SGD(weight_decay=decay, reset_each_epoch="momentum-reset" in settings.quirks), **shared)


def objective(settings: Settings, teachers: dict[str, nn.Module]) -> Objective:
    """The method's loss with its training attack."""
    if settings.method == "ST":
        return StandardTraining()
    ratio = Ratio(settings.variant, settings.beta, settings.epsilon, settings.up_lim, settings.down_lim, settings.tao)
    quirks = {"attack_in_train_mode": "attack-train-bn" in settings.quirks and settings.method != "Generalist",
              "clean_pass": "clean-pass" in settings.quirks}
    if settings.method in ("KD-AT", "IAD"):
        begin = settings.at(settings.begin) if settings.method == "IAD" else None
        return Distillation(attack(settings), teachers["robust"], teachers["standard"], ratio,
                            (settings.ce, settings.teacher_robust, settings.teacher_standard), begin, settings.b,
                            **quirks)
    return AdversarialTraining(attack(settings), ratio, settings.lamda if settings.method == "TRADES" else None,
                               **quirks)


def attack(settings: Settings) -> Attack:
    """The method's training attack."""
    sizes = (settings.epsilon, settings.step_size, settings.step_num)
    if settings.method == "FAT":
        return FriendlyPGD(*sizes, epochs=tuple(settings.at(epoch) for epoch in released.FAT_EPOCHS))
    if settings.method == "DAT":
        return DynamicPGD(*sizes, fosc_max=settings.FOSC_max,
                          fosc_control_epoch=settings.at(settings.FOSC_control_epoch))
    return (TradesPGD if settings.method == "TRADES" else PGD)(*sizes)


def validate_generalist(five: Quintet, validation: Validation, settings: Settings) -> dict[str, float]:
    """The mixed model as any other; the ST average's clean and PGD accuracy too (quirk generalist-columns)."""
    judged = five.at if "generalist-saves-at" in settings.quirks else five.mixed
    numbers = validation(judged)
    if "generalist-columns" in settings.quirks:
        numbers |= validation(five.st_average, ("clean", "pgd"), prefix="st_average")
    return numbers


def test_crop(settings: Settings) -> bool:
    """Whether the quirk of randomly cropped test images applies."""
    return "test-crop" in settings.quirks and settings.dataset == "cifar10" and settings.method != "Generalist"


def describe_network(settings: Settings, data: DataSet) -> dict[str, Any]:
    """What `build_network` takes; dropout 0.3 in WRN-34-10 but for Generalist."""
    described: dict[str, Any] = {"name": settings.model, "classes": data.classes, "channels": data.image_shape[0]}
    if settings.width is not None:
        described["width"] = settings.width
    if settings.model.startswith("wrn"):
        described["dropout"] = 0.0 if settings.method == "Generalist" else 0.3
    return described


def check_classes(args: argparse.Namespace, data: DataSet) -> None:
    """UserError where --class_num contradicts the data."""
    if getattr(args, "class_num", None) not in (None, data.classes):
        raise UserError(f"--class_num {args.class_num} does not fit {data.name}, which has {data.classes} classes",
                        code="E-FLAG-DATA")


def original_path(args: argparse.Namespace) -> str | None:
    """--dataset_path, where it is not the original's default."""
    given = getattr(args, "dataset_path", None)
    return None if given in (None, released.ORIGINAL_DATA) else given


def as_released(settings: Settings) -> Settings:
    """The released settings of this method, data set, variant and seed."""
    default = released.defaults(settings.method, settings.dataset, settings.quirks)
    return Settings(method=settings.method, dataset=settings.dataset, FixRAT=settings.FixRAT, AdaRAT=settings.AdaRAT,
                    seed=settings.seed, quirks=settings.quirks, precision=settings.precision, **default)


def ablation(args: argparse.Namespace) -> str:
    """Generalist's --ablation as a suffix of the run's name."""
    return f"-{args.ablation}" if getattr(args, "ablation", "") else ""


def find_teachers(settings: Settings, args: argparse.Namespace, budget: str, weights: Path
                  ) -> tuple[dict[str, Path], dict[str, str]]:
    """The files of KD-AT's and IAD's teachers, and name -> hash for the record; a missing one is a UserError that says
    which command makes it."""
    if settings.method not in ("KD-AT", "IAD"):
        return {}, {}
    files, needs = {}, {}
    for role, flag, default, method in (("robust", "teacher_robust_name", "PGD_AT.pth", "PGD-AT"),
                                        ("standard", "teacher_standard_name", "ST.pth", "ST")):
        given = getattr(args, flag)
        run = run_name(method, "plain", budget, settings.seed) if given == default else given
        candidates = [Path(given), weights / run / "last.pt"]
        if given == default and budget == "custom":      # the released teacher also teaches under other settings
            candidates.append(weights / run_name(method, "plain", "full", settings.seed) / "last.pt")
        found = next((path for path in candidates if path.is_file()), None)
        if found is None:
            raise UserError(
                f"the {role} teacher of {settings.method} is missing: there is neither a file {given} nor "
                f"{portable(str(candidates[1]))}. Make it with: python adarat/train/{method}/"
                f"train_{settings.dataset}.py (same --data, --epoch, --width, --budget, --seed), or name a checkpoint "
                f"with --{flag} FILE", code="E-TEACHER")
        files[role] = found
        needs[f"{role} teacher {found.name}" if found == candidates[0] else found.parent.name] = sha256_of(found)
    return files, needs


def load_teachers(files: dict[str, Path], model: dict[str, Any], engine: Engine) -> dict[str, nn.Module]:
    """The teachers, in eval mode, seen through the engine."""
    teachers = {}
    for role, path in files.items():
        network = build_network(model)
        load_weights(network, path)
        teachers[role] = engine.runner(engine.place(network)).eval()
    return teachers
