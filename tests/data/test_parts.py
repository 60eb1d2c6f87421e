"""Which part of a data set a text belongs to."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtop_batch.data.sets.parts import PARTS, Shares, joined, words


def test_parts_have_their_shares() -> None:
    parts = Shares(eval=0.1, test=0.2).parts(f"headline {number}" for number in range(20_000))
    assert [np.mean(parts == part) for part in PARTS] == pytest.approx([0.7, 0.1, 0.2], abs=0.01)
    assert "test" not in Shares(eval=0.1, test=0.0).parts(f"headline {number}" for number in range(1_000))


@given(st.lists(st.text(), unique=True, min_size=2))
def test_the_part_of_a_text_depends_on_no_other_text(texts: list[str]) -> None:
    shares = Shares(eval=0.3, test=0.3)
    assert shares.parts(texts).tolist() == [shares.parts([text])[0] for text in texts]
    assert shares.parts(reversed(texts)).tolist() == shares.parts(texts).tolist()[::-1]


@given(st.text())
def test_another_spelling_is_in_the_same_part(text: str) -> None:
    assert words(f"  {text}?! ") == words(text)
    assert words(words(text)) == words(text)


def test_another_seed_gives_other_parts() -> None:
    texts = [f"headline {number}" for number in range(100)]
    first, second = (Shares(eval=0.3, test=0.3, seed=seed).parts(texts).tolist() for seed in (0, 1))
    assert first != second


def test_a_pair_is_not_the_same_as_its_texts_alone() -> None:
    assert joined(["a", "b"]) != joined(["b", "a"])
    assert joined(["a", None]) == "a"
