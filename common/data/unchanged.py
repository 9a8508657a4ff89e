"""Files that are read while a training or an evaluation runs must not change meanwhile."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.errors import UserError


class Seen(NamedTuple):
    """A file as it was when it was opened."""

    path: Path
    size: int
    modified: int              # nanoseconds

    @classmethod
    def now(cls, path: Path) -> "Seen":
        status = path.stat()
        return cls(path, status.st_size, status.st_mtime_ns)

    def check(self) -> None:
        """UserError where the file is gone, or has another size or date."""
        try:
            same = self == Seen.now(self.path)
        except OSError:
            same = False
        if not same:
            raise UserError(f"{self.path} has changed since this command opened it: nothing more is read of it, and "
                            "what was saved before is kept. Put the file back as it was and type the same command "
                            "again; for work on the new file give another name with --run", code="E-DATA-CHANGED")


def file_of(array: np.ndarray) -> Path | None:
    """The file that a memory map, or a view of one, lies in."""
    while array is not None and not isinstance(array, np.memmap):
        array = getattr(array, "base", None)
    return None if array is None or array.filename is None else Path(array.filename)
