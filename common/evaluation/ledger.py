"""The chunks of an evaluation that are done, kept on disk, so that an interrupted one goes on at the next chunk."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from common.errors import UserError
from common.evaluation.plans import Plan
from common.files import read_json, write_json


class Chunk(NamedTuple):
    """flags (B,) bool: still classified correctly; survivors: images left after each stage, "clean" first; arrays:
    name -> (B,) float32, other numbers per image, NaN for none.
    """

    flags: np.ndarray
    survivors: dict[str, int]
    seconds: float
    arrays: Mapping[str, np.ndarray] = MappingProxyType({})


def ledger_path(work: Path, plan: Plan) -> Path:
    """Where the progress of a plan is kept in the folder `work`."""
    return Path(work) / f"progress-{plan.name}.json"


class Ledger:
    """Chunks by evaluator name, written whole after each one.

    `key` says what they were measured on (plan, weights, images, seed, versions).  A file with another key, or one that
    is no ledger, is put aside as if it were not there; `discarded` then says so.
    """

    def __init__(self, path: Path, key: dict[str, Any], sizes: dict[str, list[int]]):
        """sizes: per evaluator, the number of images in each of its chunks."""
        self.path, self.key = path, key
        self.chunks: dict[str, list[Chunk]] = {name: [] for name in sizes}
        self.discarded = ""
        if path.exists():
            try:
                self._load(read_json(path), sizes)
            except (UserError, ValueError, KeyError, TypeError, AttributeError):
                self.chunks = {name: [] for name in sizes}
                self.discarded = f"{path} belongs to another evaluation or is damaged: starting afresh"

    def _load(self, content: Any, sizes: dict[str, list[int]]) -> None:
        if content["key"] != self.key:
            raise ValueError("another evaluation")
        for name, entries in content["chunks"].items():
            for entry, size in zip(entries, sizes[name], strict=False):
                if len(entry["flags"]) != size or set(entry["flags"]) - {"0", "1"}:
                    raise ValueError("damaged flags")
                flags = np.array([letter == "1" for letter in entry["flags"]], dtype=np.bool_)
                survivors = {str(stage): int(count) for stage, count in entry["survivors"].items()}
                arrays = {str(key): np.array([np.nan if value is None else value for value in values], np.float32)
                          for key, values in entry.get("arrays", {}).items()}
                if any(array.shape != (size,) for array in arrays.values()):
                    raise ValueError("damaged numbers")
                self.chunks[name].append(Chunk(flags, survivors, float(entry["seconds"]), arrays))

    def append(self, name: str, chunk: Chunk) -> None:
        """Add an evaluator's next chunk and write the file."""
        self.chunks[name].append(chunk)
        write_json(self.path, {"key": self.key, "chunks": {key: [written(entry) for entry in entries]
                                                           for key, entries in self.chunks.items()}})


def written(chunk: Chunk) -> dict[str, Any]:
    """A chunk as JSON."""
    arrays = {name: [None if np.isnan(value) else float(value) for value in array]
              for name, array in chunk.arrays.items()}
    return {"flags": "".join("01"[int(flag)] for flag in chunk.flags), "survivors": chunk.survivors,
            "seconds": round(chunk.seconds, 3), **({"arrays": arrays} if arrays else {})}
