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
    """

    texts: pa.Array
    seconds: pa.Array
    errors: pa.Array


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
    )


def holds_no_text(column: pa.Array) -> pa.Array:
    """Of a column whose type is none of texts: (R,) bool, where it has a value.

    A column without any value may have any type: pandas writes such text columns as double, bool or timestamp.
    """
    return pc.invert(column.is_null(nan_is_null=True))


def _is_blank(texts: pa.Array) -> pa.Array:
    """Null for null, true for empty or only white space."""
    return pc.or_(pc.equal(pc.binary_length(texts), 0), pc.utf8_is_space(texts))
