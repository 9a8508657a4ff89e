"""The shell scripts: released hyper-parameters, from any folder, an end at the first error; and the whole chain."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from common.environment import ROOT
from common.files import read_json
from dyart import flags
from dyart.settings import Settings

SCRIPTS = ROOT / "dyart" / "scripts"
NAMES = ("Cifar10_clean_training", "Cifar10_DyART", "Cifar10_DyART_additional_data", "Cifar10_baselines",
         "TinyImgNet_clean_training", "TinyImgNet_DyART", "TinyImgNet_baselines", "resume", "eval")
# Stands for Python: a call is a line of its arguments between unit separators; fails where they hold $FAIL.
FAKE = """#!/usr/bin/env bash
{ printf '%s\\x1f' "$@"; echo; } >> "$CALLS"
case " $* " in *" ${FAIL:-nothing} "*) exit 3 ;; esac
"""


@pytest.fixture
def fake(tmp_path):
    """Calls a script with a stand-in for Python: (script, *words, cwd, env) -> (process, the calls' arguments)."""
    python = tmp_path / "a python"
    python.write_text(FAKE)
    python.chmod(0o755)

    def call(script, *words, cwd=tmp_path, **env):
        calls = tmp_path / "calls"
        calls.unlink(missing_ok=True)
        path = os.path.relpath(SCRIPTS / f"{script}.sh", cwd)
        done = subprocess.run(["bash", path, *words], cwd=cwd, capture_output=True, text=True,
                              env=clean_environment() | {"PYTHON": str(python), "CALLS": str(calls)} | env)
        lines = calls.read_text().splitlines() if calls.exists() else []
        return done, [line.split("\x1f")[:-1] for line in lines]
    return call


def clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in ("PYTHON", "NORM", "METHODS")}


def settings(call: list[str]) -> tuple[Settings, object]:
    """What dyart/train.py makes of a call."""
    assert call[0] == str(ROOT / "dyart" / "train.py")
    args = flags.parser().parse_args(call[1:])
    return flags.settings_of(args), args


def trained(fake, script, *words, **env):
    done, calls = fake(script, *words, **env)
    assert done.returncode == 0, done.stderr
    return [settings(call) for call in calls]


def test_every_script_is_there():
    assert {path.name for path in SCRIPTS.iterdir()} == {f"{name}.sh" for name in (*NAMES, "common")}
    assert all(os.access(SCRIPTS / f"{name}.sh", os.X_OK) for name in NAMES)


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize(("script", "data", "model", "epochs", "used"), [
    ("Cifar10_clean_training", "cifar10", "wrn-28-10-swish", 22, 10),
    ("TinyImgNet_clean_training", "tiny-imagenet", "preactresnet18", 42, 20)])
def test_burn_in(fake, norm, script, data, model, epochs, used):
    (found, args), = trained(fake, script, NORM=norm)
    assert found.method == "clean" and found.GroupNorm == (norm == "group")
    assert (found.data, found.model, found.epochs, found.lr, found.scheduler, found.batch_size, found.clip_grad) == (
        data, model, epochs, 0.1, "step", 256, None)
    assert found.snapshots == (used,) and found.last_epoch == used + 1 and args.pretrained is None


TABLE = {     # epochs, lr, schedule, batch, 255*r0, alpha, lam, clip
    ("Cifar10_DyART", "batch"): (200, 0.1, "cosinew", 256, 16, 3, 1000, 0.1),
    ("Cifar10_DyART", "group"): (100, 0.1, "step", 256, 16, 8, 400, None),
    ("Cifar10_DyART_additional_data", "batch"): (800, 0.1, "cosinew", 512, 16, 3, 800, 0.1),
    ("TinyImgNet_DyART", "batch"): (100, 0.1, "cosinew", 256, 32, 5, 500, 1),
    ("TinyImgNet_DyART", "group"): (100, 0.05, "cosinew", 256, 20, 3, 500, None)}


@pytest.mark.parametrize(("script", "norm"), TABLE)
def test_dyart(fake, script, norm):
    (found, args), = trained(fake, script, NORM=norm)
    epochs, lr, scheduler, batch, r0, alpha, lam, clip = TABLE[script, norm]
    assert found.method == "DyART" and found.GroupNorm == (norm == "group") and args.pretrained == "auto"
    assert (found.epochs, found.lr, found.scheduler, found.batch_size, found.clip_grad) == (epochs, lr, scheduler,
                                                                                            batch, clip)
    assert (found.h_prime_r0, found.h_prime_alpha, found.lam_robust) == (r0 / 255, alpha, lam)
    assert (found.temperature, found.iter_FAB, found.batch_size_validation, found.tau) == (5, 20, 1024, 0.995)
    cifar = script.startswith("Cifar10")
    assert (found.data, found.model) == (("cifar10", "wrn-28-10-swish") if cifar else
                                         ("tiny-imagenet", "preactresnet18"))
    extra = str(ROOT / "data" / "cifar10_ddpm.npz") if "additional" in script else None
    assert args.aux_data_filename == extra and found.unsup_fraction == 0.7


@pytest.mark.parametrize(("script", "epochs"), [("Cifar10_baselines", 200), ("TinyImgNet_baselines", 100)])
def test_baselines(fake, script, epochs):
    for env, methods in (({}, ["AT", "TRADES", "MART"]), ({"METHODS": "MART AT", "NORM": "group"}, ["MART", "AT"])):
        found = trained(fake, script, **env)
        assert [one.method for one, _ in found] == methods
        for one, args in found:
            assert (one.epochs, one.lr, one.scheduler, one.batch_size, one.clip_grad) == (epochs, 0.1, "cosinew", 256,
                                                                                          None)
            assert (one.attack_eps, one.attack_step, one.attack_iter) == (8 / 255, 2 / 255, 10)
            assert one.beta == (-1 if one.method == "AT" else 6) and one.GroupNorm == ("NORM" in env)
            assert args.pretrained is None


@pytest.mark.parametrize("script", NAMES[:7])
def test_extra_flags_come_last_and_whole(fake, script):
    done, calls = fake(script, "--epochs", "2", "--results", "a folder/*", "--lr=0.3")
    assert done.returncode == 0 and len(calls) == (3 if "baselines" in script else 1)
    assert all(call[-5:] == ["--epochs", "2", "--results", "a folder/*", "--lr=0.3"] for call in calls)
    assert all(settings(call)[0].epochs == 2 for call in calls)
    if "additional" not in script:
        assert not any(one.GroupNorm for one, _ in trained(fake, script, "--GroupNorm", "false", NORM="group"))


def test_resume_and_eval(fake):
    _, calls = fake("resume", "../a run", "--device", "cpu")
    assert calls == [[str(ROOT / "dyart/train.py"), "--resume", "true", "--resume_fname", "../a run", "--device",
                      "cpu"]]
    _, calls = fake("eval", "../a run", "--n", "50")
    assert calls == [[str(ROOT / "dyart/eval_aa.py"), "--norm_attack", "Linf", "--eps_eval", "2,4,8,12,16",
                      "--fname_input", "../a run", "--n", "50"]]
    for script in ("resume", "eval"):
        for words in ([], [""], ["--n", "3"]):
            done, calls = fake(script, *words)
            assert (done.returncode, calls) == (2, []) and done.stderr.count("\n") == 1
            assert f"usage: bash dyart/scripts/{script}.sh FOLDER" in done.stderr


@pytest.mark.parametrize(("script", "env", "message"), [
    ("Cifar10_DyART", {"NORM": "layer"}, "NORM=layer: give batch or group"),
    ("Cifar10_DyART_additional_data", {"NORM": "group"}, "no released group-norm variant"),
    ("Cifar10_baselines", {"METHODS": "AT PGD"}, "no baseline PGD; there are AT, TRADES, MART")])
def test_a_wrong_choice_starts_nothing(fake, script, env, message):
    done, calls = fake(script, **env)
    assert (done.returncode, calls) == (2, []) and message in done.stderr and done.stderr.count("\n") == 1


def test_the_first_error_ends_it(fake):
    done, calls = fake("Cifar10_baselines", FAIL="--mart")
    assert done.returncode == 3 and len(calls) == 3
    done, calls = fake("Cifar10_baselines", METHODS="MART AT TRADES", FAIL="--mart")
    assert done.returncode == 3 and len(calls) == 1
    assert all(fake(script, FAIL="--epochs")[0].returncode == 3 for script in NAMES[:2])


def test_they_start_from_any_folder(fake, tmp_path):
    for cwd in (ROOT, ROOT / "dyart", SCRIPTS, tmp_path):
        _, calls = fake("Cifar10_DyART", cwd=cwd)
        assert calls[0][0] == str(ROOT / "dyart" / "train.py")


def test_which_python(tmp_path):
    # PYTHON if it is set, else the repository's own, else python3; in a repository with a blank in its name.
    root, calls = tmp_path / "a repository", tmp_path / "calls"
    (root / "dyart" / "scripts").mkdir(parents=True)
    for path in SCRIPTS.iterdir():
        (root / "dyart" / "scripts" / path.name).write_bytes(path.read_bytes())
    own, system = root / ".venv" / "bin" / "python", tmp_path / "bin" / "python3"
    for path in (own, system):
        path.parent.mkdir(parents=True)
        path.write_text(f'#!/usr/bin/env bash\necho "{path.name}" "$1" >> "$CALLS"\n')
        path.chmod(0o755)
    env = clean_environment() | {"CALLS": str(calls), "PATH": f"{system.parent}{os.pathsep}{os.environ['PATH']}"}
    for _ in range(2):
        subprocess.run(["bash", "a repository/dyart/scripts/eval.sh", "x"], cwd=tmp_path, env=env, check=True)
        own.unlink(missing_ok=True)
    script = str(root / "dyart" / "eval_aa.py")
    assert calls.read_text().splitlines() == [f"python {script}", f"python3 {script}"]


SMALL = ["--data", "digits", "--model", "small", "--width", "4", "--epochs", "2", "--batch-size", "128",
         "--n_epoch_test", "32", "--n_train", "256", "--augment", "false", "--precision", "fp32", "--device", "cpu"]


@pytest.mark.slow
def test_the_chain(tmp_path):
    where = ["--results", "res", "--weights", "wei"]          # as seen from where the user stands

    def bash(script, *words, status=0):
        path = os.path.relpath(SCRIPTS / f"{script}.sh", tmp_path)
        done = subprocess.run(["bash", path, *words], cwd=tmp_path, capture_output=True, text=True, timeout=600,
                              env=clean_environment() | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1",
                                                         "METHODS": "AT"})
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    said = bash("Cifar10_DyART", *SMALL, *where, status=2)
    assert "dyart/scripts/Cifar10_clean_training.sh" in said and said.strip().count("\n") == 0
    assert not (tmp_path / "res").exists()
    bash("Cifar10_clean_training", *SMALL, *where, "--save_intermediate_models", "1")
    bash("Cifar10_DyART", *SMALL, *where)
    bash("Cifar10_baselines", *SMALL, *where)
    runs = {path.name: path for path in (tmp_path / "res" / "dyart" / "digits").iterdir()}
    assert set(runs) == {"clean_custom_s1", "dyart_custom_s1", "at_custom_s1"}
    assert list(read_json(runs["dyart_custom_s1"] / "run.json")["needs"]) == ["clean_custom_s1"]
    folder = os.path.relpath(runs["dyart_custom_s1"], tmp_path)
    assert "trained to its end, there is nothing to resume" in bash("resume", folder, status=2)
    said = bash("eval", folder, "--n", "4", "--eps_eval", "8,100", *where[2:])
    record = read_json(Path(runs["dyart_custom_s1"]) / "eval-aa-linf-8_100-4.json")
    assert record["checkpoint"] == "best" and [one["n"] for one in record["results"]] == [4, 4]
    assert all(f"AutoAttack Linf eps={eps}" in said for eps in (8, 100))
