"""Reading a unit: ids and texts in batches, each row with its text or with the reason why it has none.

Texts are cut while they are still Arrow memory: an article of 10 MB never becomes a Python string of 10 MB.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mtop_batch import storage
from mtop_batch.corpus.files import CHANGED, SourceChanged, UnreadableSource, check_unchanged, decoding, open_source
from mtop_batch.data.text_rows import MAX_CHARS, text_rows
from mtop_batch.labelling.plan.work import Unit

_BATCH_ROWS = 2_048
_BATCH_BYTES = 64 << 20


@dataclass(frozen=True)
class TextBatch:
    """Rows of a unit, in order.

    Args:
        ids: The id column, of the source's type; null where the source holds what is not of that type.
        texts: Each row's text; None where there is an error.
        seconds: Each row's second text, None where it has one alone; None if the unit has one text column.
        errors: Why a row cannot be labelled; None where it can.
    """

    ids: pa.Array
    texts: list[str | None]
    seconds: list[str | None] | None
    errors: list[str | None]

    def __len__(self) -> int:
        return len(self.errors)


def read_unit(
    corpus: str, unit: Unit, id_column: str, *, max_chars: int = MAX_CHARS, batch_rows: int = _BATCH_ROWS
) -> Iterator[TextBatch]:
    """Read the rows of a unit.

    What a row's text is says `mtop_batch.data.text_rows`. Each text is cut to its first `max_chars` code points.

    Args:
        corpus: Where the unit's path starts.
        unit: What to read.
        id_column: The column of ids.
        max_chars: Code points to keep of a text.
        batch_rows: Most rows of a batch; there are fewer where texts are long.

    Raises:
        SourceChanged: The file is no longer the one that was planned; also found after the last batch.
        UnreadableSource: The file is bad.
        StorageError: The storage does not answer.
    """
    uri = storage.join(corpus, unit.source.path)
    num_rows = 0
    with open_source(corpus, unit.source) as parquet:
        for rows in _record_batches(parquet, unit, id_column, batch_rows):
            num_rows += len(rows)
            with decoding(uri):
                batch = _text_batch(rows, id_column, unit.text_columns, max_chars)
            yield batch
    if num_rows != unit.num_rows:
        raise UnreadableSource(f"has {num_rows} rows where its footer promises {unit.num_rows}")
    check_unchanged(corpus, unit.source)


def _record_batches(parquet: pq.ParquetFile, unit: Unit, id_column: str, batch_rows: int) -> Iterator[pa.RecordBatch]:
    """The unit's rows of the columns it needs."""
    metadata = parquet.metadata
    if metadata.num_rows != unit.num_rows_file or metadata.num_row_groups != unit.num_row_groups:
        raise SourceChanged(CHANGED)
    first_row = sum(metadata.row_group(index).num_rows for index in range(unit.row_groups[0]))
    skip, wanted = unit.rows[0] - first_row, unit.num_rows
    names = list(dict.fromkeys([id_column, *unit.text_columns]))
    if not wanted:  # the label file still takes the ids' type from a batch
        empty = parquet.schema_arrow.empty_table().select(names)
        yield pa.RecordBatch.from_arrays([column.combine_chunks() for column in empty.columns], names)
        return
    batches = parquet.iter_batches(
        batch_size=_rows_in_memory(parquet, unit, batch_rows),
        row_groups=range(*unit.row_groups),
        columns=names,
        use_threads=False,  # units are read side by side
    )
    for batch in batches:
        if skip >= len(batch):
            skip -= len(batch)
            continue
        part = batch.slice(skip, wanted)
        skip, wanted = 0, wanted - len(part)
        yield part
        if wanted == 0:
            return


def _rows_in_memory(parquet: pq.ParquetFile, unit: Unit, batch_rows: int) -> int:
    """Rows of a batch: fewer than usual if the row groups are full of long texts."""
    row_groups = [parquet.metadata.row_group(index) for index in range(*unit.row_groups)]
    bytes_per_row = max((group.total_byte_size / max(group.num_rows, 1) for group in row_groups), default=1.0)
    return max(1, min(batch_rows, int(_BATCH_BYTES / max(bytes_per_row, 1.0))))


def _text_batch(rows: pa.RecordBatch, id_column: str, text_columns: tuple[str, ...], max_chars: int) -> TextBatch:
    ids, bad_ids = _valid_ids(rows.column(id_column))
    errors: dict[int, str] = dict.fromkeys(bad_ids, f"id column {id_column!r} holds no valid {ids.type}")
    columns = []
    for name in text_columns:
        strings, bad = _texts(rows.column(name), name)
        columns.append(strings)
        errors = {**bad, **errors}
    found = text_rows(columns, max_chars)
    texts, seconds, reasons = found.texts.to_pylist(), found.seconds.to_pylist(), found.errors.to_pylist()
    for row, reason in errors.items():
        texts[row], seconds[row], reasons[row] = None, None, reason
    return TextBatch(ids, texts, seconds if len(columns) == 2 else None, reasons)


def _valid_ids(ids: pa.Array) -> tuple[pa.Array, list[int]]:
    """The ids, null where they are not what their type says (not UTF-8, mostly), and the rows where.

    Written as it is, one such id would make some readers refuse the whole label set.
    """
    if _is_valid(ids):
        return ids, []
    plain = ids
    if pa.types.is_dictionary(ids.type):
        plain = ids.cast(ids.type.value_type)
    elif pa.types.is_string_view(ids.type):  # few functions take it
        plain = ids.cast(pa.large_binary()).view(pa.large_string())
    bad = [row for row in range(len(plain)) if not _is_valid(plain.take([row]))]
    kept = pa.array(range(len(plain)), pa.int64(), mask=np.isin(np.arange(len(plain)), bad))
    valid = plain.take(kept)
    return (valid.dictionary_encode() if pa.types.is_dictionary(ids.type) else valid).cast(ids.type), bad


def _is_valid(array: pa.Array) -> bool:
    try:
        array.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _texts(column: pa.Array, name: str) -> tuple[pa.Array, dict[int, str]]:
    """A column's texts as large_string, and the reasons of the rows that are bad; those are null."""
    try:
        return _strings(column, name)
    except TypeError as error:
        return pa.nulls(len(column), pa.large_string()), dict.fromkeys(range(len(column)), str(error))


def _strings(column: pa.Array, name: str) -> tuple[pa.Array, dict[int, str]]:
    """A text column as valid large_string, and the reasons of the rows that cannot be; those are null.

    Raises:
        TypeError: The column's type holds no text.
    """
    if isinstance(column, pa.ExtensionArray) and column.type != pa.uuid():
        column = column.storage
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_null(column.type):
        return pa.nulls(len(column), pa.large_string()), {}
    if not _holds_text(column.type):
        raise TypeError(f"text column {name!r} has type {column.type}, not string")
    raw = column.cast(pa.large_binary())
    try:
        return raw.cast(pa.large_string()), {}
    except pa.ArrowInvalid:  # some row is not UTF-8; Parquet writers are not made to check
        return _decoded(raw, name)


def _decoded(raw: pa.Array, name: str) -> tuple[pa.Array, dict[int, str]]:
    texts: list[str | None] = []
    bad: dict[int, str] = {}
    for row, value in enumerate(raw.to_pylist()):
        try:
            texts.append(None if value is None else value.decode())
        except UnicodeDecodeError:
            texts.append(None)
            bad[row] = f"text column {name!r} is not valid UTF-8"
    return pa.array(texts, pa.large_string()), bad


def _holds_text(column_type: pa.DataType) -> bool:
    types = pa.types
    return any(
        is_type(column_type)
        for is_type in (
            types.is_string,
            types.is_large_string,
            types.is_string_view,
            types.is_binary,
            types.is_large_binary,
            types.is_binary_view,
            types.is_fixed_size_binary,
        )
    )
