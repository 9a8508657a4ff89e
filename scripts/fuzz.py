"""Damage files and command lines for a while and see that readers refuse or accept: python -m scripts.fuzz

Each target makes small valid files, damages them and reads them.  A traceback, a hang, or a file written is a defect:
its files are kept under build/fuzz/, and its number makes them again.  Bounded by --seconds; exit status 1 for defects.
"""

import importlib
import json
import os
import resource
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

from common.environment import ROOT, begin, environment, relative_command
from common.errors import UserError, exit_cleanly
from common.files import write_json
from common.flags import Parser, count, positive
from common.fuzz import Target, judge, prepare
from common.fuzz.flags import target as of_flags

MEMORY = 6 << 30               # bytes of addresses that a reader may take beside what is there before it
KEPT = 20                      # defects of a target whose files are kept
PAPERS = ("adarat", "dyart", "rpat", "brainreg", "experiments")


def parser() -> Parser:
    """The command's flags."""
    parse = Parser(prog="python -m scripts.fuzz", description=__doc__.splitlines()[0].split(":")[0] + ".")
    parse.add_argument("--examples", type=count, default=100_000, help="cases of each target at most")
    parse.add_argument("--seconds", type=positive, default=60.0, help="for all targets together, shared out evenly")
    parse.add_argument("--only", nargs="+", default=None, metavar="TARGET", help="npz, records, ... (default: all)")
    parse.add_argument("--seed", type=int, default=0, help="of the cases")
    parse.add_argument("--out", type=Path, default=ROOT / "results" / "checks" / "reliability" / "fuzz.json",
                       help="the record")
    return parse


def targets() -> tuple[Target, ...]:
    """All there are: readers, tables made of records, the original's checkpoints, and every command's flags."""
    from common.fuzz import checkpoints, data, records, tables
    from dyart import original

    papers = [importlib.import_module(f"{paper}.runs") for paper in PAPERS]
    return (*data.TARGETS, *checkpoints.TARGETS, *records.TARGETS, tables.target(papers[0]),
            Target("original", make_original, mutate_original,
                   lambda folder: original.find(str(folder), None, {"width": None})), *flags())


def make_original(folder: Path) -> None:
    (folder / "val_best.pt").write_bytes(b"weights")
    (folder / "args.txt").write_text(json.dumps({
        "model": "resnet18", "data": "cifar10s", "GroupNorm": True, "normalize": True, "attack": "Linf", "seed": 1,
        "attack_eps": 0.031, "attack_step": 0.007}))


def mutate_original(random: Random, folder: Path) -> None:
    from common.fuzz.mutations import damage_json, rewrite

    rewrite(random, folder / "args.txt", damage_json)


def flags() -> list[Target]:
    """A target for each command: the papers' as far as their settings, the others' as far as their flags."""
    from adarat import flags as adarat
    from adarat.settings import METHODS
    from brainreg import flags as brainreg
    from dyart import evaluation as dyart_evaluation
    from dyart import flags as dyart
    from rpat import evaluation as rpat_evaluation
    from rpat import flags as rpat
    from rpat import sota_flags, sota_settings

    experiments = importlib.import_module("experiments.flags")     # by name, as the tables find them
    found = [of_flags(name, module.parser, lambda argv, module=module: module.settings_of(module.parse(argv)), usual)
             for name, module, usual in (("dyart/train", dyart, ()), ("rpat/train", rpat, ("--data", "cifar10")),
                                         ("brainreg/train", brainreg, ()))]
    found.append(of_flags("experiments/train", experiments.parser,
                          lambda argv: experiments.settings_of(experiments.parser().parse_args(argv)),
                          ("--data", "cifar10")))
    for method in METHODS:
        def parse(argv: Sequence[str], method: str = method) -> Any:
            return adarat.settings_of(method, "cifar10", adarat.parser(method, "cifar10").parse_args(argv))

        found.append(of_flags(f"adarat/train/{method}", lambda method=method: adarat.parser(method, "cifar10"), parse))
    for method in sota_settings.METHODS:
        def parse_sota(argv: Sequence[str], method: str = method) -> Any:
            return sota_flags.settings_of(method, sota_flags.parser(method).parse_args(argv))

        found.append(of_flags(f"rpat/sotas/{method}", lambda method=method: sota_flags.parser(method), parse_sota))
    others = {"dyart/eval_aa": dyart_evaluation.parser, "rpat/eval": rpat_evaluation.parser, **of_scripts()}
    return found + [of_flags(name, make, lambda argv, make=make: make().parse_args(argv))
                    for name, make in others.items()]


def of_scripts() -> dict[str, Callable[[], Any]]:
    """The parsers of this folder's commands, found by name: nothing imports them."""
    modules = {path.stem: importlib.import_module(f"scripts.{path.stem}")
               for path in sorted((ROOT / "scripts").glob("*.py"))
               if "\ndef parser(" in path.read_text(encoding="utf-8") and path.name != Path(__file__).name}
    return {f"scripts/{name}": module.parser for name, module in modules.items()}


def fuzz(target: Target, *, seed: int, examples: int, seconds: float, kept: Path) -> dict[str, Any]:
    """Counts of one target's cases, and its defects."""
    counts = {"cases": 0, "accepted": 0, "refused": 0}
    defects: list[dict[str, Any]] = []
    until = time.monotonic() + seconds
    with tempfile.TemporaryDirectory(prefix="fuzz-") as work:
        while counts["cases"] < examples and time.monotonic() < until:
            number = counts["cases"]
            verdict = one(target, seed, number, Path(work), kept if len(defects) < KEPT else None)
            counts["cases"] += 1
            if verdict in counts:
                counts[verdict] += 1
            else:
                defects.append({"number": number, "verdict": verdict.strip().splitlines()[-1][:300]})
    return {**counts, "defects": defects}


def one(target: Target, seed: int, number: int, work: Path, kept: Path | None) -> str:
    """The verdict on one case; the files of a defect are copied to `kept`.  Case 0 is the valid file itself."""
    folder = work / str(number)
    try:
        prepare(target, work / "valid", folder, Random(f"{seed} {target.name} {number}") if number else None)
        verdict = judge(target, folder)
        if verdict not in ("accepted", "refused") and kept is not None:
            place = kept / target.name.replace("/", "-").replace(" ", "-") / str(number)
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(folder, place, symlinks=True,
                            ignore=lambda where, names: [name for name in names if not ordinary(Path(where, name))])
            (place / "verdict.txt").write_text(verdict, encoding="utf-8", errors="replace")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return verdict


def ordinary(path: Path) -> bool:
    """Whether it can be copied; pipes cannot."""
    return path.is_symlink() or path.is_file() or path.is_dir()


def main(argv: list[str] | None = None) -> int:
    """Run the command; 1 if there are defects."""
    args = parser().parse_args(argv)
    begin()
    chosen = targets()
    if args.only:
        unknown = [name for name in args.only if name not in {target.name for target in chosen}]
        if unknown:
            raise UserError(f"--only {unknown[0]}: no such target; there are "
                            f"{', '.join(target.name for target in chosen)}", code="E-FLAG-VALUE")
        chosen = tuple(target for target in chosen if target.name in args.only)
    # A reader that takes memory on a file's word fails here, not the machine.
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) if os.path.exists("/proc") else 0
    if pages:
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, resource.RLIM_INFINITY))
    warnings.simplefilter("ignore")
    began, until = time.monotonic(), time.monotonic() + args.seconds
    found: dict[str, dict[str, Any]] = {}
    for place, target in enumerate(chosen):
        share = max(0.0, until - time.monotonic()) / (len(chosen) - place)
        found[target.name] = fuzz(target, seed=args.seed, examples=args.examples, seconds=share,
                                  kept=ROOT / "build" / "fuzz")
        told = found[target.name]
        print(f"{target.name:<28} {told['cases']:>7} cases, {told['accepted']:>6} accepted, "
              f"{told['refused']:>6} refused, {len(told['defects'])} defects")
    defects = sum(len(told["defects"]) for told in found.values())
    write_json(args.out, {
        "targets": found, "seed": args.seed, "cases": sum(told["cases"] for told in found.values()),
        "defects": defects, "seconds": round(time.monotonic() - began, 1),
        "environment": environment("cpu", "fp32"), "command": relative_command()})
    print(f"{defects} defects" + (": their files are in build/fuzz/" if defects else "") + f"; record: {args.out}",
          file=sys.stderr)
    return 1 if defects else 0


if __name__ == "__main__":
    exit_cleanly(main)
