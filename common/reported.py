"""Numbers that others report, from results/reported/<paper>.csv, and which of them may stand beside ours."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from common.errors import UserError
from common.inputs import check_is_file
from common.runs import Column, Row, Table

CLASSES = {"A": "the authors' own, or RobustBench", "B": "transcribed", "C": "quoted by another paper",
           "D": "read off a figure", "E": "independent re-run"}
SAME_POINT = 2e-5                              # largest difference of eps within one point of a curve: five decimals


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
    check_is_file(path)
    needs = (f"needs the columns {', '.join(Reported.__dataclass_fields__)}, a source, and a source_class of "
             f"{', '.join(CLASSES)}")
    try:
        # Without a header, so that a line longer than the first one is an error and not taken for an index.
        table = pd.read_csv(path, header=None, dtype=str, keep_default_na=False)
    except (ValueError, OSError) as error:              # pandas' parser errors are ValueErrors
        raise UserError(f"{path}: {error}; it {needs}", code="E-REPORTED") from error
    names = table.iloc[0].tolist()
    if set(names) != set(Reported.__dataclass_fields__):
        raise UserError(f"{path} line 1: {needs}", code="E-REPORTED")
    rows = table.iloc[1:].set_axis(names, axis=1).to_dict("records")
    for number, row in enumerate(rows, start=2):
        if row["source_class"] not in CLASSES or not row["source"] or not all(isinstance(v, str) for v in row.values()):
            raise UserError(f"{path} line {number}: {needs}", code="E-REPORTED")
    return [Reported(**row) for row in rows]


def of_row(reported: list[Reported], table: Table, dataset: str, row: Row) -> list[Reported]:
    """What is reported for a row's method and variant ("*" stands for any) on our network, data set and eps (any eps,
    where points of curves are reported)."""
    name, models = table.reported_datasets.get(dataset, dataset), table.reported_models.get(dataset, ())
    eps = table.reported_sizes.get(dataset, table.reported_eps)
    return [one for one in reported
            if one.dataset == name and one.model in models
            and (table.reported_points or one.eps in ("", eps))
            and any(one.method == method and variant in ("*", one.variant) for method, variant in row.reported)]


def best(candidates: list[Reported], column: Column, table: Table) -> Reported | None:
    """The number to stand beside ours: the paper's own before others', weights chosen as ours are before others, then
    by class and order in the file; a metric named earlier in `column.reported` goes before a later one."""
    ranked = [one for one in candidates if one.metric in column.reported
              and (not column.points or any(at(one, point) for point in column.points))]
    return min(ranked, key=lambda one: (column.reported.index(one.metric), one.paper != table.reported_paper,
                                        not one.checkpoint.startswith(table.reported_weights), one.source_class),
               default=None)


def at(one: Reported, point: tuple[str, float | None]) -> bool:
    """Whether a reported number is of this point: its norm, and its eps (None: it has none)."""
    norm, eps = point
    if one.norm != norm or bool(one.eps) != (eps is not None):
        return False
    return eps is None or abs(float(one.eps) - eps) <= SAME_POINT
