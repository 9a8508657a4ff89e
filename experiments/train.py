"""Train AdaRAT's barrier on RPAT's loss: python experiments/train.py --dataset cifar10 --limits_from RUN [...]"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from experiments.flags import main

if __name__ == "__main__":
    main()
