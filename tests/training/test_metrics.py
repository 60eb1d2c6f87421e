from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as reference

from mtop_batch.tasks import METRICS, Metric
from mtop_batch.training.evaluation.metrics import compute_metric, f1, mae, matthews, pearson, rmse, spearman, undefined


@pytest.mark.parametrize("num_labels", [2, 3, 5])
@pytest.mark.parametrize("seed", range(5))
def test_metrics_of_labels_are_those_of_scikit_learn(num_labels: int, seed: int) -> None:
    predictions, labels = np.random.default_rng(seed).integers(num_labels, size=(2, 40))
    average = "binary" if num_labels == 2 else "macro"
    expected = {
        "accuracy": reference.accuracy_score(labels, predictions),
        "f1": reference.f1_score(labels, predictions, average=average),
        "matthews": reference.matthews_corrcoef(labels, predictions),
    }
    for name, value in expected.items():
        assert compute_metric(name, predictions, labels, num_labels) == pytest.approx(value)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(5))
def test_metrics_of_values_are_those_of_scipy_also_with_ties(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(5, size=40) / 2
    predictions = np.round(labels + rng.normal(size=40), 1).astype(np.float32)
    r, rho = stats.pearsonr(predictions, labels).statistic, stats.spearmanr(predictions, labels).statistic
    assert compute_metric("pearson", predictions, labels) == pytest.approx(r)
    assert compute_metric("spearman", predictions, labels) == pytest.approx(rho)
    assert compute_metric("pearson_spearman", predictions, labels) == pytest.approx((r + rho) / 2)


def test_a_label_that_never_occurs_does_not_count_in_macro_f1() -> None:
    predictions, labels = np.array([0, 1, 1, 0]), np.array([0, 1, 0, 0])
    expected = reference.f1_score(labels, predictions, average="macro")
    assert f1(predictions, labels, num_labels=4) == pytest.approx(expected)


def test_who_predicts_the_same_of_every_text_has_0() -> None:
    constant, varying = np.full(4, 0.1, dtype=np.float32), np.arange(4.0)
    assert [metric(constant, varying) for metric in (pearson, spearman)] == [0.0, 0.0]
    assert matthews(np.zeros(4), np.array([0, 1, 0, 1])) == 0.0
    assert compute_metric("f1", np.zeros(4), np.array([0, 1, 0, 1])) == 0.0


@pytest.mark.parametrize(
    ("name", "labels", "num_labels", "reason"),
    [
        ("matthews", [1, 1], 2, "only one label in the evaluation data"),
        ("matthews", [2, 2], 3, "only one label in the evaluation data"),
        ("f1", [0, 0], 2, "only one label in the evaluation data"),
        ("pearson", [2.5, 2.5], 1, "only one value in the evaluation data"),
        ("spearman", [2.0], 1, "only one value in the evaluation data"),
        ("pearson_spearman", [0.1, 0.1], 1, "only one value in the evaluation data"),
        ("f1", [1, 1], 2, ""),
        ("f1", [0, 0], 3, ""),
        ("f1", [0, 1], 2, ""),
        ("accuracy", [0, 0], 2, ""),
        ("pearson", [2.0, 3.0], 1, ""),
    ],
)
def test_a_metric_that_labels_leave_undefined_is_no_number_and_says_why(
    name: Metric, labels: list[float], num_labels: int, reason: str
) -> None:
    truth = np.array(labels)
    assert undefined(name, truth, num_labels) == reason
    for predictions in (truth, np.arange(len(labels)), np.zeros(len(labels))):
        assert math.isnan(compute_metric(name, predictions, truth, num_labels)) == bool(reason)


def test_errors_are_in_the_unit_of_the_labels() -> None:
    predictions, labels = np.array([5000.0, 7000.0, 9000.0]), np.array([5000, 7300, 8600], np.float32)
    assert rmse(predictions, labels) == pytest.approx(reference.root_mean_squared_error(labels, predictions))
    assert mae(predictions, labels) == pytest.approx(reference.mean_absolute_error(labels, predictions))


def test_every_metric_of_a_task_is_known() -> None:
    values = np.array([0, 1, 0, 1])
    assert sorted(name for names in METRICS.values() for name in names) == sorted(get_args(Metric))
    for kind, names in METRICS.items():
        if kind == "token":  # its entities are counted, not its outputs
            continue
        given = np.stack([values, 1 - values], axis=1) if kind == "multi-label" else values
        assert [compute_metric(name, given, given) for name in names] == pytest.approx([1.0] * len(names))
