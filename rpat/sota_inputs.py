"""What a run of part 2 trains and is tested on, what it is called, and where its files are."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from common.data import DataSet, Split, hold_out
from common.engine import Engine
from common.errors import UserError
from common.experiment import RESULTS, WEIGHTS, Experiment, load_data
from common.flags import dataset_name
from rpat.settings import folder_name
from rpat.sota_settings import DATA, NORMALISE, SotaSettings
from rpat.validation import held_out_positions


class Inputs(NamedTuple):
    """data: training images, those of --val taken off, and test images; validation: those of --val, or None."""

    data: DataSet
    validation: Split | None


def load_inputs(settings: SotaSettings, args: argparse.Namespace) -> Inputs:
    """The data set that --num-classes or --data names; --val holds out the first images of a fixed permutation."""
    data = load_data(data_spec(args), args.data_dir, held_out=settings.hold_out)
    if args.num_classes not in (None, data.classes):
        raise UserError(f"--num-classes {args.num_classes}: {data.name} has {data.classes} classes; leave the flag "
                        "out, or name other data with --data", code="E-FLAG-DATA")
    train, validation = data.train, None
    if settings.val:
        train, validation = hold_out(train, indices=held_out_positions(len(train)))
    if settings.n_train is not None:
        train = train.subset(settings.n_train)
    return Inputs(replace(data, train=train), validation)


def experiment_of(settings: SotaSettings, args: argparse.Namespace, inputs: Inputs, engine: Engine) -> Experiment:
    """The run's name, folders and configuration."""
    described = inputs.data.describe()
    config: dict[str, Any] = {
        **settings.config(), "precision": engine.precision, "model": describe_network(settings, inputs.data),
        "data": {"protocol": inputs.data.name,
                 **{key: described[key] for key in ("train_fingerprint", "test_fingerprint", "n_train")}}}
    if inputs.validation is not None:
        config["data"]["validation_fingerprint"] = inputs.validation.fingerprint
    results, weights = roots(args)
    return Experiment(paper="rpat", dataset=dataset_folder(settings, args), run=run_name_of(settings, args),
                      method=settings.method, variant=settings.variant, budget=budget_of(args), seed=settings.seed,
                      config=config, data=described, quirks=settings.quirks, spec=args.spec, results=results,
                      weights_root=weights)


def budget_of(args: argparse.Namespace) -> str:
    """The label of the run."""
    return args.budget or "custom"


def run_name_of(settings: SotaSettings, args: argparse.Namespace) -> str:
    """--run, --fname, or by method, budget and seed."""
    return args.run or args.fname or settings.run_name(budget_of(args))


def data_spec(args: argparse.Namespace) -> str:
    """What `common.data.load` takes: --data, or the data set with --num-classes classes."""
    return args.data or DATA[args.num_classes or 10]


def dataset_folder(settings: SotaSettings, args: argparse.Namespace) -> str:
    """The folder of the records: --dataset_name, or the data set's own name; in L2 it ends so."""
    return args.dataset_name or folder_name(dataset_name(data_spec(args)), settings.norm)


def roots(args: argparse.Namespace) -> tuple[Path, Path]:
    """Folders of all records and of all weights; --save-path holds both, unless they are named themselves."""
    base = Path(args.save_path) if args.save_path else None
    results = Path(args.results) if args.results else base / "results" if base else RESULTS
    return results, Path(args.weights) if args.weights else base / "weights" if base else WEIGHTS


def describe_network(settings: SotaSettings, data: DataSet) -> dict[str, Any]:
    """What `common.experiment.build_network` takes; images that have no three channels are not normalised."""
    channels = data.image_shape[0]
    described: dict[str, Any] = {"name": settings.model, "classes": data.classes, "channels": channels}
    if settings.width is not None:
        described["width"] = settings.width
    if channels == len(NORMALISE[0]):
        described["normalise"] = [list(part) for part in NORMALISE]
    return described
