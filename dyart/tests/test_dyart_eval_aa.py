"""eval_aa.py: what it measures on a run and on the original's checkpoints, and what it refuses."""

import json
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from common import commands, experiment
from common.checkpoint import load_weights, save_state
from common.commands import parse_typed
from common.data import load, to_float
from common.engine import Engine
from common.errors import UserError
from common.evaluation import evaluate
from common.evaluation.plans import KINDS
from common.experiment import Experiment, build_network
from common.files import read_json, sha256_of, write_json
from common.fit import TrainRecord
from dyart import evaluation, flags
from dyart.inputs import describe_network, load_images
from dyart.original import find
from dyart.plans import plan_named
from dyart.settings import Settings

SMALL = ["--data", "digits", "--model", "small", "--width", "4", "--seed", "7"]
FEW = ["--n", "12", "--eps_eval", "10"]              # radius and number at which some images fall and some stand


@pytest.fixture(autouse=True)
def short_attacks(monkeypatch):
    """What is tested is which network, images, seed and attacks; so each attack is short."""
    for kind in ("autoattack", "custom-autoattack", "plus-autoattack"):
        for setting, value in (("iterations", 3), ("queries", 10)):
            if setting in KINDS[kind].settings:
                monkeypatch.setitem(KINDS[kind].settings, setting, value)


@cache
def networks() -> dict[str, torch.nn.Module]:
    """Three networks that know the digits a little, each its own way."""
    found, data = {}, load("digits").train
    x, y = to_float(data.images[:128]), data.labels[:128]
    for seed, name in enumerate(("best", "average", "10")):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            found[name] = build_network({"name": "small", "classes": 10, "channels": 1, "width": 4})
        optimiser = torch.optim.Adam(found[name].parameters(), lr=0.03)
        for _ in range(20 + 10 * seed):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(found[name](x), y).backward()
            optimiser.step()
    return found


def make_run(root: Path, *, words: list[str], trained: bool = True, kept: tuple[str, ...] = ("best", "average", "10")):
    """A run that was never trained, recorded as train.py records one; its folder."""
    args = flags.parser().parse_args(words)
    settings = flags.settings_of(args)
    data = load_images(settings, args).data
    model, described = describe_network(settings, data), data.describe()
    config = {**settings.config(), "model": model,
              "data": {"protocol": settings.data, "train_fingerprint": described["train_fingerprint"]}}
    run = Experiment(paper="dyart", dataset=flags.dataset_folder(args), run="dyart_custom_s7", method="DyART",
                     variant="plain", budget="custom", seed=settings.seed, config=config, data=described,
                     quirks=settings.quirks, results=root / "results", weights_root=root / "weights")
    run.open(build_network(model))
    files = {}
    for name, network in networks().items():
        path = run.weights / f"{name}.pt"
        save_state(path, network.state_dict())
        if name in kept:
            files[name] = {"file": path.name, "sha256": sha256_of(path)}
    if trained:
        run.close(TrainRecord(1, 1, 1.0, files, {}), Engine.choose("cpu", "fp32"))
    return run.folder


@pytest.fixture
def record(monkeypatch):
    monkeypatch.setattr(experiment, "relative_command", lambda: " ".join(["python dyart/train.py", *SMALL]))


@pytest.fixture
def a_run(tmp_path, record):
    return make_run(tmp_path, words=SMALL)


@pytest.fixture
def original(tmp_path):
    """A folder as the original repository leaves it."""
    folder = tmp_path / "h_prime.models"
    folder.mkdir()
    for network, file in zip(networks().values(), ("val_best", "latest_checkpoint", "10"), strict=True):
        state = {f"0.{name}": value for name, value in network.state_dict().items()}
        torch.save({"unaveraged_model": {name: value + 1 for name, value in state.items()}, "wa_model": state,
                    "score": 0.5, "epoch": 3}, folder / f"{file}.pt")
    write_json(folder / "args.txt", {"model": "small", "data": "digits", "GroupNorm": False, "normalize": False,
                                     "seed": 7, "eps_eval": 1, "version": "custom", "data_dir": "data/", "mart": False})
    return folder


def expected(plan: str, network: torch.nn.Module, folder: Path, *, seed: int = 7, train: bool = False):
    data = load_images(Settings(data="digits"), flags.parser().parse_args(SMALL)).data
    return evaluate(network, data.train if train else data.test, plan_named(plan, Settings()), seed=seed, device="cpu",
                    work=folder / "by-hand", progress=False)


def files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


# --- runs of ours ---

def test_a_run_is_judged_by_its_best_weights(a_run, tmp_path, capsys):
    evaluation.run(["--fname_input", str(a_run), *FEW, "--width", "4"])
    record, by_hand = read_json(a_run / "eval-aa-linf-10-12.json"), expected("aa-linf-10-12", networks()["best"],
                                                                             tmp_path)[0]
    result, = record["results"]
    assert (record["checkpoint"], record["seed"], record["plan"]) == ("best", 7, "aa-linf-10-12")
    assert (result["name"], result["kind"], result["n"]) == ("AutoAttack Linf eps=10", "autoattack", 12)
    assert (result["robust"], result["survivors"]) == (by_hand.robust, by_hand.survivors)
    assert 0 < result["robust"] < result["survivors"]["clean"]
    printed = capsys.readouterr()
    assert "AutoAttack Linf eps=10" in printed.out and "no effect: --width" in printed.err
    assert not (tmp_path / "weights/dyart/digits/dyart_custom_s7/evaluations/progress-aa-linf-10-12.json").exists()


@pytest.mark.parametrize(("kept", "words", "checkpoint", "plan"), [
    (("average", "10"), [], "average", "custom-linf-10-12"), (("10", "average"), ["--checkpoint", "10"], "10",
                                                              "custom-linf-10-12-10"),
    (("best", "average"), ["--checkpoint", "average", "--seed", "3"], "average", "custom-linf-10-12-average-s3")])
def test_which_weights_and_seed(tmp_path, record, kept, words, checkpoint, plan):
    folder = make_run(tmp_path, words=SMALL, kept=kept)
    evaluation.run(["--fname_input", str(folder), *FEW, "-v", "custom", *words])
    written = read_json(folder / f"eval-{plan}.json")
    seed = 3 if "--seed" in words else 7
    by_hand = expected("custom-linf-10-12", networks()[checkpoint], tmp_path, seed=seed)[0]
    assert (written["checkpoint"], written["seed"], written["weights_sha256"]) == (
        checkpoint, seed, sha256_of(tmp_path / f"weights/dyart/digits/dyart_custom_s7/{checkpoint}.pt"))
    assert written["results"][0]["survivors"] == by_hand.survivors


def test_a_file_of_a_run_is_that_runs_checkpoint(tmp_path, record, monkeypatch):
    folder = make_run(tmp_path, words=SMALL)
    monkeypatch.setattr(commands, "ROOT", tmp_path)
    weights = tmp_path / "weights/dyart/digits/dyart_custom_s7"
    evaluation.run(["--fname_input", str(weights / "10.pt"), *FEW, "-v", "custom"])
    evaluation.run(["--fname_input", str(weights), *FEW, "-v", "custom"])
    assert read_json(folder / "eval-custom-linf-10-12-10.json")["checkpoint"] == "10"
    assert read_json(folder / "eval-custom-linf-10-12.json")["checkpoint"] == "best"


def test_training_images_are_named_so(a_run, tmp_path):
    evaluation.run(["--fname_input", str(a_run), *FEW, "-v", "custom", "--train"])
    record = read_json(a_run / "eval-custom-linf-10-12-train.json")
    run = read_json(a_run / "run.json")
    assert record["data"]["test_fingerprint"] == run["data"]["train_fingerprint"] != run["data"]["test_fingerprint"]
    assert "training images" in record["data"]["source"] and record["results"][0]["name"].endswith(" train")
    by_hand = expected("custom-linf-10-12", networks()["best"], tmp_path, train=True)[0]
    assert record["results"][0]["survivors"]["clean"] == by_hand.survivors["clean"]


def test_a_named_plan_and_several_radii(a_run, capsys):
    evaluation.run(["--fname_input", str(a_run), "--plan", "paper-dyart-3-1", "--quirks", "one-restart-aa", "--n", "9"])
    evaluation.run(["--fname_input", str(a_run), "-v", "custom", "--eps_eval", "20,25/255", "--n", "2"])
    paper = read_json(a_run / "eval-paper-dyart-3-1.json")
    assert [one["name"] for one in paper["results"]][:3] == ["clean", "PGD-40", "apgd-ce+apgd-t+fab-t eps=2"]
    assert [one["n"] for one in paper["results"]] == [3, 3, 1, 1, 1, 1, 1]
    both = read_json(a_run / "eval-custom-linf-20_25-2.json")["results"]
    assert [one["eps"] for one in both] == [20 / 255, 25 / 255]
    assert "--plan paper-dyart-3-1 says all; no effect: --n" in capsys.readouterr().err


def test_autoattack_by_another_search_is_another_record():
    def plan(*words):
        args, typed = parse_typed(evaluation.parser, ["--fname_input", "x", *words])
        return evaluation.chosen_plan(args, typed, Settings())
    found = plan("--search", "fast", "--n", "5", "--eps_eval", "4")
    assert found.name == "aa-linf-4-5-fast" and [each.name for each in found.evaluators] == [
        "AA (fast search) Linf eps=4"]
    assert plan("--search", "fast+float32", "--plan", "paper-dyart-9").name == "paper-dyart-9-fast-float32"
    assert plan("--plan", "paper-dyart-9-fast") == plan("--plan", "paper-dyart-9", "--search", "fast")
    with pytest.raises(UserError, match="plan custom-linf-8 has no AutoAttack"):
        plan("--search", "fast", "-v", "custom")


def test_a_batch_of_its_own_is_another_record(a_run):
    evaluation.run(["--fname_input", str(a_run), *FEW, "-v", "custom", "--batch_size_for_eval", "4"])
    assert read_json(a_run / "eval-custom-linf-10-12-b4.json")["chunk"] == 4


def test_data_are_found_where_the_run_found_them(tmp_path, monkeypatch):
    data = load("digits").take(test=100)
    np.savez(tmp_path / "own.npz", **{
        f"{part}_{key}": value for part, split in (("train", data.train), ("test", data.test))
        for key, value in (("images", split.images.permute(0, 2, 3, 1).numpy()), ("labels", split.labels.numpy()))})
    words = ["--data", f"npz:{tmp_path / 'own.npz'}", *SMALL[2:]]
    monkeypatch.setattr(experiment, "relative_command", lambda: " ".join(["python dyart/train.py", *words[2:],
                                                                          "--data", "npz:own.npz"]))
    folder = make_run(tmp_path, words=words)
    asked = ["--fname_input", str(folder), *FEW, "-v", "custom"]
    with pytest.raises(UserError, match=r"given as --data npz:own\.npz, which is not here: say with --data where"):
        evaluation.run(asked)
    with monkeypatch.context() as patched:
        patched.setattr(commands, "ROOT", tmp_path)
        evaluation.run(asked)
    first = (folder / "eval-custom-linf-10-12.json").read_bytes()
    evaluation.run([*asked, "--data", words[1]])
    assert (folder / "eval-custom-linf-10-12.json").read_bytes() == first       # measured once
    with pytest.raises(UserError, match="its test images have another fingerprint; name the right data with --data"):
        evaluation.run([*asked, "--data", "digits"])


# --- the original's checkpoints ---

@pytest.mark.parametrize(("file", "words"), [("val_best", []), ("latest_checkpoint", ["--checkpoint", "last"]),
                                             ("10", ["--checkpoint", "10"])])
def test_a_folder_of_the_original(original, tmp_path, capsys, file, words):
    before, out = files(tmp_path), tmp_path / "made" / "record.json"
    name = {"val_best": "best", "latest_checkpoint": "average", "10": "10"}[file]
    by_hand = expected("aa-linf-10-12", networks()[name], tmp_path / "x")[0]
    flagged = ["--fname_input", str(original), *FEW, *words, "--width", "4"]
    evaluation.run(flagged)
    assert f"({by_hand.robust} of 12 images)" in capsys.readouterr().out
    assert files(tmp_path) - {path for path in files(tmp_path) if path.startswith("x/")} == before
    evaluation.run([*flagged, "--out", str(out)])
    record = read_json(out)
    assert [path.name for path in out.parent.iterdir()] == ["record.json"]
    assert record["results"][0]["survivors"] == by_hand.survivors and record["seed"] == 7
    assert record["checkpoint"]["sha256"] == sha256_of(original / f"{file}.pt")
    assert "part wa_model" in record["checkpoint"]["loaded"] and record["plan"]["name"] == "aa-linf-10-12"
    data = load_images(Settings(data="digits"), flags.parser().parse_args(SMALL)).data
    assert record["data"]["test_fingerprint"] == data.test.fingerprint
    assert str(tmp_path) not in out.read_text()


def test_saved_settings_never_override_the_evaluations(original, tmp_path):
    # args.txt holds eps_eval 1, version custom, seed 7 and a model: only the last is the training's to say.
    out = tmp_path / "record.json"
    evaluation.run(["--fname_input", str(original / "10.pt"), *FEW, "--seed", "5", "--model", "wrn-28-10-swish",
                    "--width", "4", "--out", str(out)])
    record = read_json(out)
    assert (record["seed"], record["plan"]["name"], record["model"]["name"]) == (5, "aa-linf-10-12", "small")


def test_a_file_alone_is_described_by_the_flags(original, tmp_path, capsys):
    shutil.copy(original / "val_best.pt", tmp_path / "alone.pt")
    out = tmp_path / "record.json"
    evaluation.run(["--fname_input", str(tmp_path / "alone.pt"), *SMALL, *FEW, "--out", str(out), "--epochs", "3"])
    record = read_json(out)
    assert record["results"][0]["survivors"] == expected("aa-linf-10-12", networks()["best"], tmp_path)[0].survivors
    assert record["settings_from"].startswith("the flags") and "no effect: --epochs" in capsys.readouterr().err


def test_the_networks_of_the_original_are_built_as_its_args_say(tmp_path, golden):
    folder = tmp_path / "x.models"
    folder.mkdir()
    (folder / "val_best.pt").write_bytes(b"not read here")
    write_json(folder / "args.txt", {"model": "preact-resnet18", "data": "tiny-imagenet", "GroupNorm": True,
                                     "normalize": True, "attack_eps": 4 / 255, "seed": 2})
    found = find(str(folder), None, {})
    assert found.file == folder / "val_best.pt" and not found.by_flags and found.data == "tiny-imagenet"
    assert (found.settings.model, found.settings.data, found.settings.seed) == ("preactresnet18", "tiny-imagenet", 2)
    assert (found.settings.GroupNorm, found.settings.normalise[0][0], found.settings.attack_eps) == (
        True, 0.4802, 4 / 255)
    write_json(folder / "args.txt", {"model": "wrn-28-10-swish", "data": "cifar100s", "normalize": False})
    settings = find(str(folder), None, {}).settings
    assert (settings.model, settings.data, settings.normalise[0][0]) == ("wrn-28-10-swish", "cifar100", 0.5071)


# --- what a user can get wrong ---

@pytest.mark.parametrize(("words", "message"), [
    ([], "--fname_input: give the folder of a run"),
    (["--fname_input", "nowhere"], "--fname_input nowhere: there is no such folder or file"),
    (["--fname_input", "RUN/no.pt"], "no.pt: there is no such"),
    (["--fname_input", "EMPTY"], "is no run of this repository"),
    (["--fname_input", "RUN", "--eps_eval", "16/0"], "--eps_eval '16/0' divides by zero"),
    (["--fname_input", "RUN", "--eps_eval", "eight"], "--eps_eval 'eight' is no number"),
    (["--fname_input", "RUN", "--eps_eval", "2,"], "--eps_eval '' is no number"),
    (["--fname_input", "RUN", "--eps_eval", "300"], "eps 300: in L-inf it is counted in 255ths"),
    (["--fname_input", "RUN", "--eps_eval", "-8"], "must be above 0"),
    (["--fname_input", "RUN", "--eps_eval", "0"], "must be above 0"),
    (["--fname_input", "RUN", "--norm_attack", "L2", "--eps_eval", "8"], "eps 8: in L2 it is taken as it is"),
    (["--fname_input", "RUN", "--norm_attack", "L2"], "L2 needs --eps_eval"),
    (["--fname_input", "RUN", "--norm_attack", "L1"], "invalid choice: 'L1'"),
    (["--fname_input", "RUN", "-v", "rand"], "invalid choice: 'rand'"),
    (["--fname_input", "RUN", "--plan", "paper"], "unknown plan 'paper'"),
    (["--fname_input", "RUN", "--plan", "paper-dyart-3", "--train"], "leave --train out"),
    (["--fname_input", "RUN", "--checkpoint", "99"], "no checkpoint '99': there are 10, average, best"),
    (["--fname_input", "RUN", "--n", "100000", "-v", "custom"], "wants 100000 images, the test set has 400"),
    (["--fname_input", "RUN", "--out", "x.json"], "a run's records go into its own folder"),
    (["--fname_input", "RUN", "--eps", "8"], "unknown flag --eps"),
    (["--fname_input", "ORIGINAL", "--checkpoint", "5"], "no 5.pt; checkpoints there: 10.pt, latest_checkpoint.pt"),
    (["--fname_input", "ORIGINAL", "--width", "8"], "nothing was loaded"),
    (["--fname_input", "ORIGINAL", "--width", "4", "--out", "EMPTY"], "is a folder: name a file")])
def test_one_line_and_nothing_written(a_run, original, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    places = {"RUN": str(a_run), "ORIGINAL": str(original), "EMPTY": str(tmp_path / "empty")}
    for word, place in places.items():
        words = [text.replace(word, place) if text.startswith(word) else text for text in words]
    before = files(tmp_path)
    with pytest.raises(SystemExit) as left:
        evaluation.main(words)
    said = capsys.readouterr().err
    assert left.value.code == 2 and message in said and said.startswith("error: ") and said.count("\n") == 1
    assert files(tmp_path) == before


def test_an_unfinished_run_and_one_of_another_paper(tmp_path, record):
    folder = make_run(tmp_path, words=SMALL, trained=False)
    with pytest.raises(UserError, match=r"not trained to its end: resume it with bash dyart/scripts/resume\.sh"):
        evaluation.run(["--fname_input", str(folder)])
    run = json.loads((folder / "run.json").read_text())
    write_json(folder / "run.json", {**run, "paper": "adarat"})
    with pytest.raises(UserError, match=r"is a run of adarat: use python -m scripts\.evaluate"):
        evaluation.run(["--fname_input", str(folder)])


@pytest.mark.parametrize(("args", "message"), [
    ([1, 2], "is not the JSON object"), ({"model": "resnet-5"}, "there is no model 'resnet-5'"),
    ({"GroupNorm": "perhaps"}, "GroupNorm 'perhaps': 'perhaps' is neither True nor False"),
    ({"model": "small", "data": "digits", "seed": "x"}, "seed 'x'"),
    ({"model": "small", "data": "digits", "GroupNorm": True}, "has batch norm and the model")])
def test_bad_settings_beside_a_checkpoint(original, args, message):
    write_json(original / "args.txt", args)
    with pytest.raises(UserError, match=message):
        evaluation.run(["--fname_input", str(original), *FEW, "--width", "4", "--data", "digits"])


def test_a_checkpoint_of_another_number_of_classes(original):
    network = build_network({"name": "small", "classes": 7, "channels": 1, "width": 4})
    torch.save({"wa_model": network.state_dict()}, original / "val_best.pt")
    with pytest.raises(UserError, match="has 7 classes and the model 10"):
        evaluation.run(["--fname_input", str(original), *FEW, "--width", "4"])
    assert load_weights(network, original / "val_best.pt").part == "wa_model"


def test_a_tiny_radius_is_pointed_out(capsys):
    assert evaluation.asked_eps("linf", "0.031") == ("0.031",)
    assert "means 0.031/255" in capsys.readouterr().err
    assert evaluation.asked_eps("linf", "8/255,12") == ("8", "12") and capsys.readouterr().err == ""
    assert evaluation.asked_eps("linf", None) == ("8",) and evaluation.asked_eps("l2", "128/255") == (repr(128 / 255),)
