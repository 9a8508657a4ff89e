"""Files from the network: resumed, checked by hash, whole or absent.  The standard library's client; no torch here.

NAME.part grows beside the place of NAME, with NAME.part.json saying what the server called it, and is renamed once its
hash is right.  Proxies and certificates: see common.web.
"""

import fcntl
import hashlib
import http.client
import os
import re
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import HTTPError

from tqdm import tqdm

from common.errors import UserError
from common.files import read_json, write_failure, write_json, write_text
from common.web import opener

SILENCE_S = 30.0                         # a server that says nothing for so long is not there
WAITS_S = (1.0, 3.0, 9.0)                # before the second try and so on
BLOCK = 1 << 18
LATER = {408, 425, 429, 500, 502, 503, 504}                  # statuses of servers that may do better later


@dataclass(frozen=True)
class Remote:
    """A file and where it is: addresses are tried in turn.

    digest: "md5:HEX" or "sha256:HEX" as published; "" where none is, and the first download is noted and trusted.
    most: bytes above which it cannot be the file.
    """

    name: str
    urls: tuple[str, ...]
    digest: str
    most: int


class Interrupted(Exception):
    """The connection broke, or the server may do better later."""


class Unreachable(Interrupted):
    """No connection came about at all."""


class Said(NamedTuple):
    """What a server said of the file: etag (or date), and length in bytes, None where it did not."""

    etag: str | None = None
    length: int | None = None


def fetch(file: Remote, folder: Path) -> Path:
    """The path of `file` in `folder`, downloaded if it is not there; goes on with NAME.part.

    UserErrors: no network or no such file (E-DOWNLOAD), another file there or from the server (E-DOWNLOAD-HASH), disk
    full.  What was fetched stays in NAME.part but where it cannot be right.
    """
    target, part = folder / file.name, folder / f"{file.name}.part"
    if target.exists():
        return known(file, target)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with alone(part):
            if not target.exists():                              # no other process was faster
                filled(file, part)
                accept(file, part, target)
    except OSError as error:
        raise write_failure(target, error) from error
    return target if file.digest else known(file, target)


def filled(file: Remote, part: Path) -> None:
    """Let `part` be the whole file, from the first address that has it."""
    failures, begun = [], part.stat().st_size
    for url in file.urls:
        for wait in (*WAITS_S, None):
            try:
                return take(file, url, part)
            except Interrupted as error:
                # Without a network nothing is gained by waiting; one that has just gone may come back.
                if wait is None or (isinstance(error, Unreachable) and part.stat().st_size == begun):
                    failures.append(str(error))
                    break
                tqdm.write(f"note: {error}: trying again in {wait:.0f} s", file=sys.stderr)
                time.sleep(wait)
            except HTTPError as error:
                failures.append(f"{url} says {error.code} {error.reason}")
                break
    kept = f"; {part.stat().st_size:,} bytes are kept in {part.name}" if part.exists() and part.stat().st_size else ""
    raise UserError(f"cannot fetch {file.name} into {part.parent}: {'; '.join(failures)}{kept}: check the network (and "
                    "http_proxy, https_proxy, if you need a proxy) and type the same command again; it goes on where "
                    "it was", code="E-DOWNLOAD")


def take(file: Remote, url: str, part: Path) -> None:
    """One request for what `part` lacks.  Interrupted, HTTPError, or a UserError for what cannot be the file."""
    have, before = part.stat().st_size, said_before(part, url)
    if have and have == before.length:
        return
    resumes = bool(have and (file.digest or before.etag))            # else two files could be joined unseen
    request = urllib.request.Request(url, headers={"User-Agent": "robust-reproductions", "Accept-Encoding": "identity"})
    if resumes:
        request.add_header("Range", f"bytes={have}-")
        if before.etag:
            request.add_header("If-Range", before.etag)
    try:
        with connected(request) as response:
            begin, length = extent(response, have)
            said = Said(validator(response), length)
            if begin and before.length not in (None, length):        # another file by now
                begin = None
            if begin is None:
                if not have:
                    raise Interrupted(f"{url} answers with a part that nobody asked for")
                return restart(file, url, part)
            if length is not None and length > file.most:
                raise too_large(file, url, length)
            write_json(told(part), {"url": url, **said._asdict()})
            copy(file, url, response, part, begin, length)
    except HTTPError as error:
        if error.code == 416 and have:                               # nothing behind the part: whole, or too much
            if before.length is None and whole_length(error) == have:
                return None
            return restart(file, url, part)
        if error.code in LATER:
            raise Interrupted(f"{url} says {error.code} {error.reason}") from error
        raise
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, WriteError):
            raise error.args[0] from error
        raise Interrupted(f"{url}: {reason(error)}") from error


def connected(request: urllib.request.Request) -> Any:
    """The server's answer; Unreachable where there is none."""
    try:
        return opener().open(request, timeout=SILENCE_S)
    except HTTPError:
        raise
    except (OSError, http.client.HTTPException) as error:
        raise Unreachable(f"{request.full_url}: {reason(error)}") from error


def restart(file: Remote, url: str, part: Path) -> None:
    """Throw the part away and ask for all of it."""
    os.truncate(part, 0)
    told(part).unlink(missing_ok=True)
    take(file, url, part)


class WriteError(OSError):
    """A failed write, as its argument: the disk's, not the network's."""


def copy(file: Remote, url: str, response: Any, part: Path, begin: int, length: int | None) -> None:
    """Append what comes to `part` behind byte `begin`; Interrupted where it is less than the server said."""
    done = begin
    with open(part, "r+b", buffering=0) as out, tqdm(total=length, initial=begin, unit="B", unit_scale=True,
                                                     desc=file.name, disable=None, dynamic_ncols=True) as bar:
        out.truncate(begin)
        out.seek(begin)
        while block := response.read(BLOCK):
            done += len(block)
            if done > file.most:
                raise too_large(file, url, done)
            left = memoryview(block)
            try:
                while left:                                          # a disk that fills up takes a part of it
                    left = left[out.write(left):]
            except OSError as error:
                raise WriteError(error) from error
            bar.update(len(block))
    if length is not None and done != length:
        raise Interrupted(f"{url} ended after {done:,} of {length:,} bytes")


def extent(response: Any, have: int) -> tuple[int | None, int | None]:
    """(first byte that comes, None where it is none that was asked for; length of the whole file, None: not said)."""
    if response.status == 206:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if not found or int(found[1]) != have:
            return None, None
        return have, int(found[2]) if found[2] != "*" else None
    given = response.headers.get("Content-Length", "")
    return 0, int(given) if given.isdigit() else None


def whole_length(error: HTTPError) -> int | None:
    """The length that a server names with status 416."""
    found = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
    return int(found[1]) if found else None


def validator(response: Any) -> str | None:
    """What If-Range takes: a strong ETag, else the date of the last change."""
    etag = response.headers.get("ETag")
    return etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified")


def told(part: Path) -> Path:
    """Where it is kept what the server said of a part."""
    return part.with_name(f"{part.name}.json")


def said_before(part: Path, url: str) -> Said:
    """What the server of this address said of the part, as far as it is known."""
    try:
        kept = read_json(told(part))
        etag, length = kept["etag"], kept["length"]
        if kept["url"] == url and isinstance(etag, str | None) and isinstance(length, int | None):
            return Said(etag, length)
    except (UserError, KeyError, TypeError):
        return Said()
    return Said()


def reason(error: BaseException) -> str:
    """An error of the network in a few words."""
    inner = getattr(error, "reason", error)
    return " ".join(str(getattr(inner, "strerror", None) or inner).split())[:160] or type(inner).__name__


def too_large(file: Remote, url: str, length: int) -> UserError:
    return UserError(f"{url} sends {length:,} bytes or more, and {file.name} has at most {file.most:,}: it is another "
                     "file; put the right one there by hand", code="E-DOWNLOAD-HASH")


# -- checks ----------------------------------------------------------------------------------------------------------

def accept(file: Remote, part: Path, target: Path) -> None:
    """Give the part its name if its hash is right, else remove it."""
    if file.digest and not matches(part, file.digest):
        kind, _, wanted = file.digest.partition(":")
        found = digest_of(part, kind)
        os.truncate(part, 0)
        raise UserError(f"what came for {file.name} has {kind} {found}, not {wanted}, and is removed: type the same "
                        "command again; if it stays so, the server has another file: put the right one into "
                        f"{target.parent} by hand", code="E-DOWNLOAD-HASH")
    with open(part, "rb+") as whole:
        os.fsync(whole.fileno())
    os.replace(part, target)


def known(file: Remote, target: Path) -> Path:
    """`target`, where its hash is the published one, or else that of the first time, which is noted in NAME.sha256."""
    note = target.with_name(f"{target.name}.sha256")
    wanted = file.digest
    if not wanted:
        if not note.exists():
            found = digest_of(target, "sha256")
            write_text(note, f"{found}  {target.name}\n")
            tqdm.write(f"note: no hash of {target.name} is published; its sha256 is {found}, from now on the one that "
                       f"is expected here ({note.name})")
            return target
        wanted = f"sha256:{note.read_text(encoding='utf-8').split()[0]}" if note.stat().st_size else "sha256:"
    if not matches(target, wanted):
        raise UserError(f"{target} is there, but incomplete or damaged: its hash is not {wanted}. Move it away (or "
                        f"rename it to {target.name}.part, to go on with half a download) and type the same command "
                        "again", code="E-DOWNLOAD-HASH")
    return target


def matches(path: Path, digest: str) -> bool:
    """Whether a file has the digest KIND:HEX."""
    kind, _, wanted = digest.partition(":")
    return digest_of(path, kind) == wanted.lower()


def digest_of(path: Path, kind: str) -> str:
    """Hex digest of a file's bytes; kind: md5, sha256.  md5 is what most data sets publish; it is no secret's guard."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.new(kind, usedforsecurity=False)).hexdigest()


@contextmanager
def alone(part: Path) -> Iterator[None]:
    """Hold `part` for this process; an empty one is taken away in the end."""
    with open(part, "ab") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another process is fetching {part}: wait for it, then type the same command again",
                            code="E-BUSY") from error
        except OSError:                                    # a file system without locks
            pass
        try:
            yield
        finally:
            with suppress(FileNotFoundError):
                if os.path.samestat(os.stat(part), os.fstat(held.fileno())) and part.stat().st_size == 0:
                    part.unlink()
            if not part.exists():
                told(part).unlink(missing_ok=True)
