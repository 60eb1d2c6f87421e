"""Differences between methods."""

from __future__ import annotations

import numpy as np
import pytest

from mtop_batch.experiments.page.statistics import DRAWS, Differences, Drawn, TestOutputs, differences
from mtop_batch.experiments.runs.records import pack, unpack
from mtop_batch.tasks import METRICS, Metric
from mtop_batch.training.evaluation.metrics import compute_metric


def outputs(seed: int, rate: float, labels: np.ndarray, num_seeds: int = 5) -> TestOutputs:
    """Of a method that is right so often."""
    rng = np.random.default_rng(seed)
    right = rng.random((num_seeds, len(labels))) < rate
    return TestOutputs(np.where(right, labels, 1 - labels), labels, "accuracy", 2)


def compared(first: list[TestOutputs], second: list[TestOutputs], draws: int = DRAWS) -> Differences:
    return differences(Drawn.of(first, draws=draws), Drawn.of(second, draws=draws))


@pytest.fixture
def labels() -> np.ndarray:
    return np.random.default_rng(0).integers(2, size=600).astype(float)


@pytest.mark.parametrize("metric", [*METRICS["classification"], *METRICS["regression"]])
@pytest.mark.parametrize("num_labels", [2, 4])
def test_metrics_are_those_of_training_also_on_drawn_examples(metric: Metric, num_labels: int) -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(num_labels, size=80).astype(float)
    predictions = np.where(rng.random((2, 80)) < 0.6, labels, rng.integers(num_labels, size=(2, 80)))
    found = TestOutputs(predictions, labels, metric, num_labels)
    expected = [compute_metric(metric, row, labels, num_labels) for row in predictions]
    assert found.value() == pytest.approx(expected)
    if "spearman" in metric:
        return  # the ranks are those of the whole set
    rows = rng.integers(80, size=80)
    weights = np.bincount(rows, minlength=80)[None].astype(float)
    expected = [compute_metric(metric, row[rows], labels[rows], num_labels) for row in predictions]
    assert found.samples(weights)[0] == pytest.approx(expected)


@pytest.mark.parametrize("metric", METRICS["multi-label"])
def test_metrics_of_several_labels_are_those_of_training_too(metric: Metric) -> None:
    rng = np.random.default_rng(1)
    labels = (rng.random((80, 5)) < [0.5, 0.3, 0.2, 0.05, 0.0]).astype(float)
    predictions = np.where(rng.random((2, 80, 5)) < 0.7, labels, 0.0)
    found = TestOutputs(predictions, labels, metric, 5)
    assert found.value() == pytest.approx([compute_metric(metric, row, labels, 5) for row in predictions])
    rows = rng.integers(80, size=80)
    weights = np.bincount(rows, minlength=80)[None].astype(float)
    expected = [compute_metric(metric, row[rows], labels[rows], 5) for row in predictions]
    assert found.samples(weights)[0] == pytest.approx(expected)
    assert (unpack(pack(labels)) == labels).all()


def test_a_better_method_wins_and_the_interval_holds_the_difference(labels: np.ndarray) -> None:
    found = compared([outputs(1, 0.9, labels)] * 2, [outputs(2, 0.8, labels)] * 2)
    difference, by_task = found.mean(), found.by_task
    assert difference.low < 0.1 < difference.high
    assert difference.low < difference.mean < difference.high
    assert (difference.outcome, [part.outcome for part in by_task]) == ("win", ["win", "win"])
    back = compared([outputs(2, 0.8, labels)] * 2, [outputs(1, 0.9, labels)] * 2).mean()
    assert back.mean == pytest.approx(-difference.mean)
    assert back.outcome == "loss"


def test_equal_methods_tie_and_one_seed_tells_nothing(labels: np.ndarray) -> None:
    same = compared([outputs(1, 0.85, labels)], [outputs(2, 0.85, labels)]).mean()
    assert same.outcome == "tie"
    one = compared([outputs(1, 0.95, labels, 1)], [outputs(2, 0.6, labels, 1)]).mean()
    assert one.low > 0
    assert one.outcome == "tie"


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(100):
        labels = rng.integers(2, size=300).astype(float)
        both = [outputs(3 * trial, 0.8, labels)], [outputs(3 * trial + 1, 0.8, labels)]
        found = compared(*both, draws=300).mean()
        hits += found.low <= 0 <= found.high
    assert 88 <= hits <= 100


def test_a_comparison_is_the_same_each_time(labels: np.ndarray) -> None:
    first, second = outputs(1, 0.9, labels), outputs(2, 0.8, labels)
    assert compared([first], [second]).by_task == compared([first], [second]).by_task


def test_predictions_are_kept_in_little_space() -> None:
    ids = np.random.default_rng(0).integers(3, size=1000)
    assert len(pack(ids)) == 1000
    assert (unpack(pack(ids)) == ids).all()
    values = np.array([0.123456, -2.0])
    assert unpack(pack(values)).tolist() == [0.1235, -2.0]
