"""Files that are whole or absent: written to a temporary name beside the target, flushed, renamed.

A temporary file is called .NAME.HOST-PID.tmp.  What a killed process left is removed when its folder is next written
to: on the same machine once no such process is there, else after a week.
"""

import errno
import hashlib
import json
import os
import platform
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from common.errors import UserError

HOST = re.sub(r"[^A-Za-z0-9]+", "_", platform.node())[:40] or "host"
LEFT = re.compile(r"\..+\.([A-Za-z0-9_]+)-([0-9]+)\.tmp")
OLD = 7 * 86400.0                    # seconds
_swept: set[Path] = set()            # folders that this process has looked through


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; rename it to `path` if the block ends well, else remove it.

    A full or read-only disk becomes a UserError that names the file; what stood at `path` is untouched.  The file is on
    the disk, under its name, when this returns.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{HOST}-{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent)
        yield temporary
        with open(temporary, "rb+") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise write_failure(path, error) from error
    finally:
        # A failed unlink must not hide the failure that led here.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Bring a folder's names to the disk, so that a power cut cannot take a rename back; not all file systems can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sweep(folder: Path) -> None:
    """Remove the temporary files that killed processes left in a folder; once a folder and process."""
    if (folder := folder.absolute()) in _swept:
        return
    _swept.add(folder)
    with suppress(OSError):
        for path in folder.glob(".*.tmp"):
            if (left := LEFT.fullmatch(path.name)) and _is_left(path, left[1], int(left[2])):
                path.unlink(missing_ok=True)


def _is_left(path: Path, host: str, pid: int) -> bool:
    """Whether the process that wrote a temporary file is gone, as far as can be told from here."""
    if host == HOST:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        except (OSError, OverflowError):             # of another user
            pass
    return pid != os.getpid() and time.time() - path.stat().st_mtime > OLD


def remove(*paths: Path) -> None:
    """Remove files, where they are there; a UserError where that cannot be done."""
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"cannot remove {path}: {error.strerror or error}") from error


def write_failure(path: Path, error: OSError) -> UserError:
    """The UserError that a failed write of `path` becomes."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"no space left while writing {path}: free some space and type the same command again; "
                         "the last whole file is kept")
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return UserError(f"cannot write {path}: {error.strerror}: make its folder writable, or name another one")
    if error.errno is None:                          # numpy's, where the file ends before the array
        return UserError(f"cannot write {path}: only a part went to the disk ({error}): is it full?")
    return UserError(f"cannot write {path}: {error.strerror}")


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON with sorted keys; NaN and infinities are refused (ValueError)."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; one that cannot be read is a UserError that names it."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not readable JSON: {error}") from error


def sha256_of(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_of_json(value: Any) -> str:
    """Hex digest of a JSON value, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()
