"""make doctor: Python, packages, torch, GPU, processor, memory and disks, each fault planted."""

import errno
import os
import sys
from pathlib import Path

import pytest

from common.doctor import devices, disk, machine, packages, torch_probe
from common.doctor.findings import NOTE, OK, PROBLEM, Finding, as_text, size
from common.environment import ROOT


def only(findings, kind):
    """The finding of this kind, which must be one, and must say what to type unless all is well."""
    found = [one for one in findings if one.kind == kind]
    assert len(found) == 1, [one.kind for one in findings]
    assert found[0].level == OK or found[0].type
    return found[0]


def kinds(findings, *levels):
    return [one.kind for one in findings if one.level in (levels or (PROBLEM, NOTE))]


# -- Python and packages ---------------------------------------------------------------------------------------------

def test_pythons_that_are_too_old_and_too_new(tmp_path):
    for release in ((3, 10, 9), (3, 14, 0)):
        found = only(packages.check_python(tmp_path, release=release), "version")
        assert found.level == PROBLEM and "3.11, 3.12 and 3.13" in found.what and "make setup" in found.type


@pytest.mark.parametrize("release", [(3, 11, 0), (3, 13, 9)])
def test_where_this_python_stands(tmp_path, release):
    none = only(packages.check_python(tmp_path, release=release, have={}.get), "venv")
    assert (none.level, none.type) == (PROBLEM, "make setup")
    own = packages.check_python(tmp_path, release=release, have={"torch": "2.11.0"}.get)
    assert own[0].level == OK and "SETUP=0" in own[0].what
    (tmp_path / ".venv").mkdir()
    gone = only(packages.check_python(tmp_path, release=release), "venv")
    assert gone.level == PROBLEM and "gone" in gone.what and gone.type == packages.MAKE
    (tmp_path / ".venv" / "bin").mkdir()
    (tmp_path / ".venv" / "bin" / "python").touch()
    assert only(packages.check_python(tmp_path, release=release), "venv").level == NOTE
    inside = packages.check_python(tmp_path, prefix=str(tmp_path / ".venv"), release=release)
    assert inside[0].level == OK and ".venv" in inside[0].what


def test_lines_of_the_lock_hold_for_a_system_and_a_python(tmp_path):
    (tmp_path / "lock").write_text("a==1\nb==2 ; sys_platform == 'linux'\nnumpy==2.4.6 ; python_full_version < '3.12'\n"
                                   "numpy==2.5.5 ; python_full_version >= '3.12'\n"
                                   "c==3 ; python_full_version < '3.12' and sys_platform == 'win32'\n")
    assert packages.locked(tmp_path / "lock", "linux", (3, 11, 7)) == {"a": "1", "b": "2", "numpy": "2.4.6"}
    assert packages.locked(tmp_path / "lock", "darwin", (3, 12, 0)) == {"a": "1", "numpy": "2.5.5"}
    assert packages.locked(tmp_path / "lock", "win32", (3, 11, 0)) == {"a": "1", "numpy": "2.4.6", "c": "3"}


def whole():
    return packages.locked(ROOT / "requirements.lock")


def test_a_whole_set_of_packages_is_in_order():
    found = packages.check_packages(have={**whole(), "torch": whole()["torch"] + "+cu130"}.get)
    assert kinds(found) == [] and f"all {len(whole())}" in only(found, "lock").what


def test_packages_that_are_missing_old_or_others():
    lacking = {name: version for name, version in whole().items() if name not in ("scipy", "pytest", "idna")}
    found = packages.check_packages(have=lacking.get, venv=True)
    assert only(found, "missing").level == PROBLEM and "not installed: scipy" in only(found, "missing").what
    # The stamp of a .venv that lost packages would make `make setup` do nothing.
    assert only(found, "missing").type == "rm -f .venv/.ready-* && make setup"
    assert only(found, "missing-other").level == NOTE and "idna, pytest" in only(found, "missing-other").what
    found = packages.check_packages(have={**whole(), "torch": "2.4.1", "numpy": "9.9.9"}.get, venv=False)
    assert "torch 2.4.1 (at least 2.6)" in only(found, "old").what and only(found, "old").level == PROBLEM
    assert "numpy 9.9.9 (locked: " in only(found, "other-version").what
    assert only(found, "other-version").level == NOTE and only(found, "old").type.startswith("python -m pip install")


def test_the_other_autoattack_is_named():
    others = {name: version for name, version in whole().items() if name != "pyautoattack"} | {"autoattack": "0.1"}
    assert "pyautoattack is needed" in only(packages.check_packages(have=others.get), "missing").what


def test_a_torch_without_cuda_needs_no_packages_of_cuda():
    plain = {name: version for name, version in whole().items() if not name.startswith(packages.CUDA)}
    assert kinds(packages.check_packages(have={**plain, "torch": plain["torch"] + "+cpu"}.get)) == []
    if sys.platform == "linux":
        assert kinds(packages.check_packages(have=plain.get)) == ["missing-other"]


def test_programs_that_are_missing(tmp_path):
    assert kinds(packages.check_tools(lambda name: None)) == ["git", "make"]
    old = tmp_path / "make"
    old.write_text("#!/bin/sh\necho GNU Make 3.80\n")
    old.chmod(0o755)
    found = packages.check_tools(lambda name: str(old) if name == "make" else "/usr/bin/git")
    assert "GNU Make 3.80" in only(found, "make").what


# -- torch and GPUs --------------------------------------------------------------------------------------------------

FIT = {"torch": "2.11.0+cu130", "cuda_build": "13.0", "cuda": False, "devices": [], "mps": False, "cpu_bf16": True,
       "numpy": [0, 0], "torchvision": "0.26.0", "pyautoattack": True}
CARD = devices.Card("NVIDIA H100", "470.10", 80 << 30, 1 << 30, 0)


def test_this_torch_fits():
    said = torch_probe.ask()
    assert "broken" not in said and kinds(devices.check_torch(said)) == []
    assert said["torch"].startswith("2.") and isinstance(said["cpu_bf16"], bool) and said["numpy"] == [0.0, 0.0]


def test_a_probe_that_hangs_is_ended():
    said = torch_probe.ask(limit=0.05)
    assert "said nothing more" in said["broken"]
    assert only(devices.check_torch(said), "import").level == PROBLEM


@pytest.mark.parametrize(("change", "kind", "word"), [
    ({"torchvision_error": "RuntimeError: operator torchvision::nms does not exist"}, "vision", "torchvision::nms"),
    ({"numpy_error": "RuntimeError: Numpy is not available"}, "numpy", "Numpy is not available"),
    ({"pyautoattack_error": "ModuleNotFoundError: x"}, "attack", "AutoAttack cannot run"),
    ({"broken": "ended with status -11: no message"}, "crash", "status -11")])
def test_packages_that_do_not_fit_torch(change, kind, word):
    found = only(devices.check_torch({**FIT, **change}), kind)
    assert found.level == PROBLEM and word in found.what


def test_gpus_that_torch_cannot_use():
    assert kinds(devices.check_gpu(FIT, None)) == []
    assert only(devices.check_gpu(FIT, []), "driver").level == PROBLEM
    plain = {**FIT, "torch": "2.11.0+cpu", "cuda_build": None}
    assert "build without CUDA" in only(devices.check_gpu(plain, [CARD]), "cpu-build").what
    old = only(devices.check_gpu({**FIT, "cuda_warning": "The NVIDIA driver is too old (found 11040)."}, [CARD]),
               "driver-old")
    assert old.level == PROBLEM and "driver 470.10" in old.what and "too old" in old.what
    hidden = only(devices.check_gpu(FIT, [CARD], ""), "hidden")
    assert (hidden.level, hidden.type) == (NOTE, "unset CUDA_VISIBLE_DEVICES")
    assert only(devices.check_gpu({**FIT, "devices_error": "no kernel image"}, [CARD]), "broken").level == PROBLEM


def test_a_gpu_that_others_use():
    device = {"name": "NVIDIA H100", "free": 8 << 30, "total": 80 << 30, "bf16": True, "capability": [9, 0]}
    found = devices.check_gpu({**FIT, "cuda": True, "devices": [device]}, [CARD._replace(busy=97)])
    assert kinds(found) == ["memory", "busy"] and "bf16" in only(found, "device").what
    free = devices.check_gpu({**FIT, "cuda": True, "devices": [{**device, "free": 79 << 30}]}, [CARD])
    assert kinds(free) == []


def test_lines_of_nvidia_smi():
    assert devices.parsed("NVIDIA H100, 550.54, 81559, 2, 0\nGeForce, 470.1, [N/A], [N/A], [N/A]\n\nNo devices\n") == [
        devices.Card("NVIDIA H100", "550.54", 81559 << 20, 2 << 20, 0),
        devices.Card("GeForce", "470.1", None, None, None)]


# -- processor and memory --------------------------------------------------------------------------------------------

def container(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_what_a_container_grants(tmp_path):
    assert machine.cpu_quota(tmp_path) is None and machine.memory_limit(tmp_path) is None
    two = container(tmp_path / "2", **{"proc__self__cgroup": "0::/a/b\n",
                    "sys__fs__cgroup__a__cpu.max": "150000 100000",
                    "sys__fs__cgroup__a__b__cpu.max": "max 100000", "sys__fs__cgroup__a__b__memory.max": "4000000",
                    "sys__fs__cgroup__a__b__memory.current": "3900000",
                    "sys__fs__cgroup__a__b__memory.stat": "anon 1\ninactive_file 500000\n"})
    assert machine.cpu_quota(two) == 1.5 and machine.memory_limit(two) == 600_000
    one = container(tmp_path / "1", **{"proc__self__cgroup": "4:cpu:/x\n5:memory:/x\n",
                    "sys__fs__cgroup__cpu__x__cpu.cfs_quota_us": "50000",
                    "sys__fs__cgroup__cpu__x__cpu.cfs_period_us": "100000",
                    "sys__fs__cgroup__memory__memory.limit_in_bytes": str(1 << 62),
                    "sys__fs__cgroup__memory__memory.usage_in_bytes": "5"})
    assert machine.cpu_quota(one) == 0.5 and machine.memory_limit(one) is None


def test_threads_cores_and_load(tmp_path):
    idle = {"cores": 4, "load": 0.1, "root": tmp_path}
    assert kinds(machine.check_cpu({}, environ={"OMP_NUM_THREADS": "4"}, **idle)) == []
    many = only(machine.check_cpu({}, environ={"OMP_NUM_THREADS": "64"}, **idle), "threads")
    assert (many.level, many.type) == (NOTE, "unset OMP_NUM_THREADS")
    assert only(machine.check_cpu({}, environ={"OMP_NUM_THREADS": "two"}, **idle), "threads").level == PROBLEM
    assert only(machine.check_cpu({}, environ={}, cores=2, load=7.0, root=tmp_path), "load").level == NOTE
    small = container(tmp_path, **{"proc__self__cgroup": "0::/\n", "sys__fs__cgroup__cpu.max": "200000 100000"})
    assert only(machine.check_cpu({}, environ={}, cores=16, load=0.0, root=small), "quota").type == \
        "export OMP_NUM_THREADS=2"
    assert "no fast bf16" in only(machine.check_cpu({"cpu_bf16": False}, environ={}, **idle), "cores").what


@pytest.mark.parametrize(("kib", "level"), [(500_000, PROBLEM), (2_000_000, NOTE), (9_000_000, OK)])
def test_little_memory(tmp_path, kib, level):
    root = container(tmp_path, proc__meminfo=f"MemTotal: 99 kB\nMemAvailable:   {kib} kB\n")
    assert machine.check_memory(root)[0].level == level


# -- disks -----------------------------------------------------------------------------------------------------------

def test_a_folder_is_written_into_and_left_as_it_was(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a").write_text("b")
    all_places = disk.places(tmp_path / "data", tmp_path / "results", tmp_path / "deep" / "weights", tmp_path / "build")
    found = disk.check_disk(all_places)
    assert "data, results, weights, build" in only(found, "write").what and kinds(found, PROBLEM) == []
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "data"]


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "results").write_text("a file where the folder should be")
    found = disk.check_disk(disk.places(tmp_path, tmp_path / "results", tmp_path, tmp_path))
    assert only(found, "no-write").level == PROBLEM and "not a folder" in only(found, "no-write").what
    assert "results" not in only(found, "write").what


@pytest.mark.parametrize(("code", "kind", "word"), [
    (errno.EROFS, "read-only", "read-only"), (errno.ENOSPC, "full", "the disk is full"),
    (errno.EDQUOT, "full", "quota"), (errno.EACCES, "no-write", "take it over")])
def test_why_a_write_was_refused(tmp_path, code, kind, word):
    found = disk._refused(disk.Place("weights", tmp_path, tmp_path), OSError(code, os.strerror(code)))
    assert (found.level, found.kind) == (PROBLEM, kind) and word in found.what and found.type


def test_room_for_what_a_folder_comes_to_hold(tmp_path):
    place = [disk.Place("weights", tmp_path, tmp_path)]
    assert [one.level for one in disk.room(place, 10**8)] == [PROBLEM]
    little = next(disk.room(place, 2 * 10**9))
    assert little.level == NOTE and "0.3 GB of weights" in little.what and "df -h" in little.type
    assert [one.level for one in disk.room(place, 9 * 10**9, 10**6, 10**7)] == [OK]
    assert [one.level for one in disk.room(place, 9 * 10**9, 10, 10**7)] == [OK, PROBLEM]
    assert [one.level for one in disk.room(place, 9 * 10**9, 0, 0)] == [OK]         # a disk that counts none


def test_disks_of_a_network(tmp_path):
    deep = tmp_path / "a b" / "data"
    deep.mkdir(parents=True)
    mounts = f"/dev/sda / ext4 rw 0 0\nserver:/x {str(tmp_path).replace(' ', chr(92) + '040')}/a\\040b nfs4 rw 0 0\n"
    assert disk.kind_of(deep, mounts) == "nfs4" and disk.kind_of(tmp_path, mounts) == "ext4"
    found = list(disk._network([disk.Place("data", deep, deep), disk.Place("results", tmp_path, tmp_path)], mounts))
    assert found[0].level == NOTE and found[0].what.startswith("data on a network disk (nfs4)")


# -- what is printed -------------------------------------------------------------------------------------------------

def test_problems_come_first_and_likes_are_counted():
    findings = [Finding(OK, "Python", "version", "3.12"),
                *(Finding(NOTE, "runs", "a", f"note {i}", "ls") for i in range(5)),
                Finding(PROBLEM, "data", "half", "half there", "fetch it")]
    text = as_text(findings)
    assert text.startswith("1 problem:\n  data: half there\n      type:  fetch it\n\n5 notes:\n")
    assert "note 2" in text and "note 3" not in text and "and 2 more like the last" in text
    assert text.endswith("in order:\n  Python  3.12\n\n1 problem, 5 notes, 1 in order")
    assert "\x1b" not in text


@pytest.mark.parametrize(("count", "said"), [(12, "12 bytes"), (1400, "1.4 kB"), (170_498_071, "170 MB"),
                                             (2_350_000_000, "2.4 GB"), (5 * 10**12, "5,000 GB")])
def test_sizes_in_words(count, said):
    assert size(count) == said
