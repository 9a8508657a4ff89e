"""Generalist on CIFAR-10, as AdaRAT's released code has it.  --help lists the flags; see adarat/README.md."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
from adarat.flags import main

main("Generalist", "cifar10")
