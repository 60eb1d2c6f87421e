"""Windows: every token of a long text is in one, in order, with the overlap that was asked for."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from mtop_batch.data.labelled_tokens import LabelledTokens
from mtop_batch.data.tokens import TextTokenizer, Tokens
from mtop_batch.data.windows import Windows
from mtop_batch.errors import ConfigError
from tests.data.test_tokens import reference

NUMBERS = st.integers(0, 400)


@given(NUMBERS, NUMBERS, st.integers(4, 60), st.integers(2, 30), st.data())
def test_windows_cover_every_token_in_order_and_overlap_as_said(
    first: int, second: int, budget: int, most: int, data: st.DataObject
) -> None:
    room = budget - budget // 2
    windows = Windows(most, data.draw(st.integers(0, room - 1)), keeps_end=data.draw(st.booleans()))
    parts = windows.divide(first, second, budget)
    assert parts == windows.divide(first, second, budget)
    assert 1 <= len(parts) <= most
    sizes = [sum(side.stop - side.start for side in part) for part in parts]
    if first + second <= budget:
        assert parts == [(slice(0, first), slice(0, second))]
        return
    assert set(sizes) == {budget}
    divided = 0 if len({part[0].start for part in parts}) > 1 else 1
    if len(parts) == 1:  # the reach of one window more is the longer text's
        divided = int(first <= second)
    pieces = [part[divided] for part in parts]
    assert len({(part[1 - divided].start, part[1 - divided].stop) for part in parts}) == 1
    shared = [before.stop - after.start for before, after in pairwise(pieces)]
    assert all(overlap == windows.overlap for overlap in shared[:-1])
    assert all(windows.overlap <= overlap < budget for overlap in shared[-1:])
    longer = (first, second)[divided]
    begins, ends = (pieces[0].start == 0, pieces[-1].stop == longer)
    assert begins or windows.keeps_end
    assert ends or not windows.keeps_end
    assert (begins and ends) or len(parts) == most


@pytest.mark.parametrize("second", [None, "the bank's profit is down again"])
@pytest.mark.parametrize("max_tokens", [12, 13, 32])
def test_a_window_is_what_a_text_of_its_own_would_be(
    any_tokenizer: PreTrainedTokenizerBase, max_tokens: int, second: str | None
) -> None:
    long = " ".join(f"shares fell {number} times" for number in range(90))
    texts = ["shares fell", long, "profit", "the team won"]
    cut = TextTokenizer(any_tokenizer, max_tokens).encode(texts, [second] * 4)
    windowed = TextTokenizer(any_tokenizer, max_tokens, 900, 2)
    found, num_cut = windowed.encode_and_count(texts, [second] * 4)
    rows = found.windows(max_tokens)
    firsts = found.num_windows(max_tokens).cumsum() - found.num_windows(max_tokens)
    assert not num_cut or second is not None  # of a pair the shorter text may lose some
    for row, text in enumerate(texts):  # the first window is what is left of a text that is cut
        assert (
            rows.row(firsts[row]).tolist()
            == cut.row(row).tolist()
            == reference(any_tokenizer, max_tokens, text, second)[0]
        )
        assert rows.first_lengths[firsts[row]] == cut.first_lengths[row]
    whole = any_tokenizer(long, add_special_tokens=False)["input_ids"]
    special = max_tokens - len(cut.row(1)) + any_tokenizer.num_special_tokens_to_add(pair=second is not None)
    beside = 0 if second is None else len(any_tokenizer(second, add_special_tokens=False)["input_ids"])
    room = max_tokens - special - min(beside, (max_tokens - special) // 2)
    tokens: list[int] = []
    for number in range(firsts[1], firsts[2]):
        ids = rows.row(number).tolist()
        assert len(ids) == max_tokens
        start = min(number - firsts[1], firsts[2] - firsts[1] - 1) * (room - 2)
        start = min(start, len(whole) - room)
        assert any(ids[at : at + room] == whole[start : start + room] for at in range(max_tokens))
        tokens[start:] = whole[start : start + room]
    assert tokens == whole


def test_what_is_behind_the_last_window_is_counted(minilm_tokenizer: PreTrainedTokenizerBase) -> None:
    words = ["shares " * count for count in (6, 7, 14, 15, 500)]
    for max_windows, expected in ((1, 4), (3, 2)):  # 6 words fit, 3 windows that share 2 hold 14
        tokens, num_cut = TextTokenizer(minilm_tokenizer, 8, max_windows, 2 * (max_windows > 1)).encode_and_count(words)
        assert num_cut == expected
        assert tokens.num_windows(8).max() == max_windows
    pairs = TextTokenizer(minilm_tokenizer, 12, 3, 1).encode_and_count(["a " * 5, "a " * 4], ["b " * 40, "b " * 5])
    assert pairs[1] == 1  # nine tokens of both fit


def test_the_longer_text_of_a_pair_is_divided(minilm_tokenizer: PreTrainedTokenizerBase) -> None:
    encoder = TextTokenizer(minilm_tokenizer, 10, 8, 1)
    tokens = encoder.encode(["fell", "a b c d e f g h", "a " * 9], ["a b c d e f g h", "fell", "b " * 9])
    said = [minilm_tokenizer.decode(row) for row in map(tokens.windows(10).row, range(len(tokens.windows(10))))]
    assert said[:4] == [
        "[CLS] fell [SEP] a b c d e f [SEP]",
        "[CLS] fell [SEP] c d e f g h [SEP]",
        "[CLS] a b c d e f [SEP] fell [SEP]",
        "[CLS] c d e f g h [SEP] fell [SEP]",
    ]
    assert said[4:] == ["[CLS] a a a [SEP] b b b b [SEP]"] * 3
    assert tokens.first_lengths.tolist() == [3, 8, 5]


def test_a_text_that_speaks_only_behind_the_first_window_says_something(
    minilm_tokenizer: PreTrainedTokenizerBase,
) -> None:
    text = "\u0301 " * 40 + "\U000e0001 " * 40 + "shares"
    assert TextTokenizer(minilm_tokenizer, 8, 8, 0).encode([text]).lengths[0]


def test_windows_from_the_left_keep_the_end(byte_level_tokenizer: PreTrainedTokenizerBase) -> None:
    left = PreTrainedTokenizerFast(tokenizer_object=byte_level_tokenizer.backend_tokenizer, truncation_side="left")
    tokens, num_cut = TextTokenizer(left, 9, 2, 1).encode_and_count(["shares fell " * 40])
    whole = left("shares fell " * 40, add_special_tokens=False)["input_ids"]
    room = 9 - left.num_special_tokens_to_add()
    rows = [tokens.windows(9).row(row).tolist() for row in range(2)]
    assert num_cut == 1
    assert whole[-room:] == rows[1][1:-1] or whole[-room:] == rows[1]
    assert rows == TextTokenizer(left, 9, 2, 1).encode(["shares fell " * 40]).windows(9).values.reshape(2, 9).tolist()


@pytest.mark.parametrize(("overlap", "max_tokens"), [(6, 12), (100, 32), (17, 33)])
def test_windows_without_room_are_refused(
    minilm_tokenizer: PreTrainedTokenizerBase, overlap: int, max_tokens: int
) -> None:
    with pytest.raises(ConfigError, match=rf"window_overlap = {overlap} leaves no room.*allowed is 0 to \d+"):
        TextTokenizer(minilm_tokenizer, max_tokens, 4, overlap)


def test_examples_know_their_windows() -> None:
    tokens = Tokens.from_rows([[1, 2, 3, 4, 5, 6], [7], [8, 9, 10, 11]])
    examples = LabelledTokens(tokens.windows(2), np.array([0, 1, 0]), tokens.num_windows(2))
    assert (len(examples), examples.lengths.tolist()) == (3, [6, 1, 4])
    assert examples.windows(np.array([2, 0])).tolist() == [4, 5, 0, 1, 2]
    some = examples.take(np.array([2, 1]))
    assert (some.tokens.values.tolist(), some.lengths.tolist()) == ([8, 9, 10, 11, 7], [4, 1])
    drawn = np.array([examples.draw_windows(np.array([0, 1, 2, 0]), 5, step) for step in range(200)])
    assert drawn.tolist() == [examples.draw_windows(np.array([0, 1, 2, 0]), 5, step).tolist() for step in range(200)]
    counts = [
        np.bincount(column, minlength=6)[wanted].tolist()
        for column, wanted in zip(drawn.T, ([0, 1, 2], [3], [4, 5], [0, 1, 2]), strict=True)
    ]
    assert [sum(of_row) for of_row in counts] == [200] * 4
    assert min(min(of_row) for of_row in counts) > 40
