"""The flags of experiments/train.py: RPAT's own (rpat/flags.py), and the barrier's.  No torch here."""

import argparse
from collections.abc import Sequence

from common.errors import UserError, exit_cleanly
from common.flags import name, number
from rpat import flags as rpat_flags
from rpat.settings import Settings

METHOD, VARIANT = "PGD-AT", "rpat-barrier"


def parser() -> argparse.ArgumentParser:
    """RPAT's parser with the barrier's flags."""
    parse = rpat_flags.parser()
    parse.description = "RPAT's PGD-AT with its clean loss behind AdaRAT's barrier: an experiment of ours."
    barrier = parse.add_argument_group("AdaRAT's barrier")
    barrier.add_argument("--up_lim", type=number, default=1.1, help="the barrier's ceiling")
    barrier.add_argument("--down_lim", type=number, default=0.4, help="the barrier's floor")
    barrier.add_argument("--tao", type=number, default=0.01, help="the barrier's exponent is 1 + tao")
    barrier.add_argument("--ratio_beta", type=number, default=0.04, help="weight of the ratio term, over epsilon")
    barrier.add_argument("--limits_from", type=name, default=None, metavar="RUN",
                         help="take floor and ceiling from this finished run of adarat on the same data set, by the "
                              "rule of adarat/limits.py")
    parse.set_defaults(RA=True, mode="adv_train")
    return parse


def settings_of(args: argparse.Namespace) -> Settings:
    """RPAT's settings; UserErrors for what has no barrier, and for a floor that is not below the ceiling."""
    settings = rpat_flags.settings_of(args)
    if (settings.method, settings.variant) != (METHOD, "rpat"):
        raise UserError("experiments/train.py is --mode adv_train with --RA, and without --consistency: the barrier is "
                        "on PGD-AT's loss with robust perception", code="E-FLAG-PAIR")
    if settings.epsilon == 0:
        raise UserError("--epsilon 0: the ratio term is ratio_beta/epsilon", code="E-FLAG-PAIR")
    if args.limits_from is None and args.down_lim >= args.up_lim:
        raise UserError(f"--down_lim {args.down_lim} must be below --up_lim {args.up_lim}: the barrier rises from the "
                        "floor to the ceiling", code="E-FLAG-PAIR")
    return settings


def main(argv: Sequence[str] | None = None) -> None:
    """Run experiments/train.py as a command."""
    def run() -> None:
        args = parser().parse_args(argv)
        settings = settings_of(args)
        # torch is imported only once the flags are known to be right
        from experiments.training import train

        train(settings, args)

    exit_cleanly(run)
