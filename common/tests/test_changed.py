"""Which differences of two configurations are files that changed, and files that change while they are read."""

import os

import numpy as np
import pytest
import torch
from torch import nn

from common.changed import changed_files, check_corruptions
from common.data import Split
from common.data.ddpm import ExtraImages
from common.data.mixed import MixedBatches
from common.data.unchanged import Seen, file_of
from common.errors import UserError
from common.evaluation import Evaluator, Plan
from common.files import write_json
from common.tests.fit_parts import CrossEntropy, rows, train
from common.tests.test_data_ddpm import load, made

THEN = {"lr": 0.1, "data.train_fingerprint": "a" * 64, "data.n_train": 5, "data.extra_fingerprint": "b" * 64,
        "pretrained": "c" * 64, "regularisation.fingerprint": "d" * 64, "low": 0.0, "limits_from": "base",
        "up_lim": 1.0, "down_lim": 0.4}
SOURCE = {"source": "mine.npz", "extra": {"source": "npz:extra.npz"}}


@pytest.mark.parametrize(("change", "told"), [
    ({"data.train_fingerprint": "e" * 64}, "training images or labels (mine.npz): sha256 aaaaaaaaaaaa then, eeee"),
    ({"data.train_fingerprint": "e" * 64, "data.n_train": 4, "low": 0.1}, "training images or labels (mine.npz)"),
    ({"data.extra_fingerprint": "e" * 64}, "extra training images (npz:extra.npz): sha256 bbbb"),
    ({"pretrained": "e" * 64}, "weights that the run starts from (burn-in.pt): sha256 cccc"),
    ({"regularisation.fingerprint": "e" * 64}, "images whose pairs regularise"),
    ({"up_lim": 1.2}, "the run base of --limits_from: its curve gives up_lim 1.2, and gave 1.0"),
    ({"lr": 0.2, "pretrained": "e" * 64}, None), ({"data.n_train": 4}, None), ({"low": 0.1}, None), ({}, None),
    ({"limits_from": None, "up_lim": 1.2}, None)])
def test_only_contents_of_files_count_as_changed_files(change, told):
    needs = {"burn-in.pt": "e" * 64}
    found = changed_files(THEN, THEN | change, SOURCE, needs, {"burn-in.pt": "c" * 64})
    assert found == [] if told is None else found[0].startswith(told) and len(found) == 1


def test_what_only_one_of_them_has_is_another_configuration():
    without = {key: value for key, value in THEN.items() if key != "pretrained"}
    assert changed_files(THEN, without, SOURCE, {}, {}) == changed_files(without, THEN, SOURCE, {}, {}) == []


def test_weights_of_another_name_are_another_choice():
    other = THEN | {"pretrained": "e" * 64}
    assert changed_files(THEN, other, SOURCE, {"b.pt": "e" * 64}, {"a.pt": "c" * 64}) == []


# -- while a training runs --------------------------------------------------------------------------------------------

def mixed(extra):
    images = torch.randint(0, 256, (24, 3, 5, 4), dtype=torch.uint8)
    return MixedBatches(Split(images, torch.arange(24) % 2), extra, 8, seed=1, unsup_fraction=0.5, steps=3)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_mapped_file_is_known(tmp_path, save):
    made(tmp_path / "extra.npz", save=save)
    extra = load(tmp_path / "extra.npz")
    (seen,) = extra.opened
    assert seen.path.suffix == (".npz" if save is np.savez else ".npy") and seen.size == seen.path.stat().st_size
    extra.check_unchanged()
    assert file_of(np.zeros(3)) is None and ExtraImages.of_split(mixed(extra).split, "rest").opened == ()


def grown(path):
    with open(path, "ab") as stream:
        stream.write(b"more")


def replaced(path):
    made(path.with_name("other.npz"), seed=9)
    path.with_name("other.npz").replace(path)


CHANGES = {"grown": grown, "touched": os.utime, "replaced": replaced, "gone": os.unlink}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("when", ["between epochs", "within an epoch"])
def test_an_epoch_of_changed_extra_images_is_not_begun_or_not_kept(tmp_path, change, when):
    path = tmp_path / "extra.npz"
    made(path, label=np.zeros(20, np.int64))
    batches = mixed(load(path))

    def at(ctx):
        if when == "within an epoch" and ctx.step == 4:
            CHANGES[change](path)

    def validate(model):
        if when == "between epochs" and path.exists():
            CHANGES[change](path)
        return {}

    with pytest.raises(UserError, match=r"extra\.npz has changed since this command opened it") as caught:
        train(tmp_path, model=nn.Sequential(nn.Flatten(), nn.Linear(60, 2)), batches=batches,
              objective=CrossEntropy(at), validate=validate)
    assert caught.value.code == "E-DATA-CHANGED" and len(rows(tmp_path)) == 1
    assert not (tmp_path / "weights/last.pt").exists() and (tmp_path / "weights/resume.pt").exists()


def test_a_file_that_is_the_same_is_no_change(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"here")
    seen = Seen.now(path)
    path.chmod(0o600)
    seen.check()


# -- evaluations ------------------------------------------------------------------------------------------------------

def test_a_record_of_other_corruption_files_is_not_overwritten(tmp_path):
    def plan(digest):
        return Plan("c", tuple(Evaluator(f"fog {severity}", "corruption-file", settings={
            "corruption": "fog", "severity": severity, "set": "CIFAR-10-C", "sha256": digest}) for severity in (1, 2)))
    path = tmp_path / "eval-c.json"
    check_corruptions(path, plan("a" * 64), "w")
    write_json(path, {"weights_sha256": "w", "results": [{"name": one.name, "settings": dict(one.settings)}
                                                         for one in plan("a" * 64).evaluators]})
    check_corruptions(path, plan("a" * 64), "w")
    check_corruptions(path, plan("b" * 64), "other weights")
    with pytest.raises(UserError, match=r"eval-c\.json was measured on other files of .*: fog\.npy have") as caught:
        check_corruptions(path, plan("b" * 64), "w")
    assert caught.value.code == "E-DATA-CHANGED"
