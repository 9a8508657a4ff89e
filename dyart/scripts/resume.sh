#!/usr/bin/env bash
# Go on with an unfinished run: bash dyart/scripts/resume.sh FOLDER [flags], FOLDER = results/dyart/DATA_SET/RUN.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

need_folder "$@"
folder=$1
shift
train --resume true --resume_fname "$folder" "$@"
