"""Train ReBAT, and test it.  --help lists the flags; see rpat/README.md."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from rpat.sota_flags import main

    main("ReBAT")
