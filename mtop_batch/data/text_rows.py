"""Which texts a row has: one rule for examples, for a corpus and for texts that are given in Python.

A row's text is what its text columns hold, first to last. A text that is null or blank (empty, or white space only) is
left out of its pair; with one left of two, it is a single text. A row without any text gets the reason. Whether a text
that is not blank says anything is decided where it is tokenised (`data.silence`), and it is left out likewise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from mtop_batch.errors import DataError

MAX_CHARS = 100_000
TEXT_IS_NULL = "text is null"
TEXT_IS_EMPTY = "text is empty"
TEXT_SAYS_NOTHING = "text has no visible character"


@dataclass(frozen=True)
class TextRows:
    """The texts of R rows.

    Args:
        texts: (R,) large_string; null where there is none.
        seconds: (R,) large_string; null for single texts.
        errors: (R,) string; why there is no text, null where there is one.
        is_second: (R,) bool; a single text stands in the second column. None where there is no second column.
    """

    texts: pa.Array
    seconds: pa.Array
    errors: pa.Array
    is_second: pa.Array | None = None

    def in_columns(self) -> tuple[pa.Array, pa.Array]:
        """What each text column has of each row: "" in the first where only the second has a text."""
        if self.is_second is None:
            return self.texts, self.seconds
        empty = pa.scalar("", pa.large_string())
        return pc.if_else(self.is_second, empty, self.texts), pc.if_else(self.is_second, self.texts, self.seconds)


def text_rows(columns: Sequence[pa.Array], max_chars: int | None = None) -> TextRows:
    """Apply the rule to one or two text columns, large_string of R rows each.

    Args:
        columns: The columns.
        max_chars: Each text is cut to so many code points; None for no limit.

    >>> rows = text_rows([pa.array(["a", None, " "], pa.large_string()), pa.array(["b", "c", None], pa.large_string())])
    >>> rows.texts.to_pylist(), rows.seconds.to_pylist(), rows.errors.to_pylist()
    (['a', 'c', None], ['b', None, None], [None, None, 'text is empty'])
    """
    return joined_texts([usable_texts(column, max_chars) for column in columns])


def usable_texts(texts: pa.Array, max_chars: int | None = None) -> pa.Array:
    """What the rule takes of each text of a column: "" of a blank one, and the beginning of a long one."""
    beginnings = texts if max_chars is None else pc.utf8_slice_codeunits(texts, 0, max_chars)
    return pc.if_else(_is_blank(texts), pa.scalar("", pa.large_string()), beginnings)


def joined_texts(columns: Sequence[pa.Array]) -> TextRows:
    """The rule for one or two columns of `usable_texts`."""
    none = pa.scalar(None, pa.large_string())
    present = [pc.if_else(pc.equal(pc.binary_length(column), 0), none, column) for column in columns]
    first, second = present[0], present[-1]
    texts = pc.coalesce(first, second)
    is_single = first.is_null() if len(columns) == 2 else pa.scalar(True)
    given = pc.or_(columns[0].is_valid(), columns[-1].is_valid())
    reasons = pc.if_else(given, TEXT_IS_EMPTY, TEXT_IS_NULL)
    return TextRows(
        texts=texts,
        seconds=pc.if_else(is_single, none, second),
        errors=pc.if_else(texts.is_valid(), pa.scalar(None, pa.string()), reasons),
        is_second=pc.and_(first.is_null(), second.is_valid()) if len(columns) == 2 else None,
    )


def text_column(column: pa.ChunkedArray, name: str, file: str, whose: str = "") -> tuple[pa.Array, pa.Array]:
    """A text column of labelled data as large_string, and why rows hold no text (R,); those are null.

    Args:
        column: The column.
        name: Its name.
        file: Whose column it is.
        whose: What a message begins with, such as a task.

    Raises:
        DataError: It has values, of a type that is none of texts.
    """
    found = [(pa.nulls(0, pa.large_string()), pa.nulls(0, pa.string()))]
    for chunk in column.chunks:
        plain = chunk.dictionary_decode() if pa.types.is_dictionary(chunk.type) else chunk
        if is_text_type(plain_type(plain.type)):
            found.append(valid_texts(plain, name))
        elif pc.any(holds_no_text(plain)).as_py():
            raise DataError(
                f"{whose}text column {name!r} of {file} has type {column.type}, not string; name another column, or "
                "write it as strings"
            )
        else:
            found.append((pa.nulls(len(plain), pa.large_string()), pa.nulls(len(plain), pa.string())))
    texts, reasons = zip(*found, strict=True)
    return pa.concat_arrays(texts), pa.concat_arrays(reasons)


def plain_type(column_type: pa.DataType) -> pa.DataType:
    """The type of a column's values."""
    if isinstance(column_type, pa.BaseExtensionType) and column_type != pa.uuid():
        return plain_type(column_type.storage_type)
    return column_type.value_type if pa.types.is_dictionary(column_type) else column_type


def is_text_type(column_type: pa.DataType) -> bool:
    """Whether values of a plain type are texts: strings, or the bytes of strings as some writers leave them."""
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
            types.is_null,
        )
    )


def valid_texts(column: pa.Array, name: str) -> tuple[pa.Array, pa.Array]:
    """Texts of such a type, no dictionary, as valid large_string; and why some cannot be (R,), which are null."""
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    no_reasons = pa.nulls(len(column), pa.string())
    if pa.types.is_null(column.type):
        return pa.nulls(len(column), pa.large_string()), no_reasons
    raw = column.cast(pa.large_binary())
    try:
        return raw.cast(pa.large_string()), no_reasons
    except pa.ArrowInvalid:  # some row is not UTF-8; Parquet writers are not made to check
        texts = [_decoded_text(value) for value in raw]
    is_bad = pc.and_(raw.is_valid(), pc.is_null(pa.array(texts, pa.large_string())))
    reasons = pc.if_else(is_bad, f"text column {name!r} is not valid UTF-8", pa.scalar(None, pa.string()))
    return pa.array(texts, pa.large_string()), reasons


def _decoded_text(value: pa.Scalar) -> str | None:
    try:
        return None if value.as_py() is None else str(value.as_py(), "utf-8")
    except UnicodeDecodeError:
        return None


def holds_no_text(column: pa.Array) -> pa.Array:
    """Of a column whose type is none of texts: (R,) bool, where it has a value.

    A column without any value may have any type: pandas writes such text columns as double, bool or timestamp.
    """
    return pc.invert(column.is_null(nan_is_null=True))


def _is_blank(texts: pa.Array) -> pa.Array:
    """Null for null, true for empty or only white space."""
    return pc.or_(pc.equal(pc.binary_length(texts), 0), pc.utf8_is_space(texts))
