"""DyART's figures are functions of records: what is counted, what is left out, the same bytes twice."""

import struct

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from common.errors import UserError
from common.records import read_run, read_runs
from dyart import figures, figures_dynamics
from dyart.figures_style import COLOURS, LABELS, line, seeds_of, whole_numbers
from dyart.runs import TABLE
from dyart.tests.dyart_records import CURVE, record, shifted

WHAT = ["robust-accuracy", "boundary-speed-at", "margins", "validation"]


def everything(results, seeds=(1,), **more):
    record(results, "clean", epochs=3)
    for seed in seeds:
        for method, shift in (("DyART", 0.03), ("AT", 0.0)):
            record(results, method, seed=seed, accuracies=shifted(shift), epochs=4, images=40, **more)


def drawn(results, out, **which):
    return [path.name.removeprefix("dyart-cifar10-short-").removesuffix(".png")
            for path in figures.draw(results, out, **which)]


def test_four_figures_and_the_same_bytes_twice(tmp_path):
    everything(tmp_path)
    first = figures.draw(tmp_path, tmp_path / "a")
    assert [path.name for path in first] == [f"dyart-cifar10-short-{what}.png" for what in WHAT]
    for path in first:
        width, height = struct.unpack(">II", path.read_bytes()[16:24])
        assert path.parent == tmp_path / "a" / "figures" and 700 <= width <= 1500 and height >= 500
    again = figures.draw(tmp_path, tmp_path / "b")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]


def test_only_what_is_asked_for_and_finished(tmp_path):
    record(tmp_path, "AT", accuracies=CURVE)
    assert drawn(tmp_path, tmp_path, budget="gpu") == drawn(tmp_path, tmp_path, dataset="tiny-imagenet") == []
    assert drawn(tmp_path, tmp_path, dataset="cifar10", budget="short") == ["robust-accuracy"]
    record(tmp_path, "DyART", budget="custom", accuracies=CURVE)                     # a user's own settings
    (record(tmp_path, "TRADES", accuracies=CURVE, images=9, epochs=2) / "train.json").unlink()
    assert drawn(tmp_path, tmp_path) == ["robust-accuracy"]


def test_no_evaluation_no_metrics_no_observation_give_no_figure(tmp_path):
    record(tmp_path, "AT")
    record(tmp_path, "clean", epochs=3)
    assert drawn(tmp_path, tmp_path) == ["validation"]
    record(tmp_path, "DyART", images=9)                              # one moment
    assert drawn(tmp_path, tmp_path) == ["boundary-speed-dyart", "margins", "validation"]


# -- over eps --------------------------------------------------------------------------------------------------------

def test_eps_zero_is_the_clean_accuracy_of_the_images_that_were_attacked(tmp_path):
    run = read_run(record(tmp_path, "AT", accuracies=CURVE, n=1000, attacked=200))
    flags = next(iter(run.evals.values())).arrays["clean"]
    counts = figures.over_eps(run)
    assert counts[0] == (int(flags[:200].sum()), 200) == (140, 200)
    assert {eps: counts[eps] for eps in (2, 8, 16)} == {2: (120, 200), 8: (80, 200), 16: (24, 200)}
    assert figures.over_eps(read_run(record(tmp_path, "MART"))) == {}


def test_the_band_is_wilsons_or_one_standard_deviation(tmp_path):
    axes = Figure().subplots()
    runs = [read_run(record(tmp_path, "AT", seed=seed, accuracies=shifted(shift)))
            for seed, shift in ((1, 0.0), (2, 0.05), (3, 0.1))]
    figures.robust_line(axes, runs[:1], line(("AT", "plain")))
    drawn = axes.get_lines()[0]
    assert drawn.get_xdata().tolist() == [0, 2, 4, 8, 12, 16]
    assert drawn.get_ydata().tolist() == pytest.approx([70, 60, 52, 40, 25, 12])
    at_eight = [y for x, y in axes.collections[0].get_paths()[0].vertices if x == 8]
    assert (min(at_eight), max(at_eight)) == pytest.approx((33.46, 46.92), abs=0.01)     # scipy: 80 of 200
    figures.robust_line(axes, runs, line(("AT", "plain")))
    at_eight = [y for x, y in axes.collections[1].get_paths()[0].vertices if x == 8]
    assert (min(at_eight), max(at_eight)) == pytest.approx((40, 50))                     # 45 ± 5


# -- dynamics --------------------------------------------------------------------------------------------------------

def test_shares_count_images_with_a_speed_per_interval():
    radius = np.array([0.5, 1.9, 1.0, 3.0, 3.9, 15.0, 16.5, 40.0, 1.0, 0.0, np.nan]) / 255
    speed = np.array([1e-3, -1e-3, 1e-3, -1, -1, 1, 1, -1, np.nan, np.nan, np.nan])
    images, up, down = figures_dynamics.shares(radius, speed)
    assert images.tolist() == [3, 2, 0, 0, 0, 0, 0, 1, 2]
    assert up[[0, 1, 7, 8]].tolist() == pytest.approx([2 / 3, 0, 1, 0.5])
    assert down[[0, 1, 7, 8]].tolist() == pytest.approx([1 / 3, 1, 0, 0.5])
    assert np.isnan(up[2:7]).all() and np.isnan(down[2:7]).all()
    none = figures_dynamics.shares(radius, np.full(11, np.nan))
    assert none[0].sum() == 0 and np.isnan(none[1]).all()


def test_bars_go_up_where_the_boundary_recedes():
    axes = Figure().subplots()
    figures_dynamics.speed_panel(axes, np.full(40, 3 / 255), np.repeat([1.0, -1.0], (30, 10)))
    up, down = (patch.get_height() for patch in axes.patches)
    assert (up, down) == (75, -25) and [text.get_text() for text in axes.texts] == ["40"]
    assert axes.patches[0].get_x() == pytest.approx(0.6) and axes.patches[0].get_alpha() == 1
    figures_dynamics.speed_panel(axes, np.full(3, 3 / 255), np.ones(3))
    assert axes.patches[2].get_alpha() < 0.5                          # three images say little
    empty = Figure().subplots()
    figures_dynamics.speed_panel(empty, np.zeros(5), np.full(5, np.nan))
    assert not empty.patches and empty.texts[0].get_text() == "no boundary point kept"


def test_the_histogram_accounts_for_every_image():
    radius = np.array([0, 0, np.nan, 1.0, 1.9, 2.1, 29.0, 31.0, 32.0, 90.0]) / 255
    bars, wrong, lost = figures_dynamics.histogram(radius)
    assert (wrong, lost) == (0.2, 0.1) and bars.sum() + wrong + lost == pytest.approx(1)
    assert bars[[0, 1, 14, 15]].tolist() == pytest.approx([0.2, 0.1, 0.1, 0.3]) and len(bars) == 16


def test_seeds_are_counted_together_where_all_have_a_moment(tmp_path):
    record(tmp_path, "AT", seed=1, epochs=4, images=30)
    record(tmp_path, "AT", seed=2, epochs=2, images=30)
    found = figures_dynamics.read(read_runs(tmp_path))
    assert found.epoch.tolist() == [0, 1, 2] and found.radius.shape == found.speed.shape == (3, 60)
    assert found.images == 30
    assert figures_dynamics.read([read_run(record(tmp_path, "MART"))]) is None
    assert figures_dynamics.moments(np.arange(11)) == [0, 5, 10]
    assert figures_dynamics.moments(np.arange(2)) == [0, 1] and figures_dynamics.moments(np.arange(1)) == [0]


def test_each_baseline_stands_beside_dyart_of_its_own_norm():
    at, trades, dyart, gn = ("AT", "plain"), ("TRADES", "plain"), ("DyART", "plain"), ("DyART", "gn")
    assert figures_dynamics.beside([at, trades, dyart, gn]) == [[at, dyart], [trades, dyart], [gn]]
    assert figures_dynamics.beside([at]) == [[at]]
    assert figures_dynamics.beside([("AT", "gn"), dyart, gn]) == [[("AT", "gn"), gn], [dyart]]


def test_a_moment_says_where_the_network_comes_from():
    assert figures_dynamics.said(0, "burn-in") == "start (burn-in)" and figures_dynamics.said(3, "x") == "after epoch 3"


@pytest.mark.parametrize("damage", ["cut", "keys", "shape", "flat"])
def test_a_broken_file_is_named(tmp_path, damage):
    folder = record(tmp_path, "AT", epochs=2, images=9)
    path = folder / "dynamics.npz"
    stored = dict(np.load(path))
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:200])
    elif damage == "keys":
        np.savez(path, epoch=stored["epoch"])
    elif damage == "shape":
        np.savez(path, **stored | {"speed": stored["speed"][:, 1:]})
    else:
        np.savez(path, **stored | {"radius": np.float32(1.0)})
    with pytest.raises(UserError, match=r"at_short_s1/dynamics.npz .*train the run again"):
        figures.draw(tmp_path, tmp_path)


# -- validation and style --------------------------------------------------------------------------------------------

def test_validation_marks_the_epoch_that_is_judged(tmp_path, monkeypatch):
    kept = []
    original = figures.plots.figure

    def spy(*words):
        class Kept:
            def __enter__(self):
                self.inner = original(*words)
                kept.append(self.inner.__enter__())
                return kept[-1]

            def __exit__(self, *error):
                return self.inner.__exit__(*error)
        return Kept()

    monkeypatch.setattr(figures.plots, "figure", spy)
    run = read_run(record(tmp_path, "AT", epochs=30))
    figures.validation({("AT", "plain"): [run]}, "cifar10", tmp_path / "v.png")
    robust = kept[0].axes[1]
    epochs, values = run.curve("val_robust_accuracy")
    assert values.argmax() < 29                                      # the records' best epoch is not their last
    mark = robust.get_lines()[-1]
    assert mark.get_xdata()[0] == epochs[values.argmax()] and mark.get_ydata()[0] == pytest.approx(100 * values.max())
    assert robust.get_title() == "under PGD-40, eps 8/255" and "256 validation images, seed 1" in kept[0].get_suptitle()


def test_methods_differ_in_more_than_hue():
    assert len({line(key)["marker"] for key in LABELS}) == len(COLOURS)
    light = {round(sum(part * weight for part, weight in zip(matplotlib.colors.to_rgb(colour), (0.21, 0.72, 0.07),
                                                             strict=True)), 2) for colour in COLOURS.values()}
    assert len(light) == len(COLOURS)
    assert line(("AT", "gn"))["linestyle"] != line(("AT", "plain"))["linestyle"]
    assert set(TABLE.labels()) < set(LABELS)


def test_words():
    assert whole_numbers([200, 200]) == "200" and whole_numbers([1000, 200]) == "200 to 1,000"

    class Run:
        def __init__(self, seed):
            self.run = {"seed": seed}

    assert seeds_of([[Run(1)], [Run(1)]]) == "seed 1" and seeds_of([[Run(2)], [Run(1)]]) == "seeds 1, 2"


def test_figures_need_no_torch(tmp_path, run_without_torch):
    everything(tmp_path)
    code = ("from pathlib import Path\nfrom dyart import figures\n"
            "print(len(figures.draw(Path(sys.argv[1]), Path(sys.argv[1]))))")
    assert run_without_torch(code, str(tmp_path)) == "4\n"


def test_the_same_weights_are_shown_under_both_steps(tmp_path, monkeypatch):
    folder = record(tmp_path, "DyART", epochs=2, images=30)
    with np.load(folder / "dynamics.npz", allow_pickle=False) as stored:
        arrays = dict(stored)
    np.savez_compressed(folder / "dynamics.npz", **arrays, speed_AT=-arrays["speed"])
    drawn = []
    monkeypatch.setattr(figures_dynamics, "speed_panel", lambda axes, radius, speed: drawn.append((radius, speed)))
    found = figures_dynamics.read(read_runs(tmp_path))
    assert np.array_equal(found.rival, -found.speed, equal_nan=True)
    paths = figures_dynamics.draw({("DyART", "plain"): read_runs(tmp_path)}, "title",
                                  lambda what: tmp_path / f"{what}.png")
    assert "boundary-speed.png" in [path.name for path in paths]
    at, own = drawn[:3], drawn[3:6]                        # three moments of a column, AT's first
    for (radius, speed), (same, ours) in zip(at, own, strict=True):
        assert np.array_equal(radius, same, equal_nan=True) and np.array_equal(speed, -ours, equal_nan=True)
    np.savez_compressed(folder / "dynamics.npz", **arrays, speed_AT=arrays["speed"][:1])
    with pytest.raises(UserError, match=r"is not what dyart/observe\.py writes"):
        figures_dynamics.read(read_runs(tmp_path))
