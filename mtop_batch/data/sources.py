"""Where labelled data comes from: Parquet files, local or on object storage, and data sets of the Hugging Face hub."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import parse_qsl

import pyarrow as pa
from pyarrow.csv import ConvertOptions, ParseOptions, read_csv

from mtop_batch import storage
from mtop_batch.errors import DataError
from mtop_batch.lines import did_you_mean, listed
from mtop_batch.storage.parquet import is_parquet_name, open_parquet
from mtop_batch.storage.table_formats import check_plain_files

logger = logging.getLogger(__name__)

_HUB_PREFIX = "hub:"
_HUB_OPTIONS = ("config", "split")
_FEATURES_KEY = b"huggingface"
_CSV = ParseOptions(newlines_in_values=True)
_EMPTY_IS_NULL = ConvertOptions(null_values=[""], strings_can_be_null=True, quoted_strings_can_be_null=True)


@dataclass(frozen=True)
class Part:
    """Rows of one file, or of one split of a hub data set.

    Args:
        name: What a message calls it.
        table: The wanted columns.
        label_names: Column -> what its integers stand for, where the data set says so (`ClassLabel`).
    """

    name: str
    table: pa.Table
    label_names: dict[str, list[str]]


def read_columns(source: str, columns: Sequence[str], *, default_split: str = "train") -> list[Part]:
    """Read columns of a source.

    Args:
        source: A Parquet file, or a directory or prefix with Parquet files anywhere below, by path or URL; or a CSV
            file; or
            `hub:<data set>[?config=NAME&split=SPLIT]`, where the data set is a hub id or a local directory that
            `datasets.load_dataset` understands. No code of a data set is ever run.
        columns: In the wanted order.
        default_split: Of a hub data set, if the source names none.

    Raises:
        DataError: The source does not exist, is not Parquet, or lacks a column.
        LabelTableError: The storage cannot be reached or refuses.
    """
    if source.startswith(_HUB_PREFIX):
        return [_read_hub(source, columns, default_split)]

    def wanted(name: str, present: list[str]) -> Sequence[str]:
        check_columns(name, columns, present)
        return columns

    return [Part(name, table, noted_label_names(table.schema)) for name, table in read_parquet(source, wanted)]


def read_parquet(source: str, wanted: Callable[[str, list[str]], Sequence[str]]) -> Iterator[tuple[str, pa.Table]]:
    """The Parquet files of a source, by name, in the order of their paths.

    Args:
        source: A file, or a directory or prefix with files that end in `.parquet`, `.parq` or `.pq` anywhere below. A
            file that ends in `.csv` is read as CSV: UTF-8, the names in the first line; an empty value is null.
        wanted: Given the name of a file and its columns, returns those to read; may raise a DataError.

    Raises:
        DataError: There are no such files, or one cannot be read.
        LabelTableError: The storage cannot be reached or refuses.
    """
    for uri in _parquet_files(source):
        fs, path = storage.filesystem(uri)
        try:
            with fs.open_input_file(path) as stream:
                if _is_csv(uri):
                    table = read_csv(stream, parse_options=_CSV, convert_options=_EMPTY_IS_NULL)
                    yield uri, table.select(list(wanted(uri, table.column_names)))
                    continue
                file = open_parquet(stream, partial(wanted, uri))
                columns = list(dict.fromkeys(wanted(uri, file.schema_arrow.names)))
                table = file.read(columns)
        except (pa.ArrowException, OSError) as error:
            reason = " ".join(str(error).split())
            raise DataError(
                f"{uri} cannot be read as {'CSV' if _is_csv(uri) else 'Parquet'}: {reason}; check the path, write the "
                "file again if it is damaged, or write it as Parquet if it is something else"
            ) from error
        yield uri, table.select(columns)


def check_columns(name: str, columns: Sequence[str], present: Sequence[str]) -> None:
    """Refuse a file that lacks a column.

    Raises:
        DataError: Names the column, the closest one there is, and all there are; or it occurs more than once.
    """
    for column in columns:
        if present.count(column) > 1:
            raise DataError(
                f"{name} has {present.count(column)} columns called {column!r}; write it with one, or name another"
            )
        if column not in present:
            raise DataError(
                f"{name} has no column {column!r}; {did_you_mean(column, present)}columns: {listed(present)}; "
                "set `text` and `label` of the task to columns of its data"
            )


def noted_label_names(schema: pa.Schema) -> dict[str, list[str]]:
    """Column -> the names of its integers, as `datasets` notes those of `ClassLabel` columns in Parquet files.

    Of a column of lists they are those of the lists' elements.
    """
    try:
        features = json.loads((schema.metadata or {})[_FEATURES_KEY])["info"]["features"]
        noted = {column: _element(feature) for column, feature in features.items()}
        return {
            column: list(map(str, feature["names"]))
            for column, feature in noted.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and feature.get("names")
        }
    except (KeyError, TypeError, ValueError, AttributeError):  # no such note
        return {}


def _element(feature: Any) -> Any:
    """The feature of a list's elements, as any version of `datasets` notes it; of no list the feature itself."""
    if isinstance(feature, list) and len(feature) == 1:
        return feature[0]
    return feature.get("feature", feature) if isinstance(feature, dict) else feature


def _is_csv(uri: str) -> bool:
    return uri.lower().endswith(".csv")


def _parquet_files(source: str) -> list[str]:
    source = storage.absolute(source)
    if storage.is_file(source):
        return [source]
    paths = [info.path for info in storage.list_files(source, hidden=True)]
    check_plain_files(source, paths)
    parquet = [path for path in paths if is_parquet_name(path)]
    files = [storage.join(source, path) for path in parquet if not storage.is_hidden(path)]
    hidden = [path for path in parquet if storage.is_hidden(path)]
    if files and hidden:
        logger.warning("%s: not read, for a name on the path starts with '_' or '.': %s", source, listed(hidden))
    if not files:
        what = "no file below it ends in .parquet" if storage.exists(source) else "it does not exist"
        if hidden:
            what = f"on the paths of its Parquet files a name starts with '_' or '.': {listed(hidden)}"
        raise DataError(
            f"there is no data at {source!r}: {what}; give a Parquet file, a directory of such files, or "
            f"{_HUB_PREFIX}<data set>"
        )
    return files


def _read_hub(source: str, columns: Sequence[str], default_split: str) -> Part:
    import datasets  # slow to import, and only needed here

    dataset_id, _, query = source.removeprefix(_HUB_PREFIX).partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    unknown = sorted(set(options) - set(_HUB_OPTIONS))
    if unknown or not dataset_id:
        reason = f"unknown option {unknown[0]!r}" if unknown else "no data set is named"
        raise DataError(
            f"{source!r} cannot be used: {reason}; write {_HUB_PREFIX}<data set>?config=NAME&split=SPLIT, "
            "where both options may be left out"
        )
    try:
        found: Any = datasets.load_dataset(dataset_id, options.get("config"), split=options.get("split", default_split))
    except Exception as error:  # loaders raise whatever they like
        reason = " ".join(str(error).split())[:500]
        raise DataError(
            f"the data set {dataset_id!r} cannot be loaded: {reason}; check its id, config and split, and the network"
        ) from error
    check_columns(source, columns, found.column_names)
    features = {column: getattr(found.features[column], "feature", found.features[column]) for column in columns}
    names = {
        column: list(feature.names) for column, feature in features.items() if isinstance(feature, datasets.ClassLabel)
    }
    table = found.select_columns(list(dict.fromkeys(columns))).with_format("arrow")[:]
    return Part(source, table, names)
