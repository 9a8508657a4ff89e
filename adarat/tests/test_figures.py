"""AdaRAT's figures are functions of records: what is marked, what is left out, the same bytes twice."""

import math
import struct

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from adarat import figures, method
from common import plots
from common.tests.fabricate import curves, fabricate

EVALUATORS = {"clean": 0.8, "fgsm": 0.55, "pgd-10": 0.5, "pgd-20": 0.49, "autoattack": 0.45}


def every_variant(results, seeds=(1,), **more):
    for place, variant in enumerate(figures.VARIANTS):
        for seed in seeds:
            fabricate(results, variant=variant, seed=seed, accuracies=EVALUATORS,
                      metrics=curves(12, seed=seed, shift=0.04 * place, barrier=variant == "adarat"), **more)


def test_three_figures_per_data_set_and_budget(tmp_path):
    every_variant(tmp_path)
    fabricate(tmp_path, dataset="digits", budget="smoke", metrics=curves(4), accuracies=EVALUATORS)
    written = figures.draw(tmp_path, tmp_path / "out")
    assert [path.name for path in written] == [
        "adarat-cifar10-short-accuracy-pgd-at.png", "adarat-cifar10-short-barrier-pgd-at.png",
        "adarat-cifar10-short-evaluators.png", "adarat-digits-smoke-accuracy-pgd-at.png",
        "adarat-digits-smoke-evaluators.png"]
    for path in written:
        width, height = struct.unpack(">II", path.read_bytes()[16:24])
        assert path.parent == tmp_path / "out" / "figures" and width >= 700 and height >= 400
    assert not list((tmp_path / "out" / "figures").glob(".*"))


def test_only_what_is_asked_for(tmp_path):
    every_variant(tmp_path)
    assert figures.draw(tmp_path, tmp_path, budget="gpu") == figures.draw(tmp_path, tmp_path, dataset="cifar100") == []
    assert len(figures.draw(tmp_path, tmp_path, dataset="cifar10", budget="short")) == 3


def test_runs_of_a_users_own_settings_or_unfinished_are_left_out(tmp_path):
    fabricate(tmp_path, budget="custom", metrics=curves(4), accuracies=EVALUATORS)
    (fabricate(tmp_path, metrics=curves(4), accuracies=EVALUATORS) / "train.json").unlink()
    assert figures.draw(tmp_path, tmp_path) == []


def test_no_metrics_and_no_evaluation_give_no_figure(tmp_path):
    fabricate(tmp_path)
    assert figures.draw(tmp_path, tmp_path) == []
    fabricate(tmp_path, seed=2, accuracies=EVALUATORS)
    assert [path.name for path in figures.draw(tmp_path, tmp_path)] == ["adarat-cifar10-short-evaluators.png"]


def test_the_same_records_give_the_same_bytes(tmp_path):
    every_variant(tmp_path)
    first = {path.name: path.read_bytes() for path in figures.draw(tmp_path, tmp_path / "a")}
    assert first == {path.name: path.read_bytes() for path in figures.draw(tmp_path, tmp_path / "b")}


def test_peaks_are_those_of_the_mean_over_seeds():
    """Two seeds that peak at epochs 1 and 3; their mean peaks at 2."""
    axes = Figure().subplots()

    class Seed:
        def __init__(self, *values):
            self.values = np.array(values)

        def curve(self, key):
            return np.array([1, 2, 3]), self.values

    assert figures._curve(axes, [Seed(0.6, 0.5, 0.1), Seed(0.1, 0.5, 0.6)], "k", "RA", plots.RED, "v") == 2
    marked = axes.get_lines()[-1]
    assert marked.get_xdata()[0] == 2 and marked.get_ydata()[0] == pytest.approx(50.0)
    assert axes.texts[0].get_text() == "50.0 @ 2"
    assert figures._curve(axes, [], "k", "RA", plots.RED, "v") is None


def test_the_band_covers_the_epochs_that_all_seeds_have():
    epochs, mean, low, high = plots.mean_and_band([
        (np.array([1, 2, 3]), np.array([0.1, 0.2, 0.3])), (np.array([2, 3, 4]), np.array([0.4, 0.5, 0.9]))])
    assert epochs.tolist() == [2, 3]
    assert np.allclose([mean, low, high], [[0.3, 0.4], [0.2, 0.3], [0.4, 0.5]])
    assert all(len(part) == 0 for part in plots.mean_and_band([]))


def test_the_drawn_barrier_is_the_trained_one():
    ratio = method.Ratio("adarat", 0.04, 8 / 255, 1.1, 0.4, 0.01)
    clean = np.linspace(0, 1.0, 41)
    trained = [float(ratio.barrier(torch.tensor(c, dtype=torch.float64))) for c in clean]
    assert np.allclose(figures.barrier_of(clean, 1.1, 0.4, 0.01), trained, atol=1e-6)
    assert figures.GATE == method.GATE


@pytest.mark.parametrize(("c", "up", "down", "wanted"), [
    (0.77, 1.1, 0.4, 1.0940**1.01), (1.4, 2.0, 0.8, 1.0), (0.4, 1.1, 0.4, 0.0), (0.2, 1.1, 0.4, 0.0),
    (0.05, 2.3, 1.2, 14.36)])
def test_the_barriers_known_values(c, up, down, wanted):
    assert float(figures.barrier_of(np.array(c), up, down, 0.01)) == pytest.approx(wanted, rel=1e-3, abs=1e-9)


def test_the_curve_stops_before_the_tangents_other_branch():
    """At TRADES' CIFAR-100 limits B is positive again below c = 0.1 (quirk tan-wrap); the pole is not drawn."""
    axes = Figure().subplots()
    run = type("Run", (), {"curve": lambda self, key: (np.array([1]), np.array([1.5]))})()
    figures._barrier_curve(axes, [run], 2.3, 1.2, 0.01)
    drawn = axes.get_lines()[0]
    x, y = np.asarray(drawn.get_xdata()), np.asarray(drawn.get_ydata())
    assert np.isnan(y[x < 0.09]).all() and np.nanmax(y) < 1 and np.nanmin(y) == 0 and max(x) == pytest.approx(1.61)


def test_bars_are_wilsons_or_one_standard_deviation(tmp_path):
    axes = Figure().subplots()
    every_variant(tmp_path, seeds=(1,))
    runs = figures.read_runs(tmp_path)
    figures._points(axes, figures.group(runs, "PGD-AT", "plain"), ["clean", "none"], "plain", 0.0)
    line, _, (bars,) = axes.containers[0].lines
    assert line.get_ydata().tolist() == pytest.approx([80.0])
    assert bars.get_segments()[0][:, 1].tolist() == pytest.approx([73.92, 84.96], abs=0.02)   # scipy


def test_the_variants_differ_in_lightness_not_just_in_hue():
    chosen = [matplotlib.colors.to_rgb(figures.COLOURS[variant]) for variant in figures.VARIANTS]
    light = [0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in chosen]
    assert len({round(value, 1) for value in light}) == 3 and math.isfinite(sum(light))


def test_figures_need_no_torch(tmp_path, run_without_torch):
    every_variant(tmp_path)
    code = ("from pathlib import Path\nfrom adarat import figures\n"
            "print(len(figures.draw(Path(sys.argv[1]), Path(sys.argv[1]))))")
    assert run_without_torch(code, str(tmp_path)) == "3\n"
