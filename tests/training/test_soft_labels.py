from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mtop_batch.data.tokens import Tokens
from mtop_batch.errors import ConfigError
from mtop_batch.model.kinds.base import MultiTaskModel
from mtop_batch.model.kinds.config import PromptAttention
from mtop_batch.model.kinds.mt_dnn import MTDNNModel
from mtop_batch.tasks import Task
from mtop_batch.training.evaluation.evaluate import evaluate
from mtop_batch.training.loop import fit
from mtop_batch.training.settings import Worker
from mtop_batch.training.soft_labels import SoftLabels, label_softly, mean_labels, soft_loss, text_of
from tests.training.test_loop import Checkpoints, assert_identical, weights
from tests.training.toy import TASKS, make_data, make_encoder, make_examples, make_model, make_settings

TASKS_POOLED = tuple(Task(task.name, labels=task.labels, reads="pooled") for task in TASKS)
PRICE = Task("price", kind="regression", labels=())


def make_soft(tasks: tuple[Task, ...] = TASKS, batch_size: int = 6, weight: float = 1.0) -> SoftLabels:
    tokens = make_examples(tasks[0], 30, seed=7).tokens
    return SoftLabels(tokens, label_softly(make_model(tasks=tasks), tokens, tasks), batch_size, weight)


def test_the_loss_is_the_mean_over_texts_and_tasks() -> None:
    tasks = (*TASKS, PRICE)
    logits = torch.randn(4, 3, 3)
    logits[:, 0, 2] = -torch.inf  # sport has two labels
    targets = torch.rand(4, 3, 3)
    targets[:, 0, 2] = 0
    by_hand = [
        -(targets[text, 0, :2] * F.log_softmax(logits[text, 0, :2], dim=0)).sum()
        - (targets[text, 1] * F.log_softmax(logits[text, 1], dim=0)).sum()
        + (logits[text, 2, 0] - targets[text, 2, 0]) ** 2
        for text in range(4)
    ]
    torch.testing.assert_close(soft_loss(tasks, logits, targets), torch.stack(by_hand).sum() / 12)


def test_a_teacher_says_the_probabilities_of_its_labels_and_the_value_of_a_regression() -> None:
    tasks = (*TASKS, PRICE)
    model, tokens = make_model(tasks=tasks), make_examples(TASKS[0], 9, seed=3).tokens
    said = label_softly(model, tokens, tasks)
    text = text_of(tokens, np.arange(9), Worker())
    for number, task in enumerate(tasks):
        own = model.task_logits(task.name, text).detach()
        expected = own if task.kind == "regression" else own.softmax(dim=1)
        np.testing.assert_allclose(said[:, number, : task.num_outputs], expected.numpy(), atol=1e-5)
        assert not said[:, number, task.num_outputs :].any()


def test_teachers_are_heard_alike() -> None:
    said = [np.full((2, 1, 2), value, np.float32) for value in (0.2, 0.6)]
    np.testing.assert_allclose(mean_labels(said), 0.4, rtol=1e-6)


@pytest.mark.parametrize("prompt_attention", ["joint", "isolated"])
def test_one_pass_gives_the_gradients_of_all_tasks(prompt_attention: PromptAttention) -> None:
    model, soft = make_model(prompt_attention=prompt_attention), make_soft()
    text = text_of(soft.tokens, np.arange(5), Worker())
    targets = torch.from_numpy(soft.targets[:5])
    names = tuple(model.task_names)
    soft_loss(TASKS, model.outputs(names, text, vectors=False)[0], targets).backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    logits = torch.full((5, 2, 3), -torch.inf)
    for number, task in enumerate(TASKS):
        own = model.all_tasks(text.input_ids, text.attention_mask, tasks=[task.name, *names])[:, 0]
        logits[:, number] = own
    soft_loss(TASKS, logits, targets).backward()
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys() >= {"task_modules.task_sport.prompts", "task_modules.task_mood.head.weight"}
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_a_task_with_two_examples_is_learned_from_its_soft_labels() -> None:
    teacher, plenty = make_model(prompt_attention="isolated"), make_data((40, 40))
    fit(teacher, plenty, make_settings(epochs=15))
    tokens = Tokens.from_rows([item.train.tokens.row(row).tolist() for item in plenty for row in range(40)])
    soft = SoftLabels(tokens, label_softly(teacher, tokens, TASKS), batch_size=16, weight=3.0)
    few = make_data((2, 40))
    student, alone = make_model(prompt_attention="isolated"), make_model(prompt_attention="isolated")
    settings = make_settings(epochs=15, evaluate=False)
    fit(student, few, settings, soft=soft)
    fit(alone, few, settings)
    assert evaluate(student, few)["sport"]["accuracy"] >= 0.9 > evaluate(alone, few)["sport"]["accuracy"]


@pytest.mark.parametrize("kind", ["mtop", "mt-dnn"])
def test_a_resumed_run_ends_with_the_weights_of_an_undisturbed_one(tmp_path: Path, kind: str) -> None:
    def make() -> MultiTaskModel:
        if kind == "mtop":
            return make_model(dropout=0.1, prompt_attention="isolated")
        return MTDNNModel.from_backbone(make_encoder(0.1), TASKS_POOLED, max_tokens=16)

    data = make_data(tasks=TASKS if kind == "mtop" else TASKS_POOLED)
    settings, soft = make_settings(checkpoint_steps=5), make_soft()
    undisturbed, resumed = make(), make()
    result = fit(undisturbed, data, settings, soft=soft, save=Checkpoints(tmp_path))
    again = fit(resumed, data, settings, soft=soft, checkpoint=tmp_path / "15")
    assert_identical(weights(resumed), weights(undisturbed))  # type: ignore[arg-type]
    assert again == result
    with pytest.raises(ConfigError, match="soft_labels"):
        fit(make(), data, settings, checkpoint=tmp_path / "15")
