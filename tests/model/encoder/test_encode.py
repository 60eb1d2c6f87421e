from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AlbertConfig,
    AlbertModel,
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    ModernBertConfig,
    ModernBertModel,
    PreTrainedModel,
    RobertaConfig,
    RobertaModel,
)

from mtop_batch.model.encoder.backbone import check_backbone
from mtop_batch.model.encoder.encode import encode, encode_kv_cache, encode_with_kv_cache
from mtop_batch.model.encoder.inputs import embedding_size, first_position, has_token_types
from mtop_batch.model.encoder.kv_cache import has_kv_cache, use_kv_cache_attention
from tests.conftest import make_backbone

SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
DISTIL: dict[str, Any] = {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 48}
SPECIALS: dict[str, Any] = {
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "cls_token_id": 2,
    "sep_token_id": 3,
}


def modernbert(**settings: Any) -> ModernBertModel:
    config = ModernBertConfig(vocab_size=90, local_attention=8, **SPECIALS, **{**SIZES, **settings})
    return ModernBertModel(config)


BACKBONES: dict[str, Callable[[], PreTrainedModel]] = {
    "bert": lambda: BertModel(BertConfig(vocab_size=90, **SIZES), add_pooling_layer=False),
    "electra": make_backbone,
    "roberta": lambda: RobertaModel(RobertaConfig(vocab_size=90, type_vocab_size=1, **SIZES)),
    "distilbert": lambda: DistilBertModel(DistilBertConfig(vocab_size=90, **DISTIL)),
    "modernbert": modernbert,
    "albert": lambda: AlbertModel(AlbertConfig(vocab_size=90, embedding_size=16, **SIZES)),
}


@pytest.fixture(params=sorted(BACKBONES))
def encoder(request: pytest.FixtureRequest) -> PreTrainedModel:
    torch.manual_seed(0)
    encoder = BACKBONES[request.param]().eval()
    use_kv_cache_attention(encoder)
    return encoder


def text(batch_size: int = 2, num_tokens: int = 20) -> Tensor:
    return torch.randint(5, 80, (batch_size, num_tokens), generator=torch.Generator().manual_seed(0))


def some_prompts(encoder: PreTrainedModel, num_prompts: int) -> Tensor:
    return torch.randn(num_prompts, embedding_size(encoder), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize("groups", [None, [0, 1, 1]])
def test_the_id_at_padding_changes_no_bit_at_real_positions(encoder: PreTrainedModel, groups: list[int] | None) -> None:
    mask = (torch.arange(20) < torch.tensor([[20], [13]])).long()
    prompts, found = some_prompts(encoder, 3), []
    for pad_id in (0, encoder.config.pad_token_id or 0, 7):
        at_prompts, at_text = encode(encoder, prompts, text().masked_fill(mask == 0, pad_id), mask, groups=groups)
        found.append((at_prompts, at_text[mask == 1]))
    for other in found[1:]:
        torch.testing.assert_close(found[0], other, atol=0, rtol=0)


@torch.no_grad()
def test_without_prompts_it_is_the_plain_encoder(encoder: PreTrainedModel) -> None:
    mask = (torch.arange(20) < torch.tensor([[20], [13]])).long()
    pad_id = encoder.config.pad_token_id or 0
    ids = text().masked_fill(mask == 0, pad_id)
    plain = encoder(ids, attention_mask=mask).last_hidden_state
    _, outputs = encode(encoder, some_prompts(encoder, 0), ids, mask)
    torch.testing.assert_close(outputs[mask == 1], plain[mask == 1], atol=1e-6, rtol=0)


@torch.no_grad()
def test_isolated_prompts_leave_text_and_each_other_alone(encoder: PreTrainedModel) -> None:
    check_backbone(encoder, max_tokens=64)
    prompts = some_prompts(encoder, 5)
    plain = encoder(text(), attention_mask=torch.ones_like(text())).last_hidden_state
    both, outputs = encode(encoder, prompts, text(), groups=[1, 1, 2, 2, 2])
    alone, _ = encode(encoder, prompts[2:], text(), groups=[1, 1, 1])
    torch.testing.assert_close(outputs, plain, atol=1e-5, rtol=0)
    torch.testing.assert_close(both[:, 2:], alone, atol=1e-5, rtol=0)


@torch.no_grad()
def test_what_a_context_leaves_can_be_read_again(encoder: PreTrainedModel) -> None:
    prompts, mask = some_prompts(encoder, 5), (torch.arange(20) < torch.tensor([[20], [6]])).long()
    together, _ = encode(encoder, prompts, text(), mask, groups=[0, 1, 1, 2, 2])
    context = encode_kv_cache(encoder, prompts[:1], text(), mask)
    for own, group in ((prompts[1:3], 1), (prompts[3:], 2)):
        start = 1 if group == 1 else 3
        read = encode_with_kv_cache(encoder, own, context, [group, group])
        torch.testing.assert_close(read, together[:, start : start + 2], atol=1e-5, rtol=0)


@torch.no_grad()
def test_outputs_at_the_context_that_nobody_wants_change_nothing_for_those_who_read_it(
    encoder: PreTrainedModel,
) -> None:
    prompts, mask = some_prompts(encoder, 4), (torch.arange(20) < torch.tensor([[20], [6]])).long()
    groups = [0, 1, 1, 2]
    wanted, at_text = encode(encoder, prompts, text(), mask, groups=groups)
    without, no_text = encode(encoder, prompts, text(), mask, groups=groups, at_context=False)
    torch.testing.assert_close(without[:, 1:], wanted[:, 1:], atol=0, rtol=0)
    assert not without[:, :1].any()
    assert no_text.shape == (2, 0, at_text.shape[2])


def test_what_the_context_leaves_is_read_in_every_family(encoder: PreTrainedModel) -> None:
    assert has_kv_cache(encoder)


@torch.no_grad()
def test_joint_prompts_are_seen_by_text_and_each_other(encoder: PreTrainedModel) -> None:
    prompts = some_prompts(encoder, 2)
    changed = torch.cat([-prompts[:1], prompts[1:]])
    before, text_before = encode(encoder, prompts, text())
    after, text_after = encode(encoder, changed, text())
    assert ((before - after).abs().amax(dim=-1) > 1e-5).all()
    assert ((text_before - text_after).abs().amax(dim=-1) > 1e-6).all()


@torch.no_grad()
@pytest.mark.parametrize("groups", [None, [0, 1, 1]])
def test_padding_and_batch_mates_do_not_change_a_row(encoder: PreTrainedModel, groups: list[int] | None) -> None:
    prompts, mask = some_prompts(encoder, 3), (torch.arange(20) < torch.tensor([[20], [6]])).long()
    batch = encode(encoder, prompts, text(), mask, groups=groups)
    alone = encode(encoder, prompts, text()[1:, :6], groups=groups)
    torch.testing.assert_close(batch[0][1:], alone[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(batch[1][1:, :6], alone[1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("groups", [None, [0, 1, 1]])
@pytest.mark.parametrize(
    ("at_context", "on_gpu", "few"), [(True, False, 0), (False, False, 0), (True, True, 0), (True, False, 46)]
)
def test_training_computes_the_same_without_padding_on_a_cpu_and_in_one_pass_on_a_gpu_or_at_few_positions(
    encoder: PreTrainedModel,
    groups: list[int] | None,
    at_context: bool,
    on_gpu: bool,
    few: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mtop_batch.model.encoder.encode._launches_kernels", lambda _: on_gpu)
    monkeypatch.setattr("mtop_batch.model.encoder.encode._FEW_POSITIONS", few)
    mask, types = (torch.arange(20) < torch.tensor([[20], [6]])).long(), torch.zeros(2, 20, dtype=torch.long)
    rows: list[int] = []

    def run(training: bool) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        prompts = some_prompts(encoder, 3).requires_grad_(True)
        encoder.train(training).zero_grad()
        rows.clear()
        at_prompts, at_text = encode(encoder, prompts, text(), mask, types, groups, at_context=at_context)
        at_text = at_text * mask[:, : at_text.shape[1], None]
        (at_prompts.square().sum() + (at_text**3).sum()).backward()
        grads = {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}
        return at_prompts.detach(), at_text.detach(), {**grads, "prompts": cast(Tensor, prompts.grad)}

    for module in encoder.modules():
        for name in {"p", "attention_dropout"} & vars(module).keys():
            setattr(module, name, 0.0)
    linear = next(m for m in encoder.modules() if isinstance(m, nn.Linear) and m.in_features == 32)
    handle = linear.register_forward_pre_hook(lambda _, args: rows.append(args[0].shape[:-1].numel()))
    padded, packed = run(training=False), run(training=True)
    handle.remove()
    if on_gpu:
        assert rows[0] == 2 * (3 + 20)
    else:
        # The real positions of both texts, with the prompts that go with them.
        assert rows[0] == 26 + (6 if groups is None or few else 2)
    torch.testing.assert_close(packed, padded, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_eager_form_of_attention_agrees(encoder: PreTrainedModel) -> None:
    prompts, mask = some_prompts(encoder, 3), (torch.arange(20) < torch.tensor([[20], [6]])).long()
    groups = [0, 1, 1]
    fast, _ = encode(encoder, prompts, text(), mask, groups=groups)
    encoder.set_attn_implementation("eager")
    eager, _ = encode(encoder, prompts, text(), mask, groups=groups)
    torch.testing.assert_close(fast, eager, atol=1e-5, rtol=0)


def arguments_of(encoder: PreTrainedModel, **inputs: Any) -> dict[str, Tensor]:
    """What `encode` passes to the backbone for two prompts and the inputs."""
    seen: dict[str, Tensor] = {}
    handle = encoder.register_forward_pre_hook(lambda _module, _args, kwargs: seen.update(kwargs), with_kwargs=True)
    with torch.no_grad():
        encode(encoder, some_prompts(encoder, 2), **inputs)
    handle.remove()
    return seen


@pytest.mark.parametrize(("name", "start"), [("electra", 0), ("roberta", 2)])
def test_text_keeps_its_positions_and_prompts_take_the_first(name: str, start: int) -> None:
    encoder = BACKBONES[name]().eval()
    seen = arguments_of(encoder, input_ids=text(1, 4))
    assert first_position(encoder) == start
    assert seen["position_ids"].tolist() == [[start, start, start, start + 1, start + 2, start + 3]]


def test_token_types_reach_backbones_that_have_them() -> None:
    types = torch.tensor([[0, 0, 1, 1]])
    seen = arguments_of(BACKBONES["bert"](), input_ids=text(1, 4), token_type_ids=types)
    assert seen["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1]]
    for name in ("roberta", "distilbert", "modernbert"):
        encoder = BACKBONES[name]()
        assert not has_token_types(encoder)
        assert "token_type_ids" not in arguments_of(encoder, input_ids=text(1, 4), token_type_ids=types)


def test_without_padding_joint_attention_needs_no_mask() -> None:
    assert arguments_of(BACKBONES["bert"](), input_ids=text(1, 4))["attention_mask"] is None


@torch.no_grad()
def test_sliding_windows_hold_between_text_positions_only() -> None:
    torch.manual_seed(0)
    encoder = modernbert(num_hidden_layers=1, layer_types=["sliding_attention"]).eval()
    prompts, ids = some_prompts(encoder, 2), text(1, 30)
    other_ids = torch.cat([ids[:, :1] + 1, ids[:, 1:]], dim=1)
    at_prompts, at_text = encode(encoder, prompts, ids)
    at_prompts_2, at_text_2 = encode(encoder, prompts, other_ids)
    _, at_text_3 = encode(encoder, -prompts, ids)
    changed = (at_text - at_text_2).abs().amax(dim=-1)[0] > 1e-7
    assert changed.tolist() == [True] * 5 + [False] * 25
    assert ((at_prompts - at_prompts_2).abs().amax(dim=-1) > 1e-7).all()
    assert ((at_text - at_text_3).abs().amax(dim=-1) > 1e-7).all()


@pytest.mark.parametrize("groups", [None, [1, 1]])
def test_half_precision_and_autocast_work(encoder: PreTrainedModel, groups: list[int] | None) -> None:
    mask = (torch.arange(20) < torch.tensor([[20], [6]])).long()
    with torch.no_grad():
        exact, _ = encode(encoder, some_prompts(encoder, 2), text(), mask, groups=groups)
        with torch.autocast("cpu", torch.bfloat16):
            mixed, _ = encode(encoder, some_prompts(encoder, 2), text(), mask, groups=groups)
        half, _ = encode(encoder.bfloat16(), some_prompts(encoder, 2), text(), mask, groups=groups)
    torch.testing.assert_close(mixed.float(), exact, atol=0.1, rtol=0.1)
    torch.testing.assert_close(half.float(), exact, atol=0.1, rtol=0.1)
