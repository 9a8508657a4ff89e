"""AutoAttack on a run, or on a checkpoint of the original repository.  --help lists the flags."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from dyart.evaluation import main

    main()
