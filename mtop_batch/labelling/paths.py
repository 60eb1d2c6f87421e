"""Names of label files, and what the names of source files say.

A label file lies in its label set where the source file lies in the corpus. A source file that is labelled in
several units has several label files, with the range of row groups in the name, and the range of rows where a unit
ends inside a row group.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from urllib.parse import unquote

from mtop_batch.errors import ConfigError

SOURCE_SUFFIXES = (".parquet", ".parq", ".pq")
NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"
# A file name may have 255 bytes on most file systems; a unit's ranges need up to 60 of them.
_MAX_NAME_BYTES = 195
_MAX_DIRECTORY_BYTES = 255
_UNIT = re.compile(r"\.rg\d{5,}-\d{5,}(?:\.rows\d{9,}-\d{9,})?$")


def is_source(path: str) -> bool:
    """Whether a file of the corpus is taken for Parquet."""
    return path.lower().endswith(SOURCE_SUFFIXES)


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


def path_problem(path: str) -> str | None:
    """Why a source file's path cannot be a label file's, if so."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return "its name is not valid UTF-8; rename it"
    if "" in path.split("/"):
        return "its path has a directory without a name; rename it"
    if len(PurePosixPath(path).name.encode()) > _MAX_NAME_BYTES:
        return f"its name is longer than {_MAX_NAME_BYTES} bytes; rename it"
    if any(len(part.encode()) > _MAX_DIRECTORY_BYTES for part in path.split("/")[:-1]):
        return f"a directory's name is longer than {_MAX_DIRECTORY_BYTES} bytes; rename it"
    return None


def shown(path: str) -> str:
    """A path as messages show it: in one line, whatever it consists of.

    >>> shown("a\\nb ü.parquet")
    'a\\\\nb ü.parquet'
    """
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode() for char in path
    )


def partition_values(path: str) -> dict[str, str | None]:
    """The hive partition values (`key=value` directories) of a path, URL-decoded; None for hive's null.

    >>> partition_values("lang=en/date=2026-11-20%2B1/a.parquet")
    {'lang': 'en', 'date': '2026-11-20+1'}
    """
    pairs = (part.partition("=") for part in path.split("/")[:-1] if "=" in part)
    return {unquote(key): None if value == NULL_PARTITION else unquote(value) for key, _, value in pairs if key}


def parse_partitions(options: Sequence[str]) -> dict[str, str]:
    """The `--partition key=value` options as a filter.

    Raises:
        ConfigError: One is not of that form, or a key is given twice.
    """
    wanted: dict[str, str] = {}
    for option in options:
        key, separator, value = option.partition("=")
        if not key or not separator:
            raise ConfigError(f"--partition {option!r} is not of the form key=value, such as date=2026-11-20")
        if wanted.setdefault(key, value) != value:
            raise ConfigError(f"--partition {key} is given as {wanted[key]!r} and as {value!r}; a file has one value")
    return wanted


def in_partition(path: str, wanted: Mapping[str, str]) -> bool:
    """Whether a path lies in the wanted partition; `__HIVE_DEFAULT_PARTITION__` asks for hive's null."""
    values = partition_values(path)
    return all(
        key in values and values[key] == (None if value == NULL_PARTITION else value) for key, value in wanted.items()
    )


def partition_keys(paths: Iterable[str]) -> list[str]:
    """The hive partition keys that occur in the paths, in order of appearance."""
    return list(dict.fromkeys(key for path in paths for key in partition_values(path)))


def _split(path: str) -> tuple[str, str]:
    """A path without its suffix, and the suffix."""
    suffix = PurePosixPath(path).suffix
    return path.removesuffix(suffix) if suffix else path, suffix
