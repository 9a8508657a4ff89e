"""Flags: parsers whose mistakes are one line, and the kinds of values that the originals take.  No torch here."""

import argparse
import difflib
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from common.errors import UserError
from common.evaluation.searches import SEARCHES

TRUE = ("yes", "true", "t", "y", "1")
FALSE = ("no", "false", "f", "n", "0")
LONGEST_NAME = 150                 # file systems take 255; while a file is written its name is longer


class Parser(argparse.ArgumentParser):
    """An ArgumentParser without abbreviations, whose errors are UserErrors and name the flag that was meant."""

    def __init__(self, **options: Any):
        options.setdefault("formatter_class", argparse.ArgumentDefaultsHelpFormatter)
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str, code: str | None = None) -> NoReturn:
        code = code or ("E-FLAG-MISSING" if message.startswith("the following arguments are") else "E-FLAG-VALUE")
        raise UserError(f"{message} (see {self.prog} --help)", code=code)

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None
                         ) -> tuple[argparse.Namespace, list[str]]:
        for word in sys.argv[1:] if args is None else args:
            flag, equals, value = word.partition("=")
            if equals and value == "--" and flag in self._option_string_actions:
                self.error(f"argument {flag}: -- is no value")           # argparse would take it for none at all
        return super().parse_known_args(args, namespace)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> argparse.Namespace:
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            known = [option for action in self._actions for option in action.option_strings]
            close = difflib.get_close_matches(unknown[0].split("=")[0], known, n=1)
            hint = f": did you mean {close[0]}?" if close else ""
            self.error(f"unknown flag {unknown[0]}{hint}", code="E-FLAG")
        return parsed


def boolean(text: str) -> bool:
    """True or False as words; `--flag False` means False, which the originals' `type=bool` does not give."""
    if text.lower() in TRUE:
        return True
    if text.lower() in FALSE:
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")


def number(text: str) -> float:
    """A finite float, also written as a fraction such as 8/255."""
    match = re.fullmatch(r"\s*([^/\s]+)\s*(?:/\s*([^/\s]+)\s*)?", text)
    try:
        value = float(match[1]) / float(match[2] or 1)
    except (TypeError, ValueError):
        raise argparse.ArgumentTypeError(f"{text!r} is no number and no fraction such as 8/255") from None
    except ZeroDivisionError:
        raise argparse.ArgumentTypeError(f"{text!r} divides by zero") from None
    if value != value or abs(value) == float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not finite")
    return value


def radius(text: str) -> float:
    """An L-inf radius or step in [0,1] units; 8 instead of 8/255 is caught."""
    value = number(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is negative")
    if value > 1:
        raise argparse.ArgumentTypeError(f"{text!r} is larger than the whole range of a pixel: images are in [0,1], "
                                         f"write {text}/255")
    return value


def positive(text: str) -> float:
    """A number above 0."""
    value = number(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} must be above 0")
    return value


def share(text: str) -> float:
    """A number from 0 to below 1."""
    value = number(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be at least 0 and below 1")
    return value


def count(text: str) -> int:
    """A whole number of at least 1."""
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be at least 1")
    return value


def name(text: str) -> str:
    """What may name a run: letters, digits, '.', '_' and '-'."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", text):
        raise argparse.ArgumentTypeError(f"{text!r} cannot name a run: use letters, digits, '.', '_' and '-'")
    if len(text) > LONGEST_NAME:
        raise argparse.ArgumentTypeError(f"{text!r} has {len(text)} letters: name a run with at most {LONGEST_NAME}")
    return text


def choose_quirks(text: str, kinds: Mapping[str, str]) -> tuple[str, ...]:
    """The quirks switched on by `--quirks`: names with commas, `none`, `all`, or `default` (the training ones).

    kinds: name -> "training" (on by default, they made the published numbers) or "measuring" (off by default).
    """
    if text == "all":
        return tuple(sorted(kinds))
    if text == "none":
        return ()
    chosen: set[str] = set()
    for word in filter(None, (word.strip() for word in text.split(","))):
        if word == "default":
            chosen |= {quirk for quirk, kind in kinds.items() if kind == "training"}
        elif word in kinds:
            chosen.add(word)
        else:
            raise UserError(f"--quirks {word}: unknown; there are {', '.join(sorted(kinds))}, all, none, default",
                            code="E-QUIRK")
    return tuple(sorted(chosen))


def add_search_flag(parse: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """--search of commands that evaluate by a plan; see common.evaluation.searches."""
    parse.add_argument("--search", choices=tuple(SEARCHES), default="float32", help="how AutoAttack searches: float32 "
                       "(the one called AutoAttack), fast (bf16, judged in float32: 'AA (fast search)'), fast+float32 "
                       "(what fast leaves is searched in float32: 'AutoAttack (fast first)'), with tf32 instead of "
                       "bf16 on CUDA; a plan's name may end so too: NAME-fast")


def add_deterministic_flag(parse: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """--deterministic of commands that train or evaluate; see common.determinism."""
    parse.add_argument("--deterministic", action="store_true", help="the same seed gives the same bits, on the same "
                       "machine with the same versions and threads; the record says so; slower on a GPU, and an "
                       "operation that has no such version ends it")


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that every training command of the four papers shares, beside the original's own."""
    ours = parser.add_argument_group("ours, the same for all papers")
    ours.add_argument("--data", default=None, help="cifar10, cifar100, mnist, fashion-mnist, digits, npz:FILE or "
                                                   "folder:DIR instead of the script's own data set")
    ours.add_argument("--dataset_name", type=name, default=None, help="folder of the records under results/<paper>/ "
                                                                      "(default: the data set's name)")
    ours.add_argument("--data_dir", "--data-dir", default=None, help="where data sets lie or are downloaded to "
                                                                     "(default: data/ of the repository)")
    ours.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    ours.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16"),
                      help="of training and its attacks; evaluation is always float32")
    ours.add_argument("--speedups", default="auto", help="with a comma between: graphs (attacks and training passes as "
                      "CUDA graphs), compile (torch.compile); auto: graphs on CUDA; none")
    ours.add_argument("--sync_bn", "--sync-bn", action="store_true", help="of several processes (torchrun, srun): "
                      "batch norm over the images of all, instead of each its own")
    add_deterministic_flag(ours)
    ours.add_argument("--seed", type=int, default=1, help="of everything random in the run")
    ours.add_argument("--quirks", default="default", help="which oddities of the released code to reproduce: names "
                                                          "with commas, default (training ones), none, all")
    ours.add_argument("--model", default=None, help="another network; see common/models")
    ours.add_argument("--width", type=count, default=None, help="channels of the first stage, to run small")
    ours.add_argument("--n_train", type=count, default=None, help="train on the first N images only")
    ours.add_argument("--hold_out", type=share, default=0.0, help="share of the training images that takes the place "
                                                                  "of the test images, to choose settings on")
    ours.add_argument("--n_epoch_test", type=count, default=None,
                      help="test images used after each epoch (default: all)")
    ours.add_argument("--final_test", type=boolean, default=True, help="evaluate after training")
    ours.add_argument("--plan", default=None, help="what the final test measures (default: the paper's)")
    ours.add_argument("--budget", type=name, default=None, help="label of the run: smoke, short, gpu, full, custom")
    ours.add_argument("--run", type=name, default=None, help="name of the run's folder under results/")
    ours.add_argument("--spec", default=None, help="hash that make compares to see whether the run is up to date")
    ours.add_argument("--results", default=None, help="folder of the records (default: results/ of the repository)")
    ours.add_argument("--weights", default=None, help="folder of the weights (default: weights/ of the repository)")


def dataset_name(spec: str) -> str:
    """The folder's name for a data set: cifar10, or the stem of the file or folder behind npz: and folder:."""
    kind, colon, path = spec.partition("?")[0].partition(":")
    return Path(path).name.removesuffix(".npz") if colon else kind
