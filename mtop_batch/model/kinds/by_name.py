"""The kinds of models that there are, by the name that `model.kind` and a bundle's `model_type` give them."""

from __future__ import annotations

from mtop_batch.errors import ConfigError
from mtop_batch.model.kinds.base import MultiTaskModel
from mtop_batch.model.kinds.config import MTOPConfig
from mtop_batch.model.kinds.mtop import MTOPModel

KINDS: dict[str, type[MultiTaskModel]] = {MTOPConfig.model_type: MTOPModel}


def model_class(kind: str) -> type[MultiTaskModel]:
    """The class of a kind of model.

    Raises:
        ConfigError: There is no such kind.
    """
    if kind not in KINDS:
        raise ConfigError(f"model kind {kind!r} is not known to this version; known: {', '.join(KINDS)}")
    return KINDS[kind]
