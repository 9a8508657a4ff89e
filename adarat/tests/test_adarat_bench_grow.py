"""How the cost of a step grows: which points, what is shown, and processes that are measured together."""

import pytest

from adarat import bench_grow
from common.tests.bench_parts import tiny


@pytest.mark.parametrize(("on_cpu", "batch"), [(True, 16), (False, 128)])
def test_one_thing_grows_at_a_time(on_cpu, batch):
    middle = bench_grow.middle_of(tiny(width=None, steps=10), on_cpu, quick=False)
    points = bench_grow.points(middle, on_cpu, quick=False)
    assert {what for what, _, _ in points} == set(bench_grow.TITLES) - {"ranks"} and middle.batch == batch
    for what, value, settings in points:
        changed = {name for name, given in vars(settings).items() if given != getattr(middle, name)}
        assert changed <= {what, "images"} and getattr(settings, what) == value and settings.images >= settings.batch
        assert settings.limit is not None


def test_milliseconds_are_of_one_step():
    row = {"batch": 4, "ours": {"images_per_block": 8, "seconds": [0.2, 0.4, 0.8]}}          # two steps a block
    assert bench_grow.milliseconds(row, "ours") == {"median": 200.0, "min": 100.0, "max": 400.0}


def test_processes_have_a_table_of_what_is_proportional():
    ranks = [{"ranks": count, "images_per_second": {"median": rate}} for count, rate in ((1, 100.0), (2, 150.0))]
    growth = {"middle": vars(tiny()), "rows": [], "ranks": ranks, "said": ""}
    rows = [tuple(cell.strip() for cell in row) for row in bench_grow.tables(growth, [])[1].rows]
    assert rows == [("1", "100", "100%"), ("2", "150", "75%")]


@pytest.mark.slow
def test_two_processes_are_measured_together():
    said = []
    rows = bench_grow.over_ranks(tiny(rounds=2), "cpu", (1, 2), said.append)
    assert [row["ranks"] for row in rows] == [1, 2] and [row["images_per_block"] for row in rows] == [8, 16]
    assert all(len(row["seconds"]) == 2 and min(row["seconds"]) > 0 for row in rows) and len(said) == 2
