"""Alarms of long trainings: on curves whose answer is known, on all real ones that are kept, and on trainings."""

import math
import random

import pytest

from common.alarms import BEGINS, OVER, WORSE, found, summary
from common.environment import ROOT
from common.errors import UserError
from common.fit import SGD
from common.records import read_metrics
from common.schedules import constant
from common.tests.fit_parts import CrossEntropy, train


def told(rows, kept=()):
    return [(alarm.kind, alarm.state, alarm.epoch) for alarm in found(rows, kept)]


def lines(**columns):
    """Epoch lines from columns of equal length; None: the line has no such number."""
    return [{"epoch": epoch, **{key: value for key, value in zip(columns, values, strict=True) if value is not None}}
            for epoch, values in enumerate(zip(*columns.values(), strict=True), start=1)]


def training(epochs, decay, fall, *, n=1000, noise=0.01, seed=0, rise=0.3):
    """Robust accuracy that climbs to 44%, jumps to 52% when the rate decays, and then falls by `fall`."""
    draw, rows = random.Random(seed), []
    for epoch in range(1, epochs + 1):
        after = max(0, epoch - decay)
        robust = 0.52 - fall * (1 - math.exp(-after / 25)) if after else 0.44 - 0.2 * math.exp(-epoch / 5)
        robust += draw.gauss(0, noise / 4 if after else noise)
        before = 0.42 - 0.2 * math.exp(-epoch / 5) + 5e-4 * epoch
        learnt = 0.55 + rise * (1 - math.exp(-after / 30)) if after else before
        rows.append({"epoch": epoch, "loss": 2.3 - learnt, "adversarial_accuracy": learnt,
                     "val_pgd_accuracy": round(robust * n) / n, "val_clean_accuracy": 0.8, "n_val": n})
    return rows


# -- the loss --------------------------------------------------------------------------------------------------------

def test_a_loss_far_above_its_level_is_told_once_and_again_when_it_is_over():
    loss = [2.3, 1.9, 1.7, 1.6, 1.5, 40.0, 60.0, 55.0, 1000.0, 1.6]
    alarms = found(lines(loss=loss))
    assert [(alarm.state, alarm.epoch) for alarm in alarms] == [(BEGINS, 6), (WORSE, 9), (OVER, 10)]
    assert {alarm.kind for alarm in alarms} == {"exploding-loss"}
    assert alarms[0].text.startswith("exploding loss in epoch 6: loss is 40; it was 1.5 the epoch before, 2.3 at most")
    assert "lower the learning rate" in alarms[0].text and "--precision fp32" in alarms[0].text
    assert alarms[1].text.startswith("exploding loss since epoch 6 is much worse in epoch 9: loss is 1e+03")


@pytest.mark.parametrize("loss", [
    [5.6, 5.3, 2.3, 2.2, 2.1],                                     # a warm-up's start
    [2.0, 1.2, 0.05, 0.04, 0.05, 0.9, 0.06],                       # AdaRAT: the gate closes again for an epoch
    [0.7, 1.9, 0.01, 0.02, -0.01, 0.01, 0.02, 1.2],                # a boundary term that crosses zero
    [138.0, 119.2, 131.1, 4.0, 117.5],                             # a regulariser's scale
    [0.1, 0.1, 3.0, 2.0]])                                         # a burn-in phase that ends early
def test_a_change_of_scale_is_no_explosion(loss):
    assert told(lines(loss=loss)) == []


def test_the_first_epoch_is_measured_by_guessing_and_only_in_cross_entropies():
    assert told(lines(loss=[900.0, 800.0], clean_loss=[900.0, 800.0])) == [("exploding-loss", BEGINS, 1)]
    assert told(lines(loss=[900.0, 800.0], clean_loss=[6.0, 5.0])) == []


# -- accuracies ------------------------------------------------------------------------------------------------------

def test_a_network_that_answers_one_class_to_everything_has_collapsed():
    rows = lines(loss=[2.0, 1.5, 1.2, 2.3, 2.3, 1.9], adversarial_accuracy=[0.3, 0.4, 0.45, 0.1, 0.1, 0.44],
                 clean_accuracy=[0.5, 0.6, 0.7, 0.1, 0.1, 0.6], test_clean_accuracy=[0.5, 0.6, 0.7, 0.1, 0.1, 0.65],
                 n_validation=[500] * 6)
    assert told(rows) == [("collapse", BEGINS, 4), ("collapse", OVER, 6)]
    assert "clean_accuracy 10.0% (was 70.0%)" in found(rows)[0].text
    for row in rows[3:5]:
        row["test_clean_accuracy"] = 0.6                           # batch statistics alone, or a harder attack
    assert told(rows) == []


def test_chance_on_a_few_images_of_many_classes_is_no_collapse():
    assert told(lines(loss=[5.0] * 5, adversarial_accuracy=[0.012, 0.011, 0.004, 0.005, 0.012],
                      test_clean_accuracy=[0.012, 0.016, 0.0, 0.004, 0.008], n_test=[256] * 5)) == []


FAST = {"loss": [2.0, 1.8, 1.7, 1.6, 1.2, 1.0, 0.9, 1.5],
        "adversarial_accuracy": [0.3, 0.38, 0.41, 0.42, 0.6, 0.7, 0.8, 0.45],
        "test_clean_accuracy": [0.5, 0.6, 0.65, 0.7, 0.8, 0.83, 0.85, 0.7],
        "test_pgd_accuracy": [0.28, 0.33, 0.36, 0.38, 0.06, 0.04, 0.0, 0.37], "n_test": [1000] * 8}


def test_catastrophic_overfitting_is_seen_when_it_begins_and_when_it_ends():
    alarms = found(lines(**FAST))
    assert [(alarm.kind, alarm.state, alarm.epoch) for alarm in alarms] == [
        ("catastrophic-overfitting", BEGINS, 6), ("catastrophic-overfitting", WORSE, 7),
        ("catastrophic-overfitting", OVER, 8)]
    assert "is 4.0%, it was 38.0% in epoch 4; that on the attacked training images is 70.0%" in alarms[0].text
    assert "train it again" in alarms[0].text
    best = found(lines(**FAST), {"best": 0.38})[0].text
    assert "--checkpoint best (the highest validation: epoch 4)" in best and "train it again" not in best


def test_fgsm_on_validation_images_shows_it_where_training_does_not():
    rows = lines(**FAST | {"adversarial_accuracy": [0.3, 0.38, 0.41, 0.42, 0.2, 0.2, 0.2, 0.4],
                           "test_fgsm_accuracy": [0.3, 0.36, 0.4, 0.42, 0.5, 0.55, 0.6, 0.42]})
    assert told(rows)[0] == ("catastrophic-overfitting", BEGINS, 6)
    assert "that under FGSM is 55.0%" in found(rows)[0].text


@pytest.mark.parametrize("change", [
    {"adversarial_accuracy": [0.3, 0.38, 0.41, 0.42, 0.1, 0.1, 0.1, 0.4]},              # all is lost, not that alone
    {"adversarial_accuracy": [None] * 8},                                               # no adversarial training
    {"n_test": [15] * 8},                                                               # 5 of 15 images, then 1
    {"test_pgd_accuracy": [0.28, 0.33, 0.36, 0.38, 0.2, 0.15, 0.12, 0.3]},              # fallen, but not near 0
    {"test_pgd_accuracy": [0.28, 0.33, 0.36, 0.38, 0.02, 0.3, 0.01, 0.3]}])             # one bad epoch, twice
def test_what_is_no_catastrophic_overfitting(change):
    assert told(lines(**FAST | change)) == []


def test_robust_overfitting_is_told_after_the_rate_decays():
    (kind, state, epoch), = told(training(200, 100, 0.08))
    assert (kind, state) == ("robust-overfitting", BEGINS) and 110 < epoch < 145
    more, *_ = told(training(200, 100, 0.08, n=10_000))
    assert 105 < more[2] < epoch                                    # more images, sooner
    alarm, = found(training(200, 100, 0.08), {"best": 0.52})
    assert "--checkpoint best (the highest validation: epoch 10" in alarm.text and "1,000 images" in alarm.text


@pytest.mark.parametrize("change", [{"fall": 0.0}, {"fall": 0.08, "rise": 0.0}, {"fall": 0.08, "n": 100},
                                    {"fall": 0.0, "decay": 200, "noise": 0.02, "n": 10_000}])
def test_what_is_no_robust_overfitting(change):
    """No fall; training does not rise; as few images differ so by chance; epochs of a high rate jump."""
    for seed in range(2):
        assert told(training(**{"epochs": 120, "decay": 60, "seed": seed} | change)) == []


def test_of_an_average_that_is_judged_the_average_counts():
    rows = training(200, 100, 0.08)
    for row in rows:
        row["val_wa_pgd_accuracy"] = 0.5
    assert told(rows) == []


def test_epochs_without_validation_change_nothing():
    rows = training(200, 100, 0.1, n=10_000)
    for row in rows:
        if row["epoch"] % 2:
            del row["val_pgd_accuracy"], row["val_clean_accuracy"], row["n_val"]
    (kind, state, epoch), *_ = told(rows)
    assert (kind, state) == ("robust-overfitting", BEGINS) and epoch % 2 == 0


def test_no_alarm_of_a_whole_run_comes_later_than_it_did_on_the_way():
    rows = lines(**FAST)
    assert found(rows) == [alarm for end in range(1, len(rows) + 1) for alarm in found(rows[:end])
                           if alarm.epoch == rows[end - 1]["epoch"]]


def test_none_of_the_trainings_that_are_kept_raises_an_alarm():
    paths = sorted((ROOT / "results").rglob("metrics.jsonl"))
    assert len(paths) > 20
    assert {path.parent.name: alarms for path in paths if (alarms := told(read_metrics(path)))} == {}


def test_a_table_says_when_an_alarm_held():
    alarms = [{"kind": "exploding-loss", "state": state, "epoch": epoch, "text": "t"}
              for state, epoch in ((BEGINS, 3), (WORSE, 4), (OVER, 6))]
    assert summary(alarms) == "exploding loss from epoch 3 on, exploding loss until epoch 6" and summary([]) == ""


# -- trainings -------------------------------------------------------------------------------------------------------

def grow(ctx):
    """A loss 1,000 times as large in the fourth epoch."""
    return 1000.0 if ctx.epoch == 3 else None


@pytest.mark.parametrize("killed", [None, 2, 4])
def test_a_training_says_it_once_and_a_resumed_one_the_same(tmp_path, capsys, killed):
    given = {"objective": CrossEntropy(grow), "schedule": constant(1e-6), "epochs": 5}
    if killed:
        train(tmp_path, **given | {"epochs": killed})
        capsys.readouterr()
    record = train(tmp_path, **given)
    assert [(alarm["kind"], alarm["state"], alarm["epoch"]) for alarm in record.alarms] == [
        ("exploding-loss", BEGINS, 4), ("exploding-loss", OVER, 5)]
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert said == [f"warning: {alarm['text']}" for alarm in record.alarms if alarm["epoch"] > (killed or 0)]


def test_a_rate_far_too_high_is_told_or_refused(tmp_path):
    """Which of both depends on where it ends: with batch norm the loss is huge, but finite."""
    try:
        record = train(tmp_path, schedule=constant(1e5), optim=SGD(weight_decay=0.0), epochs=4)
    except UserError as error:
        assert "Try a lower learning rate" in str(error)
    else:
        assert record.alarms
