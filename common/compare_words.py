"""A comparison said in words that need no statistics course.  No torch."""

from collections.abc import Sequence

from common.cells import short
from common.compare import Comparison, Judged
from common.render import DASH, Grid


def sentence(one: Comparison) -> str:
    """'clean: +2.4 ± 2.3 points (A better): resolved with 1,000 images ...', one evaluator in one paragraph."""
    low, high = one.interval
    points, half = 100 * one.difference, 50 * (high - low)
    better = "no difference" if one.difference == 0 else "A better" if one.difference > 0 else "B better"
    images = f"{one.n:,} image{'s' * (one.n != 1)}"
    head = f"{one.evaluator}: {points:+.1f} ± {half:.1f} points ({better}): "
    if one.resolved:
        return head + f"resolved with {images}{_seeds(one)}."
    if one.on_images:
        low, high = one.interval_of_seeds
        return head + (f"these networks differ, on {images}, but their seeds disagree ({_points(one.by_seed)}; over "
                       f"seeds {100 * low:+.1f} to {100 * high:+.1f}): not resolved with {len(one.seeds)} seeds; train "
                       "more seeds, not more images.")
    return head + f"not resolved with {images}{_seeds(one)}{_needed(one)}{_least(one)}."


def _needed(one: Comparison) -> str:
    needed = one.needed
    if needed is None:
        return "; no number of images resolves a difference of nothing"
    if needed <= one.n:
        return "; it stands on the edge"
    rounded = round(needed, 2 - len(str(needed)))
    beyond = "" if needed <= one.available else f", more than the {one.available:,} of the test set"
    return f"; if it really is that large, about {rounded:,} images would show it{beyond}"


def _least(one: Comparison) -> str:
    return f"; this many show differences from about {100 * one.shown:.1f} points on" if one.shown > 0 else ""


def _seeds(one: Comparison) -> str:
    return f" and {len(one.seeds)} seeds ({_points(one.by_seed)})" if len(one.seeds) > 1 else ""


def _points(values: Sequence[float]) -> str:
    return ", ".join(f"{100 * value:+.1f}" for value in values)


def table(found: Sequence[Comparison]) -> Grid:
    """One row per evaluator."""
    rows = []
    for one in found:
        (a, b), (low, high), seeds = one.accuracies, one.interval, one.interval_of_seeds
        rows.append((one.evaluator, f"{one.n:,}", _percent(a), _percent(b), f"{100 * one.difference:+.2f}",
                     f"[{100 * low:+.1f}, {100 * high:+.1f}]",
                     f"[{100 * seeds[0]:+.1f}, {100 * seeds[1]:+.1f}]" if seeds else DASH,
                     ", ".join(map(str, one.gained)), ", ".join(map(str, one.lost)),
                     ", ".join(f"{value:.2g}" for value in one.p), "yes" if one.resolved else "no",
                     DASH if one.needed is None else f"{one.needed:,}"))
    return Grid("A − B, image by image", (
        "evaluator", "n", "A", "B", "A − B", "over images", "over seeds", "only A right", "only B right", "McNemar p",
        "resolved", "images needed"), tuple(rows), (
        "A, B in %, one number per seed. A − B in percentage points; over images: 95% bootstrap interval (10,000 draws "
        "of the same images for all seeds); over seeds: Student's 95% interval of the mean.",
        "McNemar p: exact, two-sided, one per seed. Resolved: both intervals leave out 0 and, with one seed, p < 0.05.",
        "Images needed: to show a true difference of the size found (level 5%, power 80%).",
        f"{len(found)} evaluator{'s' * (len(found) != 1)}: of twenty comparisons of equals about one looks resolved."))


def caution(found: Sequence[Comparison]) -> str:
    """What a comparison of single runs cannot say; empty for several seeds."""
    if len(found[0].seeds) > 1:
        return ""
    return ("One seed each: this is about these two networks, not yet about two methods; another seed may move an "
            "accuracy by a point or more. Name several seeds: A_s1 A_s2 --against B_s1 B_s2.")


def _percent(values: Sequence[float]) -> str:
    return ", ".join(f"{100 * value:.2f}" for value in values)


def described(letter: str, side: Sequence[Judged]) -> str:
    """'A: adarat/cifar10: pgd-at_short_s1 (last weights)', and what was trained how."""
    first, names = side[0], ",".join(one.run.name for one in side)
    weights = ", ".join(dict.fromkeys(record.record["checkpoint"] for one in side for record in one.records))
    model = first.run.run["model"]
    width = f" of width {model['width']}" if "width" in model else ""
    return (f"{letter}: {short(first.run.folder / 'run.json').rsplit('/', 2)[0]}/"
            + (f"{{{names}}}" if len(side) > 1 else names) + f" ({weights} weights; {model['name']}{width}, "
            f"{first.run.run['data'].get('n_train', '?')} training images, {first.run.train['epochs']} epochs)")
