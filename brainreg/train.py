"""Train with or without the brain-inspired regulariser.  --help lists the flags; see brainreg/README.md."""

import sys
from pathlib import Path

if __name__ == "__main__":
    root = Path(__file__).resolve().parents[1]
    # In the place of brainreg/ itself, whose files must not be found under names of their own.
    sys.path[0] = str(root)
    from brainreg.flags import main

    main()
