"""Which of the processes of one run this one is, as torchrun or srun says in the environment.  No torch here.

torchrun   RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT
srun       SLURM_PROCID, SLURM_STEP_NUM_TASKS, SLURM_LOCALID, SLURM_STEP_NODELIST, SLURM_JOB_ID, SLURM_STEP_ID

srun's are those of a step: in the script of a batch job, which is one process whatever --ntasks says, they are not set.
"""

import os
import re
import sys
from collections.abc import Mapping
from typing import NamedTuple

from common.errors import UserError

LOWEST_PORT, PORTS = 12000, 20000          # below those that systems hand out by themselves


class Place(NamedTuple):
    """rank: 0 to ranks-1; local_rank: the same counted on its machine.  host, port: where rank 0 listens, the agent of
    torchrun if `hosted`; attempt: how often torchrun has started the processes before."""

    rank: int = 0
    ranks: int = 1
    local_rank: int = 0
    host: str = ""
    port: int = 0
    hosted: bool = False
    attempt: int = 0


def place(given: Mapping[str, str] = os.environ) -> Place:
    """The place of this process; alone where neither torchrun nor srun started it.

    UserError for variables that are no numbers, or contradict one another.
    """
    if "RANK" in given and "WORLD_SIZE" in given:
        rank, ranks = number(given, "RANK"), number(given, "WORLD_SIZE")
        found = Place(rank, ranks, number(given, "LOCAL_RANK", 0), given.get("MASTER_ADDR", "127.0.0.1"),
                      number(given, "MASTER_PORT", 29500), given.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
                      number(given, "TORCHELASTIC_RESTART_COUNT", 0))
    elif "SLURM_PROCID" in given and "SLURM_STEP_NUM_TASKS" in given:
        rank, ranks = number(given, "SLURM_PROCID"), number(given, "SLURM_STEP_NUM_TASKS")
        # Several steps of a job run side by side, so that the job's number alone would not do.
        own = LOWEST_PORT + (97 * number(given, "SLURM_JOB_ID", 0) + number(given, "SLURM_STEP_ID", 0)) % PORTS
        host = given.get("MASTER_ADDR") or first_host(given.get("SLURM_STEP_NODELIST", "127.0.0.1"))
        found = Place(rank, ranks, number(given, "SLURM_LOCALID", 0), host, number(given, "MASTER_PORT", own))
    else:
        return Place()
    if not 0 <= found.rank < found.ranks:
        raise UserError(f"process {found.rank} of {found.ranks}: the environment's RANK and WORLD_SIZE (or "
                        "SLURM_PROCID and SLURM_STEP_NUM_TASKS) contradict each other", code="E-PROCESSES")
    return found


def number(given: Mapping[str, str], name: str, default: int | None = None) -> int:
    """The whole number in a variable, or the default where it is not set."""
    text = given.get(name, default)
    try:
        return int(text)
    except (TypeError, ValueError):
        raise UserError(f"the environment's {name} is {text!r}, no whole number: start several processes with torchrun "
                        "or srun, which set it, or unset it", code="E-PROCESSES") from None


def first_host(nodes: str) -> str:
    """The first name of Slurm's list: gpu-07 of gpu-[07,09-12],login1."""
    first = re.split(r",(?![^\[]*\])", nodes)[0]
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first)


def quieten(given: Place) -> None:
    """Let rank 0 alone speak: the others' stdout and stderr go nowhere (errors: common.errors.exit_cleanly)."""
    if given.rank:
        sys.stdout = sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8")
