"""The sections of a configuration file, with every key, its default and what is allowed.

The resolved configuration is stored in the bundle, so that a bundle says how it was made.
"""

from __future__ import annotations

from itertools import cycle
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, field_validator, model_validator

from mtop_batch.errors import TaskError
from mtop_batch.precision import PrecisionChoice
from mtop_batch.tasks import Metric, Reader, Task, TaskKind, check_task_names


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BackboneConfig(_Section):
    """The pretrained encoder."""

    name: str
    """A hub id, a local directory, or `package:<package>/<directory>` inside an installed package."""
    max_tokens: int = Field(128, ge=8, le=8192)
    """Texts are cut to this many tokens, special tokens included; prompts do not count."""


class ModelConfig(_Section):
    """The multi-task model on top of the backbone; each kind has its own keys."""

    kind: str
    default_reader: ClassVar[Reader]
    """What a task reads that does not say."""

    def settings(self) -> dict[str, Any]:
        """The keys that make the model: arguments of its class's `from_backbone`."""
        return self.model_dump(exclude={"kind"})


class MTOPModelConfig(ModelConfig):
    """`kind = "mtop"`: prompts, a pooler and a head for each task, one forward pass for all."""

    kind: Literal["mtop"] = "mtop"
    """The method."""
    default_reader = "prompts"
    prompts_per_task: int = Field(2, ge=1, le=64)
    """Soft prompt tokens of each task. One costs less, most of all where texts are short, and was as accurate on the
    news set."""
    shared_prompts: int = Field(0, ge=0, le=64)
    """Task-agnostic prompts, prepended before the tasks' own."""
    prompt_attention: Literal["joint", "isolated"] = "joint"
    """"joint" as in the paper; "isolated": the text attends to text only, a task's prompts to text and themselves."""
    prompt_groups: int = Field(0, ge=0, le=256)
    """Tasks are assigned round-robin to so many groups, and those of a group share `prompts_per_task` prompts; poolers
    and heads stay their own. 0, as in the paper: prompts of their own too."""
    pooler_rank: int = Field(0, ge=0, le=1024)
    """Rank of the poolers' kernels, which then have 2 * rank * width parameters per task; 0, as in the paper: full
    ones with width^2."""
    prompt_init: Literal["random", "token", "single-task"] = "single-task"
    """What prompts start as: random, embeddings of frequent tokens, or what the single-task phase learned."""
    pooler_init: Literal["random", "single-task"] = "single-task"
    """What poolers and heads start as."""
    stop_gradient: bool = True
    """A step on one task leaves the other tasks' prompts alone."""

    def settings(self) -> dict[str, Any]:
        """All keys but those that say how prompts and poolers begin, and which tasks share prompts."""
        return self.model_dump(exclude={"kind", "prompt_init", "pooler_init", "prompt_groups"})

    @property
    def needs_warm_start(self) -> bool:
        """Whether each task trains alone first."""
        return "single-task" in (self.prompt_init, self.pooler_init)


MODEL_SECTIONS: dict[str, type[ModelConfig]] = {"mtop": MTOPModelConfig}
"""The section of each kind of model, by the name that `model.kind` gives it."""


class ScheduleConfig(_Section):
    """How long and how fast to train."""

    epochs: float = Field(gt=0)
    """Passes over the examples."""
    batch_size: int = Field(ge=1)
    """Examples per step."""
    learning_rate: float = Field(gt=0, lt=1)
    """Highest learning rate."""


class OptimizerConfig(ScheduleConfig):
    """What every training is told, of one task or of all."""

    weight_decay: float = Field(0.01, ge=0, lt=1)
    """Of AdamW."""
    warmup_fraction: float = Field(0.1, ge=0, le=1)
    """Share of the steps in which the rate rises linearly; it falls linearly to zero over the rest."""
    max_grad_norm: float = Field(1.0, ge=0)
    """Gradients are clipped to this norm; 0 turns clipping off."""
    seed: int = Field(0, ge=0)
    """Of everything random."""
    precision: PrecisionChoice = "auto"
    """"auto": bf16 autocast on GPUs that have it, fp32 elsewhere."""
    max_failures: int = Field(3, ge=0)
    """Worker failures after which training resumes from what is kept, before it gives up."""


class WarmStartConfig(ScheduleConfig):
    """The single-task phase: frozen backbone; prompts, pooler and head of each task train apart (paper, 4.3)."""

    epochs: float = Field(2.0, gt=0)
    """Passes over the examples of each task."""
    batch_size: int = Field(32, ge=1)
    """Examples per step."""
    learning_rate: float = Field(1e-3, gt=0, lt=1)
    """Highest learning rate."""


class TrainConfig(OptimizerConfig):
    """The multi-task phase."""

    epochs: float = Field(5.0, gt=0)
    """One epoch is as many examples as all tasks have together."""
    batch_size: int = Field(16, ge=1)
    """Examples per step over all workers together; all of one task."""
    learning_rate: float = Field(1e-5, gt=0, lt=1)
    """Highest learning rate of the backbone."""
    head_learning_rate: float | None = Field(None, gt=0, lt=1)
    """Learning rate of prompts, poolers and heads; the same as `learning_rate` if not given."""
    alpha: float = Field(1.0, ge=0, le=1)
    """Task i is drawn at a rate proportional to (its number of examples) ** alpha: 1 proportional, 0 uniform."""
    num_workers: int = Field(1, ge=1)
    """Ray Train workers; each holds the whole model and takes its part of every batch."""
    freeze_word_embeddings: bool = False
    """Leave the word-embedding table as pretrained; on a CPU and with a small backbone that is faster."""
    warm_start: WarmStartConfig = WarmStartConfig()  # type: ignore[call-arg]
    """The single-task phase."""


class AddTasksConfig(OptimizerConfig):
    """`mtop add-tasks`: each new task trains alone, on a backbone that stays as it is.

    Of this section a task that reads the vector takes seed, precision and max_failures only.
    """

    epochs: float = Field(10.0, gt=0)
    """The weights of the best one are taken."""
    batch_size: int = Field(32, ge=1)
    """Examples per step."""
    learning_rate: float = Field(1e-3, gt=0, lt=1)
    """Highest learning rate."""
    prompts_per_task: int = Field(2, ge=1, le=64)
    """Soft prompt tokens of each new task."""
    lora_rank: int = Field(8, ge=0, le=64)
    """Rank of the LoRA of each new task, on every linear layer of the backbone at the task's own prompts only; 0 for
    none."""
    context_dropout: float = Field(0.2, ge=0, lt=1)
    """Share of what prompts read of a text that is hidden from them in each step."""


class TaskConfig(_Section):
    """A task: its definition and where its examples lie."""

    name: str
    """Names the columns of the label table: letters, digits, `_` and `-`, starting with a letter."""
    kind: TaskKind | Literal["probe"] = "classification"
    """"classification" or "regression"; "probe" is short for a classification that reads the vector."""
    reads: Reader | None = None
    """"prompts", or "vector": the document vector, without prompts; only `mtop add-tasks` learns that. Without it, what
    the kind of model gives."""
    labels: tuple[str, ...] = ()
    """Two or more; none for a regression."""
    metric: Metric | None = None
    """What judges the task; the mean over the tasks chooses the checkpoint. The kind's first one if left out."""
    text: tuple[str, ...] = ("text",)
    """One column, or two for a pair."""
    label: str = "label"
    """The label column."""
    prompt_group: str | None = Field(None, pattern="^[A-Za-z][A-Za-z0-9_-]*$")
    """The task shares the prompts of this group, whatever `model.prompt_groups` says; not in `mtop add-tasks`."""
    train: str
    """Parquet file or directory (local or object storage), or `hub:<data set>?config=...&split=...`."""
    eval: str
    """Evaluation examples, as for `train`."""

    @model_validator(mode="after")
    def _definition_fits(self) -> Self:
        self.definition()
        return self

    def definition(self, default_reader: Reader = "prompts") -> Task:
        """The part of the task that decides its output.

        Args:
            default_reader: What it reads if it does not say.
        """
        return Task(self.name, self.kind, self.labels, self.text, self.metric or "", self.reads or default_reader)


class Config(_Section):
    """A whole configuration file."""

    output: str
    """Where the bundle goes: a local directory or an object-storage prefix."""
    backbone: BackboneConfig
    """The pretrained encoder."""
    model: SerializeAsAny[ModelConfig] = MTOPModelConfig()  # type: ignore[call-arg]
    """The model on top of it."""
    train: TrainConfig = TrainConfig()  # type: ignore[call-arg]
    """How `mtop train` trains."""
    add_tasks: AddTasksConfig = AddTasksConfig()  # type: ignore[call-arg]
    """How `mtop add-tasks` trains."""
    task: tuple[TaskConfig, ...] = Field(min_length=1)
    """The tasks, one table each; or `tasks = "FILE.toml"`, a file that holds nothing but these tables."""

    @field_validator("model", mode="before")
    @classmethod
    def _by_kind(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        kind = value.get("kind", "mtop")
        if kind not in MODEL_SECTIONS:
            raise ValueError(f"kind = {kind!r} is not one of {', '.join(MODEL_SECTIONS)}")
        return MODEL_SECTIONS[kind].model_validate(value)

    @model_validator(mode="after")
    def _tasks_fit(self) -> Self:
        check_task_names(task.name for task in self.task)
        grouped = [task.name for task in self.task if task.prompt_group is not None]
        if grouped and not isinstance(self.model, MTOPModelConfig):
            raise TaskError(f"task {grouped[0]!r}: model.kind = {self.model.kind!r} has no prompt_group; remove it")
        return self

    def tasks(self) -> list[Task]:
        """The definitions of all tasks, in the order of the file."""
        return [task.definition(self.model.default_reader) for task in self.task]

    def prompt_groups(self) -> dict[str, str]:
        """Task -> prompt group, of the tasks that share prompts.

        A task's own `prompt_group` counts. The others are assigned round-robin to the groups "1" to "G" where
        `model.prompt_groups` is G, so that tasks appended to the file leave the groups of those before as they are.
        """
        named = {task.name: task.prompt_group for task in self.task if task.prompt_group is not None}
        if not isinstance(self.model, MTOPModelConfig):
            return {}
        numbers = cycle(str(number + 1) for number in range(self.model.prompt_groups))
        assigned = zip((task.name for task in self.task if task.name not in named), numbers, strict=False)
        return {**named, **dict(assigned)}
