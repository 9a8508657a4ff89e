"""python scripts/evaluate.py CHECKPOINT: runs of ours, files of weights, functions; plans that fit every network."""

import json
import subprocess
import sys

import pytest
import torch

from common import environment as surroundings
from common import evaluation
from common.checkpoint import load_weights, save_state
from common.data.digits import load_digits
from common.environment import ROOT
from common.errors import UserError
from common.evaluation import standard, subject
from common.evaluation.plans import Plan
from common.models import build
from scripts import evaluate as command

MODEL = {"classes": 10, "channels": 1, "width": 8}
MAKER = '''
import torch
from common.checkpoint import load_weights
from common.models import build

def network():
    return build("small", classes=10, channels=1, width=8)

def trained():
    made = network()
    load_weights(made, "weights.pt")
    return made

def number():
    return 3
'''


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A small network that has learnt the digits a little, as a file."""
    torch.manual_seed(0)
    network, data = build("small", **MODEL), load_digits().train
    x, y = data.images / 255, data.labels
    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    for step in range(60):
        part = torch.randperm(len(x), generator=torch.Generator().manual_seed(step))[:64]
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(network(x[part]), y[part]).backward()
        optimiser.step()
    path = tmp_path_factory.mktemp("w") / "weights.pt"
    save_state(path, network.eval().state_dict())
    return path


def call(monkeypatch, *words):
    monkeypatch.setattr("sys.argv", ["evaluate.py", *map(str, words)])
    command.main()


SMALL = ("--model", "small", "--width", "8", "--data", "digits", "--device", "cpu")


def test_a_file_of_weights_is_evaluated_and_recorded(weights, tmp_path, monkeypatch, capsys):
    out = tmp_path / "record.json"
    call(monkeypatch, weights, *SMALL, "--plan", "quick-60", "--eps", "0.05", "--out", out)
    said = capsys.readouterr().out
    record = json.loads(out.read_text())
    clean, pgd = record["results"]
    assert f"  clean          {100 * clean['robust'] / 60:6.2f} %  ({clean['robust']} of 60 images)" in said
    assert clean["robust"] > 40 > pgd["robust"] and pgd["n"] == 60 and pgd["eps"] == 0.05
    assert pgd["settings"]["steps"] == 20 and record["allowed"] == [] and record["checkpoint"]["state_sha256"]


def test_a_record_names_the_commit_and_the_time_of_its_beginning(weights, tmp_path, monkeypatch):
    now, judge = ["a" * 40, False, "2026-01-01T00:00:00+00:00"], evaluation.evaluate

    def evaluate(*args, **words):
        now[:] = "b" * 40, True, "2026-01-01T05:00:00+00:00"               # hours later, another commit
        return judge(*args, **words)

    monkeypatch.setattr(surroundings, "_BEGUN", {})
    monkeypatch.setattr(surroundings, "_state", lambda root: tuple(now))
    monkeypatch.setattr(evaluation, "evaluate", evaluate)
    call(monkeypatch, weights, *SMALL, "--plan", "quick-40", "--eps", "0.05", "--out", tmp_path / "r.json")
    made = json.loads((tmp_path / "r.json").read_text())["environment"]
    assert now[1] and (made["commit"], made["dirty"], made["started"]) == ("a" * 40, False, "2026-01-01T00:00:00+00:00")


def test_a_function_with_and_without_a_file_gives_the_same(weights, tmp_path, monkeypatch):
    (tmp_path / "their_maker.py").write_text(MAKER)
    (tmp_path / "weights.pt").write_bytes(weights.read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    ways = ([weights, *SMALL], ["weights.pt", "--model", "their_maker:network", *SMALL[4:]],
            ["their_maker:trained", *SMALL[4:]])
    counts = []
    for number, words in enumerate(ways):
        call(monkeypatch, *words, "--plan", "quick-40", "--eps", "0.05", "--out", f"{number}.json")
        record = json.loads((tmp_path / f"{number}.json").read_text())
        counts.append(([result["robust"] for result in record["results"]], record["checkpoint"]["state_sha256"]))
    assert counts[0] == counts[1] == counts[2]


def test_it_runs_as_a_script_and_refuses_a_clean_accuracy_that_is_not_stated(weights, tmp_path, monkeypatch, capsys):
    words = (weights, *SMALL, "--plan", "quick-40", "--eps", "0.05", "--clean", "31", "--out", tmp_path / "r.json")
    refused = subprocess.run((sys.executable, ROOT / "scripts" / "evaluate.py", *words), cwd=tmp_path, text=True,
                             capture_output=True)
    assert refused.returncode == 2 and refused.stderr.startswith("error: E-CLEAN: ") and "--clean says 31.0 %" in (
        refused.stderr) and not (tmp_path / "r.json").exists()
    call(monkeypatch, *words, "--allow", "E-CLEAN")
    assert "accepted: E-CLEAN" in capsys.readouterr().err
    assert json.loads((tmp_path / "r.json").read_text())["allowed"] == ["E-CLEAN"]


def test_the_accuracy_beside_a_file_counts(weights, tmp_path, monkeypatch):
    (tmp_path / "w.pt").write_bytes(weights.read_bytes())
    (tmp_path / "w.json").write_text('{"clean_acc": "12.5"}')
    with pytest.raises(UserError, match=r"^E-CLEAN: .* w\.json says 12\.5 %"):
        call(monkeypatch, tmp_path / "w.pt", *SMALL, "--plan", "quick-40", "--eps", "0.05")


@pytest.mark.parametrize(("words", "said"), [
    (("nowhere.pt",), "there is no checkpoint nowhere.pt"),
    (("W", "--data", "digits"), "does not say which network it is of: give --model NAME"),
    (("W", "--model", "small"), "--data: say on which data set"),
    (("W", *SMALL, "--eps", "8"), "E-EPS: --eps 8 is larger than the whole range"),
    (("W", *SMALL, "--plan", "quick-5-5"), "unknown plan 'quick-5-5'"),
    (("W", *SMALL, "--plan", "best"), "unknown plan 'best': give quick, standard, full, paper-adarat"),
    (("W", *SMALL, "--plan", "paper-adarat", "--eps", "0.1"), "--norm and --eps are for quick, standard, full"),
    (("W", *SMALL, "--allow", "E-WHAT"), "--allow E-WHAT: no such code"),
    (("W", *SMALL, "--normalise", "a,b", "c"), "--normalise a,b c: give cifar10"),
    (("W", "--model", "nomod:f", *SMALL[4:]), "nomod:f: there is no module nomod"),
    (("W", "--model", "math:nothing", *SMALL[4:]), "math has no function nothing"),
    (("math:sqrt", "--data", "digits"), "math:sqrt needs arguments"),
    (("math:gamma", "--model", "small", "--data", "digits"), "math:gamma brings its network along"),
    (("W", *SMALL, "--checkpoint", "best"), "--part says which weights of a file"),
    (("results/adarat/cifar10/pgd-at_short_s1", "--model", "x"), "is a run of ours, whose record says it"),
])
def test_mistakes_are_one_line(weights, monkeypatch, words, said):
    words = [weights if word == "W" else word for word in words]
    plan = () if "--plan" in words else ("--plan", "quick")
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError) as caught:
        call(monkeypatch, *words, *plan)
    assert said in str(caught.value)


def test_a_function_that_returns_no_network(monkeypatch, tmp_path):
    (tmp_path / "their_number.py").write_text(MAKER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"their_number:number returned a int, not a torch\.nn\.Module"):
        subject.built({"builder": "their_number:number"}, trusted=True)


def test_a_file_that_a_run_recorded_is_that_run(tmp_path, monkeypatch):
    folder, weights = tmp_path / "results/p/d/r", tmp_path / "weights/p/d/r"
    folder.mkdir(parents=True)
    weights.mkdir(parents=True)
    for name in ("best.pt", "other.pt"):
        (weights / name).write_bytes(b"x")
    (folder / "run.json").write_text("{}")
    (folder / "train.json").write_text("{}")
    monkeypatch.setattr(subject.records, "read_record",
                        lambda *_: {"weights": {"best": {"file": "best.pt", "sha256": "s"}}})
    assert subject.find(str(weights / "best.pt")) == subject.Subject(folder=folder, checkpoint="best")
    assert subject.find(str(weights / "other.pt")) == subject.Subject(file=weights / "other.pt")
    assert subject.find(str(folder)) == subject.find(str(weights)) == subject.Subject(folder=folder, checkpoint="last")
    assert subject.find("package.module:function") == subject.Subject(function="package.module:function")


def names(plan: Plan):
    return [(one.name, one.n) for one in plan.evaluators]


def test_standard_plans():
    assert names(standard.plan_named("quick")) == [("clean", 1000), ("PGD-20", 1000)]
    assert names(standard.plan_named("quick", n_test=400)) == [("clean", 400), ("PGD-20", 400)]
    assert names(standard.plan_named("standard")) == [("clean", None), ("AutoAttack", None)]
    assert names(standard.plan_named("standard-1000-200")) == [("clean", 1000), ("AutoAttack", 200)]
    assert names(standard.plan_named("standard-50-fast")) == [("clean", 50), ("AA (fast search)", 50)]
    whole = standard.plan_named("full-100", norm="l2", eps=0.25)
    assert names(whole)[-1] == ("AutoAttack", 100) and {one.norm for one in whole.evaluators[1:]} == {"l2"}
    assert {one.eps for one in whole.evaluators[1:]} == {0.25} and len(whole.evaluators) == 8
    assert standard.plan_named("quick").evaluators[1].eps == 8 / 255
    assert standard.plan_named("quick", norm="l2").evaluators[1].eps == 128 / 255
    assert not standard.is_standard("paper-adarat") and not standard.is_standard("quickly")


@pytest.mark.parametrize(("name", "last"), [
    ("paper-adarat-100-20", ("AutoAttack", 20)), ("paper-dyart-100-20", ("AutoAttack eps=16", 20)),
    ("paper-rpat-100-20", ("AutoAttack", 20)), ("paper-brainreg-100-0", ("SaltPepper 0.1", 100)),
    ("board-100-20", ("AutoAttack", 20))])
def test_the_papers_plans_fit_any_network(name, last):
    args = command.parser().parse_args(["x.pt", "--plan", name])
    assert names(command.plan_for(name, args, None))[-1] == last
    assert names(command.plan_for(name, args, {"paper": "nobody"}))[-1] == last


def test_weights_of_robustbench_and_of_ours_are_read_by_the_flags(tmp_path):
    torch.manual_seed(0)
    theirs = build("wrn-10-1-swish", classes=10)
    torch.save({"state_dict": {f"module.{name}": value for name, value in theirs.state_dict().items()}},
               tmp_path / "m.pt")
    args = command.parser().parse_args(["m.pt", "--plan", "quick", "--model", "wrn-10-1-swish"])
    made = subject.built(subject.model_of_flags(args, 3, 10), trusted=True)
    load_weights(made, tmp_path / "m.pt")
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in made.state_dict().items())
