"""The runs behind RPAT's tables and what each is judged by; the table itself: `rpat.runs_table`.  Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from common import board
from common.errors import UserError
from common.evaluation.plans import Plan
from common.runs import Judgement, Run
from rpat import plans, runs_cost, sota_plans
from rpat.runs_budgets import RELEASED_EPOCHS, STANDARD, TARGETS, Budget, Target, shape_of
from rpat.runs_cost import effort_of_run as effort_of_run
from rpat.runs_table import TABLE as TABLE
from rpat.settings import DATASETS, MODELS, MODES, NORMS, Settings, run_name
from rpat.sota_settings import DATA, SCRIPTS, SotaSettings, settings_of_run
from rpat.sota_settings import MODELS as SOTA_MODELS
from rpat.sota_settings import NORMS as SOTA_NORMS

SCRIPT = "rpat/benchmarks/train.py"
SIZES = {"linf": ("8", "2"), "l2": ("128", "15")}              # epsilon and step in 255ths
DISTANCE = {ours: flag for flag, ours in NORMS.items()}
THEIRS = {ours: flag for flag, ours in DATASETS.items()}       # --dataset
CLASSES = {ours: str(classes) for classes, ours in DATA.items()}
MODE = {method: mode for mode, method in MODES.items()} | {"Consistency-AT": "adv_train"}
WIDE = "wrn-34-10"                                             # our name of WideResNet
CUTMIX = "-CutMix"                                             # behind a method of part 2


def plan_of_run(name: str, run: Mapping[str, Any]) -> Plan:
    """The plan `name` for a run of either part, given its run.json."""
    if run["method"] in SCRIPTS:
        return sota_plans.plan_named(name, settings_of_run(run["config"]))
    return plans.plan_named(name, plans.settings_of_run(run))


def plan_by_default(name: str) -> Plan:
    """The plan `name` for a network that is no run of ours, by the released settings: part 1 on CIFAR-10, L-inf."""
    return plans.plan_named(name, plans.Settings())


def runs(*, dataset: str, budget: str, seeds: tuple[int, ...] | None = None, methods: tuple[str, ...] | None = None,
         data: str | None = None, data_dir: str | None = None, device: str | None = None) -> list[Run]:
    """The runs of `make reproduce-rpat-...`; see `common.runs`.

    dataset: one of TARGETS.  methods: PGD-AT, TRADES, MART, Consistency-AT (each also with RPAT), ce, ce_rand; of the
    targets that end in -sotas ReBAT, RPAT++, and both with -CutMix behind.
    """
    shape, target = shape_of(dataset, budget), TARGETS[dataset]
    chosen = [method_named(word, target) for word in methods] if methods else shape.of(target)
    where = Where(dataset, target, budget, data, data_dir, device)
    make = part_one if target.part == 1 else part_two
    return [run for seed in seeds or shape.seeds for method in target.known if method in chosen
            for run in make(method, shape, seed, where)]


def method_named(word: str, target: Target) -> str:
    """A method as the user spells it: PGD-AT, pgd_at, rebat-cutmix, ..."""
    plain = {method.lower().replace("_", "-"): method for method in target.known}
    name = word.lower().replace("_", "-")
    if name not in plain:
        others = next(name for name, other in TARGETS.items() if other.part != target.part)
        raise UserError(f"unknown method {word!r}: there are {', '.join(target.known)}; the other part's are in "
                        f"{others}", code="E-METHOD")
    return plain[name]


@dataclass(frozen=True)
class Where:
    """What the user said of data and device: nothing that decides numbers."""

    dataset: str
    target: Target
    budget: str
    data: str | None
    data_dir: str | None
    device: str | None

    @property
    def small(self) -> str | None:
        """The data set of the budget that shows that all parts work."""
        return "digits" if self.budget == "smoke" else None

    def place(self, *, training: bool) -> tuple[str, ...]:
        """Flags of the training, or of an evaluation."""
        given = {"--data": self.data or self.small or (None if training else self.target.data),
                 "--dataset_name": self.dataset if training else None, "--data_dir": self.data_dir,
                 "--device": self.device}
        return tuple(word for flag, value in given.items() if value for word in (flag, value))


def part_one(method: str, shape: Budget, seed: int, where: Where) -> list[Run]:
    """The base method and, where there are adversarial images, the same with RPAT."""
    target = where.target
    eps, step = SIZES[target.norm]
    model = shape.model or target.model
    flags = ["--model", model, "--distance", DISTANCE[target.norm], "--epsilon", f"{eps}/255", "--alpha",
             f"{step}/255", "--epochs", str(shape.epochs), "--dataset", THEIRS[target.data], "--val"]
    if shape.epochs < RELEASED_EPOCHS:
        flags += ["--scale_schedule", "true"]
    consistent = ["--consistency"] if method == "Consistency-AT" else []
    ours = Settings(model=MODELS.get(model, model), mode=MODE[method], distance=DISTANCE[target.norm])
    return [one_run(method, variant, run_name(method, variant, where.budget, seed, ours.marks),
                    ["--mode", MODE[method], *consistent, *(["--RA"] if variant == "rpat" else []), *flags],
                    SCRIPT, shape, seed, where)
            for variant in ("plain", "rpat")[:1 if method in STANDARD else 2]]


def part_two(word: str, shape: Budget, seed: int, where: Where) -> list[Run]:
    """ReBAT or RPAT++, perhaps with CutMix."""
    target, method, cutmix = where.target, word.removesuffix(CUTMIX), word.endswith(CUTMIX)
    eps, step = SIZES[target.norm]
    model = shape.model or target.model
    norm = {ours: flag for flag, ours in SOTA_NORMS.items()}[target.norm]
    flags = ["--model", model, "--norm", norm, "--epsilon", eps, "--pgd-alpha", step, "--epochs", str(shape.epochs)]
    flags += ["--num-classes", CLASSES[target.data]] if not where.small else []
    flags += ["--val", *(["--cutmix"] if cutmix else [])]
    flags += ["--scale_schedule"] if shape.epochs < RELEASED_EPOCHS else []
    flags += ["--decay-rate", shape.decay_rate] if shape.decay_rate else []
    ours = SotaSettings(method=method, model=WIDE if model == "WideResNet" else SOTA_MODELS.get(model, model),
                        cutmix=cutmix, norm=target.norm, seed=seed)
    return [one_run(method, ours.variant, ours.run_name(where.budget), flags, SCRIPTS[method], shape, seed, where)]


def one_run(method: str, variant: str, name: str, flags: list[str], script: str, shape: Budget, seed: int,
            where: Where) -> Run:
    """One training with its evaluations: of the best weights (on held-out training images) and of the last ones."""
    target = where.target
    argv = [*flags, "--seed", str(seed), "--budget", where.budget]
    for flag, value in (("--n_train", shape.n_train), ("--width", shape.width), ("--n_epoch_test", shape.n_epoch_test),
                        ("--batch_size" if target.part == 1 else "--batch-size", shape.batch_size)):
        argv += [flag, str(value)] if value is not None else []
    argv += [*shape.more.get(target.part, ()), "--final_test", "False"]
    return Run(name=name, method=method, variant=variant, budget=where.budget, seed=seed, script=script,
               argv=tuple(argv), place=where.place(training=True), plans=judgements(shape, where),
               cost=runs_cost.training(method, variant, target, shape))


def judgements(shape: Budget, where: Where) -> tuple[Judgement, ...]:
    """The paper's plan on best and last weights (part 2: of the average); in part 1 perception of the best ones."""
    target, place = where.target, where.place(training=False)
    if where.budget == board.BUDGET:
        return (board.judgement(place=place, checkpoint="best"),)
    tested = shape.n_test or (runs_cost.TEST_SIZE if shape.n_autoattack else None)
    counts = [str(n) for n in (tested, shape.n_autoattack) if n]
    stem = "-".join([plans.DEFAULT_PLAN if target.part == 1 else sota_plans.DEFAULT_PLAN, *counts])
    cost = runs_cost.judging(target, shape)
    found = [Judgement(plan=stem, checkpoint="best", place=place, cost=cost),
             Judgement(plan=f"{stem}-last", checkpoint="last" if target.part == 1 else "average", place=place,
                       cost=cost)]
    if target.part == 1:
        found.append(Judgement(plan="-".join(["perception-rpat", *([str(shape.n_test)] if shape.n_test else [])]),
                               checkpoint="best", place=place, cost=runs_cost.perceiving(target, shape)))
    return tuple(found)
