"""The flags of DyART's released train.py, turned into settings.  `main` is all that dyart/train.py calls."""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from common.commands import train_command, unfinished
from common.errors import UserError
from common.flags import Parser, add_run_flags, boolean, choose_quirks, count, number, positive, radius, share
from dyart.settings import ATTACKS, DEAD, PROTOCOLS, QUIRKS, SCHEDULERS, Settings

MODELS = {"preact-resnet": "preactresnet"}            # start of a released name, start of ours


def both(flag: str) -> list[str]:
    """A flag as released, and with its hyphens and underscores exchanged."""
    plain = flag.removeprefix("--")
    return list(dict.fromkeys([flag, "--" + plain.replace("-", "_"), "--" + plain.replace("_", "-")]))


def whole(text: str) -> int:
    """A whole number of at least 0."""
    return 0 if text.strip() == "0" else count(text)


def mixing_share(text: str) -> float:
    """A share of each batch below 1; negative: one permutation of both data sets."""
    return number(text) if number(text) < 0 else share(text)


def averaging_limit(text: str) -> float:
    """tau: above 0 and below 1."""
    value = number(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be above 0 and below 1: the limit of the average's decay")
    return value


def parser() -> Parser:
    """The parser of dyart/train.py: the original's flags, then ours."""
    parse = Parser(prog="train.py", description="DyART, its burn-in (--clean_training true) and its baselines AT, "
                                                "TRADES, MART (--DyART false), as in the released code.")
    original = parse.add_argument_group("the original's")

    def add(flag: str, kind: object, default: object, text: str) -> None:
        original.add_argument(*both(flag), type=kind, default=default, help=text)

    add("--DyART", boolean, True, "train with DyART; false: --beta and --mart choose a baseline")
    add("--clean_training", boolean, False, "train on clean images only: the burn-in")
    add("--use_high_quality", boolean, True, "keep only boundary points that pass the checks")
    add("--h_prime_r0", radius, 16 / 255, "margins from here on are not raised; 16/255 or 0.0627")
    add("--h_prime_alpha", number, 0.0, "alpha of -h'(R) = exp(-alpha*R); below 0.01: 0.01")
    add("--lam_robust", number, 1000.0, "weight of the boundary term")
    add("--temperature", positive, 5.0, "of the soft margin")
    add("--eps_FAB", radius, 8 / 255, "twice the size of the random start of the boundary search")
    add("--iter_FAB", count, 20, "iterations of the boundary search")
    add("--restart_FAB", count, 1, "no effect, as in the original: always 1")
    original.add_argument("-a", *both("--attack"), default="linf-pgd", help=f"training and validation attack of the "
                          f"baselines: {', '.join(ATTACKS)}")
    add("--attack-eps", radius, 8 / 255, "its radius")
    add("--attack-step", radius, 2 / 255, "its step")
    add("--attack-iter", count, 10, "its steps; validation takes four times as many")
    add("--keep-clean", boolean, False, "AT on the images and their adversarial versions together")
    add("--beta", number, 6.0, "weight of TRADES and MART; at most 0: AT")
    original.add_argument("--mart", action="store_true", help="MART instead of TRADES")
    add("--lr", positive, 0.1, "the highest learning rate")
    original.add_argument("--scheduler", default="cosinew", help=f"one of {', '.join(SCHEDULERS)}")
    add("--clip_grad", clip, None, "clip the gradients' 2-norm; none: do not")
    add("--weight-decay", number, 5e-4, "not on the swish networks' norm layers")
    add("--nesterov", boolean, True, "Nesterov momentum")
    add("--tau", averaging_limit, 0.995, "limit of the weight average's decay")
    add("--batch-size", count, 256, "images per step")
    add("--batch-size-validation", count, 1024, "images per pass of the validation")
    add("--epochs", count, 200, "of the schedule")
    add("--augment", boolean, True, "random crop (padding 4) and flip; cifar100s also rotates")
    add("--normalize", boolean, False, "normalise the input of networks that have no normalisation of their own")
    add("--GroupNorm", boolean, False, "group norm instead of batch norm")
    add("--pretrained", str, None, "start from this checkpoint's averaged weights: a file, a run of ours, or auto: the "
                                   "burn-in of the same budget and seed")
    add("--fname_extra", str, "", "is added to the run's name")
    add("--aux-data-filename", str, None, "npz files with extra images, separated by commas; ours: rest = the training "
                                          "images that --n_train leaves out")
    add("--aux-ind-pth", str, None, "npy file that selects extra images, by mask or index")
    add("--unsup-fraction", mixing_share, 0.7, "share of extra images in a batch; negative: one permutation of both")
    add("--save_intermediate_models", whole, 0, "keep the weights of every N-th epoch")
    add("--resume", boolean, False, "go on with the run in --resume_fname")
    add("--resume_fname", str, None, "its folder: results/dyart/<data set>/<run>")
    original.add_argument("--debug", action="store_true", help="one epoch; the schedule stays that of --epochs")
    add_run_flags(parse)
    original.add_argument("-d", dest="data", help="the same as --data: cifar10s, cifar100s, tiny-imagenet, or one of "
                                                  "ours")
    ours = parse.add_argument_group("ours, DyART's")
    ours.add_argument("--train_epochs", type=count, default=None, help="stop after so many epochs; the schedule stays "
                                                                       "that of --epochs")
    ours.add_argument("--observe", type=whole, default=0, metavar="N", help="after each epoch write margins and "
                      "boundary speeds of the first N training images to dynamics.npz")
    ours.add_argument("--allow-subset", "--allow_subset", action="store_true", help="accept a part of Tiny-ImageNet")
    parse.set_defaults(final_test=False)
    return parse


def clip(text: str) -> float | None:
    """A norm above 0, or none."""
    return None if text.lower() == "none" else positive(text)


def settings_of(args: argparse.Namespace) -> Settings:
    """What the parsed flags mean.  UserErrors for values that do not fit together."""
    check_choices(args)
    found = {field: getattr(args, field) for field in Settings.__dataclass_fields__ if hasattr(args, field)}
    found |= {"data": protocol(args), "model": our_model(args.model or "wrn-28-10-swish"),
              "quirks": choose_quirks(args.quirks, QUIRKS), "train_epochs": 1 if args.debug else args.train_epochs}
    settings = Settings(**found)
    if settings.method == "MART" and settings.attack != "linf-pgd":
        raise UserError(f"--attack {settings.attack}: MART has linf-pgd only", code="E-FLAG-PAIR")
    if settings.method == "TRADES" and settings.attack == "fgsm":
        raise UserError("--attack fgsm: TRADES has linf-pgd and l2-pgd only", code="E-FLAG-PAIR")
    if settings.method == "DyART" and settings.attack == "l2-pgd":
        raise UserError("--attack l2-pgd: DyART's checks of boundary points are for L-inf, and so is its validation",
                        code="E-FLAG-PAIR")
    if settings.keep_clean and settings.method != "AT":
        raise UserError("--keep-clean is for AT: --DyART false --beta -1", code="E-FLAG-PAIR")
    if settings.clean_training and args.aux_data_filename:
        print("note: clean training takes no extra data; --aux-data-filename has no effect")
    if args.aux_ind_pth and not args.aux_data_filename:
        raise UserError("--aux-ind-pth selects from --aux-data-filename, which is not given", code="E-FLAG-PAIR")
    return settings


def check_choices(args: argparse.Namespace) -> None:
    """UserErrors for words that the released code lists but fails on, or does not know."""
    for flag, known in (("--scheduler", SCHEDULERS), ("--attack", ATTACKS)):
        word = getattr(args, flag[2:])
        if word in DEAD[flag]:
            raise UserError(f"{flag} {word} is listed by the released code but fails there: choose one of "
                            f"{', '.join(known)}", code="E-FLAG-VALUE")
        if word not in known:
            raise UserError(f"{flag} {word}: choose one of {', '.join(known)}", code="E-FLAG-VALUE")
    for flag in ("--model", "--data"):
        word = getattr(args, flag[2:])
        if word in DEAD[flag]:
            raise UserError(f"{flag} {word} is listed by the released code but fails there: see --help",
                            code="E-FLAG-VALUE")


def our_model(word: str) -> str:
    """A released network name as `common.models` has it."""
    for theirs, ours in MODELS.items():
        if word.startswith(theirs):
            return ours + word.removeprefix(theirs)
    return word


def data_spec(args: argparse.Namespace) -> str:
    """What `common.data.load` takes, with the suffix that accepts a part of Tiny-ImageNet."""
    spec = PROTOCOLS.get(args.data or "cifar10s", args.data)
    return f"{spec}?subset" if args.allow_subset and spec == "tiny-imagenet" else spec


def dataset_folder(args: argparse.Namespace) -> str:
    """The folder of the records: --dataset_name, or the data set's own name; cifar10-extra with extra data."""
    if args.dataset_name:
        return args.dataset_name
    kind, colon, path = data_spec(args).partition(":")
    stem = (Path(path) if colon else Path(kind)).name.partition("?")[0].removesuffix(".npz")
    return f"{stem}-extra" if args.aux_data_filename and not args.clean_training else stem


def protocol(args: argparse.Namespace) -> str:
    """Which data set's protocol (splits, normalisation, epoch length) holds: told by the folder's name."""
    folder = dataset_folder(args)
    return next((ours for ours in PROTOCOLS.values() if re.match(rf"{ours}(?!\d)", folder)), folder)


def resumed(argv: Sequence[str]) -> list[str]:
    """The flags of the run in --resume_fname, then those given now, without the two of resuming."""
    given = Parser(prog="train.py", add_help=False)
    given.add_argument("--resume", type=boolean, default=False)
    given.add_argument("--resume_fname", "--resume-fname", default=None)
    asked, rest = given.parse_known_args(list(argv))
    if not asked.resume:
        return list(argv)
    if asked.resume_fname is None:
        raise UserError("--resume true needs --resume_fname FOLDER: the run's folder under results/dyart/",
                        code="E-FLAG-MISSING")
    again = unfinished(asked.resume_fname, "dyart", "dyart/train.py", "bash dyart/scripts/eval.sh",
                       "ResumeParameter.pth")
    return [*again, *rest]


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags, those of a resumed run filled in."""
    return parser().parse_args(resumed(sys.argv[1:] if argv is None else argv))


def main(argv: Sequence[str] | None = None) -> None:
    """Run dyart/train.py as a command."""
    train_command(parse, settings_of, "dyart.training", argv)


