"""Train a method of RPAT's part 1, with or without robust perception.  --help lists the flags; see rpat/README.md."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from rpat.flags import main

    main()
