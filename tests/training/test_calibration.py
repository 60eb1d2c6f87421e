"""Temperatures and thresholds that are fitted: probabilities to be trusted, wishes fulfilled or said not to be."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtop_batch.errors import TaskError
from mtop_batch.families import EncoderPasses
from mtop_batch.model.bundle.card import model_card
from mtop_batch.model.bundle.reliability import reliability_plot
from mtop_batch.tasks import Decision, Task
from mtop_batch.training.calibration.fit_decisions import (
    FittedDecision,
    check_fitted,
    decision_reports,
    fit_decision,
    with_decision_metrics,
)
from mtop_batch.training.calibration.temperature import calibration, fit_temperature

NEWS = Task("news")
TOPIC = Task("topic", labels=("film", "food", "money"))
TAGS = Task("tags", "multi-label", ("a", "b", "c"))
TEXT_LIMITS = {"max_tokens": 16, "max_windows": 1, "window_overlap": 0}


def data(task: Task, temperature: float, count: int = 4000, seed: int = 0) -> tuple[Any, Any]:
    """Probabilities of a model whose logits are so many times too large, and what comes true."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(count, len(task.labels))) * 2
    if task.is_multi_label:
        labels = rng.random(logits.shape) < 1 / (1 + np.exp(-logits))
        return 1 / (1 + np.exp(-logits * temperature)), labels
    true = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (rng.random((count, 1)) > true.cumsum(axis=1)).sum(axis=1)
    said = np.exp(logits * temperature)
    return said / said.sum(axis=1, keepdims=True), labels


@pytest.mark.parametrize("task", [NEWS, TOPIC, TAGS])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_is_found_and_scores_can_be_trusted(task: Task, temperature: float) -> None:
    probabilities, labels = data(task, temperature)
    found = fit_temperature(task, probabilities, labels)
    assert found == pytest.approx(temperature, rel=0.1)
    hot = replace(task, decision=Decision(temperature=found))
    before, after = calibration(task, probabilities, labels), calibration(hot, probabilities, labels)
    assert after.error < 0.03
    assert after.brier <= before.brier + 1e-4
    if temperature != 1:
        assert after.error < before.error / 2


@pytest.mark.parametrize("task", [NEWS, TOPIC, TAGS])
def test_a_few_examples_all_right_make_no_task_sure_of_itself(task: Task) -> None:
    has_label = np.eye(len(task.labels))[np.arange(6) % len(task.labels)]
    labels = has_label > 0 if task.is_multi_label else has_label.argmax(axis=1)
    assert 0.3 < fit_temperature(task, 0.8 * has_label + 0.2 / len(task.labels), labels) < 1


def test_errors_of_calibration_are_those_that_one_computes_by_hand() -> None:
    probabilities = np.array([[0.25, 0.75], [0.25, 0.75], [0.9, 0.1], [0.9, 0.1]])
    found = calibration(NEWS, probabilities, np.array([1, 0, 0, 0]))
    assert found.error == pytest.approx((2 * abs(0.75 - 0.5) + 2 * abs(0.9 - 1.0)) / 4)
    assert found.brier == pytest.approx((0.0625 + 0.5625 + 0.01 + 0.01) / 4)
    assert [(of.examples, of.accuracy) for of in found.bins] == [(2, 0.5), (2, 1.0)]


def decide(
    task: Task, wish: tuple[str, float] | None, seed: int = 0, count: int = 300, **options: Any
) -> FittedDecision:
    probabilities, labels = data(task, 1.5, count, seed)
    return fit_decision(task, probabilities, labels, wish, options.get("abstain_below", 0.0))


@given(
    st.sampled_from([NEWS, TAGS]), st.sampled_from(["precision", "recall"]), st.floats(0.3, 0.95), st.integers(0, 99)
)
def test_a_precision_or_recall_is_reached_and_no_label_is_lost_for_it(
    task: Task, kind: str, share: float, seed: int
) -> None:
    probabilities, labels = data(task, 1.5, 60, seed)
    fitted = fit_decision(task, probabilities, labels, (kind, share), 0.0)
    about = list(range(3)) if task.is_multi_label else [1]
    has_label = labels if task.is_multi_label else labels[:, None] == np.arange(2)
    for place, label in enumerate(about):
        reached = [_both(probabilities[:, label] >= t, has_label[:, label]) for t in np.unique(probabilities[:, label])]
        possible = [both for both in reached if both[kind == "recall"] >= share]
        if fitted.problem:
            continue
        mine = fitted.labels[place]
        assert (mine.precision, mine.recall)[kind == "recall"] >= share
        # As many labels as possible for a precision, as few as possible for a recall.
        best = max(both[1] for both in possible) if kind == "precision" else max(both[0] for both in possible)
        if kind == "precision":
            assert mine.recall == pytest.approx(best)
        else:
            assert mine.recall == pytest.approx(min(both[1] for both in possible))
    assert not fitted.problem or "cannot be reached" in fitted.problem


def _both(given_label: Any, has_label: Any) -> tuple[float, float]:
    both = (given_label & has_label).sum()
    return both / given_label.sum(), both / max(1, has_label.sum())


def test_the_best_f1_is_found() -> None:
    probabilities, labels = data(NEWS, 1.5, 200)
    (label,) = fit_decision(NEWS, probabilities, labels, ("metric", 0.0), 0.0).labels
    every = []
    for threshold in np.unique(probabilities[:, 1]):
        precision, recall = _both(probabilities[:, 1] >= threshold, labels == 1)
        every.append(2 * precision * recall / (precision + recall))
    assert label.f1 == pytest.approx(max(every))


def test_a_threshold_is_taken_as_it_is_and_says_what_it_reaches() -> None:
    fitted = decide(TAGS, ("threshold", 0.7))
    assert fitted.task.decision.thresholds == (0.7,) * 3
    assert all(0 < label.precision <= 1 and 0 < label.recall < 1 for label in fitted.labels)
    assert decide(TOPIC, None).labels == ()


def test_the_unsure_are_counted_and_the_others_are_right_more_often() -> None:
    everything, sure = decide(TOPIC, None), decide(TOPIC, None, abstain_below=0.7)
    assert everything.abstained == 0 < sure.abstained < 1
    assert sure.accuracy > everything.accuracy
    assert np.isnan(decide(TOPIC, None, abstain_below=1.0).accuracy)


@pytest.mark.parametrize("wish", [("precision", 0.99), ("recall", 0.5)])
def test_what_cannot_be_reached_is_said_with_the_best_that_can(wish: tuple[str, float]) -> None:
    same = np.full((10, 3), 0.6)
    labels = np.zeros((10, 3), bool)
    labels[:5, 0] = True  # half of those with one probability; of the other labels there are none
    fitted = fit_decision(TAGS, same, labels, wish, 0.0)
    assert fitted.task.decision.thresholds == ()
    assert f"task 'tags': a {wish[0]} of {wish[1]:g} cannot be reached" in fitted.problem
    assert ("'a' 0.500" in fitted.problem) == (wish[0] == "precision")
    assert "'b' 0.000" in fitted.problem
    with pytest.raises(TaskError, match="cannot be reached"):
        check_fitted([fitted])
    assert fitted.to_dict()["problem"] == fitted.problem


def test_rules_of_a_task_outlive_a_new_temperature() -> None:
    tied = replace(NEWS, decision=Decision(3.0, (0.2,), 0.4, ('excludes("news:yes", "tags:a")',)))
    found = decide(tied, None).task.decision
    assert (found.rules, found.thresholds, found.abstain_below) == (tied.decision.rules, (), 0.0)
    assert found.temperature == pytest.approx(1.5, rel=0.3)


def test_the_card_and_the_plot_show_what_was_fitted() -> None:
    fitted = {task.name: decide(task, wish) for task, wish in ((NEWS, ("recall", 0.9)), (TOPIC, None), (TAGS, None))}
    metrics = with_decision_metrics({"news": {"accuracy": 0.9}, "price": {"pearson": 0.5}}, fitted)
    assert set(metrics["news"]) == {"accuracy", "ece_before", "ece", "brier"}
    assert set(metrics["price"]) == {"pearson"}
    reports = decision_reports(fitted)
    card = model_card(
        "m", "mtop", [NEWS, TOPIC, TAGS], metrics, {}, "tiny", TEXT_LIMITS, EncoderPasses(), reports, "reliability.png"
    )
    assert "| recall 0.9: yes from " in card
    assert "| the likeliest |" in card
    assert "](reliability.png)" in card
    plot = reliability_plot(reports)
    assert plot is not None
    height, width, _ = matplotlib.image.imread(io.BytesIO(plot)).shape
    assert width > 700 > height > 250
    assert reliability_plot({}) is None
