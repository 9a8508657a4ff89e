#!/usr/bin/env bash
# DyART on CIFAR-10 with generated images (data/cifar10_ddpm.npz; another file: --aux-data-filename FILE), from the
# burn-in of Cifar10_clean_training.sh.  Extra flags win.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

[ "${NORM:-batch}" = batch ] || stop "NORM=$NORM: there is no released group-norm variant with additional data"
train --DyART true --data cifar10s --model wrn-28-10-swish --pretrained auto --h_prime_r0 16/255 --h_prime_alpha 3 \
  --lam_robust 800 --temperature 5 --iter_FAB 20 --clip_grad 0.1 --epochs 800 --lr 0.1 --scheduler cosinew \
  --batch-size 512 --batch-size-validation 1024 --aux-data-filename "$ROOT/data/cifar10_ddpm.npz" \
  --unsup-fraction 0.7 "$@"
