"""Whole trainings of the papers with recorded attacks and passes: the bits of the same trainings without, where the
recorders (common/tests/recorders.py) do again what they recorded."""

import pytest
import torch

from common import capture_training, engine
from common.checkpoint import read_state
from common.tests import ranks
from common.tests.recorders import Again, Recorder

SMALL = "--data digits --model small --width 4 --precision bf16 --budget smoke --device cpu --final_test False"
ADARAT = f"{SMALL} --n_epoch_test 20 --augment False --n_train 90 --batch_size 20 --epoch 2 --step_num 2"
RPAT = f"{SMALL} --n_epoch_test 20 --n_train 90 --batch_size 20 --epochs 2 --n_iters 2 --save_step 0"
SOTA = (f"{SMALL} --n_epoch_test 20 --epochs 2 --warmup-epochs 1 --stage1 1 --stage2 2 --n_train 90 --batch-size 20 "
        "--attack-iters 2")
BRAINREG = ("--data digits --base_channels 4 --precision bf16 --budget smoke --device cpu --attack False --epoch_num 2 "
            "--n_train 90 --resnet_batch_size 20 --n_epoch_test 20 --lr 0.001 --reg_image_num 40 --reg_batch_size 5 "
            "--reg_thresh 0.3 --reg_alpha 0.1")
# paper, flags, whether attacks are made, whether passes are recorded
RUNS = {"pgd-at": ("adarat", f"PGD-AT {ADARAT}", True, True),
        "trades": ("adarat", f"TRADES {ADARAT} --FixRAT True --AdaRAT True", True, True),
        "fat": ("adarat", f"FAT {ADARAT} --FixRAT True", True, True), "st": ("adarat", f"ST {ADARAT}", False, True),
        "generalist": ("adarat", f"Generalist {SMALL} --n_epoch_test 20 --augment False --n_train 512 --epochs 2", True,
                       True),
        "rpat": ("rpat", f"{RPAT} --RA --consistency", True, True),
        "mart": ("rpat", f"{RPAT} --mode adv_mart", True, True),
        "rpatpp": ("RPAT++", SOTA, True, True), "brainreg": ("brainreg", BRAINREG, False, True),
        "dyart": ("dyart", f"{SMALL} --n_epoch_test 20 --augment false --batch-size 20 --epochs 2 --iter_FAB 3 "
                           "--attack-iter 1 --n_train 90 --DyART false --beta 6", True, False)}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_recorded_training_ends_with_the_same_bits(tmp_path, monkeypatch, name):
    paper, words, attacks, passes = RUNS[name]
    found = []
    for recorded in (False, True):
        place = tmp_path / str(recorded)
        if recorded:
            made = {"attacks": [], "passes": Recorder()}

            def graph(pool, made=made):
                made["attacks"].append(Again())
                return made["attacks"][-1]

            monkeypatch.setattr(engine, "chosen_speedups", lambda words, device: {"graphs"})
            monkeypatch.setattr(engine, "CudaGraph", graph)
            monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
            monkeypatch.setattr(capture_training, "cuda_graphs", made["passes"])
        ranks.train(paper, [*words.split(), "--run", name, "--results", str(place / "results"), "--weights",
                            str(place / "weights")])
        weights, = place.rglob("last.pt")
        found.append(read_state(weights))
    assert all(torch.equal(tensor, found[1][key]) for key, tensor in found[0].items())
    assert bool([one for one in made["attacks"] if one.replays > 1]) == attacks
    assert bool([one for one in made["passes"].made if one.replays > 1]) == passes
