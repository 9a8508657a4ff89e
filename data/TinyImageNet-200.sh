#!/usr/bin/env bash
# Fetch Tiny-ImageNet (237 MB): bash data/TinyImageNet-200.sh [FOLDER]
#
# FOLDER (this script's own, if not given) gets tiny-imagenet-200/, just as the authors' archive unpacks: the loader
# reads that layout, and nothing is moved.  Runs from anywhere and asks nothing.  Type it again to go on with a download
# that was cut off; it does nothing where the data are there.  TINY_IMAGENET_URL names another copy of the archive.
# The authors publish no checksum, so the archive is tested as a whole, and its images are counted.
set -euo pipefail

url="${TINY_IMAGENET_URL:-http://cs231n.stanford.edu/tiny-imagenet-200.zip}"
# Only tests, with archives of a few images, have a use for other numbers.
train_images="${TINY_IMAGENET_TRAIN:-100000}"
val_images="${TINY_IMAGENET_VAL:-10000}"

fail() {
    echo "error: $*" >&2
    exit 2
}

have() {
    command -v "$1" > /dev/null 2>&1
}

# Whether folder $1 holds all images, in the archive's layout or sorted into classes.
complete() {
    [ -d "$1/train" ] && [ -d "$1/val" ] || return 1
    [ "$(find "$1/train" -name '*.JPEG' | wc -l)" -eq "$train_images" ] || return 1
    [ "$(find "$1/val" -name '*.JPEG' | wc -l)" -eq "$val_images" ]
}

# Whether the archive $1 is sound, every byte of it.
sound() {
    if have unzip; then
        unzip -tqq "$1" < /dev/null > /dev/null 2>&1
    else
        python3 -c 'import sys, zipfile; sys.exit(zipfile.ZipFile(sys.argv[1]).testzip() is not None)' "$1" 2> /dev/null
    fi
}

# Unpack the archive $1 into the folder $2.
unpack() {
    if have unzip; then
        unzip -qq -o "$1" -d "$2" < /dev/null > /dev/null 2>&1
    else
        python3 -m zipfile -e "$1" "$2" > /dev/null 2>&1
    fi
}

# Fetch $url into $1, going on where it ends.
fetch() {
    if have curl; then
        if [ -t 2 ]; then
            curl --fail --location --progress-bar --connect-timeout 30 --speed-limit 1 --speed-time 60 \
                 --continue-at - --output "$1" "$url"
        else
            curl --fail --location --silent --connect-timeout 30 --speed-limit 1 --speed-time 60 \
                 --continue-at - --output "$1" "$url"
        fi
    elif [ -t 2 ]; then
        wget --quiet --show-progress --tries=3 --timeout=30 --continue --output-document="$1" "$url"
    else
        wget --quiet --tries=3 --timeout=30 --continue --output-document="$1" "$url"
    fi
}

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
target="${1:-$here}"
[ "$#" -le 1 ] || fail "too many words: bash data/TinyImageNet-200.sh [FOLDER]"
mkdir -p "$target" 2> /dev/null || fail "cannot make the folder $target"
cd "$target" || fail "cannot enter the folder $target"

for folder in tiny-imagenet-200 tiny-imagenet; do
    if complete "$folder"; then
        echo "Tiny-ImageNet is there already: $PWD/$folder"
        exit 0
    fi
done
[ ! -e tiny-imagenet-200 ] || fail "$PWD/tiny-imagenet-200 is there, but not complete: move it away and type this again"
have curl || have wget || fail "neither curl nor wget is there: install one of them"
have unzip || have python3 || fail "neither unzip nor python3 is there: install one of them"

archive=tiny-imagenet-200.zip
part="$archive.part"
if [ -e "$archive" ] && ! sound "$archive"; then
    mv "$archive" "$part"                  # cut off, it seems: go on where it ends
fi
if [ ! -e "$archive" ]; then
    # A part that is whole already would make the server refuse to go on with it.
    if [ ! -e "$part" ] || ! sound "$part"; then
        echo "fetching $url into $PWD"
        fetch "$part" || fail "cannot fetch $url (status $?): check the network and type this again, it goes on where" \
                              "it was; if that does not help, remove $PWD/$part or put $archive there by hand"
        sound "$part" || { rm -f "$part"; fail "$url gave a damaged archive, now removed: type this again"; }
    fi
    mv "$part" "$archive"
fi

# Unpacked beside its place and renamed, so that tiny-imagenet-200/ is complete or absent.
work=".tiny-imagenet-200.$$"
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
mkdir "$work"
echo "unpacking $PWD/$archive"
unpack "$archive" "$work" || fail "cannot unpack $PWD/$archive: is the disk full?"
complete "$work/tiny-imagenet-200" || fail "$PWD/$archive has not $train_images training and $val_images validation" \
                                           "images: remove it and type this again"
mv "$work/tiny-imagenet-200" tiny-imagenet-200
echo "Tiny-ImageNet is in $PWD/tiny-imagenet-200; $archive may be removed"
