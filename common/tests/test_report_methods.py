"""Tables that compare methods, and reported numbers of weights that were chosen as ours are."""

import pytest

from common import reported
from common.records import read_runs
from common.report import build
from common.reported import Reported
from common.runs import Column, Row, Table
from common.tests.fabricate import DATA, fabricate

ROWS = tuple(Row(method=method, variant=variant, label=f"{method} {variant}", reported=((method, "*"),))
             for method in ("A", "B", "C") for variant in ("plain", "gn") if (method, variant) != ("C", "gn"))
COLUMNS = (Column(evaluator="clean", title="clean", reported=("clean",)),)


def table(**changes):
    return Table(**{"title": "T", "rows": ROWS, "columns": COLUMNS, **changes})


def test_pairs_are_rows_of_one_method_or_of_one_variant():
    assert table(compare=(("gn", "plain"),)).pairs() == [
        (("A", "gn"), ("A", "plain")), (("B", "gn"), ("B", "plain"))]
    assert table(compare_methods=(("A", "B"), ("A", "C"))).pairs() == [
        (("A", "plain"), ("B", "plain")), (("A", "plain"), ("C", "plain")), (("A", "gn"), ("B", "gn"))]
    assert table(compare=(("gn", "plain"),), compare_methods=(("B", "A"),)).pairs()[:2] == [
        (("A", "gn"), ("A", "plain")), (("B", "gn"), ("B", "plain"))]
    assert table().pairs() == []


def test_methods_are_compared_image_by_image(tmp_path):
    for method, accuracy in (("A", 0.8), ("B", 0.6)):
        for seed in (1, 2):
            fabricate(tmp_path, method=method, seed=seed, accuracies={"clean": accuracy})
    fabricate(tmp_path, method="C", accuracies={"clean": 0.6})
    built = build(table(compare_methods=(("A", "B"), ("A", "C"))), read_runs(tmp_path), [], "cifar10", "short")
    rows = built.grids[1].rows
    assert [row[:5] for row in rows] == [("A plain − B plain", "clean", "200", "1, 2", "+20.00 ± 0.00"),
                                         ("A plain − C plain", "clean", "200", "1", rows[1][4])]
    assert rows[1][4].startswith("+20.00 [")
    for gained, lost in zip(rows[0][5].split(", "), rows[0][6].split(", "), strict=True):
        assert int(gained) - int(lost) == 40                        # of 200 images


@pytest.mark.parametrize(("chosen", "value"), [(("last", "final"), "41"), (("best",), "47"), (("stopped",), "50")])
def test_reported_weights_that_were_chosen_as_ours_go_first(chosen, value):
    def one(source_class, value, checkpoint):
        return Reported(source_class, "other", "T1", "CIFAR-10", "net", "A", "", "Linf", "8/255", "clean", value,
                        checkpoint, "a.org")

    numbers = [one("E", "41", "final epoch"), one("E", "47", "best"), one("A", "50", "not stated")]
    assert reported.best(numbers, COLUMNS[0], table(reported_weights=chosen)).value == value


def test_additional_training_images_are_named(tmp_path):
    fabricate(tmp_path, method="A", accuracies={"clean": 0.8})
    note = "Additional training images: 938, left out by n_train (fingerprint eeeeeeeeeeee)."
    assert note not in build(table(), read_runs(tmp_path), [], "cifar10", "short").grids[0].notes
    fabricate(tmp_path, method="B", accuracies={"clean": 0.8}, data=DATA | {
        "extra": {"n": 938, "source": "left out by n_train", "fingerprint": "e" * 64}})
    assert note in build(table(), read_runs(tmp_path), [], "cifar10", "short").grids[0].notes
