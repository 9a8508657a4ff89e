"""The data folder: what is there, whole, half or damaged, and what to type for what is not."""

import hashlib
import json
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from common.doctor.findings import NOTE, OK, PROBLEM, Finding, number, python, shown, size, some, typed
from common.doctor.npz_heads import BROKEN, head_of_npy, heads_of_npz, holds, reason, unfit
from common.environment import ROOT

AREA = "data"
TINY, TINY_FOLDERS, TINY_IMAGES = "tiny-imagenet", ("tiny-imagenet-200", "tiny-imagenet"), {"train": 100_000,
                                                                                           "val": 10_000}
ENDINGS = (".jpeg", ".jpg", ".png")
MUCH = 10**9                   # bytes of a cache that are worth a note


def known_files(root: Path = ROOT) -> dict[str, dict[str, Any]]:
    """Data set -> its "archives" and unpacked "files", each a path in the data folder -> md5, bytes."""
    return json.loads((root / "data" / "checksums.json").read_text(encoding="utf-8"))


def check_data(folder: Path, asked: Iterable[str] = (), *, known: Mapping[str, Any] | None = None,
               full: bool = False) -> list[Finding]:
    """Every named data set, npz file, folder of corrupted images, cache and half download in the data folder.

    asked: as --data takes it; what is asked for and is not there is a problem.  full: reads npz files to their end.
    """
    known = known_files() if known is None else known
    asked = list(asked)
    found, absent = [], []
    for name, files in known.items():
        said = list(_vision(name, files, folder, full))
        if not said and name in asked:
            said = [Finding(PROBLEM, AREA, "absent", f"{name} is not in {shown(folder)}/", fetch(name, folder))]
        found += said
        absent += [] if said else [name]
    if absent:
        found.append(Finding(NOTE, AREA, "absent", f"not in {shown(folder)}/: {some(absent, 9)}; each is downloaded "
                             "and checked at its first use, or now", fetch(absent[0], folder)))
    found += _tiny(folder, next((one for one in asked if one.partition("?")[0] == TINY), None))
    for spec in asked:
        found += _asked(spec, known, full)
    taken = {f"{name}.npz" for name in known}
    for path in sorted(folder.glob("*.npz")):
        if path.name not in taken:
            found.append(check_npz(path, full))
    for labels in sorted(folder.glob("*/labels.npy")):
        found += _corrupted(labels.parent)
    return [*found, *_left_over(folder)]


def loadable(folder: Path, asked: Iterable[str] = ()) -> list[str]:
    """The data sets that can be loaded without a download: those asked for, and those that are whole in the folder."""
    whole = [name for name, files in known_files().items() if any(one.level == OK and one.kind in ("npz", "whole")
                                                                  for one in _vision(name, files, folder, False))]
    tiny = [TINY] if any(one.level == OK for one in _tiny(folder, None)) else []
    return list(dict.fromkeys([*whole, *tiny, *(spec for spec in asked if ":" in spec)]))


def fetch(name: str, folder: Path) -> str:
    """The command that downloads a data set of torchvision into a folder."""
    place = "" if folder.resolve() == (ROOT / "data").resolve() else f", data_dir={str(folder)!r}"
    return f'{python()} -c "from common.data import load; load({name!r}{place})"'


def told(spec: str) -> str:
    """The command whose one line says how to mend a data set that cannot be read."""
    return f'{python()} -c "from common.data import load; load({spec!r})"'


def check_npz(path: Path, full: bool = False) -> Finding:
    """An npz file, by its headers; full: to the last byte, against the checksums in the file."""
    spec = f"npz:{shown(path)}"
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("its end is missing" if path.stat().st_size else "it is empty")
        heads = heads_of_npz(path)
        if full:
            with zipfile.ZipFile(path) as archive:
                if (torn := archive.testzip()) is not None:
                    raise ValueError(f"the bytes of {torn} are not those that were written")
    except BROKEN as error:
        return Finding(PROBLEM, AREA, "npz-damaged", f"{shown(path)} is damaged or half copied ({reason(error)}): copy "
                       "or download it again", told(spec))
    if why := unfit(heads):
        return Finding(PROBLEM, AREA, "npz-unfit", f"{shown(path)} cannot be used as data: {why}", told(spec))
    return Finding(OK, AREA, "npz", f"{shown(path)}: {holds(heads)}{', checksums right' if full else ''}")


def _vision(name: str, files: Mapping[str, Any], folder: Path, full: bool) -> Iterator[Finding]:
    """What there is of a data set of torchvision; nothing if there is nothing."""
    if (prepared := folder / f"{name}.npz").exists():
        yield check_npz(prepared, full)
        return
    there = [path for path in files["files"] if (folder / path).exists()]
    wrong = [path for path in there if not _right(folder / path, files["files"][path])]
    archives = [path for path in files["archives"] if (folder / path).exists()]
    damaged = [path for path in archives if not _right(folder / path, files["archives"][path])]
    mend = fetch(name, folder)
    if there and not wrong and len(there) == len(files["files"]):
        checked = "md5 right" if all("md5" in one for one in files["files"].values()) else "sizes right"
        yield Finding(OK, AREA, "whole", f"{name} is complete: {number(len(there), 'file')}, {checked}")
    elif damaged:
        first = folder / damaged[0]
        bytes_ = files["archives"][damaged[0]]["bytes"]
        how = (f"incomplete, {size(first.stat().st_size)} of {size(bytes_)}" if first.stat().st_size < bytes_
               else "not the original (its md5 differs)")
        yield Finding(PROBLEM, AREA, "archive", f"{name}: {shown(first)} is {how}", f"{typed('rm', first)} && {mend}")
    elif there:
        gone = [Path(path).name for path in files["files"] if path not in there]
        what = "; ".join([*([f"missing {some(gone)}"] if gone else []),
                          *([f"damaged {some([Path(path).name for path in wrong])}"] if wrong else [])])
        yield Finding(PROBLEM, AREA, "half", f"{name} is not complete in {shown((folder / there[0]).parent)}: {what}",
                      mend)
    elif archives:
        level, rest = (OK, "") if len(archives) == len(files["archives"]) else (NOTE, ", the rest is downloaded")
        yield Finding(level, AREA, "archive", f"{name}: {number(len(archives), 'archive')} here, md5 right; unpacked "
                      f"at the first use{rest}", mend if rest else "")


def _right(path: Path, known: Mapping[str, Any]) -> bool:
    if not path.is_file() or path.stat().st_size != known.get("bytes", path.stat().st_size):
        return False
    if "md5" not in known:
        return True
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest() == known["md5"]


def _tiny(folder: Path, asked: str | None) -> Iterator[Finding]:
    script = typed("bash", "data/TinyImageNet-200.sh", *([] if folder.resolve() == (ROOT / "data").resolve()
                                                          else [folder]))
    root = next((folder / name for name in TINY_FOLDERS if (folder / name).is_dir()), None)
    if root is None:
        if (part := folder / "tiny-imagenet-200.zip.part").exists():
            yield Finding(PROBLEM if asked else NOTE, AREA, "tiny-part", f"{TINY} is half downloaded "
                          f"({size(part.stat().st_size)} of 248 MB): the same command goes on with it", script)
        else:
            yield Finding(PROBLEM if asked else NOTE, AREA, "tiny-absent", f"{TINY} is not in {shown(folder)}/ (a "
                          "download of 248 MB)", script)
        return
    counts, empty = dict.fromkeys(TINY_IMAGES, 0), []
    for part in counts:
        for path, length in _images(root / part):
            counts[part] += 1
            empty += [] if length else [path]
    again = f"{typed('mv', root, root.with_name(root.name + '.old'))} && {script}"
    if empty:
        yield Finding(PROBLEM, AREA, "tiny-empty", f"{TINY}: {number(len(empty), 'image')} in {shown(root)} "
                      f"{'is' if len(empty) == 1 else 'are'} empty, such as {shown(Path(empty[0]))}", again)
    elif counts == TINY_IMAGES:
        yield Finding(OK, AREA, "tiny", f"{TINY} is complete: 100,000 training and 10,000 test images")
    else:
        nothing = 0 in counts.values()
        level = PROBLEM if nothing or asked == TINY else NOTE
        use = "" if nothing else f"; --data '{TINY}?subset' takes what there is"
        yield Finding(level, AREA, "tiny-part", f"{TINY} in {shown(root)} has {counts['train']:,} of 100,000 training "
                      f"and {counts['val']:,} of 10,000 test images{use}", again)


def _images(folder: Path) -> Iterator[tuple[str, int]]:
    """(path, bytes) of every image below a folder."""
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    for entry in entries:
        if entry.is_dir():
            yield from _images(Path(entry.path))
        elif entry.name.lower().endswith(ENDINGS):
            yield entry.path, entry.stat().st_size


def _asked(spec: str, known: Mapping[str, Any], full: bool) -> Iterator[Finding]:
    """What --data names that does not lie in the data folder."""
    kind, colon, text = spec.partition(":")
    path = Path(text.partition("?")[0])
    if not colon:
        names = (*known, "digits", TINY, f"{TINY}?subset")
        if spec not in names:
            yield Finding(PROBLEM, AREA, "unknown", f"there is no data set {spec!r}; there are {', '.join(names)}, "
                          "npz:FILE and folder:DIR", told(spec))
    elif kind == "npz" and path.is_file():
        yield check_npz(path, full)
    elif kind == "folder" and path.is_dir():
        yield _folder(path, spec)
    else:
        known_kind = kind in ("npz", "folder")
        yield Finding(PROBLEM, AREA, "unknown", f"--data {spec}: " + (f"{text or 'no path'} is not there" if known_kind
                      else "write npz:FILE or folder:DIR"), typed("ls", path.parent) if known_kind else told(spec))


def _folder(path: Path, spec: str) -> Finding:
    second = "test" if (path / "test").is_dir() else "val"
    classes = {part: {one.name for one in path.glob(f"{part}/*") if one.is_dir() and not one.name.startswith(".")}
               for part in ("train", second)}
    if not all(classes.values()) or classes["train"] != classes[second]:
        return Finding(PROBLEM, AREA, "folder", f"{shown(path)} needs train/CLASS/ and test/CLASS/ with the same "
                       f"classes: there are {len(classes['train'])} in train and {len(classes[second])} in {second}",
                       told(spec))
    return Finding(OK, AREA, "folder", f"{shown(path)}: {number(len(classes['train']), 'class folder')} in train and "
                   f"{second}")


def _corrupted(folder: Path) -> Iterator[Finding]:
    """A folder of corrupted test images: labels.npy and NAME.npy, all of one length."""
    bad, heads = [], {}
    for path in sorted(folder.glob("*.npy")):
        try:
            heads[path.stem] = head_of_npy(path)
        except BROKEN as error:
            bad.append(f"{path.name} ({reason(error)})")
    count = heads["labels"].shape[0] if "labels" in heads and heads["labels"].shape else 0
    bad += [f"{name}.npy ({head})" for name, head in heads.items()
            if head.shape[:1] != (count,) or (name != "labels" and head.dtype[1:] != "u1")]
    again = typed("tar", "-xf", f"{folder.name}.tar", "-C", folder.parent)
    if bad or count % 5:
        yield Finding(PROBLEM, AREA, "corrupted", f"{shown(folder)}: damaged or half unpacked: {some(bad)}", again)
    else:
        yield Finding(OK, AREA, "corrupted", f"{shown(folder)}: {number(len(heads) - 1, 'corruption')} of "
                      f"{count // 5:,} test images")


def _left_over(folder: Path) -> Iterator[Finding]:
    if halves := sorted(folder.glob(".download-*")):
        yield Finding(NOTE, AREA, "download", f"{number(len(halves), 'download')} was cut off in {shown(folder)} "
                      f"({size(sum(map(bytes_in, halves)))}), or runs now; if none runs, remove it",
                      typed("rm", "-r", *halves))
    if (cache := folder / ".cache").is_dir():
        taken = bytes_in(cache)
        what = f"{shown(cache)} keeps decoded images, {size(taken)}; it may be removed at any time and is made again"
        yield (Finding(NOTE, AREA, "cache", what, typed("rm", "-r", cache)) if taken >= MUCH
               else Finding(OK, AREA, "cache", what))


def bytes_in(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
