"""Which tasks use the same heads, and the three ways of GradTS to choose by that."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau

from mtop_batch.selection.correlation import (
    Correlations,
    example_correlations,
    kendall_tau,
    similar_first,
    similarity_groups,
    task_correlations,
)
from mtop_batch.selection.gradts import above_threshold, best, can_be_learned, similar_rows, trial_sets
from mtop_batch.selection.importance import normalised
from tests.selection.conftest import make_task_data


@given(st.integers(0, 99))
def test_tau_is_that_of_scipy(seed: int) -> None:
    first, second = np.random.default_rng(seed).integers(0, 9, (2, 4, 6)).astype(np.float32)
    assert kendall_tau(first, second) == pytest.approx(kendalltau(first.ravel(), second.ravel())[0])


def test_tau_by_hand() -> None:
    # Of the six pairs of heads five are in the same order: (5 - 1) / 6.
    assert kendall_tau(np.array([[1.0, 2], [3, 4]]), np.array([[1.0, 2], [4, 3]])) == pytest.approx(4 / 6)
    assert kendall_tau(np.ones((2, 2)), np.array([[1.0, 2], [4, 3]])) == 0


def test_examples_are_compared_by_their_own_matrices() -> None:
    gradients = np.random.default_rng(0).random((5, 2, 3)).astype(np.float32)
    primary = normalised(gradients[3])
    found = example_correlations(gradients, primary)
    assert found[3] == pytest.approx(1)
    assert found[0] == pytest.approx(kendall_tau(normalised(gradients[0]), primary))
    assert similar_rows(gradients, primary, 0.99).tolist() == [3]


def four_tasks() -> Correlations:
    """a and c use the same heads, and so do b and d."""
    rng = np.random.default_rng(0)
    one, two = rng.random((2, 4, 6))
    return task_correlations([(base + 0.01 * rng.random((4, 6))).astype(np.float32) for base in (one, two, one, two)])


def test_tasks_that_correlate_stand_together_and_make_groups() -> None:
    correlations = four_tasks()
    assert {frozenset(similar_first(correlations)[:2])} <= {frozenset({0, 2}), frozenset({1, 3})}
    names = ["a", "b", "c", "d"]
    assert similarity_groups(names, correlations, 2) == {"a": "c1", "b": "c2", "c": "c1", "d": "c2"}
    assert set(similarity_groups(names, correlations, 1).values()) == {"c1"}
    assert similarity_groups(names, correlations, 9) == {"a": "c1", "b": "c2", "c": "c3", "d": "c4"}
    assert similarity_groups(["a"], np.eye(1), 3) == {"a": "c1"}


def test_selections_by_hand() -> None:
    correlations = {"a": 0.1, "b": 0.7, "c": 0.5, "d": 0.47}
    assert above_threshold(correlations, 0.47) == ["b", "c"]
    assert trial_sets(correlations, most=2) == [(), ("b",), ("b", "c")]
    assert len(trial_sets(correlations)) == 5
    assert best([0.5, float("nan"), 0.7, 0.7]) == 2
    assert best([float("nan"), float("nan")]) == 0


@pytest.mark.parametrize(
    ("name", "enough", "too_few"), [("sport", [0, 1], [0, 2]), ("count", [0], []), ("themes", range(48), [0, 2])]
)
def test_a_task_needs_examples_of_all_its_labels(name: str, enough: list[int], too_few: list[int]) -> None:
    data = make_task_data(name)
    assert can_be_learned(data.task, data.train, np.array(enough))
    assert not can_be_learned(data.task, data.train, np.array(too_few, dtype=np.int64))
