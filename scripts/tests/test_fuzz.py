"""Command lines, tables and the fuzzing command itself."""

import json
from pathlib import Path

import pytest

from common.errors import UserError
from common.fuzz import Target
from common.tests.fuzzing import EXAMPLES, run
from rpat import flags as rpat_flags
from rpat import sota_flags
from scripts import evaluate, fuzz

TARGETS = [target for target in fuzz.targets() if target.name.startswith(("flags", "tables", "original"))]


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_whatever_is_typed_is_accepted_or_refused(target, tmp_path):
    run(target, tmp_path, max(1, EXAMPLES // 3))


def broken(folder: Path) -> None:
    text = (folder / "a.txt").read_text()
    if text.startswith("1"):
        raise ValueError("a defect")
    if text.startswith("2"):
        (folder / "written").write_text("")
    if text.startswith("3"):
        raise UserError("no")


def test_the_command_counts_cases_and_keeps_what_breaks_a_reader(tmp_path, monkeypatch, capsys):
    odd = Target("odd", lambda folder: folder.joinpath("a.txt").write_text("0"),
                 lambda random, folder: folder.joinpath("a.txt").write_text(str(random.randrange(4))) and None, broken)
    monkeypatch.setattr(fuzz, "targets", lambda: (odd,))
    monkeypatch.setattr(fuzz, "ROOT", tmp_path)
    monkeypatch.setattr(fuzz.resource, "setrlimit", lambda *_: None)         # it would hold for the tests that follow
    assert fuzz.main(["--examples", "60", "--out", str(tmp_path / "fuzz.json"), "--seconds", "600"]) == 1
    record = json.loads((tmp_path / "fuzz.json").read_text())
    told = record["targets"]["odd"]
    assert told["cases"] == 60 == told["accepted"] + told["refused"] + len(told["defects"])
    assert min(told["accepted"], told["refused"]) > 3 and record["defects"] == len(told["defects"]) > 6
    kept = {path.parent.joinpath("a.txt").read_text(): path.read_text()
            for path in tmp_path.glob("build/fuzz/odd/*/verdict.txt")}
    assert "ValueError: a defect" in kept["1"] and "written or changed" in kept["2"] and "3" not in kept
    again = fuzz.one(odd, 0, told["defects"][0]["number"], tmp_path / "again", None)
    assert again.strip().splitlines()[-1] == told["defects"][0]["verdict"]


def test_a_target_that_there_is_not():
    with pytest.raises(UserError, match="--only nothing: no such target; there are npz, "):
        fuzz.main(["--only", "nothing"])


def test_two_dashes_as_a_value():
    """Found by fuzzing: argparse takes `--norm=--` for a flag without a value, and gives an empty list."""
    for parser, flag in ((sota_flags.parser("ReBAT"), "--norm"), (evaluate.parser(), "--plan")):
        with pytest.raises(UserError, match=f"argument {flag}: -- is no value"):
            parser.parse_args([f"{flag}=--"])
    with pytest.raises(UserError, match="argument --resume_path: -- is no value"):
        rpat_flags.parse(["--resume_path=--"])


def test_a_run_to_resume_whose_name_is_longer_than_any_path():
    """Found by fuzzing: the system's error for such a path came through."""
    for words in (["--resume_path", "x" * 5000], ["--resume_path", "x" * 300 + "/y"]):
        with pytest.raises(UserError, match="cannot read 'xxx") as caught:
            rpat_flags.parse(words)
        assert caught.value.code == "E-READ"
