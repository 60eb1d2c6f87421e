"""A backbone directory with the LoRA of families: what `mtop prefinetune` writes and `backbone.name` may name.

It is a directory of transformers, with two more files: `families.json` names the families and their settings, and
`families.safetensors` has their LoRA, as `<family>.` and the names of `MTOPModel.family_tensors`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mtop_batch.errors import ConfigError, MtopError, one_line
from mtop_batch.families import Family
from mtop_batch.json_text import to_json
from mtop_batch.model.encoder.backbone import locate_backbone, quiet_transformers
from mtop_batch.model.kinds.mtop import MTOPModel

FAMILIES_FILE, _LORA = "families.json", "families.safetensors"

Prefinetuned = Mapping[str, tuple[Family, Mapping[str, Tensor]]]
"""Each family by its name, and its LoRA."""


def save_prefinetuned(
    directory: Path, model: MTOPModel, tokenizer: PreTrainedTokenizerBase, described: Mapping[str, Any]
) -> None:
    """Write the backbone of a model and the LoRA of its families into an empty directory.

    Args:
        directory: Local.
        model: Its tasks are left out.
        tokenizer: Of the backbone.
        described: JSON-ready values that say where it comes from.
    """
    with quiet_transformers():
        model.backbone.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    families = model.task_families
    tensors = {
        f"{family.name}.{key}": tensor.contiguous()
        for family in families
        for key, tensor in model.family_tensors(family.name).items()
    }
    if tensors:
        save_file(tensors, directory / _LORA)
    values = {**described, "families": [asdict(family) for family in families]}
    (directory / FAMILIES_FILE).write_text(to_json(values, indent=1))


def read_described(directory: Path) -> dict[str, Any]:
    """What `save_prefinetuned` was told; nothing where there is no such directory.

    Raises:
        ConfigError: It cannot be read.
    """
    try:
        found: dict[str, Any] = json.loads((directory / FAMILIES_FILE).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        raise _damaged(directory, error) from error
    return found


def read_families(backbone_name: str) -> Prefinetuned:
    """The families that come with a backbone; none with most.

    Args:
        backbone_name: As `backbone.name` of a configuration.

    Raises:
        ConfigError: The backbone is not there, or its families are damaged.
    """
    directory = Path(locate_backbone(backbone_name))
    described = read_described(directory)
    try:
        families = [Family(**entry) for entry in described.get("families", [])]
        tensors = load_file(directory / _LORA) if families else {}
    except (OSError, TypeError, SafetensorError, MtopError) as error:
        raise _damaged(directory, error) from error
    return {family.name: (family, _of_family(family.name, tensors)) for family in families}


def check_prefinetuned(backbone_name: str, families: Sequence[Family]) -> None:
    """Refuse families that have the name of one which came with the backbone, and other settings.

    Raises:
        ConfigError: Names the family, and its settings.
    """
    known = read_families(backbone_name)
    for family in families:
        if family.name in known and known[family.name][0] != family:
            given = known[family.name][0]
            raise ConfigError(
                f"family {family.name!r} of the backbone {backbone_name!r} has rank = {given.rank}, alpha = "
                f"{given.alpha:g} and layers = {given.layers}; set these, or give the family another name to begin anew"
            )


def load_prefinetuned(model: MTOPModel, known: Prefinetuned) -> None:
    """Let the families of a model begin with the LoRA that came with its backbone, as far as it did."""
    for family in model.task_families:
        if family.name in known:
            model.load_family(family.name, known[family.name][1])


def _of_family(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}


def _damaged(directory: Path, error: Exception) -> ConfigError:
    return ConfigError(f"the families of the backbone {directory} cannot be read: {one_line(error)}; make it again")
