"""Families of tasks: each has an encoder of its own, which shares its lower layers with all others."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mtop_batch.errors import ConfigError, TaskError
from mtop_batch.families import EncoderPasses, Family
from mtop_batch.model.bundle.fingerprints import task_fingerprints, vector_fingerprint
from mtop_batch.model.encoder import fused, ragged
from mtop_batch.model.encoder.inputs import Text, encoder_layers
from mtop_batch.model.encoder.kv_cache import use_kv_cache_attention
from mtop_batch.model.encoder.lora import lora_layers
from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.model.precision import with_bf16_encoder
from mtop_batch.tasks import Task
from tests.conftest import make_backbone
from tests.model.conftest import Batch, enlarge
from tests.model.encoder.test_encode import BACKBONES, modernbert
from tests.model.encoder.test_packed_attention import attention as sums_of_attention

ENTITIES, TOPICS = Family("entities", rank=2, alpha=3.0, layers=1), Family("topics", rank=3, layers=2)
TASKS = (
    Task("mood", labels=("bad", "fair", "good")),
    Task("names", "token", ("PER", "LOC")),
    Task("sport"),
    Task("length", "regression", ()),
    Task("about", labels=tuple("abcd"), reads="attention"),
    Task("first", reads="pooled"),
    Task("style"),
)
FAMILY_OF = {"names": "entities", "length": "entities", "sport": "topics", "about": "topics", "first": "topics"}
NAMES = [task.name for task in TASKS]


def make_model(attention: Any = "isolated", backbone: Any = None, **settings: Any) -> MTOPModel:
    """A model with two families, of one and of two of the encoder's layers, and tasks of no family."""
    backbone = make_backbone() if backbone is None else backbone
    given: dict[str, Any] = {"families": [ENTITIES, TOPICS], "family_of": FAMILY_OF, "max_tokens": 40, **settings}
    model = MTOPModel.from_backbone(backbone, TASKS, prompt_attention=attention, shared_prompts=1, **given)
    enlarge(model)
    enlarge_families(model)
    return model


@torch.no_grad()
def enlarge_families(model: MTOPModel) -> None:
    """LoRA that starts at zero shows nothing."""
    generator = torch.Generator().manual_seed(3)
    for family in model.task_families:
        tensors = model.family_tensors(family.name)
        model.load_family(
            family.name, {name: torch.randn(value.shape, generator=generator) / 4 for name, value in tensors.items()}
        )


@torch.no_grad()
def merged(model: MTOPModel, family: str | None) -> MTOPModel:
    """The slow reference: a copy without families, whose encoder has the LoRA of one in its weights."""
    twin = copy.deepcopy(model)
    if family is not None:
        lora = model.family_lora(family)
        assert lora is not None
        layers = [
            layer
            for block in encoder_layers(twin.backbone)[-lora.num_layers :]
            for layer in block.modules()
            if isinstance(layer, torch.nn.Linear)
        ]
        for layer, a, b in zip(layers, lora.lora.A, lora.lora.B, strict=True):
            layer.weight += lora.scale * b @ a
    twin.config.tasks = [{key: value for key, value in entry.items() if key != "family"} for entry in twin.config.tasks]
    return twin


@torch.no_grad()
def check_outputs(model: MTOPModel, batch: Batch, wanted: list[str], vectors: bool = False) -> None:
    """All at once are what each family's own encoder puts out."""
    found = model.all_outputs(**batch, tasks=wanted, vectors=vectors)
    of_texts = [name for name in wanted if name != "names"]
    mask = batch["attention_mask"].bool()
    for name in wanted:
        alone = merged(model, model.family_of(name))(**batch, task=name).logits
        if name == "names":
            torch.testing.assert_close(found.at_tokens[name][mask], alone[mask], atol=1e-5, rtol=1e-5)
        else:
            own = found.logits[:, of_texts.index(name), : alone.shape[1]]
            torch.testing.assert_close(own, alone, atol=1e-5, rtol=1e-5)
    if vectors:
        plain = merged(model, None).all_tasks_and_vectors(**batch, tasks=[])[1]
        assert torch.equal(found.vectors, plain)


@pytest.mark.parametrize("attention", ["joint", "isolated"])
@pytest.mark.parametrize(
    "wanted",
    [NAMES, ["first", "names", "mood"], ["sport"], ["length", "names"], ["sport", "names"], ["style"]],
    ids=" ".join,
)
@pytest.mark.parametrize("vectors", [False, True])
def test_a_family_is_the_encoder_with_its_lora(attention: str, wanted: list[str], vectors: bool, batch: Batch) -> None:
    check_outputs(make_model(attention), batch, wanted, vectors)


@pytest.mark.parametrize("attention", ["joint", "isolated"])
@torch.no_grad()
def test_a_task_alone_is_what_it_is_beside_others(attention: str, batch: Batch) -> None:
    model = make_model(attention)
    for name in NAMES:
        alone = model(**batch, task=name).logits
        torch.testing.assert_close(alone, merged(model, model.family_of(name))(**batch, task=name).logits)
    if attention == "isolated":
        for name in ("mood", "sport", "length"):
            read = model(kv_cache=model.cache(**batch, tasks=[name]), task=name).logits
            torch.testing.assert_close(read, model(**batch, task=name).logits)


@pytest.mark.parametrize("name", sorted(set(BACKBONES) - {"albert"}))
def test_it_works_with_many_encoders(name: str, batch: Batch) -> None:
    torch.manual_seed(0)
    model = make_model(backbone=BACKBONES[name]().eval())
    check_outputs(model, batch, NAMES)
    assert len(encoder_layers(model.backbone)) == 2


@pytest.mark.parametrize("vectors", [False, True])
@pytest.mark.parametrize("attention", ["joint", "isolated"])
def test_fused_layers_do_the_same(attention: str, vectors: bool, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, with the sums of flash attention written out."""
    monkeypatch.setattr(ragged, "is_possible", lambda *_: True)
    monkeypatch.setattr(ragged, "varlen_attention", sums_of_attention)
    monkeypatch.setattr(fused, "varlen_attention", sums_of_attention)
    for has_fused_layers in (False, True):
        model = make_model(attention)
        if has_fused_layers:
            assert model.fuse_layers()
        number = int(batch["attention_mask"].sum())
        for wanted in (NAMES, ["sport", "names"]):
            found = model.all_outputs(**batch, tasks=wanted, num_tokens=number, vectors=vectors)
            monkeypatch.setattr(ragged, "is_possible", lambda *_: False)
            expected = make_model(attention).all_outputs(**batch, tasks=wanted, vectors=vectors)
            monkeypatch.setattr(ragged, "is_possible", lambda *_: True)
            torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=1e-5)
            mask = batch["attention_mask"].bool()
            torch.testing.assert_close(
                found.at_tokens["names"][mask], expected.at_tokens["names"][mask], atol=1e-5, rtol=1e-5
            )


@torch.no_grad()
@pytest.mark.parametrize("attention", ["joint", "isolated"])
def test_a_family_that_is_added_changes_no_bit(attention: str, batch: Batch) -> None:
    model = make_model(attention).eval()
    before, known = model.all_outputs(**batch, tasks=NAMES), task_fingerprints(model, "")
    vectors = vector_fingerprint(model, "")
    model.add_tasks(
        [Task("places", "token", ("LOC",)), Task("tone")],
        lora_rank=2,
        families=[Family("late", layers=2)],
        family_of={"places": "late", "tone": "late"},
    )
    enlarge(model, ["tone"])
    after = model.all_outputs(**batch, tasks=[*NAMES, "places", "tone"])
    assert torch.equal(after.logits[:, : before.logits.shape[1]], before.logits)
    assert torch.equal(after.at_tokens["names"], before.at_tokens["names"])
    now = task_fingerprints(model, "")
    assert {name: now[name] for name in known} == known
    assert vector_fingerprint(model, "") == vectors
    check = merged(model, "late")(**batch, task="tone").logits
    torch.testing.assert_close(after.logits[:, -1, :2], check, atol=1e-5, rtol=1e-5)
    model.drop_tasks(["tone"])
    assert [family.name for family in model.task_families] == ["entities", "topics", "late"]
    model.drop_tasks(["places"])
    assert [family.name for family in model.task_families] == ["entities", "topics"]
    assert not [name for name in model.state_dict() if "late" in name]


@torch.no_grad()
def test_families_know_nothing_of_one_another(batch: Batch) -> None:
    model = make_model()
    before, known = model.all_outputs(**batch, tasks=NAMES), task_fingerprints(model, "")
    lora = model.family_lora("entities")
    assert lora is not None
    lora.lora.B[2].mul_(-2)
    after, now = model.all_outputs(**batch, tasks=NAMES), task_fingerprints(model, "")
    of_texts = [name for name in NAMES if name != "names"]
    changed = {
        name for place, name in enumerate(of_texts) if not torch.equal(after.logits[:, place], before.logits[:, place])
    }
    assert changed == {"length"}
    assert not torch.equal(after.at_tokens["names"], before.at_tokens["names"])
    assert {name for name in NAMES if now[name] != known[name]} == {"names", "length"}


def test_a_name_of_a_family_is_no_part_of_fingerprints_and_its_scale_is(batch: Batch) -> None:
    del batch
    backbone = make_backbone()
    named, renamed, scaled = (
        task_fingerprints(
            MTOPModel.from_backbone(
                backbone, [Task("a"), Task("b")], families=[family], family_of={"a": family.name}, max_tokens=40
            ),
            "",
        )
        for family in (Family("x"), Family("y"), Family("x", alpha=4.0))
    )
    assert named["b"] == renamed["b"] == scaled["b"]
    assert len({named["a"], renamed["a"], scaled["a"]}) > 1
    assert scaled["a"] != named["a"]


@pytest.mark.parametrize(("task", "family"), [("names", "entities"), ("sport", "topics"), ("mood", None)])
def test_a_step_moves_the_encoder_and_the_lora_of_its_own_family(task: str, family: str | None, batch: Batch) -> None:
    model = make_model().train()
    labels = torch.zeros(batch["input_ids"].shape if task == "names" else 3, dtype=torch.long)
    model(**batch, task=task, labels=labels).loss.backward()
    moved = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert {name.split(".")[1] for name in moved if name.startswith("families.")} == (
        {f"family_{family}"} if family else set()
    )
    assert any(name.startswith("backbone.encoder.layer.0.") for name in moved)
    assert any(name.startswith("backbone.embeddings.") for name in moved)


def test_all_tasks_at_once_can_train_too(batch: Batch) -> None:
    """As soft labels do; the gradients are those of one task after the other."""
    model = make_model().train()
    texts = Text(batch["input_ids"], batch["attention_mask"], None)
    outputs = model.outputs(tuple(NAMES), texts, vectors=False)
    mask = batch["attention_mask"].bool()
    (outputs.logits.nan_to_num(neginf=0).square().sum() + outputs.at_tokens["names"][mask].square().sum()).backward()
    together = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    alone = make_model().train()
    for name in NAMES:
        logits = alone.task_logits(name, texts)
        (logits[mask] if name == "names" else logits).square().sum().backward()
    for name, parameter in alone.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(together[name], parameter.grad, atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_a_saved_model_is_the_same(batch: Batch, tmp_path: Path) -> None:
    model = make_model()
    model.save_pretrained(tmp_path)
    again = MTOPModel.from_pretrained(tmp_path).eval()
    assert again.task_families == [ENTITIES, TOPICS]
    assert torch.equal(again.all_tasks(**batch), model.all_tasks(**batch))
    assert task_fingerprints(again, "") == task_fingerprints(model, "")


def test_what_families_cost() -> None:
    model = make_model()
    assert model.passes(["mood", "style"]) == 1
    assert model.passes(["names"]) == model.passes(["sport"]) == 1
    assert model.passes(["names", "length"]) == 1
    assert model.passes(["names", "sport"]) == (0 + 0 + 1 + 2) / 2 + 0.5
    assert model.passes(NAMES) == (2 + 1 + 2) / 2
    passes = EncoderPasses(False, 12, dict.fromkeys("abc", 2), {"x": "a", "y": "b", "z": "c"})
    assert passes("xyz") == (12 - 2 + 3 * 2) / 12
    assert passes(["plain"]) == passes([]) == 1


@torch.no_grad()
@pytest.mark.parametrize("attention", ["joint", "isolated"])
@pytest.mark.parametrize("wanted", [NAMES, ["names", "sport"], ["sport"]], ids=" ".join)
def test_their_operations_are_counted(attention: str, wanted: list[str]) -> None:
    """They are those of the encoder, for LoRA is in its weights."""
    model, ids = make_model(attention), torch.randint(5, 80, (1, 9))
    model.all_outputs(ids, tasks=wanted)
    counter = FlopCounterMode(display=False)
    with counter:
        model.all_outputs(ids, tasks=wanted)
    assert model.forward_flops(wanted)(np.array([9])) == pytest.approx(counter.get_total_flops(), rel=0.12)


@pytest.mark.parametrize("attention", ["joint", "isolated"])
def test_lora_in_the_weights_is_lora_beside_them(attention: str, batch: Batch) -> None:
    model = make_model(attention)
    with torch.no_grad():
        found = model.all_outputs(**batch, tasks=NAMES)
    expected = model.all_outputs(**batch, tasks=NAMES)  # with gradients, where LoRA may learn
    assert expected.logits.requires_grad
    torch.testing.assert_close(found.logits, expected.logits.detach(), atol=1e-5, rtol=1e-5)
    mask = batch["attention_mask"].bool()
    torch.testing.assert_close(
        found.at_tokens["names"][mask], expected.at_tokens["names"][mask].detach(), atol=1e-5, rtol=1e-5
    )


@torch.no_grad()
@pytest.mark.parametrize("change", ["lora", "encoder", "type"])
def test_what_was_merged_is_merged_again_when_weights_change(change: str, batch: Batch) -> None:
    model = make_model()
    before = model.all_outputs(**batch, tasks=NAMES)
    if change == "lora":
        model.load_family("topics", {key: value / 2 for key, value in model.family_tensors("topics").items()})
    elif change == "encoder":
        lora_layers(model.backbone, 1)[0].weight.mul_(1.5)
    else:
        model = with_bf16_encoder(model)  # type: ignore[assignment]
    after = model.all_outputs(**batch, tasks=NAMES)
    assert not torch.equal(after.logits, before.logits)
    twin = copy.deepcopy(model)
    twin._merged = {}
    assert torch.equal(twin.all_outputs(**batch, tasks=NAMES).logits, after.logits)


@torch.no_grad()
def test_the_encoder_has_its_own_weights_again_also_after_an_error(batch: Batch) -> None:
    model = make_model()
    before = dict(model.backbone.named_parameters())
    versions = {name: (parameter.data_ptr(), parameter._version) for name, parameter in before.items()}
    model.all_outputs(**batch, tasks=NAMES)
    with pytest.raises(IndexError):
        model.all_outputs(batch["input_ids"] + 10_000, batch["attention_mask"], tasks=["names", "sport"])
    with pytest.raises(ZeroDivisionError), model._as_family("topics"):
        raise ZeroDivisionError
    after = dict(model.backbone.named_parameters())
    assert all(after[name] is parameter for name, parameter in before.items())
    assert {name: (value.data_ptr(), value._version) for name, value in after.items()} == versions


def test_families_that_do_not_fit_are_refused() -> None:
    with pytest.raises(TaskError, match=r"task 'sport': there is no family 'topic'; did you mean 'topics'\?"):
        make_model(family_of={**FAMILY_OF, "sport": "topic"})
    with pytest.raises(TaskError, match="family 'entities' has no task"):
        make_model(family_of={"sport": "topics"})
    with pytest.raises(TaskError, match="family 'entities' is twice"):
        make_model(families=[ENTITIES, TOPICS, ENTITIES])
    with pytest.raises(ConfigError, match="layers = 3 is more than the layers of ElectraModel; allowed: up to 2"):
        make_model(families=[ENTITIES, Family("topics", layers=3)])
    with pytest.raises(TaskError, match="reads the vector reads that of the plain backbone"):
        make_model().add_tasks([Task("probe", "probe")], family_of={"probe": "topics"})
    with pytest.raises(TaskError, match="'topics' is there already"):
        make_model().add_tasks([Task("new")], families=[TOPICS], family_of={"new": "topics"})
    with pytest.raises(TaskError, match="layers = 0 is not positive"):
        Family("none", layers=0)
    with pytest.raises(TaskError, match="family name 'a b' is not allowed"):
        Family("a b")


def test_encoders_without_layers_of_their_own_are_refused() -> None:
    with pytest.raises(ConfigError, match="AlbertModel, whose layers have the same weights"):
        make_model(backbone=BACKBONES["albert"]())
    eager = modernbert()
    eager.set_attn_implementation("eager")
    with pytest.raises(ConfigError, match="has no KV cache"):
        make_model(backbone=eager)


def test_gradient_checkpointing_is_refused(batch: Batch) -> None:
    """Layers that run again for their gradients would run without the LoRA."""
    model = make_model().train()
    use_kv_cache_attention(model.backbone)
    model.gradient_checkpointing_enable()
    with pytest.raises(ConfigError, match="turn off gradient checkpointing"):
        model(**batch, task="names")
    with pytest.raises(ConfigError, match="turn off gradient checkpointing"):
        model.all_outputs(**batch, tasks=["names", "sport"])


@torch.no_grad()
def test_an_encoder_in_bf16_has_families_too(batch: Batch) -> None:
    model = make_model()
    exact = model.all_outputs(**batch, tasks=NAMES)
    rounded = with_bf16_encoder(model).all_outputs(**batch, tasks=NAMES)
    assert rounded.logits.dtype == torch.float32
    finite = exact.logits.isfinite()
    torch.testing.assert_close(rounded.logits[finite], exact.logits[finite], atol=0.2, rtol=0.2)
    mask = batch["attention_mask"].bool()
    torch.testing.assert_close(rounded.at_tokens["names"][mask], exact.at_tokens["names"][mask], atol=0.2, rtol=0.2)


@torch.no_grad()
def test_batches_after_the_first_do_not_look_tasks_up(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    model.all_outputs(**batch, tasks=NAMES)
    monkeypatch.setattr(model, "_entry", None)
    model.all_outputs(**batch, tasks=NAMES)
