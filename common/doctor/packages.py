"""Python, .venv, installed packages against requirements.lock, and the programs that the Makefile calls."""

import platform
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from common.doctor.findings import NOTE, OK, PROBLEM, Finding, in_venv, python, some
from common.environment import ROOT

AREA = "packages"
FIRST, LAST = (3, 11), (3, 13)
MAKE = "rm -f .venv/.ready-* && make setup"
PIP = "python -m pip install -r requirements.lock"
CUDA = ("nvidia-", "cuda-", "triton")          # needed by the build of torch with CUDA only
TESTS = ("pytest", "hypothesis", "ruff")


def installed(package: str) -> str | None:
    """The version of an installed package, not imported; None if it is not there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def check_python(root: Path = ROOT, prefix: str = sys.prefix, release: tuple[int, ...] = sys.version_info[:3],
                 have: Callable[[str], str | None] = installed) -> list[Finding]:
    """Whether this Python is one that the tests run on, and the one that make uses."""
    name = ".".join(map(str, release))
    if not FIRST <= release[:2] <= LAST:
        return [Finding(PROBLEM, "Python", "version", f"this is Python {name}; 3.11, 3.12 and 3.13 are supported",
                        "make setup PYTHON3=python3.12")]
    if in_venv(prefix, root):
        return [Finding(OK, "Python", "version", f"{name}, in .venv")]
    if (root / ".venv" / "bin" / "python").exists():
        return [Finding(NOTE, "Python", "venv", f"this is Python {name}, not the one in .venv, which make uses: what "
                        "is said of packages holds for this one", ".venv/bin/python -m scripts.doctor")]
    if (root / ".venv").exists():
        return [Finding(PROBLEM, "Python", "venv", ".venv is there, but the Python that it was made with is gone",
                        MAKE)]
    if have("torch") is None:
        return [Finding(PROBLEM, "Python", "venv", "there is no .venv yet, and this Python has no torch", "make setup")]
    return [Finding(OK, "Python", "version", f"{name}; no .venv, so call make with PYTHON=python3 SETUP=0")]


def locked(lock: Path, system: str = sys.platform, release: tuple[int, ...] = sys.version_info[:3]) -> dict[str, str]:
    """Package -> version, of the lines of requirements.lock that hold for this system and Python."""
    found = {}
    for line in lock.read_text(encoding="utf-8").splitlines():
        need, _, marker = line.partition(";")
        name, equals, wanted = need.strip().partition("==")
        if equals and all(_holds(part, system, release) for part in marker.split(" and ") if part.strip()):
            found[name] = wanted
    return found


def _holds(marker: str, system: str, release: tuple[int, ...]) -> bool:
    parts = re.fullmatch(r"\s*(sys_platform|python_full_version)\s*(==|!=|<|<=|>|>=)\s*'([^']*)'\s*", marker)
    if parts is None:
        return True
    name, sign, value = parts.groups()
    here, there = (system, value) if name == "sys_platform" else (release, numbers(value))
    return {"==": here == there, "!=": here != there, "<": here < there, "<=": here <= there, ">": here > there,
            ">=": here >= there}[sign]


def numbers(text: str) -> tuple[int, ...]:
    """A version as numbers, without what a build adds: (2, 11, 0) of 2.11.0+cu130."""
    return tuple(map(int, re.findall(r"\d+", text.partition("+")[0])))


def oldest(project: Path) -> dict[str, str]:
    """Package -> the oldest version that pyproject.toml takes."""
    with open(project, "rb") as stream:
        needs = tomllib.load(stream)["project"]["dependencies"]
    return {name: least for name, _, least in (need.partition(">=") for need in needs)}


def check_packages(root: Path = ROOT, have: Callable[[str], str | None] = installed,
                   venv: bool | None = None) -> list[Finding]:
    """Installed versions against requirements.lock and pyproject.toml; have: package -> version, None if missing."""
    mend = MAKE if (in_venv(root=root) if venv is None else venv) else PIP
    wanted, least = locked(root / "requirements.lock"), oldest(root / "pyproject.toml")
    here = {name: have(name) for name in {**wanted, **least}}
    plain_torch = here.get("torch") is not None and "+cpu" in (here["torch"] or "")
    gone = [name for name, there in here.items()
            if there is None and not (name.startswith(CUDA) and (plain_torch or here["torch"] is None))]
    found = list(_missing([name for name in gone if name in least], mend, have))
    if others := [name for name in gone if name not in least]:
        why = " (make test and make lint need them)" if set(others) <= set(TESTS) else ""
        found.append(Finding(NOTE, AREA, "missing-other", f"requirements.lock also names {some(sorted(others))}, not "
                             f"installed{why}", mend))
    old = [f"{name} {here[name]} (at least {need})" for name, need in least.items()
           if here[name] and numbers(here[name]) < numbers(need)]
    if old:
        found.append(Finding(PROBLEM, AREA, "old", f"too old: {some(old)}", mend))
    other = [f"{name} {here[name]} (locked: {need})" for name, need in sorted(wanted.items())
             if here[name] and numbers(here[name]) != numbers(need)]
    if other:
        found.append(Finding(NOTE, AREA, "other-version", "other versions than in requirements.lock, which the tests "
                             f"run on: {some(other)}", mend))
    if not found:
        found.append(Finding(OK, AREA, "lock", f"all {len(wanted)} of requirements.lock, torch {here['torch']}"))
    return found


def _missing(gone: list[str], mend: str, have: Callable[[str], str | None]) -> Iterator[Finding]:
    if not gone:
        return
    hint = ""
    if "pyautoattack" in gone and have("autoattack"):
        hint = " (the package autoattack is there, but it is another one: pyautoattack is needed)"
    yield Finding(PROBLEM, AREA, "missing", f"not installed: {some(gone, 8)}{hint}", mend)


def check_tools(find: Callable[[str], str | None] = shutil.which) -> list[Finding]:
    """git, make, and a browser."""
    found, there = [], []
    if find("git") is None:
        found.append(Finding(NOTE, "programs", "git", "git is missing: records cannot say which commit made them",
                             _install("git")))
    else:
        there.append("git")
    maker = find("make")
    said = _first_line(maker, "--version") if maker else ""
    if maker is None:
        found.append(Finding(NOTE, "programs", "make", "make is missing: the commands of the READMEs work without it, "
                             "`make ...` does not", _install("make")))
    elif "GNU Make" not in said or numbers(said) < (3, 81):
        found.append(Finding(NOTE, "programs", "make", f"make is {said or 'unknown'}: the Makefile is written for GNU "
                             "Make 3.81 or later", _install("make")))
    else:
        there.append(said)
    browser = next(filter(find, ("chromium", "chromium-browser", "google-chrome")), None)
    there.append(browser or "no Chromium (optional)")
    return [*found, Finding(OK, "programs", "there", ", ".join(there))]


def _install(package: str) -> str:
    return f"brew install {package}" if platform.system() == "Darwin" else f"sudo apt-get install {package}"


def _first_line(*command: str) -> str:
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
    return said.splitlines()[0].strip() if said else ""


def repair() -> str:
    """What installs the locked packages anew into this Python."""
    return MAKE if python() != "python" else PIP
