#!/usr/bin/env bash
# DyART on CIFAR-10 from the burn-in of Cifar10_clean_training.sh (same flags, same NORM).  Extra flags win.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

choose_norm "--epochs 200 --lr 0.1 --scheduler cosinew --h_prime_alpha 3 --lam_robust 1000 --clip_grad 0.1" \
            "--epochs 100 --lr 0.1 --scheduler step --h_prime_alpha 8 --lam_robust 400"
# CHOICE holds several words.
# shellcheck disable=SC2086
train --DyART true --data cifar10s --model wrn-28-10-swish --pretrained auto --h_prime_r0 16/255 --temperature 5 \
  --iter_FAB 20 --batch-size 256 --batch-size-validation 1024 $CHOICE "$@"
