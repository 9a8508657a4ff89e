"""Check Python, packages, GPU, disk, data and every run folder, and say what to type: python -m scripts.doctor

Nothing is written but one small file in each folder that commands write into, which is removed again.  Exit status: 0
no problem (there may be notes), 1 problems, 2 a flag that does not exist.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036
    sys.exit(f"problem: this is Python {sys.version.split()[0]}; 3.11, 3.12 or 3.13 is needed: type\n  make setup")

import argparse
from collections.abc import Iterable
from pathlib import Path

from common.doctor import data, devices, disk, fingerprints, leftovers, machine, packages, torch_probe
from common.doctor.findings import NOTE, PROBLEM, Finding, as_json, as_text, in_venv
from common.environment import ROOT
from common.errors import exit_cleanly
from common.flags import Parser


def parser() -> Parser:
    """The command's flags."""
    parse = Parser(prog="python -m scripts.doctor", description=(__doc__ or "").partition(":")[0] + ".")
    parse.add_argument("--data", nargs="+", default=[], metavar="SPEC", help="data that must be there: cifar10, "
                       "tiny-imagenet, npz:FILE, folder:DIR, ...")
    parse.add_argument("--data_dir", "--data-dir", type=Path, default=ROOT / "data", help="where data sets lie")
    parse.add_argument("--results", type=Path, default=ROOT / "results", help="folder of the records")
    parse.add_argument("--weights", type=Path, default=ROOT / "weights", help="folder of the weights")
    how = parse.add_mutually_exclusive_group()
    how.add_argument("--quick", action="store_true", help="do not import torch and torchvision")
    how.add_argument("--full", action="store_true", help="read every data file and all weights to the last byte, and "
                     "compare the data's fingerprints with the records' (minutes; decoded images are kept in .cache)")
    parse.add_argument("--json", action="store_true", help="print all findings as JSON")
    return parse


def examine(args: argparse.Namespace) -> Iterable[Finding]:
    """All findings, part by part."""
    yield from packages.check_python()
    here = packages.installed("torch") is not None
    if here or in_venv():
        yield from packages.check_packages()
    yield from packages.check_tools()
    said = torch_probe.ask() if here and not args.quick else {}
    if here and not args.quick:
        yield from devices.check_torch(said)
    yield from devices.check_gpu(said, devices.cards(), devices.visible())
    yield from machine.check_cpu(said)
    yield from machine.check_memory()
    build = ROOT / "build"
    yield from disk.check_disk(disk.places(args.data_dir, args.results, args.weights, build))
    yield from data.check_data(args.data_dir, args.data, full=args.full)
    if args.full and "torch" in said:
        yield from fingerprints.check_fingerprints(data.loadable(args.data_dir, args.data), args.data_dir, args.results)
    yield from _runs(args)
    yield from leftovers.check_leftovers(args.results, args.weights, args.data_dir, build)


def _runs(args: argparse.Namespace) -> list[Finding]:
    if not args.results.is_dir():
        return [Finding(NOTE, "runs", "none", f"there is no folder {args.results}, so there are no runs", "make quick")]
    try:
        from common.doctor.runs import check_runs
    except ImportError as error:
        return [Finding(NOTE, "runs", "unchecked", f"the run folders were not looked at: {error}", packages.repair())]
    return check_runs(args.results, args.weights, args.full)


def main() -> int:
    """Run the command; the exit status."""
    args = parser().parse_args()
    findings = list(examine(args))
    print(as_json(findings) if args.json else as_text(findings))
    return int(any(one.level == PROBLEM for one in findings))


if __name__ == "__main__":
    exit_cleanly(main)
