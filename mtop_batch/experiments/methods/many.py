"""The methods on a hundred tasks and more, after "Exceeding the Limits of Visual-Linguistic Multi-Task Learning".

All train as jobs/many.toml does, but for what a row changes, and take as many steps as a hundred tasks; fewer tasks
take their own epochs. "many-cls-groups-late-1" is the model of that file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mtop_batch.experiments.methods.method import Method, Share
from mtop_batch.tasks import Reader

MANY = "many"
"""The method that the others are compared with."""
JUDGED = Share(100)
"""What most are tested on. Larger sets begin with the tasks of smaller ones."""
_LARGE = Share(0, large=True)
FEWER_TASKS = (10, 25, 50, 75)

_PROMPTS: Mapping[str, Any] = {
    "kind": "mtop",
    "prompts_per_task": 2,
    "prompt_attention": "isolated",
    "pooler_rank": 64,
    "prompt_init": "token",
    "pooler_init": "random",
}
_GROUPS: Mapping[str, Any] = {**_PROMPTS, "prompt_groups": 8}
_CLS: Mapping[str, Any] = {
    "kind": "mtop",
    "prompts_per_task": 2,
    "prompt_attention": "isolated",
    "prompt_init": "cls",
    "pooler_init": "identity",
}
_BY_TEXT: Mapping[str, Any] = {
    "kind": "mtop",
    "prompt_attention": "isolated",
    "prompt_init": "random",
    "pooler_init": "random",
}
_FIXED: Mapping[str, Any] = {**_BY_TEXT, "attention_width": 64}
_DYPA: Mapping[str, Any] = {**_BY_TEXT, "attention_width": "dypa"}
_TRAIN: Mapping[str, Any] = {
    "batch_size": 32,
    "learning_rate": 1e-4,
    "head_learning_rate": 1e-3,
    "alpha_end": 0.1,
    "alpha_decay": "exponential",
    "warmup_fraction": 0.267,
    "schedule": {"kind": "steps", "drops": [0.533, 0.8], "factor": 0.1},
}
_BUDGET: Mapping[str, Any] = {"eval_examples": 5_000}
"""Of evaluations where there are very many examples: about as many as a hundred tasks have."""
_BY_SIZE: Mapping[str, Any] = {"alpha_end": None, "alpha_decay": None}


def _many(
    title: str,
    model: Mapping[str, Any] = _GROUPS,
    reads: Reader | None = None,
    judged: Share = JUDGED,
    learns: Share | None = None,
    own_epochs: bool = False,
    begins_with: str | None = None,
    **train: Any,
) -> Method:
    known = {key: value for key, value in {**_TRAIN, **train}.items() if value is not None}
    return Method(
        title,
        model,
        known,
        reads=reads,
        judged=judged,
        learns=learns,
        own_epochs=own_epochs,
        begins_with=begins_with,
    )


SCHEDULES: Mapping[str, Method] = {
    MANY: _many("Prompt groups"),
    "many-uniform": _many("alpha 0 (uniform)", alpha=0.0, **_BY_SIZE),
    "many-by-size": _many("alpha 1 (by size)", **_BY_SIZE),
    **{
        f"many-{decay}": _many(f"alpha 1 to 0.1, {decay}", alpha_decay=decay) for decay in ("linear", "cosine", "demon")
    },
    "many-constant": _many("constant rate of 1e-5", learning_rate=1e-5, schedule={"kind": "constant"}),
    "many-frozen": _many("encoder frozen at first", warmup_fraction=0.0, schedule={"kind": "frozen"}),
    "many-in-a-row": _many("10 steps in a row on a task", consecutive_steps=10),
}
"""How steps take tasks, and at which rate they learn."""

ALPHAS: Mapping[str, Method] = {
    f"many-{decay}-to-{end}": _many(f"alpha 1 to {end:g}, {decay}", alpha_end=end, alpha_decay=decay)
    for decay in ("linear", "exponential", "cosine", "demon")
    for end in (0.5, 0.0)
}
"""Where alpha ends; those that end at 0.1 are among `SCHEDULES`."""

READS: Mapping[str, Method] = {
    "many-prompts": _many("Prompts of each task's own", _PROMPTS),
    "many-late-2": _many("The same in the last two layers", {**_PROMPTS, "prompt_layers": 2}),
    "many-late-1": _many("The same in the last layer", {**_PROMPTS, "prompt_layers": 1}),
    "many-by-labels": _many("Prompt groups by labels", {**_PROMPTS, "prompt_groups": {"by": "labels", "n": 8}}),
    "many-by-correlation": _many(
        "Prompt groups by correlation", {**_PROMPTS, "prompt_groups": {"by": "correlation", "n": 8}}
    ),
    "many-learned": _many("Prompt groups, learned", {**_PROMPTS, "prompt_groups": {"by": "learned", "n": 8}}),
    "many-cls-groups-late-1": _many("Our recipe, prompt groups", {**_CLS, "prompt_groups": 8, "prompt_layers": 1}),
    "many-cls-late-1": _many("Our recipe, prompts of each task's own", {**_CLS, "prompt_layers": 1}),
    "many-cls": _many("Our recipe, prompt groups in all layers", {**_CLS, "prompt_groups": 8}),
    "many-pooled": _many("Fully connected heads", _BY_TEXT, "pooled"),
    "many-attention": _many("Attention heads, width 64", _FIXED, "attention"),
    "many-dypa": _many("Attention heads, DyPA", _DYPA, "attention"),
}
"""What a task reads, and which tasks share it."""

NUMBERS: Mapping[str, Method] = {
    "many-alone": replace(
        _many("Each task alone", {"kind": "mt-dnn", "dropout": 0.1}, **_BY_SIZE), auxiliary={"method": "alone"}
    ),
    "many-500": _many("Prompt groups, 500 tasks", learns=Share(500), **_BUDGET),
    "many-1000": _many("Prompt groups, 1,000 tasks", learns=Share(1_000), **_BUDGET),
    **{
        f"many-{number}-epochs": _many(
            f"Prompt groups, {number:,} tasks, own epochs", learns=Share(number), own_epochs=True, **_BUDGET
        )
        for number in (500, 1_000)
    },
    "many-and-large": _many("Prompt groups, a very large task added", learns=Share(100, large=True), **_BUDGET),
}
"""How many tasks learn together."""

TRANSFER: Mapping[str, Method] = {
    "many-large": _many("The pretrained encoder", judged=_LARGE, **_BUDGET),
    "many-large-100": _many("The encoder of 100 tasks", judged=_LARGE, begins_with=MANY, **_BUDGET),
    "many-large-1000": _many("The encoder of 1,000 tasks", judged=_LARGE, begins_with="many-1000", **_BUDGET),
    "many-large-1000-epochs": _many(
        "The encoder of 1,000 tasks, own epochs", judged=_LARGE, begins_with="many-1000-epochs", **_BUDGET
    ),
}
"""What a new, very large task begins with."""


FEWER_TITLES = ("alpha 1, width 64", "alpha 1 to 0.1, width 64", "alpha 1 to 0.1, DyPA")


def _fewer(count: int) -> dict[str, Method]:
    share = Share(count)
    return {
        f"many-of-{count}-by-size": _many(FEWER_TITLES[0], _FIXED, "attention", share, **_BY_SIZE),
        f"many-of-{count}-falling": _many(FEWER_TITLES[1], _FIXED, "attention", share),
        f"many-of-{count}-dypa": _many(FEWER_TITLES[2], _DYPA, "attention", share),
    }


FEWER: Mapping[str, Method] = {name: method for count in FEWER_TASKS for name, method in _fewer(count).items()}
"""Fewer tasks, with and without falling alpha and DyPA."""
