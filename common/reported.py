"""Numbers that others report, from results/reported/<paper>.csv, and which of them may stand beside ours."""

import csv
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError
from common.runs import Column, Row, Table

CLASSES = {"A": "the authors' own, or RobustBench", "B": "transcribed", "C": "quoted by another paper",
           "D": "read off a figure", "E": "independent re-run"}


@dataclass(frozen=True)
class Reported:
    """One row of the CSV, as text; `value` is a percentage, sometimes with its spread ("47.63+-0.08")."""

    source_class: str
    paper: str
    table: str
    dataset: str
    model: str
    method: str
    variant: str
    norm: str
    eps: str
    metric: str
    value: str
    checkpoint: str
    source: str

    @property
    def line(self) -> tuple[str, ...]:
        """What makes numbers comparable: one line of the table of reported numbers."""
        return (self.source_class, self.paper, self.table, self.model, self.method, self.variant, self.checkpoint,
                self.source)


def read(path: Path) -> list[Reported]:
    """The rows in the order of the file; none if there is no file, a UserError if it is not such a file."""
    if not Path(path).exists():
        return []
    with open(path, newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream, restkey="more", restval=None))
    known = set(Reported.__dataclass_fields__)
    for number, row in enumerate(rows, start=2):
        if set(row) != known or None in row.values() or row["source_class"] not in CLASSES or not row["source"]:
            raise UserError(f"{path} line {number}: needs the columns {', '.join(Reported.__dataclass_fields__)}, "
                            f"a source, and a source_class of {', '.join(CLASSES)}")
    return [Reported(**row) for row in rows]


def of_row(reported: list[Reported], table: Table, dataset: str, row: Row) -> list[Reported]:
    """What is reported for a row's method and variant ("*" stands for any) on our network, data set and eps."""
    name, models = table.reported_datasets.get(dataset, dataset), table.reported_models.get(dataset, ())
    return [one for one in reported
            if one.dataset == name and one.model in models and one.eps in ("", table.reported_eps)
            and any(one.method == method and variant in ("*", one.variant) for method, variant in row.reported)]


def best(candidates: list[Reported], column: Column, paper: str) -> Reported | None:
    """The number to stand beside ours: the paper's own before others', last weights before chosen ones (ours are the
    last), then by class and order in the file; a metric named earlier in `column.reported` goes before a later one."""
    ranked = [one for one in candidates if one.metric in column.reported]
    return min(ranked, key=lambda one: (column.reported.index(one.metric), one.paper != paper,
                                        not one.checkpoint.startswith(("last", "final")), one.source_class),
               default=None)
