"""Names of label files and published files. Pure functions of source paths, contents and rows.

    _store/<label set>/<source path>@/<content id>-<first row>-<row after the last>.parquet
    current/<source path>                          always ending in .parquet

A label file's name says all that its rows and labels depend on, so the same name always means the same labels.
"""

from __future__ import annotations

import hashlib
import re
from typing import NamedTuple

from mtop_batch.corpus.files import SourceFile
from mtop_batch.corpus.paths import is_source
from mtop_batch.table.row_ranges import RowRange

STORE, PUBLISHED = "_store", "current"
_SUFFIX = ".parquet"
_LABEL_FILE = re.compile(
    r"(?P<source>.+)@/(?P<content>[0-9a-f]{16})-(?P<start>[0-9]{9,})-(?P<stop>[0-9]{9,})\.parquet", re.DOTALL
)


class LabelName(NamedTuple):
    """What the name of a label file says, below its label set."""

    source_path: str
    content: str
    rows: RowRange


def content_id(source: SourceFile) -> str:
    """What a source file holds, as far as a listing tells: 16 hexadecimal digits of its size and version."""
    return hashlib.sha256(f"{source.size}:{source.version}".encode()).hexdigest()[:16]


def label_path(source: SourceFile, rows: RowRange) -> str:
    """Where a label set keeps the labels of these rows of a source file.

    >>> label_path(SourceFile("date=2026-11-20/a.parquet", 7, "v1"), (0, 20_000))
    'date=2026-11-20/a.parquet@/63f022ea448ce3eb-000000000-000020000.parquet'
    """
    return f"{source.path}@/{content_id(source)}-{rows[0]:09d}-{rows[1]:09d}{_SUFFIX}"


def parse_label_path(path: str) -> LabelName | None:
    """`label_path` undone; None for a name that it does not give."""
    found = _LABEL_FILE.fullmatch(path)
    if found is None:
        return None
    return LabelName(found["source"], found["content"], (int(found["start"]), int(found["stop"])))


def published_path(source_path: str) -> str:
    """Where the published table keeps a source file's rows: its own path, if that ends in .parquet.

    Other suffixes get one more, also those that stand before the last: so no two source files share a name.

    >>> published_path("a.parquet"), published_path("b.PQ"), published_path("b.PQ.parquet")
    ('a.parquet', 'b.PQ.parquet', 'b.PQ.parquet.parquet')
    """
    stem = source_path.removesuffix(_SUFFIX)
    return source_path if stem != source_path and not is_source(stem) else source_path + _SUFFIX


def source_path_of(published: str) -> str:
    """The source file of a published file: `published_path` undone."""
    stem = published.removesuffix(_SUFFIX)
    return stem if is_source(stem) else published
