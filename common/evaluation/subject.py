"""What a user wants evaluated: a run of ours, a file of weights, or a function that returns a network."""

import argparse
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from common import records
from common.commands import run_folder
from common.environment import ROOT
from common.errors import UserError
from common.flags import count, number
from common.inputs import check_is_file

FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
SUFFIXES = (".pt", ".pth", ".tar", ".ckpt", ".safetensors")
# By name for --normalise: the deviations that most published networks of the data set were trained behind.
NORMALISATIONS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "mnist": ((0.1307,), (0.3081,)),
}


class Subject(NamedTuple):
    """One of the three.  folder, checkpoint: a run of ours and its weights; file: weights; function: module:name."""

    folder: Path | None = None
    checkpoint: str | None = None
    file: Path | None = None
    function: str | None = None


def find(text: str, checkpoint: str | None = None) -> Subject:
    """What `text` names; a file of weights that a run of ours recorded is that run.

    checkpoint: which weights of a run (None: the last).  UserError for what is nothing of the kind.
    """
    check_is_file(text)
    path = Path(text)
    if path.is_file() or path.suffix in SUFFIXES:
        if not path.is_file():
            raise UserError(f"there is no checkpoint {text}", code="E-CHECKPOINT-MISSING")
        return of_a_run(path) or Subject(file=path)
    if FUNCTION.fullmatch(text) and not path.exists():
        return Subject(function=text)
    if path.is_dir() and not (path / "run.json").exists():
        path = run_folder(text)
    return Subject(folder=path, checkpoint=checkpoint or "last")


def of_a_run(file: Path) -> Subject | None:
    """The run of ours whose train.json names this file, which stands under weights/; None where there is none."""
    try:
        folder = run_folder(str(file.resolve().parent))
    except UserError:
        return None
    if not (folder / "train.json").exists():
        return None
    named = records.read_record(folder / "train.json", "train")["weights"]
    kind = next((kind for kind, entry in named.items() if entry["file"] == file.name), None)
    return None if kind is None else Subject(folder=folder, checkpoint=kind)


def add_subject_flags(parse: argparse.ArgumentParser) -> None:
    """What to look into, for `common.evaluation.opened.open_subject`."""
    parse.add_argument("subject", metavar="CHECKPOINT", help="as for scripts/evaluate.py: a run of ours, a file of "
                       "weights, or MODULE:FUNCTION")
    parse.add_argument("--checkpoint", default=None, help="of a run: last (the default), best, average, ...")
    parse.add_argument("--data", default=None, help="default: what the run was trained on")
    parse.add_argument("--data_dir", "--data-dir", default=None, help="where data sets lie")
    parse.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    parse.add_argument("--weights", type=Path, default=ROOT / "weights", help="folder of the weights of runs")


def add_network_flags(parse: argparse.ArgumentParser) -> None:
    """How to build the network of a file of weights, which says nothing of it."""
    group = parse.add_argument_group("the network of a file of weights")
    group.add_argument("--model", default=None, help="a name of common/models such as resnet18, wrn-28-10-swish; or "
                       "MODULE:FUNCTION that returns the network")
    group.add_argument("--classes", type=count, default=None, help="default: the data set's")
    group.add_argument("--width", type=count, default=None, help="channels of the first stage")
    group.add_argument("--activation", default=None, help="relu, silu")
    group.add_argument("--group_norm", "--group-norm", action="store_true", help="group instead of batch norm")
    group.add_argument("--normalise", nargs="+", default=None, metavar="X", help="the network's first step: a name "
                       f"({', '.join(NORMALISATIONS)}), or means and deviations as M,M,M S,S,S")
    group.add_argument("--part", default=None, help="which weights of a file that holds several")


def model_of_flags(args: argparse.Namespace, channels: int, classes: int) -> dict[str, Any]:
    """The network that the flags describe, as `common.experiment.build_network` takes it."""
    if args.model is None:
        raise UserError("a file of weights does not say which network it is of: give --model NAME (such as resnet18) "
                        "or --model MODULE:FUNCTION", code="E-FLAG-MISSING")
    given = {"width": args.width, "activation": args.activation, "normalise": normalisation(args.normalise),
             "norm": "group" if args.group_norm else None}
    given = {name: value for name, value in given.items() if value is not None}
    if FUNCTION.fullmatch(args.model):
        if given or args.classes:
            raise UserError(f"--model {args.model} builds the network itself: leave "
                            f"{', '.join(given) or 'classes'} out", code="E-FLAG-PAIR")
        return {"builder": args.model}
    return {"name": args.model, "classes": args.classes or classes, "channels": channels, **given}


def normalisation(words: list[str] | None) -> tuple[list[float], list[float]] | None:
    """--normalise as (means, deviations) per channel."""
    if words is None:
        return None
    if len(words) == 1 and words[0] in NORMALISATIONS:
        mean, std = NORMALISATIONS[words[0]]
        return list(mean), list(std)
    try:
        mean, std = ([number(value) for value in word.split(",")] for word in words)
    except (ValueError, argparse.ArgumentTypeError) as error:
        raise UserError(f"--normalise {' '.join(words)}: give {', '.join(NORMALISATIONS)}, or means and deviations as "
                        "M,M,M S,S,S", code="E-NORMALISE") from error
    return mean, std


def needs_nothing(make: Callable[..., Any]) -> bool:
    """Whether it can be called without arguments, as far as Python knows."""
    try:
        inspect.signature(make).bind()
    except ValueError:                        # some functions written in C have no signature
        return True
    except TypeError:
        return False
    return True


def built(model: Mapping[str, Any], *, trusted: bool = False) -> Any:
    """The network that a description stands for; UserErrors where a user's own function does not give one.

    trusted: the user named the function; one that a record names is not run.
    """
    from torch import nn

    from common.experiment import build_network

    if "builder" not in model or not trusted:
        return build_network(model)
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    module, _, function = model["builder"].partition(":")
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UserError(f"{model['builder']}: there is no module {error.name}; it is looked for here and where "
                        "Python's packages are", code="E-BUILDER") from error
    make = getattr(found, function, None)
    if not callable(make):
        raise UserError(f"{model['builder']}: {module} has no function {function}", code="E-BUILDER")
    if not needs_nothing(make):
        raise UserError(f"{model['builder']} needs arguments: give a function that is called without any",
                        code="E-BUILDER")
    network = make()
    if not isinstance(network, nn.Module):
        raise UserError(f"{model['builder']} returned a {type(network).__name__}, not a torch.nn.Module",
                        code="E-BUILDER")
    return network
