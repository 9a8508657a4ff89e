"""Trainings of every paper that a signal ends over and over, on the embedded digits: their bits are as if none had."""

import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from common import signals
from common.environment import ROOT
from common.files import sha256_of
from common.journal import Journal
from common.records import read_metrics, read_record
from common.tests import ranks

SMALL = "--data digits --model small --width 4 --precision fp32 --budget smoke --device cpu --final_test False"
TESTED = f"{SMALL} --n_epoch_test 20"
ADARAT = f"{TESTED} --augment False --n_train 90 --batch_size 20 --epoch 2 --step_num 2 --FixRAT True --AdaRAT True"
DYART = f"{TESTED} --augment false --batch-size 20 --epochs 2 --iter_FAB 3 --attack-iter 1"
GROWN = f"{DYART} --clean_training true --n_train 1200 --lr 0.1".replace("--epochs 2", "--epochs 4")
RPAT = f"{TESTED} --n_train 90 --batch_size 20 --epochs 2 --n_iters 2 --save_step 0 --RA"
SOTA = f"{TESTED} --epochs 2 --warmup-epochs 1 --stage1 1 --stage2 2 --n_train 90 --batch-size 20 --attack-iters 2"
BRAINREG = ("--data digits --base_channels 4 --precision fp32 --budget smoke --device cpu --attack False --epoch_num 2 "
            "--n_train 90 --resnet_batch_size 20 --n_epoch_test 20 --lr 0.001 --reg_image_num 40 --reg_batch_size 5 "
            "--reg_thresh 0.3 --reg_alpha 0.1")
RUNS = {"trades": ("adarat", f"TRADES {ADARAT}"), "fat": ("adarat", f"FAT {ADARAT}"),
        "generalist": ("adarat", f"Generalist {SMALL} --n_epoch_test 20 --augment False --n_train 512 --epochs 2"),
        "dyart": ("dyart", f"{DYART} --DyART true --n_train 90 --pretrained grown --observe 10"),
        "rpat": ("rpat", f"{RPAT} --consistency --error_step 2"), "mart": ("rpat", f"{RPAT} --mode adv_mart --val"),
        "rpatpp": ("RPAT++", f"{SOTA} --val --cutmix"), "brainreg": ("brainreg", BRAINREG)}


def ask():
    os.kill(os.getpid(), signal.SIGTERM)


def train(folder, name):
    paper, words = RUNS[name]
    place = ["--results", str(folder / "results"), "--weights", str(folder / "weights")]
    ranks.train(paper, [*words.split(), "--run", name, *place])


def left(folder, name):
    """What decides: hashes of the weights, the metrics without what the clock says, DyART's dynamics."""
    home = next((folder / "results").glob(f"*/digits/{name}"))
    rows = [{key: value for key, value in row.items() if key not in ("seconds", "images_per_second")}
            for row in read_metrics(home / "metrics.jsonl")]
    weights = {path.name: sha256_of(path) for path in sorted((folder / "weights").glob(f"*/digits/{name}/*.pt"))
               if path.name != "resume.pt"}
    observed = {path.name: {key: array.tobytes() for key, array in np.load(path).items()}
                for path in home.glob("*.npz")}
    return weights, rows, observed, read_record(home / "train.json", "train")["weights"]


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_run_stopped_again_and_again_ends_as_an_uninterrupted_one(tmp_path, monkeypatch, name):
    """Stopped in the first step, in every third one after it, and behind the last step of each epoch."""
    if name == "dyart":
        place = ["--results", str(tmp_path / "whole/results"), "--weights", str(tmp_path / "whole/weights")]
        ranks.train("dyart", [*GROWN.split(), "--run", "grown", *place])
        shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    train(tmp_path / "whole", name)

    done, waiting, step, means = [], [], torch.optim.SGD.step, Journal.means

    def counted(self, *given):
        found = step(self, *given)
        done.append(0)
        if len(done) % 3 == 1:
            ask()
        return found

    def asked(self):
        found = means(self)
        if self.epoch not in waiting:
            waiting.append(self.epoch)
            ask()
        return found

    monkeypatch.setattr(torch.optim.SGD, "step", counted)
    monkeypatch.setattr(Journal, "means", asked)
    ends = 0
    while True:
        try:
            with signals.caught():
                train(tmp_path / "cut", name)
            break
        except signals.Stopped:
            ends += 1
    assert ends >= 4 and left(tmp_path / "cut", name) == left(tmp_path / "whole", name)
    # No step was made twice: of both learners of Generalist; DyART's observer makes more, on copies.
    steps = left(tmp_path / "cut", name)[1][-1]["step"] * (2 if name == "generalist" else 1)
    assert len(done) == steps or name == "dyart"


# --- commands, as they are typed ---

WORDS = [sys.executable, ROOT / "adarat/train/PGD_AT/train_cifar10.py", *SMALL.replace("--width 4 ", "").split(),
         "--n_epoch_test", "20", "--augment", "False", "--n_train", "500", "--batch_size", "20", "--epoch", "4",
         "--step_num", "5", "--run", "a"]


def command(folder, **changes):
    return subprocess.Popen([*WORDS, "--results", folder / "results", "--weights", folder / "weights"], text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **changes)


@pytest.mark.slow
def test_a_command_asked_to_end_says_so_in_one_line_and_a_second_one_refuses(tmp_path):
    whole = command(tmp_path / "whole")
    assert whole.communicate()[1] == "" and whole.returncode == 0
    first = command(tmp_path / "cut")
    next(line for line in first.stdout if line.startswith("epoch 1/4"))
    first.send_signal(signal.SIGSTOP)                          # so that it is there for as long as the second looks
    try:
        second = command(tmp_path / "cut")
        said = second.communicate()[1]
    finally:
        first.send_signal(signal.SIGCONT)
    assert second.returncode == 2 and said.count("\n") == 1, said
    assert f"/a is in use by process {first.pid} on " in said and "[E-BUSY]" in said
    first.send_signal(signal.SIGTERM)
    said = first.communicate()[1]
    assert first.returncode == 143 and said.count("\n") == 1, said
    assert said.startswith("stopped by SIGTERM: epoch ")
    assert said.endswith("; type the same command again and it goes on\n")
    assert [path for path in (tmp_path / "cut").rglob(".*")] == []
    again = command(tmp_path / "cut")
    assert again.communicate()[1] == "" and again.returncode == 0
    assert left(tmp_path / "cut", "a") == left(tmp_path / "whole", "a")


@pytest.mark.slow
def test_two_processes_decode_the_same_folder_at_once(tmp_path):
    generator = np.random.default_rng(0)
    for part, count in (("train", 40), ("test", 10)):
        for label in "ab":
            (tmp_path / "images" / part / label).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 256, (16, 16, 3), np.uint8)
                Image.fromarray(pixels).save(tmp_path / "images" / part / label / f"{number}.png")
    code = ("import sys\nfrom pathlib import Path\nfrom common.data import load\n"
            "data = load(f'folder:{sys.argv[1]}', data_dir=Path(sys.argv[2]))\n"
            "print(data.train.fingerprint, data.test.fingerprint)\n")
    words = [sys.executable, "-c", code, tmp_path / "images", tmp_path / "data"]
    both = [subprocess.Popen(words, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            for _ in range(2)]
    said = [one.communicate() for one in both]
    assert [one.returncode for one in both] == [0, 0], said
    assert said[0] == said[1] and said[0][1] == ""
    assert len([path for path in (tmp_path / "data").rglob("*") if path.is_file()]) <= 1     # the cache, no leftovers
