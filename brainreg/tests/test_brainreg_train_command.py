"""brainreg/train.py end to end, evaluation included: the seed's command lines on small data in the real forms."""

import json
import subprocess
import sys

import pytest

from brainreg import flags
from brainreg.tests.brainreg_images import data_folder, photograph
from common.environment import ROOT

DIGITS = ("--data digits --base_channels 4 --epoch_num 1 --n_train 64 --n_epoch_test 40 --resnet_batch_size 32 "
          "--reg_image_num 40 --reg_batch_size 4 --reg_thresh 0.3 --precision fp32 --device cpu --budget smoke")
TINY = ("--base_channels 2 --epoch_num 1 --n_train 20 --valid_portion 0.2 --n_epoch_test 8 --resnet_batch_size 10 "
        "--reg_image_num 12 --reg_batch_size 4 --precision fp32 --device cpu --budget smoke "
        "--plan paper-brainreg-8-2-e2")
ROWS = [("CIFAR10", "CIFAR10", 10, .8), ("CIFAR10", "CIFAR100", 10, .8), ("CIFAR10", "ImageNet", 10, .8),
        ("CIFAR100", "CIFAR10", 10, .8), ("CIFAR100", "CIFAR100", 10, .8), ("CIFAR100", "ImageNet", 10, .8),
        ("MNIST", "MNIST", 4, .2), ("MNIST", "FashionMNIST", 10, .8), ("FashionMNIST", "MNIST", 10, .4),
        ("FashionMNIST", "FashionMNIST", 10, .8)]


def command(words):
    with pytest.raises(SystemExit) as left:
        flags.main(words)
    assert left.value.code == 0


def judged(folder, dataset, run, plan):
    record = json.loads((folder / f"results/brainreg/{dataset}/{run}/eval-{plan}.json").read_text())
    assert record["checkpoint"] == "best"
    return [result["name"] for result in record["results"]]


def told(folder, dataset, run):
    return json.loads((folder / f"results/brainreg/{dataset}/{run}/run.json").read_text())


def test_digits_regularised_on_digits_and_judged(tmp_path, capsys):
    out = ["--save_dir", str(tmp_path)]
    plan = "paper-brainreg-30-0-e2"
    command([*DIGITS.split(), *out, "--plan", plan, "--seed", "1"])
    assert "TransferredFGSM is skipped" in capsys.readouterr().out
    three = [f"{attack} {eps}" for attack, top in (("Gaussian", "0.5"), ("Uniform", "0.5"), ("SaltPepper", "0.3"))
             for eps in ("0", top)]
    assert judged(tmp_path, "digits", "unregularised_smoke_s1", plan) == ["clean", *three]
    line = [*DIGITS.split(), *out, "--reg_alpha=2", "reg_data=none"]
    run = "digits-n40-k4-th0.3-a2_smoke_s0"
    command([*line, "--plan", plan, "--transfer_id", "unregularised_smoke_s1"])
    four = ["clean", *three, "TransferredFGSM 0", "TransferredFGSM 0.5"]
    assert judged(tmp_path, "digits", run, plan) == four
    source = json.loads((tmp_path / "results/brainreg/digits/unregularised_smoke_s1/train.json").read_text())
    needs = {"unregularised_smoke_s1": source["weights"]["best"]["sha256"]}
    assert told(tmp_path, "digits", run)["needs"] == needs
    command([*line, "--plan", "paper-brainreg-20-0-e2"])               # a trained run keeps its source
    assert judged(tmp_path, "digits", run, "paper-brainreg-20-0-e2") == four
    assert "already trained" in capsys.readouterr().out and told(tmp_path, "digits", run)["needs"] == needs


def test_a_source_that_a_trained_run_is_given_later_stands_in_its_record(tmp_path):
    line = [*DIGITS.split(), "--save_dir", str(tmp_path), "--plan", "paper-brainreg-10-0-e2"]
    command([*line, "--attack", "False"])
    command([*line, "--attack", "False", "--seed", "2"])
    assert told(tmp_path, "digits", "unregularised_smoke_s2")["needs"] == {}
    command([*line, "--seed", "2", "--transfer_id", "unregularised_smoke_s0"])
    assert set(told(tmp_path, "digits", "unregularised_smoke_s2")["needs"]) == {"unregularised_smoke_s0"}
    assert "TransferredFGSM 0.5" in judged(tmp_path, "digits", "unregularised_smoke_s2", "paper-brainreg-10-0-e2")


@pytest.mark.parametrize(("line", "said"), [
    ("--transfer_id gone", "--transfer_id gone: there is no run"), ("--plan papers", "unknown plan 'papers'"),
    ("--transfer_id ../x", "--transfer_id ../x")])
def test_a_missing_source_or_plan_is_said_before_training(tmp_path, capsys, line, said):
    with pytest.raises(SystemExit) as left:
        flags.main([*DIGITS.split(), "--save_dir", str(tmp_path), *line.split()])
    error = capsys.readouterr().err.strip()
    assert left.value.code == 2 and said in error and len(error.splitlines()) == 1
    assert list(tmp_path.rglob("*")) == []


# --- the seed's lines ---

@pytest.fixture(scope="module")
def small_data(tmp_path_factory):
    folder = data_folder(tmp_path_factory.mktemp("data"))
    for number in range(12):
        photograph(folder / f"imagenet/n{number % 3}/{number}.jpeg", 260 + number, 150 + number, number)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("task", "source", "alpha", "threshold"), ROWS)
def test_every_row_of_the_seed_trains_and_is_judged(tmp_path, small_data, task, source, alpha, threshold):
    where = [*TINY.split(), "--data_dir", str(small_data), "--save_dir", str(tmp_path)]
    command([f"--task={task}", "--archi=ResNet18", *where, "--attack=False"])
    command([f"--task={task}", "--archi=ResNet18", f"--reg_data={source}", f"--reg_alpha={alpha}",
             f"--reg_thresh={threshold}", *where, "--transfer_id", "unregularised_smoke_s0"])
    dataset, ours = (word.lower().replace("nmnist", "n-mnist") for word in (task, source))
    names = judged(tmp_path, dataset, f"{ours}-n12-k4_smoke_s0", "paper-brainreg-8-2-e2")
    assert names[0] == "clean" and names[-5:] == [f"BoundaryAttack {number}" for number in range(1, 6)]
    assert "TransferredFGSM " + {"CIFAR10": "0.02", "CIFAR100": "0.005"}.get(task, "0.5") in names
    made = told(tmp_path, dataset, f"{ours}-n12-k4_smoke_s0")
    assert made["variant"] == f"{source}-n12-k4" and made["config"]["regularisation"]["source"].startswith(f"{source}:")
    assert made["config"]["model"]["scale"] == (5.0 if "CIFAR" in task else 1.0)


@pytest.mark.slow
def test_images_in_colour(tmp_path, small_data):
    command(["--task=CIFAR10", "rgb=True", "--reg_data=CIFAR100", "--reg_alpha=10", "--reg_thresh=0.8",
             *TINY.split(), "--data_dir", str(small_data), "--save_dir", str(tmp_path)])
    made = told(tmp_path, "cifar10-rgb", "cifar100-n12-k4_smoke_s0")
    assert made["config"]["model"]["channels"] == 3 and made["data"]["image_shape"] == [3, 32, 32]


@pytest.mark.slow
@pytest.mark.parametrize(("where", "script"), [("", "brainreg/train.py"), ("brainreg", "train.py")])
def test_the_command_runs_from_the_root_and_from_its_folder(tmp_path, where, script):
    line = [sys.executable, script, *DIGITS.split(), "--reg_alpha=10", "--save_dir", str(tmp_path), "--attack", "False"]
    done = subprocess.run(line, cwd=ROOT / where, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    command = told(tmp_path, "digits", "digits-n40-k4-th0.3_smoke_s0")["command"]
    assert command.startswith("python brainreg/train.py --data digits") and str(tmp_path) not in command
    refused = subprocess.run([*line, "--reg_thresh", "1.5"], cwd=ROOT / where, capture_output=True, text=True,
                             timeout=300)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1 and "below 1" in refused.stderr
