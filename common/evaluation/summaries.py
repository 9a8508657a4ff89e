"""Lines about the results of a record: what there is to say beside each evaluator's accuracy.  No torch here."""

from collections.abc import Iterable, Mapping
from typing import Any

from common.evaluation.corruptions import SEVERITIES, by_band, by_severity, mean_error, rates
from common.evaluation.kinds import CORRUPTION_KINDS
from common.render import DASH


def said(result: Mapping[str, Any]) -> list[str]:
    """Of one result, given as in a record: the line of its accuracy, and that of a search for adversarial images."""
    robust, n = result["robust"], result["n"]
    line = f"{result['name']:<14} {shown(robust, n)}  ({robust} of {n} images)"
    values = result.get("values", {})
    if "correct_unbounded" not in values:
        return [line]
    found = f"searched {values['attacked']}, nothing found for {values['failed']}"
    if values["distance"]:
        found += f"; median distance {values['distance']['median']:.4f} ({result['norm']})"
    if values.get("mean_square"):
        found += f", median of mean squares {values['mean_square']['median']:.3g}"
    # At eps 0 nothing is attacked: what was found is all there is to say.
    return [line, f"  {found}"] if result["eps"] else [f"{result['name']:<14} {found}"]


def over_corruptions(results: Iterable[Mapping[str, Any]]) -> list[str]:
    """Accuracy by severity, of all corruptions and of each frequency band, and the mean error; nothing without them."""
    corrupted = [result for result in results if result["kind"] in CORRUPTION_KINDS]
    if not corrupted:
        return []
    bands = by_band(corrupted)
    rows = {"all": by_severity(corrupted), **{band: bands[band] for band in ("low", "medium", "high") if band in bands}}
    severities = sorted(rows["all"])
    lines = [f"{'severity':<14} " + " ".join(f"{severity:>8}" for severity in severities)]
    for name, counts in rows.items():
        cells = (shown(*counts[severity]) if severity in counts else DASH for severity in severities)
        lines.append(f"{name:<14} " + " ".join(f"{cell:>8}" for cell in cells))
    if all(set(counts) == set(SEVERITIES) for counts in rates(corrupted).values()):
        title, mean = mean_error(corrupted)
        lines.append(f"{title}: {100 * mean:.2f} %")
    return lines


def shown(robust: int, n: int) -> str:
    """An accuracy in percent."""
    return f"{100 * robust / n:6.2f} %"
