"""Words of texts, whatever the tokenizer: offsets are characters of the text, and cutting or dividing changes none."""

from __future__ import annotations

import unicodedata
from dataclasses import replace
from functools import cache
from typing import Literal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from mtop_batch.data.encoders import PythonEncoder
from mtop_batch.data.entities.words import words_of_tokens
from mtop_batch.data.text_rows import text_rows
from mtop_batch.data.tokens import TextTokenizer, Tokens
from mtop_batch.errors import ConfigError
from tests.data.test_tokens import _LONG_TEXTS, _MAX_TOKENS, _TEXTS

TextLists = st.lists(_TEXTS, min_size=1, max_size=3)


@cache
def text_tokenizer(tokenizer: PreTrainedTokenizerBase, *limits: int) -> TextTokenizer:
    return TextTokenizer(tokenizer, *limits)


def words(tokens: Tokens, row: int = 0) -> list[tuple[int, ...]]:
    found = tokens.words_of(np.array([row])).words
    return list(dict.fromkeys(map(tuple, found.tolist())))


def shown(tokens: Tokens, *texts: str) -> list[str]:
    return [texts[side][start:end] for side, start, end in words(tokens)]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_words_by_hand(any_tokenizer: PreTrainedTokenizerBase, form: Literal["NFC", "NFD"]) -> None:
    text = unicodedata.normalize(form, "Señor 東京-born, U.S. naïve (fell)\t3.5%")
    found = shown(text_tokenizer(any_tokenizer, 200).encode([text], words=True), text)
    assert "".join(found) == "".join(text.split())
    if "Señor" in found:  # a vocabulary may have pieces that lie across words, such as "s."
        assert found[0] == "Señor"
    assert {"U", "S"} <= {unicodedata.normalize("NFC", word).rstrip(".") for word in found}


@given(texts=TextLists, max_tokens=_MAX_TOKENS)
@settings(max_examples=60, deadline=None)
def test_words_are_apart_and_whole_and_ids_the_same(
    any_tokenizer: PreTrainedTokenizerBase, texts: list[str], max_tokens: int
) -> None:
    tokenizer = text_tokenizer(any_tokenizer, max_tokens)
    tokens, plain = tokenizer.encode(texts, words=True), tokenizer.encode(texts)
    assert tokens.values.tolist() == plain.values.tolist()
    whole = text_tokenizer(any_tokenizer, 5_000).encode(texts, words=True)
    for row, text in enumerate(texts):
        found = words(tokens, row)
        assert found == words(whole, row)[: len(found)]  # cutting a text early changes no word
        ends = 0
        for side, start, end in found:
            assert (side, ends <= start < end <= len(text)) == (0, True)
            assert not text[start].isspace()
            assert not text[end - 1].isspace()
            assert end == len(text) or not unicodedata.category(text[end]).startswith("M")
            ends = end


@given(pair=st.tuples(_TEXTS, _TEXTS), max_tokens=_MAX_TOKENS)
@settings(max_examples=40, deadline=None)
def test_words_of_pairs_say_in_which_column_they_are(
    any_tokenizer: PreTrainedTokenizerBase, pair: tuple[str, str], max_tokens: int
) -> None:
    rows = text_rows([pa.array([text], pa.large_string()) for text in pair])
    first, second = rows.in_columns()
    tokenizer = text_tokenizer(any_tokenizer, max_tokens)
    tokens = tokenizer.encode(first.to_pylist(), second.to_pylist(), words=True)
    plain = tokenizer.encode(rows.texts.to_pylist(), rows.seconds.to_pylist())
    assert tokens.values.tolist() == plain.values.tolist()
    alone = [words(text_tokenizer(any_tokenizer, 5_000).encode([text], words=True)) for text in pair]
    for side in (0, 1):
        own = [word[1:] for word in words(tokens) if word[0] == side]
        if own and any_tokenizer.truncation_side == "right":
            assert own == [word[1:] for word in alone[side]][: len(own)]


@given(text=_TEXTS, max_tokens=st.sampled_from([9, 14]))
@settings(max_examples=40, deadline=None)
def test_windows_have_the_words_of_the_whole_text_once(
    any_tokenizer: PreTrainedTokenizerBase, text: str, max_tokens: int
) -> None:
    tokens = text_tokenizer(any_tokenizer, max_tokens, 500, 2).encode([text], words=True)
    windows, counts = tokens.windows(max_tokens), tokens.num_windows(max_tokens)
    found = windows.words_of(np.arange(len(windows)))
    chosen, texts = found.of_texts(counts)
    whole = text_tokenizer(any_tokenizer, 5_000).encode([text], words=True)
    assert list(map(tuple, found.words[chosen].tolist())) == words(whole)
    assert not texts.any()
    best: dict[tuple[int, ...], int] = {}
    for word, to_edge in zip(map(tuple, found.words.tolist()), found.to_edge.tolist(), strict=True):
        best[word] = max(best.get(word, 0), to_edge)
    assert [best[word] for word in words(whole)] == found.to_edge[chosen].tolist()


@pytest.mark.parametrize("name", ["chinese", "emoji", "combining marks", "control characters", "white space"])
def test_odd_texts_have_words_inside_them(any_tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    text = _LONG_TEXTS[name]
    found = words(text_tokenizer(any_tokenizer, 64).encode([text], words=True))
    assert all(0 <= start < end <= len(text) for _, start, end in found)


def test_scripts_without_spaces_have_a_word_for_each_token() -> None:
    assert [word[1:] for word in words_of_tokens("東京の株", [(0, 2), (2, 3), (3, 4)])] == [(0, 2), (2, 3), (3, 4)]
    assert [word[0] for word in words_of_tokens("한국어", [(0, 1), (1, 3)])] == [0, -1]


def test_bytes_of_one_character_are_one_word() -> None:
    assert words_of_tokens("🙂!", [(0, 1), (0, 1), (0, 1), (1, 2)], side=1) == [
        (1, 0, 1),
        (-1, 0, 0),
        (-1, 0, 0),
        (1, 1, 2),
    ]


def test_a_tokenizer_that_does_not_tell_where_tokens_lie_is_refused(minilm_tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ConfigError, match="does not tell where in a text its tokens lie"):
        PythonEncoder(minilm_tokenizer, 16).encode(["a"], [None], words=True)


def test_words_go_with_their_rows(minilm_tokenizer: PreTrainedTokenizerBase) -> None:
    tokens = TextTokenizer(minilm_tokenizer, 8).encode(["new deals", "", "in Rome"], words=True)
    taken = Tokens.concat([tokens.take(np.array([2])), tokens.take(np.array([1, 0]))])
    assert [words(taken, row) for row in range(3)] == [words(tokens, row) for row in (2, 1, 0)]
    assert len(replace(tokens, words=None).words_of(np.array([0])).words) == 0
