"""What eval_aa.py does: AutoAttack, or another plan, on one checkpoint.  torch is imported once the flags are right."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import commands
from common.environment import ROOT, portable
from common.errors import UserError, exit_cleanly
from common.evaluation.plans import Plan
from common.evaluation.searches import searched
from common.flags import Parser, add_search_flag, choose_quirks, count, name, number
from common.records import read_record
from dyart import flags, original
from dyart.original import Checkpoint
from dyart.plans import VERSIONS, attack_plan, eps_text, plan_named
from dyart.settings import QUIRKS, Settings

DOTS = "..."
USED = {"norm_attack", "eps_eval", "fname_input", "batch_size_for_eval", "train", "version", "search", "checkpoint",
        "n", "out", "data", "data_dir", "allow_subset", "device", "deterministic", "quirks", "seed", "plan", "weights",
        "spec"}
OF_A_FILE = {"model", "GroupNorm", "normalize", "width", "attack", "attack_eps", "attack_step"}


def parser() -> Parser:
    """The training's flags, as the original has them here too, and those of the evaluation."""
    parse = flags.parser()
    parse.prog, parse.description = "eval_aa.py", (
        "Evaluate a run with AutoAttack. A run knows its own training: flags of the training have no effect here, but "
        "for a checkpoint file without args.txt, whose network they describe. Flags of the evaluation always hold.")
    ours = parse.add_argument_group("evaluation")
    ours.add_argument(*flags.both("--norm_attack"), choices=("Linf", "L2"), default="Linf", help="norm of the attack")
    ours.add_argument(*flags.both("--eps_eval"), default=None, help="over 255 for Linf (8 means 8/255), as it is for "
                      "L2 (0.5); a fraction such as 8/255 means just that; several with commas; Linf: 8 if not given")
    ours.add_argument(*flags.both("--fname_input"), default=DOTS, help="a run's folder (results/dyart/<data set>/"
                      "<run>, weights/... too), a folder of the original repository, or a checkpoint file")
    ours.add_argument(*flags.both("--batch_size_for_eval"), type=count, default=None, help="images attacked together "
                      "(500, or 100 where there are fewer than 1000; the original: 1024); random numbers are drawn per "
                      "batch, so it is part of the measurement")
    ours.add_argument("--train", action="store_true", help="attack training images instead of test images")
    ours.add_argument("-v", "--version", choices=tuple(VERSIONS), default=None, help="standard (apgd-ce, apgd-t, "
                      "fab-t, square: AutoAttack), custom (no square: the original's default, here the measuring quirk "
                      "one-restart-aa, and not called AutoAttack), plus (six attacks, five restarts); if not given: "
                      "standard, or custom with --quirks one-restart-aa")
    add_search_flag(ours)
    ours.add_argument("--checkpoint", type=name, default=None, help="best, average, last, 10, ...; if not given: best "
                      "if there is one, else the average, else last")
    ours.add_argument("--n", type=count, default=None, help="the first N images (all, if not given)")
    ours.add_argument("--out", type=Path, default=None, help="of a checkpoint that is no run: write the record to this "
                      "file (if not given, the result is only printed)")
    return parse


def chosen_plan(args: argparse.Namespace, typed: dict[str, Any], settings: Settings) -> Plan:
    """The plan that the flags ask for."""
    quirks = choose_quirks(args.quirks, QUIRKS)
    if args.plan is not None:
        if args.train:
            raise UserError("--plan measures on test images: leave --train out, or give version, norm and eps instead",
                            code="E-FLAG-PAIR")
        said = sorted({"norm_attack", "eps_eval", "version", "n"} & typed.keys())
        if said:
            print(f"note: --plan {args.plan} says all; no effect: --{', --'.join(said)}", file=sys.stderr)
        plan = plan_named(args.plan, replace(settings, quirks=quirks) if "quirks" in typed else settings)
    else:
        norm = args.norm_attack.lower()
        version = args.version or ("custom" if "one-restart-aa" in quirks else "standard")
        plan = attack_plan(version, norm, asked_eps(norm, args.eps_eval), n=args.n, train=args.train)
    plan, chunk = searched(plan, args.search), args.batch_size_for_eval
    return plan if chunk in (None, plan.chunk) else replace(plan, chunk=chunk, name=f"{plan.name}-b{chunk}")


def asked_eps(norm: str, text: str | None) -> tuple[str, ...]:
    """--eps_eval as plans write it; UserError for what is no radius."""
    if text is None and norm == "l2":
        raise UserError("--norm_attack L2 needs --eps_eval: it is taken as it is, for images in [0,1], such as 0.5 or "
                        "128/255", code="E-FLAG-MISSING")
    found = []
    for word in (text or "8").split(","):
        try:
            value = number(word)
        except argparse.ArgumentTypeError as error:
            raise UserError(f"--eps_eval {error}", code="E-RADIUS") from error
        if norm == "linf" and "/" not in word:
            if 0 < value < 0.5:
                print(f"note: --eps_eval {word} with Linf means {word}/255, as in the original; for a radius of {word} "
                      f"of the whole range give {255 * value:g}", file=sys.stderr)
            value /= 255
        found.append(eps_text(norm, value))
    return tuple(found)


def evaluate_run(folder: Path, args: argparse.Namespace, typed: dict[str, Any]) -> None:
    """Evaluate a run of ours; the records go into its folder."""
    run = read_record(folder / "run.json", "run")
    if run["paper"] != "dyart":
        raise UserError(f"{portable(str(folder))} is a run of {run['paper']}: use python -m scripts.evaluate",
                        code="E-RUN-OTHER-SCRIPT")
    if args.out is not None:
        raise UserError("--out is for checkpoints that are no run of ours: a run's records go into its own folder",
                        code="E-FLAG-PAIR")
    if not (folder / "train.json").exists():
        raise UserError(f"{portable(str(folder))} is not trained to its end: resume it with bash dyart/scripts/"
                        f"resume.sh {portable(str(folder))}", code="E-NOT-TRAINED")
    kept = read_record(folder / "train.json", "train")["weights"]
    usual = next((word for word in ("best", "average", "last") if word in kept), "last")
    checkpoint = commands.chosen_checkpoint(run, kept, args.checkpoint, usual)
    settings = settings_of_run(run)
    plan = chosen_plan(args, typed, settings)
    seed = typed.get("seed", run["seed"])
    # Other weights and other seeds get records of their own.
    suffix = (f"-{checkpoint}" if checkpoint != usual else "") + (f"-s{seed}" if seed != run["seed"] else "")
    plan = replace(plan, name=(plan.name + suffix).lower())
    place_data(args, typed, run)
    commands.note_unused(typed, USED)

    from common.engine import Engine
    from common.verdicts import judge, print_results
    from dyart.inputs import load_images
    data = load_images(settings, args).data
    found, part = data.describe(), "train" if args.train else "test"
    if found[f"{part}_fingerprint"] != run["data"][f"{part}_fingerprint"]:
        raise UserError(f"{found['source']} is not what the run was trained on ({run['data']['source']}): its {part} "
                        "images have another fingerprint; name the right data with --data", code="E-RUN-DATA")
    root = Path(args.weights) if args.weights else folder.resolve().parents[3] / "weights"
    path = judge(folder=folder, weights=root / "dyart" / run["dataset"] / run["run"], plan=plan,
                 test=data.train if args.train else data.test, data=described(found, args.train),
                 engine=Engine.of_judge(args), checkpoint=checkpoint, seed=seed, spec=args.spec)
    print_results(path)


def settings_of_run(run: dict[str, Any]) -> Settings:
    """The settings of a run.json."""
    config = run["config"]
    known = {key: value for key, value in config.items() if key in Settings.__dataclass_fields__}
    return Settings(**known | {"data": config["data"]["protocol"], "model": config["model"]["name"],
                               "quirks": tuple(run["quirks"])})


def place_data(args: argparse.Namespace, typed: dict[str, Any], run: dict[str, Any]) -> None:
    """Let `args` name the run's data, unless --data does."""
    trained, _ = flags.parser().parse_known_args(commands.recorded_flags(run, "dyart/train.py") or [])
    args.allow_subset = args.allow_subset or trained.allow_subset
    args.data_dir = args.data_dir or (trained.data_dir and str(commands.found_at(trained.data_dir) or "")) or None
    if "data" not in typed:
        args.data = commands.found_data(trained.data or run["config"]["data"]["protocol"], run["data"]["source"])


def described(found: dict[str, Any], train: bool) -> dict[str, Any]:
    """What a record says of the images that were attacked."""
    if not train:
        return found
    return {**found, "test_fingerprint": found["train_fingerprint"], "n_test": found["n_train"],
            "source": f"{found['source']}; its training images attacked instead of the test images"}


def evaluate_file(checkpoint: Checkpoint, args: argparse.Namespace, typed: dict[str, Any]) -> None:
    """Evaluate a checkpoint that is no run of ours; print, and write --out."""
    settings = checkpoint.settings
    plan = chosen_plan(args, typed, settings)
    seed = typed.get("seed", settings.seed)
    if "data" not in typed:
        args.data = checkpoint.data
    commands.note_unused(typed, USED | {"width"} | (OF_A_FILE if checkpoint.by_flags else set()))

    from common.engine import Engine
    from dyart.inputs import describe_network, load_images
    data = load_images(settings, args).data
    results = commands.judge_file(checkpoint.file, model=describe_network(settings, data), told=checkpoint.told,
                                  plan=plan, test=data.train if args.train else data.test,
                                  data=described(data.describe(), args.train),
                                  engine=Engine.of_judge(args), seed=seed, out=args.out)
    commands.print_counts(results, args.out)


def run(argv: Sequence[str] | None = None) -> None:
    """What the command does; UserErrors for what the user can mend."""
    args, typed = commands.parse_typed(parser, argv)
    asked = args.fname_input
    if asked == DOTS:
        raise UserError("--fname_input: give the folder of a run (results/dyart/<data set>/<run>), a folder of the "
                        "original repository, or a checkpoint file", code="E-FLAG-MISSING")
    if not any(base.exists() for base in (Path(asked), ROOT / asked)):
        raise UserError(f"--fname_input {asked}: there is no such folder or file", code="E-CHECKPOINT-MISSING")
    # A file inside a run of ours, such as weights/dyart/cifar10/RUN/10.pt, is that run's checkpoint.
    inside = Path(asked).stem if asked.endswith(".pt") else None
    try:
        folder = commands.run_folder(str(Path(asked).parent) if inside else asked,
                                     commands.why_none(asked, "ResumeParameter.pth"))
    except UserError:
        found = original.find(asked, args.checkpoint, {**vars(args), "seed": typed.get("seed")})
        if found is None:
            raise
        return evaluate_file(found, args, typed)
    if inside:
        args.checkpoint = args.checkpoint or inside
    return evaluate_run(folder, args, typed)


def main(argv: Sequence[str] | None = None) -> None:
    """Run eval_aa.py as a command."""
    exit_cleanly(lambda: run(argv))
