"""The flags of part 1's released train.py and eval.py, turned into settings; `main` is all of benchmarks/train.py."""

import argparse
import sys
from collections.abc import Sequence

from common.commands import train_command, unfinished
from common.errors import UserError
from common.evaluation.kinds import unusual_size
from common.flags import Parser, add_run_flags, boolean, choose_quirks, count, dataset_name, name, number, positive
from rpat.settings import DATASETS, LARGEST, MODELS, MODES, NORMS, PART_ONE, Settings, folder_name, threat

SCRIPT = "rpat/benchmarks/train.py"
EVALUATION = "python rpat/benchmarks/eval.py --mode test_clean_acc --load_path"
EVAL_MODES = ("test_clean_acc", "test_adv_acc", "test_adv_acc_weak", "test_adv_acc_MSE", "test_random",
              "test_random_MSE", "test_auto_attack", "test_mce", "test_cw_attack", "test_boundary_attack",
              "test_hopskipjump_attack", "test_zoo_attack")


def whole(text: str) -> int:
    """A whole number of at least 0."""
    return 0 if text.strip() == "0" else count(text)


def rate(text: str) -> float:
    """A number from 0 to 1."""
    value = number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be from 0 to 1")
    return value


def not_negative(text: str) -> float:
    """A number of at least 0."""
    value = number(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is negative")
    return value


def parser() -> Parser:
    """The parser of train.py: the original's flags, which its eval.py has too, then ours."""
    parse = Parser(prog="train.py", description="PGD-AT, TRADES, MART, Consistency-AT and standard training, with "
                                                "--RA with robust perception, as in RPAT_Benchmarks.")
    original = parse.add_argument_group("the original's")

    def add(flag: str, kind: object, default: object, text: str) -> None:
        original.add_argument(flag, type=kind, default=default, help=text)

    def choose(flag: str, words: Sequence[str], default: str | None, text: str) -> None:
        original.add_argument(flag, choices=tuple(words), default=default, help=text)

    choose("--dataset", (*DATASETS, "tiny-imagenet"), None, "must be given, unless --data is")
    choose("--mode", (*MODES, *EVAL_MODES), "adv_train", "adv_train (PGD-AT), adv_trades, adv_mart, ce, ce_rand "
           "(uniform noise); the others are eval.py's")
    original.add_argument("--consistency", action="store_true", help="Consistency-AT; with adv_train only")
    original.add_argument("--RA", action="store_true", help="robust perception")
    add("--RA_start", whole, 0, "the first epoch with it, counted from 1; 0 is as 1")
    add("--RA_ip_rate", rate, 0.5, "share of the clean image in the image between")
    add("--lam", not_negative, 1.0, "weight of robust perception, and of the consistency of two views")
    add("--beta", not_negative, 6.0, "weight of TRADES' and MART's divergence")
    add("--T", positive, 0.5, "temperature of the consistency")
    choose("--distance", NORMS, "Linf", "norm of the attack")
    choose("--adv_method", ("pgd", "fgsm"), "pgd", "attack of adv_train and of eval.py")
    add("--epsilon", not_negative, None, "radius for images in [0,1]; with neither this nor --alpha Linf: 8/255, L2: "
        "128/255, L1: 2000/255; with --alpha alone 8/255")
    add("--alpha", positive, None, "step; likewise 2/255, 15/255, 400/255; with --epsilon alone 2/255")
    add("--n_iters", count, 10, "its steps")
    choose("--augment_type", ("base", "autoaug", "autoaug_sche"), "base", "crop and flip; with AutoAugment and cutout; "
           "with these in the second half")
    add("--epochs", count, 200, "of training")
    add("--lr_init", positive, 0.1, "the first learning rate")
    choose("--lr_scheduler", ("multi_step_decay", "cosine"), "multi_step_decay", "tenths after E/2 and 3E/4 epochs "
           "(E < 200: after 100 and 105), or cosine by epochs")
    choose("--optimizer", ("sgd",), "sgd", "momentum 0.9")
    add("--weight_decay", not_negative, 5e-4, "of all parameters")
    add("--batch_size", count, 128, "images per step")
    add("--test_batch_size", count, 100, "images per pass of the test; eval.py: those whose random numbers are drawn "
        "together")
    add("--error_step", count, 1, "test after every so many epochs")
    add("--save_step", whole, 25, "keep the weights after every so many epochs as N.pt, N the 0-based epoch; 0: none")
    add("--resume_path", str, None, "go on with the run in this folder: results/rpat/<data set>/<run>")
    add("--load_path", str, None, "eval.py: a run's folder, or a file of weights")
    add("--suffix", name, None, "is added to the run's name")
    add("--local_rank", int, 0, "no effect, as in the original")
    original.add_argument("--no_strict", action="store_true", help="no effect: weights are loaded wholly or not at all")
    add("--weak", not_negative, None, "strength of test_adv_acc_weak, 0 to 8: the share w/8 of the perturbation")
    add_run_flags(parse)
    ours = parse.add_argument_group("ours, RPAT's")
    ours.add_argument("--val", action="store_true", help="hold out 1,000 training images (of small data sets a tenth) "
                      "and keep the weights that withstand the attack best on them as best.pt")
    ours.add_argument("--augment", type=boolean, default=True, help="random crop (padding 4) and flip")
    ours.add_argument("--scale_schedule", type=boolean, default=False, help="multi_step_decay at E/2 and 3E/4 whatever "
                      "the number of epochs E")
    ours.add_argument("--allow-subset", "--allow_subset", action="store_true", help="accept a part of Tiny-ImageNet")
    parse.set_defaults(seed=0, final_test=False)
    return parse


def settings_of(args: argparse.Namespace) -> Settings:
    """What the parsed flags of a training mean.  UserErrors for values that do not fit together."""
    if args.mode not in MODES:
        raise UserError(f"--mode {args.mode} is for eval.py; train.py has {', '.join(MODES)}", code="E-FLAG-VALUE")
    if args.load_path is not None:
        raise UserError("--load_path is for eval.py; to go on with a run give its folder with --resume_path",
                        code="E-FLAG-PAIR")
    attacked = args.mode.startswith("adv_")
    if args.consistency and args.mode != "adv_train":
        raise UserError(f"--consistency is for --mode adv_train, not for {args.mode}", code="E-FLAG-PAIR")
    if args.RA and not attacked:
        raise UserError(f"--RA needs adversarial images, --mode {args.mode} has none: give adv_train, adv_trades or "
                        "adv_mart", code="E-FLAG-PAIR")
    if args.adv_method == "fgsm" and args.mode in ("adv_trades", "adv_mart"):
        raise UserError(f"--adv_method fgsm is for adv_train: {args.mode} has an attack of its own", code="E-FLAG-PAIR")
    if args.distance == "L1" and args.mode in ("adv_trades", "adv_mart"):
        raise UserError(f"--distance L1: {args.mode} has Linf and L2 only; adv_train has L1", code="E-NORM")
    settings = threatened(args)
    if line := unusual_size(settings.norm, settings.epsilon):
        print(line, file=sys.stderr)
    return settings


def threatened(args: argparse.Namespace) -> Settings:
    """The settings with the attack's sizes filled in, said where they are not the flags'; UserErrors for sizes that no
    image pair needs, and for FGSM in L1."""
    if args.adv_method == "fgsm" and args.distance == "L1":
        raise UserError("--adv_method fgsm has Linf and L2 only, not L1: give pgd", code="E-NORM")
    if args.dataset is None and args.data is None:
        raise UserError(f"--dataset must be given: {', '.join(DATASETS)}; or another data set with --data",
                        code="E-FLAG-MISSING")
    quirks = choose_quirks(args.quirks, PART_ONE)
    norm = NORMS[args.distance]
    check_size("--epsilon", args.epsilon, args.distance)
    check_size("--alpha", args.alpha, args.distance)
    epsilon, alpha = threat(norm, args.epsilon, args.alpha)
    if args.distance != "Linf" and None in (args.epsilon, args.alpha):
        missing = " and ".join(flag for flag, value in (("--epsilon", args.epsilon), ("--alpha", args.alpha))
                               if value is None)
        both = args.epsilon is None and args.alpha is None
        print(f"note: --distance {args.distance} without {missing}: attacks at {epsilon * 255:g}/255 in steps of "
              f"{alpha * 255:g}/255" + (", the norm's own values" if both else "; the default is as released"))
    found = {field: getattr(args, field) for field in Settings.__dataclass_fields__ if hasattr(args, field)}
    return Settings(**found | {"dataset": protocol(args), "model": our_model(args.model or "resnet18", quirks),
                               "quirks": quirks, "epsilon": epsilon, "alpha": alpha})


def check_size(flag: str, value: float | None, distance: str) -> None:
    """A UserError for a size that cannot be meant in the norm, such as 8 for 8/255."""
    largest = LARGEST[NORMS[distance]]
    if value is not None and value > largest:
        raise UserError(f"{flag} {value:g} with --distance {distance} is larger than {largest:g}: images are in [0,1], "
                        f"so write {value:g}/255" + ("" if value / 255 <= largest else ", or less") +
                        f", or {value:g} is meant for another norm", code="E-RADIUS")


def our_model(word: str, quirks: Sequence[str]) -> str:
    """A released network name as `common.models` has it; resnet18 with the bottleneck quirk or without it."""
    if word == "resnet18" and "bottleneck-resnet18" not in quirks:
        return "resnet18"
    return MODELS.get(word, word)


def data_spec(args: argparse.Namespace) -> str:
    """What `common.data.load` takes, with the suffix that accepts a part of Tiny-ImageNet."""
    spec = args.data or DATASETS.get(args.dataset, args.dataset)
    return f"{spec}?subset" if args.allow_subset and spec == "tiny-imagenet" else spec


def protocol(args: argparse.Namespace) -> str:
    """Our name of the data set: what --dataset says, else --data."""
    return DATASETS.get(args.dataset, args.dataset) if args.dataset else dataset_name(data_spec(args))


def dataset_folder(args: argparse.Namespace, norm: str) -> str:
    """The folder of the records: --dataset_name, or the data set's own name and, but for L-inf, the norm."""
    return args.dataset_name or folder_name(dataset_name(data_spec(args)), norm)


def resumed(argv: Sequence[str]) -> list[str]:
    """The flags of the run in --resume_path, then those given now."""
    given = Parser(prog="train.py", add_help=False)
    given.add_argument("--resume_path", default=None)
    asked, rest = given.parse_known_args(list(argv))
    if asked.resume_path is None:
        return list(argv)
    return [*unfinished(asked.resume_path, "rpat", SCRIPT, EVALUATION, "last.model"), *rest]


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags, those of a resumed run filled in."""
    return parser().parse_args(resumed(sys.argv[1:] if argv is None else argv))


def main(argv: Sequence[str] | None = None) -> None:
    """Run train.py as a command."""
    train_command(parse, settings_of, "rpat.training", argv)
