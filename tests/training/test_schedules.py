from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from mtop_batch.config.train import AlphaDecay, RateKind
from mtop_batch.training.schedules import RateSchedule, alphas, linear_warmup_decay, rate_factors


def test_the_rate_rises_over_the_warm_up_and_falls_to_the_end() -> None:
    factors = [linear_warmup_decay(step, num_steps=10, warmup_fraction=0.2) for step in range(10)]
    assert factors == pytest.approx([0.5, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])


def test_without_warm_up_the_first_step_has_the_full_rate() -> None:
    assert [linear_warmup_decay(step, 4, 0.0) for step in range(4)] == [1, 0.75, 0.5, 0.25]


def test_with_nothing_but_warm_up_the_last_step_has_the_full_rate() -> None:
    assert [linear_warmup_decay(step, 4, 1.0) for step in range(4)] == [0.25, 0.5, 0.75, 1]


def test_a_single_step_has_the_full_rate() -> None:
    assert linear_warmup_decay(0, 1, 0.1) == 1


@pytest.mark.parametrize(
    ("decay", "expected"),
    [
        ("linear", [1.0, 0.775, 0.55, 0.325, 0.1]),
        ("exponential", [1.0, 10**-0.25, 10**-0.5, 10**-0.75, 0.1]),
        ("cosine", [1.0, 0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2, 0.55, 0.1 + 0.9 * (1 - math.sqrt(0.5)) / 2, 0.1]),
        ("demon", [1.0, 0.1 + 0.9 * 0.75 / 0.775, 0.1 + 0.9 * 0.5 / 0.55, 0.1 + 0.9 * 0.25 / 0.325, 0.1]),
    ],
)
def test_alpha_by_hand(decay: AlphaDecay, expected: list[float]) -> None:
    np.testing.assert_allclose(alphas(1.0, 0.1, decay, 5), expected)


@pytest.mark.parametrize("decay", ["linear", "exponential", "cosine", "demon"])
@pytest.mark.parametrize(("start", "end"), [(1.0, 0.0), (0.0, 1.0), (0.5, 0.5), (0.0, 0.0), (0.2, 0.9)])
def test_alpha_goes_from_start_to_end_and_never_back(decay: AlphaDecay, start: float, end: float) -> None:
    found = alphas(start, end, decay, 101)
    np.testing.assert_allclose(found[[0, -1]], [start, end], atol=1e-12)
    assert (np.diff(found) * np.sign(end - start) >= -1e-12).all()
    assert len(alphas(start, end, decay, 1)) == 1


def test_the_published_steps_by_hand() -> None:
    """15 epochs of one step: up to the peak in four, a tenth from the ninth and a hundredth from the thirteenth."""
    schedule = RateSchedule("steps", drops=(8 / 15, 12 / 15))
    factors = [rate_factors(schedule, step, 15, 4 / 15) for step in range(15)]
    assert all(one.backbone == one.heads for one in factors)
    expected = [0.325, 0.55, 0.775, 1.0, 1, 1, 1, 1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01]
    np.testing.assert_allclose([one.heads for one in factors], expected)


def test_the_published_freezing_by_hand() -> None:
    """Four of 15 epochs train the heads alone; then all trains ten times slower."""
    factors = [rate_factors(RateSchedule("frozen", frozen_fraction=4 / 15), step, 15, 0.0) for step in range(15)]
    np.testing.assert_allclose([one.backbone for one in factors], [0.0] * 4 + [0.1] * 11)
    np.testing.assert_allclose([one.heads for one in factors], [1.0] * 4 + [0.1] * 11)


def test_a_constant_rate_has_a_warm_up_too() -> None:
    factors = [rate_factors(RateSchedule("constant"), step, 5, 0.4).heads for step in range(5)]
    assert factors == [0.5, 1, 1, 1, 1]


@pytest.mark.parametrize("kind", ["constant", "steps", "frozen"])
def test_no_schedule_exceeds_the_peak(kind: RateKind) -> None:
    for schedule in (RateSchedule(kind), replace(RateSchedule(kind), factor=1.0)):
        found = [rate_factors(schedule, step, 40, 0.1) for step in range(40)]
        assert all(0 <= one.backbone <= one.heads <= 1 and one.heads > 0 for one in found)
