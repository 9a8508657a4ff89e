"""The flags of the released train.py, turned into settings; `main` is all of brainreg/train.py.  No torch here."""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from brainreg.settings import ARCHITECTURES, COLOUR, QUIRKS, RANGES, SOURCES, TASKS, Settings, folder_name
from common.commands import train_command
from common.errors import UserError
from common.flags import Parser, add_run_flags, boolean, choose_quirks, count, dataset_name, number, positive, share

SCRIPT = "brainreg/train.py"
DEAD_ARCHITECTURES = ("ViT", "CVT7", "CCT7")              # the released parser names them; building them fails
REG_FLAGS = ("reg_range", "reg_thresh", "reg_thresh_2", "reg_boost_val_1", "reg_boosting", "reg_image_num",
             "reg_batch_size", "arctanh")
IDLE = {"reg_type": (str, "pixel"), "basis_num": (int, None), "select_criterion": (str, "random"),
        "max_best": (int, 5), "reg_boosting_val": (float, 1.0), "reg_grab": (boolean, False),
        "start_fine_tune": (int, 0), "fine_tune_epochs": (int, 0)}


def limited(kind: Callable[[str], float], lowest: float, what: str) -> Callable[[str], float]:
    """A type of flag: a number of `kind` of at least `lowest`; `what` says that in words."""
    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None
        if value < lowest:
            raise argparse.ArgumentTypeError(f"{text!r} must be {what}")
        return value
    return parse


def alpha(text: str) -> float | None:
    """The regulariser's weight; 0 and none mean no regularisation."""
    value = 0.0 if text.lower() == "none" else number(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is negative")
    return value or None


def threshold(text: str) -> float:
    """A similarity above 0 and below 1."""
    value = number(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be above 0 and below 1, as |S| of two images is")
    return value


def second_threshold(text: str) -> float | None:
    """The same; 0 and none mean that there is none."""
    return None if text.strip().lower() in ("0", "0.0", "none") else threshold(text)


def parser() -> Parser:
    """The parser of train.py: the original's flags, then ours."""
    parse = Parser(prog="train.py", description="Train a network to classify, its similarities of pairs of images "
                                                "pulled to those of their pixels (arXiv:2410.03952).")
    original = parse.add_argument_group("the original's", "each also without dashes, as in rgb=True")

    def add(flag: str, kind: object, default: object, text: str) -> None:
        original.add_argument(flag, type=kind, default=default, help=text)

    add("--save_dir", str, None, "folder that gets results/ and weights/ (default: the repository)")
    add("--task", str, None, f"{', '.join(TASKS)} (default: the data set of --data, or CIFAR10)")
    add("--archi", str, "ResNet18", ", ".join(ARCHITECTURES))
    add("--rgb", boolean, False, "images in colour; CIFAR only")
    add("--arctanh", boolean, True, "compare inverse hyperbolic tangents of similarities, not these")
    add("--reg_data", str, "none", f"whose images regularise: {', '.join(SOURCES)}; none: the task's")
    original.add_argument("--reg_range", choices=RANGES, default="all", help="which similarities are regularised")
    add("--reg_alpha", alpha, None, "weight of the regulariser; none or 0: no regularisation")
    add("--reg_thresh", threshold, 0.6, "Th, in (0,1)")
    add("--reg_thresh_2", second_threshold, None, "Th_2 of --reg_range double, below Th; 0: none")
    add("--reg_boost_val_1", positive, 1.0, "the target where S > Th")
    original.add_argument("--no-reg_boosting", dest="reg_boosting", action="store_false", help="the targets are S")
    add("--reg_image_num", count, 5000, "N, regularisation images: the first of the training images")
    add("--reg_batch_size", count, 16, "k, pairs of images per step")
    original.add_argument("--ignore_existing", action="store_true", help="train again where the run is there")
    add("--base_channels", count, 64, "channels of the first section")
    add("--resnet_batch_size", count, 64, "class images per step")
    add("--phase_num", count, 5, "phases of the learning rate, which then starts again")
    add("--phase_duration", count, 4, "epochs of a phase")
    add("--epoch_num", count, 40, "of training")
    add("--valid_portion", share, 0.01, "share of the training images that chooses the weights that are kept")
    add("--lr", positive, 0.1, "the first learning rate")
    add("--momentum", share, 0.9, "of SGD")
    add("--weight_decay", limited(number, 0, "at least 0"), 0.0, "of all parameters")
    add("--decay_rate", positive, 0.3, "factor of the learning rate from phase to phase")
    add("--attack", boolean, True, "evaluate after training")
    add("--num_epsilons", limited(int, 2, "at least 2"), 10, "strengths of each attack, from 0 to its largest")
    add("--transfer_id", str, None, "unregularised run of the same task whose FGSM images are transferred: its folder, "
        "or its name beside this run")
    add("--disp_num", count, 6, "no effect: there is a bar")
    add("--save_period", count, 1, "no effect: the state is kept after every epoch")
    for flag, (kind, default) in IDLE.items():
        add(f"--{flag}", kind, default, "no effect, as in the original")
    original.add_argument("--modulator_features", type=int, nargs="*", default=[10, 10], help="no effect")
    original.add_argument("--conditioning", nargs="*", default=None, help="no effect")
    original.add_argument("--core_shared", action="store_true", help="no effect")
    add_run_flags(parse)
    ours = parse.add_argument_group("ours, this paper's")
    ours.add_argument("--reg_images", default=None, help="where the regularisation images are: a data set as --data "
                      "takes it, or the folder of ImageNet's images (default: --data with {} for the name, else "
                      "NAME in --data_dir)")
    ours.add_argument("--stem", type=int, choices=(3, 5, 7), default=None, help="side of the network's first kernel "
                      "(default: 7, as released); 3: the classifier is the other papers' ResNet")
    parse.set_defaults(seed=0)
    return parse


def with_dashes(words: Sequence[str]) -> list[str]:
    """The words of a command line, where `rgb=True` stands for `--rgb=True` as in the original's instructions."""
    actions = {option: action for action in parser()._actions for option in action.option_strings}
    found: list[str] = []
    waits = False                                         # the word before is a flag whose value comes next
    for word in words:
        bare = re.match(r"([A-Za-z]\w*)=", word)
        found.append(f"--{word}" if bare and not waits and f"--{bare[1]}" in actions else word)
        waits = word in actions and actions[word].nargs is None
    return found


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The parsed flags."""
    args = parser().parse_args(with_dashes(sys.argv[1:] if argv is None else argv))
    if args.save_dir is not None:
        args.results = args.results or str(Path(args.save_dir) / "results")
        args.weights = args.weights or str(Path(args.save_dir) / "weights")
    return args


def settings_of(args: argparse.Namespace) -> Settings:
    """What the parsed flags of a training mean.  UserErrors for values that do not fit together."""
    if args.model is not None:
        raise UserError(f"--model {args.model}: this paper has networks of its own; choose one with --archi: "
                        f"{', '.join(ARCHITECTURES)}", code="E-MODEL")
    if args.valid_portion == 0:
        raise UserError("--valid_portion 0: without validation images no weights can be chosen; give 0.01, say",
                        code="E-FLAG-VALUE")
    task = our_task(args)
    found = {field: getattr(args, field) for field in Settings.__dataclass_fields__ if hasattr(args, field)}
    found |= {"task": task, "archi": our_archi(args.archi), "quirks": choose_quirks(args.quirks, QUIRKS),
              "base_channels": args.width or args.base_channels}
    settings = Settings(**found | {"reg_data": our_source(args.reg_data, task)})
    check_regularisation(settings)
    if not settings.regularised:
        if args.reg_data.lower() != "none":
            print("note: without --reg_alpha there is no regularisation, and no flag of it has an effect",
                  file=sys.stderr)
        usual = {field: Settings.__dataclass_fields__[field].default for field in (*REG_FLAGS, "reg_data")}
        settings = Settings(**found | usual)
    if settings.rgb and not {settings.task, settings.reg_data or settings.task} <= set(COLOUR):
        raise UserError("--rgb True needs CIFAR10 or CIFAR100 both as --task and as --reg_data: other images are "
                        "grey; leave --rgb out", code="E-FLAG-PAIR")
    return settings


def check_regularisation(settings: Settings) -> None:
    """UserErrors for thresholds, boosts and image numbers that the released code fails on."""
    second, first = settings.reg_thresh_2, settings.reg_thresh
    if settings.reg_range == "double" and second is None:
        raise UserError("--reg_range double takes |S| below a second threshold too: give it with --reg_thresh_2, "
                        f"below --reg_thresh {first:g}", code="E-FLAG-PAIR")
    if second is not None and second >= first and settings.reg_boosting:
        raise UserError(f"--reg_thresh_2 {second:g} must be below --reg_thresh {first:g}", code="E-FLAG-PAIR")
    if second is not None and second > first and settings.reg_range == "double":
        print(f"note: pairs of |S| between {first:g} and {second:g} count twice, as in the original", file=sys.stderr)
    if settings.arctanh and settings.reg_boosting and settings.reg_boost_val_1 > 1:
        raise UserError(f"--reg_boost_val_1 {settings.reg_boost_val_1:g}: the inverse tanh has no value above 1; give "
                        "at most 1, or --arctanh False", code="E-FLAG-VALUE")
    if settings.reg_image_num < 2:
        raise UserError("--reg_image_num 1 makes no pair: give at least 2", code="E-FLAG-VALUE")


# -- names -----------------------------------------------------------------------------------------------------------

def known(word: str, names: dict[str, str]) -> str | None:
    """Our name of what the released code calls `word`, or ours already, in any case; None for another."""
    plain = word.lower().replace("-", "").replace("_", "")
    return next((ours for theirs, ours in names.items() if plain in (theirs.lower(), ours.replace("-", ""))), None)


def our_archi(word: str) -> str:
    """Our name of a network."""
    found = known(word, ARCHITECTURES)
    if found is None:
        dead = word.lower() in [name.lower() for name in DEAD_ARCHITECTURES]
        why = "is named by the original, which cannot build it" if dead else "is no network of this paper"
        raise UserError(f"--archi {word} {why}: choose one of {', '.join(ARCHITECTURES)}", code="E-FLAG-VALUE")
    return found


def our_task(args: argparse.Namespace) -> str:
    """Our name of the task: what --task says, else --data, else cifar10."""
    if args.task is None:
        if args.data is None:
            return "cifar10"
        if "{}" in args.data:
            raise UserError(f"--data {args.data} has the data set's name left open: say which one with --task",
                            code="E-FLAG-MISSING")
        return known(dataset_name(args.data), TASKS) or dataset_name(args.data)
    if known(args.task, TASKS) is None:
        dead = args.task.lower() == "imagenet"
        why = "is named by the original, which has no data for it" if dead else "is no task of this paper"
        raise UserError(f"--task {args.task} {why}: choose one of {', '.join(TASKS)}, or other data with --data",
                        code="E-FLAG-VALUE")
    return known(args.task, TASKS)


def our_source(word: str, task: str) -> str:
    """Our name of the regularisation images' data set; none: the task's."""
    if word.lower() == "none" or word == task:
        return task
    found = known(word, SOURCES)
    if found is None:
        raise UserError(f"--reg_data {word}: there are none (the task's own images), {', '.join(SOURCES)}",
                        code="E-FLAG-VALUE")
    return found


def data_spec(args: argparse.Namespace, name: str) -> str:
    """What `common.data.load` takes for the task `name`."""
    return args.data.replace("{}", name) if args.data else name


def source_spec(args: argparse.Namespace, settings: Settings) -> str:
    """What `common.data.load` takes for the regularisation images, or for ImageNet their folder or folder:."""
    if args.reg_images:
        return args.reg_images.replace("{}", settings.reg_data or "")
    if settings.reg_data == settings.task or (args.data and "{}" in args.data):
        return data_spec(args, settings.reg_data or "")
    return settings.reg_data or ""


def dataset_folder(args: argparse.Namespace, settings: Settings) -> str:
    """The folder of the records: --dataset_name, or the data set's own name, with -rgb behind in colour."""
    return args.dataset_name or folder_name(dataset_name(data_spec(args, settings.task)), settings.rgb)


def main(argv: Sequence[str] | None = None) -> None:
    """Run train.py as a command."""
    train_command(parse, settings_of, "brainreg.training", argv)

