"""Two runs, or two methods over the same seeds, judged on the same images: is the difference real?  No torch.

What does not measure the same is refused, in one line that names what differs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.cells import group, short, stale
from common.errors import UserError
from common.records import EvalRecord, RunRecord, read_record, read_run
from common.stats import bootstrap, images_needed, mcnemar, over_seeds, paired, smallest_shown

EXACT = ("clean", "fgsm")                      # kinds without random draws: how images are chunked does not matter
Verdict = tuple[EvalRecord, dict[str, Any]]    # an evaluation and one of its results


@dataclass(frozen=True)
class Judged:
    """One run and the evaluations of it that take part."""

    run: RunRecord
    records: tuple[EvalRecord, ...]

    @property
    def seed(self) -> int:
        return self.run.run["seed"]

    def verdicts(self) -> dict[str, Verdict]:
        """Evaluator -> verdict; UserError where two plans have one evaluator."""
        found: dict[str, Verdict] = {}
        for record in self.records:
            for name, result in record.results.items():
                if name in found:
                    raise UserError(f"{self.run.folder}: two plans judge {name}: name the file, "
                                    f"{found[name][0].path.name} or {record.path.name}", code="E-COMPARE")
                found[name] = record, result
        return found


@dataclass(frozen=True)
class Comparison:
    """One evaluator on the same n images, a minus b.  Fractions; p has one number per seed."""

    evaluator: str
    n: int
    seeds: tuple[tuple[int, int], ...]         # of a and of b
    accuracies: tuple[tuple[float, ...], tuple[float, ...]]
    differences: np.ndarray                    # (n,) per image, the mean over seeds
    by_seed: tuple[float, ...]
    gained: tuple[int, ...]                    # images that only a gets right, per seed
    lost: tuple[int, ...]
    p: tuple[float, ...]
    available: int                             # images in the test set

    @property
    def difference(self) -> float:
        return float(self.differences.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """Over the images, of these networks: bootstrap, 95%."""
        return bootstrap(self.differences)

    @property
    def interval_of_seeds(self) -> tuple[float, float] | None:
        """Over the seeds: Student's, 95%; None for one seed."""
        return over_seeds(self.by_seed)

    @property
    def on_images(self) -> bool:
        """Whether these networks differ beyond the chance of which images were judged."""
        low, high = self.interval
        return (low > 0 or high < 0) and (len(self.p) > 1 or self.p[0] < 0.05)

    @property
    def resolved(self) -> bool:
        """... and, where there are several seeds, beyond that of the seeds too."""
        seeds = self.interval_of_seeds
        return self.on_images and (seeds is None or seeds[0] > 0 or seeds[1] < 0)

    @property
    def needed(self) -> int | None:
        """Images that would show a difference of the size that was found; None where none was."""
        return images_needed(self.difference, float(self.differences.std()))

    @property
    def shown(self) -> float:
        """The smallest difference that this many images show."""
        return smallest_shown(self.n, float(self.differences.std()))


def read_judged(path: Path) -> Judged:
    """A run's folder with all its evaluations, or one eval-PLAN.json; UserError if there is no valid evaluation."""
    path = Path(path)
    if path.is_dir():
        run = read_run(path)
        records = tuple(record for record in run.evals.values() if not stale(run, record))
    elif path.name.startswith("eval-") and path.suffix == ".json":
        record = EvalRecord(path, read_record(path, "eval"))
        run, records = read_run(path.parent), (record,)
        if stale(run, record):
            raise UserError(f"{path} judged other weights than train.json names: evaluate the run again",
                            code="E-NOT-JUDGED")
    else:
        raise UserError(f"{path} is neither a run's folder (results/PAPER/DATA/RUN) nor its eval-PLAN.json",
                        code="E-NO-RUN")
    if run.train is None or not records:
        raise UserError(f"{path} has no evaluation of a finished training: make one with python -m scripts.evaluate "
                        f"{path if path.is_dir() else path.parent} --plan PLAN", code="E-NOT-JUDGED")
    return Judged(run, records)


def check_side(side: Sequence[Judged], per_seed: Sequence[str] = ()) -> None:
    """UserError unless the runs of a side are one method, trained alike but for the seed; see `common.cells.group`."""
    first = side[0].run.run
    for key in ("paper", "dataset", "method", "variant"):
        if other := next((one.run.run for one in side if one.run.run[key] != first[key]), None):
            raise UserError(f"one side, two methods: {first['run']} has {key} {first[key]}, {other['run']} "
                            f"{other[key]}", code="E-COMPARE")
    try:
        group([one.run for one in side], first["method"], first["variant"], per_seed)
    except ValueError as error:
        raise UserError(f"the runs of a side may differ in the seed only: {error}", code="E-COMPARE") from error


def compare(a: Sequence[Judged], b: Sequence[Judged], *, common: bool = False,
            measuring: Mapping[str, Sequence[str]] | None = None) -> tuple[list[Comparison], list[str]]:
    """(one comparison per evaluator of both sides, evaluators that only one side has).

    a, b: the runs of a side, checked by `check_side`.  One run each is compared whatever its seed; of several each
    seed with the same one.  common: where n differs, the first images that both judged.  measuring: paper -> its
    measuring quirks.  UserError where the records do not measure the same, or share no evaluator.
    """
    pairs = matched(a, b)
    tables = [(one.verdicts(), other.verdicts()) for one, other in pairs]
    for one, other in pairs:
        check_quirks(one, other, measuring or {})
    names = counterparts(*tables[0])
    found, left = [], sorted({name for ours, _ in tables for name in ours} - {first for first, _ in names})
    left += sorted({name for _, theirs in tables for name in theirs} - {second for _, second in names} - set(left))
    for first, second in names:
        if all(first in ours and second in theirs for ours, theirs in tables):
            found.append(_compared(first, second, pairs, tables, common))
    if not found:
        raise UserError(f"{pairs[0][0].run.folder} and {pairs[0][1].run.folder} share no evaluator: evaluate both by "
                        "one plan", code="E-COMPARE")
    return found, left


def matched(a: Sequence[Judged], b: Sequence[Judged]) -> list[tuple[Judged, Judged]]:
    """The pairs of runs that are compared."""
    if len(a) == len(b) == 1:
        return [(a[0], b[0])]
    first, second = {one.seed: one for one in a}, {one.seed: one for one in b}
    if first.keys() != second.keys():
        raise UserError(f"several runs are compared seed by seed: one side has seeds {sorted(first)}, the other "
                        f"{sorted(second)}; name runs of the same seeds", code="E-COMPARE")
    return [(first[seed], second[seed]) for seed in sorted(first)]


def counterparts(ours: Mapping[str, Verdict], theirs: Mapping[str, Verdict]) -> list[tuple[str, str]]:
    """(name here, name there): the same name, or else the same measurement under another one."""
    found = [(name, name) for name in ours if name in theirs]
    for name, (_, result) in ours.items():
        alike = [other for other, (_, there) in theirs.items()
                 if other not in ours and all(result[key] == there[key] for key in ("kind", "norm", "eps", "settings"))]
        if name not in theirs and len(alike) == 1:
            found.append((name, alike[0]))
    return found


def check_quirks(one: Judged, other: Judged, measuring: Mapping[str, Sequence[str]]) -> None:
    """UserError where one of two runs was measured with an oddity that the other was measured without."""
    first, second = (set(side.run.run["quirks"]) & set(measuring.get(side.run.run["paper"], ()))
                     for side in (one, other))
    if first != second:
        raise UserError(f"not measured alike: quirks {', '.join(sorted(first)) or 'none'} in {one.run.name}, "
                        f"{', '.join(sorted(second)) or 'none'} in {other.run.name}", code="E-COMPARE")


def difference_of(first: Verdict, second: Verdict, common: bool = False) -> str | None:
    """What makes two verdicts incomparable, in words; None if they measure the same."""
    (one, result), (other, there) = first, second
    pairs = [("test images (sha256)", *(record.record["data"]["test_fingerprint"][:12] for record in (one, other))),
             ("kind", result["kind"], there["kind"]), ("norm", result["norm"], there["norm"]),
             ("eps", *(_in_255ths(each["eps"]) for each in (result, there)))]
    keys = dict.fromkeys([*result["settings"], *there["settings"]])
    pairs += [(key, *(each["settings"].get(key, "unset") for each in (result, there))) for key in keys]
    if result["kind"] not in EXACT:
        pairs.append(("images per chunk", *(record.record.get("chunk") for record in (one, other))))
    if not common:
        pairs.append(("number of images", result["n"], there["n"]))
    n = min(result["n"], there["n"])
    pairs.append(("positions of the images", *(record.arrays["index"][:n].tolist() for record in (one, other))))
    if one.plan == other.plan:
        pairs.append((f"plan {one.plan} (sha256)", *(record.record["plan_sha256"][:12] for record in (one, other))))
    for what, here, beside in pairs:
        if here != beside:
            if what == "positions of the images":
                return f"{what} differ"
            more = "; --common takes the images that both judged" if what == "number of images" else ""
            return f"{what} {here} and {beside}{more}"
    return None


def _in_255ths(eps: float | None) -> str:
    return "none" if eps is None else f"{255 * eps:g}/255"


def _compared(first: str, second: str, pairs: Sequence[tuple[Judged, Judged]],
              tables: Sequence[tuple[Mapping[str, Verdict], Mapping[str, Verdict]]], common: bool) -> Comparison:
    """One evaluator; UserError, naming what differs, where a pair of runs was not measured alike."""
    verdicts = [(ours[first], theirs[second]) for ours, theirs in tables]
    start = verdicts[0][0]
    for one, other in verdicts:
        for ours, theirs in ((one, other), (start, one)):
            if told := difference_of(ours, theirs, common):
                raise UserError(f"not measured alike: {first}: {told} ({short(ours[0].path)} and "
                                f"{short(theirs[0].path)})", code="E-COMPARE")
    n = min(result["n"] for pair in verdicts for _, result in pair)
    flags = [[record.arrays[result["name"]][:n] for record, result in pair] for pair in verdicts]
    counted = [paired(*pair) for pair in flags]
    return Comparison(
        evaluator=first if first == second else f"{first} ({second})", n=n,
        seeds=tuple((one.seed, other.seed) for one, other in pairs),
        accuracies=tuple(zip(*(table.accuracies for table in counted), strict=True)),
        differences=np.mean([one.astype(np.float64) - other for one, other in flags], axis=0),
        by_seed=tuple(table.difference for table in counted), gained=tuple(table.only_a for table in counted),
        lost=tuple(table.only_b for table in counted), p=tuple(mcnemar(table) for table in counted),
        available=start[0].record["data"].get("n_test") or n)
