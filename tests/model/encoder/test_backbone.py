from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    DebertaV2Config,
    DebertaV2Model,
    FNetConfig,
    FNetModel,
    GPT2Config,
    GPT2Model,
    MPNetConfig,
    MPNetModel,
    PreTrainedModel,
    T5Config,
    T5Model,
)

from mtop_batch.errors import ConfigError
from mtop_batch.model.encoder.backbone import (
    backbone_config_dict,
    build_backbone,
    check_backbone,
    load_backbone,
    load_tokenizer,
    locate_backbone,
)
from mtop_batch.model.encoder.inputs import word_embeddings
from tests.conftest import make_backbone

SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
SPECIALS: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 1}


def refused() -> list[tuple[PreTrainedModel, str]]:
    gpt2 = GPT2Config(vocab_size=60, n_embd=32, n_layer=1, n_head=2, n_positions=64, **SPECIALS)
    t5 = T5Config(vocab_size=60, d_model=32, num_layers=1, d_kv=8, d_ff=32, num_heads=2)
    return [
        (DebertaV2Model(DebertaV2Config(vocab_size=60, **SIZES)), "its attention is its own"),
        (MPNetModel(MPNetConfig(vocab_size=60, **SIZES)), "its attention is its own"),
        (GPT2Model(gpt2), "decoder"),
        (T5Model(t5), "encoder-decoder"),
        (FNetModel(FNetConfig(vocab_size=60, hidden_size=32, num_hidden_layers=1)), "no attention_mask"),
        (BertModel(BertConfig(vocab_size=60, is_decoder=True, **SIZES)), "decoder"),
    ]


def test_backbones_that_cannot_work_say_why() -> None:
    for backbone, reason in refused():
        with pytest.raises(ConfigError, match=f"{type(backbone).__name__} cannot be used: .*{reason}"):
            check_backbone(backbone, max_tokens=32)


def test_checking_leaves_mode_and_random_state_alone() -> None:
    backbone = make_backbone().train()
    before = torch.get_rng_state()
    check_backbone(backbone, max_tokens=32)
    assert backbone.training
    assert torch.equal(before, torch.get_rng_state())


def test_more_tokens_than_positions_are_refused() -> None:
    check_backbone(make_backbone(), max_tokens=64)
    with pytest.raises(ConfigError, match=r"max_tokens = 65 .* allowed: up to 64"):
        check_backbone(make_backbone(), max_tokens=65)


def test_a_backbone_is_located_inside_an_installed_package() -> None:
    located = Path(locate_backbone("package:transformers/models/bert"))
    assert (located / "modeling_bert.py").is_file()
    with pytest.raises(ConfigError, match="pip install no-such-package"):
        locate_backbone("package:no_such_package/model")
    with pytest.raises(ConfigError, match="has no directory 'nothing/here'"):
        locate_backbone("package:transformers/nothing/here")


def test_a_local_directory_is_itself_and_other_names_are_hub_ids(tmp_path: Path) -> None:
    assert locate_backbone(str(tmp_path)) == str(tmp_path)
    assert locate_backbone("google/electra-base-discriminator") == "google/electra-base-discriminator"
    with pytest.raises(ConfigError, match="there is no such directory"):
        locate_backbone("./missing")


def test_loading_gives_the_saved_weights_without_a_pooler(tmp_path: Path) -> None:
    saved = BertModel(BertConfig(vocab_size=60, **SIZES))
    saved.save_pretrained(tmp_path)
    loaded = load_backbone(str(tmp_path))
    assert not any("pooler" in name for name, _ in loaded.named_parameters())
    assert torch.equal(word_embeddings(loaded).weight, saved.embeddings.word_embeddings.weight)


def test_a_checkpoint_that_lacks_encoder_weights_is_refused(tmp_path: Path) -> None:
    BertModel(BertConfig(vocab_size=60, **SIZES)).save_pretrained(tmp_path)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace('"num_hidden_layers": 1', '"num_hidden_layers": 2'))
    with pytest.raises(ConfigError, match=r"lacks 16 weights of BertModel, such as 'encoder\.layer\.1"):
        load_backbone(str(tmp_path))


def test_what_cannot_be_loaded_says_what_is_allowed(tmp_path: Path) -> None:
    for load in (load_backbone, load_tokenizer):
        with pytest.raises(ConfigError, match=r"cannot be loaded: .* allowed: a hub id"):
            load("no-such-owner/no-such-model")
        with pytest.raises(ConfigError, match="cannot be loaded"):
            load(str(tmp_path))


def test_weights_in_pickles_are_not_read(tmp_path: Path) -> None:
    make_backbone().config.save_pretrained(tmp_path)
    torch.save(make_backbone().state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_backbone(str(tmp_path))


def test_a_backbone_is_rebuilt_from_its_settings(backbone_dir: Path) -> None:
    backbone = load_backbone(str(backbone_dir))
    settings = backbone_config_dict(backbone.config)
    rebuilt = build_backbone(settings)
    rebuilt.load_state_dict(backbone.state_dict())
    assert backbone_config_dict(rebuilt.config) == settings
    assert load_tokenizer(str(backbone_dir)).is_fast
