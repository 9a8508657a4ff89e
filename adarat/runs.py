"""The runs behind AdaRAT's tables, what each is judged by, and what the tables show.  Imports no torch."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adarat.settings import DATASETS, METHODS, VARIANTS, Settings
from common.errors import UserError
from common.evaluation.plans import Evaluator, Plan
from common.runs import Column, Cost, Judgement, Row, Run, Table

SCRIPT_FOLDERS = {method: method.replace("-", "_") for method in METHODS}
FLAGS = {"plain": (), "fixrat": ("--FixRAT", "True"), "adarat": ("--FixRAT", "True", "--AdaRAT", "True")}
LABELS = {"plain": "{}", "fixrat": "{} + FixRAT", "adarat": "{} + AdaRAT"}
TEACHERS = (("PGD-AT", "plain"), ("ST", "plain"))


@dataclass(frozen=True)
class Budget:
    """How much of the paper's protocol a budget does.  None: all of it."""

    about: str
    seeds: tuple[int, ...] = (1,)
    epochs: int = 120
    n_train: int | None = None
    width: int | None = None
    n_epoch_test: int | None = None
    n_test: int | None = None
    n_autoattack: int | None = None
    more: tuple[str, ...] = ()
    gflop: float | None = None                 # of a forward and backward pass of one image, where not the paper's


BUDGETS = {
    "smoke": Budget("the digits (or 320 images of DATA), a small network, 2 epochs: shows that all parts work",
                    epochs=2, n_train=320, n_epoch_test=100, n_test=100, n_autoattack=20, gflop=0.002,
                    more=("--model", "small", "--augment", "False", "--precision", "fp32")),
    "short": Budget("5,000 images, ResNet-18 of width 16 (CIFAR-100 too), 10 epochs, schedule scaled: a CPU's evening",
                    seeds=(1, 2, 3), epochs=10, n_train=5000, width=16, n_epoch_test=500, n_test=1000,
                    n_autoattack=200, more=("--model", "resnet18"), gflop=0.22),
    "gpu": Budget("all images, the paper's network, 30 epochs, schedule scaled; AutoAttack on 1,000 images",
                  epochs=30, n_epoch_test=1000, n_autoattack=1000),
    "full": Budget("the paper's protocol"),
}
GFLOP = {"cifar10": 3.3, "cifar100": 31.0}     # forward and backward of one image: ResNet-18, WRN-34-10
DATA_SIZE = {"cifar10": 50_000, "cifar100": 50_000}
# Forward-and-backward passes per image: attack steps, then the passes of the loss.
PASSES = {"ST": 1.0, "PGD-AT": 9.0, "FAT": 9.0, "DAT": 10.0, "TRADES": 10.0, "KD-AT": 10.0, "IAD": 10.0,
          "Generalist": 10.0}


def run_name(method: str, variant: str, budget: str, seed: int) -> str:
    """pgd-at_short_s1, pgd-at-adarat_short_s1, ..."""
    suffix = "" if variant == "plain" else f"-{variant}"
    return f"{method.lower()}{suffix}_{budget}_s{seed}"


def default_plan(method: str) -> str:
    """What the final test measures."""
    return "paper-adarat"


def plan_named(name: str, settings: Settings, classes: int = 10) -> Plan:
    """The final test: clean, FGSM, PGD-10, PGD-20, PGD-50, CW-20, AutoAttack on all test images.

    `paper-adarat-N` uses the first N images, `paper-adarat-N-M` the first M of them for AutoAttack.  epsilon and step
    size are the run's.  Measuring quirks of the settings change what is measured and under which name.
    """
    match = re.fullmatch(r"paper-adarat(?:-(\d+)(?:-(\d+))?)?", name)
    if match is None:
        raise UserError(f"unknown plan {name!r}: give paper-adarat, paper-adarat-N (first N images) or "
                        "paper-adarat-N-M (AutoAttack on the first M)")
    n = int(match[1]) if match[1] else None
    n_autoattack = int(match[2]) if match[2] else n
    generalist = settings.method == "Generalist"
    eps = 8 / 255 if settings.method == "FAT" and "fat-test-eps" in settings.quirks else settings.epsilon
    shared = {"eps": eps, "step_size": settings.step_size, "n": n}
    if "aa-ten-steps" in settings.quirks and not generalist:
        last = Evaluator("torchattacks-AA 10 steps", "torchattacks-autoattack", eps=8 / 255, n=n_autoattack)
    else:
        last = Evaluator("AutoAttack", "autoattack", eps=eps, n=n_autoattack)
    return Plan(name, (
        Evaluator("clean", "clean", n=n), Evaluator("FGSM", "fgsm", eps=eps, n=n),
        *(Evaluator(f"PGD-{steps}", "pgd", steps=steps, **shared) for steps in (10, 20, 50)),
        Evaluator("CW-20", "cw", steps=20, **shared), last),
        chunk=100 if n_autoattack is not None and n_autoattack < 1000 else 500,
        test_crop="test-crop" in settings.quirks and settings.dataset == "cifar10" and not generalist)


def plan_of_run(name: str, run: Mapping[str, Any]) -> Plan:
    """The plan `name` for a run, given its run.json."""
    known = {key: value for key, value in run["config"].items() if key in Settings.__dataclass_fields__}
    known |= {"quirks": tuple(run["quirks"]), "model": run["model"]["name"]}
    return plan_named(name, Settings(**known), run["data"]["classes"])


def runs(*, dataset: str, budget: str, seeds: tuple[int, ...] | None = None, methods: tuple[str, ...] | None = None,
         data: str | None = None, data_dir: str | None = None, device: str | None = None) -> list[Run]:
    """The runs of `make reproduce-adarat-DATASET`, teachers first; see `common.runs`."""
    if dataset not in DATASETS:
        raise UserError(f"AdaRAT has no data set {dataset!r}: there are {', '.join(DATASETS)}")
    chosen = tuple(method_named(word) for word in methods) if methods else METHODS
    shape = BUDGETS[budget]
    found: list[Run] = []
    for seed in seeds or shape.seeds:
        wanted = [(method, variant) for method in METHODS if method in chosen
                  for variant in (VARIANTS[:1] if method == "ST" else VARIANTS)]
        if {"KD-AT", "IAD"} & set(chosen):
            wanted = [*(teacher for teacher in reversed(TEACHERS) if teacher not in wanted), *wanted]
        found += [one_run(method, variant, dataset, budget, shape, seed, data, data_dir, device)
                  for method, variant in wanted]
    return found


def one_run(method: str, variant: str, dataset: str, budget: str, shape: Budget, seed: int, data: str | None,
            data_dir: str | None, device: str | None) -> Run:
    """One training and its evaluation."""
    epoch_flag = "--epochs" if method == "Generalist" else "--epoch"
    argv = [*FLAGS[variant], "--seed", str(seed), "--budget", budget, epoch_flag, str(shape.epochs)]
    if shape.epochs != BUDGETS["full"].epochs:
        argv += ["--scale_schedule", "True"]
    for flag, value in (("--n_train", shape.n_train), ("--width", shape.width), ("--n_epoch_test", shape.n_epoch_test)):
        argv += [flag, str(value)] if value is not None else []
    argv += [*shape.more, *LIMITS.get((budget, variant, method), ()), "--final_test", "False"]
    where = ["--dataset_name", dataset]
    for flag, value in (("--data", data or ("digits" if budget == "smoke" else None)), ("--data_dir", data_dir),
                        ("--device", device)):
        where += [flag, value] if value else []
    images = (shape.n_train or DATA_SIZE[dataset]) * shape.epochs
    gflop = shape.gflop or GFLOP[dataset]
    plan = "-".join(["paper-adarat", *(str(n) for n in (shape.n_test, shape.n_autoattack) if n is not None)])
    if shape.n_test is None and shape.n_autoattack is not None:
        plan = f"paper-adarat-10000-{shape.n_autoattack}"
    tested, attacked = shape.n_test or 10_000, shape.n_autoattack or 10_000
    judgement = Judgement(plan=plan, place=tuple(where[2:]),
                          cost=Cost(images=1, passes=60.0 * tested + 1500.0 * attacked, gflop=gflop))
    needs = tuple(run_name(*teacher, budget, seed) for teacher in TEACHERS) if method in ("KD-AT", "IAD") else ()
    return Run(name=run_name(method, variant, budget, seed), method=method, variant=variant, budget=budget, seed=seed,
               script=f"adarat/train/{SCRIPT_FOLDERS[method]}/train_{dataset}.py", argv=tuple(argv),
               place=tuple(where), needs=needs, plans=() if method == "ST" else (judgement,),
               cost=Cost(images=images, passes=PASSES[method], gflop=gflop))


# Where a budget's network stays above the released ceilings, floor and ceiling of its own (see adarat/README.md).
LIMITS: dict[tuple[str, str, str], tuple[str, ...]] = {}


def method_named(word: str) -> str:
    """A method as the user spells it: PGD-AT, pgd_at, ..."""
    plain = {method.lower(): method for method in METHODS}
    name = word.lower().replace("_", "-")
    if name not in plain:
        raise UserError(f"unknown method {word!r}: there are {', '.join(METHODS)}")
    return plain[name]


TABLE = Table(
    title="AdaRAT",
    rows=tuple(Row(method=method, variant=variant, label=LABELS[variant].format(method),
                   reported=((method, variant),) if variant == "plain" else ())
               for method in METHODS for variant in (VARIANTS[:1] if method == "ST" else VARIANTS)),
    columns=tuple(Column(evaluator=name, title=name if name != "clean" else "clean") for name in
                  ("clean", "FGSM", "PGD-10", "PGD-20", "PGD-50", "CW-20", "AutoAttack")),
    compare=(("adarat", "plain"), ("fixrat", "plain"), ("adarat", "fixrat")),
    reported_file="adarat", reported_paper="AdaRAT",
    budget_notes={name: budget.about for name, budget in BUDGETS.items()})
