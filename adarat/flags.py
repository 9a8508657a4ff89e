"""The flags of AdaRAT's released scripts, turned into settings.  `main` is all that a train script calls."""

import argparse
from collections.abc import Sequence
from typing import Any

from adarat.settings import METHODS, ORIGINAL_DATA, QUIRKS, Settings, defaults
from common.errors import UserError, exit_cleanly
from common.flags import Parser, add_run_flags, boolean, choose_quirks, count, name, number, positive, radius

ARCHITECTURES = {"resnet18": "resnet18", "preactresnet18": "preactresnet18", "WRN32": "wrn-34-10",
                 "WRN34": "wrn-34-10"}


def parser(method: str, dataset: str) -> argparse.ArgumentParser:
    """The parser of train/<method>/train_<dataset>.py: the original's flags, then ours."""
    given = defaults(method, dataset, choose_quirks("default", QUIRKS))
    parse = Parser(prog=f"train_{dataset}.py",
                   description=f"{method} on {dataset} as in AdaRAT's released code: train, then test. "
                               "--FixRAT True separates the clean loss from the robust term, --AdaRAT True beside it "
                               "puts the clean loss behind the barrier.")
    original = parse.add_argument_group("the original's")
    if method == "Generalist":
        generalist_flags(original, dataset)
    else:
        method_flags(original, method, dataset, given)
    original.add_argument("--epsilon", type=radius, default=given.get("epsilon", 8 / 255),
                          help="L-inf radius, images in [0,1]")
    if method != "ST":
        for flag, text in (("--FixRAT", "clean loss + fixed-ratio term"), ("--AdaRAT", "barrier on the clean loss; "
                                                                           "acts only together with --FixRAT True")):
            original.add_argument(flag, type=boolean, default=False, help=text)
        for flag, text in (("--beta", "weight of the ratio term, over epsilon"), ("--up_lim", "the barrier's ceiling"),
                           ("--down_lim", "the barrier's floor"), ("--tao", "the barrier's exponent is 1 + tao")):
            original.add_argument(flag, type=number, default=given.get(flag[2:], 0.01), help=text)
    add_run_flags(parse)
    parse.add_argument("--scale_schedule", type=boolean, default=False,
                       help="ours: scale every epoch of the schedules (lr 60/90/110, FAT 50/90, DAT and IAD 60, "
                            "Generalist 75) by --epoch/120")
    parse.add_argument("--limits_from", type=name, default=None, metavar="RUN",
                       help="ours: take --up_lim and --down_lim from this finished run's clean training loss, by the "
                            "rule of adarat/limits.py")
    parse.add_argument("--augment", type=boolean, default=True, help="ours: random crop (padding 4) and flip")
    return parse


def method_flags(group: Any, method: str, dataset: str, given: dict[str, Any]) -> None:
    """The flags of all scripts but Generalist's."""
    group.add_argument("--dataset_path", default=ORIGINAL_DATA, help="where the images lie; the default means the "
                                                                     "repository's data/")
    group.add_argument("--epoch", type=count, default=120, help="epochs of training")
    group.add_argument("--batch_size", type=count, default=128, help="images per step")
    group.add_argument("--step_num", type=count, default=None,
                       help=f"steps of the attack ({given.get('step_num', 10)} if not given)")
    group.add_argument("--drop_last", type=boolean, default=False, help="leave out an epoch's last, smaller batch")
    group.add_argument("--learning_rate", type=positive, default=0.1, help="the first one")
    group.add_argument("--step_size", type=radius, default=given.get("step_size", 2 / 255), help="of the attack")
    group.add_argument("--class_num", type=count, default=None, help="classes; those of the data set if not given "
                                                                     f"({100 if dataset == 'cifar100' else 10})")
    if method == "TRADES":
        group.add_argument("--lamda", type=number, default=6, help="weight of the divergence")
    if method == "DAT":
        group.add_argument("--FOSC_control_epoch", type=count, default=60, help="the threshold is 0 from here on")
        group.add_argument("--FOSC_max", type=number, default=0.3, help="the threshold in epoch 0")
    if method in ("KD-AT", "IAD"):
        group.add_argument("--teacher_robust_name", default="PGD_AT.pth", help="checkpoint of the robust teacher: a "
                           "file, the name of a run, or the default, which means this budget's PGD-AT run")
        group.add_argument("--teacher_standard_name", default="ST.pth", help="likewise of the standard teacher")
        group.add_argument("--ce", type=number, default=0.25, help="weight of the cross-entropy")
        group.add_argument("--teacher_robust", type=number, default=0.5, help="weight of the robust teacher")
        group.add_argument("--teacher_standard", type=number, default=0.25, help="weight of the standard teacher")
    if method == "IAD":
        group.add_argument("--begin", type=int, default=60, help="0-based epoch from which the student trusts itself")
        group.add_argument("--b", type=number, default=0.1, help="exponent of the teacher's probability")


def generalist_flags(group: Any, dataset: str) -> None:
    """The flags of Generalist's scripts, which are another author's."""
    architectures = {"cifar10": "resnet18", "cifar100": "WRN34"}
    group.add_argument("--epochs", dest="epoch", type=count, default=120, help="epochs of training, counted from 1")
    group.add_argument("--lr", dest="learning_rate", type=positive, default=0.1, help="the first one")
    group.add_argument("--step-size", dest="step_size", type=radius, default=0.007 if dataset == "cifar10" else 2 / 255,
                       help="of the attack")
    group.add_argument("--num-steps", type=count, default=10, help="no effect, as in the original: 10 steps")
    group.add_argument("--arch", default=architectures[dataset], choices=tuple(ARCHITECTURES),
                       help="network; WRN32 builds WRN-34-10, as in the original; its smallcnn is dead")
    group.add_argument("--dataset", default=dataset, choices=("cifar10", "cifar100"), help="must be the script's own")
    group.add_argument("--num_classes", type=count, default=None, help="no effect: follows the data set")
    group.add_argument("--loss_fn", default="cent", help="no effect, as in the original")
    group.add_argument("--norm", default="Linf", help="no effect, as in the original")
    group.add_argument("--resume", type=boolean, default=False, help="True: no training, test the saved weights")
    group.add_argument("--out-dir", default=None, help="no effect: records go to results/ (and --data-dir, which the "
                                                       "original writes to, says here where the images lie)")
    group.add_argument("--model-dir", default=None, help="no effect: weights go to weights/")
    group.add_argument("--ablation", default="", help="is added to the run's name")


def settings_of(method: str, dataset: str, args: argparse.Namespace) -> Settings:
    """What the parsed flags mean.  UserErrors for values that do not fit together."""
    quirks = choose_quirks(args.quirks, QUIRKS)
    given = defaults(method, dataset, quirks)
    found = {name: getattr(args, name) for name in Settings.__dataclass_fields__ if hasattr(args, name)}
    if found.get("step_num") is None:
        found["step_num"] = given.get("step_num", 10)
    arch = ARCHITECTURES.get(getattr(args, "arch", None), given["model"])
    found |= {"method": method, "dataset": dataset, "quirks": quirks, "model": args.model or arch,
              "crop": 4 if args.augment else 0, "flip": args.augment}
    settings = Settings(**found)
    if settings.variant == "adarat" and settings.down_lim >= settings.up_lim:
        raise UserError(f"--down_lim {settings.down_lim} must be below --up_lim {settings.up_lim}: the barrier rises "
                        "from the floor to the ceiling", code="E-FLAG-PAIR")
    if settings.epsilon == 0 and settings.FixRAT:
        raise UserError("--epsilon 0 with --FixRAT True: the ratio term is beta/epsilon", code="E-FLAG-PAIR")
    if getattr(args, "dataset", dataset) != dataset:
        raise UserError(f"--dataset {args.dataset}: this script is for {dataset}; start train_{args.dataset}.py",
                        code="E-FLAG-VALUE")
    return settings


def main(method: str, dataset: str, argv: Sequence[str] | None = None) -> None:
    """Run a train script as a command."""
    if method not in METHODS:
        raise ValueError(method)

    def run() -> None:
        args = parser(method, dataset).parse_args(argv)
        settings = settings_of(method, dataset, args)
        # torch is imported only once the flags are known to be right
        from adarat.train import train

        train(settings, args)

    exit_cleanly(run)
