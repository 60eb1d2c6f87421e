"""Words of a text: what an entity begins and ends with, and which token decides for each of them.

A word is a run of letters and digits, with the marks on them, or any other visible character by itself. In scripts that
put no spaces between words each token begins one. So words follow from the text alone, as far as no token lies across
them, and a model that learned from divided texts finds the same words in running ones, whatever its tokenizer is.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

Word = tuple[int, int, int]
"""The text it is in (0 or 1), where it begins in it, and the character after it."""
NO_WORD: Word = (-1, 0, 0)

# Thai, Lao, Myanmar, Khmer, and the scripts of China and Japan.
_WITHOUT_SPACES = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\ua4cf\uf900-\ufaff\U00020000-\U0003ffff]")


def words_of_tokens(text: str, spans: Sequence[tuple[int, int]], side: int = 0) -> list[Word]:
    """For each token the word that it is the first one of; `NO_WORD` for other tokens.

    Args:
        text: A text.
        spans: The characters of each of its tokens, in order.
        side: Which text of its row it is.

    >>> words_of_tokens("U.S. shares", [(0, 1), (1, 2), (2, 3), (3, 4), (4, 8), (8, 11)])
    [(0, 0, 1), (0, 1, 2), (0, 2, 3), (0, 3, 4), (0, 5, 11), (-1, 0, 0)]
    """
    words: list[Word] = []
    last, read = -1, 0
    for start, end in spans:
        start, end = _without_spaces(text, start, end)
        if start >= end:
            words.append(NO_WORD)
        elif last < 0 or (start >= read and _begins_word(text, start)):
            last = len(words)
            words.append((side, start, _with_marks(text, end)))
        else:
            words.append(NO_WORD)
            words[last] = (side, words[last][1], max(words[last][2], _with_marks(text, end)))
        read = max(read, end)
    return words


def _without_spaces(text: str, start: int, end: int) -> tuple[int, int]:
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return start, end


def _begins_word(text: str, at: int) -> bool:
    before, after = text[at - 1], text[at]
    if _is_mark(after):
        return before.isspace()
    joined = (before.isalnum() or _is_mark(before)) and after.isalnum()
    return not joined or bool(_WITHOUT_SPACES.match(before) or _WITHOUT_SPACES.match(after))


def _with_marks(text: str, end: int) -> int:
    """Where a word that ends here ends with the marks that follow, which normalisation may have removed."""
    while end < len(text) and _is_mark(text[end]):
        end += 1
    return end


def _is_mark(character: str) -> bool:
    return character > "\u02ff" and unicodedata.category(character)[0] == "M"
