"""Texts to token ids: ragged, never padded, and tokenised from their beginning only.

A long text is cut to `max_tokens` tokens anyway, and tokenising is what a labelling job spends its CPU on, so
`TextTokenizer` cuts the *characters* first (how: `mtop_batch.data.encoders`; where that is safe:
`mtop_batch.data.char_cuts`). The ids are always those of tokenising the whole text and truncating it, or dividing it
into windows (`mtop_batch.data.windows`).

Shapes: R rows, T tokens in all rows together, W windows of all rows together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import chain, islice
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mtop_batch.data.encoders import make_encoder
from mtop_batch.data.text_rows import MAX_CHARS, TEXT_SAYS_NOTHING
from mtop_batch.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase  # slow to import, for those who tokenise nothing

KEPT_TEXTS = 200_000
"""Whose tokens are kept where many tasks may have the same texts: 100 MB where they are long."""
_ROWS_AT_ONCE = 1024
_MAX_ARROW_TOKENS = 2**31 - 1


@dataclass(frozen=True)
class Tokens:
    """Token ids of R texts (or pairs) of any length, one after the other.

    Args:
        values: (T,) int32, the ids of all rows, special tokens included.
        offsets: (R + 1,) int64, starting with 0; row i is `values[offsets[i]:offsets[i + 1]]`. A row may have no
            tokens: nothing can be said about it.
        first_lengths: (R,) int32, how many leading tokens of a row, or of each window of one, have token type 0; all
            for a single text.
        words: (T, 3) int32, the word that each token begins, where token tasks need it (`data.entities.words`).
    """

    values: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    first_lengths: npt.NDArray[np.int32]
    words: npt.NDArray[np.int32] | None = None

    @classmethod
    def from_rows(cls, rows: Sequence[Sequence[int]], first_lengths: Sequence[int] | None = None) -> Tokens:
        """Tokens of the given rows of ids; without `first_lengths` every row is a single text.

        >>> Tokens.from_rows([[5, 6], [], [7]]).lengths.tolist()
        [2, 0, 1]
        """
        lengths = np.fromiter((len(row) for row in rows), dtype=np.int64, count=len(rows))
        values = np.fromiter(chain.from_iterable(rows), dtype=np.int32, count=int(lengths.sum()))
        firsts = lengths if first_lengths is None else np.asarray(first_lengths)
        return cls(values, _offsets(lengths), firsts.astype(np.int32))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """(R,) tokens of each row."""
        return np.diff(self.offsets)

    def row(self, index: int) -> npt.NDArray[np.int32]:
        """The ids of one row, as a view."""
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    def one(self, row: int) -> Tokens:
        """A row by itself; nothing is copied."""
        own = slice(self.offsets[row], self.offsets[row + 1])
        words = None if self.words is None else self.words[own]
        offsets = np.array([0, own.stop - own.start])
        return Tokens(self.values[own], offsets, self.first_lengths[row : row + 1], words)

    def take(self, rows: npt.NDArray[np.integer]) -> Tokens:
        """The rows with these indices, in this order."""
        positions = self.positions(rows)
        words = None if self.words is None else self.words[positions]
        return Tokens(self.values[positions], _offsets(self.lengths[rows]), self.first_lengths[rows], words)

    def positions(self, rows: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
        """Where in `values` the tokens of these rows lie, row after row: (tokens of the rows,)."""
        lengths = self.lengths[rows]
        starts = _offsets(lengths)
        return np.repeat(self.offsets[:-1][rows] - starts[:-1], lengths) + np.arange(starts[-1])

    def words_of(self, rows: npt.NDArray[np.integer]) -> WordsOfRows:
        """The words that begin in these rows, row after row; there are none where they were not wanted."""
        lengths = self.lengths[rows]
        place = np.arange(lengths.sum()) - np.repeat(_offsets(lengths)[:-1], lengths)
        row = np.repeat(np.arange(len(rows)), lengths)
        words = np.full((len(row), 3), -1, np.int32) if self.words is None else self.words[self.positions(rows)]
        begins = words[:, 0] >= 0
        to_edge = np.minimum(place, np.repeat(lengths, lengths) - 1 - place)
        return WordsOfRows(words[begins], row[begins], place[begins], to_edge[begins])

    def num_windows(self, max_tokens: int) -> npt.NDArray[np.int64]:
        """(R,) How many windows each row holds, one behind the other; a row without tokens counts as one.

        Args:
            max_tokens: Of a window; those of a row with several are all so long.
        """
        return np.maximum(1, -(-self.lengths // max_tokens))

    def windows(self, max_tokens: int) -> Tokens:
        """The W windows of all rows as rows, row after row; the ids are not copied.

        >>> tokens = Tokens.from_rows([[1, 2, 3, 4, 5, 6], [], [7, 8]], first_lengths=[3, 0, 2])
        >>> windows = tokens.windows(3)
        >>> [windows.row(row).tolist() for row in range(4)], windows.first_lengths.tolist()
        ([[1, 2, 3], [4, 5, 6], [], [7, 8]], [3, 3, 0, 2])
        """
        counts = self.num_windows(max_tokens)
        firsts = np.cumsum(counts) - counts
        within = np.arange(counts.sum()) - np.repeat(firsts, counts)
        starts = np.repeat(self.offsets[:-1], counts) + max_tokens * within
        offsets = np.append(starts, self.offsets[-1])
        return Tokens(self.values, offsets, np.repeat(self.first_lengths, counts), self.words)

    @classmethod
    def concat(cls, parts: Iterable[Tokens]) -> Tokens:
        """All rows of all parts, in order."""
        parts = list(parts)
        if len(parts) == 1:
            return parts[0]
        if not parts:
            return cls.from_rows([])
        return cls(
            np.concatenate([part.values for part in parts]),
            _offsets(np.concatenate([part.lengths for part in parts])),
            np.concatenate([part.first_lengths for part in parts]),
            _joined_words([part for part in parts if len(part.values)]),
        )

    def to_arrow(self) -> pa.Table:
        """The columns `input_ids` (list of int32) and `first_length` (int32), and `words` if there are words (lists of
        three int32 each); the token ids are not copied.

        Raises:
            DataError: There are more tokens than one Arrow list column holds (2^31 - 1).
        """
        if self.offsets[-1] > _MAX_ARROW_TOKENS:
            raise DataError(
                f"{self.offsets[-1]} tokens do not fit one Arrow list column (at most {_MAX_ARROW_TOKENS}); "
                "convert fewer rows at a time"
            )
        input_ids = pa.ListArray.from_arrays(pa.array(self.offsets.astype(np.int32)), pa.array(self.values))
        columns = {"input_ids": input_ids, "first_length": pa.array(self.first_lengths)}
        if self.words is not None:
            words = pa.FixedSizeListArray.from_arrays(pa.array(self.words.reshape(-1)), 3)
            columns["words"] = pa.ListArray.from_arrays(input_ids.offsets, words)
        return pa.table(columns)

    @classmethod
    def from_arrow(cls, table: pa.Table) -> Tokens:
        """The tokens that `to_arrow` wrote; not copied where the table is in one chunk."""
        words = None
        if "words" in table.column_names:
            lists = table.column("words").combine_chunks()
            words = pc.list_flatten(pc.list_flatten(lists)).to_numpy(zero_copy_only=False).reshape(-1, 3)
        chunks = table.column("input_ids").chunks
        firsts = table.column("first_length").combine_chunks().to_numpy(zero_copy_only=False)
        firsts = firsts.astype(np.int32, copy=False)
        if len(chunks) != 1:
            rows = cls.concat(cls._from_list_array(chunk) for chunk in chunks)
            return cls(rows.values, rows.offsets, firsts, words)
        rows = cls._from_list_array(chunks[0])
        return cls(rows.values, rows.offsets, firsts, words)

    @classmethod
    def _from_list_array(cls, array: pa.ListArray) -> Tokens:
        offsets = array.offsets.to_numpy().astype(np.int64)
        values = array.values.slice(offsets[0], offsets[-1] - offsets[0]).to_numpy(zero_copy_only=False)
        offsets -= offsets[0]
        return cls(values.astype(np.int32, copy=False), offsets, np.diff(offsets).astype(np.int32))


@dataclass(frozen=True)
class WordsOfRows:
    """The N words of some rows.

    Args:
        words: (N, 3) As in `Tokens`.
        rows: (N,) Which of the rows each is in, counted from 0.
        places: (N,) Which token of it begins it.
        to_edge: (N,) How many tokens of the row there are at least before and behind that one.
    """

    words: npt.NDArray[np.int32]
    rows: npt.NDArray[np.int64]
    places: npt.NDArray[np.int64]
    to_edge: npt.NDArray[np.int64]

    def of_texts(self, counts: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Each word of texts once, where these rows are their windows: read in the window that has most around it.

        Args:
            counts: (R,) How many of the rows are windows of each text.

        Returns:
            Which words these are, text after text and by place, and the text of each.
        """
        texts = np.repeat(np.arange(len(counts)), counts)[self.rows]
        if (counts == 1).all():
            return np.arange(len(texts)), texts
        order = np.lexsort((self.rows, -self.to_edge, self.words[:, 1], self.words[:, 0], texts))
        keys = np.column_stack([texts, self.words[:, :2]])[order]
        is_first = np.ones(len(keys), bool)
        is_first[1:] = (keys[1:] != keys[:-1]).any(axis=1)
        chosen = order[is_first]
        return chosen, texts[chosen]


class TextTokenizer:
    """Texts to `Tokens` of at most `max_tokens` tokens, special tokens included, or to windows of so many.

    Ids are the same as `tokenizer(text, second, truncation=True, max_length=max_tokens)`; of a pair, tokens are taken
    from the longer text first ("longest_first"). With windows a longer text, or the longer text of a longer pair, is
    divided, so that a row holds several windows (`Tokens.windows`). A text that says nothing (`data.silence`) is no
    text: it is left out of its pair, and alone has no tokens. The tokenizer is copied, so its truncation and padding
    stay as they are.
    Threads are those of the `tokenizers` library: set `TOKENIZERS_PARALLELISM=false` or `RAYON_NUM_THREADS` where other
    processes share the cores.

    Args:
        tokenizer: Any Hugging Face tokenizer. One without a Rust backend, or whose pieces may reach over white space,
            tokenises whole texts: correct, but slow on long ones.
        max_tokens: Tokens of a window, at least one more than the special tokens of a pair.
        max_windows: Of a text; with 1 texts are cut.
        window_overlap: Tokens that a window shares with the one before, less than half of those of a pair.
        keeps: `encode` keeps the tokens of so many texts, for when they come again: many tasks have examples of the
            same texts.

    Raises:
        ConfigError: `max_tokens` or `window_overlap` leaves no room for text, the tokenizer's token types are not 0
            then 1, or it has no Rust backend and there are windows.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_tokens: int,
        max_windows: int = 1,
        window_overlap: int = 0,
        *,
        keeps: int = 0,
    ) -> None:
        num_special = tokenizer.num_special_tokens_to_add(pair=True)
        if max_tokens <= num_special:
            raise ConfigError(
                f"max_tokens = {max_tokens} leaves no room for text; this tokenizer adds {num_special} special tokens "
                f"to a pair: allowed is {num_special + 1} or more"
            )
        budget = max_tokens - num_special
        room = budget - budget // 2  # of a window, for the longer text of a pair
        if window_overlap >= room:
            raise ConfigError(
                f"window_overlap = {window_overlap} leaves no room for new text in windows of max_tokens = "
                f"{max_tokens}, where the longer text of a pair has {room} tokens; allowed is 0 to {room - 1}"
            )
        self.max_tokens = max_tokens
        self.max_windows = max_windows
        self._encoder = make_encoder(tokenizer, max_tokens, max_windows, window_overlap)
        self._keeps = keeps
        self._kept: dict[tuple[bytes | None, bytes | None, bool], Tokens] = {}

    @property
    def cuts_early(self) -> bool:
        """Whether long texts are cut before they are tokenised."""
        return self._encoder.cuts_early

    @property
    def max_chars(self) -> int:
        """Characters of a text that can count: its words would need 100 letters on average for more to do so."""
        return max(MAX_CHARS, 100 * self.max_tokens * self.max_windows)

    def encode(
        self, texts: Sequence[str | None], seconds: Sequence[str | None] | None = None, *, words: bool = False
    ) -> Tokens:
        """Tokens of each text, or of each pair where `seconds` has a text; `reasons_without` says why a row has none.

        Args:
            texts: One per row; None gives a row without tokens, and so does a text that says nothing.
            seconds: The second text of each row; None, for a row or for all, means that there is none.
            words: Say which word each token begins, in which text: then a row that has a second text alone is given
                "" as its first one.

        Raises:
            ConfigError: Words are wanted, and the tokenizer does not tell where tokens lie.
        """
        if not self._keeps:
            return self.encode_and_count(texts, seconds, words=words)[0]
        seconds = [None] * len(texts) if seconds is None else seconds
        keys = [(_digest(text), _digest(second), words) for text, second in zip(texts, seconds, strict=True)]
        places = {key: place for place, key in enumerate(keys) if key not in self._kept}
        rows = list(places.values())
        tokens = self.encode_and_count([texts[row] for row in rows], [seconds[row] for row in rows], words=words)[0]
        new = dict(zip(places, map(tokens.one, range(len(tokens))), strict=True))
        found = [new.get(key) or self._kept[key] for key in keys]
        self._kept |= dict(islice(new.items(), max(0, self._keeps - len(self._kept))))
        return Tokens.concat(found)

    def encode_and_count(
        self, texts: Sequence[str | None], seconds: Sequence[str | None] | None = None, *, words: bool = False
    ) -> tuple[Tokens, int]:
        """What `encode` returns, and how many of the rows have more text than that."""
        if seconds is None:
            seconds = [None] * len(texts)
        slices = [slice(start, start + _ROWS_AT_ONCE) for start in range(0, len(texts), _ROWS_AT_ONCE)]
        encoded = [self._encoder.encode(texts[rows], seconds[rows], words=words) for rows in slices]
        tokens = Tokens.concat(Tokens.from_rows(part.rows, part.first_lengths) for part in encoded)
        if words:
            begun = (word for part in encoded for row in part.words for word in row)
            found = np.fromiter(chain.from_iterable(begun), np.int32, 3 * len(tokens.values))
            tokens = replace(tokens, words=found.reshape(-1, 3))
        return tokens, sum(part.num_cut for part in encoded)


def reasons_without(tokens: Tokens, errors: Iterable[str | None]) -> list[str | None]:
    """Why each row has no tokens; None where it has.

    Args:
        tokens: Of R rows.
        errors: Why a row has no text; None where it has (`data.text_rows`).
    """
    lengths = tokens.lengths.tolist()
    return [None if length else error or TEXT_SAYS_NOTHING for length, error in zip(lengths, errors, strict=True)]


def _digest(text: str | None) -> bytes | None:
    return None if text is None else blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()


def _joined_words(parts: Sequence[Tokens]) -> npt.NDArray[np.int32] | None:
    """The words of all tokens; None where those of some are not known."""
    words = [part.words for part in parts if part.words is not None]
    return np.concatenate(words) if words and len(words) == len(parts) else None


def _offsets(lengths: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """(R + 1,) where each row starts, and the end of the last."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets
