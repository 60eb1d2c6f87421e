"""Tasks of MTOP that read the text itself: by attention, or at the first token."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mtop_batch.errors import TaskError
from mtop_batch.model.bundle.fingerprints import task_fingerprints
from mtop_batch.model.encoder.inputs import Text
from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.tasks import Task
from tests.model.conftest import TASKS, Batch, MakeModel

READING = (
    Task("narrow", labels=("a", "b", "c"), reads="attention"),
    Task("wide", labels=tuple("abcde"), reads="attention"),
    Task("first", reads="pooled"),
    Task("number", "regression", (), reads="attention", mean=3.0, std=2.0),
)


def make_mixed(make_model: MakeModel, attention: str) -> MTOPModel:
    model = make_model(prompt_attention=attention)
    model.add_tasks(READING, attention_widths={"wide": 8}, attention_heads=2)
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize("attention", ["joint", "isolated"])
def test_all_tasks_at_once_equal_each_task_alone(make_model: MakeModel, batch: Batch, attention: str) -> None:
    model = make_mixed(make_model, attention)
    wanted = ["wide", TASKS[0].name, "number", "first", "narrow"]
    together = model.all_tasks(**batch, tasks=wanted)
    for place, name in enumerate(wanted):
        alone = model(**batch, task=name).logits
        torch.testing.assert_close(together[:, place, : alone.shape[1]], alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["joint", "isolated"])
def test_outputs_do_not_depend_on_padding(make_model: MakeModel, batch: Batch, attention: str) -> None:
    model = make_mixed(make_model, attention)
    together = model.all_tasks(**batch)
    for row, length in enumerate(batch["attention_mask"].sum(dim=1)):
        alone = model.all_tasks(batch["input_ids"][row : row + 1, :length])
        torch.testing.assert_close(alone[0], together[row], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_they_change_nothing_of_the_tasks_that_were_there(make_model: MakeModel, batch: Batch) -> None:
    model = make_model(prompt_attention="isolated").eval()
    names = model.task_names
    before, known = model.all_tasks(**batch), task_fingerprints(model, "")
    model.add_tasks(READING)
    assert torch.equal(model.all_tasks(**batch, tasks=names), before)
    assert {name: value for name, value in task_fingerprints(model, "").items() if name in names} == known
    model.drop_tasks(["wide"])
    assert model.task_names == [*names, "narrow", "first", "number"]


def test_a_fingerprint_knows_how_a_task_attends(make_model: MakeModel) -> None:
    found = []
    for heads in (2, 4):
        model = make_model(prompt_attention="isolated")
        model.add_tasks(READING[:1], attention_widths={"narrow": 8}, attention_heads=heads)
        found.append(task_fingerprints(model, ""))
    assert found[0]["narrow"] != found[1]["narrow"]
    assert all(found[0][task.name] == found[1][task.name] for task in TASKS)


def test_a_step_moves_the_task_and_the_encoder_and_no_other_task(make_model: MakeModel, batch: Batch) -> None:
    model = make_mixed(make_model, "isolated").train()
    model(**batch, task="narrow", labels=torch.zeros(len(batch["input_ids"]), dtype=torch.long)).loss.backward()
    moved = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert any(name.startswith("backbone.encoder.layer.0.") for name in moved)
    own = {name for name in moved if not name.startswith("backbone.")}
    assert own == {name for name, _ in model.named_parameters() if name.startswith("task_modules.task_narrow.")}


@torch.no_grad()
def test_a_saved_model_is_the_same(make_model: MakeModel, batch: Batch, tmp_path: Path) -> None:
    model = make_mixed(make_model, "isolated")
    model.save_pretrained(tmp_path)
    again = MTOPModel.from_pretrained(tmp_path).eval()
    assert torch.equal(again.all_tasks(**batch), model.all_tasks(**batch))


def test_a_model_of_such_tasks_alone_has_no_prompts(make_model: MakeModel, batch: Batch) -> None:
    model = make_model(tasks=READING, prompt_attention="isolated").eval()
    assert model.num_positions(model.task_names) == 0
    assert model.all_tasks(**batch).shape[1] == len(READING)
    assert not model.has_fixed_cache(["narrow"])
    with pytest.raises(TaskError, match="no prompts"):
        model.prompts("narrow")
    with pytest.raises(TaskError, match="reads more than the KV cache"):
        model.cached_logits("first", model.cache(**batch))
    with torch.no_grad():
        text = Text(batch["input_ids"], batch["attention_mask"], None)
        torch.testing.assert_close(model.task_logits("first", text), model(**batch, task="first").logits)


def test_their_operations_are_counted(make_model: MakeModel) -> None:
    """For T tokens: 2 T (D W + 3 W^2) + 4 T^2 W + 2 (W^2 + W C), and nothing of the encoder's is less."""
    model = make_model(tasks=[Task("first", reads="pooled")], prompt_attention="isolated")
    plain = model.forward_flops(["first"])(np.array([5, 7]))
    model.add_tasks(READING[:1], attention_widths={"narrow": 8}, attention_heads=2)
    width, hidden = 8, model.backbone.config.hidden_size
    expected = sum(
        2 * tokens * (hidden * width + 3 * width**2) + 4 * tokens**2 * width + 2 * (width**2 + width * 3)
        for tokens in (5, 7)
    )
    assert model.forward_flops(["first", "narrow"])(np.array([5, 7])) == pytest.approx(plain + expected)
