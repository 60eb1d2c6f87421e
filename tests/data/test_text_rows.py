from __future__ import annotations

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from mtop_batch.data.text_rows import TEXT_IS_EMPTY, TEXT_IS_NULL, text_rows

TEXTS = st.none() | st.sampled_from(["", " ", "\t\n", "\u00a0", "a", " b ", "long text"])


def by_hand(pair: tuple[str | None, ...], max_chars: int) -> tuple[str | None, str | None, str | None]:
    """The rule, row by row."""
    present = [text[:max_chars] for text in pair if text is not None and text.strip()]
    if not present:
        return None, None, TEXT_IS_NULL if set(pair) == {None} else TEXT_IS_EMPTY
    return present[0], present[1] if len(present) == 2 else None, None


@given(st.integers(1, 2).flatmap(lambda n: st.lists(st.tuples(*[TEXTS] * n), max_size=9).map(lambda rows: (n, rows))))
def test_blank_texts_leave_their_pair_and_rows_without_text_get_the_reason(
    drawn: tuple[int, list[tuple[str | None, ...]]],
) -> None:
    num_columns, rows = drawn
    columns = [pa.array([row[index] for row in rows], pa.large_string()) for index in range(num_columns)]
    found = text_rows(columns, max_chars=6)
    got = list(zip(found.texts.to_pylist(), found.seconds.to_pylist(), found.errors.to_pylist(), strict=True))
    assert got == [by_hand(row, 6) for row in rows]
    whole = text_rows(columns).texts.to_pylist()
    assert [text and text[:6] for text in whole] == found.texts.to_pylist()
