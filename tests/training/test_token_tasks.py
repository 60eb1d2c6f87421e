"""Token tasks: loss, training, windows and evaluation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from mtop_batch.data.batches import pad_batch
from mtop_batch.data.entities.spans import Entities
from mtop_batch.data.examples import tokenise_examples
from mtop_batch.data.labelled_tokens import LabelledTokens
from mtop_batch.data.raw_examples import RawExamples
from mtop_batch.data.tokens import TextTokenizer
from mtop_batch.model.encoder.inputs import Text
from mtop_batch.model.parts.losses import task_loss
from mtop_batch.tasks import NO_TAG, Task
from mtop_batch.training.evaluation.evaluate import evaluate_task, task_metrics, task_predictions
from mtop_batch.training.evaluation.label_report import label_report, worst_errors
from mtop_batch.training.loop import FitResult, fit
from mtop_batch.training.settings import TaskData, Worker
from tests.conftest import make_tokenizer
from tests.training.distributed import run_distributed
from tests.training.toy import TASKS, make_examples, make_model, make_settings

NAMES = Task("names", "token", ("PER", "LOC"))


def make_data(num_examples: int = 60) -> list[TaskData]:
    return [
        TaskData(task, make_examples(task, size, seed), make_examples(task, 20, 100 + seed))
        for seed, (task, size) in enumerate([(TASKS[0], 40), (NAMES, num_examples)])
    ]


def test_the_loss_counts_every_text_the_same() -> None:
    logits, tags = torch.randn(3, 4, 5), torch.tensor([[NO_TAG, 1, 2, 0], [4, *[NO_TAG] * 3], [NO_TAG] * 4])
    by_hand = [
        -sum(logits[row, place].log_softmax(-1)[tags[row, place]] for place in places) / max(1, len(places))
        for row, places in enumerate([(1, 2, 3), (0,), ()])
    ]
    torch.testing.assert_close(
        task_loss(NAMES, logits, tags), torch.stack([torch.as_tensor(v) for v in by_hand]).mean()
    )


def test_a_model_learns_entities_beside_labels() -> None:
    model, data = make_model(tasks=(TASKS[0], NAMES), prompt_attention="isolated"), make_data()
    before = evaluate_task(model, data[1].evaluation_examples(), NAMES)
    result = fit(model, data, make_settings(epochs=12))
    assert before["entity_f1"] < 0.5
    assert result.best_metrics["names"]["entity_f1"] > 0.9
    assert result.best_metrics["sport"]["accuracy"] > 0.8


def test_a_step_on_entities_moves_no_other_task() -> None:
    model = make_model(tasks=(TASKS[0], NAMES))
    examples = make_examples(NAMES, 4, 0)
    rows = np.arange(4)
    model(
        **pad_batch(examples.tokens, rows), task="names", labels=torch.from_numpy(examples.targets(rows, rows))
    ).loss.backward()
    assert all(parameter.grad is None for parameter in model.task_parameters("sport"))
    assert all(parameter.grad is not None for parameter in model.task_parameters("names"))


def test_a_token_task_leaves_the_others_as_they_are() -> None:
    examples = make_examples(TASKS[0], 6, 3)
    batch = pad_batch(examples.tokens, np.arange(6))
    model = make_model(prompt_attention="isolated").eval()
    with torch.inference_mode():
        before = model.all_tasks(**batch)
    model.add_tasks([NAMES])
    with torch.inference_mode():
        after = model.all_outputs(**batch, tasks=["names", "sport", "mood"])
        assert torch.equal(model.all_tasks(**batch), before)
        assert torch.equal(after.logits, before)
        alone = model.task_logits("names", Text(batch["input_ids"], batch["attention_mask"], batch["token_type_ids"]))
    is_token = batch["attention_mask"].bool()
    torch.testing.assert_close(after.at_tokens["names"][is_token], alone[is_token], atol=1e-5, rtol=0)


def train(worker: Worker) -> tuple[FitResult, dict[str, Tensor]]:
    model = make_model(tasks=(TASKS[0], NAMES)).double()
    data = make_data(24)
    result = fit(model, data, make_settings(epochs=1, batch_size=5), worker=worker)
    return result, dict(model.state_dict())


def test_two_workers_equal_one() -> None:
    (result, weights), (alone, expected) = run_distributed(train, world_size=2)[0], train(Worker())
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-5)
    for name, metrics in alone.best_metrics.items():
        assert result.best_metrics[name] == pytest.approx(metrics, abs=1e-4)


def test_predictions_and_metrics_by_hand() -> None:
    model, examples = make_model(tasks=(TASKS[0], NAMES)), make_examples(NAMES, 9, 5)
    found = task_predictions(model, examples, NAMES, max_batch_tokens=30)
    assert found.entities is not None
    assert examples.entities is not None
    assert found.scores.shape == (9,)
    entities = {(row, *map(int, entity)) for row in range(9) for entity in found.entities.row(row)}
    given = {(row, *map(int, entity)) for row in range(9) for entity in examples.entities.row(row)}
    metrics = task_metrics(NAMES, found, examples)
    assert metrics["entity_f1"] == pytest.approx(2 * len(entities & given) / (len(entities) + len(given)))
    perfect = replace(found, entities=examples.entities)
    report = label_report(NAMES, perfect, examples.labels, examples.entities)
    assert [scores.f1 for scores in report.labels] == [1.0, 1.0]
    assert sum(scores.support for scores in report.labels) == len(given)
    texts = ["x" * 40] * 9
    assert not len(worst_errors(NAMES, perfect, examples.labels, texts, None, examples.entities))
    errors = worst_errors(NAMES, found, examples.labels, texts, None, examples.entities)
    assert len(errors) == sum(found.entities.row(row) != examples.entities.row(row) for row in range(9))


def windowed(max_windows: int) -> LabelledTokens:
    words = ["bank", "market", "of", "team", "a"] * 6
    tags = [(0, 0, 11, 0), (0, 26, 30, 1)]
    text = " ".join(words)
    entities = Entities.from_rows([tags, []])
    raw = RawExamples(NAMES, "", True, [text, "a bank"], None, entities.has_type(2), [], entities=entities)
    return tokenise_examples(raw, TextTokenizer(make_tokenizer(), 12, max_windows, 3 if max_windows > 1 else 0))


def test_windows_are_evaluated_as_one_text() -> None:
    examples, model = windowed(9), make_model(tasks=(TASKS[0], NAMES))
    assert examples.counts is not None
    assert examples.counts.tolist() == [4, 1]
    found = task_predictions(model, examples, NAMES)
    assert found.entities is not None
    assert len(found.scores) == 2
    assert evaluate_task(model, examples, NAMES)["num_examples"] == 2
    rows = np.array([1, 0])
    taken = task_predictions(model, examples.take(rows), NAMES)
    assert taken.entities is not None
    assert [taken.entities.row(row) for row in (1, 0)] == [found.entities.row(row) for row in (0, 1)]


def test_targets_are_those_of_the_window_that_is_drawn() -> None:
    examples = windowed(9)
    assert examples.tags is not None
    for step in range(5):
        windows = examples.draw_windows(np.array([0, 1]), step)
        targets = examples.targets(np.array([0, 1]), windows)
        for window, row in zip(windows, targets, strict=True):
            tags = examples.tags[examples.tokens.offsets[window] : examples.tokens.offsets[window + 1]]
            assert row[: len(tags)].tolist() == tags.tolist()
            assert (row[len(tags) :] == NO_TAG).all()
