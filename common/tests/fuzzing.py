"""Targets of common/fuzz under hypothesis.  FUZZ_EXAMPLES=1000 makes more cases of each."""

import itertools
import os
import shutil
from pathlib import Path
from random import Random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.fuzz import Target, judge, prepare

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "60"))


def run(target: Target, work: Path, examples: int = EXAMPLES) -> set[str]:
    """Case after case; fails at the first that is neither accepted nor refused.  The verdicts that came up."""
    numbers, seen = itertools.count(), set()
    prepare(target, work / "valid", work / "first", None)
    assert judge(target, work / "first") == "accepted"

    @settings(max_examples=examples, deadline=None, derandomize=True, database=None,
              suppress_health_check=list(HealthCheck))
    @given(random=st.randoms(use_true_random=False))
    def each(random: Random) -> None:
        folder = work / str(next(numbers))
        prepare(target, work / "valid", folder, random)
        verdict = judge(target, folder)
        assert verdict in ("accepted", "refused"), verdict
        seen.add(verdict)
        shutil.rmtree(folder)

    each()
    return seen
