"""What people are told about each label, and about errors."""

from __future__ import annotations

import numpy as np
import pytest

from mtop_batch.tasks import Task
from mtop_batch.training.evaluation.evaluate import TaskPredictions
from mtop_batch.training.evaluation.label_report import label_report, worst_errors

TOPIC = Task("topic", labels=("sport", "film", "money"), metric="matthews")
SCORE = Task("score", kind="regression", labels=())


def said(values: list[float], scores: list[float] | None = None) -> TaskPredictions:
    return TaskPredictions(np.array(values, dtype=float), np.array(scores or [np.nan] * len(values)), 0.0)


def test_each_label_has_its_scores_and_its_confusions() -> None:
    report = label_report(TOPIC, said([0, 0, 1, 0], [0.9] * 4), np.array([0, 0, 1, 1]))
    sport, film, money = report.labels
    assert (sport.recall, sport.support) == (1.0, 2)
    assert sport.precision == pytest.approx(2 / 3)
    assert (film.precision, film.recall) == (1.0, 0.5)
    assert film.f1 == pytest.approx(2 / 3)
    assert np.isnan([money.precision, money.recall, money.f1]).all()
    assert (money.support, money.undefined) == (0, "no evaluation example has it, and none is given it")
    assert report.confusion == [[2, 0, 0], [1, 1, 0], [0, 0, 0]]
    assert report.undefined == ""


def test_scores_are_compared_with_the_share_that_is_right() -> None:
    report = label_report(TOPIC, said([0, 0, 1, 1, 2], [0.55, 0.51, 0.98, 1.0, 0.95]), np.array([0, 1, 1, 1, 2]))
    low, high = report.calibration
    assert (low.examples, low.accuracy) == (2, 0.5)
    assert low.score == pytest.approx(0.53)
    assert (high.examples, high.accuracy) == (3, 1.0)
    assert report.calibration_error == pytest.approx((2 * 0.03 + 0.02 + 0.0 + 0.05) / 5)
    assert label_report(SCORE, said([1.0, 2.0]), np.array([1.0, 2.5])).calibration_error is None


def test_a_regression_has_no_labels_and_says_when_its_metric_means_nothing() -> None:
    report = label_report(SCORE, said([1.0, 1.0]), np.array([1.0, 2.0]))
    assert (report.labels, report.undefined, report.note) == ([], "", "the same is predicted of all examples")
    report = label_report(SCORE, said([1.0, 2.0]), np.array([3.0, 3.0]))
    assert (report.undefined, report.note) == ("only one value in the evaluation data", "")


def test_the_surest_error_comes_first() -> None:
    errors = worst_errors(TOPIC, said([0, 1, 2], [0.6, 0.9, 0.8]), np.array([1, 0, 2]), ["a", "b", "c"], None)
    assert errors.drop_columns("score").to_pylist() == [
        {"task": "topic", "text": "b", "second_text": None, "label": "sport", "predicted": "film"},
        {"task": "topic", "text": "a", "second_text": None, "label": "film", "predicted": "sport"},
    ]
    assert errors["score"].to_pylist() == pytest.approx([0.9, 0.6])


def test_the_largest_error_of_a_regression_comes_first() -> None:
    errors = worst_errors(SCORE, said([1.0, 5.0]), np.array([1.5, 2.0]), ["a", "b"], ["x", None])
    assert errors["text"].to_pylist() == ["b", "a"]
    assert errors["label"].to_pylist() == ["2", "1.5"]
    assert errors["score"].to_pylist() == [3.0, 0.5]
