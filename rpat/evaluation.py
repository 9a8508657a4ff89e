"""What part 1's eval.py does: one --mode on one checkpoint.  torch is imported once the flags are right."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from common import commands
from common.environment import ROOT, portable
from common.errors import UserError, exit_cleanly
from common.evaluation import corruptions
from common.evaluation.plans import Plan
from common.evaluation.searches import searched
from common.flags import Parser, add_search_flag, choose_quirks, count, name
from common.records import EvalRecord, read_record
from rpat import flags
from rpat.plans import MODES, mode_name, plan_named, settings_of_run
from rpat.settings import DATASETS, NORMS, PART_ONE, Settings, threat

THREAT = {"distance", "epsilon", "alpha", "n_iters", "adv_method"}
USED = {"mode", "search", "load_path", "test_batch_size", "weak", "checkpoint", "n", "out", "corruptions", "dataset",
        "data", "data_dir", "allow_subset", "device", "deterministic", "quirks", "seed", "plan", "weights",
        "spec"} | THREAT
OF_A_FILE = {"model", "width"}
SETS = {"cifar10": "CIFAR-10-C", "cifar100": "CIFAR-100-C"}
Results = Sequence[Mapping[str, Any]]


def parser() -> Parser:
    """The training's flags, as the original has them here too, and those of the evaluation."""
    parse = flags.parser()
    parse.prog, parse.description = "eval.py", (
        "Evaluate a checkpoint. A run knows its own training: flags of the training have no effect on it, but for a "
        "file of weights they say which network it is (--model, --dataset). Flags of the evaluation always hold.")
    ours = parse.add_argument_group("evaluation")
    add_search_flag(ours)
    ours.add_argument("--checkpoint", type=name, default=None, help="of a run: best, last, 24, ...; if not given best "
                      "if there is one, else last")
    ours.add_argument("--n", type=count, default=None, help="the first N images (100 for test_cw_attack, "
                      "test_boundary_attack and test_hopskipjump_attack if not given, else all)")
    ours.add_argument("--corruptions", type=Path, default=None, help="test_mce: the folder CIFAR-10-C or CIFAR-100-C; "
                      "if not given it is looked for here and in the folder of data sets; without it our own "
                      "corruptions are measured, under their own name")
    ours.add_argument("--out", type=Path, default=None, help="of a checkpoint that is no run: write the record to this "
                      "file (if not given, the result is only printed)")
    parse.set_defaults(mode=None)
    return parse


def run(argv: Sequence[str] | None = None) -> None:
    """What the command does; UserErrors for what the user can mend."""
    args, typed = commands.parse_typed(parser, argv)
    check_mode(args)
    asked = args.load_path
    if asked is None:
        raise UserError("--load_path must be given: a run's folder (results/rpat/<data set>/<run>) or a file of "
                        "weights", code="E-FLAG-MISSING")
    if not any(base.exists() for base in (Path(asked), ROOT / asked)):
        raise UserError(f"--load_path {asked}: there is no such folder or file", code="E-CHECKPOINT-MISSING")
    # A file inside a run of ours, such as weights/rpat/cifar10/RUN/24.pt, is that run's checkpoint.
    inside = Path(asked).stem if asked.endswith(".pt") else None
    file = next((base for base in (Path(asked), ROOT / asked) if base.is_file()), None)
    try:
        folder = commands.run_folder(str(Path(asked).parent) if inside else asked,
                                     commands.why_none(asked, "last.model") + "; of the original's folders name a "
                                     "file, such as best.model")
    except UserError:
        if file is None:
            raise
        return evaluate_file(file, args, typed)
    if inside:
        args.checkpoint = args.checkpoint or inside
    return evaluate_run(folder, args, typed)


def check_mode(args: argparse.Namespace) -> None:
    """A UserError unless --mode is one of eval.py's that can be run."""
    if args.mode is None:
        raise UserError(f"--mode must be given: {', '.join([*MODES, 'test_mce'])}", code="E-FLAG-MISSING")
    if args.mode == "test_zoo_attack":
        raise UserError("--mode test_zoo_attack: the released code has no code for it, and neither has ours: give "
                        "test_boundary_attack or test_hopskipjump_attack", code="E-FLAG-VALUE")
    if args.mode not in (*MODES, "test_mce"):
        raise UserError(f"--mode {args.mode} is for train.py; eval.py has {', '.join([*MODES, 'test_mce'])}",
                        code="E-FLAG-VALUE")


def evaluate_run(folder: Path, args: argparse.Namespace, typed: Mapping[str, Any]) -> None:
    """Evaluate a run of ours; the records go into its folder."""
    record = read_record(folder / "run.json", "run")
    shown = portable(str(folder))
    if record["paper"] != "rpat" or "mode" not in record["config"]:
        raise UserError(f"{shown} is no run of {flags.SCRIPT}: it was made with {record['command']}; evaluate it with "
                        f"python -m scripts.evaluate {shown} --plan ...", code="E-RUN-OTHER-SCRIPT")
    if args.out is not None:
        raise UserError("--out is for checkpoints that are no run of ours: a run's records go into its own folder",
                        code="E-FLAG-PAIR")
    if not (folder / "train.json").exists():
        raise UserError(f"{shown} is not trained to its end: go on with it: python {flags.SCRIPT} --resume_path "
                        f"{shown}", code="E-NOT-TRAINED")
    kept = read_record(folder / "train.json", "train")["weights"]
    usual = "best" if "best" in kept else "last"
    checkpoint = commands.chosen_checkpoint(record, kept, args.checkpoint, usual)
    trained = settings_of_run(record)
    settings = attacked(trained, args, typed)
    seed = typed.get("seed", record["seed"])
    place_data(args, typed, record)
    commands.note_unused(typed, USED)

    from common.engine import Engine
    from common.verdicts import judge
    from rpat.training import load_images
    data = load_images(trained, args).data
    found = data.describe()
    if found["test_fingerprint"] != record["data"]["test_fingerprint"]:
        raise UserError(f"{found['source']} is not what the run was trained on ({record['data']['source']}): its test "
                        "images have another fingerprint; name the right data with --data", code="E-RUN-DATA")
    plan, files = planned(args, typed, settings, trained, data.image_shape[0])
    # Other weights and other seeds get records of their own.
    suffix = (f"-{checkpoint}" if checkpoint != usual else "") + (f"-s{seed}" if seed != record["seed"] else "")
    plan = replace(plan, name=(plan.name + suffix).lower())
    root = Path(args.weights) if args.weights else folder.resolve().parents[3] / "weights"
    path = judge(folder=folder, weights=root / "rpat" / record["dataset"] / record["run"], plan=plan, test=data.test,
                 data=found, engine=Engine.of_judge(args), checkpoint=checkpoint, seed=seed,
                 spec=args.spec, corrupted=files)
    written = EvalRecord(path, read_record(path, "eval"))
    print(f"{record['run']}, {plan.name}, {checkpoint} weights:")
    show(written.record["results"], {one: written.numbers(one) for one in written.results}, args)
    print(f"records: {portable(str(path.parent))}")


def evaluate_file(file: Path, args: argparse.Namespace, typed: Mapping[str, Any]) -> None:
    """Evaluate a file of weights that is no run's; print, and write --out."""
    settings = replace(flags.threatened(args), mode="adv_train")
    commands.note_unused(typed, USED | OF_A_FILE)

    from common.engine import Engine
    from common.evaluation import result_json
    from rpat.training import describe_network, load_images
    data = load_images(settings, args).data
    plan, files = planned(args, typed, settings, settings, data.image_shape[0])
    results = commands.judge_file(file, model=describe_network(settings, data), told="the flags", plan=plan,
                                  test=data.test, data=data.describe(), engine=Engine.of_judge(args),
                                  seed=settings.seed, out=args.out, corrupted=files)
    show([result_json(result) for result in results], {result.name: result.arrays for result in results}, args)
    if args.out is not None:
        print(f"record: {portable(str(args.out))}")


def attacked(trained: Settings, args: argparse.Namespace, typed: Mapping[str, Any]) -> Settings:
    """The settings of a run with the attack that was typed; what is not typed is the run's own, in another norm that
    norm's."""
    distance = typed.get("distance", trained.distance)
    for flag in ("epsilon", "alpha"):
        flags.check_size(f"--{flag}", typed.get(flag), distance)
    if distance == trained.distance:
        sizes = typed.get("epsilon", trained.epsilon), typed.get("alpha", trained.alpha)
    else:
        sizes = threat(NORMS[distance], typed.get("epsilon"), typed.get("alpha"))
    return replace(trained, distance=distance, epsilon=sizes[0], alpha=sizes[1], adv_method=args.adv_method,
                   n_iters=typed.get("n_iters", trained.n_iters))


def place_data(args: argparse.Namespace, typed: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """Let `args` name the run's data, unless --data does; UserError for another --dataset."""
    trained, _ = flags.parser().parse_known_args(commands.recorded_flags(record, flags.SCRIPT) or [])
    args.allow_subset = args.allow_subset or trained.allow_subset
    args.data_dir = args.data_dir or (trained.data_dir and str(commands.found_at(trained.data_dir) or "")) or None
    own = record["config"]["data"]["protocol"]
    if "dataset" in typed and flags.protocol(args) != own:
        raise UserError(f"--dataset {args.dataset}: {record['run']} was trained on {own}", code="E-RUN-DATA")
    if "data" not in typed:
        spec = trained.data or DATASETS.get(trained.dataset, trained.dataset) or own
        args.data = commands.found_data(spec, record["data"]["source"])


def planned(args: argparse.Namespace, typed: Mapping[str, Any], settings: Settings, usual: Settings, channels: int
            ) -> tuple[Plan, Any]:
    """The plan that the flags ask for, and the files of corrupted images that it needs, if any."""
    if args.plan is not None:
        raise UserError(f"--plan {args.plan}: eval.py goes by --mode; a plan is measured by python -m scripts.evaluate",
                        code="E-FLAG-PAIR")
    if args.corruptions is not None and args.mode != "test_mce":
        raise UserError(f"--corruptions is for test_mce, not for {args.mode}", code="E-FLAG-PAIR")
    if args.weak is not None and args.mode != "test_adv_acc_weak":
        raise UserError(f"--weak is for test_adv_acc_weak, not for {args.mode}", code="E-FLAG-PAIR")
    if settings.adv_method == "fgsm" and settings.norm == "l1":
        raise UserError("--adv_method fgsm has Linf and L2 only, not L1: give pgd", code="E-NORM")
    if args.mode == "test_boundary_attack" and settings.norm == "linf":
        print("note: the boundary attack searches in L2, and is counted within L2's 128/255; --distance L2 --epsilon E "
              "names another radius")
    files = None
    if args.mode == "test_mce":
        files = corruption_files(args, usual.dataset)
        plan = corruptions.file_plan(files, n=args.n) if files else corruptions.own_plan(channels, n=args.n)
    else:
        plan = plan_named(mode_name(args.mode, settings, usual, weak=args.weak, n=args.n), usual)
    plan, chunk = searched(plan, args.search), typed.get("test_batch_size", plan.chunk)
    return (plan, files) if chunk == plan.chunk else (replace(plan, chunk=chunk, name=f"{plan.name}-b{chunk}"), files)


def corruption_files(args: argparse.Namespace, dataset: str) -> Any:
    """The files of --corruptions, or those found here or where the data sets lie; None where there are none."""
    if args.corruptions is not None:
        return corruptions.open_files(args.corruptions)
    places = (Path(), Path(args.data_dir or ROOT / "data"))
    if dataset in SETS:
        for place in places:
            if (place / SETS[dataset]).is_dir():
                return corruptions.open_files(place / SETS[dataset])
    print(f"note: there are no files of corrupted images ({SETS.get(dataset, 'for this data set')}): our own "
          "corruptions are measured instead, which are others; name the folder with --corruptions")
    return None


def show(results: Results, arrays: Mapping[str, Mapping[str, np.ndarray]], args: argparse.Namespace) -> None:
    """Print what a mode found, from the results of a record and their numbers per image."""
    if args.mode == "test_mce":
        for corruption, error in corruptions.errors(results).items():
            print(f"  {corruption:<18} {100 * error:6.2f} % errors")
        title, mean = corruptions.mean_error(results)
        print(f"  {title}: {100 * mean:.2f} %")
        return
    for result in results:
        values = result.get("values", {})
        if "perception" in result["kind"]:
            for group, of_group in values.items():
                means = {pair: total / of_group["n"] for pair, total in of_group["sum"].items() if of_group["n"]}
                print(f"  {group:<8} ({of_group['n']} images) " + (", ".join(f"{pair} {mean:.6f}" for pair, mean in
                                                                             means.items()) or "no images"))
            if "mse-batch-means" in choose_quirks(args.quirks, PART_ONE):
                batch_means(arrays[result["name"]], args.test_batch_size)
            continue
        print(f"  {result['name']:<14} {100 * result['robust'] / result['n']:6.2f} %  ({result['robust']} of "
              f"{result['n']} images)")
        if "correct_unbounded" in values:
            print(f"  at the search's end, at any distance: {100 * values['correct_unbounded'] / result['n']:.2f} %; "
                  f"found {values['found']} of {values['attacked']}, median distance "
                  + (f"{values['distance']['median']:.4f} ({result['norm']})" if values["distance"] else "none"))


def batch_means(found: Mapping[str, np.ndarray], size: int) -> None:
    """Print perception's means as the released code takes them (quirk mse-batch-means)."""
    import torch

    from rpat.perception import PAIRS, Distances, consistency
    values = torch.from_numpy(np.stack([found[pair] for pair in PAIRS], 1))
    batches = map(Distances, values.split(size), torch.from_numpy(found["defended"] == 1).split(size))
    for group, pairs in consistency(batches, batch_means=True).items():
        print(f"  {group:<8} as released, in batches of {size}: "
              + ", ".join(f"{pair} {mean:.6f}" for pair, mean in pairs.items()))


def main(argv: Sequence[str] | None = None) -> None:
    """Run eval.py as a command."""
    exit_cleanly(lambda: run(argv))
