"""Accuracy on corrupted images: plans, the images of a chunk, and means over corruptions.  No torch here.

From the files of CIFAR-10-C or CIFAR-100-C (Hendrycks and Dietterich 2019), or corrupted on the fly by our own code,
which is never called CIFAR-10-C.  Each corruption and severity is an evaluator on the test images, so that its flags
are those of the same images as all others'.  Accuracy only: AlexNet's error, the baseline of the ImageNet-C paper, is
not divided by (RPAT does not either).
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.errors import UserError
from common.evaluation.kinds import CORRUPTION_KINDS
from common.evaluation.plans import Evaluator, Plan

if TYPE_CHECKING:
    from common.data.corruption_files import CorruptionFiles

OWN = "own corruptions"
SETS = ("CIFAR-10-C", "CIFAR-100-C")
GREY = "-grey"                               # behind the name of a set whose images are turned grey
SEVERITIES = (1, 2, 3, 4, 5)
# Corruption -> the band of spatial frequencies in which it changes images.  Li et al. (2023, PLoS Computational Biology
# 19(3), e1010932) hold that networks regularised to be brain-like rely on low frequencies, and Yin et al. (2019, "A
# Fourier perspective on model robustness") tell corruptions apart by the spectrum of (corrupted - clean).  So do we,
# and the bands are our measurement, not a list of theirs: the mean frequency of the power spectrum of
# (corrupted - clean), in cycles per pixel, 200 CIFAR-10 test images, all severities of our own corruptions: low up to
# 0.10, medium 0.15 to 0.33, high from 0.36 on; nothing lies between.  The last four, which are not among our own, are
# judged by what they do: a smooth overlay, blurred flakes and drops, pixels that swap places.
BANDS = {
    **dict.fromkeys(("brightness", "contrast", "saturate", "fog"), "low"),
    **dict.fromkeys(("gaussian_blur", "defocus_blur", "motion_blur", "zoom_blur", "elastic_transform",
                     "jpeg_compression"), "medium"),
    **dict.fromkeys(("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "pixelate"), "high"),
    "frost": "low", "snow": "medium", "spatter": "medium", "glass_blur": "high"}
CIFAR_C = tuple(sorted(BANDS))


def open_files(folder: Path, *, grey: bool = False) -> "CorruptionFiles":
    """The 19 files of a folder called CIFAR-10-C or CIFAR-100-C, checked; UserError for what is missing or damaged.

    grey: for networks of one channel; the set then is called CIFAR-10-C-grey.
    """
    from common.data.corruption_files import CorruptionFiles
    name = Path(folder).resolve().name
    if name not in SETS:
        raise UserError(f"{folder}: a folder of corrupted images is called {' or '.join(SETS)}: the name says which "
                        "test images they are of", code="E-CORRUPTION-FILES")
    return CorruptionFiles(Path(folder), name + GREY * grey, CIFAR_C, grey)


def file_plan(files: "CorruptionFiles", *, n: int | None = None, chunk: int = 500) -> Plan:
    """Every corruption and severity of the files; n: of each only the first n images.  Reads all files (sha256)."""
    evaluators = [Evaluator(f"{files.name} {corruption} {severity}", "corruption-file", n=n,
                            settings={"corruption": corruption, "severity": severity, "set": files.name,
                                      "sha256": files.sha256(corruption)})
                  for corruption in files.names for severity in SEVERITIES]
    return Plan(files.name.lower() + part(n), tuple(evaluators), chunk)


def file_plan_named(plan: str, files: "CorruptionFiles") -> Plan:
    """The plan cifar-10-c or cifar-10-c-N (the first N images), as the files are called; UserError for another name."""
    stem = files.name.lower()
    match = re.fullmatch(rf"{stem}(?:-(\d+))?", plan)
    if match is None:
        raise UserError(f"--plan {plan}: of the files in {files.folder} this run is judged by the plan {stem}, or "
                        f"{stem}-N on the first N images", code="E-PLAN")
    return file_plan(files, n=int(match[1]) if match[1] else None)


def own_plan(channels: int, *, n: int | None = None, chunk: int = 500) -> Plan:
    """Every corruption of our own for images of `channels` channels, in every severity."""
    from common.data.corruptions import own_corruptions
    evaluators = [Evaluator(f"own {corruption} {severity}", "corruption", n=n,
                            settings={"corruption": corruption, "severity": severity})
                  for corruption in own_corruptions(channels) for severity in SEVERITIES]
    return Plan("own-corruptions" + part(n), tuple(evaluators), chunk)


def part(n: int | None) -> str:
    """What is added to a plan's name for the first n images."""
    return "" if n is None else f"-{n}"


def check(plan: Plan, files: "CorruptionFiles | None", labels: np.ndarray, shape: tuple[int, ...]) -> None:
    """UserError if a plan asks for corruptions that there are not, or for files that are not of these test images.

    labels (N,): of the test images; shape (C,H,W).
    """
    from common.data.corruptions import own_corruptions
    asked = [evaluator for evaluator in plan.evaluators if evaluator.kind in CORRUPTION_KINDS]
    if asked and plan.test_crop:
        raise UserError(f"plan {plan.name!r}: test_crop crops the test images, and corrupted ones are measured as they "
                        "are: give corruptions a plan of their own", code="E-PLAN-DATA")
    for evaluator in asked:
        corruption = evaluator.setting("corruption")
        if evaluator.kind == "corruption":
            if corruption not in own_corruptions(shape[0]):
                raise UserError(f"evaluator {evaluator.name!r}: there is no corruption {corruption!r} of our own for "
                                f"images of {shape[0]} channels; there are {', '.join(own_corruptions(shape[0]))}",
                                code="E-PLAN-DATA")
            continue
        if files is None or (files.name, evaluator.setting("sha256")) != (evaluator.setting("set"),
                                                                          files.sha256(corruption)):
            raise ValueError(f"evaluator {evaluator.name!r} needs the files that its plan was made from")
    if any(evaluator.kind == "corruption-file" for evaluator in asked):
        files.check_fits(labels, shape)


def corrupted(evaluator: Evaluator, files: "CorruptionFiles | None", images: np.ndarray, where: slice) -> np.ndarray:
    """The images uint8 (B,C,H,W) of a chunk, at the positions `where` of the test set, as the evaluator wants them."""
    from common.data.corruptions import corrupt
    corruption, severity = evaluator.setting("corruption"), evaluator.setting("severity")
    if evaluator.kind == "corruption-file":
        return files.images(corruption, severity, where)
    return corrupt(corruption, severity, images, first=where.start)


def rates(results: Iterable[Mapping[str, Any]]) -> dict[str, dict[int, tuple[int, int]]]:
    """Corruption -> severity -> (images classified correctly, images), from the results of a record."""
    found: dict[str, dict[int, tuple[int, int]]] = {}
    for result in results:
        if result["kind"] in CORRUPTION_KINDS:
            settings = result["settings"]
            found.setdefault(settings["corruption"], {})[settings["severity"]] = (result["robust"], result["n"])
    return found


def errors(results: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Corruption -> error rate over all its severities, as RPAT takes it over a whole file; a missing severity is a
    ValueError."""
    found = {}
    for corruption, severities in rates(results).items():
        if set(severities) != set(SEVERITIES):
            raise ValueError(f"{corruption} was measured in the severities {sorted(severities)}, not {SEVERITIES}")
        correct, images = (sum(column) for column in zip(*severities.values(), strict=True))
        found[corruption] = 1 - correct / images
    return found


def mean_error(results: Iterable[Mapping[str, Any]]) -> tuple[str, float]:
    """What the mean of the error rates is called, and the plain mean over the corruptions.

    ("mCE, CIFAR-10-C", ...) only for all 19 corruptions of the files of one set; on images of our own making
    ("mean error, own corruptions (15)", ...).
    """
    results = list(results)
    found = errors(results)
    sets = {result["settings"].get("set", OWN) for result in results if result["kind"] in CORRUPTION_KINDS}
    if len(sets) != 1:
        raise ValueError(f"a mean over corruptions of one set, not of {sorted(sets) or 'none'}")
    name, = sets
    if name != OWN and set(found) == set(CIFAR_C):
        return f"mCE, {name}", float(np.mean(list(found.values())))
    return f"mean error, {name} ({len(found)})", float(np.mean(list(found.values())))


def by_severity(results: Iterable[Mapping[str, Any]]) -> dict[int, tuple[int, int]]:
    """Severity -> (images classified correctly, images), summed over the corruptions."""
    return added(rates(results).values())


def added(each: Iterable[Mapping[int, tuple[int, int]]]) -> dict[int, tuple[int, int]]:
    """Severity -> both counts, summed."""
    found: dict[int, tuple[int, int]] = {}
    for severities in each:
        for severity, (correct, images) in severities.items():
            before = found.get(severity, (0, 0))
            found[severity] = (before[0] + correct, before[1] + images)
    return found


def by_band(results: Iterable[Mapping[str, Any]]) -> dict[str, dict[int, tuple[int, int]]]:
    """Band (low, medium, high) -> severity -> (images classified correctly, images), summed over its corruptions."""
    bands: dict[str, list[Mapping[int, tuple[int, int]]]] = {}
    for corruption, severities in rates(results).items():
        bands.setdefault(BANDS[corruption], []).append(severities)
    return {band: added(each) for band, each in bands.items()}
