"""Reading a unit: ids and texts in batches, each row with its text or with the reason why it has none.

Texts are cut while they are still Arrow memory, and before the values of a dictionary are put into rows: an article of
10 MB never becomes a Python string of 10 MB.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mtop_batch import storage
from mtop_batch.corpus.columns import Limits, RowsToRead, in_rows, read_column
from mtop_batch.corpus.files import (
    CHANGED,
    AccessDenied,
    OpenSource,
    SourceChanged,
    UnreadableSource,
    check_unchanged,
    open_source,
)
from mtop_batch.data.input_vectors import InputVectors, vectors_of_rows
from mtop_batch.data.text_rows import (
    MAX_CHARS,
    holds_no_text,
    is_text_type,
    joined_texts,
    plain_type,
    usable_texts,
    valid_texts,
)
from mtop_batch.labelling.plan.work import Unit
from mtop_batch.lines import shown
from mtop_batch.tasks import VectorInput

_BATCH_ROWS = 2_048
_BATCH_BYTES = 32 << 20
# Of a unit. Ids are kept as they are, so these must fit into memory together.
_MAX_ID_BYTES = 64 << 20
_NO_TEXT = pa.scalar(None, pa.large_string())


@dataclass(frozen=True)
class TextBatch:
    """Rows of a unit, in order.

    Args:
        ids: The id column, of the source's type; null where the source holds what is not of that type.
        texts: Each row's text; None where there is an error.
        seconds: Each row's second text, None where it has one alone; None if the unit has one text column.
        errors: Why a row cannot be labelled; None where it can.
        vectors: What stands beside each text, of each input asked for; nothing beside a row with an error.
    """

    ids: pa.Array
    texts: list[str | None]
    seconds: list[str | None] | None
    errors: list[str | None]
    vectors: tuple[InputVectors, ...] = ()

    def __len__(self) -> int:
        return len(self.errors)


def read_unit(
    corpus: str,
    unit: Unit,
    id_column: str,
    *,
    max_chars: int = MAX_CHARS,
    batch_rows: int = _BATCH_ROWS,
    in_columns: bool = False,
    inputs: Sequence[VectorInput] = (),
) -> Iterator[TextBatch]:
    """Read the rows of a unit.

    What a row's text is says `mtop_batch.data.text_rows`. Each text is cut to its first `max_chars` code points. Memory
    follows from the batches, not from what the file decodes to.

    Args:
        corpus: Where the unit's path starts.
        unit: What to read.
        id_column: The column of ids.
        max_chars: Code points to keep of a text.
        batch_rows: Most rows of a batch; there are fewer where texts are long.
        in_columns: A text that the second column has alone stays a second one, and the first is "".
        inputs: What is read beside the texts.

    Raises:
        SourceChanged: The file is no longer the one that was planned; also found after the last batch.
        UnreadableSource: The file is bad.
        StorageError: The storage does not answer.
    """
    limits = Limits(batch_rows, _BATCH_BYTES)
    columns = {id_column, *unit.text_columns, *(spec.column for spec in inputs)}
    num_rows = 0
    with _could_be_read_before(corpus, unit), open_source(corpus, unit.source, lambda _: columns) as source:
        rows = _rows_to_read(source.parquet.metadata, unit)
        if not unit.num_rows:  # the label file still takes the ids' type from a batch
            no_ids = source.parquet.schema_arrow.empty_table()[id_column].combine_chunks()
            nothing = tuple(InputVectors.none(spec.size, 0) for spec in inputs)
            yield TextBatch(no_ids, [], [] if len(unit.text_columns) == 2 else None, [], nothing)
        ids = _ids(source, id_column, rows, limits)
        texts = [_texts(source, name, rows, limits, max_chars) for name in unit.text_columns]
        vectors = [_vector_column(source, spec, rows, limits) for spec in inputs]
        for ids_, *columns_ in _side_by_side([ids, *texts, *vectors]):
            num_rows += len(ids_)
            yield _text_batch(in_columns, inputs, ids_, columns_[: len(texts)], columns_[len(texts) :])
    if num_rows != unit.num_rows:
        raise UnreadableSource(f"has {num_rows} rows where its footer promises {unit.num_rows}")
    with _could_be_read_before(corpus, unit):
        check_unchanged(corpus, unit.source)


@contextmanager
def _could_be_read_before(corpus: str, unit: Unit) -> Iterator[None]:
    """The plan has read the file's footer: a refusal now is about the credentials, not about the file."""
    try:
        yield
    except AccessDenied as error:
        raise error.as_storage_error(storage.join(corpus, unit.source.path)) from error


def _rows_to_read(metadata: pq.FileMetaData, unit: Unit) -> RowsToRead:
    if metadata.num_rows != unit.num_rows_file or metadata.num_row_groups != unit.num_row_groups:
        raise SourceChanged(CHANGED)
    first_row = sum(metadata.row_group(index).num_rows for index in range(unit.row_groups[0]))
    return RowsToRead(unit.row_groups, unit.rows[0] - first_row, unit.num_rows)


def _side_by_side(columns: Sequence[Iterator[pa.RecordBatch]]) -> Iterator[list[pa.RecordBatch]]:
    """The same rows of all columns, which come in batches of their own lengths; up to the end of the shortest."""
    parts: list[Any] = [next(column, None) for column in columns]
    while all(part is not None for part in parts):
        num_rows = min(len(part) for part in parts)
        yield [part.slice(0, num_rows) for part in parts]
        parts = [
            part.slice(num_rows) if len(part) > num_rows else next(column, None)
            for part, column in zip(parts, columns, strict=True)
        ]


def _text_batch(
    in_columns: bool,
    inputs: Sequence[VectorInput],
    ids: pa.RecordBatch,
    texts: Sequence[pa.RecordBatch],
    vectors: Sequence[pa.RecordBatch],
) -> TextBatch:
    found = joined_texts([column["value"] for column in texts])
    beside, of_vectors = vectors_of_rows(inputs, [column["value"] for column in vectors], len(ids))
    # What is wrong with a column says more than that another one has no text.
    reasons = pc.coalesce(ids["reason"], *(column["reason"] for column in texts), found.errors, of_vectors)
    is_good = reasons.is_null()
    columns = found.in_columns() if in_columns else (found.texts, found.seconds)
    first, second = (pc.if_else(is_good, column, _NO_TEXT).to_pylist() for column in columns)
    return TextBatch(ids["value"], first, second if len(texts) == 2 else None, reasons.to_pylist(), beside)


def _vector_column(source: OpenSource, spec: VectorInput, rows: RowsToRead, limits: Limits) -> Iterator[pa.RecordBatch]:
    """The values of a column with vectors, as they are."""
    most = max(1, _BATCH_BYTES // (8 * spec.size * spec.tokens))
    for array in read_column(source, spec.column, rows, Limits(min(limits.rows, most), limits.num_bytes)):
        plain = array.dictionary_decode() if pa.types.is_dictionary(array.type) else array
        yield pa.RecordBatch.from_arrays([plain], ["value"])


# --- ids ----------------------------------------------------------------------------------------------------------


def _ids(source: OpenSource, name: str, rows: RowsToRead, limits: Limits) -> Iterator[pa.RecordBatch]:
    """The ids, null where they are not what their type says (not UTF-8, mostly); and the reasons.

    Written as it is, one such id would make some readers refuse the whole label set.

    Raises:
        UnreadableSource: They take more memory than ids should.
    """
    id_type = source.parquet.schema_arrow.field(name).type
    num_bytes = 0
    for array in read_column(source, name, rows, limits):
        plain = _decoded(array, limits) if pa.types.is_dictionary(array.type) else [array]
        for ids in plain:
            num_bytes += ids.nbytes
            if num_bytes > _MAX_ID_BYTES:
                raise UnreadableSource(
                    f"the ids of {rows.num_rows:,} rows take more than {_MAX_ID_BYTES >> 20} MB; name another "
                    "--id-column, or write the file with shorter ids"
                )
            yield _valid_ids(ids, id_type, name)


def _decoded(array: pa.Array, limits: Limits) -> Iterator[pa.Array]:
    return (array.dictionary.take(part) for part in in_rows(array.dictionary, array.indices, limits))


def _valid_ids(ids: pa.Array, id_type: pa.DataType, name: str) -> pa.RecordBatch:
    reasons = pa.nulls(len(ids), pa.string())
    if not _is_valid(ids):
        if pa.types.is_string_view(ids.type):  # few functions take it
            ids = ids.cast(pa.large_binary()).view(pa.large_string())
        is_bad = np.array([not _is_valid(ids.take([row])) for row in range(len(ids))])
        ids = ids.take(pa.array(np.arange(len(ids)), mask=is_bad))
        reason = f"id column {name!r} holds no valid {shown(str(id_type))}"
        reasons = pc.if_else(pa.array(is_bad), reason, pa.scalar(None, pa.string()))
    if ids.type != id_type:
        ids = (ids.dictionary_encode() if pa.types.is_dictionary(id_type) else ids).cast(id_type)
    return _batch(ids, reasons)


def _is_valid(array: pa.Array) -> bool:
    try:
        array.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


# --- texts --------------------------------------------------------------------------------------------------------


def _texts(source: OpenSource, name: str, rows: RowsToRead, limits: Limits, max_chars: int) -> Iterator[pa.RecordBatch]:
    """A column's texts as `usable_texts` has them, and the reasons of rows that hold none; those are null."""
    column_type = plain_type(source.parquet.schema_arrow.field(name).type)
    if not is_text_type(column_type):
        reason = f"text column {name!r} has type {shown(str(column_type))}, not string"
        for array in read_column(source, name, rows, limits):
            yield _no_texts(array, reason)
        return
    for array in read_column(source, name, rows, limits):
        is_dictionary = pa.types.is_dictionary(array.type)
        strings, reasons = valid_texts(array.dictionary if is_dictionary else array, name)
        texts = usable_texts(strings, max_chars)
        if not is_dictionary:
            yield _batch(texts, reasons)
            continue
        for part in in_rows(texts, array.indices, limits):
            yield _batch(texts.take(part), reasons.take(part))


def _no_texts(column: pa.Array, reason: str) -> pa.RecordBatch:
    """Of a column whose type holds no text: nulls, and the reason for rows that have a value."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    reasons = pc.if_else(holds_no_text(column), reason, pa.scalar(None, pa.string()))
    return _batch(pa.nulls(len(column), pa.large_string()), reasons)


def _batch(values: pa.Array, reasons: pa.Array) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([values, reasons], ["value", "reason"])
