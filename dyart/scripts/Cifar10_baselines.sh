#!/usr/bin/env bash
# The baselines on CIFAR-10, from scratch, one after another: METHODS="AT TRADES MART" (default), or some of them.
# Extra flags go to each and win.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

choose_norm "" ""
baselines --data cifar10s --model wrn-28-10-swish --epochs 200 --lr 0.1 --scheduler cosinew \
  --batch-size 256 --batch-size-validation 1024 -- "$@"
