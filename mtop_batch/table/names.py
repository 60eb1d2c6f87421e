"""Names of label files and published files. Pure functions of source paths, contents and rows.

    _store/<label set>/<source path>@/<content id>-<first row>-<row after the last>.parquet
    current/<source path>                          always ending in .parquet

A label file's name says all that its rows and labels depend on, so the same name always means the same labels.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection
from typing import NamedTuple

from mtop_batch.corpus.files import SourceFile
from mtop_batch.corpus.paths import is_source
from mtop_batch.table.row_ranges import RowRange

STORE, PUBLISHED = "_store", "current"
_SUFFIX = ".parquet"
_LABEL_FILE = re.compile(
    r"(?P<source>.+)@/(?P<content>[0-9a-f]{16})-(?P<start>[0-9]{9,})-(?P<stop>[0-9]{9,})\.parquet", re.DOTALL
)
# The first character of a file name, where readers would pass the file over, and what looks like an escape of it.
_ESCAPES = {"_": "%5F", ".": "%2E", "%": "%25"}
_CODES = {code: char for char, code in _ESCAPES.items()}
_ESCAPED = re.compile(r"^(?:[_.]|%(?=5F|2E|25))")


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
    path = _visible(source.path)
    return f"{path}@/{content_id(source)}-{rows[0]:09d}-{rows[1]:09d}{_SUFFIX}"


def parse_label_path(path: str) -> LabelName | None:
    """`label_path` undone; None for a name that it does not give."""
    found = _LABEL_FILE.fullmatch(path)
    if found is None:
        return None
    return LabelName(_as_it_was(found["source"]), found["content"], (int(found["start"]), int(found["stop"])))


def published_path(source_path: str) -> str:
    """Where the published table keeps a source file's rows: its own path, if that ends in .parquet.

    Other suffixes get one more, also those that stand before the last; names without a suffix of Parquet, which only a
    file that is a whole corpus may have, get a `%` before it. So no two source files share a name.

    >>> published_path("a.parquet"), published_path("b.PQ"), published_path("b.PQ.parquet")
    ('a.parquet', 'b.PQ.parquet', 'b.PQ.parquet.parquet')
    >>> published_path("part-0"), published_path("_a.parquet")
    ('part-0%.parquet', '%5Fa.parquet')
    """
    path = _visible(source_path)
    stem = path.removesuffix(_SUFFIX)
    if not is_source(path):
        return f"{path}%{_SUFFIX}"
    return path if stem != path and not is_source(stem) and not stem.endswith("%") else path + _SUFFIX


def source_path_of(published: str) -> str:
    """The source file of a published file: `published_path` undone."""
    stem = published.removesuffix(_SUFFIX)
    if is_source(stem):
        return _as_it_was(stem)
    return _as_it_was(stem[:-1] if stem.endswith("%") else published)


def displaced(published: Collection[str], targets: Collection[str]) -> list[str]:
    """The published files that cannot be where they are while the targets are: one's path is a directory to another.

    >>> displaced(["a.parquet", "b.parquet/part-0.parquet", "c.parquet"], ["a.parquet/part-0.parquet", "b.parquet"])
    ['a.parquet', 'b.parquet/part-0.parquet']
    """
    wanted, there = set(targets), set(published)
    above_targets = {above for path in wanted for above in directories(path)}
    return sorted(path for path in there if path in above_targets or not wanted.isdisjoint(directories(path)))


def directories(path: str) -> list[str]:
    """The directories that a path lies in.

    >>> directories("a/b/c.parquet")
    ['a', 'a/b']
    """
    parts = path.split("/")
    return ["/".join(parts[:length]) for length in range(1, len(parts))]


def _visible(source_path: str) -> str:
    """A source path whose file name readers do not take for a hidden one; only a file named by itself needs it."""
    directory, separator, name = source_path.rpartition("/")
    return directory + separator + _ESCAPED.sub(lambda found: _ESCAPES[found[0]], name, count=1)


def _as_it_was(visible_path: str) -> str:
    directory, separator, name = visible_path.rpartition("/")
    code = name[:3]
    return directory + separator + (_CODES[code] + name[3:] if code in _CODES else name)
