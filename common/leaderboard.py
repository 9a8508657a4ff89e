"""The cross-paper leaderboard, from records: every method's clean accuracy and AutoAttack, side by side.  No torch.

Methods stand in one group only where network, number of training images, epochs, test images and attack are the same;
what still differs inside a group is marked on the row.  Knows no paper: it is told their tables (`Paper`).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from common.cells import Cell, cell, group, short, stale
from common.errors import UserError
from common.records import EvalRecord, RunRecord
from common.runs import Effort, Table
from common.stats import accuracy_interval, wilson

ATTACK, PLAIN = "autoattack", "clean"          # a kind; how a paper's main evaluation calls clean accuracy


@dataclass(frozen=True)
class Paper:
    """What the leaderboard has to know of a paper: its table, how it counts effort (None: it does not), and its quirks
    that change what is measured."""

    name: str
    table: Table
    effort: Callable[[RunRecord], Effort] | None = None
    measuring: tuple[str, ...] = ()


@dataclass(frozen=True)
class Threat:
    """What AutoAttack was allowed: norm and radius, images in [0,1]."""

    norm: str = "linf"
    eps: float = 8 / 255

    def __str__(self) -> str:
        return f"{'L-inf' if self.norm == 'linf' else self.norm.upper()} {255 * self.eps:g}/255"


@dataclass(frozen=True, order=True)
class Shape:
    """What makes rows comparable: all of it is the same in a group."""

    data: str
    budget: str
    network: str
    n_train: int
    extra: int                                 # additional training images
    epochs: int
    n_clean: int
    n_attacked: int
    test_fingerprint: str

    @property
    def title(self) -> str:
        more = f" and {self.extra:,} additional ones" if self.extra else ""
        return (f"{self.data}, budget {self.budget}: {self.network}, {self.n_train:,} training images{more}, "
                f"{self.epochs} epochs")


@dataclass(frozen=True)
class Entry:
    """One method with one kind of weights.  Seconds are of training, validation included, summed per seed's mean."""

    paper: str
    label: str
    shape: Shape
    runs: tuple[RunRecord, ...]                # one per seed
    records: tuple[EvalRecord, ...]            # likewise
    clean: Cell
    attacked: Cell
    clean_there: tuple[float, ...]             # clean accuracy on AutoAttack's images, per seed
    weights: str                               # what they were chosen on
    seconds: float
    seconds_in_all: float                      # with the runs that had to be trained before
    passes: float | None                       # per training image and epoch
    passes_in_all: float | None                # per training image, all epochs, with the runs before
    after: tuple[str, ...]
    device: str
    marks: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """A name that is unique on a page and fit for an anchor."""
        first = self.runs[0]
        stem = first.name.removesuffix(f"_s{first.run['seed']}")
        return "-".join([self.paper, first.run["dataset"], stem, self.records[0].plan]).replace("_", "-").lower()

    @property
    def point(self) -> tuple[float, float]:
        """(clean, AutoAttack), means over the seeds, fractions."""
        return _mean(self.clean.accuracies), _mean(self.attacked.accuracies)

    def image_interval(self, which: Cell) -> tuple[float, float]:
        """95% by the number of images alone: Wilson's of the mean."""
        return wilson(round(_mean(which.accuracies) * which.n), which.n)

    def interval(self, which: Cell) -> tuple[float, float]:
        """95% over images and seeds, see `common.stats.accuracy_interval`."""
        return accuracy_interval(which.accuracies, which.n)


@dataclass(frozen=True)
class Group:
    """Entries of one shape, best AutoAttack first; front: keys of those that none beats in both accuracies.

    absent: of a group of several papers, each paper with the labels of its table that have no entry here.
    """

    shape: Shape
    entries: tuple[Entry, ...]
    front: frozenset[str]
    absent: tuple[tuple[str, tuple[str, ...]], ...] = ()


@dataclass(frozen=True)
class Board:
    """groups: largest first; left: runs that take part in none, each with the reason."""

    threat: Threat
    groups: tuple[Group, ...]
    left: tuple[tuple[str, str], ...] = ()


def build(papers: Sequence[Paper], runs: Sequence[RunRecord], threat: Threat = Threat()) -> Board:
    """The board of finished runs; UserError, naming the folders, where one method's seeds are of two protocols."""
    entries: list[Entry] = []
    left: list[tuple[str, str]] = []
    for paper in papers:
        mine = [run for run in runs if run.run["paper"] == paper.name and run.run["seed"] not in paper.table.sources]
        labels = paper.table.labels()
        kinds = dict.fromkeys((run.run["dataset"], run.run["budget"], run.run["method"], run.run["variant"])
                              for run in mine)
        for dataset, budget, method, variant in kinds:
            some = [run for run in mine if (run.run["dataset"], run.run["budget"]) == (dataset, budget)]
            try:
                members = group(some, method, variant, paper.table.per_seed)
            except ValueError as error:
                raise UserError(f"leaderboard: {error}", code="E-COMPARE") from error
            found = _entries(paper, labels.get((method, variant), f"{method} {variant}"), members, some, threat)
            entries += found
            counted = {run.folder for entry in found for run in entry.runs}
            left += [(short(run.folder / "run.json").rpartition("/")[0], _why(run, threat))
                     for run in members if run.folder not in counted]
    shapes = dict.fromkeys(entry.shape for entry in entries)
    groups = [_group(shape, [entry for entry in entries if entry.shape == shape], papers) for shape in shapes]
    groups.sort(key=lambda one: (one.shape.data, -len(one.entries), one.shape))
    return Board(threat, tuple(groups), tuple(left))


def verdicts(record: EvalRecord, threat: Threat) -> tuple[str, str] | None:
    """(evaluator of clean accuracy, of AutoAttack) of an evaluation; None if it lacks one, or has several."""
    clean = [name for name, result in record.results.items() if result["kind"] == "clean"]
    attacked = [name for name, result in record.results.items() if result["kind"] == ATTACK
                and result["norm"] == threat.norm and math.isclose(result["eps"], threat.eps, rel_tol=1e-6)]
    return (clean[0], attacked[0]) if len(clean) == len(attacked) == 1 else None


def _why(run: RunRecord, threat: Threat) -> str:
    """Why a finished run takes part in no group."""
    if not run.evals:
        return "not evaluated"
    if all(stale(run, record) for record in run.evals.values()):
        return "evaluated with other weights than train.json names"
    found = sorted({f"{Threat(result['norm'], result['eps'])}" for record in run.evals.values()
                    for result in record.record["results"] if result["kind"] == ATTACK})
    if any(not stale(run, record) and verdicts(record, threat) for record in run.evals.values()):
        return "not evaluated by the plan that counts for its other seeds"
    return f"no AutoAttack at {threat} with clean accuracy beside it" + (f", only at {', '.join(found)}" if found
                                                                        else "")


def _entries(paper: Paper, label: str, members: Sequence[RunRecord], others: Sequence[RunRecord], threat: Threat
             ) -> list[Entry]:
    """One entry, of the largest evaluation: of the weights whose evaluators have plain names, which are those that the
    paper evaluates; one for each kind of weights where that is said of several, or of none."""
    judged = [(record, names) for run in members for record in run.evals.values()
              if not stale(run, record) and (names := verdicts(record, threat))]
    plain = [(record, names) for record, names in judged if names[0] == PLAIN]
    plans: dict[str, list[tuple[int, str]]] = {}
    for record, names in plain or judged:
        plans.setdefault(record.record["checkpoint"], []).append((record.results[names[1]]["n"], record.plan))
    # The plainest name of the largest plan: quirks and other marks make a plan's name longer.
    chosen = {checkpoint: max(found, key=lambda one: (one[0], -len(one[1]), one[1]))[1]
              for checkpoint, found in plans.items()}
    entries = [_entry(paper, label, members, others, plan, threat) for plan in chosen.values()]
    if len(entries) > 1:
        entries = [replace(entry, label=f"{entry.label}, {checkpoint} weights")
                   for entry, checkpoint in zip(entries, chosen, strict=True)]
    return entries


def _entry(paper: Paper, label: str, members: Sequence[RunRecord], others: Sequence[RunRecord], plan: str,
           threat: Threat) -> Entry:
    judged = [(run, run.evals[plan]) for run in members if plan in run.evals and not stale(run, run.evals[plan])]
    runs, records = zip(*judged, strict=True)
    names = verdicts(records[0], threat)
    try:
        clean, attacked = (cell(runs, name, (plan,)) for name in names)
    except ValueError as error:
        raise UserError(f"leaderboard: {error}", code="E-COMPARE") from error
    first = runs[0]
    named = {run.name: run for run in others}
    efforts = [paper.effort(run) if paper.effort else Effort(passes=math.nan) for run in runs]
    before = [_before(run, effort, named, paper) for run, effort in zip(runs, efforts, strict=True)]
    alone = [effort.passes * run.train["epochs"] for run, effort in zip(runs, efforts, strict=True)]
    passes = [one + sum(share for _, share in earlier) for one, earlier in zip(alone, before, strict=True)]
    seconds = [run.train["seconds"] for run in runs]
    in_all = [one + sum(run.train["seconds"] for run, _ in earlier)
              for one, earlier in zip(seconds, before, strict=True)]
    checkpoint = records[0].record["checkpoint"]
    return Entry(
        paper=paper.name, label=label, shape=_shape(first, clean, attacked), runs=runs, records=records, clean=clean,
        attacked=attacked, clean_there=tuple(float(record.arrays[names[0]][:attacked.n].mean()) for record in records),
        weights=_chosen(first, checkpoint), seconds=_mean(seconds), seconds_in_all=_mean(in_all),
        passes=_known(_mean([effort.passes for effort in efforts])), passes_in_all=_known(_mean(passes)),
        after=tuple(dict.fromkeys(run.name for earlier in before for run, _ in earlier)),
        device=", ".join(dict.fromkeys(run.train["environment"]["device"] for run in runs)))


def _chosen(run: RunRecord, checkpoint: str) -> str:
    """What the weights are: `last`, `average`, or best on what."""
    return f"{checkpoint} by {run.train['selected_on']}" if checkpoint == "best" else checkpoint


def _before(run: RunRecord, effort: Effort, named: Mapping[str, RunRecord], paper: Paper
            ) -> list[tuple[RunRecord, float]]:
    """(a run that had to be trained before, its passes for each of this run's training images), and what it needed."""
    found, todo, seen = [], list(effort.after), set()
    while todo:
        name = todo.pop(0)
        earlier = named.get(name)
        if earlier is None or name in seen:
            continue
        seen.add(name)
        its = paper.effort(earlier)
        todo += its.after
        share = _images(earlier) / _images(run)
        found.append((earlier, its.passes * earlier.train["epochs"] * share if earlier.train else 0.0))
    return [(earlier, share) for earlier, share in found if earlier.train]


def _images(run: RunRecord) -> int:
    return int(run.run["data"].get("n_train") or 1)


def _shape(run: RunRecord, clean: Cell, attacked: Cell) -> Shape:
    data = run.run["data"]
    return Shape(data=data["name"], budget=run.run["budget"], network=network(run.run["model"]), n_train=_images(run),
                 extra=int((data.get("extra") or {}).get("n", 0)), epochs=run.train["epochs"], n_clean=clean.n,
                 n_attacked=attacked.n, test_fingerprint=data["test_fingerprint"])


def network(model: Mapping[str, Any]) -> str:
    """A network in words: name, width, norm layers, parameters that the logits depend on; how it normalises its input
    changes no shape."""
    parameters = model.get("parameters", 0) - model.get("parameters_beside", 0)
    words = [model["name"], *([f"width {model['width']}"] if model.get("width") else []),
             *([f"{model['norm']} norm"] if model.get("norm", "batch") != "batch" else []),
             *([f"{parameters:,} parameters"] if parameters else [])]
    return ", ".join(words)


def _group(shape: Shape, entries: Sequence[Entry], papers: Sequence[Paper]) -> Group:
    marked = [replace(entry, marks=tuple(_marks(entry, entries))) for entry in entries]
    ordered = sorted(marked, key=lambda entry: (-entry.point[1], -entry.point[0], entry.key))
    there = {(entry.paper, run.run["method"], run.run["variant"]) for entry in entries for run in entry.runs}
    absent = {paper.name: tuple(label for key, label in paper.table.labels().items() if (paper.name, *key) not in there)
              for paper in papers if paper.name in {entry.paper for entry in entries}}
    compared = len(absent) > 1
    return Group(shape, tuple(ordered), front(ordered), tuple((paper, labels) for paper, labels in absent.items()
                                                              if labels and compared))


def front(entries: Sequence[Entry]) -> frozenset[str]:
    """Keys of the entries that no other one equals or beats in both accuracies and beats in one (Pareto front).

    One entry alone is no front.
    """
    return frozenset(one.key for one in entries if len(entries) > 1 and not any(
        other.point[0] >= one.point[0] and other.point[1] >= one.point[1] and other.point != one.point
        for other in entries))


def _marks(entry: Entry, entries: Sequence[Entry]) -> list[str]:
    """What is not the same within the group, said on the row."""
    marks = []
    if entry.after:
        marks.append(f"trained after {', '.join(entry.after)}")
    facts: list[tuple[str, Callable[[Entry], str]]] = [
        ("training images sha256 ", lambda one: one.runs[0].run["data"].get("train_fingerprint", "?")[:8]),
        ("seeds ", lambda one: ", ".join(str(run.run["seed"]) for run in one.runs)),
        ("commit ", lambda one: ", ".join(dict.fromkeys(str(run.train["environment"].get("commit") or "unknown")[:8]
                                                        for run in one.runs))),
        ("precision ", lambda one: str(one.runs[0].train["environment"].get("precision"))),
        ("attacked in chunks of ", lambda one: str(one.records[0].record.get("chunk")))]
    for what, told in facts:
        if len({told(other) for other in entries}) > 1:
            marks.append(what + told(entry))
    return marks


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
