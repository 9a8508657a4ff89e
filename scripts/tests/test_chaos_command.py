"""The command that kills: kills are shared out, and a short run of it over real commands loses nothing."""

import pytest

from common.files import read_json
from scripts import chaos


def test_kills_are_shared_out_over_the_kinds():
    assert chaos.shared_out(20, list(chaos.KINDS)) == {
        kind: 2 if number < 8 else 1 for number, kind in enumerate(chaos.KINDS)}
    assert sum(chaos.shared_out(3, ["a", "b", "c", "d"]).values()) == 3


def test_every_paper_is_trained():
    scripts = {words.split("/")[0] for words in chaos.TRAININGS.values()}
    assert scripts == {"adarat", "dyart", "rpat", "brainreg"}


def test_a_copy_of_the_code_is_all_that_make_needs_and_has_no_record_of_ours(tmp_path):
    chaos.copy_code(tmp_path / "copy")
    assert (tmp_path / "copy" / "Makefile").exists() and (tmp_path / "copy" / "common" / "data" / "npz.py").exists()
    assert [path.name for path in (tmp_path / "copy" / "results").iterdir()] == ["reported"]


@pytest.mark.slow
def test_a_training_and_an_evaluation_that_are_killed_lose_nothing(tmp_path, capsys):
    out = tmp_path / "chaos.json"
    status = chaos.main(["--kills", "3", "--only", "adarat", "evaluation", "--seconds", "900", "--out", str(out)])
    record = read_json(out)
    assert status == 0, record["jobs"]
    assert record["losses"] == 0 and record["kills"] == 3 and record["faults"] == []
    kinds = {job["kind"]: [kill["signal"] for kill in job["kills"]] for job in record["jobs"]}
    assert sorted(kinds) == ["adarat", "evaluation"] and {len(kills) for kills in kinds.values()} == {1, 2}
    assert {"SIGKILL", "SIGTERM"} == {signal for kills in kinds.values() for signal in kills}
    assert capsys.readouterr().out.count(" ended in ") == 3
    assert str(tmp_path) not in out.read_text(), "a record names no path of this machine"
