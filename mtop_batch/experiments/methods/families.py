"""The methods on entities beside texts, after "Task-primary LoRA".

All have the same heads, so that they differ in what is shared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mtop_batch.experiments.methods.method import COMMON, Method

FAMILIES = "families"
"""The method that the others are compared with."""
ENTITIES, TEXTS = "entities", "texts"

_MODEL: Mapping[str, Any] = {
    "kind": "mtop",
    "prompt_attention": "isolated",
    "prompt_init": "random",
    "pooler_init": "random",
}
_FAMILIES_TRAIN = {"learning_rate": 1e-4, "head_learning_rate": 1e-3, "eval_examples": 1000}
_LORA = {"rank": 8, "alpha": 16.0, "layers": 2}
# Larger batches, for texts are told apart from the others of theirs.
_PREFINETUNE = {
    **COMMON,
    "epochs": 1,
    "batch_size": 32,
    "learning_rate": 1e-4,
    "head_learning_rate": 1e-3,
    "seed": 0,
    "max_examples": 10_000,
}


def family_of(kind: str) -> str:
    """The family of a task of some kind, in experiments."""
    return ENTITIES if kind == "token" else TEXTS


def _shares(title: str, **options: Any) -> Method:
    return Method(title, _MODEL, _FAMILIES_TRAIN, reads="pooled", **options)


_SHARING: Mapping[str, Method] = {
    "families-naive": _shares("All tasks in one model"),
    "families-each": _shares("A model for each family", auxiliary={"method": "family"}),
    FAMILIES: _shares("Task-primary LoRA", families=_LORA),
}
FAMILY_METHODS: Mapping[str, Method] = {
    "families-alone": _shares("Each task alone", auxiliary={"method": "alone"}),
    **_SHARING,
    **{
        f"{name}-prefinetuned": replace(base, title=f"{base.title}, pre-finetuned", prefinetune=_PREFINETUNE)
        for name, base in _SHARING.items()
    },
}
