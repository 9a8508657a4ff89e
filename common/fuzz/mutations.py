"""How files are damaged: bytes, JSON values, members of archives, entries of folders.

Everything is drawn from a `random.Random`, by randrange and choice only, so that hypothesis can stand behind it.
"""

import io
import json
import os
import struct
import zipfile
from pathlib import Path
from random import Random
from typing import Any

NUMBERS = (0, 1, -1, 2, 127, 128, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64,
           10**12, 10**40)
VALUES: tuple[Any, ...] = (
    None, True, False, *NUMBERS, 0.5, -0.0, 1e308, float("nan"), float("inf"), "", "x", "../x", "/etc/passwd", "a/b",
    "a\0b", "\ud800", "\n", "x" * 5000, "'", "last.pt", [], {}, [[]], [None], {"": None}, {"a": [1, "b"]}, [1, 2, 3])


def damage(random: Random, content: bytes) -> bytes:
    """Up to three small damages: bytes flipped or set, pieces cut, doubled, moved or swapped for others."""
    content = bytearray(content)
    for _ in range(random.randrange(1, 4)):
        if not content:
            break
        here = random.randrange(len(content))
        length = min(len(content) - here, random.choice((1, 1, 2, 4, 8, 32, 256)))
        how = random.randrange(8)
        if how == 0:
            content[here] ^= 1 << random.randrange(8)
        elif how == 1:
            content[here] = random.randrange(256)
        elif how == 2:
            del content[here:]
        elif how == 3:
            del content[here:here + length]
        elif how == 4:
            content[here:here] = content[here:here + length]
        elif how == 5:
            there = random.randrange(len(content))
            content[there:there + length] = content[here:here + length]
        elif how == 6:
            content[here:here + length] = b"\xff" * length
        else:
            form = random.choice(("<B", "<H", "<I", "<Q"))
            word = struct.pack(form, random.choice(NUMBERS) % (1 << 8 * struct.calcsize(form)))
            content[here:here + len(word)] = word
    return bytes(content)


def damage_text(random: Random, content: bytes) -> bytes:
    """A number or a letter within a text replaced, which keeps it readable; else as `damage`."""
    places = [place for place, letter in enumerate(content) if letter in b"0123456789,'()<|"]
    if not places or random.randrange(3) == 0:
        return damage(random, content)
    place = random.choice(places)
    word = random.choice((b"0", b"-1", b"9", b"99999999999", b"True", b"None", b"(", b")", b"'", b",", b"O", b"[",
                          b"1.5", b"u8", b"V8", b"S0", b"U1"))
    return content[:place] + word + content[place + 1:]


def damage_json(random: Random, content: bytes) -> bytes:
    """A value of a JSON text replaced by one of any kind, a key taken out, doubled or added; or as `damage`."""
    if random.randrange(8) == 0:
        return damage(random, content)
    if random.randrange(40) == 0:
        depth = random.choice((50, 1000, 200_000))
        return b"[" * depth + b"]" * random.choice((0, depth))
    if random.randrange(40) == 0:
        return random.choice((b'{"a":NaN}', b'{"a":1e999}', b"9" * 5000, b"\xef\xbb\xbf{}", b"\xff\xfe", b"null"))
    value = json.loads(content)
    for _ in range(random.randrange(1, 3)):
        value = changed(random, value)
    return json.dumps(value).encode()


def changed(random: Random, value: Any) -> Any:
    """The value with one change somewhere in it."""
    if not value or not isinstance(value, dict | list) or random.randrange(10) == 0:
        return random.choice(VALUES)
    if isinstance(value, list):
        place = random.randrange(len(value))
        return [*value[:place], changed(random, value[place]), *value[place + random.randrange(2):]]
    key = random.choice(sorted(value))
    how = random.randrange(6)
    if how == 0:
        return {name: inner for name, inner in value.items() if name != key}
    if how == 1:
        return {**value, random.choice((key + "x", "", "..", "\ud800")): value[key]}
    return {**value, key: random.choice(VALUES) if how == 2 else changed(random, value[key])}


def damage_zip(random: Random, content: bytes) -> bytes:
    """A member damaged and packed again with its right checksum; members renamed, left out, doubled, compressed, lying
    about their size; or as `damage`."""
    if random.randrange(3) == 0:
        return damage(random, content)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    place = random.randrange(len(members))
    name, values = members[place]
    how = random.randrange(9)
    if how < 4:
        # The header, or what stands in its place, is more interesting than values.
        head = values[:random.choice((128, 256, 1024))]
        members[place] = (name, random.choice((damage, damage_text))(random, head) + values[len(head):])
    elif how == 4:
        members[place] = (random.choice((f"../{name}", f"/{name}", name.upper(), "x\n.npy", "a\\..\\b", "\udc80")
                                        if name else "x"), values)
    elif how == 5:
        del members[place]
    elif how == 6:
        members.append((name, damage(random, values)))
    elif how == 7:
        members[place] = (name, random.choice(members)[1])
    method = random.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", method) as archive:
        for member, inner in members:
            archive.writestr(zipfile.ZipInfo(member.encode(errors="replace").decode()), inner, method)
    result = packed.getvalue()
    if how == 8:
        # The sizes in the central directory, 20 bytes behind its mark.
        marks = [at for at in range(len(result) - 46) if result[at:at + 4] == b"PK\1\2"]
        at = random.choice(marks) + random.choice((20, 24))
        result = result[:at] + struct.pack("<I", random.choice(NUMBERS) % 2**32) + result[at + 4:]
    return result


def rewrite(random: Random, path: Path, how: Any = damage) -> None:
    """Damage one file in place."""
    path.write_bytes(how(random, path.read_bytes()))


def disturb(random: Random, folder: Path) -> None:
    """A file of a folder damaged, removed, emptied, renamed, or in its place a link, a pipe, a folder, another file."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if not files:
        return
    path = random.choice(files)
    how = random.randrange(10)
    if how < 3:
        rewrite(random, path)
        return
    other = random.choice(files).read_bytes()
    if how == 9:
        path.rename(path.with_name(random.choice(("x\ny", "x" * 200, ".hidden", "\udcff", "x")) + path.suffix))
        return
    path.unlink()
    if how == 3:
        path.write_bytes(b"")
    elif how == 4:
        path.symlink_to(random.choice(("/etc/passwd", path.name, "nowhere", "..", files[0].resolve())))
    elif how == 5:
        os.mkfifo(path)
    elif how == 6:
        path.mkdir()
    elif how == 7:
        path.write_bytes(other)
