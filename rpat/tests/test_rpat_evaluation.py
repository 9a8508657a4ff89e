"""eval.py: what each mode measures on a run and on a file of weights, and what it refuses."""

import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from common import experiment
from common.checkpoint import save_state
from common.data import load, to_float
from common.engine import Engine
from common.environment import ROOT
from common.errors import UserError
from common.evaluation import corruptions, evaluate
from common.evaluation.plans import KINDS
from common.experiment import Experiment, build_network
from common.files import read_json, sha256_of
from common.fit import TrainRecord
from rpat import evaluation, flags
from rpat.perception import PAIRS, Distances, consistency
from rpat.plans import plan_named
from rpat.settings import Settings
from rpat.training import describe_network, load_images

SMALL = "--data digits --model small --width 4 --seed 7 --epsilon 20/255 --alpha 5/255 --n_iters 3"
OWN = Settings(epsilon=20 / 255, alpha=5 / 255, n_iters=3)


@pytest.fixture(autouse=True)
def short_attacks(monkeypatch):
    """What is tested is which network, images, seed and attacks; so each attack is short."""
    short = {"autoattack": {"iterations": 3, "queries": 10},
             "cw-l2": {"binary_search_steps": 2, "iterations": 20, "learning_rate": 0.1},
             "boundary": {"iterations": 10}, "hopskipjump": {"iterations": 2, "initial_evaluations": 10,
                                                             "max_evaluations": 20}}
    for kind, settings in short.items():
        for setting, value in settings.items():
            assert setting in KINDS[kind].settings
            monkeypatch.setitem(KINDS[kind].settings, setting, value)


@cache
def networks(channels: int = 1) -> dict[str, torch.nn.Module]:
    """Two networks that know the digits a little, each its own way."""
    found, data = {}, load("digits").train
    x, y = to_float(data.images[:128]).repeat(1, channels, 1, 1), data.labels[:128]
    for seed, name in enumerate(("best", "last")):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            found[name] = build_network({"name": "small", "classes": 10, "channels": channels, "width": 4})
        optimiser = torch.optim.Adam(found[name].parameters(), lr=0.03)
        for _ in range(20 + 10 * seed):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(found[name](x), y).backward()
            optimiser.step()
    return found


def make_run(root: Path, line: str = SMALL, *, kept: tuple[str, ...] = ("best", "last"), trained: bool = True,
             channels: int = 1) -> Path:
    """A run that was never trained, recorded as train.py records one; its folder."""
    args = flags.parse(line.split())
    settings = flags.settings_of(args)
    data = load_images(settings, args).data
    model, described = describe_network(settings, data), data.describe()
    config = {**settings.config(), "model": model,
              "data": {"protocol": settings.dataset, "train_fingerprint": described["train_fingerprint"]}}
    run = Experiment(paper="rpat", dataset=flags.dataset_folder(args, settings.norm), run="a_run",
                     method=settings.method, variant=settings.variant, budget="custom", seed=settings.seed,
                     config=config, data=described, quirks=settings.quirks, results=root / "results",
                     weights_root=root / "weights")
    run.open(build_network(model))
    files = {}
    for name in kept:
        path = run.weights / f"{name}.pt"
        save_state(path, networks(channels)[name].state_dict())
        files[name] = {"file": path.name, "sha256": sha256_of(path)}
    if trained:
        run.close(TrainRecord(1, 1, 1.0, files, {}), Engine.choose("cpu", "fp32"))
    return run.folder


@pytest.fixture
def record(monkeypatch):
    monkeypatch.setattr(experiment, "relative_command", lambda: f"python rpat/benchmarks/train.py {SMALL}")


@pytest.fixture
def a_run(tmp_path, record):
    return make_run(tmp_path)


def by_hand(plan: str, folder: Path, name: str = "best", settings: Settings = OWN, seed: int = 7):
    return evaluate(networks()[name], load("digits").test, plan_named(plan, settings), seed=seed, device="cpu",
                    work=folder / "by-hand", progress=False)


def files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


# --- runs of ours ---

def test_autoattack_by_another_search_is_another_record(a_run):
    evaluation.run(f"--mode test_auto_attack --search fast --n 6 --load_path {a_run}".split())
    result, = read_json(a_run / "eval-test-auto-attack-n6-fast.json")["results"]
    assert (result["name"], result["kind"], result["n"]) == (f"AA (fast search) {OWN.distance} eps=20",
                                                             "fast-autoattack", 6)
    assert result["settings"]["arithmetic"] == "bf16" and list(result["values"]) == ["disputed"]
    with pytest.raises(UserError, match="plan test-clean-acc has no AutoAttack"):
        evaluation.run(f"--mode test_clean_acc --search fast --load_path {a_run}".split())


@pytest.mark.parametrize(("words", "plan"), [
    ("test_clean_acc", "test-clean-acc"), ("test_adv_acc", "test-adv-acc"),
    ("test_adv_acc --adv_method fgsm", "test-adv-acc-fgsm"), ("test_auto_attack", "test-auto-attack"),
    ("test_auto_attack --distance L2 --epsilon 0.5", "test-auto-attack-l2-127.5"),
    ("test_auto_attack --distance L1", "test-auto-attack-l1-2000"),
    ("test_adv_acc --epsilon 8/255", "test-adv-acc-linf-8-5-3"), ("test_random", "test-random"),
    ("test_adv_acc_weak --weak 2", "test-adv-acc-weak-w2"), ("test_cw_attack", "test-cw-attack"),
    ("test_adv_acc_MSE", "test-adv-acc-mse"), ("test_random_MSE", "test-random-mse")])
def test_each_mode_on_a_run(a_run, tmp_path, capsys, words, plan):
    evaluation.run(f"--mode {words} --n 12 --load_path {a_run}".split())
    plan = f"{plan}-n12"
    written, (want,) = read_json(a_run / f"eval-{plan}.json"), by_hand(plan, tmp_path)
    result, = written["results"]
    assert (written["checkpoint"], written["seed"], written["plan"]) == ("best", 7, plan)
    assert (result["name"], result["robust"], result["n"]) == (want.name, want.robust, 12)
    assert result.get("values", {}) == dict(want.values)
    with np.load(a_run / f"flags-{plan}.npz") as stored:
        assert np.array_equal(stored[want.name], want.flags)
    printed = capsys.readouterr().out
    assert "best weights" in printed and "records: " in printed
    assert (f"({want.robust} of 12 images)" in printed) == ("mse" not in plan)
    assert not list((tmp_path / "weights/rpat/digits/a_run/evaluations").glob("*"))


@pytest.mark.slow
@pytest.mark.parametrize(("words", "plan"), [
    ("test_cw_attack --distance L2", "test-cw-attack-l2-128-15-3"), ("test_boundary_attack", "test-boundary-attack"),
    ("test_hopskipjump_attack", "test-hopskipjump-attack"),
    ("test_hopskipjump_attack --distance L2 --epsilon 0.5", "test-hopskipjump-attack-l2-127.5")])
def test_the_searches_on_a_run(a_run, tmp_path, capsys, words, plan):
    evaluation.run(f"--mode {words} --n 6 --load_path {a_run}".split())
    result, = read_json(a_run / f"eval-{plan}-n6.json")["results"]
    want, = by_hand(f"{plan}-n6", tmp_path)
    assert (result["robust"], result["values"]) == (want.robust, dict(want.values))
    assert 0 < result["values"]["found"] <= result["values"]["attacked"]
    printed = capsys.readouterr().out
    assert "at any distance" in printed and ("searches in L2" in printed) == ("boundary" in words)


def test_perception_is_apart_for_fooled_and_defended_images(a_run, capsys):
    evaluation.run(f"--mode test_adv_acc_MSE --n 60 --test_batch_size 7 --quirks mse-batch-means --load_path {a_run}"
                   .split())
    result, = read_json(a_run / "eval-test-adv-acc-mse-n60-b7.json")["results"]
    groups = result["values"]
    assert groups["defended"]["n"] + groups["fooled"]["n"] == 60 and groups["defended"]["n"] and groups["fooled"]["n"]
    printed = capsys.readouterr().out
    for group, values in groups.items():
        pair, total = next(iter(values["sum"].items()))
        assert f"{group:<8} ({values['n']} images) {pair} {total / values['n']:.6f}" in printed
    with np.load(a_run / "flags-test-adv-acc-mse-n60-b7.npz") as stored:
        found = {key.partition("/")[2]: torch.from_numpy(stored[key]) for key in stored.files if "/" in key}
    pairs = torch.stack([found[pair] for pair in PAIRS], 1)
    released = consistency([Distances(pairs[at:at + 7], found["defended"][at:at + 7] == 1) for at in range(0, 60, 7)],
                           batch_means=True)
    for group in ("all", "defended", "fooled"):
        assert f"as released, in batches of 7: clean-adversarial {released[group]['clean-adversarial']:.6f}" in printed


@pytest.mark.parametrize(("kept", "words", "checkpoint", "plan"), [
    (("last",), "", "last", "test-adv-acc-n12"), (("best", "last"), "--checkpoint last", "last",
                                                  "test-adv-acc-n12-last"),
    (("best", "last"), "--checkpoint last --seed 3", "last", "test-adv-acc-n12-last-s3")])
def test_which_weights_and_seed(tmp_path, record, kept, words, checkpoint, plan):
    folder = make_run(tmp_path, kept=kept)
    evaluation.run(f"--mode test_adv_acc --n 12 --load_path {folder} {words}".split())
    written = read_json(folder / f"eval-{plan}.json")
    seed = 3 if "--seed" in words else 7
    assert (written["checkpoint"], written["seed"]) == (checkpoint, seed)
    assert written["results"][0]["robust"] == by_hand("test-adv-acc-n12", tmp_path, checkpoint, seed=seed)[0].robust


def test_a_file_or_folder_of_weights_of_a_run_is_that_run(a_run, tmp_path):
    weights = tmp_path / "weights/rpat/digits/a_run"
    evaluation.run(f"--mode test_clean_acc --load_path {weights / 'last.pt'}".split())
    evaluation.run(f"--mode test_clean_acc --load_path {weights}".split())
    assert read_json(a_run / "eval-test-clean-acc-last.json")["checkpoint"] == "last"
    assert read_json(a_run / "eval-test-clean-acc.json")["checkpoint"] == "best"


def test_flags_of_the_training_have_no_effect_on_a_run(a_run, capsys):
    evaluation.run(f"--mode test_clean_acc --model wrn3410 --lr_init 3 --load_path {a_run}".split())
    assert "no effect: --lr_init, --model" in capsys.readouterr().err
    assert (a_run / "eval-test-clean-acc.json").exists()


# --- corruptions ---

@pytest.fixture
def coloured(tmp_path):
    """A run on 20 test images of three channels that are called cifar10; (what to type, its folder, the data)."""
    data = load("digits").take(train=64, test=20)
    arrays = {f"{part}_{key}": value for part, split in (("train", data.train), ("test", data.test))
              for key, value in (("images", split.images.repeat(1, 3, 1, 1).permute(0, 2, 3, 1).numpy()),
                                 ("labels", split.labels.numpy()))}
    np.savez(tmp_path / "cifar10.npz", **arrays)
    data = f"--data npz:{tmp_path / 'cifar10.npz'}"
    folder = make_run(tmp_path, f"{data} {SMALL.removeprefix('--data digits ')}", channels=3)
    return f"--mode test_mce --load_path {folder} {data}", folder, arrays


def corruption_files(folder: Path, arrays) -> Path:
    folder.mkdir()
    np.save(folder / "labels.npy", np.tile(arrays["test_labels"], 5))
    for number, name in enumerate(corruptions.CIFAR_C):
        levels = np.arange(1, 6).repeat(20).reshape(-1, 1, 1, 1) * (number + 1) // 2
        np.save(folder / f"{name}.npy", (np.tile(arrays["test_images"], (5, 1, 1, 1)) // (1 + levels)).astype(np.uint8))
    return folder


def test_the_mean_corruption_error_is_that_of_whole_files(coloured, tmp_path, capsys):
    line, folder, arrays = coloured
    place = corruption_files(tmp_path / "CIFAR-10-C", arrays)
    evaluation.run(f"{line} --corruptions {place}".split())
    written = read_json(folder / "eval-cifar-10-c.json")
    assert len(written["results"]) == 19 * 5 and {result["n"] for result in written["results"]} == {20}
    network, errors = networks(3)["best"].eval(), []
    for name in corruptions.CIFAR_C:
        x = torch.from_numpy(np.load(place / f"{name}.npy")).permute(0, 3, 1, 2).float() / 255
        with torch.no_grad():
            wrong = network(x).argmax(1).numpy() != np.load(place / "labels.npy")
        errors.append(wrong.mean())
    printed = capsys.readouterr().out
    assert f"mCE, CIFAR-10-C: {100 * np.mean(errors):.2f} %" in printed and "note:" not in printed
    (place / "fog.npy").unlink()
    with pytest.raises(UserError, match=r"lacks fog\.npy"):
        evaluation.run(f"{line} --corruptions {place}".split())
    assert 0 < np.mean(errors) < 1


def test_files_are_found_where_the_data_lie_and_without_them_our_own_are_named_so(coloured, tmp_path, capsys,
                                                                                  monkeypatch):
    line, folder, arrays = coloured
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    line += f" --n 4 --data_dir {tmp_path}"
    evaluation.run(line.split())
    own = read_json(folder / "eval-own-corruptions-4.json")
    printed = capsys.readouterr().out
    assert "our own corruptions are measured instead" in printed and "mean error, own corruptions" in printed
    assert {result["kind"] for result in own["results"]} == {"corruption"}
    corruption_files(tmp_path / "CIFAR-10-C", arrays)
    evaluation.run(line.split())
    assert (folder / "eval-cifar-10-c-4.json").exists() and "mCE, CIFAR-10-C" in capsys.readouterr().out


# --- files that are no run's ---

@pytest.fixture
def original(tmp_path):
    """What the original repository leaves, saved from a network that ran in parallel; the folder."""
    folder = tmp_path / "1120_2040_digits_small_adv_train_pgd_Linf_base_seed_0"
    folder.mkdir()
    for kind, network in networks().items():
        torch.save({f"module.{name}": value for name, value in network.state_dict().items()}, folder / f"{kind}.model")
        torch.save({"state": {}, "param_groups": []}, folder / f"{kind}.optim")
    return folder


@pytest.mark.parametrize("kind", ["best", "last"])
def test_a_file_of_the_original(original, tmp_path, capsys, kind):
    before, out = files(tmp_path), tmp_path / "made" / "record.json"
    want, = by_hand("test-adv-acc-n12", tmp_path / "x", kind)
    line = f"--mode test_adv_acc --n 12 {SMALL} --no_strict --load_path {original / kind}.model".split()
    evaluation.run(line)
    said = capsys.readouterr()
    assert f"({want.robust} of 12 images)" in said.out and "module." in said.out
    assert "no effect: --no_strict" in said.err
    assert {path for path in files(tmp_path) if not path.startswith("x/")} == before
    evaluation.run([*line, "--out", str(out)])
    made = read_json(out)
    assert (made["plan"]["name"], made["seed"], made["results"][0]["robust"]) == ("test-adv-acc-n12", 7, want.robust)
    assert made["checkpoint"]["sha256"] == sha256_of(original / f"{kind}.model")
    assert made["data"]["test_fingerprint"] == load("digits").test.fingerprint


def test_the_seeds_evaluation_command_reads_the_originals_network(tmp_path, golden, monkeypatch, capsys):
    """--mode test_auto_attack --model resnet18 ... --load_path: a Bottleneck network by the quirk, in L2."""
    described = {"name": "resnet18-bottleneck", "classes": 10, "channels": 3}
    torch.save(build_network(described).state_dict(), tmp_path / "last.model")
    seen = {}

    def judge_file(file, **given):
        seen.update(given, file=file)
        return []

    monkeypatch.setattr(evaluation.commands, "judge_file", judge_file)
    split = load("digits").take(train=20, test=20)
    np.savez(tmp_path / "cifar10.npz", **{
        f"{part}_{key}": value for part, one in (("train", split.train), ("test", split.test))
        for key, value in (("images", one.images.repeat(1, 3, 4, 4).permute(0, 2, 3, 1).numpy()),
                           ("labels", one.labels.numpy()))})
    evaluation.run(f"--mode test_auto_attack --model resnet18 --distance L2 --epsilon 128/255 --dataset cifar10 "
                   f"--load_path {tmp_path}/last.model --data npz:{tmp_path}/cifar10.npz".split())
    evaluator, = seen["plan"].evaluators
    assert (evaluator.kind, evaluator.norm, evaluator.eps, evaluator.n) == ("autoattack", "l2", 128 / 255, None)
    assert dict(seen["model"]) == described and seen["seed"] == 0 and seen["told"] == "the flags"


# --- what a user can get wrong ---

@pytest.mark.parametrize(("words", "message"), [
    ("--load_path RUN", "--mode must be given: test_clean_acc"), ("--mode test_clean_acc", "--load_path must be given"),
    ("--mode adv_train --load_path RUN", "--mode adv_train is for train.py"),
    ("--mode test_zoo_attack --load_path RUN", "has no code for it"),
    ("--mode test_pgd --load_path RUN", "invalid choice: 'test_pgd'"),
    ("--mode test_clean_acc --load_path nowhere", "nowhere: there is no such folder or file"),
    ("--mode test_clean_acc --load_path EMPTY", "is no run of this repository"),
    ("--mode test_clean_acc --load_path ORIGINAL", "name a file, such as best.model"),
    ("--mode test_adv_acc_weak --load_path RUN", "needs --weak"),
    ("--mode test_adv_acc_weak --weak 9 --load_path RUN", "give 0"),
    ("--mode test_adv_acc --weak 3 --load_path RUN", "--weak is for test_adv_acc_weak"),
    ("--mode test_adv_acc --corruptions x --load_path RUN", "--corruptions is for test_mce"),
    ("--mode test_adv_acc --distance L1 --adv_method fgsm --load_path RUN", "fgsm has Linf and L2 only"),
    ("--mode test_cw_attack --distance L1 --load_path RUN", "no search in L1"),
    ("--mode test_boundary_attack --distance L1 --load_path RUN", "no search in L1"),
    ("--mode test_hopskipjump_attack --distance L1 --load_path RUN", "no search in L1"),
    ("--mode test_auto_attack --epsilon 8 --load_path RUN", "write 8/255"),
    ("--mode test_auto_attack --distance L2 --epsilon 128 --load_path RUN", "write 128/255"),
    ("--mode test_auto_attack --epsilon 0 --load_path RUN", "must be above 0"),
    ("--mode test_clean_acc --checkpoint 99 --load_path RUN", "no checkpoint '99': there are best, last"),
    ("--mode test_clean_acc --n 99999 --load_path RUN", "wants 99999 images, the test set has 400"),
    ("--mode test_clean_acc --dataset cifar10 --load_path RUN", "a_run was trained on digits"),
    ("--mode test_clean_acc --out x.json --load_path RUN", "a run's records go into its own folder"),
    ("--mode test_clean_acc --plan paper-rpat --load_path RUN", "eval.py goes by --mode"),
    ("--mode test_mce --corruptions EMPTY --load_path RUN", "is called CIFAR-10-C or CIFAR-100-C"),
    ("--mode test_clean_acc --load_path ORIGINAL/best.model", "--dataset must be given"),
    ("--mode test_clean_acc --data digits --model small --load_path ORIGINAL/best.model", "nothing was loaded"),
    ("--mode test_clean_acc --data digits --model resnet18 --load_path ORIGINAL/best.model", "nothing was loaded"),
    ("--mode test_clean_acc --data digits --load_path ORIGINAL/best.optim", "no network's weights")])
def test_one_line_and_nothing_written(a_run, original, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for word, place in {"RUN": a_run, "ORIGINAL": original, "EMPTY": tmp_path / "empty"}.items():
        words = words.replace(word, str(place))
    before = files(tmp_path)
    with pytest.raises(SystemExit) as left:
        evaluation.main(words.split())
    said = capsys.readouterr().err
    assert left.value.code == 2 and message in said and said.startswith("error: ") and said.count("\n") == 1
    assert files(tmp_path) == before


def test_a_checkpoint_of_other_classes(tmp_path, capsys):
    network = build_network({"name": "small", "classes": 7, "channels": 1, "width": 4})
    save_state(tmp_path / "x.pt", network.state_dict())
    with pytest.raises(SystemExit):
        evaluation.main(f"--mode test_clean_acc {SMALL} --load_path {tmp_path / 'x.pt'}".split())
    assert "has 7 classes and the model 10" in capsys.readouterr().err


def test_a_run_of_another_script_or_one_that_is_not_done(tmp_path, record, capsys):
    folder = make_run(tmp_path, trained=False)
    with pytest.raises(SystemExit):
        evaluation.main(f"--mode test_clean_acc --load_path {folder}".split())
    assert "is not trained to its end: go on with it: python rpat/benchmarks/train.py --resume_path" in (
        capsys.readouterr().err)
    path = folder / "run.json"
    run = read_json(path)
    path.write_text(json.dumps({**run, "config": {key: run["config"][key] for key in run["config"] if key != "mode"}}))
    with pytest.raises(SystemExit):
        evaluation.main(f"--mode test_clean_acc --load_path {folder}".split())
    assert "is no run of rpat/benchmarks/train.py" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(("folder", "script"), [(folder, prefix + script) for script in ("train.py", "eval.py")
                                                for folder, prefix in ((ROOT / "rpat/benchmarks", ""),
                                                                       (ROOT, "rpat/benchmarks/"))])
def test_the_scripts_start_in_their_folder_and_at_the_root(folder, script):
    done = subprocess.run((sys.executable, script, "--mode", "test_zoo_attack", "--dataset", "cifar10"), cwd=folder,
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert ("is for eval.py" if "train" in script else "has no code for it") in done.stderr
