"""Rules for make: done is done, an edited flag does again just what depends on it, -n and -j, odd paths."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common.environment import ROOT, environment
from common.errors import UserError
from common.runs import Cost, Judgement, Run, check, numbers, spec_hashes, split
from scripts import make_rules
from scripts.make_rules import Folders, plan_steps

COST = Cost(images=1000, passes=10, gflop=1.0)

# A paper whose training takes no time: ST is the teacher of KD, PGD stands alone; `flags.json` holds what a user edits.
RUNS = '''
import json
from pathlib import Path
from common.runs import Column, Cost, Judgement, Row, Run, Table

TABLE = Table(title="Fake", rows=tuple(Row(method=m, variant="plain", label=m) for m in ("ST", "PGD", "KD")),
              columns=(Column(evaluator="clean", title="clean"),))
COST = Cost(images=1000, passes=10, gflop=1.0)


def runs(*, dataset, budget, seeds, methods, data, data_dir, device):
    flags = json.loads(Path("flags.json").read_text())
    made = []
    for seed in seeds or (1,):
        for method in methods or ("ST", "PGD", "KD"):
            made.append(Run(
                name=f"{method.lower()}_{budget}_s{seed}", method=method, variant="plain", budget=budget, seed=seed,
                script="adarat/train.py", cost=COST, argv=("--method", method, "--lr", flags[method]),
                place=("--data", data) if data else (), needs=(f"st_{budget}_s{seed}",) if method == "KD" else (),
                plans=(Judgement(plan="fake", cost=COST, argv=("--n", flags["n"])),)))
    return made
'''
TRAIN = '''
import argparse, os, sys, time
from pathlib import Path
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common.files import sha256_of, write_text
from common.records import config_sha256, environment, write_run, write_train

parser = argparse.ArgumentParser()
for name in ("--method", "--lr", "--data", "--run", "--spec"):
    parser.add_argument(name)
args = parser.parse_args()
results, weights = Path("results/adarat/cifar10"), Path("weights/adarat/cifar10")
if args.method == "KD":
    assert (weights / args.run.replace("kd", "st") / "last.pt").exists(), "the teacher is missing"
with open("log", "a") as log:
    log.write(f"train {args.run}\\n")
time.sleep(float(os.environ.get("NAP", "0")))
write_text(weights / args.run / "last.pt", f"{args.method} {args.lr}")
_, budget, seed = args.run.split("_")
config = {"lr": args.lr, "model": {"name": "small"}}
identity = {"paper": "adarat", "dataset": "cifar10", "run": args.run, "spec_sha256": args.spec,
            "config_sha256": config_sha256(config)}
write_run(results / args.run, {
    **identity, "method": args.method, "variant": "plain", "budget": budget, "seed": int(seed[1:]), "config": config,
    "data": {"name": args.data or "x", "test_fingerprint": "f", "train_fingerprint": "abc"},
    "quirks": [], "needs": {}, "model": {}, "command": ""})
write_train(results / args.run, {
    **identity, "weights": {"last": {"file": "last.pt", "sha256": sha256_of(weights / args.run / "last.pt")}},
    "epochs": 1, "steps": 1, "seconds": 2.0, "selected_on": None, "final": {}, "environment": environment("cpu", "32")})
time.sleep(float(os.environ.get("LINGER", "0")))
if os.environ.get("FAIL") == args.method:
    sys.exit(3)
'''
EVALUATE = '''
import argparse
from pathlib import Path
import numpy as np
from common.files import sha256_of
from common.records import environment, read_record, write_eval

parser = argparse.ArgumentParser()
parser.add_argument("folder", type=Path)
for name in ("--plan", "--n", "--spec"):
    parser.add_argument(name)
args = parser.parse_args()
n = int(args.n)
run = read_record(args.folder / "run.json", "run")
with open("log", "a") as log:
    log.write(f"evaluate {run['run']}\\n")
write_eval(args.folder, {
    "paper": "adarat", "dataset": "cifar10", "run": run["run"], "plan": args.plan, "spec_sha256": args.spec,
    "plan_sha256": "p", "checkpoint": "last", "data": run["data"], "seed": 1, "chunk": n, "command": "c",
    "weights_sha256": sha256_of(Path("weights/adarat/cifar10") / run["run"] / "last.pt"),
    "environment": environment("cpu", "fp32"),
    "results": [{"name": "clean", "kind": "clean", "norm": None, "eps": None, "settings": {}, "robust": n, "n": n,
                 "seconds": 0.1}]}, {"clean": np.ones(n, bool)}, np.arange(n))
'''
FLAGS = {"ST": "0.1", "PGD": "0.1", "KD": "0.1", "n": "10"}
ALL = {f"{step} {name}_short_s1" for step in ("train", "evaluate") for name in ("st", "pgd", "kd")}


def hear_interrupts() -> None:
    """A shell's background jobs, and all that they start, ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Clone:
    """A copy of what make needs, with the fake paper in the place of AdaRAT."""

    def __init__(self, root: Path):
        self.root = root
        for folder in ("common", "common/evaluation", "scripts"):
            (root / folder).mkdir()
            for path in (ROOT / folder).glob("*.py"):
                shutil.copy(path, root / folder)
        for name in ("Makefile", "requirements.lock"):
            shutil.copy(ROOT / name, root)
        for name, text in (("adarat/__init__.py", ""), ("adarat/runs.py", RUNS), ("adarat/train.py", TRAIN),
                           ("adarat/figures.py", "def draw(results, out, **which):\n    return []\n"),
                           ("scripts/evaluate.py", EVALUATE), ("flags.json", json.dumps(FLAGS))):
            (root / name).parent.mkdir(exist_ok=True)
            (root / name).write_text(text)

    def make(self, *words: str, fails: bool = False, **variables: str) -> str:
        """Run make and return what it printed; the log starts empty."""
        started = self.start(*words, **variables)
        text = started.communicate(timeout=200)[0]
        assert (started.returncode != 0) == fails, text
        return text

    def start(self, *words: str, **variables: str) -> subprocess.Popen:
        (self.root / "log").write_text("")
        given = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
        command = ("make", "reproduce-adarat-cifar10", f"PYTHON={sys.executable}", "SETUP=0", "BUDGET=short", *words)
        return subprocess.Popen(command, cwd=self.root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                env=given | variables, start_new_session=True, preexec_fn=hear_interrupts)

    @property
    def log(self) -> list[str]:
        return (self.root / "log").read_text().splitlines()

    def edit(self, **changes: str) -> None:
        (self.root / "flags.json").write_text(json.dumps(FLAGS | changes))

    def record(self, run: str, name: str = "train.json") -> Path:
        return self.root / "results" / "adarat" / "cifar10" / f"{run}_short_s1" / name


@pytest.fixture
def clone(tmp_path) -> Clone:
    return Clone(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Clone:
    """A clone in which everything is done; not to be changed."""
    made = Clone(tmp_path_factory.mktemp("finished"))
    made.first = made.make()
    made.first_log = made.log
    return made


@pytest.fixture
def done(finished, tmp_path) -> Clone:
    """A copy of it, with the times that a checkout gives: all alike."""
    shutil.copytree(finished.root, tmp_path, dirs_exist_ok=True)
    copy = object.__new__(Clone)
    copy.root = tmp_path
    return copy


def test_the_first_time_everything_runs_and_the_table_comes_out(finished):
    assert sorted(finished.first_log) == sorted(ALL)
    assert finished.first_log.index("train st_short_s1") < finished.first_log.index("train kd_short_s1")
    assert "6 steps: 0 done, 6 to do; about" in finished.first
    assert "BUDGET=quick|smoke|short|board|gpu|full" in finished.first
    assert "| ST | 1 | 1 | last | 100.00" in finished.first
    assert (finished.root / "results" / "tables" / "adarat-cifar10-short.md").exists()


def test_nothing_is_done_twice_whatever_the_times_say(done):
    for path in done.root.rglob("*"):
        os.utime(path, (1e9, 1e9))
    shutil.rmtree(done.root / "build")
    shutil.rmtree(done.root / "weights")                           # a fresh clone has no weights
    text = done.make()
    assert done.log == [] and "6 steps: 6 done, 0 to do." in text
    assert text.count("Runs that are done were trained on x (sha256 abc).") == 1


@pytest.mark.parametrize(("change", "again"), [
    ({"PGD": "0.2"}, {"train pgd", "evaluate pgd"}),
    pytest.param({"KD": "0.2"}, {"train kd", "evaluate kd"}, marks=pytest.mark.slow),
    pytest.param({"ST": "0.2"}, {"train st", "evaluate st", "train kd", "evaluate kd"}, marks=pytest.mark.slow),
    pytest.param({"n": "20"}, {"evaluate st", "evaluate pgd", "evaluate kd"}, marks=pytest.mark.slow)])
def test_an_edited_flag_does_again_just_what_depends_on_it(done, change, again):
    for path in done.root.rglob("results/**/*.json"):
        os.utime(path, (4e9, 4e9))                                 # a clock that was wrong: records of the future
    done.edit(**change)
    done.make()
    assert set(done.log) == {f"{what}_short_s1" for what in again} and len(done.log) == len(again)


def test_a_flag_edited_back_finds_the_old_record_stale_not_lost(done):
    done.edit(PGD="0.2")
    done.make("-n")
    done.edit()
    done.make()
    assert done.log == []


def test_a_missing_evaluation_with_weights_is_just_evaluated(done):
    done.record("pgd", "eval-fake.json").unlink()
    done.make()
    assert done.log == ["evaluate pgd_short_s1"]


@pytest.mark.slow
def test_a_missing_evaluation_without_weights_trains_that_run_again(done):
    done.record("kd", "eval-fake.json").unlink()
    shutil.rmtree(done.root / "weights")
    text = done.make()
    # KD's training reads ST's weights, so ST is needed as well, and is judged anew since its weights are new.
    assert done.log[0] == "train st_short_s1" and "train kd_short_s1" in done.log
    assert {entry.split()[1] for entry in done.log} == {"st_short_s1", "kd_short_s1"} and len(done.log) == 4
    assert "its weights are not on this machine, and fake needs them: trains again" in text


@pytest.mark.parametrize("damage", ["{", pytest.param("[]", marks=pytest.mark.slow), None])
def test_a_broken_or_damaged_record_is_made_again(done, damage):
    if damage is None:
        done.record("pgd", "flags-fake.npz").write_bytes(b"other")
    else:
        done.record("pgd", "eval-fake.json").write_text(damage)
    done.make()
    assert done.log == ["evaluate pgd_short_s1"]


def test_dry_run_shows_the_commands_and_does_nothing(clone):
    text = clone.make("-n", "DATA=npz:/far/my data/c$10's.npz", "LAUNCH=nice -n 5", "METHODS=PGD")
    assert clone.log == [] and not (clone.root / "results").exists()
    line, = (line for line in text.splitlines() if "adarat/train.py" in line)
    assert line.startswith(f"nice -n 5 {sys.executable} adarat/train.py --method PGD --lr 0.1 --data ")
    assert "--run pgd_short_s1 --spec " in line
    judged = "-m scripts.evaluate results/adarat/cifar10/pgd_short_s1 --plan fake --n 10"
    assert f"nice -n 5 {sys.executable} {judged}" in text


@pytest.mark.parametrize(("launch", "start"), [
    ("torchrun --nproc-per-node 8", f"{sys.executable} -m torch.distributed.run --nproc-per-node 8 --"),
    ("/opt/bin/torchrun -n 2", "/opt/bin/torchrun -n 2 --"),
    ("srun --nodes 2 torchrun --nnodes 2", f"srun --nodes 2 {sys.executable} -m torch.distributed.run --nnodes 2 --"),
    ("python3 -m torch.distributed.run -n 2", "python3 -m torch.distributed.run -n 2 --"),
    ("srun --comment='a  b' --ntasks 8", f"srun --comment='a  b' --ntasks 8 {sys.executable}")])
def test_launch_starts_trainings_and_evaluations(clone, launch, start):
    """torchrun starts Python itself; whatever else stands in LAUNCH starts Python."""
    lines = clone.make("-n", f"LAUNCH={launch}", "METHODS=PGD").splitlines()
    assert [line for line in lines if line.startswith(f"{start} adarat/train.py --method PGD")]
    assert [line for line in lines if line.startswith(f"{start} -m scripts.evaluate results/adarat/cifar10/pgd_short")]
    assert [line for line in lines if line.startswith(f"{sys.executable} -m scripts.report")]


@pytest.mark.slow
def test_odd_characters_in_data_arrive_as_typed(clone):
    odd = "npz:my data/c$10's #1 %d.npz"
    clone.make(f"DATA={odd}", "METHODS=PGD", "SEEDS=7")
    assert clone.log == ["train pgd_short_s7", "evaluate pgd_short_s7"]
    record = clone.root / "results" / "adarat" / "cifar10" / "pgd_short_s7" / "run.json"
    assert json.loads(record.read_text())["data"]["name"] == odd
    clone.make("DATA=npz:elsewhere/c.npz", "METHODS=PGD", "SEEDS=7")     # where data lie is no part of the spec
    assert clone.log == []


@pytest.mark.slow
def test_jobs_in_parallel_keep_the_order_of_needs(clone):
    text = clone.make("-j4", "SEEDS=1 2", NAP="0.3")
    assert sorted(clone.log) == sorted(ALL | {entry.replace("_s1", "_s2") for entry in ALL})
    for seed in "12":
        assert clone.log.index(f"train st_short_s{seed}") < clone.log.index(f"train kd_short_s{seed}")
    assert text.index("100.00 ± 0.00") > 0
    clone.make("-j4", "SEEDS=1 2")
    assert clone.log == []


@pytest.mark.slow
def test_a_training_that_fails_stops_make_and_loses_nothing(clone):
    clone.make(fails=True, FAIL="PGD")
    assert "train pgd_short_s1" in clone.log and not any("evaluate pgd" in entry for entry in clone.log)
    assert clone.record("pgd").exists()                           # written before it failed, and not removed by make
    clone.make()
    assert "train pgd_short_s1" not in clone.log and "evaluate pgd_short_s1" in clone.log


@pytest.mark.slow
def test_an_interrupt_does_not_make_make_remove_a_whole_record(clone):
    started = clone.start("METHODS=PGD", LINGER="60")
    until = time.monotonic() + 60
    while not clone.record("pgd").exists() and time.monotonic() < until:
        time.sleep(0.05)
    os.killpg(started.pid, signal.SIGINT)
    text = started.communicate(timeout=60)[0]
    assert started.returncode != 0 and clone.record("pgd").exists(), text
    clone.make("METHODS=PGD")
    assert clone.log == ["evaluate pgd_short_s1"]


@pytest.mark.parametrize(("words", "said"), [
    (("BUDGET=huge",), "BUDGET=huge is none of quick, smoke, short, board, gpu, full"),
    (("SEEDS=one",), "SEEDS=one must be different whole numbers"), (("SEEDS=1,1",), "different whole numbers"),
    (("EXTRA=a b.npz",), "EXTRA=a b.npz: adarat trains on no additional data; leave EXTRA out")])
def test_wrong_variables_are_one_clear_line(clone, words, said):
    text = clone.make(*words, fails=True)
    assert said in text and "Traceback" not in text and clone.log == []
    assert not (clone.root / "build").exists()


# -- parts -----------------------------------------------------------------------------------------------------------

def run(name: str, **changes) -> Run:
    return Run(**{"name": name, "method": "m", "variant": "plain", "budget": "short", "seed": 1,
                  "script": "p/train.py", "cost": COST} | changes)


@pytest.mark.parametrize("runs", [
    [run("a"), run("a")], [run("a", needs=("b",)), run("b")], [run("a b")], [run("a/b")], [run("a", budget="tiny")],
    [run("a", script="../x.py")], [run("a", plans=(Judgement(plan="p", cost=COST),) * 2)]])
def test_runs_that_make_no_sense_are_refused(runs):
    with pytest.raises(ValueError):
        check(runs)


def test_a_spec_hashes_what_decides_numbers_and_not_where_things_are():
    def hashes(**changes):
        usual = {"needs": ("t",), "plans": (Judgement(plan="p", cost=COST),)}
        return spec_hashes([run("t"), run("a", **usual | changes)])

    trains, evals = hashes()
    assert hashes(place=("--data", "npz:/x"), cost=Cost(images=1, passes=1, gflop=1)) == (trains, evals)
    for change in ({"argv": ("--lr", "1")}, {"script": "p/other.py"}, {"seed": 2}, {"needs": ()}):
        changed, judged = hashes(**change)
        assert changed["a"] != trains["a"] and changed["t"] == trains["t"] and judged != evals
    for plan in (Judgement(plan="p", cost=COST, argv=("--n", "1")), Judgement(plan="p", cost=COST, checkpoint="best")):
        changed, judged = hashes(plans=(plan,))
        assert changed == trains and judged != evals


def test_an_evaluation_is_told_which_weights_to_judge(tmp_path):
    folders = Folders("p", "d")
    for checkpoint, words in (("last", "--plan q --spec"), ("best", "--plan q --checkpoint best --spec")):
        judged = run("a", plans=(Judgement(plan="q", cost=COST, checkpoint=checkpoint),))
        steps = plan_steps([judged], folders, tmp_path)
        assert f"scripts.evaluate results/p/d/a {words}" in make_rules.rules(steps, folders, "short")


def test_the_budget_is_short_without_cuda_and_never_full_unasked():
    assert make_rules.choose_budget("", True)[0] == "gpu" and make_rules.choose_budget("", False)[0] == "short"
    assert make_rules.choose_budget("full", False) == ("full", "as asked")
    with pytest.raises(UserError, match="BUDGET=big"):
        make_rules.choose_budget("big", True)


def test_cuda_is_asked_of_the_driver(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU 0: a card'\n")
    tool.chmod(0o755)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert make_rules.has_cuda()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not make_rules.has_cuda()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert not make_rules.has_cuda()


def test_the_estimate_uses_what_this_machine_measured(tmp_path):
    folders = Folders("adarat", "cifar10")
    steps = plan_steps([run("a")], folders, tmp_path)
    assumed, basis = make_rules.measured_rate(steps, folders, tmp_path, cuda=False)
    assert "assumed" in basis and assumed > 0
    record = tmp_path / folders.record("a")
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps({"seconds": 50.0, "environment": environment("cpu", "fp32")}))
    assert make_rules.measured_rate(steps, folders, tmp_path, cuda=False) == (200.0, "measured on 1 earlier run here")
    assert "assumed" in make_rules.measured_rate(steps, folders, tmp_path, cuda=True)[1]
    assert "about 50 s" in make_rules.describe(steps, folders, "heading", 200.0, basis)


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "1 s"), (59, "59 s"), (90, "1.5 min"), (5400, "1.5 h"),
                                               (172800, "2.0 d")])
def test_durations_in_words(seconds, text):
    assert make_rules.duration(seconds) == text


def test_lists_that_users_type():
    assert numbers("1,2 3", "SEEDS") == (1, 2, 3) and numbers("", "SEEDS") is None
    assert split("PGD-AT, TRADES") == ("PGD-AT", "TRADES") and split(None) is None


def test_a_line_break_in_a_path_is_refused():
    with pytest.raises(UserError, match="line break"):
        make_rules.for_make(["a\nb"])


def test_additional_data_reach_a_paper_that_takes_them(monkeypatch, tmp_path):
    (tmp_path / "a.npz").touch()
    monkeypatch.chdir(tmp_path)

    def planned(*, dataset, budget, seeds, methods, data, data_dir, device, extra="usual"):
        return [dataset, budget, extra]

    monkeypatch.setitem(sys.modules, "taker.runs", type(sys)("taker.runs"))
    monkeypatch.setattr(sys.modules["taker.runs"], "runs", planned, raising=False)
    for words, wanted in (([], "usual"), (["--extra", "a.npz"], "a.npz")):
        args = make_rules.arguments().parse_args(["taker", "cifar10", *words])
        assert make_rules.runs_of(args, "short") == ["cifar10", "short", wanted]
    args = make_rules.arguments().parse_args(["taker", "cifar10", "--extra", "a.npz,b.npz"])
    with pytest.raises(UserError, match=r"EXTRA=a\.npz,b\.npz: there is no file 'b\.npz'"):
        make_rules.runs_of(args, "short")


def test_plan_only_writes_nothing_and_quiet_says_nothing(clone, monkeypatch, capsys):
    monkeypatch.chdir(clone.root)
    command = (sys.executable, "-m", "scripts.make_rules", "adarat", "cifar10", "--budget", "short")
    plan = subprocess.run((*command, "--plan-only"), capture_output=True, text=True, check=True)
    assert "train st_short_s1" in plan.stdout and not Path("build").exists()
    quiet = subprocess.run((*command, "--quiet"), capture_output=True, text=True, check=True)
    assert quiet.stdout == "" and Path("build/rules-adarat-cifar10.mk").exists()
    wrong = subprocess.run((*command[:3], "nobody", "cifar10"), capture_output=True, text=True)
    assert wrong.returncode == 2 and wrong.stderr == "error: no paper 'nobody' here: there are adarat [E-PAPER]\n"
