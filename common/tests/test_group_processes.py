"""Two and three processes on this machine's processor, over gloo: what they find is what one process finds."""

import json
import time

import pytest

from common.tests.ranks import ROOT, outcomes, start, together

SCENARIOS = ROOT / "common" / "tests" / "rank_scenarios.py"
pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("name", "ranks"), [("collectives", 2), ("collectives", 3), ("norms", 2), ("training", 2),
                                             ("resuming", 2), ("evaluation", 2), ("validation", 3)])
def test_scenario(tmp_path, name, ranks):
    together([SCENARIOS, name, tmp_path], ranks)


def test_three_processes_share_batches_of_two_images(tmp_path):
    """8, 8, 8 and 5 images: 2, 3 and 3, then 1, 2 and 2."""
    together([SCENARIOS, "training", tmp_path], 3)


@pytest.mark.parametrize(("told", "codes", "says"), [
    ({1: "mistake"}, [2, 2], ["error: a mistake on rank 1: mend it"]),
    ({0: "mistake"}, [2, 2], ["error: a mistake on rank 0: mend it"]),
    ({0: "mistake", 1: "mistake"}, [2, 2], ["error: a mistake on rank"]),
    ({1: "defect"}, [1, 1], ["Traceback", "ZeroDivisionError: a defect"]),
    ({1: "exit"}, [5, 5], []), ({0: "exit", 1: "exit"}, [5, 5], []),
    ({1: "asked"}, [143, 143], ["stopped by SIGTERM: what is done is kept; type the same command again"]),
    ({0: "asked", 1: "asked"}, [143, 143], ["stopped by SIGTERM: "])])
def test_the_first_that_fails_says_so_and_all_end_as_it_does(tmp_path, told, codes, says):
    (tmp_path / "how.json").write_text(json.dumps(told))
    found = outcomes(start([SCENARIOS, "ending", tmp_path]))
    assert [code for code, _, _ in found] == codes, found
    said = "".join(err for _, _, err in found)
    assert all(part in said for part in says) and bool(said) == bool(says)
    if codes in ([2, 2], [143, 143]):
        assert said.count("\n") == 1, said


@pytest.mark.parametrize("rank", [0, 1])
def test_nobody_waits_for_a_process_that_is_gone(tmp_path, rank):
    (tmp_path / "how.json").write_text(json.dumps({rank: "gone"}))
    began = time.monotonic()
    found = outcomes(start([SCENARIOS, "ending", tmp_path]))
    assert found[rank][0] == 9 and found[1 - rank][0] not in (0, 9)
    assert time.monotonic() - began < 600


def test_srun_words_do_as_well(tmp_path):
    """What srun sets, without srun: the processes meet by the job's and the step's number."""
    words = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_JOB_ID": str(int(time.time())), "SLURM_STEP_ID": "1",
             "SLURM_STEP_NODELIST": "localhost"}
    together([SCENARIOS, "collectives", tmp_path], own=lambda rank: words | {
        "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)})
