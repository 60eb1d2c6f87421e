"""The kinds of models that MTOP is compared with: what they compute, in how many passes, with how many parameters."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mtop_batch.errors import ConfigError, TaskError
from mtop_batch.labelling.run.predictor import Predictor
from mtop_batch.model.bundle.bundle import load_bundle, save_bundle
from mtop_batch.model.bundle.files import read_bundle_info
from mtop_batch.model.bundle.fingerprints import task_fingerprints, tokenizer_digest, vector_fingerprint
from mtop_batch.model.encoder.inputs import Text, embed, encoder_layers
from mtop_batch.model.kinds.base import MultiTaskModel
from mtop_batch.model.kinds.by_name import KINDS
from mtop_batch.model.kinds.mt_dnn import MTDNNModel
from mtop_batch.model.kinds.p_tuning import PromptedModel
from mtop_batch.model.kinds.single_task import SingleTaskModel
from mtop_batch.model.parts.conditional import AttentionBias
from mtop_batch.tasks import Task
from tests.conftest import make_backbone, make_tokenizer
from tests.model.conftest import Batch
from tests.model.encoder.test_encode import BACKBONES
from tests.model.kinds.kinds import PER_TASK, RIVALS, make_rival, num_parameters, tasks_of
from tests.model.kinds.references import reference_logits


@torch.no_grad()
@pytest.mark.parametrize("kind", RIVALS)
@pytest.mark.parametrize("family", ["electra", "bert", "roberta"])
def test_logits_equal_the_slow_reference(kind: str, family: str, batch: Batch) -> None:
    torch.manual_seed(0)
    model = make_rival(kind, backbone=BACKBONES[family]().eval())
    logits = model(**batch).logits
    for i, task in enumerate(model.tasks):
        for row, length in enumerate(batch["attention_mask"].sum(dim=1)):
            expected = reference_logits(model, batch["input_ids"][row, :length], task.name)
            torch.testing.assert_close(logits[row, i, : task.num_outputs], expected, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("kind", RIVALS)
def test_all_tasks_at_once_equal_each_task_alone(kind: str, batch: Batch) -> None:
    model = make_rival(kind)
    together = model.all_tasks(**batch, tasks=["mood", "sport"])
    assert together.shape == (3, 2, 3)
    for i, name in enumerate(["mood", "sport"]):
        alone = model(**batch, task=name).logits
        torch.testing.assert_close(together[:, i, : alone.shape[1]], alone, atol=1e-6, rtol=0)
    assert (together[:, 1, 2] == -torch.inf).all()


@torch.no_grad()
@pytest.mark.parametrize("kind", RIVALS)
def test_a_task_does_not_depend_on_which_others_are_asked_for(kind: str, batch: Batch) -> None:
    model = make_rival(kind)
    torch.testing.assert_close(model.all_tasks(**batch)[:, [1]], model.all_tasks(**batch, tasks=["mood"]))


@torch.no_grad()
@pytest.mark.parametrize(("kind", "passes"), [("mt-dnn", 1), *((kind, 3) for kind in PER_TASK)])
def test_as_many_passes_are_made_as_are_counted(kind: str, passes: int, batch: Batch) -> None:
    model = make_rival(kind)
    rows_read: list[int] = []
    for encoder in model.encoders:
        first: Any = encoder
        first.embeddings.LayerNorm.register_forward_hook(lambda _, args, __: rows_read.append(len(args[0])))
    model(**batch)
    assert rows_read == [3] * passes
    assert model.passes(model.task_names) == passes
    assert model.passes(["mood"]) == 1


@pytest.mark.parametrize("kind", RIVALS)
def test_a_step_moves_the_tasks_own_parameters_and_what_all_share(kind: str, batch: Batch) -> None:
    model = make_rival(kind).train()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    model(**batch, task="mood", labels=torch.tensor([0, 1, 2])).loss.backward()
    own = {id(parameter) for parameter in model.task_parameters("mood")}
    others = {id(p) for name in ("sport", "length") for p in model.task_parameters(name)}
    for name, parameter in model.named_parameters():
        if id(parameter) in others:
            assert parameter.grad is None, name
        elif id(parameter) in own:
            assert parameter.grad is not None, name
        assert torch.equal(parameter, before[name])


L, D, E, V_D = 2, 32, 16, 2 * 32
"""Layers, hidden width, embedding width, and the width of a key and a value of the tiny ELECTRA."""
POOLER = D * D + D


def film(size: int) -> int:
    return D * 2 * size + 2 * size


# What a task adds, per the papers: heads have no bias, as in equation 2.
OWN = {
    "mt-dnn": lambda c: c * D,
    "single-task": lambda c: c * D + POOLER + num_parameters(make_backbone()),
    "p-tuning": lambda c: c * D + 2 * E,
    "p-tuning-v2": lambda c: c * D + 8 * L * V_D,
    "ca-mtl": lambda c: c * D + D,
}
# 16 positions in blocks of 8: alignment, z, M and R in both layers; norms and bottleneck (D // 3 = 10) in the upper.
BOTTLENECK = (D * D + D) + film(D) + (10 * D + 10) + (10 * D + D) + 2 * D + film(D)
SHARED = {
    "mt-dnn": POOLER,
    "single-task": 0,
    "p-tuning": POOLER,
    "p-tuning-v2": POOLER,
    "ca-mtl": POOLER + film(D) + D * D + D + 2 * (film(8) + 16 * 8) + 2 * film(D) + BOTTLENECK,
}


@pytest.mark.parametrize("kind", RIVALS)
def test_it_has_as_many_parameters_as_the_papers_count(kind: str) -> None:
    model = make_rival(kind)
    encoder = 0 if kind == "single-task" else num_parameters(make_backbone())
    own = [OWN[kind](task.num_outputs) for task in model.tasks]
    assert [sum(p.numel() for p in model.task_parameters(name)) for name in model.task_names] == own
    assert num_parameters(model) == encoder + SHARED[kind] + sum(own)


@pytest.mark.parametrize("kind", RIVALS)
@pytest.mark.parametrize("names", [("sport", "mood"), ("mood",)])
def test_its_operations_are_counted(kind: str, names: tuple[str, ...]) -> None:
    model = make_rival(kind, max_tokens=60).requires_grad_(False)
    text = Text(torch.full((60, 20), 5), None, None)
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.outputs(names, text, vectors=False)
    cost = model.forward_flops(names)(np.full(60, 20))
    assert cost == pytest.approx(counter.get_total_flops(), rel=0.02)


@torch.no_grad()
@pytest.mark.parametrize("kind", RIVALS)
def test_it_comes_back_from_a_bundle_and_labels_texts(kind: str, batch: Batch, tmp_path: Path) -> None:
    model, uri = make_rival(kind), str(tmp_path / "bundle")
    save_bundle(uri, model, make_tokenizer(), metrics={}, training_config={}, backbone_name="tiny")
    bundle = load_bundle(uri)
    assert torch.equal(bundle.model.all_tasks(**batch), model.all_tasks(**batch))
    assert bundle.fingerprints == task_fingerprints(bundle.model, tokenizer_digest(bundle.tokenizer))
    info = read_bundle_info(uri)
    assert (info.kind, info.passes.per_task) == (kind, kind in PER_TASK)
    texts = ["bank market", " ", "the law wins a match"]
    table = Predictor(bundle.model, bundle.tokenizer, device="cpu", precision="fp32").predict(texts)
    assert table["error"].to_pylist() == [None, "text is empty", None]
    inputs = make_tokenizer()(texts[2], return_tensors="pt")
    logits = model(inputs["input_ids"], task="mood").logits[0]
    assert table["mood_label"][2].as_py() == ("sad", "calm", "glad")[int(logits.argmax())]
    assert table["mood_score"][2].as_py() == pytest.approx(float(logits.softmax(0).max()), abs=1e-5)
    rough = Predictor(bundle.model, bundle.tokenizer, device="cpu", precision="bf16").predict(texts)
    assert rough["length_score"][2].as_py() == pytest.approx(table["length_score"][2].as_py(), abs=0.1)


def changed(model: MultiTaskModel, change: Callable[[], object]) -> set[str]:
    """The tasks whose fingerprints a change changes."""
    before = task_fingerprints(model, "t")
    with torch.no_grad():
        change()
    after = task_fingerprints(model, "t")
    return {name for name in before if before[name] != after[name]}


@pytest.mark.parametrize("kind", RIVALS)
def test_a_fingerprint_covers_what_decides_the_tasks_outputs(kind: str, batch: Batch) -> None:
    """Each parameter in turn: the tasks whose outputs it changes are those whose fingerprints it changes."""
    torch.manual_seed(0)
    model, generator = make_rival(kind, backbone=BACKBONES["bert"]().eval()), torch.Generator().manual_seed(2)
    with torch.no_grad():
        before = model.all_tasks(**batch)
        # One of all that are alike, for they are many.
        for name in {re.sub(r"\d+", "#", name): name for name, _ in model.named_parameters()}.values():
            parameter = model.get_parameter(name)
            kept, noise = parameter.clone(), torch.randn(parameter.shape, generator=generator)
            told = changed(model, lambda p=parameter, n=noise: p.add_(n))  # type: ignore[misc]
            outputs = model.all_tasks(**batch)
            moved = {task for i, task in enumerate(model.task_names) if differs(outputs[:, i], before[:, i])}
            assert moved <= told, name
            assert moved == told or name.endswith("key.bias"), name  # on which attention hardly depends
            parameter.copy_(kept)


def differs(outputs: Tensor, before: Tensor) -> bool:
    return not torch.allclose(outputs.nan_to_num(neginf=0), before.nan_to_num(neginf=0), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", RIVALS)
def test_training_settings_leave_fingerprints_alone_and_kinds_have_their_own(kind: str) -> None:
    model, other = make_rival(kind, dropout=0.0), make_rival(kind, dropout=0.3)
    assert task_fingerprints(model, "t") == task_fingerprints(other, "t")
    assert task_fingerprints(model, "t") != task_fingerprints(model, "another tokenizer")
    assert bool(vector_fingerprint(model, "t")) == (kind == "mt-dnn")
    settings = model.task_settings("mood")
    assert settings == {"model_kind": kind}


def test_the_encoder_of_another_task_is_none_of_a_single_tasks_business() -> None:
    model = cast(SingleTaskModel, make_rival("single-task"))
    assert changed(model, lambda: model.model_of("mood").word_embeddings.weight.mul_(2)) == {"mood"}
    assert changed(model, lambda: model.load_task("sport", make_one_task("sport").state_dict())) == {"sport"}


def make_one_task(name: str) -> MTDNNModel:
    return MTDNNModel.from_backbone(make_backbone(7), [Task(name, reads="pooled")], max_tokens=16, seed=7)


@torch.no_grad()
@pytest.mark.parametrize("kind", PER_TASK)
def test_there_is_no_document_vector_where_each_task_reads_the_text_itself(kind: str, batch: Batch) -> None:
    model = make_rival(kind)
    message = f"a '{kind}' model reads a text once for each task, so there is no document vector"
    with pytest.raises(ConfigError, match=message):
        model.all_tasks_and_vectors(**batch)
    with pytest.raises(ConfigError, match=message):
        Predictor(model, make_tokenizer(), device="cpu", vectors=True)


@torch.no_grad()
def test_mt_dnn_gives_document_vectors_by_the_same_pass(batch: Batch) -> None:
    model = make_rival("mt-dnn")
    logits, vectors = model.all_tasks_and_vectors(**batch)
    torch.testing.assert_close(logits, model.all_tasks(**batch))
    assert vectors.shape == (3, 32)
    torch.testing.assert_close(vectors.float().norm(dim=1), torch.ones(3), atol=1e-3, rtol=0)
    assert model.all_tasks_and_vectors(**batch, tasks=[])[0].shape == (3, 0, 0)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["p-tuning", "p-tuning-v2"])
@pytest.mark.parametrize("family", ["albert", "bert", "distilbert", "electra", "roberta"])
def test_a_task_reads_its_own_prompts_in_every_family(kind: str, family: str, batch: Batch) -> None:
    torch.manual_seed(0)
    model = cast(PromptedModel, make_rival(kind, backbone=BACKBONES[family]().eval()))
    before = model.all_tasks(**batch)
    model.prompts("mood")[-1].mul_(-2)
    after = model.all_tasks(**batch)
    assert [differs(after[:, i], before[:, i]) for i in range(3)] == [False, True, False]


@torch.no_grad()
@pytest.mark.parametrize("kind", RIVALS)
@pytest.mark.parametrize("family", ["bert", "electra", "modernbert"])
def test_what_stands_at_padding_changes_nothing_in_training_too(kind: str, family: str, batch: Batch) -> None:
    if family == "modernbert" and kind in ("p-tuning-v2", "ca-mtl"):
        pytest.skip("refused")
    torch.manual_seed(0)
    backbone = BACKBONES[family]()
    for part in backbone.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    off: dict[str, Any] = {"dropout": 0.0, **({"prompt_dropout": 0.0} if kind == "p-tuning-v2" else {})}
    model = make_rival(kind, backbone=backbone.eval(), **off)
    expected = model(**batch, task="mood").logits
    torch.testing.assert_close(model.train()(**batch, task="mood").logits, expected, atol=1e-5, rtol=0)
    for row, length in enumerate(batch["attention_mask"].sum(dim=1)):
        alone = model(batch["input_ids"][[row], :length], task="mood").logits
        torch.testing.assert_close(alone, expected[[row]], atol=1e-5, rtol=0)


@torch.no_grad()
def test_prompts_may_begin_as_tokens() -> None:
    ids = torch.tensor([7, 9, 7, 8, 30, 31, 32, 33])
    short = cast(PromptedModel, make_rival("p-tuning"))
    short.start_from_tokens("mood", ids[:2])
    assert torch.equal(short.prompts("mood"), short.word_embeddings.weight[ids[:2]])
    deep = cast(PromptedModel, make_rival("p-tuning-v2"))
    deep.start_from_tokens("mood", ids)
    layers: Any = encoder_layers(deep.backbone)
    attention, embedded = layers[0].attention.self, embed(deep.backbone, {"input_ids": ids[None]})[0]
    first = torch.cat([attention.key(embedded), attention.value(embedded)], dim=1)
    torch.testing.assert_close(deep.prompts("mood")[:, :64], first)


@torch.no_grad()
def test_the_top_layer_of_ca_mtl_begins_anew_unless_it_is_to_stay() -> None:
    old: Any = encoder_layers(make_backbone())
    kept, new = (
        cast(Any, encoder_layers(make_rival("ca-mtl", pretrained_top=pretrained).backbone))
        for pretrained in (True, False)
    )
    for name, value in old[1].state_dict().items():
        assert torch.equal(kept[1].state_dict()[name], value)
    assert torch.equal(new[0].output.dense.weight, old[0].output.dense.weight)
    assert not torch.equal(new[1].output.dense.weight, old[1].output.dense.weight)
    assert float(new[1].output.dense.weight.std()) == pytest.approx(0.02, rel=0.1)


@torch.no_grad()
@pytest.mark.parametrize(("width", "max_tokens", "size"), [(768, 128, 22), (384, 128, 43), (32, 64, 64), (64, 16, 4)])
def test_conditional_attention_is_block_diagonal(width: int, max_tokens: int, size: int) -> None:
    bias = AttentionBias(width, max_tokens)
    bias.rows.fill_(1)
    z = torch.zeros(width)
    bias.film.scale_and_shift.bias.zero_()
    place = torch.arange(max_tokens) // size
    for num_tokens in (1, max_tokens // 2, max_tokens):
        expected = (place[:num_tokens, None] == place[:num_tokens]).float()
        assert torch.equal(bias(z, num_tokens), expected)


@pytest.mark.parametrize("kind", RIVALS)
def test_a_task_starts_the_same_whatever_the_others(kind: str) -> None:
    many, one = (KINDS[kind].from_backbone(make_backbone(), tasks, max_tokens=16) for tasks in some_tasks(kind))
    other = KINDS[kind].from_backbone(make_backbone(), some_tasks(kind)[1], max_tokens=16, seed=1)
    for name, tensor in one.task_tensors("mood").items():
        assert torch.equal(tensor, many.task_tensors("mood")[name])
    assert not torch.equal(one.task_tensors("mood")["head.weight"], other.task_tensors("mood")["head.weight"])


def some_tasks(kind: str) -> tuple[tuple[Task, ...], tuple[Task, ...]]:
    return tasks_of(kind), tasks_of(kind)[1:2]


@pytest.mark.parametrize("kind", RIVALS)
def test_what_it_cannot_do_is_refused(kind: str, batch: Batch) -> None:
    model = make_rival(kind)
    with pytest.raises(TaskError, match="there is no task 'moood'; did you mean 'mood'"):
        model(**batch, task="moood")
    with pytest.raises(TaskError, match="there is no task 'moood'"):
        model.all_tasks(**batch, tasks=["moood"])
    with pytest.raises(TaskError, match="no task is given"):
        KINDS[kind].from_backbone(make_backbone(), ())
    with pytest.raises(TaskError, match=f"reads = 'vector' is not what a '{kind}' model has; allowed: p"):
        KINDS[kind].from_backbone(make_backbone(), [Task("sport", reads="vector")])
    with pytest.raises(TaskError, match="two tasks are called 'a' and 'A'"):
        KINDS[kind].from_backbone(make_backbone(), [Task(name, reads=tasks_of(kind)[0].reads) for name in "aA"])


@pytest.mark.parametrize(
    ("kind", "family"),
    [("p-tuning-v2", "modernbert"), *(("ca-mtl", f) for f in ("albert", "distilbert", "modernbert"))],
)
def test_encoders_that_a_kind_cannot_work_with_are_refused(kind: str, family: str) -> None:
    with pytest.raises(ConfigError, match=f"model.kind = '{kind}' cannot work with .*; choose an encoder such as BERT"):
        make_rival(kind, backbone=BACKBONES[family]().eval())


def test_a_prefix_cannot_be_read_when_layers_run_again_for_their_gradients(batch: Batch) -> None:
    model = make_rival("p-tuning-v2").train()
    model.gradient_checkpointing_enable()
    with pytest.raises(ConfigError, match="has no KV cache, which a prefix needs: turn off gradient checkpointing"):
        model(**batch, task="mood")
