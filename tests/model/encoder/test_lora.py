"""LoRA of added tasks; that their outputs are right, the slow reference says in `test_mtop`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mtop_batch.errors import ConfigError
from mtop_batch.model.bundle.bundle import load_bundle, save_bundle
from mtop_batch.model.bundle.fingerprints import task_fingerprints
from mtop_batch.model.encoder.encode import Pass, encode
from mtop_batch.model.encoder.inputs import embedding_size
from mtop_batch.model.encoder.kv_cache import use_kv_cache_attention
from mtop_batch.model.encoder.lora import LoRA, lora_layers, stack_lora
from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.tasks import Task
from tests.conftest import make_backbone, make_tokenizer
from tests.model.conftest import Batch, MakeModel, enlarge
from tests.model.encoder.test_encode import BACKBONES

NEW, PLAIN = Task("new"), Task("plain")


def lora_of(model: MTOPModel, name: str) -> LoRA:
    lora = model.task_module(name).lora
    assert lora is not None
    return lora


@torch.no_grad()
def test_they_start_so_that_they_change_nothing(make_model: MakeModel, batch: Batch) -> None:
    plain, adapted = make_model(), make_model()
    plain.add_tasks([NEW], prompts_per_task=3)
    adapted.add_tasks([NEW], prompts_per_task=3, lora_rank=4)
    torch.testing.assert_close(plain(**batch).logits, adapted(**batch).logits, atol=0, rtol=0)
    layers = lora_layers(adapted.backbone)
    assert len(layers) == 12
    assert adapted.task_tensors("new")["lora.A.4"].shape == (4, layers[4].in_features)
    assert adapted.task_tensors("new")["lora.B.4"].shape == (layers[4].out_features, 4)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["joint", "isolated"])
def test_no_other_task_notices_them(make_model: MakeModel, batch: Batch, attention: str) -> None:
    model = make_model(prompt_attention=attention)
    model.add_tasks([PLAIN], prompts_per_task=2)
    before, fingerprints = model(**batch).logits, task_fingerprints(model, "tokenizer")
    model.add_tasks([NEW], prompts_per_task=3, lora_rank=2)
    enlarge(model, ["new"])
    torch.testing.assert_close(model(**batch).logits[:, :-1], before, atol=1e-5, rtol=0)
    after = task_fingerprints(model, "tokenizer")
    assert {name: after[name] for name in fingerprints} == fingerprints
    lora_of(model, "new").B[0].mul_(2)
    assert task_fingerprints(model, "tokenizer")["new"] != after["new"]


@torch.no_grad()
def test_all_at_once_in_any_order_equal_each_alone(make_model: MakeModel, batch: Batch) -> None:
    model = make_model(prompt_attention="isolated")
    model.add_tasks([Task("one"), Task("two")], prompts_per_task=2, lora_rank=3)
    model.add_tasks([PLAIN], prompts_per_task=2)
    model.add_tasks([Task("three")], prompts_per_task=1, lora_rank=3)
    model.add_tasks([Task("four")], prompts_per_task=1, lora_rank=2)
    enlarge(model)
    names = ["three", "plain", "four", "type", "two", "one"]
    together = model.all_tasks(**batch, tasks=names)
    for place, name in enumerate(names):
        alone = model(**batch, task=name).logits
        torch.testing.assert_close(together[:, place, :2], alone, atol=1e-5, rtol=0)
        read = model(kv_cache=model.cache(**batch), task=name).logits
        torch.testing.assert_close(together[:, place, :2], read, atol=1e-5, rtol=0)
    lora_of(model, "two").B[3].zero_()
    changed = (model.all_tasks(**batch, tasks=names) - together).abs().amax(dim=(0, 2))
    assert changed[4] > 1e-4
    assert changed[[0, 1, 2, 3, 5]].max() < 1e-6


@torch.no_grad()
@pytest.mark.parametrize("name", BACKBONES)
def test_they_act_in_every_family_at_their_own_prompts_only(name: str) -> None:
    encoder: Any = BACKBONES[name]().eval()
    use_kv_cache_attention(encoder)
    loras = [LoRA(lora_layers(encoder), 2) for _ in range(2)]
    for number, lora in enumerate(loras):
        for parameter in lora.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    prompts = torch.randn(6, embedding_size(encoder), generator=torch.Generator().manual_seed(1))
    ids = torch.randint(5, 80, (2, 12), generator=torch.Generator().manual_seed(2))
    groups, first, second = [0, 1, 2, 2, 3, 3], slice(2, 4), slice(4, 6)
    stacks = stack_lora([(1, None), *((2, lora) for lora in loras)])
    both, at_text = encode(encoder, prompts, ids, groups=groups, passes=[Pass(5, stacks)])
    without, at_text_without = encode(encoder, prompts, ids, groups=groups)
    torch.testing.assert_close(at_text, at_text_without, atol=0, rtol=0)
    torch.testing.assert_close(both[:, :2], without[:, :2], atol=1e-6, rtol=0)
    assert ((both - without).abs().amax(dim=(0, 2)) > 1e-3).tolist() == [False, False, True, True, True, True]
    for own, lora in zip((first, second), loras, strict=True):
        alone, _ = encode(
            encoder,
            torch.cat([prompts[:1], prompts[own]]),
            ids,
            groups=[0, 1, 1],
            passes=[Pass(2, stack_lora([(2, lora)]))],
        )
        torch.testing.assert_close(both[:, own], alone[:, 1:], atol=1e-4, rtol=1e-4)


def test_a_bundle_holds_them(make_model: MakeModel, batch: Batch, tmp_path: Path) -> None:
    model = make_model()
    model.add_tasks([NEW], lora_rank=2)
    enlarge(model)
    uri = str(tmp_path / "bundle")
    save_bundle(uri, model, make_tokenizer(), metrics={}, training_config={}, backbone_name="tiny")
    loaded = load_bundle(uri).model
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch).logits, model(**batch).logits, atol=1e-6, rtol=0)
    assert lora_of(cast(MTOPModel, loaded), "new").rank == 2


def test_their_operations_count() -> None:
    model = MTOPModel.from_backbone(make_backbone(), [Task("a")], prompt_attention="isolated", max_tokens=60)
    model.add_tasks([NEW], prompts_per_task=3, lora_rank=4)
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.all_tasks(torch.full((3, 20), 5))
    cost = model.forward_flops(["a", "new"])(np.full(3, 20))
    assert cost == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_a_negative_rank_is_refused(make_model: MakeModel) -> None:
    model = make_model()
    with pytest.raises(ConfigError, match=r"lora_rank = -1 is negative; 0 leaves LoRA out"):
        model.add_tasks([NEW], lora_rank=-1)
    assert "new" not in model.task_names
