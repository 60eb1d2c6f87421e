from __future__ import annotations

import unicodedata
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from mtop_batch.data.char_cuts import safe_cuts
from mtop_batch.data.encoders import PythonEncoder, RustEncoder
from mtop_batch.data.silence import is_seen
from mtop_batch.data.text_rows import TEXT_SAYS_NOTHING
from mtop_batch.data.tokens import TextTokenizer, Tokens, reasons_without
from mtop_batch.errors import ConfigError

# Pieces that tokenizers treat specially; texts are built from runs of them.
_PIECES = st.sampled_from(
    [
        *("shares", "fell", "again", "the bank's", "12.5%", "don't", "U.S.", "e-mail", "naïve", "ANGST", "ﬁre", "ß"),
        *("東京", "経済", "株価は下落した", "。", "，", "中", "हिन्दी", "العالمي", "ภาษาไทย", "한국어", "ﷺ", "⑴", "½"),
        *("e\u0301", "\u0301", "\u0308", "🙂", "👩‍👩‍👧", "🇫🇷", "\ufe0f", "\u200b", "\u00ad", "\u0600", "ͺ", "\u3164"),
        *(" ", "  ", "     ", "\t", "\n", "\n\n", "\u00a0", "\u3000", "\u2028", "\x1c", "\x00", "\x7f"),
        *(".", "...", " .", "!", "''", "``", "_", "[SEP]", "[MASK]", "<mask>", "</s>", "a" * 99, "b" * 101, "x" * 400),
    ]
)
_TEXTS = st.one_of(
    st.lists(_PIECES, max_size=60).map("".join),
    st.lists(_PIECES, max_size=60).map(" ".join),
    st.text(max_size=200),
    st.lists(st.text(max_size=12), max_size=40).map(" ".join),
)
_MAX_TOKENS = st.sampled_from([5, 8, 13, 32])
# About a thousand characters each: more than is cut at first, but pairs of long texts take transformers minutes.
_LONG_TEXTS = {
    "news": "The bank's shares fell 12.5% on Monday, and don't expect a recovery soon. " * 15,
    "chinese": "東京の株価は下落した" * 100,
    "chinese sentences": "東京の株価は下落した。" * 100,
    "one word": "a" * 1_500,
    "one word, then text": "a" * 900 + " and then the shares fell" * 50,
    "white space": " \n\t\u3000" * 300,
    "white space, then text": " " * 1_500 + "shares fell",
    "emoji": "👩‍👩‍👧🙂" * 80,
    "combining marks": "e" + "\u0301" * 600 + " x" * 50,
    "control characters": "\x00\x01 a\x1c" * 500,
    "unknown words": ("q" * 150 + " ") * 20,
    "empty": "",
}


def says_something(tokenizer: PreTrainedTokenizerBase, max_tokens: int, text: str) -> bool:
    """The rule by hand: of the tokens that can count, one that is known and seen, or else what is seen in the text."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    ids = ids[:max_tokens] if tokenizer.truncation_side == "right" else ids[-max_tokens:]
    ids = [token for token in ids if token not in tokenizer.all_special_ids or token == tokenizer.unk_token_id]
    known = [str(tokenizer.decode([token])).removeprefix("##") for token in ids if token != tokenizer.unk_token_id]
    unclear = any("\ufffd" in token for token in known) or tokenizer.unk_token_id in ids
    return any(map(is_seen, known)) or (unclear and is_seen(text))


def reference(
    tokenizer: PreTrainedTokenizerBase, max_tokens: int, text: str, second: str | None = None
) -> tuple[list[int], int]:
    """Ids and first length from the whole text, truncated by transformers; texts that say nothing are left out."""
    said = [each for each in (text, second) if each is not None and says_something(tokenizer, max_tokens, each)]
    if not said:
        return [], 0
    text, second = [*said, None][:2]  # type: ignore[assignment]
    seconds = None if second is None else [second]
    encoded: Any = tokenizer([text], seconds, truncation=True, max_length=max_tokens, return_token_type_ids=True)
    types = encoded["token_type_ids"][0]
    return encoded["input_ids"][0], types.index(1) if 1 in types else len(types)


@cache
def text_tokenizer(tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> TextTokenizer:
    return TextTokenizer(tokenizer, max_tokens)


@given(st.lists(_TEXTS, min_size=1, max_size=4), _MAX_TOKENS)
@settings(max_examples=100, deadline=None)
def test_cutting_text_early_gives_identical_token_ids(
    any_tokenizer: PreTrainedTokenizerBase, texts: list[str], max_tokens: int
) -> None:
    tokens = text_tokenizer(any_tokenizer, max_tokens).encode(texts)
    for row, text in enumerate(texts):
        assert (tokens.row(row).tolist(), tokens.first_lengths[row]) == reference(any_tokenizer, max_tokens, text)


@given(st.lists(st.tuples(_TEXTS, st.none() | _TEXTS), min_size=1, max_size=4), _MAX_TOKENS)
@settings(max_examples=100, deadline=None)
def test_pairs_are_truncated_as_transformers_does(
    any_tokenizer: PreTrainedTokenizerBase, pairs: list[tuple[str, str | None]], max_tokens: int
) -> None:
    tokens = text_tokenizer(any_tokenizer, max_tokens).encode(*map(list, zip(*pairs, strict=True)))
    for row, (text, second) in enumerate(pairs):
        expected = reference(any_tokenizer, max_tokens, text, second)
        assert (tokens.row(row).tolist(), tokens.first_lengths[row]) == expected


@pytest.mark.parametrize("name", _LONG_TEXTS)
def test_long_odd_texts_give_identical_token_ids(any_tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    text = _LONG_TEXTS[name]
    encoder = TextTokenizer(any_tokenizer, 32)
    assert encoder.encode([text]).row(0).tolist() == reference(any_tokenizer, 32, text)[0]
    for first, second in [(text, "shares"), ("shares", text), (text, _LONG_TEXTS["news"])]:
        assert encoder.encode([first], [second]).row(0).tolist() == reference(any_tokenizer, 32, first, second)[0]


def test_the_odd_token_of_a_pair_goes_to_the_longer_text(minilm_tokenizer: PreTrainedTokenizerBase) -> None:
    # Of 8 tokens 3 are special, 5 remain: both beginnings yield enough, but only whole texts say which is longer.
    longer, shorter = "a " * 400, "b " * 300
    tokens = TextTokenizer(minilm_tokenizer, 8).encode([longer, shorter, shorter], [shorter, longer, shorter])
    assert tokens.first_lengths.tolist() == [5, 4, 4]


def test_a_megabyte_in_one_word_is_one_unknown_token(minilm_tokenizer: PreTrainedTokenizerBase) -> None:
    tokens = TextTokenizer(minilm_tokenizer, 32).encode(["a" * 1_000_000])
    assert tokens.row(0).tolist() == minilm_tokenizer("a" * 101)["input_ids"]


def test_letters_never_normalise_to_something_that_ends_with_white_space() -> None:
    # `cuts` relies on it: a space after a letter ends a piece under every Unicode normalisation.
    letters = (chr(code) for code in range(0x110000) if chr(code).isalnum())
    assert not [letter for letter in letters if unicodedata.normalize("NFKC", letter)[-1].isspace()]


def test_the_given_tokenizer_is_left_as_it_was(minilm_tokenizer: PreTrainedTokenizerBase) -> None:
    backend = minilm_tokenizer.backend_tokenizer
    before = (backend.truncation, backend.padding)
    TextTokenizer(minilm_tokenizer, 16).encode(["shares fell " * 50])
    assert (backend.truncation, backend.padding) == before


@pytest.mark.parametrize(
    "pre_tokenizer",
    [
        None,
        pre_tokenizers.Split(" ", "isolated"),
        pre_tokenizers.Metaspace(split=False),
        pre_tokenizers.ByteLevel(use_regex=False),
    ],
)
def test_unknown_pieces_are_never_cut(pre_tokenizer: Any) -> None:
    backend = Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    if pre_tokenizer is not None:
        backend.pre_tokenizer = pre_tokenizer
    encoder = TextTokenizer(PreTrainedTokenizerFast(tokenizer_object=backend), 4)
    assert not encoder.cuts_early
    assert encoder.encode(["b " * 100]).row(0).tolist() == encoder.encode(["b " * 100]).row(0).tolist()


@pytest.mark.parametrize("family", ["Bert", "Electra", "DistilBert", "Roberta", "GPTNeoX", "XLMRoberta", "Albert"])
def test_the_tokenizers_of_common_backbones_can_be_cut(family: str) -> None:
    tokenizer = getattr(transformers, f"{family}Tokenizer")()
    assert safe_cuts(tokenizer.backend_tokenizer) is not None


def test_a_long_text_is_tokenised_only_as_far_as_needed(
    any_tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    encode_batch = RustEncoder._encode_batch

    def recording(encoder: RustEncoder, texts: list[str], *options: Any) -> list[Any]:
        read.extend(texts)
        return encode_batch(encoder, texts, *options)

    monkeypatch.setattr(RustEncoder, "_encode_batch", recording)
    text_tokenizer(any_tokenizer, 32).encode(["The bank's shares fell on Monday. " * 3_000])
    assert sum(map(len, read)) <= 32 * 6


def test_truncation_from_the_left_keeps_the_end(byte_level_tokenizer: PreTrainedTokenizerBase) -> None:
    left = PreTrainedTokenizerFast(tokenizer_object=byte_level_tokenizer.backend_tokenizer, truncation_side="left")
    encoder = TextTokenizer(left, 9)
    for first, second in [("shares fell " * 40, None), ("shares " * 40, "the bank's profit " * 40)]:
        assert encoder.encode([first], [second]).row(0).tolist() == reference(left, 9, first, second)[0]


def test_a_tokenizer_without_rust_backend_tokenises_whole_texts(minilm_tokenizer: PreTrainedTokenizerBase) -> None:
    encoded = PythonEncoder(minilm_tokenizer, 8).encode(["shares " * 40, None], ["fell " * 40, None])
    rows, first_lengths, num_cut, _ = encoded
    expected = reference(minilm_tokenizer, 8, "shares " * 40, "fell " * 40)
    assert (rows[0], first_lengths[0]) == expected
    assert (rows[1], first_lengths[1], num_cut) == ([], 0, 1)


NOTHING = {
    "zero width": "\u200b\u200d\ufeff",
    "soft hyphen": "\u00ad",
    "combining": "\u0301\u0308\ufe0f",
    "private use": "\ue000\uf8ff",
    "NUL": "\x00\x01",
    "blanks of scripts": "\u2800\u3164",
    "no character": "\ufffd",
    "white space": " \u3000\u2028",
}


@pytest.mark.parametrize("name", NOTHING)
def test_a_text_of_nothing_has_no_tokens_and_leaves_its_pair(any_tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    encoder, nothing = text_tokenizer(any_tokenizer, 32), NOTHING[name]
    tokens = encoder.encode([nothing, nothing, "shares", nothing * 300 + "shares"], [None, "shares", nothing, None])
    alone = reference(any_tokenizer, 32, "shares")
    assert tokens.lengths[0] == 0
    for row in (1, 2):
        assert (tokens.row(row).tolist(), tokens.first_lengths[row]) == alone
    assert reasons_without(tokens, [None] * 4)[:3] == [TEXT_SAYS_NOTHING, None, None]
    assert reasons_without(tokens, ["text is null"] + [None] * 3)[0] == "text is null"


@pytest.mark.parametrize("text", ["?", "😀", "ภาษาไทย", "q" * 150, "日本", "½"])
def test_a_text_that_people_see_says_something_though_its_tokens_may_be_unknown(
    any_tokenizer: PreTrainedTokenizerBase, text: str
) -> None:
    assert text_tokenizer(any_tokenizer, 32).encode([text]).lengths[0] > 0


def test_a_tokenizer_in_python_leaves_texts_of_nothing_out_too(minilm_tokenizer: PreTrainedTokenizerBase) -> None:
    encoder = PythonEncoder(minilm_tokenizer, 8)
    rows, *_ = encoder.encode(["\u200b", "shares", "\x00"], [None, "\u00ad", "shares"])
    assert rows == [[], *[minilm_tokenizer("shares")["input_ids"]] * 2]


def test_missing_texts_have_no_tokens_and_half_surrogates_are_read(tokenizer: PreTrainedTokenizerBase) -> None:
    tokens = TextTokenizer(tokenizer, 8).encode([None, "bank \ud83d market", "bank"])
    assert tokens.lengths.tolist() == [0, 4, 3]


def test_too_few_tokens_for_a_text_are_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ConfigError, match=r"max_tokens = 3 leaves no room for text.*allowed is 4 or more"):
        TextTokenizer(tokenizer, 3)


_ROWS = st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=5), max_size=8)


@given(_ROWS, st.data())
@settings(deadline=None)
def test_take_concat_and_arrow_keep_rows(rows: list[list[int]], data: st.DataObject) -> None:
    tokens = Tokens.from_rows(rows, [len(row) // 2 for row in rows])
    wanted = np.array(data.draw(st.lists(st.integers(0, len(rows) - 1))) if rows else [], dtype=np.int64)
    both = Tokens.concat([tokens, tokens.take(wanted), Tokens.from_rows([])])
    table = both.to_arrow()
    chunked = pa.concat_tables([table.slice(0, 3), table.slice(3)])
    expected = rows + [rows[index] for index in wanted]
    for back in (both, Tokens.from_arrow(table), Tokens.from_arrow(table.slice(0)), Tokens.from_arrow(chunked)):
        assert [back.row(index).tolist() for index in range(len(back))] == expected
        assert back.first_lengths.tolist() == [len(row) // 2 for row in expected]


def test_arrow_shares_the_memory_of_the_ids() -> None:
    tokens = Tokens.from_rows([[1, 2], [3]])
    back = Tokens.from_arrow(tokens.to_arrow())
    assert np.shares_memory(back.values, tokens.values)


def test_tokens_that_are_kept_are_those_of_tokenising_again(tokenizer: PreTrainedTokenizerBase) -> None:
    texts = ["bank market", None, "bank market", "", "cup \ud800", "wins new music in the park"]
    seconds = ["loses", "law", "loses", None, None, "law"]
    for keeps in (1, 100):
        keeping, plain = (TextTokenizer(tokenizer, 12, keeps=most) for most in (keeps, 0))
        for rows in ([0, 1, 2], [5, 4, 3, 2], [2, 2, 0], []):
            for words in (False, True):
                chosen = [texts[row] for row in rows], [seconds[row] for row in rows]
                found, expected = (each.encode(*chosen, words=words) for each in (keeping, plain))
                assert found.to_arrow().to_pylist() == expected.to_arrow().to_pylist()


def test_a_text_of_many_tasks_is_tokenised_once(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeping = TextTokenizer(tokenizer, 12, keeps=100)
    keeping.encode(["bank market", "music"])
    encode, asked = keeping.encode_and_count, []

    def noted(texts: Any, *others: Any, **options: Any) -> Any:
        asked.append(texts)
        return encode(texts, *others, **options)

    monkeypatch.setattr(keeping, "encode_and_count", noted)
    keeping.encode(["music", "film", "bank market", "film"])
    assert asked == [["film"]]
