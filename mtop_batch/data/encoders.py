"""How `TextTokenizer` tokenises only the beginning of a text and yet gets the ids of the whole one, cut or divided.

Each text is cut at the last safe place within a limit of characters (`mtop_batch.data.char_cuts`) and tokenised. If the
tokens are enough, no more text can change them; otherwise the row goes round again with a higher limit. Special tokens
are added here, from a template read off the tokenizer once, because dividing a pair needs both texts' lengths first.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import compress
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from mtop_batch.data.char_cuts import find_cut, safe_cuts
from mtop_batch.data.entities.words import NO_WORD, Word, words_of_tokens
from mtop_batch.data.silence import SilenceDetector
from mtop_batch.data.windows import Part, Windows
from mtop_batch.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase  # slow to import, for those who tokenise nothing

# Characters per token to try first; English news has about 4.6, so nearly every article is done in one go.
_CHARS_PER_TOKEN = 6
_GROWTH = 2

TokenIds = list[int]


class Encoded(NamedTuple):
    """Rows of one or two texts as token ids.

    Args:
        rows: The ids of each row, window after window.
        first_lengths: Of each row how many leading ids of a window have token type 0.
        num_cut: Rows of which not everything is read.
        words: Of each row the word that each of its tokens begins (`data.entities.words`); none where not wanted.
    """

    rows: list[TokenIds]
    first_lengths: list[int]
    num_cut: int
    words: list[list[Word]]


class Encoder(Protocol):
    """Tokenises rows of one or two texts to windows of at most a fixed number of tokens."""

    @property
    def cuts_early(self) -> bool:
        """Whether long texts are cut before they are tokenised."""

    def encode(self, texts: Sequence[str | None], seconds: Sequence[str | None], *, words: bool = False) -> Encoded:
        """The ids of each row, and its words if they are wanted.

        A row whose text is None has none, and so has one of which no text says anything (`data.silence`). One text of
        two that says nothing is left out of its pair.

        Raises:
            ConfigError: Words are wanted of a tokenizer that does not tell where tokens lie.
        """


def make_encoder(tokenizer: PreTrainedTokenizerBase, max_tokens: int, max_windows: int, overlap: int) -> Encoder:
    """The fastest exact way to tokenise with this tokenizer.

    Raises:
        ConfigError: The tokenizer's token types are not 0 then 1, or windows are wanted of one without a Rust backend.
    """
    if getattr(tokenizer, "backend_tokenizer", None) is not None:
        windows = Windows(max_windows, overlap, keeps_end=tokenizer.truncation_side == "left")
        return RustEncoder(tokenizer, max_tokens, windows)
    if max_windows > 1:
        raise ConfigError(
            f"{type(tokenizer).__name__} has no Rust backend, which windows need; use a fast tokenizer, or "
            'long_texts = "cut"'
        )
    return PythonEncoder(tokenizer, max_tokens)


class RustEncoder:
    """Tokenises the beginnings of texts with a private copy of the tokenizer's Rust backend."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_tokens: int, windows: Windows) -> None:
        self._backend = copy.deepcopy(tokenizer.backend_tokenizer)
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = getattr(tokenizer, "split_special_tokens", False)
        self._max_tokens = max_tokens
        self._windows = windows
        self._cuts = None if windows.keeps_end else safe_cuts(self._backend)
        self._silence = SilenceDetector(tokenizer)
        self._single = Template.probe(self._backend, pair=False)
        self._pair = Template.probe(self._backend, pair=True)
        # Tokens of a text that can count.
        self._most = max(max_tokens, windows.reach(max_tokens - self._single.num_special))

    @property
    def cuts_early(self) -> bool:
        """Whether places are known where text may be cut before it is tokenised."""
        return self._cuts is not None

    def encode(self, texts: Sequence[str | None], seconds: Sequence[str | None], *, words: bool = False) -> Encoded:
        """See `Encoder.encode`."""
        rows: list[TokenIds] = [[] for _ in texts]
        words_of: list[list[Word]] = [[] for _ in texts if words]
        first_lengths = [0] * len(texts)
        num_cut = 0
        pending = [row for row, text in enumerate(texts) if text is not None]
        limit = self._most * _CHARS_PER_TOKEN
        while pending:
            beginnings = self._read([text for row in pending for text in (texts[row], seconds[row])], limit, words)
            unsettled = []
            for row, *pair in zip(pending, beginnings[::2], beginnings[1::2], strict=True):
                said = [self._said(*each) for each in zip(pair, (texts[row], seconds[row]), strict=True)]
                if None in said:
                    unsettled.append(row)
                    continue
                if not any(said):
                    continue
                template = self._pair if all(said) else self._single
                first, second = [*compress(pair, said), _NOTHING][:2]
                budget = self._max_tokens - template.num_special
                if not is_settled(first, second, budget, self._windows):
                    unsettled.append(row)
                    continue
                parts = self._windows.divide(len(first.ids), len(second.ids), budget)
                num_cut += is_cut(first, second, parts)
                filled = [template.fill(first.ids[part[0]], second.ids[part[1]]) for part in parts]
                rows[row], first_lengths[row] = [token for ids, _ in filled for token in ids], filled[0][1]
                if words:
                    begun = [template.fill_words(first.words[part[0]], second.words[part[1]]) for part in parts]
                    words_of[row] = [word for of_window in begun for word in of_window]
            pending = unsettled
            limit *= _GROWTH
        return Encoded(rows, first_lengths, num_cut, words_of)

    def _read(self, texts: Sequence[str | None], limit: int, words: bool) -> list[Beginning]:
        """Tokenise each text up to the last safe cut within `limit` characters; None is a whole text of no tokens.

        Texts are the first and the second one of each row in turn.
        """
        ends = [0 if text is None else self._end(text, limit) for text in texts]
        encodings = self._encode_batch([(text or "")[:end] for text, end in zip(texts, ends, strict=True)], words)
        return [
            _NOTHING
            if text is None
            else Beginning(
                encoding.ids,
                whole=end == len(text),
                words=words_of_tokens(text, encoding.offsets, place % 2) if words else [],
            )
            for place, (text, end, encoding) in enumerate(zip(texts, ends, encodings, strict=True))
        ]

    def _said(self, beginning: Beginning, text: str | None) -> bool | None:
        """Whether a text says anything in the tokens that can count; None if more of it has to be read."""
        ids, most = beginning.ids, self._most
        if not self._silence.is_silent(ids[-most:] if self._windows.keeps_end else ids[:most], text or ""):
            return True
        return False if beginning.whole or len(ids) >= most else None

    def _end(self, text: str, limit: int) -> int:
        return len(text) if self._cuts is None else find_cut(self._cuts, text, limit)

    def _encode_batch(self, texts: list[str], with_offsets: bool) -> list[Any]:
        encode = self._backend.encode_batch if with_offsets else self._backend.encode_batch_fast
        try:
            return encode(texts, add_special_tokens=False)
        except TypeError:
            # Python strings may hold half a surrogate pair, which no UTF-8 text can: read it as U+FFFD.
            texts = [text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for text in texts]
            return encode(texts, add_special_tokens=False)


class PythonEncoder:
    """Tokenises whole texts, one after the other, with a tokenizer written in Python."""

    cuts_early = False

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._silence = SilenceDetector(tokenizer)

    def encode(self, texts: Sequence[str | None], seconds: Sequence[str | None], *, words: bool = False) -> Encoded:
        """See `Encoder.encode`."""
        if words:
            raise ConfigError(
                f"{type(self._tokenizer).__name__} does not tell where in a text its tokens lie, for it has no Rust "
                "backend, and token tasks need to know; use a fast tokenizer"
            )
        rows: list[TokenIds] = []
        token_types: list[list[int]] = []
        num_cut = 0
        for pair in zip(texts, seconds, strict=True):
            said = [text for text in pair if text is not None and not self._is_silent(text)]
            if pair[0] is None or not said:
                rows.append([])
                token_types.append([])
                continue
            # As a batch of one: called with single texts, transformers takes an empty second text for none.
            encoded = self._tokenizer(
                said[:1],
                said[1:] or None,
                truncation=True,
                max_length=self._max_tokens,
                return_token_type_ids=True,
            )
            rows.append(encoded["input_ids"][0])
            token_types.append(encoded["token_type_ids"][0])
            num_cut += len(self._tokenizer(said[:1], said[1:] or None)["input_ids"][0]) > len(rows[-1])
        return Encoded(rows, [types.index(1) if 1 in types else len(types) for types in token_types], num_cut, [])

    def _is_silent(self, text: str) -> bool:
        return self._silence.is_silent(self._tokenizer(text, add_special_tokens=False)["input_ids"], text)


@dataclass(frozen=True)
class Beginning:
    """Token ids, without special ones, of the beginning of a text; `whole` if that is all of it; their words."""

    ids: TokenIds
    whole: bool
    words: list[Word] = field(default_factory=list)


@dataclass(frozen=True)
class Template:
    """Where a tokenizer puts its special tokens (before, between and after the texts), and their token types."""

    before: TokenIds
    between: TokenIds
    after: TokenIds
    between_zeros: int  # special tokens between the texts that have token type 0
    second_is_zero: bool  # the second text has token type 0 as well

    @property
    def num_special(self) -> int:
        """Special tokens of a row."""
        return len(self.before) + len(self.between) + len(self.after)

    @classmethod
    def probe(cls, backend: Any, pair: bool) -> Template:
        """Read the template off the encoding of a one-letter text, or of a pair of them.

        Raises:
            ConfigError: The token types are not 0 then 1, or the tokenizer knows no Latin letter.
        """
        encoding = backend.encode("a", "a" if pair else None)
        sides, types = encoding.sequence_ids, encoding.type_ids
        first = [index for index, side in enumerate(sides) if side == 0]
        second = [index for index, side in enumerate(sides) if side == 1] if pair else [len(sides)]
        if not first or not second:
            raise ConfigError("the tokenizer has no token for the letter 'a'; choose another backbone")
        if types != sorted(types) or set(types) - {0, 1}:
            raise ConfigError(
                f"the tokenizer gives a {'pair' if pair else 'text'} the token types {types}; allowed are 0, or 0 then "
                "1: choose another backbone"
            )
        between = slice(first[-1] + 1, second[0]) if pair else slice(0)
        return cls(
            before=encoding.ids[: first[0]],
            between=encoding.ids[between],
            after=encoding.ids[(second if pair else first)[-1] + 1 :],
            between_zeros=types[between].count(0),
            second_is_zero=types[-1] == 0,
        )

    def fill(self, first: TokenIds, second: TokenIds) -> tuple[TokenIds, int]:
        """The ids of a window, and how many leading ones have token type 0.

        Args:
            first: Ids of the first text.
            second: Ids of the second text, none for a single text.
        """
        row = [*self.before, *first, *self.between, *second, *self.after]
        return row, len(row) if self.second_is_zero else len(self.before) + len(first) + self.between_zeros

    def fill_words(self, first: list[Word], second: list[Word]) -> list[Word]:
        """The words that the tokens of such a window begin."""
        before, between, after = ([NO_WORD] * len(special) for special in (self.before, self.between, self.after))
        return [*before, *first, *between, *second, *after]


_NOTHING = Beginning([], whole=True)


def is_settled(first: Beginning, second: Beginning, budget: int, windows: Windows) -> bool:
    """Whether no more text can change which tokens remain of two texts, of which a window holds `budget`."""
    num_first, num_second = len(first.ids), len(second.ids)
    enough = windows.reach(budget)
    if not (first.whole or num_first >= enough) or not (second.whole or num_second >= enough):
        return False
    if windows.most > 1 or budget % 2 == 0 or min(num_first, num_second) <= budget // 2:
        return True
    # Both are cut and the odd token goes to the longer text: it has to be known which one that is.
    return second.whole if num_first > num_second else first.whole


def is_cut(first: Beginning, second: Beginning, parts: Sequence[Part]) -> bool:
    """Whether there is more of two texts than their windows hold."""
    if not (first.whole and second.whole):
        return True
    return any(
        bool(min(part[side].start for part in parts)) or max(part[side].stop for part in parts) < len(text.ids)
        for side, text in enumerate((first, second))
    )
