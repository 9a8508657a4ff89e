"""Write the figures of docs/reliability.md again from results/checks/reliability/: python -m scripts.reliability"""

from pathlib import Path

from common.environment import ROOT
from common.errors import exit_cleanly
from common.files import write_text
from common.flags import Parser
from common.reliability import grids, refreshed


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    parse = Parser(prog="python -m scripts.reliability", description=__doc__.split(": python")[0] + ".")
    parse.add_argument("--records", type=Path, default=ROOT / "results" / "checks" / "reliability",
                       help="folder of chaos.json and fuzz.json")
    parse.add_argument("--page", type=Path, default=ROOT / "docs" / "reliability.md", help="the page")
    args = parse.parse_args(argv)
    write_text(args.page, refreshed(args.page.read_text(encoding="utf-8"), grids(args.records)))


if __name__ == "__main__":
    exit_cleanly(main)
