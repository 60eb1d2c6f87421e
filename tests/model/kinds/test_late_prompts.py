"""Prompts that enter at the last layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtop_batch.config.model import MTOPModelConfig
from mtop_batch.errors import ConfigError
from mtop_batch.model.bundle.fingerprints import task_fingerprints
from mtop_batch.model.encoder.encode import encode
from mtop_batch.model.encoder.inputs import embed, encoder_layers, only_last_layers, prompts_of
from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.tasks import Task
from tests.model.conftest import Batch, enlarge
from tests.training.toy import make_encoder

TASKS = (Task("topic", labels=("sport", "film", "money")), Task("mood"))


def late(prompt_layers: int, **options: Any) -> MTOPModel:
    model = MTOPModel.from_backbone(make_encoder(), TASKS, prompt_layers=prompt_layers, max_tokens=40, **options)
    enlarge(model)
    return model


@torch.no_grad()
def reference(model: MTOPModel, batch: Batch, task: str) -> Tensor:
    """The logits of a task by the plain layers: a text alone, then its top layer once more with prompts beside it."""
    backbone: Any = model.backbone
    found = []
    for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
        text = ids[: int(mask.sum())][None]
        below = backbone(text, output_hidden_states=True).hidden_states[-2]
        embedded, positions = prompts_of(backbone, model.prompts(task), 1)
        prompts = embed(backbone, {"inputs_embeds": embedded, "position_ids": positions})
        top: nn.Module = backbone.encoder.layer[-1]
        outputs = top(torch.cat([below, prompts], dim=1))
        outputs = outputs[0] if isinstance(outputs, tuple) else outputs
        found.append(model.task_module(task)(outputs[:, text.shape[1] :]))
    return torch.cat(found)


@torch.no_grad()
def test_late_prompts_read_the_text_in_the_top_layer(batch: Batch) -> None:
    model = late(1)
    for place, task in enumerate(TASKS):
        expected = reference(model, batch, task.name)
        for found in (
            model(**batch, task=task.name).logits,
            model.all_tasks(**batch)[:, place, : task.num_outputs],
            model(kv_cache=model.cache(**batch), task=task.name).logits,
        ):
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert len(model.cache(**batch).key_values) == 1


@torch.no_grad()
def test_the_number_of_layers_decides_what_prompts_say_and_all_of_them_are_the_default(batch: Batch) -> None:
    by_layers = {layers: late(layers).all_tasks(**batch).nan_to_num(neginf=0) for layers in (0, 1, 2)}
    torch.testing.assert_close(by_layers[0], by_layers[2], rtol=0, atol=0)
    assert (by_layers[0] - by_layers[1]).abs().max() > 1e-3
    assert task_fingerprints(late(0), "") != task_fingerprints(late(1), "")


@torch.no_grad()
def test_the_text_and_the_encoder_stay_as_they_are(batch: Batch) -> None:
    model = late(1, prompt_groups={"topic": "a", "mood": "a"})
    _, before = encode(model.backbone, model.prompts("topic")[:0], **batch)
    model.all_tasks(**batch)
    layers = encoder_layers(model.backbone)

    def fail() -> None:
        with only_last_layers(model.backbone, 1):
            assert [*encoder_layers(model.backbone)] == [layers[1]]
            raise ValueError

    with pytest.raises(ValueError, match=r"^$"):
        fail()
    assert encoder_layers(model.backbone) is layers
    _, after = encode(model.backbone, model.prompts("topic")[:0], **batch)
    torch.testing.assert_close(before, after, rtol=0, atol=0)


def test_a_step_moves_the_prompts_and_the_whole_encoder(batch: Batch) -> None:
    model = late(1).train()
    model(**batch, task="topic", labels=torch.tensor([0, 1, 2])).loss.backward()
    assert model.prompts("topic").grad is not None
    assert model.prompts("mood").grad is None
    assert all(parameter.grad is not None for parameter in encoder_layers(model.backbone)[0].parameters())


@torch.no_grad()
def test_added_tasks_have_late_prompts_too(batch: Batch) -> None:
    model = late(1)
    before = model.all_tasks(**batch)
    model.add_tasks([Task("new")], lora_rank=2)
    enlarge(model, ["new"])
    torch.testing.assert_close(model.all_tasks(**batch)[:, :2], before, rtol=0, atol=0)
    torch.testing.assert_close(model(**batch, task="new").logits, model.all_tasks(**batch)[:, 2, :2], atol=1e-5, rtol=0)


def test_flops_count_the_layers_that_prompts_go_through() -> None:
    flops = {layers: late(layers).forward_flops(["topic", "mood"]) for layers in (0, 1)}
    assert (flops[0].num_reading_prompts, flops[1].num_reading_prompts) == (4, 2)


def test_layers_that_are_not_there_and_joint_prompts_are_refused() -> None:
    with pytest.raises(
        ConfigError, match="prompt_layers = 3 is more than the layers of ElectraModel; allowed: up to 2"
    ):
        late(3)
    with pytest.raises(ConfigError, match="prompts that the text does not see"):
        late(1, prompt_attention="joint")
    with pytest.raises(ValueError, match='set prompt_attention = "isolated"'):
        MTOPModelConfig.model_validate({"prompt_layers": 1, "shared_prompts": 1})
