"""The evaluation of a run: its plan before the training, the source of transferred FGSM, records, bad input."""

import argparse
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from brainreg.evaluation import Evaluation, transfer_needs
from brainreg.plans import curve
from brainreg.settings import Settings
from common import records
from common.checkpoint import load_weights, save_state
from common.data import DataSet, Split, load
from common.engine import Engine
from common.errors import UserError
from common.evaluation import evaluate
from common.experiment import Experiment, build_network
from common.files import sha256_of, write_json
from common.fit import TrainRecord
from common.verdicts import judge
from scripts import evaluate as command

MODEL = {"builder": "brainreg.network:build", "name": "resnet18", "classes": 10, "channels": 1, "width": 2,
         "scale": 1.0, "shift": 0.0}
SOURCE = "unregularised_smoke_s9"
ENGINE = Engine(torch.device("cpu"))


@pytest.fixture(scope="module")
def data() -> DataSet:
    return load("digits").take(train=300, test=80)


def make_run(root, data, name=SOURCE, seed=9, method="unregularised", needs=None, **model) -> Experiment:
    """A run as training leaves it, its network the least trained there is: fitted last layer, batch norm moved once."""
    torch.manual_seed(seed)
    described, config = data.describe(), {**MODEL, **model}
    settings = Settings(task="digits", seed=seed)
    experiment = Experiment(
        paper="brainreg", dataset="digits", run=name, method=method, variant="none", budget="smoke", seed=seed,
        config={**settings.config(), "model": config, "low": 0.0, "high": 1.0, "data": {"protocol": "digits"}},
        data=described, needs=needs or {}, results=root / "results", weights_root=root / "weights")
    network = build_network(config)
    x, y = data.train.float_images(), data.train.labels
    network.train()(x)
    with torch.no_grad():
        seen = network.eval()
        features = x
        for section in seen.core["sections"]:
            features = section(features)
        features = features.mean((2, 3))
        centred = features - features.mean(0)
        means = torch.stack([centred[y == each].mean(0) for each in range(10)])
        network.linear.weight.copy_(20 * means[:config["classes"]])
        network.linear.bias.copy_(-network.linear.weight @ (features.mean(0) + means[:config["classes"]].T.mean(1) / 2))
    experiment.open(network)
    kept = {}
    for kind in ("last", "best"):
        experiment.weights.mkdir(parents=True, exist_ok=True)
        save_state(experiment.weights / f"{kind}.pt", network.state_dict())
        kept[kind] = {"file": f"{kind}.pt", "sha256": sha256_of(experiment.weights / f"{kind}.pt")}
        network.linear.bias.data += 0.01                                          # best.pt is another file
    experiment.close(TrainRecord(1, 1, 1.0, kept, {}), ENGINE)
    return experiment


@pytest.fixture(scope="module")
def runs(tmp_path_factory, data):
    """A source, and a run whose record names it."""
    root = tmp_path_factory.mktemp("runs")
    source = make_run(root, data)
    needs = transfer_needs(SOURCE, dataset="digits", model=MODEL, test_fingerprint=data.test.fingerprint,
                           results=root / "results", weights=root / "weights")
    return source, make_run(root, data, "mnist_smoke_s1", 1, "regularised", needs)


def planned(experiment, data, plan=None):
    settings = Settings(task="digits", num_epsilons=3)
    return Evaluation.planned(settings, argparse.Namespace(plan=plan), experiment, data)


def test_the_source_is_named_by_the_hash_of_its_best_weights(runs):
    source, run = runs
    assert run.needs == {SOURCE: sha256_of(source.weights / "best.pt")}
    assert json.loads((run.folder / "run.json").read_text())["needs"] == run.needs


def test_the_evaluation_after_training(runs, data, tmp_path, capsys):
    """Its record; the curves; transferred FGSM with the gradients of the source's network, not the run's own."""
    source, run = runs
    test = planned(run, data, "paper-brainreg-70-20-e3")
    path = test.judge(ENGINE)
    said = capsys.readouterr().out
    assert path.name == "eval-paper-brainreg-70-20-e3.json" and "skipped" not in said
    record = records.read_record(path, "eval")
    assert record["checkpoint"] == "best" and record["weights_sha256"] == sha256_of(run.weights / "best.pt")
    assert len(record["results"]) == 1 + 4 * 3 + 5
    clean = record["results"][0]["robust"]
    for attack in ("Gaussian", "Uniform", "SaltPepper", "TransferredFGSM"):
        found = curve(record["results"], attack)
        assert found[0] == (0.0, clean, 70) and found[2][1] < clean and len(found) == 3
    boundary = record["results"][-1]
    assert boundary["name"] == "BoundaryAttack 5" and boundary["values"]["attacked"] == 20
    assert boundary["values"]["mean_square"]["median"] > 0 and "median of mean squares" in said
    networks = {}
    for one in (source, run):
        networks[one.run] = build_network(one.config["model"])
        load_weights(networks[one.run], one.weights / "best.pt")
    flags = records.EvalRecord(path, record).arrays
    evaluators = [one for one in test.plan.evaluators if one.kind == "transferred-fgsm"]
    digest = run.needs[SOURCE]
    again, own = (evaluate(networks[run.run], data.test, replace(test.plan, evaluators=tuple(evaluators)), seed=1,
                           device="cpu", work=tmp_path / name, progress=False, sources={digest: networks[name]})
                  for name in (SOURCE, run.run))
    assert all(np.array_equal(flags[one.name], one.flags) for one in again)
    assert not all(np.array_equal(one.flags, other.flags) for one, other in zip(own, again, strict=True))


def test_the_same_again_is_not_measured_again(runs, data):
    path = planned(runs[1], data, "small-eps-5-0").judge(ENGINE)
    written = path.stat().st_mtime_ns
    assert planned(runs[1], data, "small-eps-5-0").judge(ENGINE) == path and path.stat().st_mtime_ns == written


def test_autoattack_by_another_search_is_another_record(runs, data):
    """A network that takes pairs too has a fast view."""
    plan = planned(runs[1], data, "small-eps-6-fast").plan
    quick = [one for one in plan.evaluators if one.kind == "fast-autoattack"]
    assert [one.name for one in quick] == ["AA (fast search) 0.05", "AA (fast search) 0.1"]
    short = [replace(one, name=f"short {one.eps}", settings={"iterations": 4, "queries": 8}) for one in quick]
    path = judge(folder=runs[1].folder, weights=runs[1].weights, test=data.test, data=runs[1].data, engine=ENGINE,
                 plan=replace(plan, evaluators=(plan.evaluators[0], *short)), checkpoint="best")
    record = records.read_record(path, "eval")
    assert path.name == "eval-small-eps-6-fast.json"
    clean, weak, strong = (one["robust"] for one in record["results"])
    assert clean >= weak >= strong and list(record["results"][1]["values"]) == ["disputed"]


def test_without_a_source_the_attack_is_skipped_and_said_so(runs, data, capsys):
    plan = planned(runs[0], data).plan
    assert "note: TransferredFGSM is skipped" in capsys.readouterr().out
    assert plan.name == "paper-brainreg" and {one.kind for one in plan.evaluators} & {"transferred-fgsm"} == set()
    assert [one.n for one in plan.evaluators if one.kind == "boundary"] == [80] * 5
    planned(runs[0], data, "small-eps-5")
    assert capsys.readouterr().out == ""
    with pytest.raises(UserError, match="unknown plan 'x'"):
        planned(runs[0], data, "x")


def test_the_command_evaluates_a_run(runs, data, tmp_path, monkeypatch, capsys):
    """python -m scripts.evaluate: the source found by its hash, the data in colour turned grey for the network."""
    run = runs[1]
    colour = tmp_path / "digits.npz"
    whole = {f"{part}_{key}": value for part, split in (("train", data.train), ("test", data.test))
             for key, value in (("images", split.images.repeat(1, 3, 1, 1).permute(0, 2, 3, 1).numpy()),
                                ("labels", split.labels.numpy()))}
    np.savez(colour, **whole)
    monkeypatch.setattr("sys.argv", ["evaluate", str(run.folder), "--plan", "paper-brainreg-60-0-e2", "--checkpoint",
                                     "best", "--data", f"npz:{tmp_path}/{{}}.npz", "--weights",
                                     str(run.weights_root), "--device", "cpu"])
    command.main()
    assert "TransferredFGSM 0.5" in capsys.readouterr().out
    record = json.loads((run.folder / "eval-paper-brainreg-60-0-e2.json").read_text())
    assert record["data"]["source"].endswith("turned grey") and record["results"][0]["n"] == 60


# --- bad input ---

def asked(root, text, data, **model):
    return transfer_needs(text, dataset="digits", model={**MODEL, **model}, test_fingerprint=data.test.fingerprint,
                          results=root / "results", weights=root / "weights")


@pytest.fixture
def root(runs, tmp_path):
    """Results and weights of both runs, to be spoilt."""
    for part in ("results", "weights"):
        shutil.copytree(runs[0].results.parent / part, tmp_path / part)
    return tmp_path


def test_a_source_may_be_named_in_several_ways(root, data, runs):
    for text in (SOURCE, f"results/brainreg/digits/{SOURCE}", str(root / "weights/brainreg/digits" / SOURCE)):
        assert asked(root, text, data) == runs[1].needs
    assert asked(root, None, data) == {}


def test_a_missing_source_is_one_line(root, data):
    folder, weights = (root / part / "brainreg/digits" / SOURCE for part in ("results", "weights"))
    for text, message in [("3F9A01BC", "--transfer_id 3F9A01BC: there is no run .*train one without --reg_alpha"),
                          ("mnist_smoke_s1", "mnist_smoke_s1 is regularised"), ("a b", "cannot name a folder")]:
        with pytest.raises(UserError, match=message) as caught:
            asked(root, text, data)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="has 10 classes, this run 7"):
        asked(root, SOURCE, data, classes=7)
    other = replace(data, test=Split(data.test.images.flip(0), data.test.labels))
    with pytest.raises(UserError, match="is of another task: its test images"):
        asked(root, SOURCE, other)
    (weights / "best.pt").write_bytes(b"other")
    with pytest.raises(UserError, match=r"is not the file that train\.json names"):
        asked(root, SOURCE, data)
    (weights / "best.pt").unlink()
    with pytest.raises(UserError, match=r"best\.pt, whose gradients are needed, are not here"):
        asked(root, SOURCE, data)
    (folder / "train.json").unlink()
    with pytest.raises(UserError, match="is not trained to its end"):
        asked(root, SOURCE, data)


def test_a_run_without_best_weights_gives_its_last(root, data):
    path = root / "results/brainreg/digits" / SOURCE / "train.json"
    record = json.loads(path.read_text())
    last = record["weights"].pop("last")
    write_json(path, {**record, "weights": {"last": last}})
    assert asked(root, SOURCE, data) == {SOURCE: last["sha256"]}


def test_a_source_that_was_trained_again_stops_the_evaluation(root, data, runs):
    run = replace(runs[1], results=root / "results", weights_root=root / "weights")
    path = root / "results/brainreg/digits" / SOURCE / "train.json"
    write_json(path, json.loads(path.read_text().replace(run.needs[SOURCE], "0" * 64)))
    plan = planned(run, data, "paper-brainreg-20-0-e2").plan
    with pytest.raises(UserError, match=rf"sha256 {run.needs[SOURCE][:12]}\.\.\., and no run in .* has them"):
        judge(folder=run.folder, weights=run.weights, plan=plan, test=data.test, data=run.data, engine=ENGINE,
              checkpoint="best")
    assert not list(run.folder.glob("eval-paper-brainreg-20*"))
