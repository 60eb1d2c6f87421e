from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.tasks import Task
from mtop_batch.training.cached_contexts import CachedContexts, cached_contexts, model_inputs
from mtop_batch.training.loop import fit
from mtop_batch.training.optimizer import freeze_backbone
from mtop_batch.training.settings import TaskData, Worker
from tests.training.toy import TASKS, make_data, make_examples, make_model, make_settings

ADDED = Task("added", labels=("a", "b", "c"))


def with_added_task(prompt_attention: Any, dropout: float = 0.0) -> MTOPModel:
    """A model of which only the task `added` trains."""
    model = make_model(dropout, prompt_attention=prompt_attention)
    model.add_tasks([ADDED], prompts_per_task=3)
    model.requires_grad_(False)
    for parameter in model.task_parameters("added"):
        parameter.requires_grad_(True)
    return model


@pytest.mark.parametrize("attention", ["joint", "isolated"])
@pytest.mark.parametrize("max_bytes", [None, 0])
def test_losses_and_gradients_are_those_of_the_texts_themselves(attention: str, max_bytes: int | None) -> None:
    examples, rows = make_examples(ADDED, 30, seed=5), np.array([3, 17, 4, 29])
    labels = torch.from_numpy(examples.labels[rows])
    results = []
    for kept in (False, True):
        model = with_added_task(attention).train()
        contexts = CachedContexts(model, worker=Worker(), max_bytes=max_bytes)
        assert contexts.keep(examples) == (max_bytes is None)
        inputs = model_inputs(examples, rows, Worker(), contexts if kept else None)
        loss = model(**inputs, task="added", labels=labels).loss
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in model.task_parameters("added"))])
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-4)


def test_contexts_are_computed_without_dropout_and_leave_the_model_in_training() -> None:
    model, examples = with_added_task("isolated", dropout=0.5).train(), make_examples(ADDED, 6, seed=5)
    contexts = CachedContexts(model, worker=Worker(), max_bytes=0)
    first, second = (contexts.batch(examples, np.arange(6)).key_values[1][0] for _ in range(2))
    assert torch.equal(first, second)
    assert model.backbone.training


def test_what_is_read_is_hidden_in_part_while_the_model_trains() -> None:
    model, examples, rows = with_added_task("isolated"), make_examples(ADDED, 30, seed=5), np.arange(30)
    contexts = CachedContexts(model, worker=Worker(), dropout=0.25)
    contexts.keep(examples)
    whole, again = (contexts.batch(examples, rows) for _ in range(2))
    torch.testing.assert_close(again.key_values, whole.key_values, rtol=0, atol=0)
    model.train()
    torch.manual_seed(0)
    for before, after in zip(whole.key_values, contexts.batch(examples, rows).key_values, strict=True):
        for kept, hidden in zip(before, after, strict=True):
            present = kept != 0
            assert float((hidden[present] == 0).float().mean()) == pytest.approx(0.25, abs=0.05)
            torch.testing.assert_close(hidden[hidden != 0], kept[hidden != 0] / 0.75)


def test_hiding_is_the_same_for_the_same_seed_and_makes_another_task_than_none() -> None:
    data = [TaskData(ADDED, make_examples(ADDED, 40, seed=1), make_examples(ADDED, 12, seed=2))]
    weights = []
    for dropout in (0.5, 0.5, 0.0):
        model = with_added_task("isolated")
        fit(model, data, make_settings(epochs=2, context_dropout=dropout))
        weights.append(model.task_tensors("added")["head.weight"])
    assert torch.equal(weights[0], weights[1])
    assert not torch.allclose(weights[0], weights[2])


def test_they_are_used_only_where_nothing_trains_that_changes_them() -> None:
    def used(model: MTOPModel, tasks: tuple[str, ...]) -> bool:
        return cached_contexts(model, tasks, worker=Worker()) is not None

    assert used(with_added_task("joint"), ("added",))
    assert not used(with_added_task("joint"), ("added", "sport"))
    assert not used(make_model(prompt_attention="isolated"), ("sport",))
    frozen = make_model(prompt_attention="isolated")
    freeze_backbone(frozen)
    assert used(frozen, tuple(frozen.task_names))
    grouped = make_model(prompt_attention="isolated", prompt_groups={"sport": "a", "mood": "a"})
    freeze_backbone(grouped)
    assert used(grouped, ("sport",))
    joint = make_model(prompt_attention="joint")
    freeze_backbone(joint)
    assert not used(joint, ("sport",))


def test_training_with_kept_contexts_ends_like_training_on_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    data = [TaskData(ADDED, make_examples(ADDED, 40, seed=1), make_examples(ADDED, 12, seed=2))]
    weights = []
    for keep in (True, False):
        model = with_added_task("isolated")
        if not keep:
            monkeypatch.setattr("mtop_batch.training.loop.cached_contexts", lambda *_, **__: None)
        fit(model, data, make_settings(epochs=2))
        weights.append(model.task_tensors("added"))
    torch.testing.assert_close(*weights, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("prompt_groups", [None, {"sport": "a", "mood": "a"}])
def test_tasks_together_on_a_frozen_backbone_learn(prompt_groups: dict[str, str] | None) -> None:
    model = make_model(prompt_attention="isolated", prompt_groups=prompt_groups)
    freeze_backbone(model)
    result = fit(model, make_data(), make_settings(epochs=30, learning_rate=1e-2))
    assert result.history[-1].mean > result.history[0].mean
    assert set(result.best_metrics) == {task.name for task in TASKS}
