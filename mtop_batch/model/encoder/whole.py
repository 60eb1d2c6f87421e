"""Whether a pretrained encoder is all there: its files, its weights, and a tokenizer that goes with it.

Transformers makes a model of nearly anything: without tokenizer files, for one, a tokenizer that knows five tokens.
"""

from __future__ import annotations

import string
from collections.abc import Collection
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mtop_batch.errors import ConfigError
from mtop_batch.model.encoder.inputs import word_embeddings

_LFS_POINTER = b"version https://git-lfs"
_READ = ("config.json", "*.safetensors", "*.index.json", "tokenizer.json", "tokenizer_config.json")
_READ_WITHOUT_TOKENIZER_JSON = ("vocab.*", "merges.txt", "*.model")
# Embedding tables are padded to round sizes, by a few percent at most.
_MIN_VOCABULARY_SHARE = 0.9


def check_files(name: str, path: str) -> None:
    """Refuse a local directory in which files that are read were never downloaded.

    Raises:
        ConfigError: One is what git-lfs leaves in place of a file.
    """
    directory = Path(path)
    more = () if (directory / "tokenizer.json").is_file() else _READ_WITHOUT_TOKENIZER_JSON
    for file in (file for pattern in (*_READ, *more) for file in sorted(directory.glob(pattern)) if file.is_file()):
        with file.open("rb") as stream:
            if stream.read(len(_LFS_POINTER)) == _LFS_POINTER:
                raise ConfigError(
                    f"backbone.name = {name!r}: {file.name} is not the file itself but a git-lfs pointer to it; run "
                    f"`git lfs pull` in {path}, or download the file"
                )


def check_weights(name: str, backbone: PreTrainedModel, report: dict[str, Any]) -> None:
    """Refuse weights that are missing, of another shape than `config.json` says, or not numbers.

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
