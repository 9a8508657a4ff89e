"""What the measurements of common.evaluation.masking say: for each sign of masked gradients, whether it is there.

No torch here.  Counts differ by chance: a sign needs a difference beyond SLACK of the images, and one image.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, NamedTuple

from common.evaluation.codes import PAGE
from common.render import Grid, markdown
from common.stats import wilson

SLACK = 0.02
LOUD = 30.0                                  # a median largest logit from which probabilities round to one


class Sign(NamedTuple):
    """what: the sign, as a statement; there: whether it is; said: the numbers."""

    what: str
    there: bool
    said: str


def signs(found: Mapping[str, Any]) -> list[Sign]:
    """Every sign, in the order of the page."""
    n, slack = found["n"], max(1.0, SLACK * found["n"])
    pgd = found["by_steps"]
    counts = {steps: entry["robust"] for steps, entry in pgd.items()}
    by_eps = [found["clean"]["robust"], *(entry["robust"] for entry in found["by_eps"].values())]
    rises = max(after - before for before, after in pairwise(by_eps))
    left = found["whole"]["robust"]
    fgsm, noise, square = found["fgsm"]["robust"], found["noise"]["robust"], found["square"]
    last, before = counts["50"], counts["20"]
    losses = {steps: entry["loss"] for steps, entry in pgd.items()}
    margins, gradients, surface = found["margins"], found["gradients"], found["surface"]
    steps_rise = max(after - least for least, after in _running(list(counts.values())))
    return [
        Sign("a larger ball leaves more images standing", rises > slack,
             "standing at " + ", ".join(f"{key} eps: {entry['robust']}" for key, entry in found["by_eps"].items())),
        Sign("a ball that holds the grey image leaves images standing", left > max(slack, n / found["classes"]),
             f"{left} of {n} stand in it"),
        Sign("more steps leave more images standing", steps_rise > slack,
             "standing after " + ", ".join(f"{steps} steps: {count}" for steps, count in counts.items())),
        Sign("20 steps are not enough", before - last > slack, f"20 steps leave {before}, 50 leave {last}"),
        Sign("the loss after 50 steps is below that after 5", losses["50"] < losses["5"] - 1e-3 * abs(losses["5"]),
             f"{losses['5']:.3f} after 5, {losses['50']:.3f} after 50 steps"),
        Sign("FGSM breaks more than PGD-20", before - fgsm > slack, f"FGSM leaves {fgsm}, PGD-20 {before}"),
        Sign("noise breaks as many as one step along the gradient",
             (found["clean"]["robust"] > fgsm and noise <= fgsm) or _flat(found, slack),
             f"noise leaves {noise} of {found['clean']['robust']}, FGSM {fgsm}"),
        Sign("Square, which sees no gradient, breaks images that PGD-50 does not", square["beyond"] > slack,
             f"Square ({found['queries']} queries) leaves {square['robust']}, PGD-50 {last}; "
             f"{square['beyond']} only Square breaks"),
        Sign("the input gradient is exactly zero", gradients["margin"] > slack or gradients["cross_entropy"] > slack,
             f"of the cross-entropy for {gradients['cross_entropy']}, of the logits' margin for {gradients['margin']} "
             f"of {n} images"),
        Sign("the logits are so large that cross-entropy saturates", margins["largest_logit"] > LOUD,
             f"the median largest logit is {margins['largest_logit']:.1f}; median margin "
             f"{margins['clean'][2]:.2f} clean, {margins['attacked'][2]:.2f} under PGD-20"),
        Sign("the loss does not rise along its own gradient", surface["steeper"] < 0.8 * surface["n"],
             f"for {surface['steeper']} of {surface['n']} images it is higher at +eps along the gradient's signs than "
             "along random ones"),
    ]


def _running(counts: list[int]) -> list[tuple[int, int]]:
    """(the least before it, it) of every count but the first."""
    return [(min(counts[:place]), count) for place, count in enumerate(counts) if place]


def _flat(found: Mapping[str, Any], slack: float) -> bool:
    """No attack moves anything, although the clean accuracy leaves room: nothing distinguishes gradient from noise."""
    clean = found["clean"]["robust"]
    return clean > slack and clean == found["fgsm"]["robust"] == found["by_steps"]["50"]["robust"]


def verdict(found: Mapping[str, Any]) -> str:
    """One sentence over all signs."""
    there = [sign for sign in signs(found) if sign.there]
    if not there:
        return (f"None of {len(signs(found))} signs of masked gradients is there. That proves nothing, but nothing "
                "here speaks against the number.")
    return (f"{len(there)} of {len(signs(found))} signs of masked gradients: the true robust accuracy may be lower "
            "than what PGD and AutoAttack find. An attack made for this network is needed.")


def page(title: str, found: Mapping[str, Any], *, figure: str, notes: list[str]) -> str:
    """The page in Markdown: verdict, signs, numbers, figure."""
    n = found["n"]
    rows = []
    for name, entry in attacks(found):
        low, high = wilson(entry["robust"], n)
        rows.append((name, f"{100 * entry['robust'] / n:.1f}", f"{100 * low:.1f} to {100 * high:.1f}",
                     f"{entry['loss']:.3f}"))
    told = [(sign.what, "**yes**" if sign.there else "no", sign.said) for sign in signs(found)]
    grids = [Grid(title, ("suspicious if", "here", "numbers"), tuple(told)),
             Grid("Attacks", ("attack", "standing, %", "95% interval", "mean loss"), tuple(rows))]
    head = [f"First {n} test images, {found['norm']}, eps {found['eps']:.6g} ({255 * found['eps']:.4g}/255), seed "
            f"{found['seed']}. {verdict(found)}", "", *(f"- {note}" for note in notes), "", f"![curves]({figure})", ""]
    lines = markdown(grids).split("\n")
    last = f"What each mistake is called, and how to mend it: {PAGE}."
    return "\n".join([*lines[:2], *head, *lines[2:], "", last, ""])


def attacks(found: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """(name, {robust, loss}) of every attack of the page."""
    eps = [(f"PGD-20 at {key} eps", entry) for key, entry in found["by_eps"].items() if key != "1"]
    steps = [(f"PGD-{key}", entry) for key, entry in found["by_steps"].items()]
    return [("none", found["clean"]), ("noise, worst of 10 draws", found["noise"]), ("FGSM", found["fgsm"]),
            *steps, *eps, ("PGD-50 in a ball that holds the grey image", found["whole"]),
            (f"Square alone, {found['queries']} queries", found["square"])]
