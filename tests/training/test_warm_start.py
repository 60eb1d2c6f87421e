from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from mtop_batch.config.sections import Config
from mtop_batch.errors import ConfigError, TaskError
from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.tasks import Task
from mtop_batch.training.evaluation.evaluate import evaluate
from mtop_batch.training.settings import TaskData, TrainSettings
from mtop_batch.training.single_task import train_single_task
from mtop_batch.training.start import all_tasks_settings
from mtop_batch.training.warm_start import initialise
from tests.training.toy import TASKS, make_data, make_encoder, make_model, make_settings

KEYS = ("prompts", "pooler.weight", "pooler.bias", "head.weight")


def start_of(backbone: PreTrainedModel, data: TaskData, prompt_group: str | None = None, **options: Any) -> MTOPModel:
    """What the warm start of a task begins with."""
    model = MTOPModel.without_tasks(backbone, max_tokens=16, **options)
    model.add_tasks([data.task], prompt_groups={} if prompt_group is None else {data.task.name: prompt_group})
    return model


def warm_up(settings: TrainSettings, **options: Any) -> dict[str, dict[str, Tensor]]:
    """A warm start of both tasks."""
    return {
        data.task.name: train_single_task(start_of(make_encoder(), data, **options), data, settings).tensors
        for data in make_data()
    }


@pytest.fixture(scope="module")
def warm() -> dict[str, dict[str, Tensor]]:
    """A short warm start of both tasks, for isolated prompts."""
    return warm_up(make_settings(epochs=20, learning_rate=1e-2, evaluate=False), prompt_attention="isolated")


def test_the_backbone_stays_bit_by_bit() -> None:
    backbone = make_encoder()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    data = make_data()[0]
    train_single_task(start_of(backbone, data), data, make_settings(epochs=1))
    torch.testing.assert_close(dict(backbone.state_dict()), before, rtol=0, atol=0)
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


def test_prompts_pooler_and_head_all_train(warm: dict[str, dict[str, Tensor]]) -> None:
    fresh = make_model()
    for name, tensors in warm.items():
        assert tuple(tensors) == KEYS
        assert all(not torch.equal(tensors[key], fresh.task_tensors(name)[key]) for key in KEYS)


def test_a_warm_start_begins_with_a_lower_loss(warm: dict[str, dict[str, Tensor]]) -> None:
    cold, started = make_model(prompt_attention="isolated"), make_model(prompt_attention="isolated")
    initialise(started, prompt_init="single-task", pooler_init="single-task", warm=warm)
    before, after = (evaluate(model, make_data()) for model in (cold, started))
    assert all(after[task.name]["loss"] < 0.7 * before[task.name]["loss"] for task in TASKS)


def test_prompts_and_poolers_begin_independently_and_heads_go_with_poolers(
    warm: dict[str, dict[str, Tensor]],
) -> None:
    fresh = make_model()
    for prompt_init, pooler_init in (("single-task", "random"), ("random", "single-task"), ("random", "random")):
        model = make_model()
        initialise(model, prompt_init=prompt_init, pooler_init=pooler_init, warm=warm)  # type: ignore[arg-type]
        for name, tensors in warm.items():
            for key in KEYS:
                chosen = prompt_init if key == "prompts" else pooler_init
                expected = tensors[key] if chosen == "single-task" else fresh.task_tensors(name)[key]
                assert torch.equal(model.task_tensors(name)[key], expected)


def test_prompts_can_begin_as_frequent_tokens() -> None:
    model, counts = make_model(), np.zeros(make_encoder().config.vocab_size, dtype=np.int64)
    counts[[2, 30, 41, 52]] = [100, 5, 7, 9]
    initialise(model, prompt_init="token", pooler_init="random", token_counts=counts, special_ids=(2,), seed=3)
    allowed = model.word_embeddings.weight[[30, 41, 52]]
    for name in model.task_names:
        for prompt in model.task_tensors(name)["prompts"]:
            assert (prompt == allowed).all(dim=1).any()


def test_prompts_can_begin_as_the_embedding_of_cls_and_poolers_as_the_identity() -> None:
    model, fresh = make_model(), make_model()
    initialise(model, prompt_init="cls", pooler_init="identity", cls_id=7)
    for name in model.task_names:
        own, drawn = model.task_tensors(name), fresh.task_tensors(name)
        torch.testing.assert_close(own["prompts"], model.word_embeddings.weight[7] + drawn["prompts"])
        assert not torch.equal(own["prompts"][0], own["prompts"][1])
        assert torch.equal(own["pooler.weight"], torch.eye(32))
        assert not own["pooler.bias"].any()
        assert torch.equal(own["head.weight"], drawn["head.weight"])


def test_prompts_begin_at_random_where_the_tokenizer_has_no_cls() -> None:
    model, fresh = make_model(), make_model()
    initialise(model, prompt_init="cls", pooler_init="random")
    assert torch.equal(model.prompts("sport"), fresh.prompts("sport"))


def test_poolers_of_a_low_rank_begin_as_a_projection() -> None:
    model = make_model(pooler_rank=3)
    initialise(model, prompt_init="random", pooler_init="identity")
    tensors = model.task_tensors("sport")
    kernel = tensors["pooler.up.weight"] @ tensors["pooler.down.weight"]
    torch.testing.assert_close(kernel @ kernel, kernel, atol=1e-5, rtol=0)
    assert torch.linalg.matrix_rank(kernel) == 3


def test_an_added_task_can_begin_with_the_identity() -> None:
    model, drawn = make_model(), make_model()
    new = Task("weather")
    model.add_tasks([new], pooler_init="identity")
    drawn.add_tasks([new])
    expected = {**drawn.task_tensors("weather"), "pooler.weight": torch.eye(32)}
    torch.testing.assert_close(model.task_tensors("weather"), expected, rtol=0, atol=0)


def test_tasks_without_prompts_hand_on_what_they_read_too() -> None:
    model = make_model()
    model.add_tasks([Task("weather", reads="pooled"), Task("length", reads="attention")])
    before = model.task_tensors("length")
    initialise(model, prompt_init="cls", pooler_init="identity", cls_id=7)
    assert torch.equal(model.task_tensors("weather")["pooler.weight"], torch.eye(32))
    torch.testing.assert_close(model.task_tensors("length"), before, rtol=0, atol=0)


def test_a_group_begins_as_cls_once() -> None:
    grouped, own = make_model(prompt_groups={"sport": "a", "mood": "a"}), make_model()
    for model in (grouped, own):
        initialise(model, prompt_init="cls", pooler_init="random", cls_id=7)
    noise = grouped.prompts("mood") - grouped.word_embeddings.weight[7]
    assert noise.abs().max() <= 0.04 + 1e-6


def test_prompts_of_a_group_begin_as_the_mean_of_its_tasks(warm: dict[str, dict[str, Tensor]]) -> None:
    model = make_model(prompt_groups={"sport": "a", "mood": "a"})
    initialise(model, prompt_init="single-task", pooler_init="single-task", warm=warm)
    mean = (warm["sport"]["prompts"] + warm["mood"]["prompts"]) / 2
    for name, tensors in warm.items():
        torch.testing.assert_close(model.task_tensors(name), {**tensors, "prompts": mean})


def test_tasks_of_a_group_warm_up_from_the_same_prompts_and_with_poolers_of_the_models_rank() -> None:
    settings, groups = make_settings(epochs=1, learning_rate=1e-9, evaluate=False), {"sport": "a", "mood": "a"}
    warm = warm_up(settings, prompt_group="a", pooler_rank=3)
    torch.testing.assert_close(warm["sport"]["prompts"], warm["mood"]["prompts"], atol=1e-6, rtol=0)
    model = make_model(prompt_groups=groups, pooler_rank=3)
    initialise(model, prompt_init="single-task", pooler_init="single-task", warm=warm)
    assert torch.equal(model.task_tensors("mood")["pooler.down.weight"], warm["mood"]["pooler.down.weight"])


def test_a_group_draws_its_tokens_once() -> None:
    counts = np.ones(make_encoder().config.vocab_size, dtype=np.int64)
    grouped, own = make_model(prompt_groups={"sport": "a", "mood": "a"}), make_model()
    for model in (grouped, own):
        initialise(model, prompt_init="token", pooler_init="random", token_counts=counts, seed=3)
    assert torch.equal(grouped.prompts("mood"), own.prompts("sport"))


def test_what_an_initialisation_needs_must_be_given(warm: dict[str, dict[str, Tensor]]) -> None:
    with pytest.raises(ConfigError, match="lacks a warm start of tasks mood; train them with train_single_task"):
        initialise(make_model(), prompt_init="random", pooler_init="single-task", warm={"sport": warm["sport"]})
    with pytest.raises(ConfigError, match="needs the token counts of the training data"):
        initialise(make_model(), prompt_init="token", pooler_init="random")


@pytest.mark.parametrize(
    ("model", "train", "expected"),
    [
        ({}, {"learning_rate": 1e-5}, 1e-4),
        ({}, {"learning_rate": 5e-4}, 1e-3),
        ({}, {"learning_rate": 2e-3}, 2e-3),
        ({}, {"learning_rate": 1e-5, "head_learning_rate": 3e-5}, 3e-5),
        ({"pooler_init": "single-task"}, {"learning_rate": 1e-5}, None),
        ({"kind": "mt-dnn"}, {"learning_rate": 1e-5}, None),
    ],
)
def test_heads_that_begin_at_random_have_a_higher_rate_of_their_own(
    model: dict[str, Any], train: dict[str, Any], expected: float | None
) -> None:
    task = {"name": "sport", "labels": ["no", "yes"], "train": "a.parquet", "eval": "b.parquet"}
    values = {"output": "o", "backbone": {"name": "b"}, "model": model, "train": train, "task": [task]}
    settings = all_tasks_settings(Config.model_validate(values), evaluate=True)
    assert settings.head_learning_rate == (None if expected is None else pytest.approx(expected))


def test_a_warm_start_of_another_shape_is_refused(warm: dict[str, dict[str, Tensor]]) -> None:
    longer = {name: {**tensors, "prompts": torch.zeros(3, 16)} for name, tensors in warm.items()}
    with pytest.raises(TaskError, match=r"task 'sport' cannot take 'prompts' of shape \(3, 16\)"):
        initialise(make_model(), prompt_init="single-task", pooler_init="random", warm=longer)
