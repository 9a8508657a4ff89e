"""The runs behind the paper's figures and what each is judged by; the table itself: `brainreg.runs_table`.  Imports no
torch.

First comes an unregularised network that gives the images of transferred FGSM to all others, of a seed of its own: so
no network attacks itself, and all see the same images.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from brainreg import plans, runs_cost
from brainreg.runs_budgets import PHASES, SOURCE_SEED, Budget, Target, shape_of, target_of
from brainreg.runs_table import TABLE as TABLE
from brainreg.runs_variants import RELEASED_N, UNREGULARISED, Variant, chosen, variants
from brainreg.settings import ARCHITECTURES, DEFAULT_PLAN, LABELS, SOURCES, Settings, run_name
from common import board
from common.environment import ROOT
from common.errors import UserError
from common.evaluation.plans import Plan
from common.records import RunRecord
from common.runs import Effort, Judgement, Run

SCRIPT = "brainreg/train.py"
IMAGENET = "imagenet"
CORRUPTED = ("cifar10", "cifar100")            # targets whose images are corrupted


def plan_of_run(name: str, run: Mapping[str, Any]) -> Plan:
    """The plan `name` for a run, given its run.json."""
    return plans.plan_of_run(name, run)


def plan_by_default(name: str) -> Plan:
    """The plan `name` for a network that is no run of ours, by the released settings: CIFAR-10 in colour."""
    return plans.plan_named(name, plans.Settings())


def effort_of_run(run: RunRecord) -> Effort:
    """See `common.runs`.  The source of transferred FGSM is needed to judge a run, not to train it."""
    return Effort(passes=runs_cost.passes(plans.settings_of_run(run.run)))


def runs(*, dataset: str, budget: str, seeds: tuple[int, ...] | None = None, methods: tuple[str, ...] | None = None,
         data: str | None = None, data_dir: str | None = None, device: str | None = None) -> list[Run]:
    """The runs of `make reproduce-brainreg-DATASET`; see `common.runs`.

    methods: see `brainreg.runs_variants`; by default the network without regularisation and with the images of each of
    the target's sources, of ImageNet only where these are.  data: may hold {}, which stands for a data set's name.
    """
    shape = shape_of(dataset, budget)
    where = Where(dataset, target_of(dataset, budget), budget, shape, data, data_dir, device)
    known = variants(where.target, shape)
    words = methods or (UNREGULARISED, *(source for source in where.target.sources if where.has(source)))
    wanted, numbers = chosen(words, where.target, known), seeds or shape.seeds
    if SOURCE_SEED in numbers:
        raise UserError(f"SEEDS={SOURCE_SEED}: that seed's network gives the images of transferred FGSM to the others, "
                        "and stands in no table: choose others", code="E-SEEDS")
    if budget == board.BUDGET:                               # no transferred attack: no source
        return [one_run(variant, seed, where, None, 0) for seed in numbers for variant in wanted]
    source = one_run(known[UNREGULARISED], SOURCE_SEED, where, None, 0)
    return [source] + [one_run(variant, seed, where, source.name, shape.n_autoattack if seed == shape.seeds[0] else 0)
                       for seed in numbers for variant in wanted]


@dataclass(frozen=True)
class Where:
    """What the user said of data and device, nothing that decides numbers; and the target and its budget."""

    dataset: str
    target: Target
    budget: str
    shape: Budget
    data: str | None
    data_dir: str | None
    device: str | None

    @property
    def small(self) -> str | None:
        """The data set of the budget that shows that all parts work."""
        return "digits" if self.budget == "smoke" else None

    def place(self, source: str | None = None, *, training: bool) -> tuple[str, ...]:
        """Flags of the training (source: whose images regularise), or of an evaluation."""
        spec = self.data or self.small
        given = {"--data": spec if training or spec is None else spec.replace("{}", SOURCES[self.target.task]),
                 "--reg_images": self.small if source and not self.data else None,
                 "--dataset_name": self.dataset if training else None, "--data_dir": self.data_dir,
                 "--device": self.device}
        return tuple(word for flag, value in given.items() if value for word in (flag, value))

    def has(self, source: str) -> bool:
        """Whether a source's images can be there; says where ImageNet's are not."""
        if source != IMAGENET or self.small:
            return True
        folder = Path(self.data_dir) if self.data_dir else ROOT / "data"
        spec = self.data.replace("{}", IMAGENET) if self.data and "{}" in self.data else str(folder / IMAGENET)
        path = Path(spec.partition("?")[0].removeprefix("npz:").removeprefix("folder:"))
        if not path.exists():
            print(f"note: {self.dataset} regularised on ImageNet is left out: there is no {path}; METHODS={IMAGENET} "
                  "asks for it all the same", file=sys.stderr)
        return path.exists()


def one_run(variant: Variant, seed: int, where: Where, transfer: str | None, autoattack: int) -> Run:
    """One training with its evaluations.  transfer: the run that gives FGSM's images; None: it is that run, which is
    not judged, or one of the leaderboard.  autoattack: images under AutoAttack."""
    settings, target, shape = replace(variant.settings, seed=seed), where.target, where.shape
    method, kind = variant.key
    plans = judgements(settings, where, transfer, autoattack) if transfer else ()
    if where.budget == board.BUDGET:
        plans = (board.judgement(place=where.place(training=False)),)
    return Run(name=run_name(settings, where.budget), method=method, variant=kind, budget=where.budget, seed=seed,
               script=SCRIPT, argv=tuple(flags(settings, target, shape, where.budget, transfer)),
               place=where.place(variant.source, training=True), needs=(transfer,) if transfer else (),
               plans=plans,
               cost=runs_cost.training(settings, target, shape))


def flags(settings: Settings, target: Target, shape: Budget, budget: str, transfer: str | None) -> list[str]:
    """What a user of the original would type, and the budget's own flags; what has its default is left out."""
    archi = next(theirs for theirs, ours in ARCHITECTURES.items() if ours == settings.archi)
    words = ["--task", target.task, "--archi", archi, *(["--rgb", "True"] if settings.rgb else [])]
    if settings.regularised:
        words += ["--reg_data", LABELS[settings.reg_data or ""], "--reg_alpha", f"{settings.reg_alpha:g}",
                  "--reg_thresh", f"{settings.reg_thresh:g}"]
        words += ["--reg_range", settings.reg_range] if settings.reg_range != "all" else []
        words += ["--reg_thresh_2", f"{settings.reg_thresh_2:g}"] if settings.reg_thresh_2 else []
        words += ["--reg_image_num", str(settings.reg_image_num)] if settings.reg_image_num != RELEASED_N else []
        words += ["--reg_batch_size", str(settings.reg_batch_size)] if settings.reg_batch_size != 16 else []
        words += [] if settings.reg_boosting else ["--no-reg_boosting"]
    words += ["--epoch_num", str(settings.epoch_num)]
    if (shape.phases, shape.phase) != (PHASES, 4):
        words += ["--phase_num", str(shape.phases), "--phase_duration", str(shape.phase)]
    for flag, value in (("--base_channels", shape.width), ("--stem", shape.stem),
                        ("--resnet_batch_size", shape.batch_size), ("--lr", shape.lr),
                        ("--valid_portion", shape.valid_portion),
                        ("--n_train", shape.n_train), ("--n_epoch_test", shape.n_epoch_test),
                        ("--transfer_id", transfer)):
        words += [flag, str(value)] if value is not None else []
    return [*words, "--seed", str(settings.seed), "--budget", budget, *shape.more, "--attack", "False"]


def judgements(settings: Settings, where: Where, transfer: str, autoattack: int) -> tuple[Judgement, ...]:
    """The paper's plan; small-eps; for CIFAR our own corruptions: all of the best weights."""
    target, shape = where.target, where.shape
    tested = shape.n_test or (runs_cost.TEST_SIZE if shape.n_boundary else None)
    paper = named(DEFAULT_PLAN, tested, shape.n_boundary)
    small = named("small-eps", shape.n_small or runs_cost.TEST_SIZE, autoattack)
    usual = {"checkpoint": "best", "place": where.place(training=False)}
    found = [Judgement(plan=paper, reads=((transfer, "best"),), cost=runs_cost.judging(settings, target, shape),
                       **usual),
             Judgement(plan=small, cost=runs_cost.attacking(settings, target, shape, autoattack), **usual)]
    if where.dataset in CORRUPTED:
        found.append(Judgement(plan=named("corruptions-brainreg", shape.n_corrupted),
                               cost=runs_cost.corrupting(settings, target, shape), **usual))
    return tuple(found)


def named(stem: str, *counts: int | None) -> str:
    """A plan's name, numbers of images behind it as far as they are given."""
    return "-".join([stem, *(str(count) for count in counts if count is not None)])
