#!/usr/bin/env bash
# Fetch Tiny-ImageNet (248 MB): bash data/TinyImageNet-200.sh [FOLDER]
#
# The name by which the original fetches it; python -m scripts.download tiny-imagenet does the work.  FOLDER (this
# script's own, if not given) gets tiny-imagenet-200/, just as the authors' archive unpacks.  Runs from anywhere and asks
# nothing.  Type it again to go on with a download that was cut off; it does nothing where the data are there.
# TINY_IMAGENET_URL names another copy of the archive, PYTHON the Python to use (default: the repository's).
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
if [ "$#" -gt 1 ]; then
    echo "error: too many words: bash data/TinyImageNet-200.sh [FOLDER]" >&2
    exit 2
fi
folder="$(realpath -m "${1:-$here}")"
cd "$here/.."
python="${PYTHON:-.venv/bin/python}"
[ -n "${PYTHON:-}" ] || [ -x "$python" ] || python=python3
if ! "$python" -c 'import sys, tqdm; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; then
    echo "error: $python is no Python from 3.11 on with tqdm: make setup installs one, or name it: PYTHON=python3.12" >&2
    exit 2
fi
exec "$python" -m scripts.download tiny-imagenet --data_dir "$folder" ${TINY_IMAGENET_URL:+--url "$TINY_IMAGENET_URL"}
