#!/usr/bin/env bash
# DyART on Tiny-ImageNet from the burn-in of TinyImgNet_clean_training.sh (same flags, same NORM).  Extra flags win.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

choose_norm "--lr 0.1 --h_prime_r0 32/255 --h_prime_alpha 5 --clip_grad 1" \
            "--lr 0.05 --h_prime_r0 20/255 --h_prime_alpha 3"
# CHOICE holds several words.
# shellcheck disable=SC2086
train --DyART true --data tiny-imagenet --model preact-resnet18 --pretrained auto --lam_robust 500 --temperature 5 \
  --iter_FAB 20 --epochs 100 --scheduler cosinew --batch-size 256 --batch-size-validation 1024 $CHOICE "$@"
