"""Which part of a data set a text belongs to: training, evaluation (development), or test.

The part of a text is a function of its words and a seed alone. So a text that several tasks have, or that is written
with other capitals and punctuation, is in the same part everywhere, and it stays there when the data set grows.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

Part = Literal["train", "eval", "test"]
PARTS: tuple[Part, ...] = get_args(Part)

_NO_WORDS = re.compile(r"[\W_]+")


@dataclass(frozen=True)
class Shares:
    """How much of a data set is for evaluation and for test; the rest is for training.

    Args:
        eval: In (0, 1).
        test: In [0, 1); together less than 1.
        seed: Another seed gives other parts.
    """

    eval: float
    test: float
    seed: int = 0

    def parts(self, texts: Iterable[str]) -> npt.NDArray[np.str_]:
        """The part of each text: (R,)."""
        places = np.array([_place(words(text), self.seed) for text in texts])
        return np.select([places < self.test, places < self.test + self.eval], ["test", "eval"], "train")

    def of(self, part: Part) -> float:
        """The share of a part."""
        return {"train": 1 - self.eval - self.test, "eval": self.eval, "test": self.test}[part]


def words(text: str) -> str:
    """A text without what tells two spellings of it apart: capitals, punctuation, spaces.

    >>> words("  Don’t Panic:   it's 5 pm ")
    'don t panic it s 5 pm'
    """
    return _NO_WORDS.sub(" ", text.casefold()).strip()


def joined(texts: Sequence[str | None]) -> str:
    """A pair of texts as one; a text alone is itself."""
    return "\n".join(text for text in texts if text)


def _place(text: str, seed: int) -> float:
    """A place in [0, 1) that looks random."""
    digest = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8, salt=seed.to_bytes(8, "big"))
    return int.from_bytes(digest.digest(), "big") / 2**64
