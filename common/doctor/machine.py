"""Processor and memory: what this process may use of them, and what else does."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from common.doctor.findings import NOTE, OK, PROBLEM, Finding, number, size, text_of
from common.environment import processor, processors

CPU, MEMORY = "CPU", "memory"
LEAST, USUAL = 1 << 30, 4 << 30          # bytes of memory: below the first hardly anything runs


def check_cpu(said: Mapping[str, Any], root: Path = Path("/"), environ: Mapping[str, str] = os.environ,
              cores: int | None = None, load: float | None = None) -> list[Finding]:
    """Cores, the share of them that a container grants, threads, load.  said: what torch said (bf16), may be empty."""
    cores = cores or processors()
    found = []
    quota = cpu_quota(root)
    if quota is not None and quota < cores:
        threads = max(1, int(quota))
        found.append(Finding(NOTE, CPU, "quota", f"{cores} cores are seen, but this container may use {quota:g} of "
                             "them: more threads than that slow each other", f"export OMP_NUM_THREADS={threads}"))
    given = environ.get("OMP_NUM_THREADS")
    if given is not None and not (given.isdigit() and int(given) >= 1):
        found.append(Finding(PROBLEM, CPU, "threads", f"OMP_NUM_THREADS is {given!r}, no whole number from 1 on",
                             "unset OMP_NUM_THREADS"))
    elif given is not None and int(given) > cores:
        found.append(Finding(NOTE, CPU, "threads", f"OMP_NUM_THREADS={given}, but this process may use "
                             f"{number(cores, 'core')}: threads wait for one another", "unset OMP_NUM_THREADS"))
    busy = os.getloadavg()[0] if load is None and hasattr(os, "getloadavg") else load or 0.0
    if busy > cores + 0.5:
        found.append(Finding(NOTE, CPU, "load", f"other programs keep {busy:.1f} threads busy on "
                             f"{number(cores, 'core')}: times measured now will be too long", "top"))
    fast = "" if "cpu_bf16" not in said else ", fast bf16" if said["cpu_bf16"] else ", no fast bf16 (float32 is used)"
    found.append(Finding(OK, CPU, "cores", f"{processor()}, {number(cores, 'core')}{fast}"))
    return found


def check_memory(root: Path = Path("/")) -> list[Finding]:
    """Memory that is free, and what a container grants."""
    whole = available(root)
    limit = memory_limit(root)
    free = min((one for one in (whole, limit) if one is not None), default=None)
    if free is None:
        return [Finding(OK, MEMORY, "unknown", "this system does not say how much is free")]
    what = f"{size(free)} free" + (" within this container's limit" if limit is not None and free == limit else "")
    if free < USUAL:
        return [Finding(PROBLEM if free < LEAST else NOTE, MEMORY, "little", f"only {what}: training may be killed "
                        "without a message; close other programs, or train with a smaller --batch_size", "free -h")]
    return [Finding(OK, MEMORY, "free", what)]


def available(root: Path) -> int | None:
    """Bytes that programs can still have, as Linux says; None elsewhere."""
    for line in text_of(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return None


def cpu_quota(root: Path) -> float | None:
    """Cores that the control group grants (version 2, then 1), None for no limit."""
    quotas = []
    for folder in _groups(root, "cpu"):
        words = text_of(folder / "cpu.max").split()
        if len(words) == 2 and words[0].isdigit():
            quotas.append(int(words[0]) / int(words[1]))
        share, period = text_of(folder / "cpu.cfs_quota_us").strip(), text_of(folder / "cpu.cfs_period_us").strip()
        if share.isdigit() and period.isdigit():
            quotas.append(int(share) / int(period))
    return min(quotas, default=None)


def memory_limit(root: Path) -> int | None:
    """Bytes that the control group still grants, None for no limit."""
    left = []
    for folder in _groups(root, "memory"):
        for most, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            limit, now = text_of(folder / most).strip(), text_of(folder / used).strip()
            if limit.isdigit() and now.isdigit() and int(limit) < 1 << 60:
                # Files that were read stay in memory for as long as nobody else wants it, and count as used.
                left.append(max(0, int(limit) - int(now) + _idle_files(folder)))
    return min(left, default=None)


def _idle_files(folder: Path) -> int:
    counts = dict(line.split() for line in text_of(folder / "memory.stat").splitlines() if len(line.split()) == 2)
    return int(counts.get("total_inactive_file", counts.get("inactive_file", 0)))


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's control group and of those above it."""
    for line in text_of(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if names and controller not in names.split(","):
            continue
        base = root / "sys/fs/cgroup" / (controller if names else "")
        inner = base / path.strip("/")
        yield from (folder for folder in (inner, *inner.parents) if folder == base or base in folder.parents)
