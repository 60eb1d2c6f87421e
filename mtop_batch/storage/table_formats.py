"""Directories of Parquet files of which not all count: tables with a log that says which do."""

from __future__ import annotations

import re
from collections.abc import Iterable

from mtop_batch import storage
from mtop_batch.errors import DataError

_DUCKDB = "in DuckDB: COPY (FROM {scan}('{{table}}')) TO 'plain' (FORMAT parquet, PER_THREAD_OUTPUT)"
# What each keeps beside its data, and how to write out what counts.
_FORMATS = {
    "a Delta table": (r"_delta_log/\d+(?:\.[\w-]+)*\.(?:json|parquet)", _DUCKDB.format(scan="delta_scan")),
    "an Iceberg table": (r"metadata/[^/]*\.metadata\.json(?:\.gz)?", _DUCKDB.format(scan="iceberg_scan")),
    "a Hudi table": (
        r"\.hoodie/hoodie\.properties",
        "in Spark: spark.read.format('hudi').load('{table}').write.parquet('plain')",
    ),
    "a Paimon table": (
        r"snapshot/snapshot-\d+",
        "in Spark: spark.read.format('paimon').load('{table}').write.parquet('plain')",
    ),
    "the output of a Spark stream": (
        r"_spark_metadata/\d+(?:\.compact)?",
        "in Spark: spark.read.parquet('{table}').write.parquet('plain')",
    ),
}
_PATTERNS = [(what, re.compile(rf"(?P<table>(?:.*/)?){log}"), way_out) for what, (log, way_out) in _FORMATS.items()]
_LOG_DIRECTORIES = ("_delta_log/", "metadata/", ".hoodie/", "snapshot/")


def check_plain_files(root: str, paths: Iterable[str]) -> None:
    """Refuse a directory in which some Parquet files may be outdated or unfinished: only the table's log knows which.

    Args:
        root: The address of the directory.
        paths: All files below it, hidden ones too.

    Raises:
        DataError: Says which table it is, and what to do.
    """
    for path in paths:
        if not any(name in path for name in _LOG_DIRECTORIES):  # of a million paths, almost none has one
            continue
        for what, pattern, way_out in _PATTERNS:
            if found := pattern.fullmatch(path):
                raise _refusal(f"{root}/{found['table']}".rstrip("/"), what, way_out)
    # A partition of a table has its log above it.
    directory = root
    while "=" in directory.rsplit("/", 1)[-1]:
        directory = directory.rsplit("/", 1)[0]
        for what, log in (("a Delta table", "_delta_log"), ("a Hudi table", ".hoodie")):
            if storage.exists(storage.join(directory, log)):
                raise _refusal(directory, what, _FORMATS[what][1])


def _refusal(table: str, what: str, way_out: str) -> DataError:
    return DataError(
        f"{table} is {what}: files that it has removed or not finished lie beside those that count, and only its log "
        f"tells them apart. Write what counts as plain Parquet ({way_out.format(table=table)}), and name that directory"
    )
