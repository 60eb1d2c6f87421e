from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    DebertaV2Config,
    DebertaV2Model,
    ElectraForPreTraining,
    ElectraModel,
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
from mtop_batch.model.bundle.bundle import save_bundle
from mtop_batch.model.encoder.backbone import (
    backbone_config_dict,
    build_backbone,
    check_backbone,
    load_backbone,
    load_tokenizer,
    locate_backbone,
)
from mtop_batch.model.encoder.inputs import word_embeddings
from mtop_batch.model.encoder.whole import check_fit
from mtop_batch.model.kinds.mt_dnn import MTDNNModel
from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.model.kinds.single_task import SingleTaskModel
from mtop_batch.tasks import Task
from tests.conftest import make_backbone, make_tokenizer

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
    for name in ("package:", "package:/model", "package:../model"):
        with pytest.raises(ConfigError, match="names no package; write package:PACKAGE/DIRECTORY"):
            locate_backbone(name)
    with pytest.raises(ConfigError, match="has no directory 'nothing/here'"):
        locate_backbone("package:transformers/nothing/here")


def test_a_local_directory_is_itself_and_other_names_are_hub_ids(tmp_path: Path) -> None:
    assert locate_backbone(str(tmp_path)) == str(tmp_path)
    assert locate_backbone("google/electra-base-discriminator") == "google/electra-base-discriminator"
    for name in ("./missing", "models/encoders/missing", "~nobody-here/x", "s3://bucket/encoder", "", " ", "a\0b"):
        with pytest.raises(ConfigError, match="there is no such directory"):
            locate_backbone(name)


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


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 438\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.safetensors", POINTER, r"model\.safetensors is not the file itself but a git-lfs pointer"),
        ("tokenizer.json", POINTER, r"tokenizer\.json is not the file itself but a git-lfs pointer"),
        ("config.json", POINTER, r"config\.json is not the file itself but a git-lfs pointer"),
        ("model.safetensors", 1000, r"model\.safetensors is damaged or cut off"),
        ("model.safetensors", -100, r"model\.safetensors is damaged or cut off"),
        ("model.safetensors", b"", r"model\.safetensors is damaged or cut off"),
        ("tokenizer.json", 1000, r"tokenizer\.json is not JSON in UTF-8 .*; download it again"),
        ("tokenizer.json", b"", r"tokenizer\.json is not JSON in UTF-8"),
        ("tokenizer.json", b"{}", "cannot be loaded: .* allowed: a hub id"),
        ("tokenizer.json", None, "its tokenizer, of 5 tokens, knows no letter and no digit; its files"),
        ("tokenizer_config.json", b"null", r"tokenizer_config\.json is JSON, but no object with keys"),
        ("config.json", b"[]", r"config\.json is JSON, but no object with keys"),
        ("config.json", b"\xef\xbb\xbf{}", r"config\.json is not JSON in UTF-8"),
        ("config.json", None, r"has no config\.json; name the directory of an encoder"),
        ("config.json", b'{"tasks": [], "backbone_config": {}}', "holds a model but no bundle"),
    ],
)
def test_a_backbone_that_is_not_whole_is_refused_in_one_line(
    backbone_dir: Path, tmp_path: Path, name: str, content: bytes | int | None, message: str
) -> None:
    path = tmp_path / "backbone"
    shutil.copytree(backbone_dir, path)
    if content is None:
        (path / name).unlink()
    else:
        (path / name).write_bytes(content if isinstance(content, bytes) else (path / name).read_bytes()[:content])
    load = load_tokenizer if name.startswith("tokenizer") else load_backbone
    with pytest.raises(ConfigError, match=message) as refusal:
        load(str(path))
    assert "\n" not in str(refusal.value)


def test_a_sharded_checkpoint_has_all_its_files(backbone_dir: Path, tmp_path: Path) -> None:
    backbone = load_backbone(str(backbone_dir))
    backbone.save_pretrained(tmp_path, max_shard_size="10KB")
    load_backbone(str(tmp_path))
    next(tmp_path.glob("model-00002-*")).unlink()
    with pytest.raises(ConfigError, match=r"index\.json names 1 files that are not there, such as model-00002-of-"):
        load_backbone(str(tmp_path))
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"index\.json has no weight_map"):
        load_backbone(str(tmp_path))


@pytest.mark.parametrize("kind", [ElectraModel, ElectraForPreTraining])
def test_weights_of_more_layers_than_the_configuration_says_are_refused(
    tmp_path: Path, kind: type[PreTrainedModel]
) -> None:
    kind(make_backbone().config).save_pretrained(tmp_path)
    load_backbone(str(tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    with pytest.raises(ConfigError, match=r"has 16 weights more than config\.json says, such as 'encoder\.layer\.1\."):
        load_backbone(str(tmp_path))


def test_an_encoder_that_does_not_read_its_text_is_refused() -> None:
    backbone = make_backbone()
    word_embeddings(backbone).weight.data.zero_()
    with pytest.raises(ConfigError, match="its outputs are the same for different texts, so its weights are damaged"):
        check_backbone(backbone, max_tokens=32)


def test_weights_of_another_shape_than_the_configuration_says_are_refused(backbone_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "backbone"
    shutil.copytree(backbone_dir, path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "intermediate_size": 128}))
    with pytest.raises(ConfigError, match=r"6 weights have another shape .* with \(64,\) instead of \(128,\)"):
        load_backbone(str(path))


def test_weights_that_are_no_numbers_are_refused(backbone_dir: Path, tmp_path: Path) -> None:
    backbone = load_backbone(str(backbone_dir))
    word_embeddings(backbone).weight.data[3] = torch.nan
    backbone.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"1 weights are not finite numbers, such as 'embeddings\.word_embeddings"):
        load_backbone(str(tmp_path))


def test_files_that_nobody_reads_may_be_missing(backbone_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "backbone"
    shutil.copytree(backbone_dir, path)
    for name in ("pytorch_model.bin", "vocab.txt"):
        (path / name).write_bytes(POINTER)
    assert len(load_tokenizer(str(path))) == word_embeddings(load_backbone(str(path))).num_embeddings


@pytest.mark.parametrize("num_embeddings", [89, 120])
def test_a_tokenizer_of_another_size_than_the_embeddings_is_refused(num_embeddings: int) -> None:
    backbone = make_backbone()
    check_fit("tiny", make_tokenizer(), backbone)
    backbone.resize_token_embeddings(num_embeddings)
    with pytest.raises(ConfigError, match=f"its tokenizer has 90 tokens, .* embeddings of {num_embeddings}"):
        check_fit("tiny", make_tokenizer(), backbone)


def test_what_cannot_be_loaded_says_what_is_allowed(tmp_path: Path) -> None:
    for load in (load_backbone, load_tokenizer):
        with pytest.raises(ConfigError, match=r"cannot be loaded: .* allowed: a hub id"):
            load("no-such-owner/no-such-model")
        with pytest.raises(ConfigError, match=r"has no config\.json"):
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


@pytest.mark.parametrize("kind", [MTOPModel, MTDNNModel])
def test_the_encoder_of_a_bundle_is_a_backbone(kind: type[MTOPModel | MTDNNModel], tmp_path: Path) -> None:
    tasks = [Task(name, reads="pooled") for name in ("topic", "mood")]
    model = kind.from_backbone(make_backbone(), tasks, max_tokens=16)
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            parameter.add_(0.01)
    save_bundle(str(tmp_path), model, make_tokenizer(), metrics={}, training_config={}, backbone_name="tiny")
    found = load_backbone(str(tmp_path))
    torch.testing.assert_close(found.state_dict(), model.backbone.state_dict(), rtol=0, atol=0)
    assert load_tokenizer(str(tmp_path)).get_vocab() == make_tokenizer().get_vocab()
    again = MTOPModel.from_backbone(found, [Task("new")], max_tokens=16)
    assert again.task_names == ["new"]


def test_a_bundle_that_is_damaged_or_has_many_encoders_is_no_backbone(tmp_path: Path) -> None:
    tasks = [Task(name, reads="pooled") for name in ("topic", "mood")]
    model = SingleTaskModel.from_backbone(make_backbone(), tasks, max_tokens=16)
    save_bundle(str(tmp_path), model, make_tokenizer(), metrics={}, training_config={}, backbone_name="tiny")
    with pytest.raises(ConfigError, match="of kind 'single-task' each task has an encoder of its own"):
        load_backbone(str(tmp_path))
    (tmp_path / "metrics.json").write_text("{} ")
    with pytest.raises(ConfigError, match=r"metrics\.json of the bundle .* is damaged or was changed"):
        load_backbone(str(tmp_path))
