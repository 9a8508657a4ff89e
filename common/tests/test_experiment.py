"""A run's folder: one configuration each; older plans move aside; evaluations of the recorded weights only."""

import json
import sys
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from torch import nn

from common import locks, records
from common.checkpoint import save_state
from common.data.splits import Split
from common.engine import Engine
from common.errors import UserError
from common.evaluation import Evaluator, Plan, receipts, stored
from common.experiment import Experiment, build_network, flat, load_data, lock_of
from common.files import read_json, sha256_of
from common.fit import TrainRecord
from common.flags import dataset_name
from common.tests.test_locks import Holder
from common.verdicts import judge, print_results

CPU = Engine(torch.device("cpu"))
DATA = {"name": "digits", "source": "scikit-learn", "train_fingerprint": "a" * 64, "test_fingerprint": "b" * 64,
        "n_train": 10, "n_test": 12, "classes": 3}
MODEL = {"name": "small", "classes": 3, "channels": 1, "width": 4}
PLAN = Plan("quick", (Evaluator("clean", "clean"), Evaluator("FGSM", "fgsm", eps=0.1)), chunk=5)


def experiment(folder, spec=None, **config):
    return Experiment(paper="adarat", dataset="digits", run="a_run", method="PGD-AT", variant="plain", budget="custom",
                      seed=1, config={"lr": 0.1, "nested": {"a": 1, "b": 2}, "model": MODEL} | config, data=DATA,
                      spec=spec, results=folder / "results", weights_root=folder / "weights")


def finish(made, seed=0, file="last.pt"):
    """Open, train nothing, close."""
    torch.manual_seed(seed)
    network = build_network(MODEL)
    made.open(network)
    save_state(made.weights / file, network.state_dict())
    files = {"last": {"file": file, "sha256": sha256_of(made.weights / file)}}
    made.close(TrainRecord(3, 12, 1.25, files, {"epoch": 3, "loss": 0.5}), CPU, selected_on=None)
    return network


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- one configuration a folder ---

def test_records_are_whole_and_say_what_was_done(tmp_path):
    made = experiment(tmp_path)
    made.check_free()
    assert not made.finished() and not any(tmp_path.iterdir())
    network = finish(made)
    run = records.read_run(made.folder)
    assert run.folder == tmp_path / "results/adarat/digits/a_run"
    assert run.run["config"]["nested"] == {"a": 1, "b": 2}
    assert run.run["config_sha256"] == run.train["config_sha256"] == made.config_sha256
    assert run.run["model"] == {**MODEL, "parameters": sum(p.numel() for p in network.parameters())}
    assert (run.train["epochs"], run.train["steps"], run.train["seconds"]) == (3, 12, 1.25)
    assert run.train["environment"]["precision"] == "fp32" and run.train["environment"]["engine"]["device"] == "cpu"
    assert made.finished()
    experiment(tmp_path).check_free()


def test_another_configuration_is_refused_and_what_differs_is_named(tmp_path):
    finish(experiment(tmp_path))
    before = contents(tmp_path)
    other = experiment(tmp_path, lr=0.2, nested={"a": 1, "b": 3}, extra=True)
    for attempt in (other.check_free, lambda: other.open(nn.Linear(1, 1))):
        with pytest.raises(UserError, match=r"a_run holds a run of another configuration \(extra 'unset' there, True "
                                            r"here; lr 0\.1 there, 0\.2 here; nested\.b 2 there, 3 here\): give "
                                            r"this one another name with --run, or move that folder away"):
            attempt()
    assert contents(tmp_path) == before and not other.finished()
    many = experiment(tmp_path, **{name: 1 for name in "abcdef"})
    with pytest.raises(UserError, match=r"and 2 more\)"):
        many.check_free()


@pytest.mark.parametrize("place", ["results", "weights", "results/p", "weights/p/d/r"])
def test_a_file_in_the_place_of_a_folder_is_refused_before_anything_is_made(tmp_path, place):
    made = experiment(tmp_path)
    path = {"results": made.results, "weights": made.weights_root, "results/p": made.folder.parents[1],
            "weights/p/d/r": made.weights}[place]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    before = sorted(tmp_path.rglob("*"))
    for attempt in (made.check_free, lambda: made.open(nn.Linear(1, 1))):
        with pytest.raises(UserError, match=f"^--{place.split('/')[0]}: .* is a file, and a folder is needed") as told:
            attempt()
        assert told.value.code == "E-OUT" and sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(("model", "said"), [
    ({"classes": 3}, "missing a required argument: 'name'"),
    ({"name": "small"}, "missing a required argument: 'classes'"),
    ({"name": "small", "classes": 3, "widht": 4}, "unexpected keyword argument 'widht'"),
    ({"builder": "brainreg.network:build", "name": "resnet18", "norm": "batch"}, "unexpected keyword argument 'norm'")])
def test_a_networks_description_that_was_edited_by_hand(model, said):
    with pytest.raises(UserError, match=said) as told:
        build_network(model)
    assert told.value.code == "E-RECORD"


def test_a_run_of_an_older_plan_moves_to_the_attic(tmp_path, capsys):
    first = experiment(tmp_path, spec="1" * 64)
    finish(first)
    (first.weights / "resume.pt").write_bytes(b"state")
    old_records, old_weights = contents(first.folder), contents(first.weights)
    second = experiment(tmp_path, spec="2" * 64, lr=0.2)
    second.check_free()
    finish(second, seed=1)
    attic = first.weights.with_name(f"a_run.before-{first.config_sha256[:8]}")
    assert contents(attic / "records") == old_records and contents(attic / "weights") == old_weights
    assert f"the older records and weights are in .../{attic.name}" in capsys.readouterr().out
    assert second.finished() and not first.finished()
    assert records.read_run(second.folder).run["spec_sha256"] == "2" * 64


def test_going_back_and_forth_between_plans_loses_nothing(tmp_path):
    plans = [experiment(tmp_path, spec=str(number) * 64, lr=lr) for number, lr in ((1, 0.1), (2, 0.2))]
    seen = []
    for turn in range(5):
        finish(plans[turn % 2], seed=turn)
        seen.append(sha256_of(plans[0].weights / "last.pt"))
        assert plans[turn % 2].finished()
    kept = {sha256_of(path) for path in (tmp_path / "weights").rglob("last.pt")}
    assert kept == set(seen) and len(kept) == 5
    attics = [path for path in (tmp_path / "weights/adarat/digits").iterdir() if ".before-" in path.name]
    assert len(attics) == 4
    assert all((attic / "records/train.json").is_file() and (attic / "weights/last.pt").is_file() for attic in attics)


def test_a_move_to_the_attic_that_was_killed_goes_on(tmp_path):
    first = experiment(tmp_path, spec="1" * 64)
    finish(first)
    attic = first.weights.with_name(f"a_run.before-{first.config_sha256[:8]}")
    attic.mkdir()
    first.weights.rename(attic / "weights")
    second = experiment(tmp_path, spec="2" * 64, lr=0.2)
    finish(second, seed=1)
    assert (attic / "records/run.json").is_file() and (attic / "weights/last.pt").is_file()
    assert second.finished()


def test_a_run_made_by_hand_is_no_older_plan(tmp_path):
    finish(experiment(tmp_path))
    with pytest.raises(UserError, match="another configuration"):
        experiment(tmp_path, spec="2" * 64, lr=0.2).check_free()


def test_a_finished_run_takes_the_hash_that_make_asks_for(tmp_path):
    finish(experiment(tmp_path))
    before = records.read_record(experiment(tmp_path).folder / "train.json", "train")
    asked = experiment(tmp_path, spec="3" * 64)
    assert asked.finished()
    asked.adopt()
    after = records.read_record(asked.folder / "train.json", "train")
    assert after == before | {"spec_sha256": "3" * 64}
    assert records.read_record(asked.folder / "run.json", "run")["spec_sha256"] == "3" * 64
    experiment(tmp_path).adopt()
    assert records.read_record(asked.folder / "train.json", "train") == after


def test_a_run_is_finished_only_with_its_own_weights(tmp_path):
    made = experiment(tmp_path)
    finish(made)
    path = made.weights / "last.pt"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert not made.finished()
    path.unlink()
    assert not made.finished()
    path.write_bytes(whole)
    assert made.finished()
    (made.folder / "train.json").unlink()
    assert not made.finished()


# --- networks and data ---

def test_a_network_of_one_paper_is_named_by_its_function(tmp_path, monkeypatch):
    module = ModuleType("somepaper.network")
    module.build = lambda *, classes, depth: nn.Sequential(nn.Flatten(), nn.Linear(depth, classes))
    monkeypatch.setitem(sys.modules, "somepaper.network", module)
    monkeypatch.setattr("common.experiment.ROOT", tmp_path)
    (tmp_path / "somepaper").mkdir()
    (tmp_path / "somepaper" / "network.py").touch()
    network = build_network({"builder": "somepaper.network:build", "classes": 7, "depth": 3})
    assert (network[1].in_features, network[1].out_features) == (3, 7)
    assert build_network(MODEL).linear.out_features == 3


@pytest.mark.parametrize("builder", ["os:system", "os.network:build", "subprocess:run", "common.files:write_text",
                                     "brainreg.network:PairResNet", "../x.network:build", "", None, 3])
def test_what_a_record_names_is_not_run(builder, tmp_path):
    sign = tmp_path / "run"
    with pytest.raises(UserError, match="was not run"):
        build_network({"builder": builder or "", "command": f"touch {sign}", "args": ["touch", str(sign)]})
    assert not sign.exists()


def test_held_out_training_images_take_the_place_of_the_test_images():
    plain, held = load_data("digits", None, n_train=100), load_data("digits", None, n_train=100, held_out=0.2)
    assert (len(plain.train), len(plain.test)) == (100, 400)
    assert (len(held.train), len(held.test)) == (80, 20) and "held-out training images as test" in held.source
    first = {image.numpy().tobytes() for image in plain.train.images}
    assert {image.numpy().tobytes() for image in torch.cat([held.train.images, held.test.images])} == first
    assert held.test.fingerprint != plain.test.fingerprint


@pytest.mark.parametrize(("spec", "name"), [("cifar10", "cifar10"), ("npz:/a/b/mine.npz", "mine"),
                                            ("folder:../tiny?size=64", "tiny"), ("folder:x/y", "y")])
def test_the_records_folder_is_named_by_the_data_set(spec, name):
    assert dataset_name(spec) == name


def test_flat_joins_keys_by_dots():
    assert flat({"a": {"b": 1, "c": {"d": [2]}}, "e": None}) == {"a.b": 1, "a.c.d": [2], "e": None}


# --- one job at a time ---

def test_a_run_that_another_process_trains_is_neither_trained_nor_judged(tmp_path, split, monkeypatch):
    monkeypatch.setattr(locks, "PATIENCE", 0.1)
    made = experiment(tmp_path)
    other = Holder(lock_of(made.weights))
    try:
        with pytest.raises(UserError, match=rf"a_run is in use by process {other.process.pid} on ") as told:
            made.open(build_network(MODEL))
        assert told.value.code == "E-BUSY" and not made.folder.exists() and not made.weights.exists()
        aside = replace(made, run="b_run")
        finish(aside)                                             # another run is another matter
    finally:
        other.kill()
    finish(made)
    other = Holder(lock_of(made.weights))
    try:
        with pytest.raises(UserError, match="a_run is in use by process"):
            judged(made, split)
        assert not (made.folder / "eval-quick.json").exists()
    finally:
        other.kill()
    path = judged(made, split)
    other = Holder(lock_of(made.weights))
    try:
        assert judged(made, split) == path                        # what is known needs no lock
    finally:
        other.kill()
    assert not [file for file in tmp_path.rglob("*.lock") if file.name != lock_of(made.weights).name]


def test_plans_are_evaluated_side_by_side_and_no_plan_twice(tmp_path, split, monkeypatch):
    monkeypatch.setattr(locks, "PATIENCE", 0.1)
    made = experiment(tmp_path)
    finish(made)
    held = [Holder(lock_of(made.weights), "shared"), Holder(lock_of(made.weights, PLAN))]
    try:
        with pytest.raises(UserError, match=rf"the evaluation of \S+a_run by quick is in use by process "
                                            rf"{held[1].process.pid} on "):
            judged(made, split)
        judged(made, split, plan=Plan("other", PLAN.evaluators, chunk=5))
        with pytest.raises(UserError, match=r"a_run is in use by process"):
            made.open(build_network(MODEL))
    finally:
        for one in held:
            one.kill()
    judged(made, split)


# --- judging ---

@pytest.fixture
def split():
    generator = torch.Generator().manual_seed(0)
    return Split(torch.randint(0, 256, (12, 1, 8, 8), dtype=torch.uint8, generator=generator),
                 torch.arange(12) % 3)


def judged(made, split, **changes):
    return judge(**{"folder": made.folder, "weights": made.weights, "plan": PLAN, "test": split, "data": DATA,
                    "engine": CPU} | changes)


def test_an_evaluation_is_recorded_with_the_weights_that_it_judged(tmp_path, split, capsys):
    made = experiment(tmp_path)
    network = finish(made).eval()
    path = judged(made, split, seed=4, spec="5" * 64)
    print_results(path)
    evaluation = records.read_run(made.folder).evals["quick"]
    assert path == made.folder / "eval-quick.json"
    assert evaluation.record["weights_sha256"] == sha256_of(made.weights / "last.pt")
    assert (evaluation.record["seed"], evaluation.record["spec_sha256"]) == (4, "5" * 64)
    assert evaluation.record["environment"]["precision"] == "fp32"
    with torch.no_grad():
        right = network(split.float_images()).argmax(1) == split.labels
    assert evaluation.arrays["clean"].tolist() == right.tolist()
    assert evaluation.arrays["index"].tolist() == list(range(12))
    assert evaluation.results["clean"]["robust"] == int(right.sum())
    assert f"({int(right.sum())} of 12 images)" in capsys.readouterr().out
    assert not list((made.weights / "evaluations").iterdir())


def test_a_run_that_is_not_trained_is_not_judged(tmp_path, split):
    made = experiment(tmp_path)
    with pytest.raises(UserError, match=r"run\.json does not exist"):
        judged(made, split)
    finish(made)
    (made.folder / "train.json").unlink()
    with pytest.raises(UserError, match=r"a_run is not trained to its end: type its command again: python "):
        judged(made, split)


def test_only_the_recorded_weights_are_judged(tmp_path, split):
    made = experiment(tmp_path)
    finish(made)
    with pytest.raises(UserError, match=r"a_run has no checkpoint 'best': there are last"):
        judged(made, split, checkpoint="best")
    save_state(made.weights / "last.pt", build_network(MODEL).state_dict())
    with pytest.raises(UserError, match=r"last\.pt is not the file that train\.json names: train the run again"):
        judged(made, split)
    (made.weights / "last.pt").unlink()
    with pytest.raises(UserError, match=r"last\.pt are not here \(weights are not kept in git\): train the run again"):
        judged(made, split)
    assert not (made.folder / "eval-quick.json").exists()


def test_labels_that_the_network_does_not_have_are_refused(tmp_path, split):
    made = experiment(tmp_path)
    finish(made)
    with pytest.raises(UserError, match="labels up to 7, the model has 3 classes"):
        judged(made, replace(split, labels=torch.arange(12) % 8))
    assert not (made.folder / "eval-quick.json").exists()


def test_a_record_that_was_tampered_with_is_named(tmp_path, split):
    made = experiment(tmp_path)
    finish(made)
    path = made.folder / "train.json"
    record = json.loads(path.read_text())
    del record["weights"]
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"train\.json is not a whole train record: 'weights' is missing"):
        judged(made, split)


def test_nothing_is_measured_twice(tmp_path, split, monkeypatch):
    made = experiment(tmp_path)
    finish(made)
    path = judged(made, split, spec="a" * 64)
    before = read_json(path)
    monkeypatch.setattr("common.verdicts.evaluate", None)                  # a second measurement would fail
    assert judged(made, split) == path and read_json(path) == before
    judged(made, split, spec="b" * 64)                                       # make asks under another hash
    assert read_json(path) == {**before, "spec_sha256": "b" * 64}
    for change in ({"seed": 2}, {"data": {**DATA, "test_fingerprint": "other"}}):
        with pytest.raises(TypeError):
            judged(made, split, **change)


def test_a_receipt_of_a_run_holds_what_fooled_it(tmp_path):
    made = experiment(tmp_path)
    network = finish(made)
    images = torch.randint(0, 256, (12, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    test = Split(images, network.eval()(images / 255).argmax(1))
    given = {"folder": made.folder, "weights": made.weights, "plan": PLAN, "test": test, "engine": CPU,
             "data": DATA | {"test_fingerprint": test.fingerprint}}
    judge(**given)
    judge(**given, receipt=tmp_path / "r.npz")                # judged already, but without the images
    meta, arrays = receipts.read_receipt(tmp_path / "r.npz")
    assert receipts.rejudge(meta, arrays, network)[0] == "clean: 12 of 12, every image judged again"
    assert meta["weights"]["sha256"] == sha256_of(made.weights / "last.pt") and meta["model"] == MODEL
    written = (tmp_path / "r.npz").stat().st_mtime_ns
    judge(**given, receipt=tmp_path / "r.npz")
    assert (tmp_path / "r.npz").stat().st_mtime_ns == written and not list(made.weights.glob("evaluations/*"))


def test_other_records_of_the_run_tell_its_clean_verdicts(tmp_path):
    made = experiment(tmp_path)
    network = finish(made)
    images = torch.randint(0, 256, (40, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    test = Split(images, network.eval()(images / 255).argmax(1))
    data = DATA | {"test_fingerprint": test.fingerprint}
    given = {"folder": made.folder, "weights": made.weights, "engine": CPU, "data": data}
    judge(**given, plan=PLAN, test=test)
    run, digest = records.read_run(made.folder).run, sha256_of(made.weights / "last.pt")
    known = stored.of_run(made.folder, run, digest, data)
    assert known.flags.tolist() == [True] * 40 and known.where.endswith("eval-quick.json")
    assert stored.of_run(made.folder, run, "0" * 64, data) is None
    assert stored.of_run(made.folder, run, digest, DATA) is None
    other = Split(images, (test.labels + 1) % 3)              # under the name of the same images
    with pytest.raises(UserError, match=r"^E-CLEAN: 40 of the first 40 clean verdicts differ"):
        judge(**given, plan=replace(PLAN, name="again"), test=other)
