"""Make the folders that runs write to, as AdaRAT's released make_dir.py does; runs make them by themselves too."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common.environment import ROOT
from common.errors import exit_cleanly
from common.files import write_failure


def main() -> None:
    """Make results/ and weights/ for both data sets and say so."""
    for dataset in ("cifar10", "cifar100"):
        for kind in ("results", "weights"):
            folder = ROOT / kind / "adarat" / dataset
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise write_failure(folder, error) from error
            print(folder.relative_to(ROOT))


if __name__ == "__main__":
    exit_cleanly(main)
