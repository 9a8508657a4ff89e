"""Several processes of one run on this machine, for tests; and, as a command, the trainings that are named to it.

python common/tests/ranks.py FILE.json       a list of [paper, [flags]]; adarat: the method stands before its flags
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 1500                           # seconds; the machine may be busy


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def torchruns(ranks):
    """rank -> the words of the environment that torchrun would set on this machine."""
    port = str(free_port())
    return lambda rank: {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks),
                         "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}


def start(words, ranks=2, own=None):
    """The processes of `python words...`; own: rank -> its words of the environment."""
    own = own or torchruns(ranks)
    given = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "TORCHELASTIC_"))}
    given |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "TORCH_CPP_LOG_LEVEL": "ERROR",
              "PYTHONPATH": str(ROOT)}
    return [subprocess.Popen([sys.executable, *map(str, words)], env=given | own(rank), stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True) for rank in range(ranks)]


def outcomes(processes):
    """[(exit status, stdout, stderr)] of each; a process that does not end is killed, and the test fails."""
    try:
        said = [process.communicate(timeout=LIMIT) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *texts) for process, texts in zip(processes, said, strict=True)]


def together(words, ranks=2, own=None):
    """Run `python words...` as several processes, which must end well; what rank 0 printed."""
    found = outcomes(start(words, ranks, own))
    assert [code for code, _, _ in found] == [0] * ranks, found
    assert all(not out and not err for _, out, err in found[1:]), found
    return found[0][1]


def train(paper, words):
    """One training, as its command does it once the flags are read."""
    if paper == "adarat":
        from adarat import flags
        from adarat.train import train as run
        method, *words = words
        args = flags.parser(method, "cifar10").parse_args(words)
        run(flags.settings_of(method, "cifar10", args), args)
    elif paper == "dyart":
        from dyart import flags
        from dyart.training import train as run
        args = flags.parse(words)
        run(flags.settings_of(args), args)
    elif paper == "rpat":
        from rpat import flags
        from rpat.training import train as run
        args = flags.parser().parse_args(words)
        run(flags.settings_of(args), args)
    elif paper == "brainreg":
        from brainreg import flags
        from brainreg.training import train as run
        args = flags.parser().parse_args(words)
        run(flags.settings_of(args), args)
    else:
        from rpat import sota_flags as flags
        from rpat.sota_training import train as run
        args = flags.parser(paper).parse_args(words)
        run(flags.settings_of(paper, args), args)


if __name__ == "__main__":
    from common.errors import exit_cleanly

    exit_cleanly(lambda: [train(*entry) for entry in json.loads(Path(sys.argv[1]).read_text())] and 0)
