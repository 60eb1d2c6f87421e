"""Which texts count as the same: those that differ in case, punctuation and spaces only."""

from __future__ import annotations

import re
import unicodedata
from functools import cache

Pair = tuple[str, str | None]
"""A text, and the second one of a pair."""

_MARKS = range(0x300, 0x20000)
_VARIATION_SELECTORS = range(0xFE00, 0xFE10)


def same_text_key(pair: Pair) -> Pair:
    """What two pairs of texts have in common that count as the same.

    >>> same_text_key(("It's  HERE!", None)), same_text_key((":-)", None))
    (('it s here', None), (':-)', None))
    """
    text, second = pair
    return _key(text), None if second is None else _key(second)


def _key(text: str) -> str:
    """Words alone; the signs of a text that has no words."""
    folded = unicodedata.normalize("NFC", text).casefold()
    return _no_word().sub(" ", folded).strip() or " ".join(folded.split())


@cache
def _no_word() -> re.Pattern[str]:
    """All but letters, digits and the marks on them, which are vowels in Hindi and tones in Thai."""
    marks = "".join(
        chr(code)
        for code in _MARKS
        if unicodedata.category(chr(code)).startswith("M") and code not in _VARIATION_SELECTORS
    )
    return re.compile(rf"(?:[^\w{marks}]|_)+")
