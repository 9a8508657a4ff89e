"""Corrupted images for networks of one channel: files turned grey as Pillow does it, sums by severity and band."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from common.data.grey import grey_images, in_grey
from common.data.splits import DataSet, Split, to_float
from common.errors import UserError
from common.evaluation import Evaluator, Plan, corruptions, evaluate, result_json
from common.evaluation.corruptions import BANDS, CIFAR_C, by_band, by_severity, file_plan_named, open_files
from common.evaluation.summaries import over_corruptions, said
from common.render import DASH

N = 8


class Brightest(nn.Module):
    """(B,1,H,W) -> 4 classes: which of four shares of grey the mean is nearest to."""

    def forward(self, x):
        assert x.shape[1] == 1
        return -(x.mean((1, 2, 3))[:, None] - torch.tensor([0.3, 0.45, 0.55, 0.7])).abs()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """CIFAR-10-C as it is laid out, 8 test images of 4x4 in random colours."""
    path = tmp_path_factory.mktemp("files") / "CIFAR-10-C"
    path.mkdir()
    rng = np.random.default_rng(0)
    np.save(path / "labels.npy", np.tile(np.arange(N) % 4, 5).astype(np.uint8))
    for name in CIFAR_C:
        colours = rng.integers(0, 256, (5 * N, 1, 1, 3)) * 0.6 + rng.integers(0, 256, (5 * N, 4, 4, 3)) * 0.4
        np.save(path / f"{name}.npy", colours.astype(np.uint8))
    return path


def by_pillow(folder, corruption, severity) -> torch.Tensor:
    """uint8 (N,1,4,4) of the images of one file and severity."""
    images = np.load(folder / f"{corruption}.npy")[(severity - 1) * N:severity * N]
    return torch.from_numpy(np.stack([np.asarray(Image.fromarray(image).convert("L"))[None] for image in images]))


def test_files_are_turned_grey_as_pillow_does_it(folder, tmp_path):
    files = open_files(folder, grey=True)
    plan = file_plan_named("cifar-10-c-grey-6", files)
    split = Split(torch.full((N, 1, 4, 4), 128, dtype=torch.uint8), torch.arange(N) % 4)
    results = evaluate(Brightest(), split, plan, seed=1, device="cpu", work=tmp_path, progress=False, corrupted=files)
    assert len(results) == 95 and plan.name == "cifar-10-c-grey-6"
    for result in results[::7]:
        corruption, severity = (result.evaluator.setting(key) for key in ("corruption", "severity"))
        images = by_pillow(folder, corruption, severity)
        assert np.array_equal(files.images(corruption, severity, slice(2, 5)), images[2:5].numpy())
        expected = Brightest()(to_float(images)).argmax(1) == split.labels
        assert result.flags.tolist() == expected[:6].tolist() and result.n == 6
    written = json.loads(json.dumps([result_json(result) for result in results]))
    assert written[0]["settings"]["set"] == "CIFAR-10-C-grey" and written[0]["name"].startswith("CIFAR-10-C-grey ")
    assert corruptions.mean_error(written)[0] == "mCE, CIFAR-10-C-grey"
    colour = open_files(folder)
    assert colour.name == "CIFAR-10-C" and colour.images("fog", 1, slice(0, 2)).shape == (2, 3, 4, 4)
    with pytest.raises(UserError, match="4x4x3, the test images are 4x4x1"):
        evaluate(Brightest(), split, file_plan_named("cifar-10-c", colour), seed=1, device="cpu", work=tmp_path,
                 progress=False, corrupted=colour)


def test_a_plan_of_files_is_called_after_them(folder):
    colour, grey = (open_files(folder, grey=grey) for grey in (False, True))
    assert {one.n for one in file_plan_named("cifar-10-c-5", colour).evaluators} == {5}
    assert {one.n for one in file_plan_named("cifar-10-c-grey", grey).evaluators} == {None}
    for files, name in ((grey, "cifar-10-c-5"), (colour, "cifar-10-c-grey-5"), (colour, "paper-brainreg")):
        with pytest.raises(UserError, match=re.escape(f"--plan {name}: of the files in {folder}")):
            file_plan_named(name, files)


def test_counts_by_severity_and_band_add_up():
    results = [{"name": f"{corruption} {severity}", "kind": "corruption", "n": 10, "robust": 10 - severity - shift,
                "settings": {"corruption": corruption, "severity": severity}}
               for corruption, shift in (("fog", 0), ("gaussian_blur", 1), ("shot_noise", 3), ("pixelate", 5))
               for severity in range(1, 6)]
    results.append({"name": "clean", "kind": "clean", "robust": 9, "n": 10, "settings": {}})
    assert by_severity(results) == {severity: (40 - 4 * severity - 9, 40) for severity in range(1, 6)}
    bands = by_band(results)
    assert bands["high"] == {severity: (20 - 2 * severity - 8, 20) for severity in range(1, 6)}
    assert bands["low"][2] == (8, 10) and bands["medium"][2] == (7, 10)
    lines = over_corruptions(results)
    assert [line.split()[0] for line in lines] == ["severity", "all", "low", "medium", "high", "mean"]
    assert lines[1].split()[1:3] == ["67.50", "%"] and lines[4].split()[-2:] == ["10.00", "%"]
    assert lines[5] == "mean error, own corruptions (4): 52.50 %"
    assert over_corruptions(results[-1:]) == [] and said(results[-1]) == ["clean           90.00 %  (9 of 10 images)"]
    partly = over_corruptions([results[0], results[6]])                # fog 1, gaussian_blur 2: no mean over severities
    assert len(partly) == 4 and partly[2].split()[-1] == DASH


def test_grey_images_have_bands_too(tmp_path):
    """Our own corruptions of grey images, judged on the images that a network of one channel takes."""
    images = torch.randint(60, 200, (N, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    split = Split(images, torch.arange(N) % 4)
    plan = corruptions.own_plan(1, chunk=3)
    results = evaluate(Brightest(), split, plan, seed=1, device="cpu", work=tmp_path, progress=False)
    written = [result_json(result) for result in results]
    sizes = {band: n for band, severities in by_band(written).items() for _, n in severities.values()}
    assert sizes == {band: N * sum(BANDS[name] == band for name in plan_names(plan)) for band in sizes}
    assert set(sizes) == {"low", "medium", "high"} and "saturate" not in plan_names(plan)


def plan_names(plan: Plan) -> set[str]:
    return {one.setting("corruption") for one in plan.evaluators}


def test_data_sets_turned_grey():
    images = torch.randint(0, 256, (5000, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = torch.from_numpy(np.stack([
        np.asarray(Image.fromarray(image.permute(1, 2, 0).numpy()).convert("L"))[None] for image in images[-20:]]))
    assert torch.equal(grey_images(images)[-20:], expected)
    data = DataSet("d", Split(images[:4], torch.zeros(4, dtype=torch.int64)), Split(images[4:6], torch.zeros(2).long(),
                                                                                    "first 2"), 1, ("a",), "somewhere")
    grey = in_grey(data)
    assert grey.image_shape == (1, 4, 4) and grey.source == "somewhere, turned grey" and grey.test.note == "first 2"
    assert in_grey(grey) is grey and grey_images(grey.test.images) is grey.test.images


def test_an_evaluator_of_images_in_no_set_is_still_refused():
    with pytest.raises(UserError, match="set is a name"):
        Evaluator("c", "corruption-file", settings={"set": "CIFAR-10-C grey", "sha256": "0" * 64})
