"""Fingerprints: equal exactly where a task's outputs are equal, so that a stored label says whether it is current.

A task has two of them. The *score hash*, called its fingerprint, covers everything that determines its scores: the
tokenizer, the length at which texts are cut, or how they are read in windows and what these say together, its text
columns, what is read beside it, kind, reader and labels (mean and standard deviation of those of a regression), the
backbone's settings and weights, the tensors of the context that every output depends on (shared prompts and those of
joint tasks, layers of inputs), and the tensors behind the task: its prompts or those of its prompt group, its pooler,
head and LoRA, that of its family, or what else its kind of model has it read. It covers nothing else: not its metric,
not which scores are kept (`Task.scores`), no other isolated task or one of its group, no other family and no family's
name, no encoder of another task, not where the bundle lies. So adding isolated tasks leaves the fingerprints of the
tasks already there unchanged.

The *decision hash* covers what only turns scores into labels (`mtop_batch.decisions.identity`). A change of it costs no
forward pass.

Document vectors have a fingerprint too, without any task in it; that of a task which reads the vector is made of it and
the task's own weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mtop_batch.model.bundle.files import json_digest
from mtop_batch.model.kinds.base import MultiTaskModel

# They count up when the same weights and tokens come to give other outputs because the code that runs them changed.
COMPUTATION = 1
VECTOR_COMPUTATION = 1
_HEX_DIGITS = 32


def task_fingerprints(model: MultiTaskModel, tokenizer_digest: str) -> dict[str, str]:
    """The score hash of every task, by name: 32 hexadecimal digits.

    Args:
        model: In the type its weights are stored in; rounding them changes the fingerprints.
        tokenizer_digest: From `tokenizer_digest`.
    """
    encoders: dict[PreTrainedModel, dict[str, Any]] = {}
    fingerprints = {}
    for task in model.tasks:
        encoder = model.encoder_of(task.name)
        if encoder not in encoders:
            encoders[encoder] = _common(model, encoder, tokenizer_digest)
        common = encoders[encoder]
        own = {
            "text": task.text,
            "kind": task.kind,
            "labels": task.labels,
            **({"scale": [task.mean, task.std]} if task.kind == "regression" else {}),
            **({"combine": task.combine} if model.config.max_windows > 1 else {}),
            **model.task_settings(task.name),
            "task": tensors_digest(model.task_tensors(task.name).items()),
        }
        if shared := list(model.shared_tensors(task.name)):
            own["shared"] = tensors_digest(shared)
        if task.reads_vector:
            common = {"vector": _of_vector(common)}
        fingerprints[task.name] = json_digest({**common, **own})[:_HEX_DIGITS]
    return fingerprints


def vector_fingerprint(model: MultiTaskModel, tokenizer_digest: str) -> str:
    """The fingerprint of document vectors: 32 hexadecimal digits, or "" for a model that has none.

    The arguments are those of `task_fingerprints`.
    """
    return "" if model.pass_per_task else _of_vector(_common(model, model.backbone, tokenizer_digest))


def _common(model: MultiTaskModel, encoder: PreTrainedModel, tokenizer_digest: str) -> dict[str, Any]:
    return {
        "computation": COMPUTATION,
        "tokenizer": tokenizer_digest,
        "max_tokens": model.config.max_tokens,
        **({"windows": model.config.text_limits} if model.config.max_windows > 1 else {}),
        **({"inputs": model.config.inputs} if model.config.inputs else {}),
        "backbone_config": model.config.backbone_config,
        "backbone": tensors_digest(encoder.state_dict().items()),
        "context_prompts": tensors_digest(model.context_tensors()),
    }


def _of_vector(common: dict[str, Any]) -> str:
    return json_digest({**common, "vector_computation": VECTOR_COMPUTATION})[:_HEX_DIGITS]


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of what turns texts into token ids: 64 hexadecimal digits.

    The truncation and padding that the tokenizer happens to be set to are left out, because every call sets its own.
    """
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    rules.pop("truncation", None)
    rules.pop("padding", None)
    return json_digest({"rules": rules, "truncation_side": tokenizer.truncation_side})


def tensors_digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """A hash of named tensors, of their values as float32, in the order given: 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        values = tensor.detach().to(device="cpu", dtype=torch.float32).contiguous()
        digest.update(f"{name}{tuple(values.shape)}".encode())
        digest.update(values.numpy().data)
    return digest.hexdigest()
