"""Two processes train and evaluate with every paper's commands as one process does, on the embedded digits.

With --sync_bn batch norm sees the whole batch, also in attacks in train mode, so that one process is a fair yardstick;
46 images in batches of 20 leave a last batch of 6, and 45 one that does not divide.
"""

import json
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

from common.checkpoint import read_state
from common.environment import ROOT
from common.files import sha256_of
from common.records import read_metrics
from common.tests import ranks

pytestmark = pytest.mark.slow
ALL = "--data digits --model small --precision fp32 --budget smoke --device cpu --sync_bn --n_epoch_test 20 --width 4"
UNTESTED = f"{ALL} --final_test False"
ADARAT = f"{UNTESTED} --augment False --n_train 45 --batch_size 20 --epoch 2 --step_num 2"
BOTH = "--FixRAT True --AdaRAT True"
DYART = f"{UNTESTED} --augment false --batch-size 20 --epochs 2 --iter_FAB 3 --attack-iter 1"
BURN_IN = f"{DYART} --clean_training true --n_train 500 --lr 0.05"
# Long enough for images to have a boundary near them; so long that rounding would set one process and two apart.
GROWN = f"{DYART} --clean_training true --n_train 1200 --lr 0.1".replace("--epochs 2", "--epochs 12")
RPAT = f"{UNTESTED} --n_train 45 --batch_size 20 --epochs 2 --n_iters 2 --save_step 0"
SOTA = f"{UNTESTED} --epochs 2 --warmup-epochs 1 --stage1 1 --stage2 2 --n_train 45 --batch-size 20 --attack-iters 2"
# Batch norm of a handful of numbers would make rounding large.
BRAINREG = ("--data digits --base_channels 4 --precision fp32 --budget smoke --device cpu --sync_bn --attack False "
            "--epoch_num 2 --n_train 115 --resnet_batch_size 60 --n_epoch_test 20 --lr 0.001 --reg_image_num 40 "
            "--reg_batch_size 25 --reg_thresh 0.3 --reg_alpha 0.1")
RUNS = {
    "adarat": {"pgd-at": f"PGD-AT {ADARAT}", "pgd-at-adarat": f"PGD-AT {ADARAT} {BOTH}",
               "trades-adarat": f"TRADES {ADARAT} {BOTH}", "fat": f"FAT {ADARAT} --FixRAT True", "dat": f"DAT {ADARAT}",
               "st": f"ST {ADARAT}",
               "iad": f"IAD {ADARAT} {BOTH} --begin 1 --teacher_robust_name pgd-at --teacher_standard_name st",
               "generalist": f"Generalist {UNTESTED} --augment False --n_train 151 --epochs 2 {BOTH}"},
    "dyart": {"burn-in": BURN_IN, "dyart": f"{DYART} --DyART true --n_train 45 --pretrained grown --observe 20",
              "trades": f"{DYART} --DyART false --beta 6 --n_train 45"},
    "rpat": {"pgd-at": f"{RPAT} --RA", "consistency": f"{RPAT} --RA --consistency",
             "l1": f"{RPAT} --RA --distance L1", "mart": f"{RPAT} --RA --mode adv_mart --distance L2"},
    "brainreg": {"pairs": BRAINREG, "not-boosted": f"{BRAINREG} --no-reg_boosting"},
    "RPAT++": {"rpatpp": f"{SOTA} --val", "cutmix": f"{SOTA} --cutmix --eval-train-robust"},
    "ReBAT": {"rebat": f"{SOTA} --norm l_2 --epsilon 128 --pgd-alpha 15 --restarts 2"}}

FIRST = {"dyart": {"grown": GROWN}}              # by one process, for both


def commands(folder, runs, more=()):
    """[paper, flags] of runs {paper: {name: line}}, whose records and weights go into `folder`."""
    place = ["--results", str(folder / "results"), "--weights", str(folder / "weights")]
    return [[paper, [*line.split(), "--run", name, *place, *more]] for paper, lines in runs.items()
            for name, line in lines.items()]


def written(path, content):
    path.write_text(json.dumps(content))
    return path


def weights_in(folder):
    return {path.relative_to(folder): path for path in sorted((folder / "weights").rglob("*.pt"))
            if path.name != "resume.pt"}


def timeless(row):
    return {key: value for key, value in row.items() if key not in ("seconds", "images_per_second")}


# An L-inf step goes by the gradient's sign, which rounding may flip: then a pixel of x' differs, and so what follows.
LOOSE = 2e-3


@pytest.mark.parametrize("paper", RUNS)
def test_two_processes_train_as_one(tmp_path, paper):
    runs, given = {paper: RUNS[paper]}, FIRST.get(paper, {})
    for entry in commands(tmp_path / "one", {paper: given}):
        ranks.train(*entry)
    if given:
        shutil.copytree(tmp_path / "one", tmp_path / "two")
    for entry in commands(tmp_path / "one", runs):
        ranks.train(*entry)
    ranks.together([ranks.__file__, written(tmp_path / "runs.json", commands(tmp_path / "two", runs))])
    one, two = weights_in(tmp_path / "one"), weights_in(tmp_path / "two")
    assert one.keys() == two.keys() and len({path.parent.name for path in one}) == len({**RUNS[paper], **given})
    apart = {}
    for name, path in one.items():
        first, second = read_state(path), read_state(two[name])
        apart[str(name)] = max((first[key].double() - second[key].double()).abs().max().item() for key in first)
    assert max(apart.values()) < LOOSE and np.median(list(apart.values())) < 1e-5, apart
    for path in sorted((tmp_path / "one").rglob("metrics.jsonl")):
        rows = read_metrics(path), read_metrics(tmp_path / "two" / path.relative_to(tmp_path / "one"))
        for first, second in zip(*rows, strict=True):
            assert timeless(first) == pytest.approx(timeless(second), abs=LOOSE, rel=LOOSE), path.parent.name
        if path.parent.name == "dyart":
            assert all(row["kept"] > 0.05 and row["found"] > row["kept"] for row in rows[0])
            alone, shared = (np.load(place / path.parent.relative_to(tmp_path / "one") / "dynamics.npz")
                             for place in (tmp_path / "one", tmp_path / "two"))
            np.testing.assert_allclose(alone["radius"], shared["radius"], atol=LOOSE)
    for name in (name for name in one if name.parent.name not in given):
        record = json.loads((tmp_path / "two/results" / name.relative_to("weights").parent / "train.json").read_text())
        assert record["environment"]["ranks"] == 2 and record["environment"]["engine"]["sync_bn"] is True
        assert record["weights"][name.stem]["sha256"] == sha256_of(two[name])


# --- killed, and gone on ---

def test_a_run_of_two_processes_that_was_killed_ends_with_the_same_bits(tmp_path):
    line = f"{ADARAT} {BOTH} --n_train 200".replace("--epoch 2", "--epoch 5").replace("--sync_bn", "")
    runs = {"adarat": {"a": f"PGD-AT {line}"}}
    ranks.together([ranks.__file__, written(tmp_path / "whole.json", commands(tmp_path / "whole", runs))])
    words = [ranks.__file__, written(tmp_path / "cut.json", commands(tmp_path / "cut", runs))]
    metrics = tmp_path / "cut/results/adarat/digits/a/metrics.jsonl"
    processes, deadline = ranks.start(words), time.monotonic() + ranks.LIMIT
    while not (metrics.exists() and len(read_metrics(metrics)) >= 2):
        assert time.monotonic() < deadline and all(process.poll() is None for process in processes)
        time.sleep(0.05)
    for process in processes:
        process.kill()
    ranks.outcomes(processes)
    assert not (metrics.parent / "train.json").exists()
    ranks.together(words)
    one, two = weights_in(tmp_path / "whole"), weights_in(tmp_path / "cut")
    assert [sha256_of(path) for path in one.values()] == [sha256_of(path) for path in two.values()] and len(one) == 1
    rows = [[timeless(row) for row in read_metrics(folder / metrics.relative_to(tmp_path / "cut"))]
            for folder in (tmp_path / "whole", tmp_path / "cut")]
    assert rows[0] == rows[1] and len(rows[0]) == 5


# --- the commands as they are typed ---

def typed(words, **more):
    done = subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, capture_output=True, text=True,
                          timeout=ranks.LIMIT, **more)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--"]


def test_torchrun_trains_and_evaluates_and_one_process_finds_the_same_flags(tmp_path):
    place = ["--results", tmp_path / "results", "--weights", tmp_path / "weights"]
    line = f"{ALL} --augment False --n_train 45 --batch_size 20 --epoch 1 --step_num 2 --plan paper-adarat-40-20"
    said = typed([*TORCHRUN, ROOT / "adarat/train/PGD-AT/train_cifar10.py", *line.split(), "--run", "a", *place])
    folder = tmp_path / "results/adarat/digits/a"
    assert said.count("a: PGD-AT (plain) on") == 1 and said.count("records: ") == 1
    assert not any((tmp_path / "weights/adarat/digits/a/evaluations").iterdir())
    record = json.loads((folder / "run.json").read_text())
    assert record["command"].startswith("python adarat/train/PGD-AT/train_cifar10.py --data digits")
    again = tmp_path / "again/adarat/digits/a"
    shutil.copytree(folder, again, ignore=shutil.ignore_patterns("eval-*", "flags-*"))
    words = ["-m", "scripts.evaluate", "--plan", "paper-adarat-40-20", "--device", "cpu", "--weights",
             tmp_path / "weights"]
    typed([*words, again])
    third = tmp_path / "third/adarat/digits/a"
    shutil.copytree(folder, third, ignore=shutil.ignore_patterns("eval-*", "flags-*"))
    typed([*TORCHRUN, *words, third])
    found = [np.load(place / "flags-paper-adarat-40-20.npz") for place in (folder, again, third)]
    for name in found[0].files:
        assert found[0][name].tolist() == found[1][name].tolist() == found[2][name].tolist()
    counted = [json.loads((place / "eval-paper-adarat-40-20.json").read_text()) for place in (folder, again, third)]
    assert [record["environment"]["ranks"] for record in counted] == [2, 1, 2]
    assert counted[0]["results"][0]["survivors"] == counted[1]["results"][0]["survivors"]


def test_a_mistake_is_said_once_and_leaves_nothing(tmp_path):
    flags = f"PGD-AT {ADARAT}".replace("--batch_size 20", "--batch_size 1")
    entry = commands(tmp_path / "x", {"adarat": {"a": flags}})
    found = ranks.outcomes(ranks.start([ranks.__file__, written(tmp_path / "runs.json", entry)]))
    assert [code for code, _, _ in found] == [2, 2]
    said = "".join(err for _, _, err in found)
    assert said == ("error: a batch of 1 cannot be shared by 2 processes: make the batch larger, or start fewer "
                    "processes [E-BATCH-SIZE]\n")
    assert not list((tmp_path / "x").rglob("train.json")) and not list((tmp_path / "x").rglob("*.pt"))
