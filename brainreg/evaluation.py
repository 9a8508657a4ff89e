"""What follows a training: its plan, and the run whose gradients TransferredFGSM takes.  torch is imported to judge."""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brainreg.plans import plan_named
from brainreg.settings import DEFAULT_PLAN, Settings
from common.environment import portable
from common.errors import UserError
from common.evaluation.plans import Plan
from common.records import folder_of
from common.source_runs import SourceRun, of_run

if TYPE_CHECKING:
    from common.data import DataSet
    from common.engine import Engine
    from common.experiment import Experiment

ADVICE = "train one without --reg_alpha, or leave --transfer_id out: TransferredFGSM is then skipped"


@dataclass(frozen=True)
class Evaluation:
    """The evaluation at the end of a training, planned before it so that nothing is trained for a plan that is none."""

    plan: Plan
    experiment: "Experiment"
    data: "DataSet"

    @classmethod
    def planned(cls, settings: Settings, args: argparse.Namespace, experiment: "Experiment", data: "DataSet"
                ) -> "Evaluation":
        """What --plan (the paper's if not given) means for the run; UserError if it means nothing."""
        source = next(iter(experiment.needs.values()), None)
        plan = plan_named(args.plan or DEFAULT_PLAN, settings, low=experiment.config["low"],
                          high=experiment.config["high"], n_test=len(data.test), source=source)
        if source is None and plan.name.startswith(DEFAULT_PLAN):
            print("note: TransferredFGSM is skipped: it takes the gradients of an unregularised run of the same task; "
                  "name one with --transfer_id")
        return cls(plan, experiment, data)

    def judge(self, engine: "Engine") -> Path:
        """Evaluate the kept weights, in float32, and print what was found; the path of the record."""
        from common.verdicts import judge, print_results
        path = judge(folder=self.experiment.folder, weights=self.experiment.weights, plan=self.plan,
                     test=self.data.test, data=self.experiment.data, engine=engine, checkpoint="best",
                     seed=self.experiment.seed)
        print_results(path)
        return path


def transfer_needs(asked: str | None, *, dataset: str, model: Mapping[str, Any], test_fingerprint: str, results: Path,
                   weights: Path) -> dict[str, str]:
    """{name of the run that --transfer_id names: sha256 of its weights}, as a record's `needs`; {} without one.

    asked: the run's folder, or its name beside the runs of `dataset`.  model: config["model"] of the run to be judged.
    UserErrors: no such run, one of another task or data set, a regularised one, one whose weights are not here.
    """
    if asked is None:
        return {}
    source = source_run(asked, dataset, results, weights)
    check_source(asked, source.run, model, test_fingerprint)
    return {source.run["run"]: source.sha256}


def source_run(asked: str, dataset: str, results: Path, weights: Path) -> SourceRun:
    """The run that --transfer_id names: a run of this paper below `results`, its weights below `weights`; of a path
    the last two parts count, so that its folder of weights names it as well."""
    path = Path(asked).resolve()
    name, dataset = (asked, dataset) if Path(asked).name == asked else (path.name, path.parent.name)
    try:
        folder, kept = (folder_of(root, "brainreg", dataset, name) for root in (results, weights))
    except ValueError as error:
        raise UserError(f"--transfer_id {asked}: {error}", code="E-SOURCE") from error
    if not (folder / "run.json").exists():
        raise UserError(f"--transfer_id {asked}: there is no run {portable(str(folder))}; {ADVICE}", code="E-SOURCE")
    return of_run(folder, kept)


def check_source(asked: str, run: Mapping[str, Any], model: Mapping[str, Any], test_fingerprint: str) -> None:
    """UserError unless the run is unregularised and knows the same test images and classes."""
    if run["method"] != "unregularised":
        raise UserError(f"--transfer_id {asked}: {run['run']} is regularised, and the released attack takes the "
                        f"gradients of a network that is not; {ADVICE}", code="E-SOURCE")
    theirs = run["config"]["model"]
    if run["data"]["test_fingerprint"] != test_fingerprint:
        raise UserError(f"--transfer_id {asked}: {run['run']} is of another task: its test images "
                        f"({run['data']['source']}) are others; {ADVICE}", code="E-SOURCE")
    for what in ("classes", "channels"):
        if theirs[what] != model[what]:
            raise UserError(f"--transfer_id {asked}: {run['run']} has {theirs[what]} {what}, this run {model[what]}; "
                            f"{ADVICE}", code="E-SOURCE")
