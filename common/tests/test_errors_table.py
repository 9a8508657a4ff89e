"""docs/errors.md and common/error_codes.py say the same as the source: every code is used, explained and tested."""

import ast
import functools

import pytest

from common.environment import ROOT
from common.error_codes import CODES
from common.evaluation import codes as preflight
from common.tests.errors_table import PAGE, Row, rows

HEADINGS = ("Flags", "make", "Data", "Checkpoints", "Runs and records", "While it runs")
# They hand a code on, or choose among several.
HANDED_ON = {"common/checkpoint.py": "error.code", "common/data/vision.py": "error.code", "common/flags.py": "code"}


@functools.cache
def raised() -> dict[str, list[str]]:
    """What is given as the code of each UserError of the source, as it is written, by file."""
    found: dict[str, list[str]] = {}
    packages = sorted(path.parent for path in ROOT.glob("*/__init__.py"))
    for path in (path for package in packages for path in sorted(package.rglob("*.py")) if "tests" not in path.parts):
        name = str(path.relative_to(ROOT))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "UserError":
                given = [word.value for word in node.keywords if word.arg == "code"] + node.args[1:]
                found.setdefault(name, []).append(ast.unparse(given[0]) if given else f"none in line {node.lineno}")
    return found


def literals(path: str) -> set[str]:
    """The codes that stand anywhere in a file."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and node.value in CODES}


def test_every_error_has_a_code_that_there_is():
    wrong = {path: [code for code in some if code.strip("'") not in CODES and code != HANDED_ON.get(path)]
             for path, some in raised().items() if path != "common/evaluation/codes.py"}
    assert {path: some for path, some in wrong.items() if some} == {}


def test_every_code_is_used():
    used = {code.strip("'") for some in raised().values() for code in some}.union(*map(literals, HANDED_ON))
    assert CODES.keys() - used == set()


def test_every_code_has_its_row_and_every_row_its_code():
    assert {row.code for row in rows(*HEADINGS)} == CODES.keys() and len(rows()) == len(rows(*HEADINGS))


def test_no_line_of_the_page_is_taken_for_text():
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| E-")]
    assert len(lines) == len(rows())


def test_the_preflights_codes_are_listed_and_none_is_ours():
    text = PAGE.read_text(encoding="utf-8")
    listed = {code: f"| [{code}](why-is-my-robust-accuracy-wrong.md#{code.lower()}) | {cause} |"
              for code, cause in preflight.CODES.items()}
    assert [code for code, line in listed.items() if line not in text] == []
    assert not preflight.CODES.keys() & CODES.keys()


@pytest.mark.parametrize(("line", "same"), [
    ("error: a.npz has no labels: give some [E-LABELS]", True),
    ("error: a.npz has no labels: give one [E-LABELS]", False),
    ("error: a.npz has no labels: give some [E-NPZ]", False), ("error: a.npz has no labels: give some", False),
    ("error:  has no labels: give some [E-LABELS]", False), ("a.npz has no labels: give some [E-LABELS]", False)])
def test_a_row_matches_its_whole_line_only(line, same):
    assert Row("E-LABELS", 1, "", "<file> has no labels: give some", "").matches(line) == same
