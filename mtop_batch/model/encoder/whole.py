"""Whether a pretrained encoder is all there: its files, its weights, and a tokenizer that goes with it.

Transformers makes a model of nearly anything: without tokenizer files, for one, a tokenizer that knows five tokens.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Collection
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mtop_batch.errors import ConfigError, one_line
from mtop_batch.model.encoder.inputs import word_embeddings

_LFS_POINTER = b"version https://git-lfs"
_READ = ("config.json", "*.safetensors", "*.index.json", "tokenizer.json", "tokenizer_config.json")
_READ_WITHOUT_TOKENIZER_JSON = ("vocab.*", "merges.txt", "*.model")
# Embedding tables are padded to round sizes, by a few percent at most.
_MIN_VOCABULARY_SHARE = 0.9
# Of a layer, in the name of a weight.
_NUMBER = re.compile(r"\.\d+\.")


def check_files(name: str, path: str) -> None:
    """Refuse a local directory whose files were never downloaded, or not whole.

    Raises:
        ConfigError: It has no `config.json`; or one of its files is what git-lfs leaves in place of a file, damaged, or
            names another one that is not there.
    """
    directory = Path(path)
    if not directory.is_dir():
        return
    if not (directory / "config.json").is_file():
        raise ConfigError(
            f"backbone.name = {name!r}: {path} has no config.json; name the directory of an encoder, with config.json, "
            "model.safetensors and tokenizer files"
        )
    more = () if (directory / "tokenizer.json").is_file() else _READ_WITHOUT_TOKENIZER_JSON
    for file in (file for pattern in (*_READ, *more) for file in sorted(directory.glob(pattern)) if file.is_file()):
        with file.open("rb") as stream:
            if stream.read(len(_LFS_POINTER)) == _LFS_POINTER:
                raise ConfigError(
                    f"backbone.name = {name!r}: {file.name} is not the file itself but a git-lfs pointer to it; run "
                    f"`git lfs pull` in {path}, or download the file"
                )
        if reason := _damage(file):
            raise ConfigError(f"backbone.name = {name!r}: {file.name} {reason}; download it again")


def _damage(file: Path) -> str | None:
    """What is wrong with a file, as far as can be told without the others."""
    if file.suffix == ".safetensors":
        try:
            with safe_open(file, framework="pt"):
                return None
        except SafetensorError as error:
            return f"is damaged or cut off ({one_line(error)})"
    if file.suffix != ".json":
        return None
    try:
        content = json.loads(file.read_bytes().decode())
    except ValueError as error:
        return f"is not JSON in UTF-8 ({one_line(error)})"
    if not isinstance(content, dict):
        return "is JSON, but no object with keys"
    if not file.name.endswith(".safetensors.index.json"):
        return None
    shards = content.get("weight_map")
    if not isinstance(shards, dict):
        return "has no weight_map"
    missing = sorted(shard for shard in set(shards.values()) if not (file.parent / str(shard)).is_file())
    return f"names {len(missing)} files that are not there, such as {missing[0]}" if missing else None


def check_weights(name: str, backbone: PreTrainedModel, report: dict[str, Any]) -> None:
    """Refuse weights that are missing, of more layers or of another shape than `config.json` says, or not numbers.

    Args:
        name: `backbone.name` of the configuration.
        backbone: What was loaded.
        report: What transformers says of the loading.

    Raises:
        ConfigError: Names the first such weight.
    """
    missing = _of_encoder(report["missing_keys"])
    if missing:
        raise ConfigError(
            f"backbone.name = {name!r}: the checkpoint lacks {len(missing)} weights of {type(backbone).__name__}, "
            f"such as {missing[0]!r}, which would stay random; choose a complete encoder checkpoint"
        )
    layers = {_NUMBER.sub(".#.", key) for key, _ in backbone.named_parameters()}
    prefix = f"{backbone.base_model_prefix}."  # checkpoints with a head have it
    keys = sorted(key.removeprefix(prefix) for key in report["unexpected_keys"])
    more = [key for key in keys if _NUMBER.search(key) and _NUMBER.sub(".#.", key) in layers]
    if more:
        raise ConfigError(
            f"backbone.name = {name!r}: the checkpoint has {len(more)} weights more than config.json says, such as "
            f"{more[0]!r}; take both files from one checkpoint"
        )
    shapes = {key: (tuple(found), tuple(wanted)) for key, found, wanted in report["mismatched_keys"]}
    mismatched = _of_encoder(shapes)
    if mismatched:
        found, wanted = shapes[mismatched[0]]
        raise ConfigError(
            f"backbone.name = {name!r}: {len(mismatched)} weights have another shape than config.json says, such as "
            f"{mismatched[0]!r} with {found} instead of {wanted}; take both files from one checkpoint"
        )
    broken = [key for key, parameter in backbone.named_parameters() if not parameter.isfinite().all()]
    if broken:
        raise ConfigError(
            f"backbone.name = {name!r}: {len(broken)} weights are not finite numbers, such as {broken[0]!r}; download "
            "the checkpoint again"
        )


def check_tokenizer(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that knows no letter, as one that is made without its files.

    Raises:
        ConfigError: Every letter and digit is an unknown token.
    """
    text = " ".join(string.ascii_letters + string.digits)
    try:
        ids = set(tokenizer(text, add_special_tokens=False)["input_ids"])
    except Exception:  # `tokenizers` raises no other, here where there is not even a token for what is unknown
        ids = set()
    if not ids - set(tokenizer.all_special_ids):
        raise ConfigError(
            f"backbone.name = {name!r}: its tokenizer, of {len(tokenizer)} tokens, knows no letter and no digit; its "
            "files (tokenizer.json, or vocab.txt and the like) are missing, empty or damaged: add those of the "
            "checkpoint"
        )


def check_fit(name: str, tokenizer: PreTrainedTokenizerBase, backbone: PreTrainedModel) -> None:
    """Refuse a tokenizer and weights that are not of one checkpoint, by the size of the vocabulary.

    Raises:
        ConfigError: The tokenizer has tokens without embedding, or many fewer than there are embeddings.
    """
    num_tokens = 1 + max(tokenizer.get_vocab().values())
    num_embeddings = word_embeddings(backbone).num_embeddings
    if not _MIN_VOCABULARY_SHARE * num_embeddings <= num_tokens <= num_embeddings:
        raise ConfigError(
            f"backbone.name = {name!r}: its tokenizer has {num_tokens:,} tokens, and its weights have embeddings of "
            f"{num_embeddings:,}; take the tokenizer files and the weights from one checkpoint, whole"
        )


def _of_encoder(keys: Collection[str]) -> list[str]:
    """The weights but those of the family's pooler, which is left out."""
    return sorted(key for key in keys if not key.startswith("pooler."))
