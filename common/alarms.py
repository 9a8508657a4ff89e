"""What a long training should be told about while it runs: pure functions of its epoch lines (metrics.jsonl).

    exploding-loss            the loss, or a cross-entropy in it, is over 10 times its median of the last 5 epochs and
                              over twice its highest ever.  Both, for a loss may shrink to nothing and come back: under
                              AdaRAT's barrier it falls tenfold when the gate opens, burn-in phases add and drop terms,
                              and the first epochs of a schedule are the highest.  Before 3 epochs are there, the level
                              is at least 7, the cross-entropy of guessing among 1,000 classes
    collapse                  accuracies on training and on validation images, clean and attacked, are all at most half
                              their highest of the last 5 epochs, as when the network answers one class to everything:
                              its loss need not be large then
    catastrophic-overfitting  Wong, Rice and Kolter 2020: from an epoch to the next few, accuracy under PGD on
                              validation images falls to a quarter or less, by more than 4 standard errors and for two
                              validations in a row, while that on the attacked training
                              images (or on validation images under FGSM) stays
    robust-overfitting        Rice, Wong and Kolter 2020: the mean accuracy under attack of 5 epochs is below that of
                              the best 5 by more than 2 standard errors of the difference of two shares of n images,
                              and by more than 4 of two means of 5 epochs, from the scatter between epochs since then,
                              while that on training images has risen by a point.  Means and 4, for at a high learning
                              rate accuracies jump by points, and the best of a hundred epochs is luck

They only warn: a run that is not finite stops (common.journal), and all else may still be what somebody wants to see.
Depending on the lines alone, they are the same for a run that was killed and went on.  No torch here.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any, NamedTuple

Row = Mapping[str, Any]
PAGE = "docs/alarms.md"
BEGINS, WORSE, OVER = "begins", "worse", "over"
WINDOW = 5                                    # epochs that a level or a mean is taken over
LOSSES = ("loss", "clean_loss", "adversarial_loss")
GUESSING = 7.0                                # ln 1000 is 6.9
TRAINED = ("adversarial_accuracy", "clean_accuracy")
CLEAN = (("val_clean_accuracy", "n_val"), ("test_clean_accuracy", "n_test"), ("test_clean_accuracy", "n_validation"))
# Validation images before test images, as runs choose their weights.
ROBUST = tuple((f"{part}_{name}_accuracy", count) for part, counts in (("val", ("n_val",)), ("test", (
    "n_test", "n_validation"))) for name in ("pgd", "robust") for count in counts)
# Where an average of the weights is judged, it is what is used in the end.
AVERAGED = (("val_wa_pgd_accuracy", "n_val"), ("test_wa_pgd_accuracy", "n_test"))


class Finding(NamedTuple):
    """size: 1 where the alarm begins; text: what was seen; advice: what to do."""

    size: float
    text: str
    advice: str = ""


# (epoch lines so far, how many of them came before the alarm began or None) -> finding; None: this line says nothing
Judge = Callable[[Sequence[Row], int | None], Finding | None]


@dataclass(frozen=True)
class Alarm:
    """kind: see above; state: it begins, is much worse (3 times), or is over; epoch: from 1; text: one line."""

    kind: str
    state: str
    epoch: int
    text: str


def found(rows: Sequence[Row], kept: Collection[str] = ()) -> list[Alarm]:
    """All alarms of a training in the order of epochs.  rows: its epoch lines; kept: its selections, such as "best"."""
    judges: dict[str, tuple[Judge, float]] = {
        "exploding-loss": (exploding, 0.5), "collapse": (collapse, 2 / 3),
        "catastrophic-overfitting": (lambda seen, before: catastrophic(seen, before, kept), 0.5),
        "robust-overfitting": (lambda seen, before: overfitting(seen, kept), 0.5)}
    alarms = [alarm for kind, (judge, end) in judges.items() for alarm in _followed(rows, kind, judge, end)]
    return sorted(alarms, key=lambda alarm: alarm.epoch)


def _followed(rows: Sequence[Row], kind: str, judge: Judge, end: float) -> list[Alarm]:
    """One kind's alarms; end: the size below which it is over."""
    alarms: list[Alarm] = []
    before, said = None, 0.0                  # lines before it began, the size last told
    name = kind.replace("-", " ")
    for count in range(1, len(rows) + 1):
        finding, epoch = judge(rows[:count], before), rows[count - 1]["epoch"]
        if finding is None:
            continue
        if before is None and finding.size >= 1:
            before, said = count - 1, finding.size
            text = f"{name} in epoch {epoch}: {finding.text}. {finding.advice} ({PAGE})"
            alarms.append(Alarm(kind, BEGINS, epoch, text))
        elif before is not None and finding.size < end:
            alarms.append(Alarm(kind, OVER, epoch, f"{name} since epoch {rows[before]['epoch']} is over in epoch "
                                f"{epoch}: {finding.text}"))
            before = None
        elif before is not None and finding.size >= 3 * said:
            said = finding.size
            alarms.append(Alarm(kind, WORSE, epoch, f"{name} since epoch {rows[before]['epoch']} is much worse in "
                                f"epoch {epoch}: {finding.text}"))
    return alarms


def summary(alarms: Sequence[Mapping[str, Any]]) -> str:
    """What a table says of a run's recorded alarms: "robust overfitting from epoch 12 on", ...; empty for none."""
    words = {BEGINS: "from epoch {} on", OVER: "until epoch {}"}
    return ", ".join(f"{alarm['kind'].replace('-', ' ')} {words[alarm['state']].format(alarm['epoch'])}"
                     for alarm in alarms if alarm["state"] in words)


def exploding(rows: Sequence[Row], before: int | None) -> Finding:
    """The loss, or cross-entropy, that is farthest above its level."""
    earlier, worst = rows[:-1] if before is None else rows[:before], Finding(0.0, "the loss is back at its level")
    for key in LOSSES:
        values, value = _values(earlier, key), rows[-1].get(key)
        if value is None or (key == "loss" and not values):          # a loss may have any scale
            continue
        level = median(map(abs, values[-WINDOW:])) if values else 0.0
        level = max(level, GUESSING if len(values) < 3 else 1e-6)
        highest = max(map(abs, values), default=0.0)
        size = min(abs(value) / (10 * level), abs(value) / (2 * highest) if highest else math.inf)
        if size > worst.size:
            was = f"; it was {values[-1]:.3g} the epoch before, {highest:.3g} at most" if values else ""
            worst = Finding(size, f"{key} is {value:.3g}{was}",
                            "The steps are too large: lower the learning rate, limit the gradient's norm where the "
                            "method has a flag for it, or compute with --precision fp32")
    return worst


def collapse(rows: Sequence[Row], before: int | None) -> Finding | None:
    """How far all accuracies have fallen together."""
    earlier, last = rows[:-1] if before is None else rows[:before], rows[-1]
    checked = _key(rows, CLEAN)
    if checked is None or checked[0] not in last:
        return None
    keys = [key for key in (*TRAINED, checked[0]) if key in last]
    past = [_values(earlier, key)[-WINDOW:] for key in keys]
    if len(keys) < 2 or any(len(values) < 2 for values in past):
        return None
    falls = [(key, max(values), last[key]) for key, values in zip(keys, past, strict=True)]
    size = min(high / (2 * max(now, 1e-9)) for _, high, now in falls)
    if before is None and not _beyond(falls[-1][1], last[checked[0]], last[checked[1]], 4):
        size = 0.0
    told = ", ".join(f"{key} {now:.1%} (was {high:.1%})" for key, high, now in falls)
    return Finding(size, told, "The network has lost what it had learnt: stop, lower the learning rate or try "
                   "--precision fp32, and train again")


def catastrophic(rows: Sequence[Row], before: int | None, kept: Collection[str]) -> Finding | None:
    """How far accuracy under PGD has fallen while that under the training's own attack stands."""
    last, checked = rows[-1], _key(rows, ROBUST)
    if checked is None or checked[0] not in last or "adversarial_accuracy" not in last:
        return None
    key, count = checked
    # It begins with two validations in a row, for at a high learning rate one may fall and the next be as before.
    earlier, now = [[row for row in part if key in row and "adversarial_accuracy" in row]
                    for part in (rows if before is None else rows[:before + 1], rows)]
    recent, now = earlier[:-2][-WINDOW:], now[-2:] if before is None else [last]
    if not recent:
        return None
    low = max(row[key] for row in now)
    best = max(recent, key=lambda row: row[key])
    stands = []
    if last["adversarial_accuracy"] >= 0.75 * best["adversarial_accuracy"]:
        stands.append(f"that on the attacked training images is {last['adversarial_accuracy']:.1%}")
    fgsm = key.replace("_pgd_", "_fgsm_")
    if fgsm != key and last.get(fgsm, 0) >= max(3 * last[key], 0.75 * best.get(fgsm, math.inf)):
        stands.append(f"that under FGSM is {last[fgsm]:.1%}")
    size = best[key] / (4 * max(low, 1e-9))
    if before is None and not (stands and _beyond(best[key], low, last[count], 4)):
        size = 0.0
    text = (f"accuracy under PGD on {last[count]:,} images not trained on is {last[key]:.1%}, it was {best[key]:.1%} "
            f"in epoch {best['epoch']}" + "".join(f"; {one}" for one in stands))
    return Finding(size, text, "The network learns to fool the training's attack, not to withstand attacks: attack "
                   "with more or smaller steps and a random start, or a smaller radius or learning rate. "
                   + _mending(best["epoch"], kept))


def overfitting(rows: Sequence[Row], kept: Collection[str]) -> Finding | None:
    """How far robust accuracy has fallen below its best while that in training went on rising."""
    checked = _key(rows, AVERAGED) or _key(rows, ROBUST)
    trained = next((key for key in ("adversarial_accuracy", "robust_estimate") if key in rows[-1]), None)
    if checked is None or checked[0] not in rows[-1] or trained is None:
        return None
    key, count = checked
    seen = [row for row in rows if key in row and trained in row]
    if len(seen) < 2 * WINDOW:
        return None
    windows = [seen[start:start + WINDOW] for start in range(len(seen) - WINDOW + 1)]
    start = max(range(len(windows) - WINDOW), key=lambda start: _mean(windows[start], key))   # of those that end before
    best, recent = windows[start], windows[-1]
    high, now, n = _mean(best, key), _mean(recent, key), rows[-1][count]
    fall, rise = high - now, _mean(recent, trained) - _mean(best, trained)
    steps = [(second[key] - first[key]) ** 2 for first, second in pairwise(seen[start:])]
    by_epochs = 4 * math.sqrt(math.fsum(steps) / len(steps) / 2) * math.sqrt(2 / WINDOW)
    by_images = 2 * math.sqrt((high * (1 - high) + now * (1 - now)) / n)
    size = max(0.0, fall) / max(by_epochs, by_images, 1e-9) if rise > 0.01 else 0.0
    peak = max(best, key=lambda row: row[key])["epoch"]
    first, last = best[0]["epoch"], best[-1]["epoch"]
    text = (f"accuracy under attack on {n:,} images not trained on is {now:.1%} (mean of the last {WINDOW} "
            f"validations), it was {high:.1%} in epochs {first} to {last}; on training images it went from "
            f"{_mean(best, trained):.1%} to {_mean(recent, trained):.1%}")
    return Finding(size, text, "Further epochs at this rate make the network less robust. " + _mending(peak, kept))


def _mending(epoch: int, kept: Collection[str]) -> str:
    """Which weights to take instead; epoch: the best one."""
    if "best" in kept:
        return f"Evaluate the best weights, not the last: --checkpoint best (the highest validation: epoch {epoch})"
    return (f"The highest validation was in epoch {epoch}, and this run keeps no weights by validation: train it again "
            "for fewer epochs, or by a method that keeps the best or averages weights")


def _key(rows: Sequence[Row], keys: Sequence[tuple[str, str]]) -> tuple[str, str] | None:
    """The first (accuracy, number of images) that the lines have."""
    return next(((key, count) for key, count in keys if any(key in row and count in row for row in rows)), None)


def _values(rows: Sequence[Row], key: str) -> list[float]:
    return [row[key] for row in rows if key in row]


def _mean(rows: Sequence[Row], key: str) -> float:
    return math.fsum(row[key] for row in rows) / len(rows)


def _beyond(high: float, low: float, n: int, errors: float) -> bool:
    """Whether two shares of n images are so many standard errors apart."""
    return high - low > errors * math.sqrt((high * (1 - high) + low * (1 - low)) / n)
