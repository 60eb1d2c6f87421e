"""Stored scores: what the model has put out for rows that are decided anew. No text is read, and no model."""

from __future__ import annotations

import pyarrow as pa

from mtop_batch.errors import DamagedLabelFile, LabelTableError
from mtop_batch.labelling.plan.work import Unit
from mtop_batch.table.outputs import decidable_columns
from mtop_batch.table.store import read_label_file


def read_scores(labels: str, unit: Unit) -> pa.Table:
    """The columns `id` and `error` of a unit whose scores are stored, and the columns that these are computed from.

    Raises:
        DamagedLabelFile: A label file is damaged.
        LabelTableError: The storage does not answer, or the unit has no scores.
    """
    found: dict[str, pa.ChunkedArray] = {}
    for stored in unit.scores:
        names = [name for task in stored.tasks for name in decidable_columns(task)]
        _, table = read_label_file(labels, stored.file, ["id", *names, "error"])
        if len(table) != unit.num_rows:
            raise DamagedLabelFile(f"{stored.file} has {len(table)} rows, {unit} has {unit.num_rows}")
        found = {**{name: table[name] for name in table.column_names}, **found}
    if not found:
        raise LabelTableError(f"{unit}: its scores are not stored")
    return pa.table(found)
