"""The flags of part 2's released scripts, turned into settings; `main` is all that rpat/sotas calls.  No torch."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from common.errors import UserError, exit_cleanly
from common.evaluation.kinds import USUAL, unusual_size
from common.flags import Parser, add_run_flags, choose_quirks, count, name, positive
from rpat.flags import not_negative, rate, whole
from rpat.settings import PART_TWO
from rpat.sota_settings import ATTACKS, DATA, LR_SCHEDULES, MODELS, NORMS, REG_SCHEDULES, SCRIPTS, SotaSettings, scaled

DESCRIPTION = {"ReBAT": "ReBAT (Wang et al. 2023)", "RPAT++": "RPAT++: ReBAT with robust perception"}
STAGES = ("stage1", "stage2", "warmup_epochs")


def both(flag: str) -> list[str]:
    """A flag as released, and with underscores for its hyphens, or hyphens for its underscores."""
    plain = flag.removeprefix("--")
    return list(dict.fromkeys([flag, "--" + plain.replace("-", "_"), "--" + plain.replace("_", "-")]))


def in_255ths(text: str) -> float:
    """A size that is counted in 255ths; one in [0,1] units is caught."""
    value = positive(text)
    if "/" in text or value < 0.1:
        meant = round(255 * value, 3)
        raise argparse.ArgumentTypeError(f"{text!r} is a size for images in [0,1]; it is counted in 255ths here, in L2 "
                                         f"too: write {meant:g}")
    return value


def whole_255ths(text: str) -> int:
    """A whole number of 255ths."""
    value = in_255ths(text)
    if value != int(value):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number: it is counted in 255ths")
    return int(value)


def parser(method: str) -> Parser:
    """The parser of a script: the original's flags, then ours.  method: ReBAT or RPAT++."""
    parse = Parser(prog=Path(SCRIPTS[method]).name, description=f"Train {DESCRIPTION[method]}, and test it.")
    defaults = SotaSettings()
    original = parse.add_argument_group("the original's")

    def switch(flag: str, text: str) -> None:
        original.add_argument(*both(flag), action="store_true", help=text)

    def add(flag: str, kind: object, text: str, **options: object) -> None:
        options.setdefault("default", getattr(defaults, flag[2:].replace("-", "_"), None))
        original.add_argument(*both(flag), type=kind, help=text, **options)

    add("--fname", name, "names the run (if not given: by method, budget and seed)")
    add("--save-path", str, "folder that gets results/ and weights/ (if not given: those of the repository)")
    add("--load-folder", str, "with --eval: a run's folder, or one of the original's, to test")
    switch("--val", "hold out 1,000 training images (at most a tenth) and keep the best epoch on them")
    switch("--eval", "test a run that is trained, without training")
    switch("--eval-last-only", "test the last epoch only")
    switch("--eval-best-only", "test the best epoch only")
    switch("--eval-online", "test the model instead of its weight average")
    switch("--eval-train-robust", "measure the average on augmented training images too, after each epoch")
    add("--width-factor", count, "of WideResNet", default=10)
    add("--resume", whole, "go on from this epoch, which must be the last whole one (a run goes on without the flag)",
        default=0)
    add("--chkpt-iters", whole, "keep the average every N epochs; 0: never")
    add("--decay-rate", rate, "of the weight average, per step")
    add("--warmup-epochs", whole, "epochs before the average, and the term with it, begin")
    add("--num-classes", int, "10: cifar10, 100: cifar100 (if not given: what --data has, or 10)", default=None)
    switch("--cutmix", "CutMix in every batch")
    add("--cutmix-alpha", positive, "of CutMix's Beta distribution")
    add("--cutmix-beta", positive, "of CutMix's Beta distribution")
    add("--l2", not_negative, "weight decay of weights but norms and biases, instead of 5e-4 on all; 0: do not")
    add("--l1", not_negative, "L1 penalty on the same weights")
    add("--batch-size", count, "images per step, and per pass of the test after each epoch")
    add("--epochs", count, "of training")
    add("--lr-schedule", str, "learning rate over the epochs", choices=LR_SCHEDULES)
    add("--lr-max", positive, "the highest learning rate")
    add("--lr-factor", positive, "piecewise: divides the rate at stage1 and at stage2")
    add("--stage1", whole, "epoch of the first division, and of --stronger-attack")
    add("--stage2", whole, "epoch of the second division, and of --beta-factor")
    add("--attack", str, "of training", choices=ATTACKS)
    add("--eval-attack", str, "after each epoch", choices=ATTACKS)
    add("--epsilon", whole_255ths, "radius, in 255ths")
    add("--attack-iters", count, "steps of the attack")
    add("--restarts", count, "of the attack; its strongest end per image is kept")
    add("--pgd-alpha", in_255ths, "step of the attack, in 255ths")
    add("--norm", str, "of the attack", choices=tuple(NORMS), default="l_inf")
    switch("--stronger-attack", "train against a stronger attack from stage1 on")
    add("--stronger-epsilon", whole_255ths, "its radius, in 255ths")
    add("--stronger-attack-iters", count, "its steps")
    switch("--stronger-eval", "use it after each epoch, too")
    switch("--use-reg-schedule", "schedule the term's weight")
    add("--beta", not_negative, "the term's weight")
    add("--beta-factor", positive, "piecewise schedule: multiplies it from stage2 on")
    add("--reg-schedule", str, "of the term's weight", choices=REG_SCHEDULES)
    add_run_flags(parse)
    ours = parse.add_argument_group("ours, part 2's")
    ours.add_argument(*both("--scale_schedule"), action="store_true", help="stage1, stage2 and warmup-epochs are given "
                      "for 200 epochs: scale them to --epochs")
    parse.set_defaults(seed=0, model="PreActResNet18")
    return parse


def settings_of(method: str, args: argparse.Namespace) -> SotaSettings:
    """What the parsed flags of a method's script mean.  UserErrors for values that do not fit together."""
    if args.num_classes is not None and args.data is None and args.num_classes not in DATA:
        raise UserError(f"--num-classes {args.num_classes}: 10 (cifar10) or 100 (cifar100), or name other data with "
                        "--data", code="E-FLAG-VALUE")
    found = {field: getattr(args, field) for field in SotaSettings.__dataclass_fields__ if hasattr(args, field)}
    found |= {"method": method, "model": our_model(args.model, args.width_factor), "norm": NORMS[args.norm],
              "quirks": choose_quirks(args.quirks, PART_TWO)}
    settings = SotaSettings(**found)
    if args.scale_schedule:
        settings = replace(settings, **{stage: scaled(getattr(settings, stage), settings.epochs) for stage in STAGES})
    check_sizes(settings)
    return settings


def our_model(word: str, width_factor: int) -> str:
    """A released network name as `common.models` has it; another word is taken as one of ours."""
    return f"wrn-34-{width_factor}" if word == "WideResNet" else MODELS.get(word, word)


def check_sizes(settings: SotaSettings) -> None:
    """A UserError for a radius that no network withstands, a warning for one that is usual in another norm."""
    sizes = {"--epsilon": settings.epsilon}
    if settings.stronger_attack:
        sizes["--stronger-epsilon"] = settings.stronger_epsilon
    for flag, size in sizes.items():
        eps, norm = size / 255, settings.norm
        if eps > USUAL[norm][1]:
            other = "; for L2 add --norm l_2" if norm == "linf" else ""
            raise UserError(f"{flag} {size} means {size}/255, which is too large for {norm}, where {USUAL[norm][2]} is "
                            f"usual{other}", code="E-RADIUS")
        if warning := unusual_size(norm, eps):
            print(f"{flag}: {warning}", file=sys.stderr)


def main(method: str, argv: Sequence[str] | None = None) -> None:
    """Run a method's script as a command."""
    def run() -> None:
        args = parser(method).parse_args(argv)
        if args.eval and args.resume:
            raise UserError("--eval trains nothing, --resume goes on with training: give one of them",
                            code="E-FLAG-PAIR")
        if args.load_folder and not (args.eval or args.resume):
            raise UserError("--load-folder names what to test: give --eval too", code="E-FLAG-PAIR")
        settings = settings_of(method, args)
        # torch is imported only once the flags are known to be right
        from rpat import sota_evaluation, sota_training

        (sota_evaluation.test if args.eval else sota_training.train)(settings, args)

    exit_cleanly(run)
