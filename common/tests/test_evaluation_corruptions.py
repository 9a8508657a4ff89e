"""Corruptions: files checked and mapped, our own as described, error rates on fabricated files."""

import json
import shutil

import numpy as np
import pytest
import torch
from torch import nn

from common.data.corruptions import OWN, corrupt, own_corruptions, plasma
from common.data.digits import load_digits
from common.data.splits import Split
from common.errors import UserError
from common.evaluation import Evaluator, Plan, corruptions, evaluate, result_json
from common.evaluation.corruptions import BANDS, CIFAR_C, by_band, errors, file_plan, mean_error, open_files, own_plan

N = 10           # test images of the fabricated set


class Mean(nn.Module):
    """Predicts the class whose number an image of one colour has."""

    def forward(self, x):
        return -(255 * x.mean((1, 2, 3))[:, None] - torch.arange(10.0)).abs()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """CIFAR-10-C as it is laid out, 10 test images of 4x4: image i of severity s shows another class where i < k."""
    path = tmp_path_factory.mktemp("files") / "CIFAR-10-C"
    path.mkdir()
    labels = np.arange(N) % 10
    np.save(path / "labels.npy", np.tile(labels, 5).astype(np.uint8))
    for number, name in enumerate(CIFAR_C):
        shown = np.tile(labels, 5)
        for severity in range(5):
            wrong = broken(number, severity)
            shown[severity * N:severity * N + wrong] = (labels[:wrong] + 1) % 10
        np.save(path / f"{name}.npy", np.broadcast_to(shown[:, None, None, None], (5 * N, 4, 4, 3)).astype(np.uint8))
    return path


def broken(number: int, severity: int) -> int:
    """How many of the 10 images are wrong, of corruption `number` in the severity 0..4."""
    return (3 * number + 2 * severity) % 8


@pytest.fixture
def split() -> Split:
    labels = torch.arange(N) % 10
    return Split(labels.to(torch.uint8).view(-1, 1, 1, 1).expand(N, 3, 4, 4).contiguous(), labels)


def run(split, plan, work, **changes):
    return evaluate(Mean(), split, plan, **{"seed": 1, "device": "cpu", "work": work, "progress": False} | changes)


def test_the_mean_corruption_error_of_fabricated_files(folder, split, tmp_path):
    files = open_files(folder)
    results = run(split, file_plan(files), tmp_path, corrupted=files)
    written = json.loads(json.dumps([result_json(result) for result in results]))
    assert len(written) == 95 and all(result["n"] == N for result in written)
    expected = {name: sum(broken(number, severity) for severity in range(5)) / (5 * N)
                for number, name in enumerate(CIFAR_C)}
    assert errors(written) == pytest.approx(expected)
    name, value = mean_error(written)
    assert name == "mCE, CIFAR-10-C" and value == pytest.approx(sum(expected.values()) / 19)
    fog = {result["settings"]["severity"]: result for result in written if result["settings"]["corruption"] == "fog"}
    number = CIFAR_C.index("fog")
    assert {severity: N - result["robust"] for severity, result in fog.items()} == {
        severity: broken(number, severity - 1) for severity in range(1, 6)}
    assert fog[2]["name"] == "CIFAR-10-C fog 2" and fog[2]["survivors"] == {}
    assert len(fog[2]["settings"]["sha256"]) == 64
    flags = next(result.flags for result in results if result.name == "CIFAR-10-C fog 2")
    assert flags.tolist() == [position >= broken(number, 1) for position in range(N)]     # of the same test images
    bands = by_band(written)
    low = [CIFAR_C.index(name) for name, band in BANDS.items() if band == "low"]
    assert bands["low"][3] == (sum(N - broken(number, 2) for number in low), N * len(low))
    assert set(bands) == {"low", "medium", "high"} and sum(n for _, n in bands["high"].values()) == 5 * N * 6


def test_only_whole_sets_are_called_mce(folder, split, tmp_path):
    files = open_files(folder)
    some = [entry for entry in file_plan(files, n=5).evaluators if entry.setting("corruption") in ("fog", "snow")]
    results = [result_json(result) for result in run(split, Plan("p", some, 2), tmp_path, corrupted=files)]
    assert [result["robust"] for result in results[:5]] == [
        5 - min(5, broken(CIFAR_C.index("fog"), severity)) for severity in range(5)]
    assert results[0]["n"] == 5 and mean_error(results)[0] == "mean error, CIFAR-10-C (2)"
    with pytest.raises(ValueError, match=r"snow was measured in the severities \[1, 2, 3, 4\]"):
        errors(results[:-1])
    other = {**results[0], "settings": {**results[0]["settings"], "set": "CIFAR-100-C"}}
    with pytest.raises(ValueError, match="of one set"):
        mean_error([*results[1:], other])
    clean = {"kind": "clean", "settings": {}, "robust": 1, "n": 2}
    assert mean_error([clean, *results]) == mean_error(results)


def test_the_nineteen():
    assert len(CIFAR_C) == 19 and set(OWN) < set(CIFAR_C) and set(BANDS.values()) == {"low", "medium", "high"}


# --- bad files: one line, before anything is measured ---

def spoil_missing(path):
    (path / "fog.npy").unlink()
    (path / "snow.npy").unlink()


def spoil_length(path):
    np.save(path / "fog.npy", np.load(path / "fog.npy")[:-1])


def spoil_type(path):
    np.save(path / "fog.npy", np.load(path / "fog.npy") / 255)


def spoil_half(path):
    (path / "fog.npy").write_bytes((path / "fog.npy").read_bytes()[:900])


def spoil_pickle(path):
    np.save(path / "fog.npy", np.array([{}]))


def spoil_labels(path):
    labels = np.load(path / "labels.npy")
    labels[-1] += 1
    np.save(path / "labels.npy", labels)


def spoil_label_type(path):
    np.save(path / "labels.npy", np.load(path / "labels.npy").astype(float))


@pytest.mark.parametrize(("spoil", "message"), [
    (spoil_missing, r"lacks fog\.npy, snow\.npy \(2 of 20 files\)"),
    (spoil_length, r"fog\.npy is uint8 \(49, 4, 4, 3\), not uint8 \(50, height, width, 3\)"),
    (spoil_type, r"fog\.npy is float64 .* not uint8"),
    (spoil_half, r"fog\.npy cannot be read as an array .*half copied"),
    (spoil_pickle, r"fog\.npy cannot be read as an array"),
    (spoil_labels, r"labels\.npy has other labels in other severities"),
    (spoil_label_type, r"labels\.npy is float64 \(50,\): labels are integers"),
])
def test_bad_files_are_refused(folder, tmp_path, spoil, message):
    path = tmp_path / "CIFAR-10-C"
    shutil.copytree(folder, path)
    spoil(path)
    with pytest.raises(UserError, match=message) as caught:
        open_files(path)
    assert "\n" not in str(caught.value)


def test_files_that_do_not_fit_are_refused(folder, split, tmp_path):
    files = open_files(folder)
    plan = Plan("p", file_plan(files).evaluators[:1])
    shuffled = Split(split.images.flip(0), split.labels.flip(0))
    larger = Split(torch.zeros(N, 3, 8, 8, dtype=torch.uint8), split.labels)
    for data, message in [(shuffled, "labels.npy is not what the test images are labelled"),
                          (split.subset(5), "10 labels for 5 images"), (larger, "4x4x3, the test images are 8x8x3")]:
        with pytest.raises(UserError, match=message):
            run(data, plan, tmp_path / "work", corrupted=files)
    with pytest.raises(ValueError, match="needs the files"):
        run(split, plan, tmp_path / "work")
    with pytest.raises(UserError, match="give corruptions a plan of their own"):
        run(split, Plan("p", plan.evaluators, test_crop=True), tmp_path / "work", corrupted=files)
    assert not (tmp_path / "work").exists()
    with pytest.raises(UserError, match="is no folder"):
        open_files(tmp_path / "CIFAR-10-C")
    with pytest.raises(UserError, match="is called CIFAR-10-C or CIFAR-100-C"):
        open_files(folder.parent)


@pytest.mark.parametrize(("kind", "settings", "message"), [
    ("corruption", {"severity": 6}, "severity is a whole number from 1 to 5, not 6"),
    ("corruption", {"corruption": "a/b"}, "corruption is a name"),
    ("corruption-file", {}, "sha256 is that of the file"),
])
def test_bad_evaluators_are_refused(kind, settings, message):
    with pytest.raises(UserError, match=message):
        Evaluator("c", kind, settings=settings)


# --- our own ---

@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """(6,3,32,32) natural enough: smooth shades of several colours with an edge."""
    y, x = np.mgrid[:32, :32] / 31
    rng = np.random.default_rng(0)
    shades = [np.stack([a * x + b * y + 0.2 * (x > c) for a, b, c in rng.uniform(0.1, 0.4, (3, 3))]) for _ in range(6)]
    return np.rint(255 * np.clip(shades, 0, 1)).astype(np.uint8)


@pytest.mark.parametrize("name", OWN)
def test_own_corruptions_keep_shape_and_are_drawn_per_image(images, name):
    severities = [corrupt(name, severity, images) for severity in range(1, 6)]
    for corrupted in severities:
        assert corrupted.shape == images.shape and corrupted.dtype == np.uint8
    assert len({array.tobytes() for array in severities}) == 5 and not np.array_equal(severities[2], images)
    # An image's corruption depends on its position in the test set, not on the chunk that it is in.
    np.testing.assert_array_equal(corrupt(name, 3, images[2:4], first=2), severities[2][2:4])
    if name != "saturate":
        grey = corrupt(name, 4, images[:, :1])
        assert grey.shape == (6, 1, 32, 32) and not np.array_equal(grey, images[:, :1])
    drawn = not np.array_equal(corrupt(name, 5, images[:1], first=9), corrupt(name, 5, images[:1], first=8))
    assert drawn == (name in ("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "motion_blur", "fog",
                              "elastic_transform"))


@pytest.mark.parametrize("name", [name for name in OWN if name not in ("elastic_transform", "saturate")])
def test_own_corruptions_grow_with_severity(images, name):
    sizes = [np.square(corrupt(name, severity, images).astype(float) - images).mean() for severity in range(1, 6)]
    assert sizes[4] > 1.3 * sizes[0] > 0 and np.mean(np.diff(sizes) > 0) >= 0.75


def test_known_answers():
    grey = np.full((2, 3, 32, 32), 128, np.uint8)
    spread = corrupt("gaussian_noise", 5, np.full((20, 3, 32, 32), 128, np.uint8)) / 255
    assert spread.std() == pytest.approx(0.10, rel=0.02) and spread.mean() == pytest.approx(128 / 255, abs=2e-3)
    hit = corrupt("impulse_noise", 5, np.full((20, 3, 32, 32), 128, np.uint8))
    assert (hit == 0).mean() == pytest.approx(0.035, rel=0.1) and (hit == 255).mean() == pytest.approx(0.035, rel=0.1)
    assert (corrupt("brightness", 2, grey) == round(128 + 25.5)).all()
    for name in ("gaussian_blur", "defocus_blur", "motion_blur", "zoom_blur", "contrast", "pixelate",
                 "elastic_transform"):
        assert (corrupt(name, 5, grey) == 128).all(), name                   # what only mixes pixels keeps one colour
    red = np.zeros((1, 3, 8, 8), np.uint8)
    red[:, 0], red[:, 1:] = 200, 100                                         # saturation 0.5
    paler, fuller = corrupt("saturate", 1, red)[0, :, 0, 0], corrupt("saturate", 5, red)[0, :, 0, 0]
    assert paler.tolist() == [200, 170, 170] and fuller.tolist() == [200, 0, 0]   # 0.5*0.3 and min(0.5*2.5 + 0.2, 1)
    black = corrupt("brightness", 5, np.zeros((1, 3, 8, 8), np.uint8))
    assert (black == round(0.3 * 255)).all()
    heights = plasma(32, 4.0, np.random.default_rng(1))
    assert heights.shape == (32, 32) and heights.min() == 0 and heights.max() == 1
    assert np.abs(np.diff(heights, axis=0)).mean() < 0.1                     # smooth


@pytest.fixture(scope="module")
def natural() -> np.ndarray:
    """(20,3,32,32) of amplitude frequency^-1.5 (steeper than natural images, which have edges); colours go together."""
    rng = np.random.default_rng(3)
    frequency = np.hypot(np.fft.fftfreq(32)[:, None], np.fft.fftfreq(32))
    frequency[0, 0] = np.inf
    white = rng.standard_normal((20, 3, 32, 32)) + 2 * rng.standard_normal((20, 1, 32, 32))
    shapes = np.fft.ifft2(np.fft.fft2(white) / frequency ** 1.5).real
    return np.rint(np.clip(120 + 45 * shapes / shapes.std(), 0, 255)).astype(np.uint8)


@pytest.mark.parametrize("name", OWN)
def test_bands_are_where_the_change_lies(natural, name):
    change = corrupt(name, 4, natural).astype(float) - natural
    power = np.square(np.abs(np.fft.fft2(change)))
    frequency = np.hypot(np.fft.fftfreq(32)[:, None], np.fft.fftfreq(32))
    least, most = {"low": (0, 0.11), "medium": (0.15, 0.39), "high": (0.37, 0.5)}[BANDS[name]]
    assert least < (power * frequency).sum() / power.sum() < most


def test_own_corruptions_of_a_test_set(tmp_path):
    digits = load_digits()
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    train = digits.train.float_images().flatten(1)
    targets = nn.functional.one_hot(digits.train.labels, 10).float()
    gram = train.T @ train + 10 * torch.eye(64)
    network[1].weight.data = torch.linalg.solve(gram, train.T @ targets).T.contiguous()
    network[1].bias.data.zero_()
    plan = own_plan(1, n=60, chunk=25)
    chosen = Plan(plan.name, [entry for entry in plan.evaluators if entry.setting("corruption") in
                              ("gaussian_noise", "contrast")] + [Evaluator("clean", "clean", n=60)], 25)
    assert len(plan.evaluators) == 70 and plan.name == "own-corruptions-60"
    first, second = (evaluate(network, digits.test, chosen, seed=seed, device="cpu", work=tmp_path / str(seed),
                              progress=False) for seed in (1, 2))
    for one, other in zip(first, second, strict=True):
        assert one.flags.tolist() == other.flags.tolist()       # the images depend on no seed
    left = {result.name: result.robust for result in first}
    assert left["clean"] > 45 and left["own gaussian_noise 5"] > 40 and left["own contrast 5"] < left["clean"]
    images = digits.test.images[25:50].numpy()
    expected = torch.from_numpy(corrupt("gaussian_noise", 5, images, first=25)) / 255
    right = network(expected).argmax(1) == digits.test.labels[25:50]
    noisy = next(result for result in first if result.name == "own gaussian_noise 5")
    assert noisy.flags[25:50].tolist() == right.tolist()
    results = [result_json(result) for result in first]
    assert mean_error(results)[0] == "mean error, own corruptions (2)" and set(by_band(results)) == {"low", "high"}
    with pytest.raises(UserError, match="no corruption 'saturate' of our own for images of 1 channels"):
        evaluate(network, digits.test, Plan("p", [Evaluator("s", "corruption", settings={"corruption": "saturate"})]),
                 seed=1, device="cpu", work=tmp_path, progress=False)
    assert own_corruptions(3) == tuple(OWN) and "saturate" not in own_corruptions(1)


def test_means_need_no_torch(run_without_torch):
    said = run_without_torch("from common.evaluation.corruptions import mean_error, BANDS\n"
                             "one = [{'kind': 'corruption', 'robust': s, 'n': 10, 'settings': {'corruption': 'fog',"
                             " 'severity': s}} for s in range(1, 6)]\nprint(mean_error(one))")
    assert said.strip() == str(("mean error, own corruptions (1)", corruptions.errors(
        [{"kind": "corruption", "robust": s, "n": 10, "settings": {"corruption": "fog", "severity": s}}
         for s in range(1, 6)])["fog"]))
