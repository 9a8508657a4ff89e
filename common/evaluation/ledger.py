"""The chunks of an evaluation that are done, kept on disk, so that an interrupted one goes on at the next chunk.

Of several processes each keeps a file of its own and reads those of all: any number of them goes on where others left.
"""

from collections.abc import Iterable, Mapping
from glob import escape
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from common.errors import UserError
from common.evaluation.plans import Plan
from common.files import read_json, write_json


class Chunk(NamedTuple):
    """flags (B,) bool: still classified correctly; survivors: images left after each stage, "clean" first; arrays:
    name -> (B,) float32, other numbers per image, NaN for none; number: which chunk of the images it is, from 0.
    """

    flags: np.ndarray
    survivors: dict[str, int]
    seconds: float
    arrays: Mapping[str, np.ndarray] = MappingProxyType({})
    number: int = 0


def ledger_path(work: Path, plan: Plan, rank: int = 0) -> Path:
    """Where the progress of a plan is kept in the folder `work`."""
    return Path(work) / f"progress-{plan.name}{f'.rank{rank}' if rank else ''}.json"


def ledger_paths(work: Path, plan: Plan) -> list[Path]:
    """The files that there are of all ranks, however many processes there were."""
    return [*Path(work).glob(f"progress-{escape(plan.name)}.json"),
            *sorted(Path(work).glob(f"progress-{escape(plan.name)}.rank*.json"))]


class Ledger:
    """Chunks by evaluator name, written whole after each one.

    `key` says what they were measured on (plan, weights, images, seed, versions).  A file with another key, or one that
    is no ledger, is put aside as if it were not there; `discarded` then says so.
    """

    def __init__(self, path: Path, key: dict[str, Any], sizes: dict[str, list[int]], others: Iterable[Path] = ()):
        """sizes: per evaluator, the number of images in each of its chunks.  others: files that are only read."""
        self.path, self.key = path, key
        self.chunks: dict[str, list[Chunk]] = {name: [] for name in sizes}
        self.discarded = ""
        for file in (path, *(other for other in others if other != path)):
            try:
                if file.exists():
                    self.merge(chunks_in(read_json(file), key, sizes))
            except (UserError, ValueError, KeyError, IndexError, TypeError, AttributeError):
                self.discarded = f"{file} belongs to another evaluation or is damaged: starting afresh"

    def merge(self, found: Mapping[str, Iterable[Chunk]]) -> None:
        """Take in the chunks that are not there yet."""
        for name, chunks in found.items():
            known = {chunk.number: chunk for chunk in (*chunks, *self.chunks[name])}
            self.chunks[name] = [known[number] for number in sorted(known)]

    def append(self, name: str, chunk: Chunk) -> None:
        """Add an evaluator's next chunk and write the file."""
        self.merge({name: [chunk]})
        write_json(self.path, {"key": self.key, "chunks": {key: [written(entry, place) for place, entry in
                                                                 enumerate(entries)]
                                                           for key, entries in self.chunks.items()}})


def chunks_in(content: Any, key: Mapping[str, Any], sizes: Mapping[str, list[int]]) -> dict[str, list[Chunk]]:
    """The chunks of a ledger's file; an error of any kind where it is of another evaluation or damaged."""
    if content["key"] != key:
        raise ValueError("another evaluation")
    found: dict[str, list[Chunk]] = {name: [] for name in sizes}
    for name, entries in content["chunks"].items():
        for place, entry in enumerate(entries):
            number = int(entry.get("number", place))
            size = dict(enumerate(sizes[name]))[number]
            if len(entry["flags"]) != size or set(entry["flags"]) - {"0", "1"}:
                raise ValueError("damaged flags")
            flags = np.array([letter == "1" for letter in entry["flags"]], dtype=np.bool_)
            survivors = {str(stage): int(count) for stage, count in entry["survivors"].items()}
            arrays = {str(key): np.array([np.nan if value is None else value for value in values], np.float32)
                      for key, values in entry.get("arrays", {}).items()}
            if any(array.shape != (size,) for array in arrays.values()):
                raise ValueError("damaged numbers")
            found[name].append(Chunk(flags, survivors, float(entry["seconds"]), arrays, number))
    return found


def written(chunk: Chunk, place: int) -> dict[str, Any]:
    """A chunk as JSON, with its number where it differs from its place in the list."""
    arrays = {name: [None if np.isnan(value) else float(value) for value in array]
              for name, array in chunk.arrays.items()}
    return {"flags": "".join("01"[int(flag)] for flag in chunk.flags), "survivors": chunk.survivors,
            "seconds": round(chunk.seconds, 3), **({"arrays": arrays} if arrays else {}),
            **({"number": chunk.number} if chunk.number != place else {})}
