"""Damaged files for the readers of checkpoints: accepted or refused in one line, never a traceback or a write."""

import pytest

from common.fuzz.checkpoints import TARGETS
from common.tests.fuzzing import run


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_damaged_files_are_accepted_or_refused(target, tmp_path):
    assert "refused" in run(target, tmp_path)
