"""The sections that say how to train: `[train]`, `[unlabelled]` and `[add_tasks]`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from mtop_batch.config.model import MODEL_SECTIONS, SingleTaskModelConfig
from mtop_batch.config.section import Address, GivenAddress, Section
from mtop_batch.precision import PrecisionChoice

RateKind = Literal["linear", "constant", "steps", "frozen"]
AlphaDecay = Literal["linear", "exponential", "cosine", "demon"]
_MAX_BATCH = 1_000_000
# The task of every step of a run is drawn at its start.
_MAX_EPOCHS = 10_000


class ScheduleConfig(Section):
    """How long and how fast to train."""

    epochs: float = Field(gt=0, le=_MAX_EPOCHS)
    """Passes over the examples."""
    batch_size: int = Field(ge=1, le=_MAX_BATCH)
    """Examples per step."""
    learning_rate: float = Field(gt=0, lt=1)
    """Highest learning rate."""


class RateScheduleConfig(Section):
    """How learning rates go on after the warm-up; `schedule = { kind = "steps" }` for short."""

    kind: RateKind = "linear"
    """"linear": down linearly to zero. "constant": as they are. "steps": times `factor` at each of `drops`; the warm-up
    then begins at `factor`. "frozen": the encoder stays as it is for the first `frozen_fraction` of the steps, then all
    rates are times `factor`."""
    drops: tuple[Annotated[float, Field(ge=0, le=1)], ...] = (0.533, 0.8)
    """Shares of the steps, of "steps"."""
    frozen_fraction: float = Field(0.267, ge=0, le=1)
    """Share of the steps, of "frozen"."""
    factor: float = Field(0.1, gt=0, le=1)
    """Of "steps" and "frozen"."""


class OptimizerConfig(ScheduleConfig):
    """What every training is told, of one task or of all."""

    weight_decay: float = Field(0.01, ge=0, lt=1)
    """Of AdamW."""
    warmup_fraction: float = Field(0.1, ge=0, le=1)
    """Share of the steps in which the rate rises linearly; over the rest it falls linearly to zero, unless
    `train.schedule` says otherwise."""
    max_grad_norm: float = Field(1.0, ge=0)
    """Gradients are clipped to this norm; 0 turns clipping off."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Of everything random."""
    precision: PrecisionChoice = "auto"
    """"auto": bf16 autocast on GPUs that have it, fp32 elsewhere."""
    max_failures: int = Field(3, ge=0)
    """Worker failures after which training resumes from what is kept, before it gives up."""


class WarmStartConfig(ScheduleConfig):
    """The single-task phase: frozen backbone; prompts, pooler and head of each task train apart (paper, 4.3)."""

    epochs: float = Field(2.0, gt=0, le=_MAX_EPOCHS)
    """Passes over the examples of each task."""
    batch_size: int = Field(32, ge=1, le=_MAX_BATCH)
    """Examples per step."""
    learning_rate: float = Field(1e-3, gt=0, lt=1)
    """Highest learning rate."""


class TrainConfig(OptimizerConfig):
    """The multi-task phase."""

    epochs: float = Field(5.0, gt=0, le=_MAX_EPOCHS)
    """One epoch is as many examples as all tasks have together."""
    batch_size: int = Field(16, ge=1, le=_MAX_BATCH)
    """Examples per step over all workers together; all of one task."""
    learning_rate: float = Field(1e-5, gt=0, lt=1)
    """Highest learning rate of the backbone."""
    head_learning_rate: float | None = Field(None, gt=0, lt=1)
    """Learning rate of prompts, poolers and heads. If not given, the same as `learning_rate`; ten times it, up to 1e-3,
    of `mtop` models whose heads begin at random (`pooler_init`)."""
    alpha: float = Field(1.0, ge=0, le=1)
    """Task i is drawn at a rate proportional to (its number of examples) ** alpha: 1 proportional, 0 uniform."""
    alpha_end: float | None = Field(None, ge=0, le=1)
    """What alpha becomes until the last step, so that small tasks are learned from longer; with hundreds of tasks
    `0.1`. Without this key it stays as it is."""
    alpha_decay: AlphaDecay = "exponential"
    """Which way alpha goes to `alpha_end`."""
    consecutive_steps: int = Field(1, ge=1)
    """How many steps in a row take the task that was drawn; more than one is worse, and with hundreds of tasks may
    diverge."""
    num_workers: int = Field(1, ge=1)
    """Ray Train workers; each holds the whole model and takes its part of every batch."""
    eval_every: float = Field(1.0, ge=0.01)
    """Epochs from one evaluation to the next; the end is always evaluated."""
    eval_examples: int | None = Field(None, ge=1)
    """Most evaluation examples of all tasks together: of larger tasks a random part is taken, as large for one as for
    another, and of every task one at least. Without this key all are. `mtop evaluate` takes all in any case."""
    patience: int | None = Field(None, ge=1)
    """Stop after so many evaluations without a higher mean metric; without this key all epochs are trained. The
    learning rate falls over all `epochs` either way."""
    tensorboard: bool = False
    """Write event files of TensorBoard, with losses, learning rates and metrics, to `<output>.training` while the
    training runs, and then beside the bundle (`pip install 'mtop-batch[tensorboard]'`)."""
    mlflow: Address | None = None
    """Log these to MLflow: its tracking URI, or else the name of an experiment (`pip install mlflow`)."""
    freeze_word_embeddings: bool = False
    """Leave the word-embedding table as pretrained; on a CPU and with a small backbone that is faster."""
    freeze_layers: int = Field(0, ge=0)
    """Leave so many of the lowest layers as pretrained; the embeddings train."""
    freeze_backbone: bool = False
    """Leave the whole backbone as pretrained."""
    warm_start: WarmStartConfig = WarmStartConfig()  # type: ignore[call-arg]
    schedule: RateScheduleConfig = RateScheduleConfig()  # type: ignore[call-arg]
    """The single-task phase."""


class UnlabelledConfig(Section):
    """Texts that `mtop train` also learns from. Teachers, trained first, label them for all tasks; every step takes
    some of them beside its examples.

    The examples' own texts are among them, for each has one task's label; texts of evaluations and tests
    are not.
    """

    corpus: Address = ""
    """Parquet file or directory (local or object storage) of further texts; none if empty."""
    text: tuple[str, ...] = Field((), max_length=2)
    """Its text columns; those of the first task if left out."""
    max_texts: int = Field(100_000, ge=1)
    """Most texts, those of examples included; of a larger corpus a random part is taken."""
    teachers: tuple[GivenAddress, ...] | int = 2
    """How many teachers to train on the examples, with `[train]` and seeds of their own; or bundles that are there."""
    teacher_kind: str = "mt-dnn"
    """`model.kind` of teachers to train."""
    batch_size: int = Field(16, ge=1, le=_MAX_BATCH)
    """Texts per step over all workers together."""
    weight: float = Field(3.0, gt=0, le=100)
    """Of their loss, the mean over texts and tasks, beside that of the examples."""

    @field_validator("teachers", mode="before")
    @classmethod
    def _number_or_bundles(cls, value: Any) -> Any:
        if not isinstance(value, int | list | tuple):
            raise ValueError("give how many to train, or a list of bundles")
        return value

    @field_validator("teachers")
    @classmethod
    def _some_teacher(cls, value: tuple[str, ...] | int) -> tuple[str, ...] | int:
        if value in (0, ()) or (isinstance(value, int) and value < 0):
            raise ValueError("no teacher; give how many to train, or the bundles of some")
        return value

    @field_validator("teacher_kind")
    @classmethod
    def _teaches_all_tasks(cls, value: str) -> str:
        kinds = [kind for kind in MODEL_SECTIONS if kind != SingleTaskModelConfig.model_fields["kind"].default]
        if value not in kinds:
            raise ValueError(f"{value!r} is not one of {', '.join(kinds)}")
        return value


class AddTasksConfig(OptimizerConfig):
    """`mtop add-tasks`: each new task trains alone, on a backbone that stays as it is.

    Of this section a task that reads the vector takes seed, precision and max_failures only.
    """

    epochs: float = Field(10.0, gt=0, le=_MAX_EPOCHS)
    """The weights of the best one are taken."""
    batch_size: int = Field(32, ge=1, le=_MAX_BATCH)
    """Examples per step."""
    learning_rate: float = Field(1e-3, gt=0, lt=1)
    """Highest learning rate."""
    prompts_per_task: int = Field(2, ge=1, le=64)
    """Soft prompt tokens of each new task."""
    pooler_init: Literal["random", "identity"] = "identity"
    """What poolers start as: "identity" hands on what the prompts read."""
    lora_rank: int = Field(8, ge=0, le=64)
    """Rank of the LoRA of each new task, on every linear layer of the backbone at the task's own prompts only; 0 for
    none."""
    context_dropout: float = Field(0.2, ge=0, lt=1)
    """Share of what prompts read of a text that is hidden from them in each step."""
