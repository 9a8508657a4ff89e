"""What the doctor finds, and how it is printed: problems first, each with what to type."""

import json
import shlex
import sys
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from common.environment import ROOT

OK, NOTE, PROBLEM = "ok", "note", "problem"
WIDTH = 110
SHOWN = 3                      # findings of one kind that are printed one by one


class Finding(NamedTuple):
    """level: ok, note (works, but is worth knowing) or problem (something fails or cannot be trusted); area: the part
    it belongs to; kind: a word that like findings share; what: one line; type: the command that mends it or goes on."""

    level: str
    area: str
    kind: str
    what: str
    type: str = ""


def python() -> str:
    """How a user calls this Python at the repository root."""
    return ".venv/bin/python" if in_venv() else "python"


def in_venv(prefix: str = sys.prefix, root: Path = ROOT) -> bool:
    """Whether a Python of this prefix is the one of .venv."""
    return (root / ".venv").exists() and Path(prefix).resolve() == (root / ".venv").resolve()


def shown(path: Path, root: Path = ROOT) -> str:
    """A path as one types it at the repository root."""
    path = Path(path).absolute()
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def typed(*words: str | Path) -> str:
    """A command from its words, paths as seen from the repository root, quoted for the shell."""
    return shlex.join([shown(word) if isinstance(word, Path) else word for word in words])


def size(count: float) -> str:
    """Bytes in words: 1.4 GB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:,.0f} {unit}" if unit == "bytes" or count >= 10 else f"{count:.1f} {unit}"


def some(names: Sequence[str], most: int = 4) -> str:
    """The first of some names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def number(count: int, noun: str) -> str:
    """1 note, 2 notes."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def text_of(path: Path) -> str:
    """The text of a file; empty where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def as_text(findings: Sequence[Finding]) -> str:
    """All findings as aligned lines: problems, notes, then what is in order."""
    by_level = {level: [one for one in findings if one.level == level] for level in (PROBLEM, NOTE, OK)}
    lines = []
    for level in (PROBLEM, NOTE):
        if by_level[level]:
            lines += [f"{number(len(by_level[level]), level)}:", *_each(by_level[level]), ""]
    if by_level[OK]:
        width = max(len(one.area) for one in by_level[OK])
        lines += ["in order:", *(_filled(f"{one.area:<{width}}  {one.what}", width + 4) for one in by_level[OK]), ""]
    counts = ", ".join(number(len(by_level[level]), level) for level in (PROBLEM, NOTE))
    return "\n".join([*lines, f"{counts}, {len(by_level[OK])} in order"])


def _filled(line: str, indent: int) -> str:
    return textwrap.fill(line, WIDTH, initial_indent="  ", subsequent_indent=" " * indent, break_long_words=False,
                         break_on_hyphens=False)


def _each(findings: Sequence[Finding]) -> Iterable[str]:
    kinds: dict[tuple[str, str], list[Finding]] = {}
    for one in findings:
        kinds.setdefault((one.area, one.kind), []).append(one)
    for (area, _), alike in kinds.items():
        for one in alike[:SHOWN]:
            yield _filled(f"{area}: {one.what}", 4)
            if one.type:
                yield f"      type:  {one.type}"
        if len(alike) > SHOWN:
            yield f"  {area}: and {len(alike) - SHOWN} more like the last (--json lists all)"


def as_json(findings: Sequence[Finding]) -> str:
    """All findings and their counts."""
    counts = {f"{level}s": sum(one.level == level for one in findings) for level in (PROBLEM, NOTE)}
    return json.dumps({**counts, "findings": [one._asdict() for one in findings]}, indent=1)
