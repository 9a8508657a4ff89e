"""The experiments' runs, at the leaderboard's common shape alone.  Imports no torch."""

from collections.abc import Mapping
from typing import Any

from adarat.runs import run_name as adarat_name
from common import board
from common.errors import UserError
from common.evaluation.plans import Plan
from common.records import RunRecord
from common.runs import Column, Cost, Effort, Row, Run, Table
from experiments.flags import METHOD, VARIANT
from rpat import runs_cost
from rpat.runs import plan_of_run as rpat_plan
from rpat.runs import runs as rpat_runs

SCRIPT = "experiments/train.py"
DATASETS = ("cifar10", "cifar100")
KNOWN = "PGD-AT+RPAT+barrier"


def run_name(budget: str, seed: int) -> str:
    """pgd-at-rpat-barrier_board_s1"""
    return f"{METHOD.lower()}-{VARIANT}_{budget}_s{seed}"


def runs(*, dataset: str, budget: str, seeds: tuple[int, ...] | None = None, methods: tuple[str, ...] | None = None,
         data: str | None = None, data_dir: str | None = None, device: str | None = None) -> list[Run]:
    """RPAT's run of the same shape with the barrier's flags added; see `common.runs`.

    Floor and ceiling come from AdaRAT's PGD-AT run of the same data set, budget and seed, which is to be trained first.
    """
    if budget != board.BUDGET or dataset not in DATASETS:
        raise UserError(f"experiments has no data set {dataset!r} at budget {budget}: there are {', '.join(DATASETS)} "
                        f"at {board.BUDGET}", code="E-TARGET")
    if methods and {word.lower() for word in methods} != {KNOWN.lower()}:
        raise UserError(f"experiments has one method, {KNOWN}, not {', '.join(methods)}", code="E-METHOD")
    found = []
    for base in rpat_runs(dataset=dataset, budget=budget, seeds=seeds, methods=(METHOD,), data=data, data_dir=data_dir,
                          device=device):
        if base.variant == "rpat":
            limits = ("--limits_from", adarat_name(METHOD, "plain", budget, base.seed))
            found.append(Run(
                name=run_name(budget, base.seed), method=METHOD, variant=VARIANT, budget=budget, seed=base.seed,
                script=SCRIPT, argv=(*base.argv, *limits), place=base.place, plans=base.plans,
                cost=Cost(images=base.cost.images, passes=base.cost.passes, gflop=base.cost.gflop)))
    return found


def plan_of_run(name: str, run: Mapping[str, Any]) -> Plan:
    """RPAT's plans."""
    return rpat_plan(name, run)


def effort_of_run(run: RunRecord) -> Effort:
    """The passes of RPAT's PGD-AT: the barrier is made of losses that are there anyway.  See `common.runs`."""
    return Effort(passes=runs_cost.passes(METHOD, "rpat"))


TABLE = Table(
    title="Experiments",
    rows=(Row(method=METHOD, variant=VARIANT, label="PGD-AT + RPAT + AdaRAT's barrier (experiment)"),),
    columns=tuple(Column(evaluator=name, title=name) for name in ("clean", "PGD-20", "AutoAttack")),
    per_seed=("up_lim", "down_lim"), beside=(((METHOD, VARIANT), ("rpat", METHOD, "rpat")),),
    budget_notes={board.BUDGET: f"Budget: {board.ABOUT}."})
