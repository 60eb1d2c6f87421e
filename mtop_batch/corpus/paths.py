"""What the paths of source files say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import PurePosixPath
from urllib.parse import unquote

from mtop_batch.errors import ConfigError
from mtop_batch.lines import did_you_mean, listed
from mtop_batch.storage.parquet import is_parquet_name

NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"
# A file name may have 255 bytes on most file systems; a unit's ranges need up to 60 of them.
_MAX_NAME_BYTES = 195
_MAX_DIRECTORY_BYTES = 255
_MAX_CLOSE = 3


def is_source(path: str) -> bool:
    """Whether a file of the corpus is taken for Parquet."""
    return is_parquet_name(path)


def path_problem(path: str) -> str | None:
    """Why a source file's path cannot be a label file's, if so."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return "its name is not valid UTF-8; rename it"
    if "" in path.split("/"):
        return "its path has a directory without a name; rename it"
    if "\\" in path:
        return "its path has a backslash, so some readers, such as DuckDB, would not find its labels; rename it"
    if len(PurePosixPath(path).name.encode()) > _MAX_NAME_BYTES:
        return f"its name is longer than {_MAX_NAME_BYTES} bytes; rename it"
    if any(len(part.encode()) > _MAX_DIRECTORY_BYTES for part in path.split("/")[:-1]):
        return f"a directory's name is longer than {_MAX_DIRECTORY_BYTES} bytes; rename it"
    return None


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


def empty_partition(paths: Sequence[str], wanted: Mapping[str, str]) -> str | None:
    """That no file is in a partition, and what comes closest; None if one is.

    >>> empty_partition(["day=11/a.parquet", "day=12/a.parquet"], {"day": "21"})
    'no file of day=21; the closest are day=12, day=11'
    """
    left = list(paths)
    before: list[str] = []
    for key, value in wanted.items():
        found = [path for path in left if in_partition(path, {key: value})]
        if not found:
            there = sorted({values[key] or NULL_PARTITION for values in map(partition_values, left) if key in values})
            close = get_close_matches(value, there, n=_MAX_CLOSE, cutoff=0.5) or there[:_MAX_CLOSE]
            names = listed([f"{key}={name}" for name in close])
            return f"no file of {' '.join([*before, f'{key}={value}'])}; the closest are {names}"
        before.append(f"{key}={value}")
        left = found
    return None


def partition_keys(paths: Iterable[str]) -> list[str]:
    """The hive partition keys that occur in the paths, in order of appearance."""
    return list(dict.fromkeys(key for path in paths for key in partition_values(path)))


def other_keys(wrong: str, keys: Sequence[str]) -> str:
    """What to say to who has named a partition key that is not among these.

    >>> other_keys("dat", ["lang", "date"]), other_keys("x", [])
    ("partition keys: lang, date; did you mean 'date'?", 'it is not partitioned: no path has directories key=value')
    """
    if not keys:
        return "it is not partitioned: no path has directories key=value"
    hint = did_you_mean(wrong, keys).rstrip()
    return f"partition keys: {listed(keys)}" + (f"; {hint}" if hint else "")
