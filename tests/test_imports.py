"""The one-way rules of the house, read off the source of every file."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.environment import ROOT

# No torch, at any depth: what is needed to plan, to read records and to draw.
WITHOUT_TORCH = ("common.records", "common.report", "common.runs", "common.stats", "common.flags", "common.files",
                 "common.environment", "common.render", "common.reported", "common.plots", "common.errors",
                 "common.alarms", "common.error_codes", "common.locks", "common.signals",
                 "common.seeds", "common.against", "common.board", "common.compare", "common.compare_words",
                 "common.leaderboard", "common.leaderboard_differences_plot", "common.leaderboard_page",
                 "common.leaderboard_plot", "common.doctor.leftovers",
                 "common.reliability", "scripts.reliability",
                 "common.doctor.runs", "scripts.compare", "scripts.doctor",
                 "scripts.leaderboard", "scripts.make_rules", "scripts.report")
OURS = {path.parent.name for path in ROOT.glob("*/__init__.py")}
PAPERS = OURS - {"common", "scripts", "experiments"}       # experiments mixes papers


def sources(root: Path = ROOT) -> list[Path]:
    """Every Python file of the repository."""
    kept = [path for folder in (*sorted(OURS), "tests", "data") for path in sorted((root / folder).rglob("*.py"))]
    return [*kept, *sorted(root.glob("*.py"))]


def imports(tree: ast.AST, package: str = "") -> Iterator[str]:
    """Dotted names of all imports, also those inside functions; `from a import b` gives a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[:len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def is_test(path: Path) -> bool:
    return "tests" in path.parts or path.name == "conftest.py"


def broken_rules(path: Path, text: str, papers: set[str] = PAPERS) -> list[str]:
    """What a file, named relative to the root, does that it must not."""
    tree, top, found = ast.parse(text), path.parts[0], []
    package = ".".join(path.parent.parts)
    for name in imports(tree, package):
        target, inner = name.split(".")[0], name.split(".")[1:2]
        if top == "common" and not is_test(path) and target in papers:
            found.append(f"common imports {name}")
        if top in papers and target in papers - {top}:
            found.append(f"{top} imports {name}")
        if target == "experiments" and top not in ("experiments", "tests", "conftest.py"):
            found.append(f"imports {name}: experiments are imported by nobody")
        if target == "scripts" and not is_test(path):
            found.append(f"imports {name}: scripts are imported by nobody")
        if path == Path("common/types.py") and target in papers | {"common", "scripts"}:
            found.append(f"types.py imports {name}")
        if path == Path("common/fit.py") and target == "common" and inner in (["attacks"], ["data"], ["models"]):
            found.append(f"fit.py imports {name}")
        if path.name == "method.py" and not is_test(path) and target in ("argparse", "os", "json"):
            found.append(f"method.py imports {name}")
    for node in ast.walk(tree):
        found += broken_node(path, node)
    return found


def broken_node(path: Path, node: ast.AST) -> list[str]:
    found = []
    if isinstance(node, ast.Call):
        words = {word.arg: word.value for word in node.keywords}
        called = ast.unparse(node.func)
        if path.name == "method.py" and called == "print":
            found.append("method.py prints")
        if called.endswith("add_argument") and isinstance(words.get("type"), ast.Name) and words["type"].id == "bool":
            found.append("type=bool takes 'False' for True")
        if isinstance(words.get("weights_only"), ast.Constant) and words["weights_only"].value is False:
            found.append("weights_only=False runs code from a file")
        if called == "torch.load" and "weights_only" not in words:
            found.append("torch.load without weights_only=True")
        # A browser is no part of .venv: what drives it says where there is none.
        if path.parts[-2:] != ("tests", "browser.py") and (
                called in ("pytest.skip", "pytest.xfail", "pytest.importorskip")
                or called.startswith(("pytest.mark.skip", "pytest.mark.xfail"))):
            found.append(f"{called}: a test that does not run")
    if isinstance(node, ast.ExceptHandler):
        named = ast.unparse(node.type) if node.type else "everything"
        silent = all(isinstance(inner, ast.Pass) for inner in node.body)
        if node.type is None or (silent and named in ("Exception", "BaseException")):
            found.append(f"except {named}: hides errors")
    return found


def test_the_papers_are_found():
    assert {"common", "scripts", "adarat"} <= OURS and "adarat" in PAPERS
    assert ROOT / "common" / "types.py" in sources() and ROOT / "conftest.py" in sources()


@pytest.mark.parametrize("path", [path.relative_to(ROOT) for path in sources()], ids=str)
def test_no_file_breaks_a_rule(path):
    assert broken_rules(path, (ROOT / path).read_text()) == []


@pytest.mark.parametrize(("path", "text"), [
    ("common/a.py", "import adarat.method"), ("common/a.py", "def f():\n    from rpat import method"),
    ("common/a.py", "from scripts import report"), ("rpat/a.py", "from experiments import method"),
    ("scripts/a.py", "import experiments.runs"), ("adarat/a.py", "from rpat.method import x"),
    ("rpat/tests/test_a.py", "import adarat"), ("adarat/a.py", "import scripts.report"),
    ("scripts/a.py", "from scripts.report import main"), ("common/types.py", "from common.files import replacing"),
    ("common/types.py", "from . import files"), ("common/fit.py", "from common.attacks.pgd import PGD"),
    ("common/fit.py", "from common import models"), ("common/fit.py", "from .data import load"),
    ("adarat/method.py", "import json"), ("adarat/method.py", "from os import path"),
    ("adarat/method.py", "import argparse"),
    ("adarat/method.py", "print(1)"), ("adarat/a.py", "parser.add_argument('--x', type=bool)"),
    ("common/a.py", "torch.load(f, weights_only=False)"), ("common/a.py", "torch.load(f)"),
    ("common/a.py", "try:\n    f()\nexcept:\n    g()"), ("common/a.py", "try:\n    f()\nexcept Exception:\n    pass"),
    ("common/tests/test_a.py", "pytest.skip('no')"),
    ("tests/test_a.py", "@pytest.mark.skipif(True)\ndef test_a():\n    f()"),
    ("tests/test_a.py", "torch = pytest.importorskip('torch')")])
def test_each_rule_can_be_broken(path, text):
    assert len(broken_rules(Path(path), text, {"adarat", "rpat"})) == 1


@pytest.mark.parametrize(("path", "text"), [
    ("common/a.py", "from common.files import replacing\nimport json"), ("adarat/a.py", "from adarat.method import B"),
    ("experiments/a.py", "import adarat.method\nimport rpat.method\nfrom experiments.method import x"),
    ("scripts/a.py", "import adarat.runs"), ("scripts/tests/test_a.py", "from scripts import report"),
    ("common/tests/test_a.py", "from adarat import method"),
    ("adarat/method.py", "import math\nfrom common.types import Batch"),
    ("common/fit.py", "from common.types import Batch"), ("common/a.py", "torch.load(f, weights_only=True)"),
    ("common/a.py", "try:\n    f()\nexcept OSError:\n    pass"), ("adarat/a.py", "print(1)")])
def test_what_is_allowed_breaks_no_rule(path, text):
    assert broken_rules(Path(path), text, {"adarat", "rpat"}) == []


def test_what_reads_records_needs_no_torch(run_without_torch):
    parts = [f"{paper}.{part}" for paper in sorted(PAPERS | {"experiments"}) for part in ("runs", "flags", "figures")
             if (ROOT / paper / f"{part}.py").exists()]
    code = ("import importlib, sys\n"
            "for name in sys.argv[1:]:\n    try:\n        importlib.import_module(name)\n"
            "    except ImportError as error:\n        print(name, error)\n")
    assert run_without_torch(code, *WITHOUT_TORCH, *parts) == ""
