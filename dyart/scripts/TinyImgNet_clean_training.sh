#!/usr/bin/env bash
# Burn-in on Tiny-ImageNet: clean training, whose epoch 20 (counted from 0) DyART starts from.  Extra flags win.
# The released script trains on to the end of the 42 epochs that its learning rate is planned for; nothing reads them
# (--train_epochs 42 does them too).
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

choose_norm "" ""
# CHOICE holds several words.
# shellcheck disable=SC2086
train --clean_training true --data tiny-imagenet --model preact-resnet18 --epochs 42 --train_epochs 21 --lr 0.1 \
  --scheduler step --batch-size 256 --batch-size-validation 1024 --save_intermediate_models 20 $CHOICE "$@"
