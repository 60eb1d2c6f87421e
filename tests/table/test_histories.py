"""Whatever happens to a label table: readers see each article once, and a quiet run sets it right."""

from __future__ import annotations

import pytest

from tests.table.histories import run_history


@pytest.mark.parametrize("first", range(0, 100, 10))
def test_readers_see_each_article_once_whatever_happens(first: int) -> None:
    for seed in range(first, first + 10):
        run_history(seed)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("first", range(100, 2100, 100))
def test_readers_see_each_article_once_in_two_thousand_histories(first: int) -> None:
    for seed in range(first, first + 100):
        run_history(seed)
