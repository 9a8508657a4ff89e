"""Evaluate a run, or a checkpoint of the original repository, by one --mode.  --help lists the flags."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from rpat.evaluation import main

    main()
