"""Part 2's final test, and --eval: the best epoch of the average and its last one, or of the model, on test images."""

import argparse
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from common.commands import found_data, judge_file, print_counts, recorded_flags, run_folder
from common.data import DataSet
from common.engine import Engine
from common.environment import ROOT, portable
from common.errors import UserError
from common.evaluation import Plan
from common.records import read_record
from common.verdicts import judge, print_results
from rpat.settings import PART_TWO
from rpat.sota_flags import parser
from rpat.sota_inputs import data_spec, dataset_folder, describe_network, load_inputs, roots, run_name_of
from rpat.sota_plans import DEFAULT_PLAN, full_name, plan_named
from rpat.sota_settings import BEST, SCRIPTS, SotaSettings, settings_of_run

NO_BEST = "no best epoch is chosen: give --val (or --quirks default,test-selected, which chooses on the test images)"


def check_wanted(args: argparse.Namespace, chosen: bool) -> None:
    """UserErrors for flags of the evaluation that do not fit together; chosen: whether there is a best epoch."""
    if args.eval_last_only and args.eval_best_only:
        raise UserError("--eval-last-only and --eval-best-only exclude each other: give one, or neither for both",
                        code="E-FLAG-PAIR")
    if args.eval_best_only and not chosen:
        raise UserError(f"--eval-best-only: {NO_BEST}", code="E-FLAG-PAIR")


def wanted(args: argparse.Namespace, kept: Collection[str]) -> list[str]:
    """Names of the checkpoints to test, the last epoch's first; kept: those that the run has."""
    check_wanted(args, BEST["average"] in kept)
    last, best = ("last", BEST["model"]) if args.eval_online else ("average", BEST["average"])
    names = [*([] if args.eval_best_only else [last]), *([] if args.eval_last_only else [best])]
    if best in names and best not in kept:
        print(f"note: {NO_BEST}; the last epoch alone is tested")
    return [name for name in names if name in kept]


def final_test(folder: Path, weights: Path, settings: SotaSettings, args: argparse.Namespace, data: DataSet,
               engine: Engine) -> None:
    """Evaluate a finished run's checkpoints; each has a record of its own, whose plan's name ends as it is called."""
    if settings.epochs <= settings.warmup_epochs and not args.eval_online:
        print(f"note: the weight average begins after epoch {settings.warmup_epochs}, the run has {settings.epochs}: "
              "the average is the model")
    kept = read_record(folder / "train.json", "train")["weights"]
    for checkpoint in wanted(args, kept):
        plan = plan_of(args, settings, checkpoint, chosen=BEST["average"] in kept)
        path = judge(folder=folder, weights=weights, plan=plan, test=data.test, data=data.describe(), engine=engine,
                     checkpoint=checkpoint, seed=settings.seed, spec=args.spec)
        print_results(path)


def plan_of(args: argparse.Namespace, settings: SotaSettings, checkpoint: str, *, chosen: bool) -> Plan:
    """--plan, or the paper's, for one of the checkpoints of a run; chosen: whether it has a best one."""
    return plan_named(full_name(args.plan or DEFAULT_PLAN, settings.quirks, checkpoint, chosen=chosen), settings)


# -- --eval ----------------------------------------------------------------------------------------------------------

def test(settings: SotaSettings, args: argparse.Namespace) -> None:
    """Test a trained run: the one that the flags name, or with --load-folder another, or one of the original's."""
    check_wanted(args, True)
    engine = Engine.of_judge(args)
    if args.load_folder is None:
        results, weights = roots(args)
        place = Path("rpat", dataset_folder(settings, args), run_name_of(settings, args))
        folder, weights = results / place, weights / place
        if not (folder / "run.json").is_file():
            raise UserError(f"--eval: there is no run {portable(str(folder))}: train it first (the same command "
                            "without --eval), or name a folder with --load-folder", code="E-NO-RUN")
    elif (theirs := original_folder(args.load_folder)) is not None:
        return test_original(original_files(theirs, args, settings.epochs), settings, args, engine)
    else:
        folder = run_folder(args.load_folder).resolve()
        root = Path(args.weights) if args.weights else folder.parents[3] / "weights"
        weights = root / Path(*folder.parts[-3:])
    run = finished_run(folder)
    trained = settings_of_run(run["config"])
    if args.load_folder is None:
        check_same(settings, trained, run["run"], quirks=args.quirks != "default")
    elif args.data is None:
        place_data(args, run)
    if args.quirks != "default":
        trained = replace(trained, quirks=settings.quirks)
    data = load_inputs(trained, args).data
    if data.test.fingerprint != run["data"]["test_fingerprint"]:
        raise UserError(f"{data.source} is not what the run was trained on ({run['data']['source']}): its test images "
                        "have another fingerprint; name the right data with --data", code="E-RUN-DATA")
    return final_test(folder, weights, trained, args, data, engine)


def finished_run(folder: Path) -> dict[str, Any]:
    """The run.json of a run of part 2 that is trained to its end; else a UserError."""
    run = read_record(folder / "run.json", "run")
    if run["paper"] != "rpat" or run["method"] not in SCRIPTS:
        raise UserError(f"{portable(str(folder))} is no run of train_cifar_ra.py or train_cifar_wa.py: it was made "
                        f"with {run['command']}", code="E-RUN-OTHER-SCRIPT")
    if not (folder / "train.json").exists():
        raise UserError(f"{run['run']} is not trained to its end: type its command again, and it goes on: "
                        f"{run['command']}", code="E-NOT-TRAINED")
    return run


def check_same(typed: SotaSettings, trained: SotaSettings, run: str, *, quirks: bool) -> None:
    """A UserError where the flags are not those of the training; quirks: whether the training ones are compared."""
    theirs, ours = trained.config(), typed.config()
    for config in (theirs, ours):
        config["quirks"] = [quirk for quirk in config["quirks"] if quirks and PART_TWO[quirk] == "training"]
    names = sorted(key for key in theirs.keys() | ours.keys() if theirs.get(key) != ours.get(key))
    if names:
        shown = "; ".join(f"{key} {theirs.get(key, 'unset')!r}, not {ours.get(key, 'unset')!r}" for key in names[:4])
        raise UserError(f"--eval: {run} was trained with {shown}: give the flags of its training, or name it with "
                        "--load-folder, which takes them from its record", code="E-RUN-OTHER-CONFIG")


def place_data(args: argparse.Namespace, run: Mapping[str, Any]) -> None:
    """Let `args` name the data that the run was trained on."""
    words = recorded_flags(run, SCRIPTS[run["method"]])
    args.data = run["config"]["data"]["protocol"]
    if words is not None:
        typed = parser(run["method"]).parse_args(words)
        args.data = found_data(data_spec(typed), run["data"]["source"])


# -- folders of the original repository ------------------------------------------------------------------------------

def original_folder(text: str) -> Path | None:
    """The folder of the original's, seen from here or from the repository root, that --load-folder names, or None."""
    return next((base for base in (Path(text), ROOT / text) if any(base.glob("*model_*.pth"))), None)


def original_files(folder: Path, args: argparse.Namespace, epochs: int) -> dict[str, Path]:
    """{"last", "best": file}, as the flags ask.

    Without wa_model_{E-1}.pth, which is not written before the average begins, the average is the model.
    """
    prefix, found = "" if args.eval_online else "wa_", {}
    if not args.eval_best_only:
        found["last"], model = folder / f"{prefix}model_{epochs - 1}.pth", folder / f"model_{epochs - 1}.pth"
        if not found["last"].is_file() and model.is_file():
            print(f"note: there is no {found['last'].name}, so the average had not begun: {model.name} is tested")
            found["last"] = model
    if not args.eval_last_only:
        found["best"] = folder / f"{prefix}model_best.pth"
    for path in found.values():
        if not path.is_file():
            there = ", ".join(sorted(entry.name for entry in folder.glob("*model_*.pth")))
            raise UserError(f"{portable(str(folder))} has no {path.name}; there are {there}: --epochs says which is "
                            "the last, --eval-last-only or --eval-best-only leaves one out",
                            code="E-CHECKPOINT-MISSING")
    return found


def test_original(files: Mapping[str, Path], settings: SotaSettings, args: argparse.Namespace, engine: Engine) -> None:
    """Test checkpoints of the original repository and print what comes out; nothing is written."""
    data = load_inputs(settings, args).data
    for word, path in files.items():
        print(f"{word}:")
        results = judge_file(path, model=describe_network(settings, data), told="the flags",
                             plan=plan_of(args, settings, "average", chosen=False), test=data.test,
                             data=data.describe(), engine=engine, seed=settings.seed)
        print_counts(results, None)
