"""Multi-label tasks: loss, metrics, reports, soft labels and probes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as reference
from sklearn.linear_model import LogisticRegression
from torch import distributed
from torch.nn import functional as F

from mtop_batch.data.batches import pad_batch
from mtop_batch.model.kinds.base import MultiTaskModel
from mtop_batch.model.kinds.by_name import KINDS
from mtop_batch.model.parts.losses import task_loss
from mtop_batch.tasks import METRICS, Metric, Task
from mtop_batch.training.class_weights import class_weights
from mtop_batch.training.evaluation.evaluate import TaskPredictions, evaluate_task, task_predictions
from mtop_batch.training.evaluation.label_report import label_report, worst_errors
from mtop_batch.training.evaluation.metrics import compute_metric, undefined
from mtop_batch.training.loop import fit
from mtop_batch.training.probe import fit_probe
from mtop_batch.training.settings import TaskData, Worker
from mtop_batch.training.soft_labels import SoftLabels, label_softly, soft_loss, text_of
from tests.training.toy import TASKS, make_encoder, make_examples, make_model, make_settings

TOPICS = Task("topics", "multi-label", labels=("sport", "film", "money"))
ALERT = Task("alert", "multi-label", labels=("alert",))


def test_the_loss_is_binary_cross_entropy_by_label() -> None:
    logits = torch.tensor([[0.0, 2.0, -1.0], [3.0, 0.0, 0.5]])
    labels = torch.tensor([[True, True, False], [False, False, True]])
    by_hand = [
        -math.log(1 / (1 + math.exp(-logit))) if has else -math.log(1 - 1 / (1 + math.exp(-logit)))
        for logit, has in zip(logits.flatten().tolist(), labels.flatten().tolist(), strict=True)
    ]
    found = task_loss(TOPICS, logits.bfloat16(), labels)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(sum(by_hand) / 6, rel=1e-3)


def test_weights_are_those_of_the_labels_that_a_text_has() -> None:
    labels = np.array([[1, 0, 0], [0, 0, 1], [0, 1, 1], [0, 1, 1]], bool)
    weights = class_weights(TOPICS, {"film": 3.0}, labels)
    assert weights is not None
    assert weights.tolist() == [1.0, 3.0, 1.0]
    balanced = class_weights(TOPICS, "balanced", labels)
    assert balanced is not None
    np.testing.assert_allclose(balanced, [3, 1, 1 / 3], rtol=1e-6)
    logits, given = torch.randn(4, 3), torch.from_numpy(labels)
    by_label = F.binary_cross_entropy_with_logits(logits, given.float(), reduction="none")
    expected = torch.where(given, by_label * torch.tensor([1.0, 3.0, 1.0]), by_label).mean()
    torch.testing.assert_close(task_loss(TOPICS, logits, given, torch.from_numpy(weights)), expected)


@pytest.mark.parametrize("num_labels", [1, 2, 5])
@pytest.mark.parametrize("seed", range(3))
def test_metrics_are_those_of_scikit_learn(num_labels: int, seed: int) -> None:
    given, said = np.random.default_rng(seed).random((2, 40, num_labels)) < 0.4
    given[0], said[0] = True, True
    pairs = [(given[:, label], said[:, label]) for label in range(num_labels)]
    expected: dict[Metric, float] = {
        "micro_f1": float(reference.f1_score(given.ravel(), said.ravel())),
        "macro_f1": float(np.mean([reference.f1_score(*pair) for pair in pairs])),
        "subset_accuracy": float((given == said).all(axis=1).mean()),
    }
    for name, value in expected.items():
        assert compute_metric(name, said.astype(float), given, num_labels) == pytest.approx(value)


def test_metrics_by_hand() -> None:
    given = np.array([[1, 1, 0], [0, 0, 0], [0, 1, 0]], bool)
    said = np.array([[1, 0, 0], [0, 0, 0], [1, 1, 0]], bool)
    assert compute_metric("micro_f1", said, given, 3) == pytest.approx(2 / 3)
    assert compute_metric("macro_f1", said, given, 3) == pytest.approx((2 / 3 + 2 / 3) / 2)  # nobody has the third
    assert compute_metric("subset_accuracy", said, given, 3) == pytest.approx(1 / 3)


def test_f1_is_undefined_where_no_example_has_a_label() -> None:
    none, some = np.zeros((4, 2), bool), np.ones((4, 2), bool)
    for name in METRICS["multi-label"]:
        assert undefined(name, some, 2) == ""
        assert bool(undefined(name, none, 2)) == (name != "subset_accuracy")
        assert math.isnan(compute_metric(name, some, none, 2)) == (name != "subset_accuracy")
        assert compute_metric(name, none, some, 2) == 0


def test_evaluation_says_what_the_model_says_of_each_text() -> None:
    model, examples = make_model(tasks=(TOPICS, ALERT)), make_examples(TOPICS, 30, seed=5)
    with torch.no_grad():
        inputs = [pad_batch(examples.tokens, np.array([row])) for row in range(30)]
        logits = torch.cat([model(**item, task="topics").logits for item in inputs])
    found = task_predictions(model, examples, TOPICS, max_batch_tokens=40)
    np.testing.assert_allclose(found.scores, logits.sigmoid().numpy(), atol=1e-5)
    np.testing.assert_array_equal(found.values > 0, logits.numpy() >= 0)
    metrics = evaluate_task(model, examples, TOPICS)
    assert set(metrics) == {*METRICS["multi-label"], "loss", "num_examples"}
    labels = torch.from_numpy(examples.labels)
    assert metrics["loss"] == pytest.approx(F.binary_cross_entropy_with_logits(logits, labels.float()).item(), abs=1e-5)


def test_each_label_has_its_scores_and_is_not_taken_for_another() -> None:
    given = np.array([[1, 1, 0], [0, 0, 0], [0, 1, 0]], bool)
    scores = np.array([[0.9, 0.4, 0.1], [0.2, 0.1, 0.3], [0.7, 0.8, 0.2]])
    said = TaskPredictions((scores >= 0.5).astype(float), scores, 0.0)
    report = label_report(TOPICS, said, given)
    assert [(of.label, of.precision, of.recall, of.support) for of in report.labels[:2]] == [
        ("sport", 0.5, 1.0, 1),
        ("film", 1.0, 0.5, 2),
    ]
    assert report.labels[2].undefined == "no evaluation example has it, and none is given it"
    assert (report.confusion, report.undefined, report.note) == ([], "", "")
    assert sum(of.examples for of in report.calibration) == 9
    assert report.calibration_error == pytest.approx(2.5 / 9)
    alone = label_report(ALERT, TaskPredictions(said.values[:, :1], scores[:, :1], 0.0), given[:, :1])
    assert [(of.precision, of.recall) for of in alone.labels] == [(0.5, 1.0)]
    errors = worst_errors(TOPICS, said, given, ["a", "b", "c"], None).to_pylist()
    assert [(row["text"], row["label"], row["predicted"]) for row in errors] == [
        ("c", "film", "sport, film"),
        ("a", "sport, film", "sport"),
    ]
    assert [row["score"] for row in errors] == pytest.approx([0.7, 0.6])


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_learns_it_beside_others(kind: str) -> None:
    reads = KINDS[kind].readers[0]
    tasks = (replace(TASKS[0], reads=reads), replace(TOPICS, reads=reads))
    model: MultiTaskModel = KINDS[kind].from_backbone(make_encoder(), tasks, max_tokens=16)
    data = [
        TaskData(task, make_examples(task, 32, seed=index), make_examples(task, 16, seed=10 + index))
        for index, task in enumerate(tasks)
    ]
    before = evaluate_task(model, data[1].evaluation_examples(), TOPICS)
    metrics = fit(model, data, make_settings(epochs=3, learning_rate=1e-2)).best_metrics
    assert metrics["topics"]["loss"] < before["loss"]


def test_tasks_of_different_kinds_share_prompts() -> None:
    tasks = (TASKS[1], TOPICS, ALERT)
    groups = {task.name: "a" for task in tasks}
    model = make_model(tasks=tasks, prompt_attention="isolated", prompt_groups=groups, pooler_rank=2)
    data = [TaskData(task, make_examples(task, 16, seed=1), make_examples(task, 8, seed=2)) for task in tasks]
    fit(model, data, make_settings(epochs=1))
    inputs = pad_batch(data[0].train.tokens, np.arange(5))
    with torch.no_grad():
        together = model.eval().all_tasks(**inputs)
        alone = [model(**inputs, task=task.name).logits for task in tasks]
    for place, own in enumerate(alone):
        torch.testing.assert_close(together[:, place, : own.shape[1]], own, rtol=1e-4, atol=1e-5)


def test_two_workers_evaluate_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model, examples = make_model(tasks=(TOPICS,)), make_examples(TOPICS, 7, seed=1)
    seen: list[Any] = []

    def all_gather(parts: list[Any], own: Any) -> None:
        seen.append(own)
        parts[:] = [seen[0], own]

    monkeypatch.setattr(distributed, "all_gather_object", all_gather)
    found = [task_predictions(model, examples, TOPICS, worker=Worker(rank, 2)) for rank in (0, 1)][1]
    alone = task_predictions(model, examples, TOPICS)
    np.testing.assert_allclose(found.scores, alone.scores, atol=1e-6)
    np.testing.assert_array_equal(found.values, alone.values)


def test_teachers_say_the_probability_of_each_label_and_students_learn_it() -> None:
    tasks = (TASKS[1], TOPICS, ALERT, Task("price", "regression", labels=()))
    model, tokens = make_model(tasks=tasks), make_examples(TASKS[0], 9, seed=3).tokens
    said = label_softly(model, tokens, tasks)
    text = text_of(tokens, np.arange(9), Worker())
    for number, task in ((1, TOPICS), (2, ALERT)):
        expected = model.task_logits(task.name, text).detach().sigmoid().numpy()
        np.testing.assert_allclose(said[:, number, : task.num_outputs], expected, atol=1e-5)
        assert not said[:, number, task.num_outputs :].any()
    logits, targets = torch.randn(4, 2, 3), torch.rand(4, 2, 3)
    logits[:, 1, 1:], targets[:, 1, 1:] = -torch.inf, 0.0
    own = [F.binary_cross_entropy_with_logits(logits[:, n, :c], targets[:, n, :c]) for n, c in ((0, 3), (1, 1))]
    torch.testing.assert_close(soft_loss((TOPICS, ALERT), logits, targets), torch.stack(own).mean())


def test_gradients_of_soft_labels_are_finite_beside_tasks_with_more_labels() -> None:
    tasks = (TASKS[1], ALERT)
    model, tokens = make_model(tasks=tasks), make_examples(TASKS[0], 20, seed=3).tokens
    soft = SoftLabels(tokens, label_softly(make_model(tasks=tasks), tokens, tasks), 4, 1.0)
    data = [TaskData(task, make_examples(task, 12, seed=1), make_examples(task, 6, seed=2)) for task in tasks]
    fit(model, data, make_settings(epochs=1), soft=soft)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_a_probe_is_one_logistic_regression_for_each_label() -> None:
    generator = torch.Generator().manual_seed(1)
    vectors = torch.randn(200, 8, generator=generator).half()
    labels = vectors.float() @ torch.randn(8, 3, generator=generator) + torch.randn(200, 3, generator=generator) > 0.5
    task, penalty = replace(TOPICS, reads="vector"), 0.01
    fitted = fit_probe(task, vectors, labels, l2_penalties=[penalty])
    found = (vectors.double() @ fitted.weight.double().T + fitted.bias).sigmoid().numpy()
    values = vectors.double().numpy()
    values = (values - values.mean(0)) / np.sqrt(np.square(values - values.mean(0)).mean())
    for label in range(3):  # our loss is the mean over 200 examples and 3 labels, scikit-learn's a sum
        one = LogisticRegression(C=1 / (penalty * 200 * 3), tol=1e-8, max_iter=5000).fit(values, labels[:, label])
        np.testing.assert_allclose(found[:, label], one.predict_proba(values)[:, 1], atol=1e-4)


def test_a_rare_label_has_examples_in_every_part_that_a_probe_holds_out() -> None:
    labels = torch.zeros(100, 3, dtype=torch.bool)
    labels[:, 0] = True
    labels[:50, 1] = True
    labels[:10, 2] = True
    fitted = fit_probe(replace(TOPICS, reads="vector"), torch.randn(100, 4).half(), labels, l2_penalties=[1.0, 0.1])
    assert all(np.isfinite(loss) for loss in fitted.losses.values())
