"""Names of label files.

A label file lies in its label set where the source file lies in the corpus. A source file that is labelled in
several units has several label files, with the range of row groups in the name, and the range of rows where a unit
ends inside a row group.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

_UNIT = re.compile(r"\.rg\d{5,}-\d{5,}(?:\.rows\d{9,}-\d{9,})?$")


def label_path(
    source_path: str, row_groups: tuple[int, int], rows: tuple[int, int] | None = None, *, whole: bool = False
) -> str:
    """Where a label set keeps the labels of a unit.

    Args:
        source_path: The source file, below the corpus.
        row_groups: First row group of the unit, and the one after its last.
        rows: The same in rows, if the unit does not begin and end with its row groups.
        whole: The unit is the whole file.

    >>> label_path("date=2026-11-20/a.parquet", (0, 4), whole=True)
    'date=2026-11-20/a.parquet'
    >>> label_path("a.parquet", (2, 3), (50_000, 70_000))
    'a.rg00002-00003.rows000050000-000070000.parquet'
    """
    stem, suffix = _split(source_path)
    # A source file whose own name looks like a unit's always gets a range, or two names could become one.
    if whole and not _UNIT.search(stem):
        return source_path
    name = f"{stem}.rg{row_groups[0]:05d}-{row_groups[1]:05d}"
    if rows:
        name += f".rows{rows[0]:09d}-{rows[1]:09d}"
    return name + suffix


def source_path(path: str) -> str:
    """The source file that a label file's name belongs to: `label_path` undone."""
    stem, suffix = _split(path)
    return _UNIT.sub("", stem) + suffix


def _split(path: str) -> tuple[str, str]:
    """A path without its suffix, and the suffix."""
    suffix = PurePosixPath(path).suffix
    return path.removesuffix(suffix) if suffix else path, suffix
