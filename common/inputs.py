"""What a reader asks of a file before it opens, parses or unpacks it.  No torch here.

Files come from strangers: a named pipe would hang, a device never ends, and a small file can claim to be a huge one.
"""

import json
import os
import stat
from pathlib import Path
from typing import Any, NoReturn

from common.errors import UserError

MAX_JSON = 1 << 26             # bytes; the largest of ours, a ledger with numbers for each image, has some millions
MAX_DEPTH = 100                # of lists and objects within each other
KINDS = ((stat.S_ISFIFO, "a named pipe"), (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"),
         (stat.S_ISSOCK, "a socket"))


def check_is_file(path: str | Path) -> None:
    """UserError for a pipe, device or socket, and for a path that cannot be looked at.

    A missing file and a folder pass: each reader has its own words for these.
    """
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, ValueError) as error:
        cannot_read(path, error)
    check_mode(path, mode)


def check_mode(path: str | Path, mode: int) -> None:
    """UserError if `mode`, as os.stat has it, is that of a pipe, device or socket."""
    if kind := next((name for test, name in KINDS if test(mode)), None):
        raise UserError(f"{path} is {kind}, not a file: give a file on a disk", code="E-NOT-A-FILE")


def cannot_read(path: str | Path, error: Exception) -> NoReturn:
    """The UserError for a path that the system refuses."""
    path = getattr(error, "filename", None) or path
    shown = str(path) if len(str(path)) <= 300 else f"{str(path)[:300]}..."
    reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
    raise UserError(f"cannot read {shown!a}: {reason}: check the path and its permissions",
                    code="E-READ") from error


def refuse_way_out(path: Path, inside: Path) -> None:
    """UserError if `path` is a link that leaves the data set's folder or leads nowhere."""
    if not path.is_symlink():
        return
    target = path.resolve()
    if not target.is_relative_to(inside):
        raise UserError(f"{path} is a link out of the folder, to {target}, and is not followed: "
                        "put a copy there instead", code="E-LINK")
    if not target.exists():
        raise UserError(f"{path} is a link to {target}, which does not exist: remove it", code="E-LINK")


def read_text(path: str | Path, limit: int = MAX_JSON) -> str:
    """The UTF-8 text of a regular file; UserError, OSError or ValueError."""
    check_is_file(path)
    with open(path, "rb") as stream:
        content = stream.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"larger than {limit >> 20} MiB, which no file of this kind is")
    return content.decode("utf-8")


def parse_json(text: str) -> Any:
    """The value of a JSON text.

    ValueError too for what JSON has not (NaN, infinities, numbers beyond floats, halves of characters) and for lists
    and objects more than MAX_DEPTH deep.
    """
    try:
        value = json.loads(text, parse_constant=_not_json, parse_float=_finite, parse_int=_whole)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    except UnicodeEncodeError:
        raise ValueError("it holds half a character") from None
    # Deeper than any record, but not so deep that those who go through it fail.
    if not _within(value, MAX_DEPTH):
        raise ValueError("it is nested too deep")
    return value


def _not_json(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON")


def _finite(text: str) -> float:
    value = float(text)
    if value - value != 0:
        raise ValueError(f"the number {text[:20]} is too large")
    return value


def _whole(text: str) -> int:
    value = int(text)
    if abs(value) >= 2 ** 63:
        raise ValueError(f"the number {text[:20]} is too large")
    return value


def _within(value: Any, depth: int) -> bool:
    level = [value]
    while level and depth:
        level = [inner for one in level if isinstance(one, dict | list)
                 for inner in (one.values() if isinstance(one, dict) else one)]
        depth -= 1
    return not level


def memory_free() -> int | None:
    """Bytes of memory that can still be had here; None where the system does not say."""
    found = []
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                found.append(1024 * int(line.split()[1]))
    except OSError:
        pass                   # not Linux: the other limit decides
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY:
            used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
            found.append(max(0, limit - used))
    except (ImportError, OSError):
        pass
    return min(found, default=None)


def check_memory(nbytes: int, what: str, instead: str = "use fewer or smaller images") -> None:
    """UserError if so many bytes are more than the memory that is free; instead: what may be done."""
    free = memory_free()
    if free is not None and nbytes > free:
        raise UserError(f"{what} takes {nbytes / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free: {instead}, "
                        "or a machine with more memory", code="E-MEMORY")
