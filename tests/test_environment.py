"""The ways to set up agree, and the Makefile does what it says."""

import os
import re
import shutil
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from common.environment import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = (ROOT / "requirements.lock").read_text()
CONDA = (ROOT / "environment.yml").read_text()
PYTHONS = ("3.11", "3.12", "3.13")
SYSTEMS = {"linux": "Linux", "darwin": "Darwin", "win32": "Windows"}


def wanted() -> list[Requirement]:
    return [Requirement(line) for line in (*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"])]


def locked(python: str, system: str) -> dict[str, str]:
    """Name -> version that the lock gives a machine; two versions of one package fail."""
    machine = {"python_version": python, "python_full_version": f"{python}.9", "sys_platform": system,
               "platform_system": SYSTEMS[system]}
    found: dict[str, str] = {}
    for line in LOCK.splitlines():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate(machine):
            pin, = requirement.specifier
            assert canonicalize_name(requirement.name) not in found, f"{requirement.name} is locked twice"
            assert pin.operator == "=="
            found[canonicalize_name(requirement.name)] = pin.version
    return found


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("python", PYTHONS)
def test_every_requirement_is_locked_at_a_version_that_its_bound_admits(python, system):
    versions = locked(python, system)
    for requirement in wanted():
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), requirement.name


def test_the_oldest_versions_that_are_tested_are_the_lower_bounds():
    oldest = (ROOT / "requirements-oldest.txt").read_text().splitlines()[1:]
    assert oldest == [str(one).replace(">=", "==") for one in wanted()]
    assert all(str(one).count(">=") == 1 and "," not in str(one) for one in wanted())


@pytest.mark.parametrize("module", ["common.planted", "rpat.deeper.planted", "scripts", "tests.planted"])
@pytest.mark.parametrize("kind", [DeprecationWarning, UserWarning, FutureWarning, PendingDeprecationWarning])
def test_a_warning_of_our_own_is_an_error_here(module, kind):
    """Planted in a module of that name, under the filters that these tests run with."""
    with pytest.raises(kind, match="planted"):
        plant(module, kind)


@pytest.mark.parametrize("module", ["torch.planted", "commonplace", "notcommon.rpat"])
def test_a_warning_of_a_library_is_none(module):
    plant(module, DeprecationWarning)


def plant(module: str, kind: type[Warning]) -> None:
    exec(f"import warnings\nwarnings.warn('planted', {kind.__name__})", {"__name__": module})


def test_the_lock_has_exact_versions_and_no_hosts():
    for line in LOCK.splitlines():
        assert re.fullmatch(r"[a-z0-9][a-z0-9._-]*==[0-9][0-9a-z.]*( ; [a-z_]+ [<>=]+ '[a-z0-9.]+')?", line), line
    assert len(set(LOCK.splitlines())) == len(LOCK.splitlines()) > 30


@pytest.mark.parametrize("text", [LOCK, CONDA, (ROOT / "pyproject.toml").read_text(), (ROOT / "Makefile").read_text(),
                                  (ROOT / ".ci" / "run").read_text()])
def test_no_file_of_the_setup_names_a_host(text):
    assert "://" not in text and not re.search(r"\b[a-z0-9-]+\.(org|com|io|net|dev)\b", text)
    assert not re.search(r"--(extra-)?index-url|--find-links", text)


def test_torch_is_not_the_version_that_breaks():
    assert all(locked(python, system)["torch"] != "2.13.0" for python in PYTHONS for system in SYSTEMS)


def test_conda_uses_the_lock_and_a_python_of_the_project():
    python, = re.findall(r"^  - python=([0-9.]+)$", CONDA, re.MULTILINE)
    assert SpecifierSet(PROJECT["requires-python"]).contains(f"{python}.0")
    assert re.search(r"^  - pip:\n      - -r requirements\.lock$", CONDA, re.MULTILINE)
    assert re.findall(r"^name: (.+)$", CONDA, re.MULTILINE) == [PROJECT["name"]]


def test_every_supported_python_is_tried_by_the_makefile():
    text = (ROOT / "Makefile").read_text()
    for minor in range(0, 30):
        supported = SpecifierSet(PROJECT["requires-python"]).contains(f"3.{minor}.0")
        assert (f"python3.{minor} " in text) == supported


# -- Makefile --------------------------------------------------------------------------------------------------------

def make(folder, *words, check=True, **variables):
    # make hands on what was typed to it: these tests may run under `make SETUP=0 PYTHON=python3 test`.
    typed = {"PYTHON", "PYTHON3", "SETUP", "LAUNCH", "JOBS", "BUDGET", "SEEDS", "METHODS", "DATA", "DATA_DIR", "DEVICE"}
    given = {key: value for key, value in os.environ.items()
             if key not in typed and not key.startswith(("MAKE", "MFLAGS", "OMP_", "PIP_", "UV_"))}
    done = subprocess.run(("make", *words), cwd=folder, capture_output=True, text=True, env=given | variables,
                          timeout=60)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def phony() -> list[str]:
    text = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    return [word for line in re.findall(r"^\.PHONY:(.*)$", text, re.MULTILINE) for word in line.split()]


def test_help_lists_every_target_with_a_line():
    listed = dict(re.findall(r"^  ([a-z0-9-]+) {2,}(\S.*)$", make(ROOT, "help").stdout, re.MULTILINE))
    assert set(phony()) == set(listed) and len(phony()) >= 12
    assert make(ROOT).stdout == make(ROOT, "help").stdout


@pytest.fixture
def project(tmp_path):
    """The Makefile and a lock, with pythons that write down how they are called instead of working."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "requirements.lock").write_text("x==1\n")
    fake = tmp_path / "python-fake"
    fake.write_text(f"""#!/bin/sh
case "$1 $2" in
  "-c "*) exec {sys.executable} "$@" ;;
  "-m venv") mkdir -p .venv/bin; cp "$0" .venv/bin/python ;;
  "-m pip") if [ "$3" = config ]; then exit 1; fi ;;
esac
echo "$OMP_NUM_THREADS $OMP_WAIT_POLICY $*" >> "{tmp_path}/log"
if [ -n "$BREAK" ]; then case "$*" in *"$BREAK"*) exit 1 ;; esac; fi
""")
    fake.chmod(0o755)
    return tmp_path


def log(project) -> list[str]:
    path = project / "log"
    lines = [line.strip() for line in path.read_text().splitlines()] if path.exists() else []
    path.unlink(missing_ok=True)
    return lines


def test_setup_installs_once_and_again_when_the_lock_changes(project):
    make(project, "setup", "PYTHON3=./python-fake")
    lines = log(project)
    assert lines[0] == "-m venv --clear .venv" and lines[1].endswith("uv")
    assert lines[2] == ("-m uv pip install --quiet --compile-bytecode --python .venv/bin/python "
                        "-r requirements.lock") and len(lines) == 3
    make(project, "setup", "PYTHON3=./python-fake")
    assert log(project) == []
    (project / "requirements.lock").write_text("x==2\n")
    make(project, "setup")
    assert len(lines := log(project)) == 2 and "venv" not in lines[0]
    assert len(list((project / ".venv").glob(".ready-*"))) == 1


@pytest.mark.parametrize("broken", ["--quiet --disable-pip-version-check uv", "-m uv"])
def test_setup_falls_back_to_plain_pip(project, broken):
    make(project, "setup", "PYTHON3=./python-fake", BREAK=broken)
    assert log(project)[-1] == "-m pip install --quiet --disable-pip-version-check -r requirements.lock"


def test_a_setup_that_fails_says_so_and_is_not_taken_for_done(project):
    done = make(project, "setup", "PYTHON3=./python-fake", check=False, BREAK="requirements.lock")
    assert done.returncode == 2 and "error: requirements.lock could not be installed" in done.stderr
    assert not list((project / ".venv").glob(".ready-*"))


def test_no_python_is_one_clear_line(project):
    done = make(project, "setup", "PYTHON3=./none", check=False)
    assert done.returncode == 2 and "error: no Python 3.11, 3.12 or 3.13 found" in done.stderr
    assert not (project / ".venv").exists()


def test_setup_0_installs_nothing_and_tests_run_on_one_thread(project):
    make(project, "test", "PYTHON=./python-fake", "SETUP=0")
    assert log(project) == ["1 PASSIVE -m ruff check .", "1 PASSIVE -m pytest -m not slow"]
    make(project, "test-all", "PYTHON=./python-fake", "SETUP=0")
    assert log(project)[1:] == ["1 PASSIVE -m pytest -m not slow", "1 PASSIVE -m pytest -m slow"]
    (project / "build").mkdir()
    (project / "build" / "rules-adarat-digits.mk").write_text("all:\n\t$(PYTHON) train\n")
    make(project, "quick", "PYTHON=./python-fake", "SETUP=0")
    planned, trained = log(project)
    assert planned.startswith("1 PASSIVE -m scripts.make_rules adarat digits --budget quick")
    assert trained == "1 PASSIVE train"
    assert not (project / ".venv").exists()


def test_reproductions_use_every_thread(project):
    (project / "build").mkdir()
    (project / "build" / "rules-adarat-cifar10.mk").write_text("all:\n\t$(PYTHON) train\n")
    make(project, "reproduce-adarat-cifar10", "PYTHON=./python-fake", "SETUP=0", "SEEDS=1 2")
    planned, trained = log(project)
    assert planned == ("-m scripts.make_rules adarat cifar10 --budget  --seeds 1 2 --methods  --data  --data-dir  "
                       "--device  --extra")
    assert trained == "train"


def test_datasets_names_what_a_target_goes_through(project):
    (project / "build").mkdir()
    for name in ("cifar10-sotas", "cifar100-l2-sotas", "cifar10-l2"):
        (project / "build" / f"rules-rpat-{name}.mk").write_text(f"all:\n\t$(PYTHON) train {name}\n")
    words = ("PYTHON=./python-fake", "SETUP=0", "BUDGET=smoke")
    for target, datasets, names in (("sotas", "cifar10 cifar100-l2", ["cifar10-sotas", "cifar100-l2-sotas"]),
                                    ("l2", None, ["cifar10-l2"])):
        make(project, f"reproduce-rpat-{target}", *words, *([f"DATASETS={datasets}"] if datasets else []))
        lines = log(project)
        assert [line.split(" --budget smoke")[0] for line in lines[::2]] == [
            f"-m scripts.make_rules rpat {name}" for name in names]
        assert lines[1::2] == [f"train {name}" for name in names]
    # A data set that fails is not passed over.
    (project / "build" / "rules-rpat-cifar10-sotas.mk").write_text("all:\n\tfalse\n")
    done = make(project, "reproduce-rpat-sotas", *words, "DATASETS=cifar10 cifar100-l2", check=False)
    assert done.returncode == 2 and not any("cifar100" in line for line in log(project))


def test_ci_runs_the_fast_and_the_slow_tests():
    text = (ROOT / ".ci" / "run").read_text()
    assert os.access(ROOT / ".ci" / "run", os.X_OK) and "set -euo pipefail" in text
    code = re.sub(r"^#.*$", "", text, flags=re.MULTILINE)
    assert re.findall(r"\bmake ([a-z-]+)", code) == ["setup", "test", "test-slow"]
    listing = re.search(r"^mapfile -t slow < <\((.*)\)$", text, re.MULTILINE)[1]
    named = subprocess.run(["bash", "-c", listing], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert sorted(named) == sorted({path.relative_to(ROOT).parts[0] for path in ROOT.glob("*/**/test_*.py")
                                    if ".venv" not in path.parts and "mark.slow" in path.read_text()})
    assert "|| status=1" in text and text.rstrip().endswith('exit "$status"')
