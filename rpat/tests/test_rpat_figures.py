"""RPAT's figures are functions of records: what is counted, what is left out, the same bytes twice."""

import struct
from contextlib import contextmanager

import numpy as np
import pytest
from matplotlib.figure import Figure

from common.records import read_run, read_runs
from common.stats import nrr, wilson
from rpat import figures, figures_perception
from rpat.figures_style import COLOURS, LABELS, line, pairs, seeds_of, whole_numbers, with_rpat
from rpat.tests.rpat_records import moved, record

WHAT = ["trade-off", "perception", "perception-epochs", "validation"]
AT, RPAT = ("PGD-AT", "plain"), ("PGD-AT", "rpat")


def everything(results, seeds=(1,)):
    for seed in seeds:
        for variant, gain in (("plain", 0.0), ("rpat", 0.02)):
            record(results, "PGD-AT", variant=variant, seed=seed, accuracies=moved(gain, gain), epochs=4, perceived=60,
                   last=moved(gain + 0.02, gain - 0.05))


def drawn(results, out, **which):
    return [path.name.removeprefix("rpat-cifar10-short-").removesuffix(".png")
            for path in figures.draw(results, out, **which)]


def grouped(results):
    return {key: runs for key in LABELS
            if (runs := [run for run in read_runs(results) if (run.run["method"], run.run["variant"]) == key])}


def test_four_figures_and_the_same_bytes_twice(tmp_path):
    everything(tmp_path)
    first = figures.draw(tmp_path, tmp_path / "a")
    assert [path.name for path in first] == [f"rpat-cifar10-short-{what}.png" for what in WHAT]
    for path in first:
        width, height = struct.unpack(">II", path.read_bytes()[16:24])
        assert path.parent == tmp_path / "a" / "figures" and 700 <= width <= 1600 and height >= 500
    again = figures.draw(tmp_path, tmp_path / "b")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]


def test_only_what_is_asked_for_and_finished(tmp_path):
    record(tmp_path, "PGD-AT", accuracies=moved())
    assert drawn(tmp_path, tmp_path, budget="gpu") == drawn(tmp_path, tmp_path, dataset="cifar100") == []
    assert drawn(tmp_path, tmp_path, dataset="cifar10", budget="short") == ["trade-off"]
    record(tmp_path, "TRADES", budget="custom", accuracies=moved())                  # a user's own settings
    (record(tmp_path, "MART", epochs=2) / "train.json").unlink()
    assert drawn(tmp_path, tmp_path) == ["trade-off"]


def test_part_two_is_drawn_by_its_averages_numbers(tmp_path):
    for method in ("ReBAT", "RPAT++"):
        folder = record(tmp_path, method, epochs=3, accuracies=moved())
    assert drawn(tmp_path, tmp_path) == ["trade-off", "validation"]
    assert figures.validated(read_run(folder)) == ("val_wa_clean_accuracy", "val_wa_pgd_accuracy")
    assert figures.validated(read_run(record(tmp_path, "MART", epochs=1))) == ("val_clean_accuracy", "val_pgd_accuracy")
    assert figures.validated(read_run(record(tmp_path, "TRADES"))) is None


# -- clean against robust accuracy -----------------------------------------------------------------------------------

def test_both_axes_count_the_images_that_autoattack_was_run_on(tmp_path):
    folder = record(tmp_path, "PGD-AT", accuracies=moved(0.0037), last=moved(0.02, -0.05), n=1000, attacked=200)
    run = read_run(folder)
    flags = run.evals["paper-rpat-1000-200"].arrays
    point = figures.points_of({AT: [run]})[AT]
    assert point.n == 200 and point.seeds == (1,)
    assert point.clean[0] == flags["clean"][:200].mean() != flags["clean"].mean()
    assert point.robust == (0.4, *wilson(80, 200))
    assert figures.points_of({AT: [run]}, " last")[AT].robust[0] == pytest.approx(0.35)
    assert figures.points_of({AT: [read_run(record(tmp_path, "MART"))]}) == {}


def test_over_seeds_a_point_has_one_standard_deviation(tmp_path):
    runs = [read_run(record(tmp_path, "PGD-AT", seed=seed, accuracies=moved(0, shift)))
            for seed, shift in ((1, 0.0), (2, 0.05), (3, 0.1))]
    point = figures.points_of({AT: runs})[AT]
    assert point.robust == pytest.approx((0.45, 0.40, 0.50)) and point.clean == pytest.approx((0.7, 0.7, 0.7))


def test_every_base_has_its_arrow_to_rpat(tmp_path, monkeypatch):
    assert (AT, RPAT) in pairs() and (("ReBAT", "plain"), ("RPAT++", "plain")) in pairs() and len(pairs()) == 6
    assert all(with_rpat(ours) and not with_rpat(base) for base, ours in pairs())
    everything(tmp_path)
    arrows, levels = [], []
    monkeypatch.setattr(figures, "arrow", lambda axes, base, ours, colour, alpha: arrows.append((base, ours, alpha)))
    monkeypatch.setattr(figures, "level", lambda axes, value, colour, span: levels.append(value))
    figures.draw(tmp_path, tmp_path)
    assert [(base.robust[0], ours.robust[0], alpha) for base, ours, alpha in arrows] == [
        (pytest.approx(0.35), pytest.approx(0.37), 0.35), (pytest.approx(0.4), pytest.approx(0.42), 1.0)]
    assert levels == [pytest.approx(nrr(0.7, 0.4))]                                  # the base's


def test_an_arrow_points_at_rpat_and_a_level_has_one_nrr():
    axes = Figure().subplots()
    base, ours = (figures.Point((x, x, x), (y, y, y), 10, (1,)) for x, y in ((0.7, 0.4), (0.72, 0.43)))
    figures.arrow(axes, base, ours, "red", 1.0)
    assert axes.texts[0].xy == (72.0, 43.0) and axes.texts[0].get_position() == (70.0, 40.0)
    figures.level(axes, nrr(0.7, 0.4), "red", (20.0, 90.0))
    clean, robust = (values / 100 for values in axes.get_lines()[0].get_data())
    assert [nrr(a, b) for a, b in zip(clean, robust, strict=True)] == pytest.approx([nrr(0.7, 0.4)] * len(clean))
    spans = figures.limits([base, figures.Point((0.5, 0.4, 0.6), (0.3, 0.2, 0.4), 10, (1,))])
    assert spans[0][0] < 40 < 70 < spans[0][1] and spans[1][0] < 20 < 40 < spans[1][1]


# -- perception ------------------------------------------------------------------------------------------------------

def test_moves_are_means_over_each_groups_images(tmp_path):
    run = read_run(record(tmp_path, "PGD-AT", perceived=60, fooled=0.5))
    numbers = run.evals["perception-rpat-60"].numbers("perception PGD-20")
    found = figures_perception.moves(run, "perception PGD-20")
    assert found.n == 60 and found.checkpoint == "best"
    for group, value in (("defended", 1), ("fooled", 0)):
        chosen = numbers["clean-middle"][numbers["defended"] == value].astype(float)
        n, mean, error = found.of[group, "clean-middle"]
        assert n == len(chosen) and mean == pytest.approx(chosen.mean())
        assert error == pytest.approx(chosen.std(ddof=1) / len(chosen) ** 0.5)
    assert found.of["fooled", "clean-adversarial"][1] < found.of["defended", "clean-adversarial"][1]
    assert figures_perception.moves(read_run(record(tmp_path, "MART")), "perception PGD-20") is None


def test_a_group_without_images_is_left_out_and_one_image_has_no_bar(tmp_path, monkeypatch):
    run = read_run(record(tmp_path, "PGD-AT", perceived=1))
    found = figures_perception.moves(run, "perception noise")
    (group,) = {group for group, _ in found.of}
    n, mean, error = found.of[group, "clean-middle"]
    assert n == 1 and np.isnan(error) and figures_perception.interval([(n, mean, error)]) == (mean, 0)
    assert drawn(tmp_path, tmp_path) == ["perception"]


def test_bars_are_of_the_mean_or_over_seeds():
    assert figures_perception.interval([(9, 0.5, 0.1)]) == pytest.approx((0.5, 0.196))
    assert figures_perception.interval([(9, 0.4, 0.1), (9, 0.5, 0.1), (9, 0.6, 0.1)]) == pytest.approx((0.5, 0.1))


def test_halves_are_compared_with_a_quarter_of_the_whole(tmp_path):
    record(tmp_path, "PGD-AT", perceived=60)
    runs, axes = grouped(tmp_path), Figure().subplots()
    figures_perception.panel(axes, runs, [AT], "perception PGD-20", "clean-middle")
    found = figures_perception.moves(runs[AT][0], "perception PGD-20").of
    ticks = [part.get_xdata()[0] for part in axes.get_lines() if part.get_markersize() == 14]
    assert ticks == pytest.approx([found[group, "clean-adversarial"][1] / 4 for group in ("defended", "fooled")])
    means = [part.get_xdata()[0] for part in axes.get_lines() if part.get_marker() in "oX"]
    assert means == pytest.approx([found[group, "clean-middle"][1] for group in ("defended", "fooled")])


def test_epochs_are_drawn_from_test_images_if_there_are_some(tmp_path):
    run = read_run(record(tmp_path, "PGD-AT", epochs=2))
    assert figures_perception.curve_of(run, "fooled") == "test_mse_fooled_clean-adversarial"
    metrics = run.folder / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace("test_mse", "val_mse"))
    assert figures_perception.curve_of(read_run(run.folder), "fooled") == "val_mse_fooled_clean-adversarial"
    assert drawn(tmp_path, tmp_path) == ["perception-epochs", "validation"]
    assert figures_perception.curve_of(read_run(record(tmp_path, "ReBAT", epochs=2)), "fooled") is None


@pytest.mark.parametrize(("fooled", "scale"), [(9.0, "linear"), (90.0, "log")])
def test_the_shared_axis_holds_the_curves_of_every_panel(tmp_path, monkeypatch, fooled, scale):
    """In powers of ten where one curve is so far above the others that nothing of them would be seen."""
    record(tmp_path, "PGD-AT", epochs=3)
    record(tmp_path, "PGD-AT", variant="rpat", epochs=3, fooled=fooled)
    kept = []

    @contextmanager
    def figure(path, width, height):
        kept.append(Figure())
        yield kept[0]
    monkeypatch.setattr(figures_perception.plots, "figure", figure)
    figures_perception.epochs(grouped(tmp_path), "title", tmp_path / "epochs.png")
    highest = max(line.get_ydata().max() for axes in kept[0].axes for line in axes.get_lines())
    assert {axes.get_yscale() for axes in kept[0].axes} == {scale}
    assert all((axes.get_ylim()[0] == 0) == (scale == "linear") and axes.get_ylim()[1] >= highest
               for axes in kept[0].axes)


# -- style -----------------------------------------------------------------------------------------------------------

def test_a_base_and_its_rpat_share_a_colour_and_differ_in_more():
    for base, ours in pairs():
        first, second = line(base), line(ours)
        assert first["color"] == second["color"] and first["linestyle"] != second["linestyle"]
        assert first["markerfacecolor"] == "white" != second["markerfacecolor"]
    assert len({COLOURS[method] for method, _ in LABELS}) == len(COLOURS) - 1        # ReBAT and RPAT++ are one pair
    assert line(("RPAT++", "cutmix"))["color"] != line(("RPAT++", "plain"))["color"]


def test_words(tmp_path):
    runs = [[read_run(record(tmp_path, "MART", seed=seed))] for seed in (2, 1)]
    assert whole_numbers([200, 200]) == "200" and whole_numbers([1000, 200]) == "200 to 1,000"
    assert seeds_of(runs) == "seeds 1, 2" and seeds_of(runs[:1] * 2) == "seed 2"


def test_figures_need_no_torch(tmp_path, run_without_torch):
    everything(tmp_path)
    code = ("from pathlib import Path\nfrom rpat import figures\n"
            "print(len(figures.draw(Path(sys.argv[1]), Path(sys.argv[1]))))")
    assert run_without_torch(code, str(tmp_path)) == "4\n"
