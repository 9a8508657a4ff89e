"""A grid of text as Markdown and LaTeX, rows of values as CSV.  The same input gives the same bytes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

DASH = "—"


@dataclass(frozen=True)
class Grid:
    """A table ready to print: every row as long as the header; notes stand below, one line each."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if any(len(row) != len(self.header) for row in self.rows):
            raise ValueError(f"{self.title}: a row is not as long as the header")


def markdown(grids: Sequence[Grid]) -> str:
    """One section per grid."""
    lines = []
    for level, grid in enumerate(grids):
        lines += [("# " if level == 0 else "## ") + grid.title, ""]
        if grid.rows:
            lines += [_bar(grid.header), "|" + "---|" * len(grid.header), *(_bar(row) for row in grid.rows), ""]
        if grid.notes:
            lines += [*(f"- {note}" for note in grid.notes), ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def _bar(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


_LATEX = {"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{",
          "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", DASH: "---", "–": "--",
          "×": r"$\times$", "−": "$-$"}


def tex(text: str) -> str:
    """Text escaped for LaTeX."""
    return "".join(_LATEX.get(letter, letter) for letter in text)


def latex(grids: Sequence[Grid]) -> str:
    """One tabular per grid (package booktabs), notes as comments."""
    lines = []
    for grid in grids:
        lines.append(f"% {grid.title}")
        if grid.rows:
            lines += [rf"\begin{{tabular}}{{{'l' * len(grid.header)}}}", r"\toprule",
                      " & ".join(tex(cell) for cell in grid.header) + r" \\", r"\midrule",
                      *(" & ".join(tex(cell) for cell in row) + r" \\" for row in grid.rows),
                      r"\bottomrule", r"\end{tabular}"]
        lines += [*(f"% {note}" for note in grid.notes), ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def comma_separated(rows: Sequence[Mapping[str, Any]]) -> str:
    """CSV with the keys of the first row as header; None is an empty cell."""
    # Columns of objects: pandas would turn whole numbers into floats where a cell is empty.
    return pd.DataFrame(list(rows), dtype=object).to_csv(index=False, lineterminator="\n") if rows else ""
