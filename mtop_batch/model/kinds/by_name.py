"""The kinds of models that there are, by the name that `model.kind` and a bundle's `model_type` give them."""

from __future__ import annotations

from mtop_batch.errors import ConfigError
from mtop_batch.model.kinds.base import MultiTaskModel
from mtop_batch.model.kinds.ca_mtl import CAMTLModel
from mtop_batch.model.kinds.mt_dnn import MTDNNModel
from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.model.kinds.p_tuning import PTuningModel
from mtop_batch.model.kinds.p_tuning_v2 import PTuningV2Model
from mtop_batch.model.kinds.single_task import SingleTaskModel

_CLASSES: tuple[type[MultiTaskModel], ...] = (
    MTOPModel,
    MTDNNModel,
    SingleTaskModel,
    PTuningModel,
    PTuningV2Model,
    CAMTLModel,
)
KINDS: dict[str, type[MultiTaskModel]] = {model.config_class.model_type: model for model in _CLASSES}


def model_class(kind: str) -> type[MultiTaskModel]:
    """The class of a kind of model.

    Raises:
        ConfigError: There is no such kind.
    """
    if kind not in KINDS:
        raise ConfigError(f"model kind {kind!r} is not known to this version; known: {', '.join(KINDS)}")
    return KINDS[kind]
