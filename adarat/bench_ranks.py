"""One process of those that measure a training step together; adarat/bench_grow.py starts them with torchrun."""

import json

from adarat.bench_grow import timed
from common import group
from common.bench_step import Settings
from common.engine import Engine
from common.errors import exit_cleanly
from common.flags import Parser


def main(argv: list[str] | None = None) -> int:
    parse = Parser(prog="python -m adarat.bench_ranks", description=__doc__.splitlines()[0])
    parse.add_argument("--device", default="auto", help="auto, cpu, cuda")
    parse.add_argument("--settings", required=True, help="common.bench_step.Settings as JSON")
    args = parse.parse_args(argv)
    found = timed(Settings(**json.loads(args.settings)), Engine.choose(args.device))
    if group.current().leads:
        print(json.dumps(found), flush=True)
    return 0


if __name__ == "__main__":
    exit_cleanly(main)
