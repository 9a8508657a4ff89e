# What the scripts beside this file share; they source it.
#
# PYTHON   the Python to use (default: the repository's .venv, else python3)
# NORM     batch (default) or group: the released group-norm variant

set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

if [ -z "${PYTHON:-}" ]; then
  if [ -x "$ROOT/.venv/bin/python" ]; then PYTHON=$ROOT/.venv/bin/python; else PYTHON=python3; fi
fi

stop() {
  echo "error: $*" >&2
  exit 2
}

# The commands run where the user stands, so that paths among the flags mean what they say; what is not given, such as
# results/ and data/, the commands look for in the repository.
train() { "$PYTHON" "$ROOT/dyart/train.py" "$@"; }

# choose_norm WHAT-BATCH WHAT-GROUP: sets CHOICE to the flags of the norm layers that NORM names.
choose_norm() {
  case "${NORM:-batch}" in
    batch) CHOICE=$1 ;;
    group) CHOICE="--GroupNorm true $2" ;;
    *) stop "NORM=$NORM: give batch or group" ;;
  esac
}

# baselines FLAGS... -- EXTRA-FLAGS...: train the methods in METHODS, each as the released script does.
baselines() {
  local shared=() method
  while [ "$1" != -- ]; do shared+=("$1"); shift; done
  shift
  # All names are looked at before the first training starts.
  for method in ${METHODS:-AT TRADES MART}; do
    case "$method" in AT | TRADES | MART) ;; *) stop "METHODS: no baseline $method; there are AT, TRADES, MART" ;; esac
  done
  for method in ${METHODS:-AT TRADES MART}; do
    local beta=(--beta 6)
    case "$method" in AT) beta=(--beta -1) ;; MART) beta=(--beta 6 --mart) ;; esac
    # CHOICE holds several words.
    # shellcheck disable=SC2086
    train --DyART false "${beta[@]}" "${shared[@]}" $CHOICE "$@"
  done
}

# The first argument of resume.sh and eval.sh.
need_folder() {
  case "${1:-}" in
    '' | -*) stop "usage: bash dyart/scripts/$(basename "$0") FOLDER [flags], FOLDER = results/dyart/DATA_SET/RUN" ;;
  esac
}
