"""The runs behind AdaRAT's tables, what each is judged by, and what the tables show.  Imports no torch."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adarat.runs_cost import effort_of_run as effort_of_run
from adarat.runs_cost import passes
from adarat.settings import DATASETS, METHODS, VARIANTS, Settings
from common import board
from common.errors import UserError
from common.evaluation.plans import Evaluator, Plan
from common.evaluation.searches import searchable
from common.runs import Column, Cost, Judgement, Row, Run, Table

DEFAULT_PLAN = "paper-adarat"                # what the final test measures
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
    methods: tuple[str, ...] = METHODS         # unless METHODS= names some
    variants: tuple[str, ...] = VARIANTS
    more: tuple[str, ...] = ()
    # Floor and ceiling of AdaRAT: the released ones (None), given ones (ceiling, floor), or "base": by the rule of
    # adarat/limits.py from the base run's clean training loss, where the network never comes near the released ones.
    limits: tuple[str, str] | str | None = None
    gflop: float | None = None                 # of a forward and backward pass of one image, where not the paper's


BUDGETS = {
    "quick": Budget("scikit-learn's digits, a small network, 20 epochs, eps 0.1; floor and ceiling chosen on 20% of "
                    "the training digits (results/adarat/limits-digits-quick.json)",
                    epochs=20, n_autoattack=200, methods=("PGD-AT",), variants=("plain", "adarat"),
                    limits=("1.6", "0.028"), gflop=0.002,
                    more=("--model", "small", "--augment", "False", "--precision", "fp32", "--epsilon", "0.1",
                          "--step_size", "0.025")),
    "smoke": Budget("the digits (or 320 images of DATA), a small network, 2 epochs: shows that all parts work",
                    epochs=2, n_train=320, n_epoch_test=100, n_test=100, n_autoattack=20, gflop=0.002, limits="base",
                    more=("--model", "small", "--augment", "False", "--precision", "fp32")),
    "short": Budget("5,000 images, ResNet-18 of width 16 (CIFAR-100 too), 10 epochs, schedule scaled, floor and "
                    "ceiling by the base run's clean training loss: a CPU's evening; PGD-AT unless METHODS says more",
                    seeds=(1, 2, 3), methods=("PGD-AT",), epochs=10, n_train=5000, width=16, n_epoch_test=500,
                    n_test=1000, n_autoattack=200, more=("--model", "resnet18"), limits="base", gflop=0.22),
    board.BUDGET: Budget(board.ABOUT, epochs=board.EPOCHS, n_train=board.N_TRAIN, width=board.WIDTH,
                         n_epoch_test=board.N_EPOCH_TEST, n_test=board.N_TEST, n_autoattack=board.N_AUTOATTACK,
                         limits="base", gflop=board.GFLOP,
                         more=("--model", board.MODEL)),       # batches of 128 are the released ones
    "gpu": Budget("all images, the paper's network, 30 epochs, schedule scaled; AutoAttack on 1,000 images",
                  epochs=30, n_epoch_test=1000, n_autoattack=1000),
    "full": Budget("the paper's protocol"),
}
GFLOP = {"cifar10": 3.3, "cifar100": 31.0}     # forward and backward of one image: ResNet-18, WRN-34-10
DATA_SIZE = {"cifar10": 50_000, "cifar100": 50_000, "digits": 1_397}
TEST_SIZE = {"cifar10": 10_000, "cifar100": 10_000, "digits": 400}


def run_name(method: str, variant: str, budget: str, seed: int) -> str:
    """pgd-at_short_s1, pgd-at-adarat_short_s1, ..."""
    suffix = "" if variant == "plain" else f"-{variant}"
    return f"{method.lower()}{suffix}_{budget}_s{seed}"


@searchable
def plan_named(name: str, settings: Settings) -> Plan:
    """The final test: clean, FGSM, PGD-10, PGD-20, PGD-50, CW-20, AutoAttack on all test images.

    `paper-adarat-N` uses the first N images, `paper-adarat-N-M` the first M of them for AutoAttack.  epsilon and step
    size are the run's.  Measuring quirks of the settings change what is measured and under which name.  A name that
    ends in -fast or -fast-float32 has AutoAttack by another search (common.evaluation.searches).
    """
    match = re.fullmatch(r"paper-adarat(?:-(\d+)(?:-(\d+))?)?", name)
    if match is None:
        raise UserError(f"unknown plan {name!r}: give paper-adarat, paper-adarat-N (first N images) or "
                        "paper-adarat-N-M (AutoAttack on the first M)", code="E-PLAN")
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
    return plan_named(name, Settings(**known))


def plan_by_default(name: str) -> Plan:
    """The plan `name` for a network that is no run of ours, by the released settings: PGD-AT on CIFAR-10."""
    return plan_named(name, Settings(method="PGD-AT", dataset="cifar10"))


def runs(*, dataset: str, budget: str, seeds: tuple[int, ...] | None = None, methods: tuple[str, ...] | None = None,
         data: str | None = None, data_dir: str | None = None, device: str | None = None) -> list[Run]:
    """The runs of `make reproduce-adarat-DATASET`, teachers first; see `common.runs`."""
    if (budget, dataset) != ("quick", "digits") and (budget == "quick" or dataset not in DATASETS):
        raise UserError(f"AdaRAT has no data set {dataset!r} at budget {budget}: there are {', '.join(DATASETS)}, "
                        "and digits at budget quick", code="E-TARGET")
    shape = BUDGETS[budget]
    chosen = tuple(method_named(word) for word in methods) if methods else shape.methods
    found: list[Run] = []
    for seed in seeds or shape.seeds:
        wanted = [(method, variant) for method in METHODS if method in chosen
                  for variant in (VARIANTS[:1] if method == "ST" else shape.variants)]
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
    base = run_name(method, "plain", budget, seed)
    if variant == "adarat" and shape.limits == "base":
        argv += ["--limits_from", base]
    elif variant == "adarat" and shape.limits is not None:
        argv += ["--up_lim", shape.limits[0], "--down_lim", shape.limits[1]]
    argv += [*shape.more, "--final_test", "False"]
    where = ["--dataset_name", dataset]
    digits = "digits" if budget in ("quick", "smoke") else None
    for flag, value in (("--data", data or digits), ("--data_dir", data_dir),
                        ("--device", device)):
        where += [flag, value] if value else []
    images = (shape.n_train or DATA_SIZE[dataset]) * shape.epochs
    script = f"adarat/train/{SCRIPT_FOLDERS[method]}/train_{'cifar10' if dataset == 'digits' else dataset}.py"
    gflop = shape.gflop or GFLOP[dataset]
    plan = "-".join(["paper-adarat", *(str(n) for n in (shape.n_test, shape.n_autoattack) if n is not None)])
    if shape.n_test is None and shape.n_autoattack is not None:
        plan = f"paper-adarat-{TEST_SIZE[dataset]}-{shape.n_autoattack}"
    tested, attacked = shape.n_test or TEST_SIZE[dataset], shape.n_autoattack or TEST_SIZE[dataset]
    judgement = Judgement(plan=plan, place=tuple(where[2:]),
                          cost=Cost(images=1, passes=60.0 * tested + 1500.0 * attacked, gflop=gflop))
    if budget == board.BUDGET:
        judgement = board.judgement(place=tuple(where[2:]))
    needs = [run_name(*teacher, budget, seed) for teacher in TEACHERS] if method in ("KD-AT", "IAD") else []
    if "--limits_from" in argv:
        needs.append(base)
    return Run(name=run_name(method, variant, budget, seed), method=method, variant=variant, budget=budget, seed=seed,
               script=script, argv=tuple(argv), place=tuple(where), needs=tuple(needs),
               # The paper judges no standard training; beside other papers' methods it is the end that one starts at.
               plans=(judgement,) if method != "ST" or budget == board.BUDGET else (),
               cost=Cost(images=images, passes=passes(method, variant), gflop=gflop))


def method_named(word: str) -> str:
    """A method as the user spells it: PGD-AT, pgd_at, ..."""
    plain = {method.lower(): method for method in METHODS}
    name = word.lower().replace("_", "-")
    if name not in plain:
        raise UserError(f"unknown method {word!r}: there are {', '.join(METHODS)}", code="E-METHOD")
    return plain[name]


NAMES = {"ST": "ST (standard training)"}
# Other names of the base methods in the list of reported numbers.
REPORTED_AS = {"ST": (("Standard training", "*"),), "PGD-AT": (("PGD-AT (7 runs)", "*"), ("AT", "*")),
               "TRADES": (("TRADES(6)", "*"), ("TRADES (7 runs)", "*")), "FAT": (("FAT-AT", "*"),),
               "Generalist": (("Generalist-D (NT+Linf)", "*"),)}

TABLE = Table(
    title="AdaRAT",
    rows=tuple(Row(method=method, variant=variant, label=LABELS[variant].format(NAMES.get(method, method)),
                   reported=((method, "*"), *REPORTED_AS.get(method, ())) if variant == "plain" else ())
               for method in METHODS for variant in (VARIANTS[:1] if method == "ST" else VARIANTS)),
    columns=tuple(Column(evaluator=name, title=name, reported=reported) for name, reported in (
        ("clean", ("clean",)), ("FGSM", ("FGSM",)), ("PGD-10", ("robust acc (PGD-10 in code)",)),
        ("PGD-20", ("PGD-20",)), ("PGD-50", ()), ("CW-20", ()), ("AutoAttack", ("AA",)))),
    reported_datasets={"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"},
    reported_models={"cifar10": ("ResNet-18", "ResNet-18 (BasicBlock)"), "cifar100": ("WideResNet-34-10",)},
    per_seed=("up_lim", "down_lim", "teachers"),
    compare=(("adarat", "plain"), ("fixrat", "plain"), ("adarat", "fixrat")),
    reported_file="adarat", reported_paper="AdaRAT",
    budget_notes={name: budget.about for name, budget in BUDGETS.items()})
