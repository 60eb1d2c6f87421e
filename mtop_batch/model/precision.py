"""A model for inference in bf16: half the memory traffic, and the matrix units of devices that have some for it."""

from __future__ import annotations

import copy

from mtop_batch.model.kinds.base import MultiTaskModel


def with_bf16_encoder(model: MultiTaskModel) -> MultiTaskModel:
    """A copy whose encoder has weights and activations in bf16; what reads it takes them as its kind of model does.

    MTOP computes poolers and heads in bf16 when they are stacked. Probes and document vectors stay as they are: stored
    vectors and new ones must give the same labels. So do buffers, such as the frequencies of rotary embeddings, which
    bf16 would spoil.
    """
    model = copy.deepcopy(model)
    for encoder in model.encoders:
        for parameter in encoder.parameters():
            parameter.data = parameter.data.bfloat16()
    return model
