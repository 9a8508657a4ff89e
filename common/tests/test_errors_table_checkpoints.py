"""docs/errors.md, the checkpoints: each row's line, exit status 2, nothing lost."""

import sys

import pytest
import torch

from common.checkpoint import save_state
from common.models import build
from common.tests.errors_table import Cases, check, evaluate, rows, weights

CASES = Cases()
of = CASES.of
MINE = rows("Checkpoints")


@pytest.mark.parametrize("row", MINE, ids=str)
def test_the_row_is_what_happens(row, tmp_path, monkeypatch, capfd):
    check(row, CASES, tmp_path, monkeypatch, capfd)


def test_every_case_has_its_row():
    assert {code: len(some) for code, some in CASES.items()} == {row.code: row.number for row in MINE}


@of("E-CHECKPOINT-MISSING")
def no_checkpoint(at, monkeypatch):
    return evaluate(at, monkeypatch, at / "none.pt", *weights(at)[1:])


@of("E-CHECKPOINT-DAMAGED")
def cut_short(at, monkeypatch):
    file, *words = weights(at)
    file.write_bytes(file.read_bytes()[:2000])
    return evaluate(at, monkeypatch, file, *words)


@of("E-CHECKPOINT-DAMAGED")
def a_number_repeated_without_end(at, monkeypatch):
    file, *words = weights(at)
    torch.save({"a": torch.zeros(1).expand(10**12)}, file)
    return evaluate(at, monkeypatch, file, *words)


@of("E-CHECKPOINT-FIT")
def another_width(at, monkeypatch):
    return evaluate(at, monkeypatch, *weights(at), "--width", "8")


@of("E-CHECKPOINT-PART")
def several_networks(at, monkeypatch):
    file, *words = weights(at)
    state = torch.load(file, weights_only=True)
    torch.save({"student": state, "teacher": {name: value + 1 for name, value in state.items()}}, file)
    return evaluate(at, monkeypatch, file, *words)


@of("E-CHECKPOINT-ENTRY")
def complex_weights(at, monkeypatch):
    file, *words = weights(at)
    torch.save({"a": torch.zeros(3, dtype=torch.complex64)}, file)
    return evaluate(at, monkeypatch, file, *words)


@of("E-CHECKPOINT-NORMALISE")
def normalised_in_the_file(at, monkeypatch):
    file, *words = weights(at)
    save_state(file, build("small", classes=3, width=4, normalise=([0.5] * 3, [0.25] * 3)).state_dict())
    return evaluate(at, monkeypatch, file, *words)


@of("E-PICKLE")
def whole_network(at, monkeypatch):
    file, *words = weights(at)
    torch.save(build("small", classes=3, width=4), file)
    return evaluate(at, monkeypatch, file, *words)


@of("E-PACKAGE")
def no_safetensors(at, monkeypatch):
    file, *words = weights(at)
    file.rename(at / "w.safetensors")
    for name in ("safetensors", "safetensors.torch"):
        monkeypatch.setitem(sys.modules, name, None)
    return evaluate(at, monkeypatch, at / "w.safetensors", *words)
