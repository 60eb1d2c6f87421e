from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from mtop_batch.data.batches import pad_batch
from mtop_batch.data.examples import with_label_scale
from mtop_batch.data.labelled_tokens import LabelledTokens
from mtop_batch.data.tokens import Tokens
from mtop_batch.errors import DataError
from mtop_batch.tasks import Task
from mtop_batch.training.evaluation.evaluate import (
    evaluate,
    evaluate_task,
    mean_metric,
    undefined_metrics,
    with_eval_budget,
)
from mtop_batch.training.loop import fit
from mtop_batch.training.settings import TaskData
from tests.training.toy import TASKS, make_data, make_examples, make_model, make_settings

SCORE = Task("score", kind="regression", labels=())


@pytest.mark.parametrize("max_batch_tokens", [1, 40, 10_000])
def test_metrics_are_those_of_one_row_at_a_time(max_batch_tokens: int) -> None:
    model, examples = make_model(), make_examples(TASKS[1], 30, seed=5)
    with torch.no_grad():
        inputs = [pad_batch(examples.tokens, np.array([row])) for row in range(30)]
        logits = torch.cat([model(**item, task="mood").logits for item in inputs])
    metrics = evaluate_task(model, examples, TASKS[1], max_batch_tokens=max_batch_tokens)
    labels = torch.from_numpy(examples.labels)
    assert metrics["accuracy"] == pytest.approx((logits.argmax(1) == labels).float().mean().item())
    assert metrics["loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), abs=1e-5)
    assert metrics["num_examples"] == 30


def test_the_tasks_own_metric_stands_beside_the_accuracy() -> None:
    task = Task("sport", metric="matthews")
    metrics = evaluate_task(make_model(), make_examples(task, 9, seed=1), task)
    assert set(metrics) == {"matthews", "accuracy", "loss", "num_examples"}


def test_a_regression_is_judged_by_its_values() -> None:
    model, examples = make_model(tasks=(SCORE,)), make_examples(SCORE, 9, seed=1)
    metrics = evaluate_task(model, examples, SCORE)
    assert set(metrics) == {"pearson_spearman", "rmse", "mae", "loss", "num_examples"}
    assert -1 <= metrics["pearson_spearman"] <= 1


def test_values_of_any_size_are_learned_and_judged_by_their_error() -> None:
    def examples(count: int, seed: int) -> LabelledTokens:
        labelled = make_examples(TASKS[1], count, seed)
        return LabelledTokens(labelled.tokens, (5000.0 + 2000.0 * labelled.labels).astype(np.float32))

    train = examples(60, seed=0)
    task = with_label_scale(SCORE, train)
    assert (task.mean, task.std) == pytest.approx((train.labels.mean(), train.labels.std()), rel=1e-6)
    model = make_model(tasks=(task,))
    metrics = fit(model, [TaskData(task, train, examples(30, seed=1))], make_settings(epochs=15)).best_metrics["score"]
    assert metrics["rmse"] < 400
    assert metrics["mae"] <= metrics["rmse"]
    assert metrics["loss"] == pytest.approx((metrics["rmse"] / task.std) ** 2, rel=1e-3)


def test_labels_that_are_all_the_same_have_a_scale_too() -> None:
    examples = LabelledTokens(Tokens.from_rows([[2, 3]] * 3), np.full(3, 7.0, np.float32))
    assert (with_label_scale(SCORE, examples).mean, with_label_scale(SCORE, examples).std) == (7.0, 1.0)
    assert with_label_scale(TASKS[0], examples) == TASKS[0]


def test_evaluation_leaves_the_models_mode_alone() -> None:
    model, data = make_model(dropout=0.5), make_data()
    for training in (True, False):
        model.train(training)
        first, second = (evaluate(model, data) for _ in range(2))
        assert first == second
        assert model.training == training


def test_the_mean_is_over_the_tasks_own_metrics() -> None:
    tasks = [Task("a", metric="f1"), Task("b")]
    metrics = {"a": {"f1": 0.25, "accuracy": 0.9}, "b": {"accuracy": 0.75}}
    assert mean_metric(metrics, tasks) == 0.5


def test_an_undefined_metric_says_so_and_leaves_the_mean_to_the_others() -> None:
    tasks = (Task("one", metric="matthews"), SCORE, Task("other"))
    data = make_data((8, 8, 8), tasks)
    tokens = data[0].evaluation_examples().tokens
    data[0] = replace(data[0], eval=LabelledTokens(tokens, np.ones(12, np.int64)))
    data[1] = replace(data[1], eval=LabelledTokens(tokens, np.full(12, 2.5, np.float32)))
    metrics = evaluate(make_model(tasks=tasks), data)
    assert np.isnan([metrics["one"]["matthews"], metrics["score"]["pearson_spearman"]]).all()
    assert np.isfinite([metrics["one"]["accuracy"], metrics["score"]["rmse"], metrics["score"]["loss"]]).all()
    assert mean_metric(metrics, tasks) == metrics["other"]["accuracy"]
    assert undefined_metrics(data) == {
        "one": "only one label in the evaluation data",
        "score": "only one value in the evaluation data",
    }
    assert np.isnan(mean_metric(metrics, tasks[:2]))


@pytest.mark.parametrize(
    ("most", "sizes"), [(None, [12, 40, 3]), (200, [12, 40, 3]), (30, [12, 15, 3]), (20, [8, 8, 3]), (1, [1, 1, 1])]
)
def test_an_evaluation_budget_is_shared_equally(most: int | None, sizes: list[int]) -> None:
    data = [
        TaskData(Task(name), make_examples(Task(name), 5, seed=0), make_examples(Task(name), size, seed=1))
        for name, size in zip("abc", (12, 40, 3), strict=True)
    ]
    taken = with_eval_budget(data, most, seed=0)
    assert [len(item.evaluation_examples()) for item in taken] == sizes
    again = with_eval_budget(data[1:2], sizes[1], seed=0)[0].evaluation_examples()
    np.testing.assert_array_equal(taken[1].evaluation_examples().tokens.values, again.tokens.values)
    assert with_eval_budget([replace(data[0], eval=None)], most, seed=0)[0].eval is None


def test_a_task_without_evaluation_examples_is_refused() -> None:
    data = [TaskData(TASKS[0], make_examples(TASKS[0], 4, seed=0), None)]
    with pytest.raises(DataError, match="task 'sport' has no evaluation examples"):
        evaluate(make_model(), data)
