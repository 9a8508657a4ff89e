#!/usr/bin/env bash
# The baselines on Tiny-ImageNet, from scratch, one after another: METHODS="AT TRADES MART" (default), or some of them.
# Extra flags go to each and win.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

choose_norm "" ""
baselines --data tiny-imagenet --model preact-resnet18 --epochs 100 --lr 0.1 --scheduler cosinew \
  --batch-size 256 --batch-size-validation 1024 -- "$@"
