"""Fetch data sets before they are needed: python -m scripts.download tiny-imagenet cifar10 (make download)

Whole or absent, checked by hash; typed again it goes on where a download was cut off, and does nothing where the data
are there.  It asks nothing.  cifar10, cifar100, mnist and fashion-mnist are those that trainings fetch by themselves.
"""

import dataclasses
from pathlib import Path

from common.archives import ARCHIVES, bring
from common.environment import ROOT, portable
from common.errors import UserError, exit_cleanly
from common.flags import Parser

VISION = ("cifar10", "cifar100", "mnist", "fashion-mnist")


def parser() -> Parser:
    """The command's flags."""
    parse = Parser(prog="python -m scripts.download", description=__doc__.splitlines()[0].split(":")[0] + ".")
    parse.add_argument("datasets", nargs="+", choices=(*VISION, *ARCHIVES), metavar="NAME",
                       help=", ".join((*VISION, *ARCHIVES)))
    parse.add_argument("--data_dir", "--data-dir", type=Path, default=ROOT / "data", help="where they go")
    parse.add_argument("--url", default=None, help=f"another copy, of one of {', '.join(ARCHIVES)}; its hash must be "
                       "the same")
    return parse


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    args = parser().parse_args(argv)
    if args.url is not None:
        if len(args.datasets) != 1 or args.datasets[0] not in ARCHIVES:
            raise UserError(f"--url is the address of one file: name one of {', '.join(ARCHIVES)}",
                            code="E-FLAG-PAIR")
        if not args.url.startswith(("http://", "https://")):
            raise UserError(f"--url {args.url}: give an address that begins with https:// or http://",
                            code="E-FLAG-VALUE")
    for name in dict.fromkeys(args.datasets):
        if name in VISION:
            # It brings torch along, which the others do without.
            from common.data.vision import bring_vision

            print(f"{name}: {portable(str(bring_vision(name, args.data_dir)))} is there")
            continue
        archive = ARCHIVES[name]
        if args.url is not None:
            archive = dataclasses.replace(archive, remote=dataclasses.replace(archive.remote, urls=(args.url,)))
        print(f"{name}: {bring(archive, args.data_dir)}")


if __name__ == "__main__":
    exit_cleanly(main)
