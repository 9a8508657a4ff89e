#!/usr/bin/env bash
# AutoAttack at eps 2, 4, 8, 12 and 16 over 255 on all test images: bash dyart/scripts/eval.sh FOLDER [flags].
# FOLDER: results/dyart/DATA_SET/RUN, or a folder of the original repository.  Extra flags win (--n 1000 --eps_eval 8).
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

need_folder "$@"
folder=$1
shift
"$PYTHON" "$ROOT/dyart/eval_aa.py" --norm_attack Linf --eps_eval 2,4,8,12,16 --fname_input "$folder" "$@"
