"""The regulariser's figures are functions of records: what is counted, what is left out, the same bytes twice."""

import shutil
import struct

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from brainreg import figures, figures_ablations, figures_corruptions, figures_similarity, figures_style, observe
from brainreg.network import PairResNet, similarity_matrix
from brainreg.pairs import PairBatches
from brainreg.runs_budgets import SOURCE_SEED
from brainreg.similarity import pixel_similarity
from brainreg.tests.brainreg_records import matrices, record
from common.environment import ROOT
from common.errors import UserError
from common.records import read_run, read_runs

WHAT = ["strength", "boundary", "ablations-cifar10", "corruptions", "similarity-matrices", "similarity-targets"]


def everything(results, dataset="cifar10"):
    (results / "reported").mkdir(parents=True)
    shutil.copy(ROOT / "results" / "reported" / "brainreg.csv", results / "reported")
    for seed in (0, 1):
        for word, gain in (("unregularised", 0.0), ("cifar10", 0.2), ("cifar10-low", 0.1), ("cifar10-plain", 0.1)):
            record(results, word, dataset=dataset, seed=seed, gain=gain + 0.02 * seed, corrupted=20,
                   similar=12 if gain else 0)
    record(results, "unregularised", dataset=dataset, seed=SOURCE_SEED, judged=False)


def drawn(results, out, **which):
    return [path.name.removeprefix("brainreg-").removesuffix(".png") for path in figures.draw(results, out, **which)]


def shown(results, dataset="cifar10"):
    return {one.variant.word: one for one in figures_style.shown(read_runs(results), dataset, "short", results)}


def test_six_figures_and_the_same_bytes_twice(tmp_path):
    everything(tmp_path / "results")
    first = figures.draw(tmp_path / "results", tmp_path / "a")
    assert [path.name for path in first] == [f"brainreg-cifar10-short-{what}.png" for what in WHAT]
    for path in first:
        width, height = struct.unpack(">II", path.read_bytes()[16:24])
        assert path.parent == tmp_path / "a" / "figures" and 700 <= width <= 2000 and height >= 450
    again = figures.draw(tmp_path / "results", tmp_path / "b")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]


def test_only_what_is_asked_for_and_finished(tmp_path):
    record(tmp_path, "mnist", boundary=0)
    assert drawn(tmp_path, tmp_path, budget="gpu") == drawn(tmp_path, tmp_path, dataset="cifar10") == []
    assert drawn(tmp_path, tmp_path, dataset="mnist", budget="short") == ["mnist-short-strength"]
    (record(tmp_path, "fashion-mnist", similar=8) / "train.json").unlink()
    record(tmp_path, "unregularised", seed=SOURCE_SEED)                  # it gives images to others, no more
    assert drawn(tmp_path, tmp_path) == ["mnist-short-strength"]
    assert list(shown(tmp_path, "mnist")) == ["mnist"]


# -- accuracy against strength, boundary attack ----------------------------------------------------------------------

def test_a_curve_is_a_records_counts_and_its_band_the_seeds_range(tmp_path):
    folders = [record(tmp_path, "mnist", seed=seed, gain=0.1 * seed) for seed in (0, 1, 2)]
    results = read_run(folders[0]).evals["paper-brainreg-200-10"].results
    strengths, accuracies = figures.curve(read_run(folders[0]), "SaltPepper")
    assert strengths == pytest.approx(np.linspace(0, 0.3, 10))
    assert accuracies[-1] == results["SaltPepper 0.3"]["robust"] / 200 and accuracies[0] == 0.9
    axes = Figure().subplots()
    figures.band(axes, shown(tmp_path, "mnist")["mnist"], "SaltPepper")
    each = [figures.curve(read_run(folder), "SaltPepper")[1] for folder in folders]
    assert axes.get_lines()[0].get_ydata() == pytest.approx(100 * np.mean(each, 0))
    corners = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert corners.min() == pytest.approx(100 * np.min(each)) and corners.max() == pytest.approx(100 * np.max(each))


def test_reported_points_are_of_one_source_and_in_percent(tmp_path):
    everything(tmp_path)
    found = shown(tmp_path)
    points = found["unregularised"].points("accuracy", "gaussian noise")
    assert {one.table for one in points} == {"CCN Fig.2b"} and len(points) == 10
    axes = Figure().subplots()
    figures.band(axes, found["unregularised"], "Gaussian")
    crosses = next(part for part in axes.get_lines() if part.get_marker() == "x")
    assert crosses.get_xdata()[-1] == 0.1 and crosses.get_ydata()[-1] == 14.36
    assert found["cifar10"].points("accuracy", "uniform noise") == []
    assert figures_style.value_of(found["cifar10"].points("median x1e-3", "L2 squared per pixel")[0]) == (5.98, 0.62)
    assert [one.value for one in figures_corruptions.reported_of(found["cifar10"], "high")] == ["62.79"]
    assert figures_corruptions.reported_of(found["cifar10-plain"], "high") == []


def test_medians_are_the_mean_of_the_repeats_in_thousandths(tmp_path):
    run = read_run(record(tmp_path, "mnist", seed=1))
    numbers = run.evals["paper-brainreg-200-10"]
    each = [np.median(numbers.numbers(f"BoundaryAttack {repeat}")["mean_square"]) for repeat in range(1, 6)]
    record(tmp_path, "mnist", seed=2, boundary=0)
    assert figures_style.medians(shown(tmp_path, "mnist")["mnist"]) == {1: pytest.approx(1000 * np.mean(each))}


def test_of_two_plans_that_measured_the_same_the_larger_counts_and_stale_ones_never(tmp_path):
    for n in (100, 300):
        folder = record(tmp_path / str(n), "mnist", n=n)
    for path in (tmp_path / "100").glob("brainreg/mnist/*/*paper*"):
        shutil.copy(path, folder)
    assert {result["n"] for result in figures_style.results_of(read_run(folder))} == {300, 10}
    run = read_run(folder)
    run.train["weights"]["best"]["sha256"] = "0" * 64
    assert figures_style.results_of(run) == []


# -- ablations -------------------------------------------------------------------------------------------------------

def test_an_ablation_holds_the_usual_setting_in_the_order_of_its_values(tmp_path):
    for word in ("unregularised", "mnist-th0.6", "mnist", "mnist-k4", "mnist-double0.1", "fashion-mnist"):
        record(tmp_path, word)
    found = list(shown(tmp_path, "mnist").values())

    def values(group):
        return [one.variant.groups[group] for one in figures_ablations.of_group(found, "mnist", group)]

    assert {group: values(group) for group in figures_ablations.TITLES} == {
        "N": [5000], "k": [4, 16], "thresholds": [0.2, 0.6], "ranges": ["all", "double"]}
    assert drawn(tmp_path, tmp_path)[2:] == ["mnist-short-ablations-mnist"]             # nothing to vary of the other
    run = found[1].runs[0]
    assert figures_ablations.mean_of(run, "Uniform") == pytest.approx(figures.curve(run, "Uniform")[1].mean())
    assert figures_ablations.mean_of(run, "clean") == 0.9


def test_the_level_lines_are_of_the_network_without_regularisation(tmp_path):
    for word, gain in (("unregularised", 0), ("mnist", 0.4), ("mnist-k4", 0.2)):
        record(tmp_path, word, gain=gain)
    base, *points = shown(tmp_path, "mnist").values()
    axes = Figure().subplots()
    figures_ablations.accuracies(axes, points, base, "clean")
    assert axes.get_lines()[-1].get_ydata() == pytest.approx([90, 90])
    assert axes.get_lines()[0].get_ydata() == pytest.approx([80, 85])


def test_corruptions_are_summed_by_band(tmp_path):
    run = read_run(record(tmp_path, "unregularised", dataset="cifar10", corrupted=20))
    curves = figures_corruptions.curves(run)
    assert set(curves) == set(figures_corruptions.BANDS)
    assert curves["low"][0].tolist() == [1, 2, 3, 4, 5]
    assert curves["low"][1] == pytest.approx([0.8, 0.7, 0.55, 0.45, 0.3])
    assert figures_corruptions.curves(read_run(record(tmp_path, "cifar10", dataset="cifar10"))) == {}


# -- similarities ----------------------------------------------------------------------------------------------------

def test_alike_images_are_neighbours():
    arrays = matrices(24, 0.5, 3)
    sequence = figures_similarity.order(arrays["pixel"])
    signs = np.sign(arrays["pixel"][sequence[0], sequence])
    assert sorted(sequence.tolist()) == list(range(24)) and np.count_nonzero(np.diff(signs)) <= 2
    assert figures_similarity.order(arrays["pixel"]).tolist() == sequence.tolist()


def test_every_pair_is_drawn_once_before_and_once_after():
    arrays, axes = matrices(10, 0.5, 0), Figure().subplots()
    figures_similarity.scatter(axes, arrays)
    before, after, target = axes.get_lines()
    upper = np.triu_indices(10, 1)
    for line, key in ((before, "before"), (after, "after")):
        assert sorted(line.get_ydata()) == sorted(arrays[key][upper]) and len(line.get_ydata()) == 45
    assert np.all(np.diff(target.get_xdata()) >= 0) and set(target.get_ydata()) <= {-1, 0, 1}


def test_a_damaged_file_of_similarities_is_named(tmp_path):
    folder = record(tmp_path, "mnist", similar=6)
    path = folder / "similarities.npz"
    whole = path.read_bytes()
    for content in (whole[:100], b"", whole[:-200]):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"similarities\.npz is not whole .* restore it from git or train"):
            figures_similarity.similarities(read_run(folder))
    np.savez(path, **matrices(6, 0.5, 0) | {"after": np.zeros((5, 5))})
    with pytest.raises(UserError, match="of other numbers of images"):
        figures_similarity.similarities(read_run(folder))


@pytest.mark.parametrize("boost", [1.0, None])
def test_what_a_training_keeps_is_what_is_drawn(tmp_path, boost):
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(70, 1, 12, 12, generator=generator)
    similarity = pixel_similarity(images)
    batches = PairBatches(None, images, torch.tensor([[0, 1]]), similarity, 1, 0, 0.1, boost)
    network = PairResNet((1, 1, 1, 1), classes=3, width=4)
    before = observe.network_similarities(network, batches)
    assert before == pytest.approx(similarity_matrix(network, images[:64]).numpy()) and network.training
    folder = record(tmp_path, "mnist")
    path = folder / observe.FILE
    observe.write_similarities(path, batches, before, -before)
    found = figures_similarity.similarities(read_run(folder))
    signs = (similarity > 0.1).float() - (similarity < -0.1).float()
    assert np.array_equal(found["pixel"], similarity[:64, :64])
    assert np.array_equal(found["target"], (signs if boost else similarity)[:64, :64])
    assert np.array_equal(found["before"], before) and np.array_equal(found["after"], -before)
    with np.load(path) as stored:
        assert stored["positions"].tolist() == list(range(64)) and stored["after"].dtype == np.float32
    with pytest.raises(ValueError, match=r"after is \(63, 63\), of 64 images"):
        observe.write_similarities(path, batches, before, before[:63, :63])
    assert drawn(tmp_path, tmp_path)[-2:] == ["mnist-short-similarity-matrices", "mnist-short-similarity-targets"]


def test_figures_need_no_torch(run_without_torch, tmp_path):
    code = "from pathlib import Path\nfrom brainreg.figures import draw\nprint(draw(Path({0!r}), Path({0!r})))"
    assert run_without_torch(code.format(str(tmp_path))) == "[]\n"
