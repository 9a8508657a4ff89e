"""One training run of the brain-inspired regulariser, or of the same network without it: settings in, records and
weights out.

Every draw is folded from the seed (validation images: as the released code draws them), so the order of the released
code's draws is not kept, and a regularised and an unregularised run of one seed start from the same weights.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import torch

from brainreg.evaluation import Evaluation, transfer_needs
from brainreg.flags import dataset_folder
from brainreg.images import Regularising, augmentation, network_scale, regularisation_images, task_data
from brainreg.method import Regularised
from brainreg.network import PairResNet
from brainreg.observe import FILE, network_similarities, write_similarities
from brainreg.pairs import PairBatches, pair_batches
from brainreg.schedules import phases
from brainreg.settings import Settings, run_name, validation_positions
from brainreg.validation import Validation
from common import group, records
from common.attacks.mode import mode
from common.checkpoint import load_weights
from common.data import Batches, DataSet, Split, hold_out
from common.engine import Engine
from common.errors import UserError
from common.experiment import RESULTS, WEIGHTS, Experiment, build_network
from common.files import remove
from common.fit import SGD, TrainRecord, fit
from common.seeds import fold

SELECTED_ON = "least cross-entropy on validation images"
BUILDER = "brainreg.network:build"


def train(settings: Settings, args: argparse.Namespace) -> None:
    """Train as `settings` say; `args` says where things are and on what they run."""
    engine = choose_engine(args.device, args.precision, args.sync_bn, args.speedups)
    data = task_data(settings, args)
    training, validation = split_off(settings, data.train)
    chosen = regularisation_images(settings, args, data) if settings.regularised else None
    experiment = describe(settings, args, engine, replace(data, train=training), validation, chosen)
    experiment.check_free()
    experiment = with_recorded_source(experiment, args)
    test = Evaluation.planned(settings, args, experiment, data) if args.attack and args.final_test else None
    if experiment.finished() and not args.ignore_existing:
        experiment.adopt()
        if group.current().leads:
            note_source(experiment)
        print(f"{experiment.run} is already trained")
    else:
        train_anew(settings, args, experiment, data, training, validation, chosen, engine)
    if test is not None:
        test.judge(engine)


def choose_engine(device: str, precision: str, sync_bn: bool = False, speedups: str = "auto") -> Engine:
    """The engine; cuda:all is one device here, and a named kind that is not here becomes the CPU, as released."""
    if device == "cuda:all":
        print("note: --device cuda:all trains on one device", file=sys.stderr)
        device = "cuda"
    here = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
    if device in here and not here[device]():
        print(f"note: there is no {device} device here: --device cpu", file=sys.stderr)
        device = "cpu"
    return Engine.choose(device, precision, sync_bn, speedups)


def split_off(settings: Settings, split: Split) -> tuple[Split, Split]:
    """(training images, of which --n_train takes the first; validation images), as released: int(n*portion) that
    random.Random(seed) draws."""
    held = validation_positions(len(split), settings.valid_portion, Random(settings.seed))
    if not held:
        raise UserError(f"--valid_portion {settings.valid_portion:g} of {len(split)} training images is not one image, "
                        "and without validation images no weights can be chosen: give a larger share")
    rest, validation = hold_out(split, indices=held)
    return rest if settings.n_train is None else rest.subset(settings.n_train), validation


def describe(settings: Settings, args: argparse.Namespace, engine: Engine, data: DataSet, validation: Split,
             chosen: Regularising | None) -> Experiment:
    """The run's name, folders and configuration."""
    budget = args.budget or "custom"
    described = data.describe()
    low, high = (round(float(value), 9) for value in (data.test.images.min() / 255, data.test.images.max() / 255))
    scale, shift = network_scale(settings)
    config: dict[str, Any] = {
        **settings.config(), "precision": engine.precision, "low": low, "high": high,
        "model": {"builder": BUILDER, "name": settings.archi, "classes": data.classes, "channels": settings.channels,
                  "width": settings.base_channels, "scale": scale, "shift": shift},
        "data": {"protocol": settings.task, "validation_fingerprint": validation.fingerprint,
                 **{key: described[key] for key in ("train_fingerprint", "test_fingerprint", "n_train")}},
        **({"regularisation": chosen.described} if chosen is not None else {})}
    dataset = dataset_folder(args, settings)
    results, weights = Path(args.results or RESULTS), Path(args.weights or WEIGHTS)
    needs = transfer_needs(args.transfer_id, dataset=dataset, model=config["model"], results=results, weights=weights,
                           test_fingerprint=described["test_fingerprint"])
    return Experiment(paper="brainreg", dataset=dataset, run=args.run or run_name(settings, budget),
                      method=settings.method, variant=settings.variant, budget=budget, seed=settings.seed,
                      config=config, data=described, quirks=settings.quirks, needs=needs, spec=args.spec,
                      results=results, weights_root=weights)


def with_recorded_source(experiment: Experiment, args: argparse.Namespace) -> Experiment:
    """The run with the source of transferred FGSM that its record names, where --transfer_id names none now."""
    path = experiment.folder / "run.json"
    record = records.read_record(path, "run") if path.exists() else None
    if args.transfer_id or record is None or record["config_sha256"] != experiment.config_sha256:
        return experiment
    return replace(experiment, needs=record["needs"])


def note_source(experiment: Experiment) -> None:
    """Let the record of a trained run name the source that --transfer_id names now."""
    record = records.read_record(experiment.folder / "run.json", "run")
    if record["needs"] != dict(experiment.needs):
        records.write_run(experiment.folder, {**record, "needs": dict(experiment.needs)})


def train_anew(settings: Settings, args: argparse.Namespace, experiment: Experiment, data: DataSet, training: Split,
               validation: Split, chosen: Regularising | None, engine: Engine) -> None:
    """Train from the start, or from where a killed run of the same configuration stopped."""
    network = make_network(settings, experiment.config["model"], data.image_shape)
    batches = make_batches(settings, training.to(engine.device), chosen, engine)
    if args.ignore_existing and group.current().leads:          # the others wait for it in `open`
        experiment.claim()
        clear(experiment)
    experiment.open(network)
    said = "no regularisation"
    if chosen is not None:
        height, width = chosen.images.shape[2:]
        task = "x".join(map(str, data.image_shape[1:]))
        said = (f"regularised on {len(batches.pairs):,} pairs of {len(chosen.images)} images, "
                f"{chosen.described['source']}"
                + (f" ({height}x{width}, kept beside the task's {task})" if f"{height}x{width}" != task else ""))
    print(f"{experiment.run}: {settings.archi} on {experiment.data['source']}, {said}, {settings.epoch_num} epochs, "
          f"{engine.precision} on {engine.describe()['device_name']}")
    parts = {"train": first(training, settings), "val": validation, "test": first(data.test, settings)}
    before = None if chosen is None else network_similarities(network, batches)
    trained = run_training(settings, experiment, network, batches,
                           {name: split.to(engine.device) for name, split in parts.items()}, engine)
    if before is not None:
        load_weights(network, experiment.weights / "best.pt")
        after = network_similarities(network, batches)
        if group.current().leads:
            write_similarities(experiment.folder / FILE, batches, before, after)
    experiment.close(trained, engine, selected_on=SELECTED_ON)


def first(split: Split, settings: Settings) -> Split:
    """What --n_epoch_test leaves of training and test images; the validation images, which choose, all count."""
    return split.subset(min(settings.n_epoch_test or len(split), len(split)))


def run_training(settings: Settings, experiment: Experiment, network: PairResNet, batches: Batches | PairBatches,
                 parts: dict[str, Split], engine: Engine) -> TrainRecord:
    """Train the network; keep the state of least validation cross-entropy, the untrained one among them."""
    validation = Validation(parts, seed=settings.seed, augmented={"train": augmentation(settings.task)})
    return fit(model=network, objective=Regularised(settings.reg_alpha, settings.arctanh,
                                                    move_statistics="pair-bn" in settings.quirks),
               batches=batches, epochs=settings.epoch_num,
               schedule=phases(settings.lr, decay=settings.decay_rate, count=settings.phase_num,
                               duration=settings.phase_duration, momentum=settings.momentum),
               optim=SGD(weight_decay=settings.weight_decay), out=experiment.folder, weights=experiment.weights,
               seed=settings.seed, engine=engine, identity=experiment.config_sha256, validate=validation,
               validate_first=True, select={"best": lambda numbers: -numbers["val_loss"]},
               before_step=validation.before_step)


def make_batches(settings: Settings, split: Split, chosen: Regularising | None, engine: Engine
                 ) -> Batches | PairBatches:
    """The training batches, with pairs where there is regularisation."""
    classes = Batches(split, settings.resnet_batch_size, seed=settings.seed, channels_last=engine.channels_last,
                      **engine.shares, **augmentation(settings.task))
    return classes if chosen is None else pair_batches(settings, classes, chosen.images)


def make_network(settings: Settings, model: dict[str, Any], shape: tuple[int, int, int]) -> PairResNet:
    """The untrained network for images of `shape` (C,H,W); with quirk init-forward batch norm has moved once."""
    torch.manual_seed(fold(settings.seed, "init"))
    network = build_network(model)
    if "init-forward" in settings.quirks:
        # Below 9 pixels the last section has one, and batch norm in train mode needs two values: two images there.
        generator = torch.Generator().manual_seed(fold(settings.seed, "init-forward"))
        fed = torch.randn(2 if min(shape[1:]) < 9 else 1, settings.channels, *shape[1:], generator=generator)
        with torch.no_grad(), mode(network, training=True):
            network.classify(fed)
    return network


def clear(experiment: Experiment) -> None:
    """Take away what would let a run count as done, or be gone on with: --ignore_existing trains it again."""
    remove(*experiment.folder.glob("train.json"), *experiment.folder.glob("eval-*.json"),
           *experiment.folder.glob("flags-*.npz"), *experiment.weights.glob("*.pt"))
