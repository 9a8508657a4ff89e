"""Where and with what a record was made: commit, versions, processor; and commands without this machine's paths."""

import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from common.launch import place

ROOT = Path(__file__).resolve().parents[1]
_BEGUN: dict[Path, tuple[str | None, bool | None, str]] = {}
PACKAGES = ("torch", "torchvision", "numpy", "pyautoattack")
# A path that starts a word or stands behind '=', ':' or ',' (npz:/a/b.npz, --data=/a/b): at least two parts, so that
# a fraction such as 8/255 and the root itself are left alone.
_ABSOLUTE = re.compile(r"(?<![^\s=:,'\"])(?:/[^/\s:,'\"]+){2,}/?")


def environment(device: str, precision: str, threads: int | None = None, root: Path = ROOT) -> dict[str, Any]:
    """The `environment` of a record.

    device: in words, such as "cpu" or the GPU's name; precision: "fp32", "bf16", ...
    `ranks`: the processes that work together (torchrun, srun), 1 if this one is alone.
    threads: intra-op threads in use; OMP_NUM_THREADS, or the processors this process may use, if not given.
    `dirty` says whether code differs from the commit (changes under results/ do not count); `commit` and `dirty` are
    None where there is no git or no checkout.  Importing torch is left to the caller: versions come from metadata.
    """
    commit, dirty, started = _BEGUN.get(root) or _state(root)
    if threads is None:
        given = os.environ.get("OMP_NUM_THREADS", "")
        threads = int(given) if given.isdigit() else processors()
    return {
        "commit": commit, "dirty": dirty, "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
        "platform": platform.platform(), "processor": processor(), "device": device, "precision": precision,
        "threads": threads, "ranks": place().ranks, "started": started,
    }


def begin(root: Path = ROOT) -> None:
    """Take down commit and time now, for every `environment` to come: what runs for hours is this code, whatever is
    committed or changed meanwhile.  Later calls change nothing.
    """
    _BEGUN.setdefault(root, _state(root))


def _state(root: Path) -> tuple[str | None, bool | None, str]:
    return *_git_state(root), datetime.now(UTC).isoformat(timespec="seconds")


def processors() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor() -> str:
    """The processor's name as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        return platform.processor() or platform.machine()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_state(root: Path) -> tuple[str | None, bool | None]:
    """(commit, dirty) of the checkout at `root`; (None, None) without git, a checkout or a first commit."""
    def ask(*words: str) -> str | None:
        try:
            done = subprocess.run(("git", "-C", str(root), *words), capture_output=True, text=True, timeout=60)
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout if done.returncode == 0 else None

    commit = ask("rev-parse", "HEAD")
    changed = ask("status", "--porcelain", "--", ".", ":(exclude)results")
    if commit is None or changed is None:
        return None, None
    return commit.strip(), bool(changed.strip())


def portable(value: Any, root: Path = ROOT) -> Any:
    """`value` (text, or JSON of any depth) with absolute paths made relative to `root`, or cut to `.../NAME`."""
    if isinstance(value, str):
        return _ABSOLUTE.sub(lambda found: _relative(found.group(), root), value)
    if isinstance(value, dict):
        return {key: portable(inner, root) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [portable(inner, root) for inner in value]
    return value


def _relative(path: str, root: Path) -> str:
    absolute = Path(os.path.normpath(path))
    if absolute.is_relative_to(root):
        return str(absolute.relative_to(root))
    return f".../{absolute.name}"


def relative_command(argv: Sequence[str] | None = None, root: Path = ROOT, module: str | None = None) -> str:
    """The command as one would type it at the repository root; `argv` is sys.argv if not given.

    A script is named relative to `root` even if it was started in its own folder, so are arguments such as ../data;
    a module started with -m is named as such.  Paths outside the repository keep only their last part.
    """
    if argv is None:
        argv = sys.argv
        spec = getattr(sys.modules.get("__main__"), "__spec__", None)
        module = module or (spec.name.removesuffix(".__main__") if spec else None)
    script = ["-m", module] if module else [_relative(os.path.abspath(argv[0]), root)]
    arguments = []
    for word in argv[1:]:
        name, equals, value = word.rpartition("=")
        if value.startswith(("./", "../", "/")):
            value = _relative(os.path.abspath(value), root)
        arguments.append(name + equals + portable(value, root))
    return shlex.join(["python", *script, *arguments])
