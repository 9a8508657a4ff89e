"""Our way against the originals' way, measured in one process, round by round: make bench, or python -m scripts.bench

Rows come from the parts: adarat/bench.py (PGD-AT, TRADES, Generalist), rpat/bench.py (RPAT, Consistency-AT, ReBAT,
RPAT++), dyart/bench.py, brainreg/bench.py, common/bench_autoattack.py, common/bench_pipeline.py; each says how its
original does it and where that was read.  common/bench_check.py shows the check of the attacks' fast path.  --grow
measures instead how the cost of a PGD-AT step grows (adarat/bench_grow.py).

A round times a block of each way and a big matrix product, one after the other; the ratio is that of the median images
per second.  Useful operations: 2 per multiply-add of convolutions and linear layers, products with zero padding left
out, weight gradients only where they are used; a step of N attack steps is N*2 + 3 forward passes' worth, and more
where a method passes more often.
"""

import os
import re
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from adarat import bench as adarat_bench
from adarat import bench_grow
from brainreg import bench as brainreg_bench
from common import bench_autoattack, bench_check, bench_pipeline, bench_step, models
from common.benchmark import HEADER, cells, forward_operations, padded, sentence
from common.engine import Engine
from common.environment import begin, environment, relative_command
from common.errors import UserError, exit_cleanly
from common.files import write_json, write_text
from common.flags import Parser, count
from common.render import Grid, markdown
from dyart import bench as dyart_bench
from rpat import bench as rpat_bench

PARTS = {"adarat": adarat_bench, "rpat": rpat_bench, "dyart": dyart_bench, "brainreg": brainreg_bench,
         "autoattack": bench_autoattack, "pipeline": bench_pipeline}
ROWS = {name: part for part, module in PARTS.items() for name in module.ROWS}         # row -> its part


def chosen(only: Sequence[str]) -> tuple[list[str], bool]:
    """(rows, whether the check is shown) of names of rows and parts; all of none.  UserError for another name."""
    for name in only:
        if name not in (*PARTS, *ROWS, "check"):
            raise UserError(f"--only {name}: there is no such part or row; parts: {', '.join(PARTS)}, check; rows: "
                            f"{', '.join(ROWS)}", code="E-FLAG-VALUE")
    wanted = [name for name, part in ROWS.items() if not only or name in only or part in only]
    return wanted, not only or "check" in only


def settings_of(args: Namespace, engine: Engine) -> dict[str, Any]:
    """What each part measures, with what was asked for."""
    on_cpu, quick = engine.device.type == "cpu", args.quick
    batch = args.batch or (16 if quick and on_cpu else 128)
    shared = {"rounds": args.rounds or (2 if quick else 5), "matrix": 2048 if on_cpu else 8192,
              "limit": None if args.rounds else 4 if quick else 40 if on_cpu else 60}
    network = {"model": args.model, "width": args.width}
    step = bench_step.Settings(**shared, **network, batch=batch, block=1 if on_cpu else 5,
                               images=10_000 if quick else 50_000)
    small = {"images": 16, "iterations": 2, "queries": 50}
    usual = {} if on_cpu else {"images": 250, "model": "resnet18"}
    return {
        "adarat": step, "rpat": step,
        "dyart": dyart_bench.Settings(**shared, **network, batch=batch, iterations=6 if quick else 20,
                                      learn=8 if quick else 15, projections=2 if on_cpu else 20),
        "brainreg": brainreg_bench.Settings(**shared, batch=args.batch or 64, block=1 if on_cpu else 5),
        "autoattack": bench_autoattack.Settings(rounds=shared["rounds"], limit=shared["limit"],
                                                **(small if quick else usual)),
        "pipeline": bench_pipeline.Settings(rounds=shared["rounds"], limit=shared["limit"], images=step.images,
                                            loads=15 if quick else 40)}


def measure(settings: dict[str, Any], engine: Engine, names: Sequence[str], check: bool,
            say: Callable[[str], None] = print) -> dict[str, Any]:
    """The rows of these names, with every timing, and the check's lines.  `say` gets a line as each row is done."""
    started, rows, step = time.perf_counter(), [], settings["adarat"]
    for name in names:
        for row in PARTS[ROWS[name]].ROWS[name](settings[ROWS[name]], engine):
            rows.append(row | {"part": ROWS[name]})
            say(sentence(row))
    checks = bench_check.measure(bench_step.network(step), engine, say) if check else []
    return {"rows": rows, "checks": checks, "seconds": time.perf_counter() - started,
            "forward_operations_per_image": forward_operations(bench_step.network(step), step.size)}


def table(record: dict[str, Any]) -> Grid:
    """The table of speeds, and what one must know to read it."""
    where, rows = record["environment"], record["rows"]
    notes = ["images per second: median (min to max) over the rounds; ratio: of the medians (min to max of the rounds)",
             *surroundings(record),
             "originals: float32 (torch's default: TF32 in CUDA's convolutions); the same network in all rows but "
             "brainreg's and AutoAttack's"]
    shared = [row for row in rows if "matrix_seconds" in row]
    if shared:
        size = record["settings"]["adarat"]["matrix"]
        rates = [row["matrix_operations_per_second"] / 1e9 for row in shared]
        notes.append(f"share: useful operations (zero padding and weight gradients of an attack left out) per second, "
                     f"of the {min(rates):,.0f} to {max(rates):,.0f} GFLOP/s of a {where['precision']} product of "
                     f"{size} x {size} in the same rounds; a forward pass of the network takes "
                     f"{record['forward_operations_per_image'] / 1e9:.3f} GFLOP")
    notes.append("memory: peak of tensors beyond what lay there before the block"
                 + (", of a step with one attack step, listed by the profiler" if on_cpu(record) else "")
                 + "; images: random bytes, but for AutoAttack's")
    for part, module in PARTS.items():
        if own := [row for row in rows if row["part"] == part]:
            notes += module.notes(record["settings"][part], own)
    return padded(HEADER, [cells(row) for row in rows], f"Speed of {record['settings']['adarat']['model']} on "
                  f"{where['device']}", notes)


def on_cpu(record: dict[str, Any]) -> bool:
    return record["environment"]["engine"]["device"] == "cpu"


def allocator() -> list[str]:
    """The variables of the environment that change how memory is allocated on a CPU."""
    return sorted(name for name in os.environ if name.startswith(("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")))


def surroundings(record: dict[str, Any]) -> list[str]:
    """Machine, engine, allocator and what disturbed."""
    where = record["environment"]
    engine, load = where["engine"], where["load_average"]
    said = [f"{where['device']}; {where['threads']} threads; torch {where['torch']}; {where['started']}; "
            f"`{record['command']}`; {record['seconds'] / 60:.0f} minutes",
            f"ours: {engine['precision']}{', channels-last' * engine['channels_last']}"
            f"{', attacks on copies of the weights (folded in eval mode)' * engine['fast_attacks']}"
            + "".join(f", {name}" for name in engine.get("speedups", ()))]
    if on_cpu(record):
        tuned = where["allocator"]
        said.append("memory allocator: " + (f"changed by {', '.join(tuned)}, for both" if tuned else
                    "glibc's default for both, which gives blocks over 32 MiB back to the system at each free: page "
                    "faults cost large float32 batches more than bf16 ones"))
    said += engine["notes"]
    if load is not None and load > 0.3:
        said.append(f"other work ran here (load average {load:.1f} before the start): the figures are disturbed")
    return said


def tables(record: dict[str, Any]) -> list[Grid]:
    """The table of speeds and that of the check, whichever was measured; or those of growth."""
    if "growth" in record:
        return bench_grow.tables(record["growth"], surroundings(record))
    return [table(record)] * bool(record["rows"]) + [
        bench_check.table(record["checks"], record["settings"]["adarat"]["model"])] * bool(record["checks"])


def main(argv: list[str] | None = None) -> int:
    parse = Parser(prog="python -m scripts.bench", description=__doc__.splitlines()[0])
    parse.add_argument("--quick", action="store_true", help="some minutes on 2 cores: batch 16, two rounds, shorter")
    parse.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    parse.add_argument("--batch", type=count, help="images per step; by default 128 (brainreg 64), quick 16 on a CPU")
    parse.add_argument("--rounds", type=count,
                       help="without a time limit; by default 2 to 5, as many as 40 seconds a row allow (GPU: 60)")
    parse.add_argument("--only", nargs="+", default=[], metavar="NAME",
                       help=f"some parts ({', '.join(PARTS)}, check) or rows ({', '.join(ROWS)}) only")
    parse.add_argument("--grow", action="store_true",
                       help="instead: cost over batch, attack steps, width, image size, GPUs; a table and a figure")
    parse.add_argument("--model", default="resnet18", help="see common/models")
    parse.add_argument("--width", type=count, help="channels of its first stage")
    parse.add_argument("--speedups", default="auto", help="graphs, compile, both with a comma, none, auto (graphs on "
                       "CUDA): what ours may use")
    parse.add_argument("--out", type=Path, default=Path("results/bench"), help="folder of the records")
    args = parse.parse_args(argv)
    if args.grow and args.only:
        raise UserError("--grow measures a PGD-AT step alone: leave --only out", code="E-FLAG-PAIR")
    begin()
    models.build(args.model, classes=10, width=args.width)                      # refuses an unknown one at once
    names, check = chosen(args.only)
    engine = Engine.choose(args.device, speedups=args.speedups)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    settings, started, say = settings_of(args, engine), time.perf_counter(), lambda line: print(line, flush=True)
    if args.grow:
        growth = bench_grow.measure(settings["adarat"], engine, args.quick, say)
        found = {"growth": growth, "seconds": time.perf_counter() - started}
    else:
        found = measure(settings, engine, names, check, say)
    says = engine.describe()
    record = {"schema": 2, "settings": {name: asdict(part) for name, part in settings.items()},
              "command": relative_command(argv and ["bench", *argv], module="scripts.bench"),
              "environment": {**environment(says["device_name"], engine.precision, says["torch_threads"]),
                              "engine": says, "load_average": load, "allocator": allocator()}, **found}
    stem, text = str(args.out / record_name(record, args)), markdown(tables(record))
    write_json(Path(stem + ".json"), record)
    write_text(Path(stem + ".md"), text)
    if args.grow:
        bench_grow.draw(record["growth"], says["device_name"], Path(stem + ".png"))
    print(f"\n{text}\nwritten to {stem}.json and .md{' and .png' * args.grow}")
    return 0


def record_name(record: dict[str, Any], args: Namespace) -> str:
    """<machine>-<yyyymmdd>, and the flags that were not the default: a small try must not replace the day's record."""
    where = record["environment"]
    parts = [re.sub(r"[^a-z0-9]+", "-", where["device"].lower()).strip("-"), where["started"][:10].replace("-", "")]
    parts += ["grow"] * args.grow + ["quick"] * args.quick + args.only + [args.model] * (args.model != "resnet18")
    parts += [args.speedups.replace(",", "-")] * (args.speedups != "auto")
    parts += [f"{flag}{value}" for flag, value in (("w", args.width), ("b", args.batch)) if value]
    return "-".join(parts)


if __name__ == "__main__":
    exit_cleanly(main)
