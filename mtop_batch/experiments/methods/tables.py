"""The methods that are compared, and the tables they stand in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, get_args

from mtop_batch.errors import ConfigError
from mtop_batch.experiments.methods.families import FAMILIES, FAMILY_METHODS
from mtop_batch.experiments.methods.many import ALPHAS, FEWER, MANY, NUMBERS, READS, SCHEDULES, TRANSFER
from mtop_batch.experiments.methods.method import Method
from mtop_batch.selection.gradts import EXAMPLE_THRESHOLD, TASK_THRESHOLD

TableName = Literal[
    "news",
    "glue",
    "ablations",
    "prompt-lengths",
    "auxiliary",
    "families",
    "many",
    "many-alpha",
    "many-reads",
    "many-numbers",
    "many-transfer",
    "many-fewer",
]
TABLES: tuple[TableName, ...] = get_args(TableName)
DataName = Literal["news", "glue", "many", "families"]
DATA_FILES: Mapping[DataName, str] = {
    "news": "data/nhc",
    "glue": "data/glue",
    "many": "data/many",
    "families": "data/families",
}
"""Where the `tasks.toml` of each data set lies unless another is given."""
BUILT_BY: Mapping[DataName, str] = {
    "news": "mtop build-nhc",
    "glue": "mtop build-glue",
    "many": "mtop build-many",
    "families": "mtop build-families",
}
"""The command that makes each."""

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
_TRAINING_ONLY = ("prompt_init", "pooler_init", "pretrained_top", "stop_gradient", "dropout", "prompt_dropout")
"""Keys of `[model]` that change nothing of what a trained model computes."""
MTOP = "mtop"
OURS = "mtop-cls-late-1"
OURS_TAUGHT = "mtop-cls-late-1-taught"
"""What jobs/nhc-cpu.toml does, without and with soft labels."""


# Isolated prompts begin as [CLS] and poolers hand on what these read, so nothing has to be learned alone first.
_CLS = {**_PAPER, "prompt_attention": "isolated", "prompt_init": "cls", "pooler_init": "identity"}
# They enter at the last layer, which costs next to nothing.
_OURS = {**_CLS, "prompt_layers": 1}


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


_MANY_METHODS: Mapping[str, Method] = {**SCHEDULES, **ALPHAS, **READS, **NUMBERS, **TRANSFER, **FEWER}

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
    OURS: Method("MTOP, our recipe", _OURS, _HEADS),
    OURS_TAUGHT: Method("MTOP, our recipe, soft labels", _OURS, _HEADS, unlabelled=_TAUGHT),
    "mtop-cls-late-2": Method("Our recipe, prompts in two layers", {**_CLS, "prompt_layers": 2}, _HEADS),
    "mtop-cls-late-3": Method("Our recipe, prompts in three layers", {**_CLS, "prompt_layers": 3}, _HEADS),
    "mtop-cls": Method("Our recipe, prompts in all layers", _CLS, _HEADS),
    "mtop-cls-taught": Method("Our recipe, prompts in all layers, soft labels", _CLS, _HEADS, unlabelled=_TAUGHT),
    **{f"mtop-{n}-prompts": _mtop(f"{n} prompt{'s' if n > 1 else ''} a task", prompts_per_task=n) for n in (1, 4, 8)},
    **{f"mtop-{n}-shared": _mtop(f"2 prompts a task, {n} shared", shared_prompts=n) for n in (1, 2, 4)},
    **_selections("mt-dnn", Method("MT-DNN", {"kind": "mt-dnn", "dropout": 0.1})),
    "mtop-alone": replace(_mtop("MTOP, each task alone"), auxiliary={"method": "alone"}),
    **_selections(MTOP, _mtop("MTOP")),
    **_MANY_METHODS,
    **FAMILY_METHODS,
}
"""By the name that `--methods` takes. MTOP alone is the paper's: joint prompts, begun from single tasks."""

BEGUN_WITH = frozenset(chosen.begins_with for chosen in METHODS.values() if chosen.begins_with)
"""The methods whose encoders others begin with."""

_MAIN = ("single-task", "mt-dnn", "p-tuning", "p-tuning-v2", "ca-mtl", MTOP, "mtop-isolated", "mtop-cls", OURS)
TABLE_METHODS: Mapping[TableName, tuple[str, ...]] = {
    "news": (*_MAIN, "mt-dnn-taught", "mtop-taught", "mtop-cls-taught", OURS_TAUGHT),
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
        OURS,
        "mtop-cls-late-2",
        "mtop-cls-late-3",
        "mtop-cls",
    ),
    "auxiliary": (
        "single-task",
        "mt-dnn",
        *(f"mt-dnn-{key}" for key in _SELECTIONS),
        "mtop-alone",
        MTOP,
        *(f"mtop-{key}" for key in _SELECTIONS),
    ),
    "families": tuple(FAMILY_METHODS),
    "many": tuple(SCHEDULES),
    "many-alpha": (MANY, "many-linear", "many-cosine", "many-demon", *ALPHAS),
    "many-reads": (MANY, *READS),
    "many-numbers": (MANY, *NUMBERS),
    "many-transfer": tuple(TRANSFER),
    "many-fewer": tuple(FEWER),
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
    "many-alpha": "many",
    "many-reads": "many",
    "many-numbers": "many",
    "many-transfer": "many",
    "many-fewer": "many",
}
"""What each table is made on unless another data set is asked for."""


def references(table: TableName) -> tuple[str, ...]:
    """The methods that the others of a table are compared with, the paper's first."""
    if table == "many-transfer":
        return ("many-large",)
    if table == "news":
        return MTOP, OURS, OURS_TAUGHT, "mtop-taught", "mtop-cls-taught"
    if table in ("glue", "prompt-lengths"):
        return MTOP, OURS
    return ({"many": MANY, "families": FAMILIES}.get(TABLE_DATA[table], MTOP),)


def methods_of(table: TableName) -> tuple[str, ...]:
    """The methods of a table and of its parts, which are called after it: those of "many" are all on many tasks."""
    names = (name for part in TABLES if part == table or part.startswith(f"{table}-") for name in TABLE_METHODS[part])
    return tuple(dict.fromkeys(names))


def labels_alike(name: str, model: Mapping[str, Any]) -> str:
    """The same for methods that compute the same to label texts, and differ in how they train.

    Args:
        name: Of a method.
        model: What is said in the section `[model]`.
    """
    chosen = method(name)
    computed = {key: value for key, value in model.items() if key not in _TRAINING_ONLY}
    return repr(
        (sorted(computed.items()), chosen.reads, chosen.families, chosen.auxiliary, chosen.judged, chosen.learns)
    )


def method(name: str) -> Method:
    """The method of a name.

    Raises:
        ConfigError: There is none.
    """
    if name not in METHODS:
        raise ConfigError(f"there is no method {name!r}; allowed: {', '.join(METHODS)}")
    return METHODS[name]
