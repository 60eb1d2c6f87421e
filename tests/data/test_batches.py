from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from mtop_batch.data.batches import length_sorted_batches, pad_batch
from mtop_batch.data.tokens import TextTokenizer, Tokens


def test_a_padded_batch_is_what_transformers_pads(tokenizer: PreTrainedTokenizerBase) -> None:
    firsts, seconds = ["bank", "market profit shares economy", "the law"], ["cup", None, "film star music"]
    tokens = TextTokenizer(tokenizer, 16).encode(firsts, seconds)
    rows = [tokenizer(first, second) for first, second in zip(firsts, seconds, strict=True)]
    expected = tokenizer.pad([rows[2], rows[0], rows[1]], return_tensors="pt")
    batch = pad_batch(tokens, np.array([2, 0, 1]))
    assert {key: value.tolist() for key, value in batch.items()} == {
        key: value.tolist() for key, value in expected.items()
    }


def test_padding_is_as_wide_as_the_longest_row_and_rows_may_be_empty() -> None:
    tokens = Tokens.from_rows([[5], [6, 7, 8], []])
    batch = pad_batch(tokens, np.array([2, 0]))
    assert batch["input_ids"].tolist() == [[0], [5]]
    assert batch["attention_mask"].tolist() == [[0], [1]]
    assert pad_batch(tokens, np.array([], dtype=np.int64))["input_ids"].shape == (0, 0)


@given(st.lists(st.integers(0, 300), max_size=60).map(np.array), st.integers(1, 1000), st.none() | st.integers(1, 10))
@settings(deadline=None)
def test_batches_hold_each_row_with_tokens_once_within_the_budget(
    lengths: np.ndarray, max_batch_tokens: int, max_batch_rows: int | None
) -> None:
    batches = length_sorted_batches(lengths, max_batch_tokens, max_batch_rows)
    assert sorted(row for batch in batches for row in batch) == np.flatnonzero(lengths).tolist()
    for batch in batches:
        assert len(batch) == 1 or len(batch) * lengths[batch].max() <= max_batch_tokens
        assert max_batch_rows is None or len(batch) <= max_batch_rows
    longest = [lengths[batch].max() for batch in batches]
    assert longest == sorted(longest, reverse=True)
