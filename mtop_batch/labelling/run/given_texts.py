"""Texts that a caller hands over, as rows of a corpus."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from mtop_batch.data.text_rows import TextRows, text_rows
from mtop_batch.errors import DataError


def given_texts(texts: Sequence[str | None], seconds: Sequence[str | None] | None, max_chars: int) -> TextRows:
    """The texts of all rows, by the rule of `mtop_batch.data.text_rows`."""
    if isinstance(texts, str) or isinstance(seconds, str):
        raise DataError("texts are given as one string; give a list of strings, even for one text")
    if seconds is not None and len(seconds) != len(texts):
        raise DataError(
            f"there are {len(texts)} texts and {len(seconds)} second texts; give one (or None) for each text"
        )
    columns = [texts] if seconds is None else [texts, seconds]
    for column in columns:
        for row, text in enumerate(column):
            if text is not None and not isinstance(text, str):
                raise DataError(f"text {row} is {text!r}, a {type(text).__name__}; texts are strings or None")
    return text_rows([_as_arrow(column) for column in columns], max_chars)


def _as_arrow(texts: Sequence[str | None]) -> pa.Array:
    """Texts as large_string; half a surrogate pair, which no UTF-8 text can hold, becomes U+FFFD."""
    try:
        return pa.array(texts, pa.large_string())
    except (UnicodeError, pa.ArrowInvalid):
        whole = [text and text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for text in texts]
        return pa.array(whole, pa.large_string())
