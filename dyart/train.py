"""Train DyART, its burn-in or a baseline.  --help lists the flags; see dyart/README.md."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from dyart.flags import main

    main()
