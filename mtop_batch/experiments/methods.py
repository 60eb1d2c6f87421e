"""The methods that are compared, and the tables they stand in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from mtop_batch.errors import ConfigError
from mtop_batch.selection.gradts import EXAMPLE_THRESHOLD, TASK_THRESHOLD
from mtop_batch.tasks import Reader

TableName = Literal["news", "glue", "ablations", "prompt-lengths", "auxiliary", "many", "families"]
TABLES: tuple[TableName, ...] = get_args(TableName)
DataName = Literal["news", "glue", "many", "families"]
DATA_FILES: Mapping[DataName, str] = {
    "news": "data/nhc",
    "glue": "data/glue",
    "many": "data/many",
    "families": "data/families",
}
"""Where the `tasks.toml` of each data set lies unless another is given."""


@dataclass(frozen=True)
class Method:
    """A way to train.

    Args:
        title: As tables call it.
        model: The section `[model]` of its configuration.
        train: What its `[train]` has besides `COMMON`.
        unlabelled: Its section `[unlabelled]`, but for the corpus; None if it learns from labelled examples only.
        auxiliary: How each task gets a model of its own, trained with tasks that help it: the "method" of
            `selection.select`, or "alone" for none, and its options; or "family", for one model of each family. None
            where one model has all tasks.
        reads: What its tasks on texts read; None for what the kind of model has them read.
        families: What `[[family]]` says of each family but its name (`family_of`); None where tasks have no families.
        prefinetune: How the encoder learns from source tasks before: a section `[train]`, and as "max_examples" most
            examples of a source; None if it begins as pretrained.
    """

    title: str
    model: Mapping[str, Any]
    train: Mapping[str, Any] = field(default_factory=dict)
    unlabelled: Mapping[str, Any] | None = None
    auxiliary: Mapping[str, Any] | None = None
    reads: Reader | None = None
    families: Mapping[str, Any] | None = None
    prefinetune: Mapping[str, Any] | None = None


COMMON: Mapping[str, Any] = {
    "epochs": 2,
    "batch_size": 16,
    "learning_rate": 5e-5,
    "weight_decay": 0.01,
    "warmup_fraction": 0.1,
    "max_grad_norm": 1.0,
    "alpha": 1.0,
    "freeze_word_embeddings": True,
}
"""What all methods have in `[train]`: as many labelled examples in as many steps, at the same rate of the backbone.

All is said here, so that a change of a default leaves what a run is, and so its digest, alone.
"""

# What starts at random, or was learned with the backbone frozen, wants larger steps than a pretrained layer.
_HEADS = {"head_learning_rate": 5e-4}
_WARM = {"warm_start": {"epochs": 2, "batch_size": 32, "learning_rate": 1e-3}}
_PAPER = {
    "kind": "mtop",
    "prompts_per_task": 2,
    "shared_prompts": 0,
    "prompt_attention": "joint",
    "prompt_init": "single-task",
    "pooler_init": "single-task",
    "stop_gradient": True,
}
_PROMPTED = {"dropout": 0.1, "prompt_init": "token"}
# One teacher, trained first, labels 32 texts beside the 16 examples of a step.
_TAUGHT = {"teachers": 1, "teacher_kind": "mt-dnn", "batch_size": 32, "weight": 3.0, "max_texts": 100_000}
MTOP = "mtop"


def _mtop(title: str, **model: Any) -> Method:
    return Method(title, {**_PAPER, **model}, {**_HEADS, **_WARM})


_SELECTIONS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "threshold": ("GradTS-threshold", {"method": "threshold", "threshold": TASK_THRESHOLD}),
    "trial": ("GradTS-trial", {"method": "trial"}),
    "fine-grained": ("GradTS-fine-grained", {"method": "fine-grained", "threshold": EXAMPLE_THRESHOLD}),
    "autosem": ("AUTOSEM", {"method": "autosem"}),
}


def _selections(name: str, base: Method) -> dict[str, Method]:
    """The methods that choose which tasks to train a task with, for models as another method has them."""
    return {
        f"{name}-{key}": replace(base, title=f"{base.title}, {title}", auxiliary=values)
        for key, (title, values) in _SELECTIONS.items()
    }


# A hundred tasks and more (large-scale multi-task learning): jobs/many.toml, but for what a row changes.
_GROUPS = {
    "kind": "mtop",
    "prompts_per_task": 2,
    "prompt_attention": "isolated",
    "prompt_groups": 8,
    "pooler_rank": 64,
    "prompt_init": "token",
    "pooler_init": "random",
}
_BY_TEXT = {"kind": "mtop", "prompt_attention": "isolated", "prompt_init": "random", "pooler_init": "random"}
_MANY_TRAIN = {
    "batch_size": 32,
    "learning_rate": 1e-4,
    "head_learning_rate": 1e-3,
    "alpha_end": 0.1,
    "alpha_decay": "exponential",
    "warmup_fraction": 0.267,
    "schedule": {"kind": "steps", "drops": [0.533, 0.8], "factor": 0.1},
}
MANY = "many"


def _many(title: str, model: Mapping[str, Any] = _GROUPS, reads: Reader | None = None, **train: Any) -> Method:
    known = {key: value for key, value in {**_MANY_TRAIN, **train}.items() if value is not None}
    return Method(title, model, known, reads=reads)


_MANY_METHODS: Mapping[str, Method] = {
    "many-alone": replace(
        _many("Each task alone", {"kind": "mt-dnn", "dropout": 0.1}, alpha_end=None, alpha_decay=None),
        auxiliary={"method": "alone"},
    ),
    MANY: _many("Prompt groups"),
    "many-uniform": _many("alpha 0 (uniform)", alpha=0.0, alpha_end=None, alpha_decay=None),
    "many-by-size": _many("alpha 1 (by size)", alpha_end=None, alpha_decay=None),
    **{
        f"many-{decay}": _many(f"alpha 1 to 0.1, {decay}", alpha_decay=decay) for decay in ("linear", "cosine", "demon")
    },
    "many-constant": _many("constant rate of 1e-5", learning_rate=1e-5, schedule={"kind": "constant"}),
    "many-frozen": _many("encoder frozen at first", warmup_fraction=0.0, schedule={"kind": "frozen"}),
    "many-in-a-row": _many("10 steps in a row on a task", consecutive_steps=10),
    "many-pooled": _many("Fully connected heads", _BY_TEXT, "pooled"),
    "many-attention": _many("Attention heads, width 64", {**_BY_TEXT, "attention_width": 64}, "attention"),
    "many-dypa": _many("Attention heads, DyPA", {**_BY_TEXT, "attention_width": "dypa"}, "attention"),
}

# Entities beside texts (task-primary LoRA): all methods have the same heads, so that they differ in what is shared.
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
FAMILIES = "families"
ENTITIES, TEXTS = "entities", "texts"


def family_of(kind: str) -> str:
    """The family of a task of some kind, in experiments."""
    return ENTITIES if kind == "token" else TEXTS


def _shares(title: str, **options: Any) -> Method:
    return Method(title, _BY_TEXT, _FAMILIES_TRAIN, reads="pooled", **options)


_SHARING: Mapping[str, Method] = {
    "families-naive": _shares("All tasks in one model"),
    "families-each": _shares("A model for each family", auxiliary={"method": "family"}),
    FAMILIES: _shares("Task-primary LoRA", families=_LORA),
}
_FAMILY_METHODS: Mapping[str, Method] = {
    "families-alone": _shares("Each task alone", auxiliary={"method": "alone"}),
    **_SHARING,
    **{
        f"{name}-prefinetuned": replace(base, title=f"{base.title}, pre-finetuned", prefinetune=_PREFINETUNE)
        for name, base in _SHARING.items()
    },
}

METHODS: Mapping[str, Method] = {
    "single-task": Method("Single task", {"kind": "single-task", "dropout": 0.1}),
    "mt-dnn": Method("MT-DNN", {"kind": "mt-dnn", "dropout": 0.1}),
    "p-tuning": Method("P-Tuning", {**_PROMPTED, "kind": "p-tuning", "prompts_per_task": 2}, _HEADS),
    "p-tuning-v2": Method(
        "P-Tuning v2", {**_PROMPTED, "kind": "p-tuning-v2", "prompts_per_task": 8, "prompt_dropout": 0.1}, _HEADS
    ),
    # The lower layers stay as pretrained: its authors' defaults leave 5 of 12.
    "ca-mtl": Method("CA-MTL", {"kind": "ca-mtl", "dropout": 0.1, "pretrained_top": False}, {"freeze_layers": 2}),
    MTOP: _mtop("MTOP"),
    "mtop-isolated": _mtop("MTOP, isolated prompts", prompt_attention="isolated"),
    "mtop-rd-rd": _mtop("Prompts (RD) + Cond (RD)", prompt_init="random", pooler_init="random"),
    "mtop-tk-rd": _mtop("Prompts (TK) + Cond (RD)", prompt_init="token", pooler_init="random"),
    "mtop-st-rd": _mtop("Prompts (ST) + Cond (RD)", pooler_init="random"),
    "mtop-rd-st": _mtop("Prompts (RD) + Cond (ST)", prompt_init="random"),
    "mtop-no-stop": _mtop("MTOP without SG", stop_gradient=False),
    "mt-dnn-taught": Method("MT-DNN, soft labels", {"kind": "mt-dnn", "dropout": 0.1}, unlabelled=_TAUGHT),
    "mtop-taught": Method(
        "MTOP, soft labels", {**_PAPER, "prompt_attention": "isolated"}, {**_HEADS, **_WARM}, unlabelled=_TAUGHT
    ),
    **{f"mtop-{n}-prompts": _mtop(f"{n} prompts a task", prompts_per_task=n) for n in (1, 4, 8)},
    **{f"mtop-{n}-shared": _mtop(f"2 prompts a task, {n} shared", shared_prompts=n) for n in (1, 2, 4)},
    **_selections("mt-dnn", Method("MT-DNN", {"kind": "mt-dnn", "dropout": 0.1})),
    "mtop-alone": replace(_mtop("MTOP, each task alone"), auxiliary={"method": "alone"}),
    **_selections(MTOP, _mtop("MTOP")),
    **_MANY_METHODS,
    **_FAMILY_METHODS,
}
"""By the name that `--methods` takes. MTOP alone is the paper's: joint prompts, begun from single tasks."""

_MAIN = ("single-task", "mt-dnn", "p-tuning", "p-tuning-v2", "ca-mtl", MTOP, "mtop-isolated")
TABLE_METHODS: Mapping[TableName, tuple[str, ...]] = {
    "news": (*_MAIN, "mt-dnn-taught", "mtop-taught"),
    "glue": _MAIN,
    "ablations": ("mt-dnn", "mtop-rd-rd", "mtop-tk-rd", "mtop-st-rd", "mtop-rd-st", "mtop-no-stop", MTOP),
    "prompt-lengths": (
        "mtop-1-prompts",
        MTOP,
        "mtop-4-prompts",
        "mtop-8-prompts",
        "mtop-1-shared",
        "mtop-2-shared",
        "mtop-4-shared",
    ),
    "auxiliary": (
        "single-task",
        "mt-dnn",
        *(f"mt-dnn-{key}" for key in _SELECTIONS),
        "mtop-alone",
        MTOP,
        *(f"mtop-{key}" for key in _SELECTIONS),
    ),
    "many": tuple(_MANY_METHODS),
    "families": tuple(_FAMILY_METHODS),
}
"""The rows of each table; those that learn from soft labels too stand on the news, of which there is more text."""

TABLE_DATA: Mapping[TableName, DataName] = {
    "news": "news",
    "glue": "glue",
    "ablations": "glue",
    "prompt-lengths": "glue",
    "auxiliary": "glue",
    "many": "many",
    "families": "families",
}
"""What each table is made on unless another data set is asked for."""


def reference(table: TableName) -> str:
    """The method that the others of a table are compared with."""
    return {"many": MANY, "families": FAMILIES}.get(table, MTOP)


def method(name: str) -> Method:
    """The method of a name.

    Raises:
        ConfigError: There is none.
    """
    if name not in METHODS:
        raise ConfigError(f"there is no method {name!r}; allowed: {', '.join(METHODS)}")
    return METHODS[name]
