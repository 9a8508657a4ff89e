"""A run is data: what to type, what it needs first, how it is judged, what it costs; and the table that it feeds.

A paper's package provides, in `<paper>/runs.py` (which imports no torch):

    runs(*, dataset, budget, seeds, methods, data, data_dir, device) -> list[Run]
        dataset: str; budget: one of BUDGETS; seeds: tuple[int, ...] or None for the budget's own;
        methods: tuple[str, ...] as the user typed them, or None for all; data, data_dir, device: str or None, to be
        handed on to the commands in `Run.place`.  A run may only need runs above it in the list.
        An unknown data set or method is a UserError that lists the known ones.
        extra: str or None, only in the signature of a paper that trains on additional data: the file (EXTRA=).
    TABLE: Table     what its table shows, for every data set
    effort_of_run(run: RunRecord) -> Effort      what a finished run cost, for the leaderboard; a paper may lack it

`scripts/make_rules.py` turns the runs into rules for make, `scripts/report.py` the records into the table.

What is hashed.  A step's spec is what decides its numbers: script, flags, and the specs of what it needs; for an
evaluation its plan, settings, checkpoint and the training's spec.  Where things are (`Run.place`: data, folders,
device) is left out, since a path differs from machine to machine: the *record* names the data by fingerprint.
"""

import importlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from common.environment import ROOT
from common.errors import UserError
from common.files import sha256_of_json

BUDGETS = ("quick", "smoke", "short", "board", "gpu", "full")
# In forward-and-backward passes of an image: a forward pass, and one with the way back to the image (no weight's
# gradient), as a step of an attack takes.
FORWARD, STEP = 1 / 3, 2 / 3
_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SAFE_PATH = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*\.py")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """images: images gone through, epochs counted; passes: forward-and-backward passes per image; gflop: 10^9
    floating-point operations (2 per multiply-add) of one such pass of one image, about 3 times the forward pass's."""

    images: float
    passes: float
    gflop: float

    @property
    def total_gflop(self) -> float:
        return self.images * self.passes * self.gflop


@dataclass(frozen=True, kw_only=True)
class Effort:
    """What the training alone of a finished run took, whatever machine it ran on.

    passes: forward-and-backward passes for each training image of an epoch, averaged over the epochs (see FORWARD and
    STEP), without what is only measured; after: names of runs of the same folder that had to be trained before.
    """

    passes: float
    after: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """One evaluation of a run: `python -m scripts.evaluate FOLDER --plan PLAN ARGV... --spec HASH`."""

    plan: str                                  # names eval-PLAN.json
    cost: Cost
    argv: tuple[str, ...] = ()                 # more flags that decide numbers, such as a number of images
    place: tuple[str, ...] = ()                # flags that say where things are or on what they run: not hashed
    checkpoint: str = "last"                   # key of train.json's `weights`
    reads: tuple[tuple[str, str], ...] = ()    # (run, checkpoint) besides its own: runs of the same `Run.needs`


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training and its evaluations.  `script argv place --run name --spec HASH` is the command."""

    name: str                                  # folder under results/<paper>/<dataset>/
    method: str
    variant: str
    budget: str
    seed: int
    script: str                                # relative to the repository root
    cost: Cost
    argv: tuple[str, ...] = ()                 # what a user of the original would type, and the budget's own flags
    place: tuple[str, ...] = ()                # flags that say where things are or on what they run: not hashed
    needs: tuple[str, ...] = ()                # names of runs whose weights it reads, such as teachers
    plans: tuple[Judgement, ...] = ()


def check(runs: Sequence[Run]) -> None:
    """ValueError unless names are unique and plain, budgets known, and every need stands above its user."""
    seen: set[str] = set()
    for run in runs:
        names = [run.name, *(plan.plan for plan in run.plans)]
        if run.name in seen or len(set(names[1:])) < len(names[1:]):
            raise ValueError(f"{run.name}: two runs or two of its plans have one name")
        if not all(_SAFE.fullmatch(name) for name in names) or not _SAFE_PATH.fullmatch(run.script):
            raise ValueError(f"{run.name}: names of runs, plans and scripts are letters, digits, '.', '_' and '-'")
        if run.budget not in BUDGETS:
            raise ValueError(f"{run.name}: budget {run.budget!r} is none of {BUDGETS}")
        if missing := [need for need in run.needs if need not in seen]:
            raise ValueError(f"{run.name} needs {missing}, which must stand above it")
        seen.add(run.name)


def train_spec(run: Run, parents: Mapping[str, str]) -> dict[str, Any]:
    """What decides a training's numbers; parents: name -> hash of the spec, of every run in `run.needs`."""
    return {"script": run.script, "argv": list(run.argv), "seed": run.seed,
            "needs": {name: parents[name] for name in run.needs}}


def eval_spec(plan: Judgement, train: str) -> dict[str, Any]:
    """What decides an evaluation's numbers; train: hash of the training's spec."""
    return {"plan": plan.plan, "argv": list(plan.argv), "checkpoint": plan.checkpoint, "train": train}


def spec_hashes(runs: Sequence[Run]) -> tuple[dict[str, str], dict[tuple[str, str], str]]:
    """Hashes of all specs: ({run: hash}, {(run, plan): hash})."""
    trains: dict[str, str] = {}
    evals: dict[tuple[str, str], str] = {}
    for run in runs:
        trains[run.name] = sha256_of_json(train_spec(run, trains))
        for plan in run.plans:
            evals[run.name, plan.plan] = sha256_of_json(eval_spec(plan, trains[run.name]))
    return trains, evals


# -- what a paper's table shows --------------------------------------------------------------------------------------

@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a paper's table.  reported: the (method, variant) under which reported numbers are listed.

    suffix: how the names of its evaluators end, for a line about other weights of the same runs (" last").
    """

    method: str                                # as in run.json
    variant: str
    label: str
    reported: tuple[tuple[str, str], ...] = ()
    suffix: str = ""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One evaluator.  reported: names of the metric in the list of reported numbers, best first.

    formula: one of `common.stats.FORMULAS`, of the accuracies of `evaluator` and `beside` on the images of both.
    over: evaluators whose accuracies are averaged, as of one attack's strengths; `evaluator` then is the mean's name.
    value: what is shown in the place of the accuracy: a number of the result's `values`, at "key.key", times `factor`.
    points: (norm, eps) of the points of reported curves that may stand beside ours; see `Table.reported_points`.
    """

    evaluator: str                             # name of a result in eval-PLAN.json
    title: str
    reported: tuple[str, ...] = ()
    formula: str = ""
    beside: str = ""
    over: tuple[str, ...] = ()
    value: str = ""
    factor: float = 1.0
    points: tuple[tuple[str, float | None], ...] = ()

    @property
    def counted(self) -> bool:
        """Whether it shows the accuracy of one evaluator."""
        return not (self.formula or self.over or self.value)


@dataclass(frozen=True, kw_only=True)
class Table:
    """What a paper's table shows, for all its data sets.

    reported_file: stem of results/reported/<stem>.csv; reported_models: data set -> networks whose reported numbers
    may stand beside ours; reported_eps: likewise the eps, as written there, of data sets that reported_sizes does not
    name; reported_datasets: our name -> theirs.
    per_seed: settings that a rule derives from other runs of the same seed (a teacher's hash), so that the seeds of one
    cell may differ in them; the setting that names the rule is still compared.
    compare: pairs of variants (a, b) that the second table compares image by image, as a minus b, for each method;
    compare_methods: likewise pairs of methods, for each variant.
    reported_weights: how the `checkpoint` of a reported number begins that was chosen as ours are: it goes first.
    reported_points: what is reported are points of curves over eps (`Column.points`), so that rows hold any eps.
    special_columns: data set -> its columns, where they are not `columns`.
    compare_rows: further pairs of (method, variant) that the second table compares.
    beside: pairs of a (method, variant) and another paper's (paper, method, variant), for the leaderboard.
    sources: seeds of runs that only others read, such as the source of transferred attacks: no row counts them.
    """

    title: str
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    per_seed: tuple[str, ...] = ()
    compare: tuple[tuple[str, str], ...] = ()
    compare_methods: tuple[tuple[str, str], ...] = ()
    compare_rows: tuple[tuple[tuple[str, str], tuple[str, str]], ...] = ()
    beside: tuple[tuple[tuple[str, str], tuple[str, str, str]], ...] = ()
    plans: tuple[str, ...] = ()                # only results of these plans, patterns (small-*) by rank; all if empty
    reported_file: str = ""
    reported_paper: str = ""                   # its rows go before other papers'
    reported_models: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    reported_datasets: Mapping[str, str] = field(default_factory=dict)
    reported_eps: str = "8/255"
    reported_sizes: Mapping[str, str] = field(default_factory=dict)
    reported_weights: tuple[str, ...] = ("last", "final")
    reported_points: bool = False
    special_columns: Mapping[str, tuple[Column, ...]] = field(default_factory=dict)
    sources: tuple[int, ...] = ()
    budget_notes: Mapping[str, str] = field(default_factory=dict)   # "BUDGET[ DATASET]" -> a line under the title

    def labels(self) -> dict[tuple[str, str], str]:
        """(method, variant) -> label, of the rows without a suffix."""
        return {(row.method, row.variant): row.label for row in self.rows if not row.suffix}

    def pairs(self) -> list[tuple[tuple[str, str], tuple[str, str]]]:
        """What is compared image by image: pairs of (method, variant), both of them rows."""
        methods = dict.fromkeys(row.method for row in self.rows)
        variants = dict.fromkeys(row.variant for row in self.rows)
        found = [((method, a), (method, b)) for method in methods for a, b in self.compare]
        found += [((a, variant), (b, variant)) for variant in variants for a, b in self.compare_methods]
        found += self.compare_rows
        return [(a, b) for a, b in found if {a, b} <= self.labels().keys()]


def of_paper(paper: str, part: str) -> ModuleType | None:
    """The module PAPER.PART; None where the repository has no such file, as of a record that names another paper."""
    return importlib.import_module(f"{paper}.{part}") if (ROOT / paper / f"{part}.py").is_file() else None


def measuring_quirks(paper: str) -> tuple[str, ...]:
    """The quirks that change what is measured, from PAPER/settings.py; none where the repository has no such file."""
    known = getattr(of_paper(paper, "settings"), "QUIRKS", {})
    return tuple(quirk for quirk, kind in known.items() if kind == "measuring")


def numbers(text: str | None, what: str) -> tuple[int, ...] | None:
    """'1,2 3' -> (1, 2, 3); None or '' -> None; anything else is a UserError that names `what`."""
    words = split(text)
    if words is None:
        return None
    if not all(word.isdigit() for word in words) or len(set(words)) < len(words):
        raise UserError(f"{what}={text} must be different whole numbers, such as {what}=1,2,3", code="E-SEEDS")
    return tuple(int(word) for word in words)


def split(text: str | None) -> tuple[str, ...] | None:
    """Words between spaces or commas; None if there are none."""
    return tuple((text or "").replace(",", " ").split()) or None
