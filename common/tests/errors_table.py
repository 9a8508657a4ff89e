"""What the tests of docs/errors.md share: its rows, and a command run in a folder that it must leave as it was."""

import hashlib
import importlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from common.checkpoint import save_state
from common.environment import ROOT
from common.errors import exit_cleanly
from common.models import build
from common.tests.fabricate import fabricate

PAGE = ROOT / "docs" / "errors.md"
ROW = re.compile(r"\| (E-[A-Z-]+) \| (.+?) \| `(.+?)` \| (.+?) \|")
Run = Callable[[], object]                  # ends like a command: by SystemExit
Case = Callable[[Path, pytest.MonkeyPatch], Run]


class Row(NamedTuple):
    """A line of a table of docs/errors.md; number: which of the lines of this code."""

    code: str
    number: int
    cause: str
    message: str
    fix: str

    def __str__(self) -> str:
        return f"{self.code}-{self.number}"

    def matches(self, line: str) -> bool:
        """Whether this is the line that the row shows; <...> in it stands for anything."""
        parts = re.split(r"<[^<>]+>", self.message)
        return re.fullmatch(f"error: {'.+'.join(map(re.escape, parts))} \\[{self.code}\\]", line) is not None


def rows(*headings: str) -> list[Row]:
    """The rows below these headings of docs/errors.md; of the whole page without any."""
    found, heading, seen = [], "", {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            heading = line.removeprefix("## ")
        if match := ROW.fullmatch(line):
            number = seen[match[1]] = seen.get(match[1], 0) + 1
            if not headings or heading in headings:
                found.append(Row(match[1], number, *match.groups()[1:]))
    return found


class Cases(dict[str, list[Case]]):
    """Code -> what gives its rows, in their order."""

    def of(self, code: str) -> Callable[[Case], Case]:
        """A decorator: the next row of this code."""
        def keep(case: Case) -> Case:
            self.setdefault(code, []).append(case)
            return case
        return keep


def check(row: Row, cases: Cases, at: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> None:
    """Run the case of a row: status 2, the one line that the row shows, and no file made, changed or removed.

    What a case may write before it fails is in `case.writes`.
    """
    case = cases[row.code][row.number - 1]
    run = case(at, monkeypatch)
    before = tuple(map(snapshot, (at, *REPOSITORY)))
    capfd.readouterr()
    with pytest.raises(SystemExit) as left:
        run()
    monkeypatch.undo()
    said = capfd.readouterr().err
    assert left.value.code == 2, said
    assert said.count("\n") == 1 and row.matches(said.rstrip("\n")), said
    after = tuple(map(snapshot, (at, *REPOSITORY)))
    new = {name for name in after[0].keys() - before[0].keys() if not name.endswith("/")}
    assert new == set(getattr(case, "writes", ())), new
    assert all(after[0].get(name) == content for name, content in before[0].items())
    if not new:
        assert after[0].keys() == before[0].keys()
    assert after[1:] == before[1:]


REPOSITORY = tuple(ROOT / name for name in ("results", "weights", "data", "build"))


def snapshot(folder: Path) -> dict[str, str]:
    """Everything below a folder, by its path: of the repository's files size and time, of others the content.

    An empty .NAME.lock, by which a job says that it is at work, is no result and not counted.
    """
    found = {}
    for where, folders, files in os.walk(folder):
        for name in folders:
            found[os.path.relpath(os.path.join(where, name), folder) + "/"] = "folder"
        for name in (name for name in files if not (name.startswith(".") and name.endswith(".lock"))):
            path = Path(where, name)
            status = path.lstat()
            mine = folder not in REPOSITORY and path.is_file()
            found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest() if mine else (
                f"{status.st_size} {status.st_mtime_ns}")
    return found


def command(monkeypatch: pytest.MonkeyPatch, main: Callable[[], object], *words: object, bare: bool = False) -> Run:
    """A command as it is typed.  bare: its `main` leaves the handling of errors to who calls it."""
    monkeypatch.setattr("sys.argv", ["command", *map(str, words)])
    return (lambda: exit_cleanly(main)) if bare else main


def function(run: Callable[[], object]) -> Run:
    """A part of a command, for what this machine cannot bring about in a whole one."""
    return lambda: exit_cleanly(run)


# -- small inputs ----------------------------------------------------------------------------------------------------

def arrays(classes: int = 3, train: int = 24, test: int = 12, size: int = 8) -> dict[str, np.ndarray]:
    """The content of a good npz file: images in colour."""
    rng = np.random.default_rng(0)
    return {"train_images": rng.integers(0, 256, (train, size, size, 3), np.uint8),
            "train_labels": np.arange(train) % classes,
            "test_images": rng.integers(0, 256, (test, size, size, 3), np.uint8),
            "test_labels": np.arange(test) % classes}


def npz(at: Path, without: str = "", **changed: np.ndarray) -> str:
    """npz:FILE of good data but for what is changed or left out."""
    np.savez(at / "a.npz", **{key: array for key, array in (arrays() | changed).items() if key != without})
    return f"npz:{at}/a.npz"


def weights(at: Path) -> tuple[object, ...]:
    """A file of weights of the small network of width 4 for three classes, and the flags that say so."""
    save_state(at / "w.pt", build("small", classes=3, width=4).state_dict())
    return at / "w.pt", "--model", "small", "--width", "4", "--data", npz(at)


def image_folder(at: Path, parts: tuple[str, ...] = ("train", "test")) -> Path:
    """A folder of two classes with an image each."""
    for part in parts:
        for name in "ab":
            (at / "f" / part / name).mkdir(parents=True)
            Image.new("RGB", (8, 8), (9, 9, 9)).save(at / "f" / part / name / "1.png")
    return at / "f"


def places(at: Path) -> tuple[str, ...]:
    """Where a training writes and finds data."""
    return ("--results", f"{at}/results", "--weights", f"{at}/weights", "--data_dir", f"{at}/data")


SMALL = ("--model", "small", "--width", "4", "--device", "cpu", "--precision", "fp32", "--final_test", "False")
SHORT = (*SMALL, "--epoch", "1", "--batch_size", "8", "--step_num", "1")


def adarat(at: Path, monkeypatch: pytest.MonkeyPatch, *words: object, method: str = "PGD-AT") -> Run:
    """AdaRAT's train_cifar10.py on a small scale; later words win."""
    from adarat.flags import main
    return command(monkeypatch, lambda: main(method, "cifar10"), *SHORT, *places(at), *words)


def evaluate(at: Path, monkeypatch: pytest.MonkeyPatch, subject: object, *words: object) -> Run:
    """scripts/evaluate.py by plan quick; later words win."""
    from scripts.evaluate import main
    return command(monkeypatch, main, subject, "--plan", "quick", "--device", "cpu", "--weights", f"{at}/weights",
                   *words, bare=True)


def script(monkeypatch: pytest.MonkeyPatch, name: str, *words: object) -> Run:
    """A command of scripts/ that leaves errors to its caller."""
    return command(monkeypatch, importlib.import_module(f"scripts.{name}").main, *words, bare=True)


def two_runs(at: Path, second: str = "TRADES", **more: Any) -> list[Path]:
    """The folders of two fabricated runs with evaluations."""
    judged = {"clean": 0.8, "pgd": 0.4}
    return [fabricate(at / "results", accuracies=judged),
            fabricate(at / "results", method=second, **{"accuracies": judged, **more})]
