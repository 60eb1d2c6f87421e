from __future__ import annotations

import pytest

from mtop_batch.training.schedules import linear_warmup_decay


def test_the_rate_rises_over_the_warm_up_and_falls_to_the_end() -> None:
    factors = [linear_warmup_decay(step, num_steps=10, warmup_fraction=0.2) for step in range(10)]
    assert factors == pytest.approx([0.5, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])


def test_without_warm_up_the_first_step_has_the_full_rate() -> None:
    assert [linear_warmup_decay(step, 4, 0.0) for step in range(4)] == [1, 0.75, 0.5, 0.25]


def test_with_nothing_but_warm_up_the_last_step_has_the_full_rate() -> None:
    assert [linear_warmup_decay(step, 4, 1.0) for step in range(4)] == [0.25, 0.5, 0.75, 1]


def test_a_single_step_has_the_full_rate() -> None:
    assert linear_warmup_decay(0, 1, 0.1) == 1
