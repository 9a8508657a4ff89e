#!/usr/bin/env bash
# Burn-in on CIFAR-10: clean training, whose epoch 10 (counted from 0) DyART starts from.  Extra flags win.
# The released script trains on to the end of the 22 epochs that its learning rate is planned for; nothing reads them
# (--train_epochs 22 does them too).
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

choose_norm "" ""
# CHOICE holds several words.
# shellcheck disable=SC2086
train --clean_training true --data cifar10s --model wrn-28-10-swish --epochs 22 --train_epochs 11 --lr 0.1 \
  --scheduler step --batch-size 256 --batch-size-validation 1024 --save_intermediate_models 10 $CHOICE "$@"
