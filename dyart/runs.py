"""The runs behind DyART's tables, what each is judged by, and what the tables show.  Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from common import board
from common.errors import UserError
from common.evaluation.plans import Plan
from common.records import RunRecord
from common.runs import STEP, Column, Cost, Effort, Judgement, Row, Run, Table
from dyart.plans import plan_named
from dyart.settings import BURN_IN, METHODS, Settings, run_name

SCRIPT = "dyart/train.py"
ORIGINAL = {"cifar10": "cifar10s", "cifar10-extra": "cifar10s", "tiny-imagenet": "tiny-imagenet"}    # -d
DATA = {"cifar10": "cifar10", "cifar10-extra": "cifar10", "tiny-imagenet": "tiny-imagenet"}
EXTRA_FILE = "cifar10_ddpm.npz"              # in the folder of data sets, as in the released script
EPSILONS = (2, 4, 8, 12, 16)                 # over 255: AutoAttack's radii
Flags = dict[str, str]


# -- the paper's protocol --------------------------------------------------------------------------------------------

BASELINES: dict[str, Flags] = {
    "AT": {"--beta": "-1"}, "TRADES": {"--beta": "6"}, "MART": {"--beta": "6", "--mart": ""}}
LENGTH = {"cifar10": 200, "cifar10-extra": 800, "tiny-imagenet": 100}                  # epochs, baselines' too
# What DyART's scripts set; (data set, variant).  With group norm: the variants that stand there commented out.
DYART: dict[tuple[str, str], Flags] = {
    ("cifar10", "plain"): {"--h_prime_r0": "16/255", "--h_prime_alpha": "3", "--lam_robust": "1000",
                           "--clip_grad": "0.1"},
    ("cifar10", "gn"): {"--h_prime_r0": "16/255", "--h_prime_alpha": "8", "--lam_robust": "400",
                        "--scheduler": "step", "--epochs": "100"},
    ("cifar10-extra", "plain"): {"--h_prime_r0": "16/255", "--h_prime_alpha": "3", "--lam_robust": "800",
                                 "--clip_grad": "0.1", "--batch-size": "512"},
    ("tiny-imagenet", "plain"): {"--h_prime_r0": "32/255", "--h_prime_alpha": "5", "--lam_robust": "500",
                                 "--clip_grad": "1"},
    ("tiny-imagenet", "gn"): {"--h_prime_r0": "20/255", "--h_prime_alpha": "3", "--lam_robust": "500", "--lr": "0.05"}}


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much of the paper's protocol a budget does.  None: all of it.  The burn-in is the released one in each."""

    about: str
    seeds: tuple[int, ...] = (1,)
    methods: tuple[str, ...] = ("DyART", "AT")          # unless METHODS= names some
    epochs: int | None = None                           # of DyART and the baselines
    train_epochs: int | None = None                     # where they stop before the schedule's end
    model: str | None = None
    width: int | None = None
    batch_size: int | None = None
    n_train: int | None = None
    n_epoch_test: int | None = None                     # images of validation and of test after each epoch
    observe: int = 2048                                 # training images whose margins and speeds are followed
    n_test: int | None = None
    n_autoattack: int | None = None
    more: tuple[str, ...] = ()
    # For the estimate of time: share of the training images that are classified correctly, on average (DyART searches
    # only those, PGD goes on only with those), and the network's cost where it is not the paper's.
    correct: float = 0.8
    gflop: float | None = None


BUDGETS = {
    "smoke": Budget(about="the digits (or 320 images of DATA), a small network, 2 epochs, DyART's after the burn-in: "
                          "shows that all parts work",
                    methods=("DyART", "AT", "TRADES", "MART"), epochs=2, model="small", batch_size=64, n_train=320,
                    n_epoch_test=64, observe=64, n_test=100, n_autoattack=20, gflop=0.002, correct=0.5,
                    more=("--augment", "false", "--precision", "fp32")),
    "short": Budget(about="5,000 images (besides those held out), PreActResNet-18 of width 16, batches of 128, 10 "
                          "epochs, DyART's after the burn-in: a CPU's evening; DyART and AT unless METHODS says more",
                    epochs=10, model="preact-resnet18", width=16, batch_size=128, n_train=5000, n_epoch_test=256,
                    observe=512, n_test=1000, n_autoattack=100, correct=0.4),
    "gpu": Budget(about="all images, PreActResNet-18, 15 epochs (Tiny-ImageNet: 4), DyART's after the burn-in, "
                        "AutoAttack on 1,000 images; DyART and AT unless METHODS says more",
                  epochs=15, model="preact-resnet18", n_epoch_test=1024, n_autoattack=1000, correct=0.6),
    "full": Budget(about="the paper's protocol", methods=("DyART", "AT", "TRADES", "MART")),
}
SPECIAL = {
    ("gpu", "tiny-imagenet"): replace(BUDGETS["gpu"], epochs=4),
    # Four times the pixels, twenty times the classes: DyART alone, and shorter.
    ("short", "tiny-imagenet"): replace(
        BUDGETS["short"], about="2,000 images of Tiny-ImageNet, PreActResNet-18 of width 16, batches of 128, the "
        "burn-in's 21 epochs, then 2 of DyART: shows that the chain runs on real images, no more",
        methods=("DyART",), epochs=2, n_train=2000, n_epoch_test=128, observe=128, n_test=500,
        n_autoattack=20),
    ("short", "cifar10-extra"): replace(
        BUDGETS["short"], about="5,000 images and extra ones, PreActResNet-18 of width 16, batches of 128, the first "
        "of two epochs of DyART after the burn-in: shows that the chain runs on real images, no more",
        epochs=2, train_epochs=1, n_epoch_test=128, observe=128, n_test=500, n_autoattack=20),
    (board.BUDGET, "cifar10"): Budget(
        about=board.ABOUT + "; DyART's epochs come after the burn-in's", methods=BUDGETS["full"].methods,
        epochs=board.EPOCHS, model=board.MODEL, width=board.WIDTH, batch_size=board.BATCH_SIZE,
        n_train=board.N_TRAIN, n_epoch_test=board.N_EPOCH_TEST, observe=512, n_test=board.N_TEST,
        n_autoattack=board.N_AUTOATTACK, correct=0.4, gflop=board.GFLOP)}


# -- what a run costs ------------------------------------------------------------------------------------------------

GFLOP = {"wrn-28-10-swish": 31.5, "preact-resnet18": 3.3}      # forward and backward of one 32x32 image, full width
TRAIN_SIZE = {"cifar10": 48_976, "cifar10-extra": 48_976, "tiny-imagenet": 90_000}
HELD_OUT = {"cifar10": 1024, "cifar10-extra": 1024, "tiny-imagenet": 10_000}
TEST_SIZE = {"cifar10": 10_000, "cifar10-extra": 10_000, "tiny-imagenet": 10_000, "digits": 400}
# In forward-and-backward passes: a forward pass is 1/3, one back to the image (no weight's gradient) 2/3.
ATTACK_STEP = STEP
SEARCH = 20 * (ATTACK_STEP + 1 / 3) + ATTACK_STEP              # FAB's 20 iterations, then the checks
BASELINE_PASSES = {"clean": 1.0, "AT": 10 * ATTACK_STEP + 4 / 3, "TRADES": 10 * ATTACK_STEP + 7 / 3,
                   "MART": 10 * ATTACK_STEP + 2}
AUTOATTACK = 1500.0                                            # of one image at one radius, easy and hard ones together


def passes(method: str, shape: Budget) -> float:
    """Passes for each training image of an epoch.  DyART's own: x twice, and of correct images search and point."""
    return BASELINE_PASSES.get(method, 4 / 3 + shape.correct * (SEARCH + 1))


def effort_of_run(run: RunRecord) -> Effort:
    """See `common.runs`.  DyART searches only from the images that are classified correctly, whose share is logged."""
    method, needs = run.run["method"], tuple(run.run["needs"])
    if method != "DyART":
        return Effort(passes=BASELINE_PASSES[method], after=needs)
    _, searched = run.curve("searched")
    return Effort(passes=4 / 3 + float(searched.mean() if len(searched) else 1.0) * (SEARCH + 1), after=needs)


def train_cost(method: str, dataset: str, shape: Budget, epochs: int, gflop: float) -> Cost:
    """Of one training with its validation (40 steps of PGD) and the margins and speeds that it writes down."""
    images = shape.n_train or TRAIN_SIZE[dataset]
    judged = sum(min(shape.n_epoch_test or size, size) for size in (HELD_OUT[dataset], TEST_SIZE[dataset]))
    validation = judged * (1 / 3 if method == "clean" else 1 / 3 + 40 * ATTACK_STEP * shape.correct)
    followed = 0 if method == "clean" else min(shape.observe, images) * shape.correct * (SEARCH + 1)
    total = epochs * (images * passes(method, shape) + validation) + (epochs + 1) * followed
    return Cost(images=images * epochs, passes=total / (images * epochs), gflop=gflop)


# -- the runs --------------------------------------------------------------------------------------------------------

def plan_of_run(name: str, run: Mapping[str, Any]) -> Plan:
    """The plan `name` for a run, given its run.json."""
    config = run["config"]
    known = {key: value for key, value in config.items() if key in Settings.__dataclass_fields__}
    # A record describes data and network at length; the settings name them.
    known |= {"quirks": tuple(run["quirks"]), "data": config["data"]["protocol"], "model": config["model"]["name"]}
    return plan_named(name, Settings(**known))


def plan_by_default(name: str) -> Plan:
    """The plan `name` for a network that is no run of ours, by the released settings: DyART on CIFAR-10."""
    return plan_named(name, Settings())


def runs(*, dataset: str, budget: str, seeds: tuple[int, ...] | None = None, methods: tuple[str, ...] | None = None,
         data: str | None = None, data_dir: str | None = None, device: str | None = None,
         extra: str | None = None) -> list[Run]:
    """The runs of `make reproduce-dyart-DATASET`, the burn-in first; see `common.runs`.

    methods: clean (the burn-in, which DyART brings along), DyART, AT, TRADES, MART; with -GN behind: with group norm.
    extra: npz files of additional images for cifar10-extra, or "rest": the training images that the budget leaves out.
    """
    if dataset not in ORIGINAL or (budget not in BUDGETS and (budget, dataset) not in SPECIAL):
        raise UserError(f"DyART has no data set {dataset!r} at budget {budget}: there are {', '.join(ORIGINAL)} at "
                        f"{', '.join(BUDGETS)}", code="E-TARGET")
    if extra and dataset != "cifar10-extra":
        raise UserError(f"EXTRA={extra}: {dataset} trains on no additional images; cifar10-extra does", code="E-EXTRA")
    shape = SPECIAL.get((budget, dataset)) or BUDGETS[budget]
    known = METHODS[:2] if dataset == "cifar10-extra" else METHODS
    chosen = [method_named(word, known) for word in methods or shape.methods if methods or word in known]
    chosen += [("clean", variant) for method, variant in chosen if method == "DyART"]
    wanted = [(method, variant) for variant in ("plain", "gn") for method in METHODS if (method, variant) in chosen]
    where = Where(dataset, data, data_dir, device, extra)
    return [one_run(method, variant, budget, shape, seed, where)
            for seed in seeds or shape.seeds for method, variant in wanted]


def method_named(word: str, known: tuple[str, ...] = METHODS) -> tuple[str, str]:
    """(method, variant) as the user spells them: DyART, dyart-gn, at, ..."""
    name = word.lower().replace("_", "-")
    method = {one.lower(): one for one in known}.get(name.removesuffix("-gn"))
    # With additional images no group-norm run was released, and none of the baselines.
    if method is None or (name.endswith("-gn") and len(known) < len(METHODS)):
        more = " (and -GN behind one for group norm)" if len(known) == len(METHODS) else " on cifar10-extra"
        raise UserError(f"unknown method {word!r}: there are {', '.join(known)}{more}", code="E-METHOD")
    return method, "gn" if name.endswith("-gn") else "plain"


@dataclass(frozen=True)
class Where:
    """What the user said of data and device: no part of what decides numbers, but for extra images called `rest`."""

    dataset: str
    data: str | None
    data_dir: str | None
    device: str | None
    extra: str | None

    def place(self, budget: str, *, training: bool) -> tuple[str, ...]:
        """Flags of the training, or of an evaluation."""
        usual = "digits" if budget == "smoke" else (ORIGINAL if training else DATA)[self.dataset]
        given = {"--data": self.data or usual, "--dataset_name": self.dataset if training else None,
                 "--data_dir": self.data_dir, "--device": self.device}
        return tuple(word for flag, value in given.items() if value for word in (flag, value))

    def additional(self, budget: str) -> str:
        """Value of --aux-data-filename."""
        return self.extra or ("rest" if budget == "smoke" else f"{self.data_dir or 'data'}/{EXTRA_FILE}")


def protocol(method: str, variant: str, dataset: str, shape: Budget) -> Flags:
    """The original's flags of one run, the budget's changes in their places."""
    if method == "clean":
        used = BURN_IN[DATA[dataset]] + 1
        flags = {"--clean_training": "true", "--epochs": str(2 * used), "--train_epochs": str(used),
                 "--scheduler": "step", "--save_intermediate_models": str(used - 1)}
    else:
        flags = {"--DyART": str(method == "DyART").lower(), "--epochs": str(LENGTH[dataset]), "--scheduler": "cosinew"}
        flags |= {**DYART[dataset, variant], "--pretrained": "auto"} if method == "DyART" else BASELINES[method]
        if shape.epochs:
            flags["--epochs"] = str(shape.epochs)
        if shape.train_epochs:
            flags["--train_epochs"] = str(shape.train_epochs)
    model = shape.model or ("preact-resnet18" if dataset == "tiny-imagenet" else "wrn-28-10-swish")
    batch = {"--batch-size": str(shape.batch_size)} if shape.batch_size else {}
    return {"--model": model, **({"--GroupNorm": "true"} if variant == "gn" else {}), **flags, **batch}


def one_run(method: str, variant: str, budget: str, shape: Budget, seed: int, where: Where) -> Run:
    """One training and its evaluation (the burn-in has none)."""
    dataset = where.dataset
    flags = protocol(method, variant, dataset, shape)
    epochs = int(flags.get("--train_epochs", flags["--epochs"]))
    gflop = shape.gflop or GFLOP[flags["--model"]] * ((shape.width or 64) / 64) ** 2 * (
        4 if dataset == "tiny-imagenet" else 1)
    argv = [word for flag, value in flags.items() for word in (flag, value) if word]
    argv += ["--seed", str(seed), "--budget", budget]
    place = where.place(budget, training=True)
    if dataset == "cifar10-extra" and method == "DyART":
        words = ("--aux-data-filename", where.additional(budget))
        argv, place = ([*argv, *words], place) if words[1] == "rest" else (argv, (*place, *words))
    for flag, value in (("--n_train", shape.n_train), ("--width", shape.width), ("--n_epoch_test", shape.n_epoch_test),
                        ("--observe", None if method == "clean" else shape.observe)):
        argv += [flag, str(value)] if value else []
    argv += [*shape.more, "--final_test", "False"]
    tested = shape.n_test or (TEST_SIZE[dataset] if shape.n_autoattack else None)
    plan = "-".join(["paper-dyart", *(str(n) for n in (tested, shape.n_autoattack) if n)])
    attacked = shape.n_autoattack or TEST_SIZE[dataset]
    judged = (tested or TEST_SIZE[dataset]) * (1 / 3 + 40 * ATTACK_STEP) + attacked * AUTOATTACK * len(EPSILONS)
    judgement = Judgement(plan=plan, place=where.place(budget, training=False), checkpoint="best",
                          cost=Cost(images=1, passes=judged, gflop=gflop))
    if budget == board.BUDGET:
        judgement = board.judgement(place=judgement.place, checkpoint="best")
    return Run(name=run_name(method, variant, budget, seed), method=method, variant=variant, budget=budget, seed=seed,
               script=SCRIPT, argv=tuple(argv), place=place,
               needs=(run_name("clean", variant, budget, seed),) if method == "DyART" else (),
               plans=() if method == "clean" else (judgement,),
               cost=train_cost(method, dataset, shape, epochs, gflop))


# -- the table -------------------------------------------------------------------------------------------------------

LABELS = {"plain": "{}", "gn": "{} (group norm)"}
# Names of the methods in the list of reported numbers.  Baselines of other papers were trained in other ways.
REPORTED_AS = {
    "DyART": (("DyART", "*"),),
    "AT": (("AT", "*"), ("PGD-AT", "*"), ("WA", "*"), ("AT+WA", "*")),
    "TRADES": (("TRADES", "*"), ("TRADES(6)", "*"), ("TRADES + 20M EDM", "*")),
    "MART": (("MART", "*"), ("MART(5)", "*"), ("MART + 500K extra", "*"))}

TABLE = Table(
    title="DyART",
    rows=tuple(Row(method=method, variant=variant, label=LABELS[variant].format(method),
                   reported=REPORTED_AS[method] if variant == "plain" else ())
               for method in METHODS[1:] for variant in LABELS),
    columns=(Column(evaluator="clean", title="clean", reported=("clean",)), Column(evaluator="PGD-40", title="PGD-40"),
             *(Column(evaluator=f"AutoAttack eps={eps}", title=f"AutoAttack {eps}/255",
                      reported=("AA",) if eps == 8 else ()) for eps in EPSILONS)),
    reported_datasets={"cifar10": "CIFAR-10", "cifar10-extra": "CIFAR-10", "tiny-imagenet": "Tiny-ImageNet"},
    # DyART's only reported network had additional images: it stands beside no run without them.
    reported_models={"cifar10": ("PreActResNet-18", "ResNet-18", "ResNet-18 (BasicBlock)"),
                     "cifar10-extra": ("WideResNet-28-10 (SiLU)", "WideResNet-28-10"),
                     "tiny-imagenet": ("PreActResNet-18", "ResNet-18", "ResNet-18 (BasicBlock)")},
    reported_weights=("best",), per_seed=("pretrained",), compare=(("gn", "plain"),),
    compare_methods=tuple(("DyART", baseline) for baseline in METHODS[2:]),
    reported_file="dyart", reported_paper="DyART",
    budget_notes={name: budget.about for name, budget in BUDGETS.items()} | {
        " ".join(key): budget.about for key, budget in SPECIAL.items()})
