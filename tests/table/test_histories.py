"""Whatever happens to a label table: readers see each article once, and a quiet run sets it right."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.table.histories import StoreKind, run_history


@pytest.mark.parametrize("kind", ["s3", "disk"])
@pytest.mark.parametrize("first", range(0, 50, 10))
def test_readers_see_each_article_once_whatever_happens(kind: StoreKind, first: int) -> None:
    for seed in range(first, first + 10):
        run_history(kind, random.Random(seed))


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.randoms(use_true_random=False))
def test_a_history_that_fails_is_made_shorter(rng: random.Random) -> None:
    """The same; here hypothesis draws, so that of a history that fails it shows a short one."""
    run_history("s3", rng)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("first", range(100, 2100, 100))
def test_readers_see_each_article_once_in_two_thousand_histories_on_s3(first: int) -> None:
    for seed in range(first, first + 100):
        run_history("s3", random.Random(seed))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("first", range(100, 600, 100))
def test_readers_see_each_article_once_in_five_hundred_histories_on_a_disk(first: int) -> None:
    for seed in range(first, first + 100):
        run_history("disk", random.Random(seed))
