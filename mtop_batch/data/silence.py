"""Whether a text says anything, decided by its tokens: a model labels a text of nothing as surely as any other.

A token says something if it stands for a character that people see. Special tokens do not, nor do those of white space,
of zero-width, combining, private-use and control characters. What an unknown token or part of a character stands for
shows in the text.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase  # slow to import, for those who tokenise nothing

# Letters, numbers, punctuation and symbols are seen, but for: the blank of Braille, the fillers of Hangul, what stands
# for bytes that are no character, and the mark of a space in the pieces of SentencePiece.
_SEEN = frozenset("LNPS")
_UNSEEN = frozenset("\u2800\u3164\u115f\u1160\uffa0\ufffd\u2581")
_NO_CHARACTER = "\ufffd"


class SilenceDetector:
    """Tells texts that say nothing; what it has found of a token it keeps.

    Args:
        tokenizer: Whose tokens they are.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._special = frozenset(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
        model: Any = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
        self._prefix: str = getattr(model, "continuing_subword_prefix", None) or ""
        self._says: dict[int, bool | None] = {}

    def is_silent(self, ids: Iterable[int], text: str) -> bool:
        """Whether a text says nothing.

        Args:
            ids: Its tokens, without those that the tokenizer adds.
            text: The text.
        """
        unclear = False
        for token in ids:
            says = self._says[token] if token in self._says else self._look_at(token)
            if says:
                return False
            unclear = unclear or says is None
        return not (unclear and is_seen(text))

    def _look_at(self, token: int) -> bool | None:
        """Whether a token says something; None if it does not tell what it stands for."""
        says: bool | None
        if token in self._special:
            says = False
        elif token == self._tokenizer.unk_token_id:
            says = None
        else:
            text = str(self._tokenizer.decode([token])).removeprefix(self._prefix)
            says = True if is_seen(text) else None if _NO_CHARACTER in text else False
        self._says[token] = says
        return says


def is_seen(text: str) -> bool:
    """Whether a text has a character that people see.

    >>> [is_seen(text) for text in ("\\u200b\\u00ad\\u0301", "\\ue000\\x00", "\\u3164", "?", "😀", " a")]
    [False, False, False, True, True, True]
    """
    return any(char not in _UNSEEN and unicodedata.category(char)[0] in _SEEN for char in text)
