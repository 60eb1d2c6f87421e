"""The sections of a configuration file, with every key, its default and what is allowed.

The resolved configuration is stored in the bundle, so that a bundle says how it was made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from math import inf
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationInfo,
    field_validator,
    model_validator,
)

from mtop_batch.decisions.rules import Rule
from mtop_batch.errors import TaskError
from mtop_batch.families import Family
from mtop_batch.lines import listed
from mtop_batch.precision import PrecisionChoice
from mtop_batch.storage import absolute, check_address
from mtop_batch.tasks import (
    Combine,
    LabelBy,
    Metric,
    Reader,
    ScoresKept,
    Task,
    TaskKind,
    VectorInput,
    check_task_names,
)

Address = Annotated[str, AfterValidator(check_address)]
"""Where data or bundles are: without credentials, for a bundle holds its configuration."""
GivenAddress = Annotated[Annotated[str, Field(min_length=1)], AfterValidator(check_address)]
RateKind = Literal["linear", "constant", "steps", "frozen"]
AlphaDecay = Literal["linear", "exponential", "cosine", "demon"]
_MAX_BATCH = 1_000_000
_MAX_GROUPS = 256
_WINDOW_OVERLAP, _MAX_WINDOWS = 16, 8
# Of a text: twenty thousand articles, a unit of work, have a place in memory together.
_MOST_TOKENS = 32_768

# The task of every step of a run is drawn at its start.
_MAX_EPOCHS = 10_000


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """True and false are numbers to Python."""
        if isinstance(value, bool) and cls.model_fields[info.field_name or ""].annotation is not bool:
            raise ValueError("neither true nor false is meant here")
        return value


class BackboneConfig(_Section):
    """The pretrained encoder."""

    name: str
    """A hub id, a local directory, or `package:<package>/<directory>` inside an installed package. A directory may be a
    bundle, such as one of many tasks: training then begins with its encoder."""
    max_tokens: int = Field(128, ge=8, le=8192)
    """Texts are cut to this many tokens, special tokens included; prompts do not count."""
    long_texts: Literal["cut", "windows"] = "cut"
    """"windows": a text longer than `max_tokens` is read in windows of so many tokens, and each task combines what they
    say (`combine`). Of a pair the longer text is divided, and the other one stands in every window."""
    window_overlap: int | None = Field(None, ge=0, le=8192)
    """Tokens that a window shares with the one before; 16 without this key. Only with "windows"."""
    max_windows: int | None = Field(None, ge=2, le=256)
    """Windows of a text, what is behind them is not read; 8 without this key. Only with "windows"."""

    @field_validator("name")
    @classmethod
    def _of_a_directory(cls, name: str) -> str:
        # Other names may be those of the hub as well as of a directory: whoever loads it finds out.
        return absolute(name) if name.startswith(("~", "file:")) else name

    @model_validator(mode="after")
    def _windows_fit(self) -> Self:
        if self.long_texts == "cut":
            for key in ("window_overlap", "max_windows"):
                if getattr(self, key) is not None:
                    raise ValueError(f'{key} is for long_texts = "windows"; set that, or remove {key}')
        elif (most := self.text_limits["max_windows"] * self.max_tokens) > _MOST_TOKENS:
            raise ValueError(
                f"max_windows times max_tokens is {most:,} tokens of a text; at most {_MOST_TOKENS:,} are allowed"
            )
        return self

    @classmethod
    def of(cls, name: str, text_limits: Mapping[str, int]) -> BackboneConfig:
        """The section of a bundle.

        Args:
            name: Of the backbone.
            text_limits: Of the bundle, as the property of that name has them.
        """
        if text_limits["max_windows"] == 1:
            text_limits = {"max_tokens": text_limits["max_tokens"]}
        long_texts = "windows" if "max_windows" in text_limits else "cut"
        return cls.model_validate({"name": name, "long_texts": long_texts, **text_limits})

    @property
    def text_limits(self) -> dict[str, int]:
        """How much of a text is read, as the tokeniser and the model take it."""
        if self.long_texts == "cut":
            return {"max_tokens": self.max_tokens, "max_windows": 1, "window_overlap": 0}
        most = _MAX_WINDOWS if self.max_windows is None else self.max_windows
        overlap = _WINDOW_OVERLAP if self.window_overlap is None else self.window_overlap
        return {"max_tokens": self.max_tokens, "max_windows": most, "window_overlap": overlap}


def _are_different(inputs: tuple[VectorInputConfig, ...]) -> tuple[VectorInputConfig, ...]:
    names = [spec.column for spec in inputs]
    if len(set(names)) < len(names):
        raise ValueError(f"two inputs have one column; columns: {listed(names)}")
    return inputs


class ModelConfig(_Section):
    """The multi-task model on top of the backbone; each kind has its own keys."""

    kind: str
    default_reader: ClassVar[Reader]
    """What a task reads that does not say."""

    def settings(self) -> dict[str, Any]:
        """The keys that make the model: arguments of its class's `from_backbone`."""
        return self.model_dump(exclude={"kind"})

    @property
    def vector_inputs(self) -> tuple[VectorInput, ...]:
        """What is read beside each text; nothing by most kinds."""
        return tuple(VectorInput(**spec) for spec in self.settings().get("inputs", ()))


class VectorInputConfig(_Section):
    """Vectors that are read beside each text, such as embeddings of its images."""

    column: str = Field(min_length=1)
    """The column, of examples and of the corpus: lists of floats, or lists of such lists; null where there is none."""
    size: int = Field(ge=1, le=65_536)
    """Numbers of a vector."""
    tokens: int = Field(1, ge=1, le=64)
    """Most vectors of an article; what follows is not read. Each takes a position in the sequence."""


Inputs = Annotated[tuple[VectorInputConfig, ...], AfterValidator(_are_different)]


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
    prompt_attention: Literal["joint", "isolated"] = "isolated"
    """"isolated": the text attends to text only, a task's prompts to text and themselves, so that tasks can be replaced
    and removed later; "joint" as in the paper."""
    prompt_groups: int | dict[str, int | str] = 0
    """Tasks are assigned round-robin to so many groups, up to 256, and those of a group share `prompts_per_task`
    prompts; poolers and heads stay their own. 0, as in the paper: prompts of their own too. `{ by = "correlation",
    n = 8 }`: tasks whose own models use the same attention heads share prompts (`mtop select-tasks`)."""
    pooler_rank: int = Field(0, ge=0, le=1024)
    """Rank of the poolers' kernels, which then have 2 * rank * width parameters per task; 0, as in the paper: full
    ones with width^2."""
    attention_width: Literal["dypa"] | Annotated[int, Field(ge=1, le=4096)] = "dypa"
    """Width in which a task that reads by attention (`reads = "attention"`) does so; "dypa": between a sixth and four
    thirds of the encoder's, by how many training examples the task has beside the others."""
    attention_heads: int = Field(2, ge=1, le=64)
    """Of such tasks; a given width is a multiple of it."""
    prompt_init: Literal["random", "token", "single-task"] = "single-task"
    """What prompts start as: random, embeddings of frequent tokens, or what the single-task phase learned."""
    pooler_init: Literal["random", "single-task"] = "single-task"
    """What poolers and heads start as."""
    stop_gradient: bool = True
    """A step on one task leaves the other tasks' prompts alone."""
    prompt_layers: int = Field(0, ge=0)
    """Prompts enter at the last so many layers, where they read what the text has there, and cost so much less; 0 for
    all layers. Only with "isolated"."""
    inputs: Inputs = ()
    """Vectors beside each text, such as `[{ column = "image_vector", size = 1792, tokens = 1 }]`: each is projected by
    a linear layer and stands behind the text, with a token type of its own."""

    @field_validator("prompt_groups", mode="before")
    @classmethod
    def _are_groups(cls, value: Any) -> Any:
        by_correlation = isinstance(value, dict) and value.keys() == {"by", "n"} and value["by"] == "correlation"
        number = value["n"] if by_correlation else value
        least = 1 if by_correlation else 0
        if isinstance(number, bool) or not isinstance(number, int) or not least <= number <= _MAX_GROUPS:
            raise ValueError(  # one line, and not one for each of the types that it may have
                f'give a number of groups up to {_MAX_GROUPS}, or {{ by = "correlation", n = 8 }}'
            )
        return value

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> Self:
        if self.attention_width != "dypa" and self.attention_width % self.attention_heads:
            heads = self.attention_heads
            raise ValueError(f"attention_width = {self.attention_width} is not a multiple of attention_heads = {heads}")
        return self

    @model_validator(mode="after")
    def _late_prompts_are_isolated(self) -> Self:
        if self.prompt_layers and (self.prompt_attention != "isolated" or self.shared_prompts):
            raise ValueError(
                f"prompt_layers = {self.prompt_layers} is for prompts that the text does not see; set "
                'prompt_attention = "isolated" and shared_prompts = 0, or remove it'
            )
        return self

    @property
    def correlated_groups(self) -> int:
        """How many groups are made of tasks that correlate; 0 where groups are made otherwise, or not at all."""
        return int(self.prompt_groups["n"]) if isinstance(self.prompt_groups, dict) else 0

    def settings(self) -> dict[str, Any]:
        """All keys but those that say how prompts and poolers begin, and which tasks share prompts."""
        return self.model_dump(exclude={"kind", "prompt_init", "pooler_init", "prompt_groups", "attention_width"})

    @property
    def needs_warm_start(self) -> bool:
        """Whether each task trains alone first."""
        return "single-task" in (self.prompt_init, self.pooler_init)


class PooledModelConfig(ModelConfig):
    """What the kinds that MTOP is compared with have in common: a pooler and a head for each task."""

    default_reader: ClassVar[Reader] = "pooled"
    dropout: float = Field(0.1, ge=0, lt=1)
    """Between pooler and head, in training."""


class MTDNNModelConfig(PooledModelConfig):
    """`kind = "mt-dnn"`: one encoder and one pooler for all tasks, a head for each; one forward pass for all."""

    kind: Literal["mt-dnn"] = "mt-dnn"
    """The method."""
    inputs: Inputs = ()
    """Vectors beside each text, as for `kind = "mtop"`."""


class SingleTaskModelConfig(PooledModelConfig):
    """`kind = "single-task"`: an encoder, a pooler and a head of its own for each task; a forward pass per task.

    The tasks train side by side, one process each, whatever `train.num_workers` says, and each keeps its own best
    checkpoint. `train.epochs` counts each task's own examples.
    """

    kind: Literal["single-task"] = "single-task"
    """The method."""


class PromptedModelConfig(PooledModelConfig):
    """What kinds with prompts of one task at a time have in common."""

    prompt_init: Literal["random", "token"] = "token"
    """What prompts start as: random, or frequent tokens of the data."""

    def settings(self) -> dict[str, Any]:
        """All keys but that which says how prompts begin."""
        return self.model_dump(exclude={"kind", "prompt_init"})


class PTuningModelConfig(PromptedModelConfig):
    """`kind = "p-tuning"`: a task's own prompts before the text, one pooler for all; a forward pass per task."""

    kind: Literal["p-tuning"] = "p-tuning"
    """The method."""
    default_reader: ClassVar[Reader] = "prompts"
    prompts_per_task: int = Field(2, ge=1, le=64)
    """Soft prompt tokens of each task."""


class PTuningV2ModelConfig(PromptedModelConfig):
    """`kind = "p-tuning-v2"`: a task's own keys and values before the text in every layer; a forward pass per task.

    For encoders whose layers all see the whole text, such as BERT, RoBERTa, ELECTRA and DistilBERT.
    """

    kind: Literal["p-tuning-v2"] = "p-tuning-v2"
    """The method."""
    prompts_per_task: int = Field(8, ge=1, le=512)
    """Keys and values of each task in each layer."""
    prompt_dropout: float = Field(0.1, ge=0, lt=1)
    """Of these, in training."""


class CAMTLModelConfig(PooledModelConfig):
    """`kind = "ca-mtl"`: layers that know the task (its base size); a forward pass per task.

    For encoders with the layers of BERT: BERT, RoBERTa, ELECTRA, MiniLM.
    """

    kind: Literal["ca-mtl"] = "ca-mtl"
    """The method."""
    pretrained_top: bool = False
    """The top layer starts as pretrained; as published it starts anew."""


_SECTIONS: tuple[type[ModelConfig], ...] = (
    MTOPModelConfig,
    MTDNNModelConfig,
    SingleTaskModelConfig,
    PTuningModelConfig,
    PTuningV2ModelConfig,
    CAMTLModelConfig,
)
MODEL_SECTIONS: dict[str, type[ModelConfig]] = {section.model_fields["kind"].default: section for section in _SECTIONS}
"""The section of each kind of model, by the name that `model.kind` gives it."""


class ScheduleConfig(_Section):
    """How long and how fast to train."""

    epochs: float = Field(gt=0, le=_MAX_EPOCHS)
    """Passes over the examples."""
    batch_size: int = Field(ge=1, le=_MAX_BATCH)
    """Examples per step."""
    learning_rate: float = Field(gt=0, lt=1)
    """Highest learning rate."""


class RateScheduleConfig(_Section):
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
    """Learning rate of prompts, poolers and heads; the same as `learning_rate` if not given."""
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


class UnlabelledConfig(_Section):
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
    lora_rank: int = Field(8, ge=0, le=64)
    """Rank of the LoRA of each new task, on every linear layer of the backbone at the task's own prompts only; 0 for
    none."""
    context_dropout: float = Field(0.2, ge=0, lt=1)
    """Share of what prompts read of a text that is hidden from them in each step."""


class DecideConfig(_Section):
    """From which probability on a label is given: of two labels the last one, of a multi-label task each by itself.
    One of the keys; all but the first are fitted on evaluation examples."""

    threshold: float | None = Field(None, ge=0, le=1)
    """This one."""
    precision: float | None = Field(None, gt=0, le=1)
    """The lowest with this precision: of the texts that are given the label, the share that have it."""
    recall: float | None = Field(None, gt=0, le=1)
    """The highest with this recall: of the texts that have the label, the share that are given it."""
    metric: Literal["f1"] | None = None
    """The one with the highest F1."""

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        given = [key for key, value in self if value is not None]
        if len(given) != 1:
            raise ValueError(f"give one of {', '.join(type(self).model_fields)}, not {' and '.join(given) or 'none'}")
        return self

    @property
    def wish(self) -> tuple[str, float]:
        """The key that is given, and its number; of a metric 0."""
        return next((key, value if isinstance(value, float) else 0.0) for key, value in self if value is not None)


class FamilyConfig(_Section):
    """Tasks that share LoRA in the last layers of the encoder, such as entities beside topics; only with
    `model.kind = "mtop"`.

    The layers below run once for all tasks, the last ones once for each family, and once more for tasks of no family.
    """

    name: str
    """What tasks call it: letters, digits, `_` and `-`, starting with a letter."""
    rank: int = Field(8, ge=1, le=256)
    """Rank of the LoRA of every linear layer."""
    alpha: float = Field(16.0, gt=0, le=1e4)
    """The LoRA is scaled by alpha / rank."""
    layers: int = Field(2, ge=1, le=256)
    """In how many of the encoder's last layers it is."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        self.family()
        return self

    def family(self) -> Family:
        """The family that it describes."""
        return Family(**self.model_dump())


class TaskConfig(_Section):
    """A task: its definition and where its examples lie."""

    name: str
    """Names the columns of the label table: letters, digits, `_` and `-`, starting with a letter."""
    kind: Literal[TaskKind, "probe"] = "classification"
    """"classification", one label for each text; "multi-label", any number of them, also none; "regression"; or
    "token", which finds entities in a text. "probe" is short for a classification that reads the vector."""
    reads: Reader | None = None
    """"prompts"; "pooled", the first token; "attention", all tokens by a self-attention of its own; or "vector", the
    document vector, which only `mtop add-tasks` learns to read. The kind of model says which it has; without this key
    it chooses. A token task reads the "words" of the text."""
    labels: tuple[str, ...] = ()
    """Two or more; of a multi-label task one or more; none for a regression; of a token task the types of entities."""
    scores: ScoresKept = "label"
    """What the label table keeps: "label", the probability of the label, or of each label that a text is given; "all",
    those of all labels too, as a column `<task>_scores`. No label depends on it; but a decision about more than two
    labels can only be changed without reading texts where the scores of all are stored."""
    combine: Combine = "mean"
    """Of a long text that is read in windows, what the task makes of them: the "mean" of their logits; "max", the
    largest of each label, which finds what is said anywhere; or "first", the first window alone."""
    metric: Metric | None = None
    """What judges the task; the mean over the tasks chooses the checkpoint. The kind's first one if left out."""
    decide: DecideConfig | None = None
    """From which probability on a label is given, such as `{ precision = 0.95 }`; without it the likeliest is, and of
    a multi-label task all of at least one half."""
    abstain_below: float = Field(0.0, ge=0, le=1)
    """Where what is decided has a lower probability, the label is null, and the score stays."""
    text: tuple[str, ...] = ("text",)
    """One column, or two for a pair; of a token task also one with lists of words."""
    label: str = "label"
    """The label column; of a multi-label task lists of labels; of a token task a tag for each word, or lists of structs
    `start`, `end` and `label` with characters of the text, and `column` where there are two."""
    label_by: LabelBy | None = None
    """What numbers in it are: "name", labels written as numbers, or "index", places in `labels` from 0; true and false
    are 1 and 0 then. Without it the values decide, and what can be both is refused."""
    class_weights: Literal["balanced"] | dict[str, float] | None = None
    """What an example of each label counts in the loss, where some labels are rare: "balanced", in inverse proportion
    to its examples; or a table of labels and weights, such as `{ yes = 10.0 }`, the others having 1. Of a multi-label
    task it is what an example with the label counts beside one without it."""
    prompt_group: str | None = Field(None, pattern="^[A-Za-z][A-Za-z0-9_-]*$")
    """The task shares the prompts of this group, whatever `model.prompt_groups` says; not in `mtop add-tasks`."""
    family: str | None = None
    """The `[[family]]` that the task is of; with `mtop add-tasks` it may be one of the bundle. Without it the task
    reads the encoder as it is for all. Not for a task that reads the vector."""
    rate: float | None = Field(None, gt=0, le=1e6)
    """How often steps of `mtop train` take the task, beside the rates of the others, whatever `train.alpha` says; all
    tasks have one, or none has."""
    train: str | tuple[str, ...]
    """Parquet file or directory (local or object storage), CSV file, or `hub:<data set>?config=...&split=...`; or a
    list of several of these."""
    eval: GivenAddress
    """Evaluation examples, as for `train`: they choose the checkpoint."""
    test: GivenAddress | None = None
    """Test examples, as for `train`: no training looks at them, `mtop reproduce` reports them."""

    @field_validator("train", mode="before")
    @classmethod
    def _is_one_or_several(cls, value: Any) -> Any:
        if not isinstance(value, str | list | tuple) or not all(isinstance(each, str) for each in value):
            raise ValueError("give one path or URL, or a list of several")  # and not one line for each type
        return value

    @field_validator("train")
    @classmethod
    def _are_addresses(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not value or "" in (value if isinstance(value, tuple) else ()):
            raise ValueError("give the path or URL of training examples")
        return check_address(value) if isinstance(value, str) else tuple(map(check_address, value))

    @field_validator("class_weights", mode="before")
    @classmethod
    def _are_weights(cls, value: Any) -> Any:
        if value in (None, "balanced"):
            return value
        usable = isinstance(value, dict) and value and all(_is_weight(weight) for weight in value.values())
        if not usable:  # one line, and not one for each of the types that it may have
            raise ValueError('give "balanced", or a table of labels and weights above 0, such as { yes = 10.0 }')
        return value

    @model_validator(mode="after")
    def _definition_fits(self) -> Self:
        task = self.definition()
        if self.label in self.text:
            raise TaskError(
                f"task {self.name!r}: {self.label!r} is the label column and a text column; what a text shows of its "
                "own label cannot be learned: name another column"
            )
        for label in self.class_weights if isinstance(self.class_weights, dict) else ():
            if label not in task.labels:
                raise TaskError(
                    f"task {self.name!r}: class_weights has no label {label!r}; labels: {listed(task.labels)}"
                )
        if (self.decide or self.abstain_below) and not task.has_labels_of_texts:
            raise TaskError(
                f"task {self.name!r}: a {task.kind} task has no labels to decide; remove decide and abstain_below"
            )
        if self.decide and not (task.is_binary or task.is_multi_label):
            raise TaskError(
                f"task {self.name!r}: decide is about a task with two labels, or a multi-label one, and this one has "
                f"{len(task.labels)}, of which the likeliest is given; remove it, or use abstain_below"
            )
        if self.class_weights is not None and not task.has_labels_of_texts:
            raise TaskError(f"task {self.name!r}: a {task.kind} task has no labels to weigh; remove class_weights")
        return self

    def definition(self, default_reader: Reader = "prompts") -> Task:
        """The part of the task that decides its output.

        Args:
            default_reader: What it reads if it does not say.
        """
        return Task(
            self.name,
            self.kind,
            self.labels,
            self.text,
            self.metric or "",
            self.reads or ("words" if self.kind == "token" else default_reader),
            scores=self.scores,
            combine=self.combine,
        )


def _is_weight(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < inf


class GateConfig(_Section):
    """What `mtop label --config` and `mtop publish --config` let readers see; a file may hold nothing else. A rule
    closes the gate only where chance does not explain what it sees."""

    max_label_share_change: float = Field(0.2, ge=0, le=1)
    """Largest change of a label's share, over the articles whose labels are replaced."""
    max_new_share_change: float = Field(0.5, ge=0, le=1)
    """Largest change of a label's share, of the articles that are new, from what the last seven runs published."""
    max_flips: float = Field(0.3, ge=0, le=1)
    """Largest share of articles whose label is replaced by another one."""
    max_error_fraction: float = Field(0.1, ge=0, le=1)
    """Largest share of articles that cannot be labelled, those aside that are published with an error already."""
    min_articles: int = Field(0, ge=0)
    """Fewest articles that a run publishes, if it publishes any."""
    max_metric_drop: float = Field(0.05, ge=0, le=2)
    """Largest drop of a task's metric, on the development data that the bundles record."""


class Config(_Section):
    """A whole configuration file."""

    output: GivenAddress
    """Where the bundle goes: a local directory or an object-storage prefix."""
    backbone: BackboneConfig
    """The pretrained encoder."""
    model: SerializeAsAny[ModelConfig] = MTOPModelConfig()  # type: ignore[call-arg]
    """The model on top of it."""
    train: TrainConfig = TrainConfig()  # type: ignore[call-arg]
    """How `mtop train` trains."""
    unlabelled: UnlabelledConfig | None = None
    """Texts that `mtop train` also learns from, by what teachers say of them."""
    add_tasks: AddTasksConfig = AddTasksConfig()  # type: ignore[call-arg]
    """How `mtop add-tasks` trains."""
    gate: GateConfig = GateConfig()  # type: ignore[call-arg]
    """Which labels readers may see."""
    rules: tuple[str, ...] | None = None
    """What must hold between the labels of a text, such as `implies("football:yes", "sport:yes")` or `excludes(...)` of
    two or more. A bundle without this key keeps those that it has."""
    family: tuple[FamilyConfig, ...] = ()
    """Families of tasks, one table each."""
    task: tuple[TaskConfig, ...]
    """The tasks, one table each; or `tasks = "FILE.toml"`, a file that holds nothing but these tables."""

    @field_validator("model", mode="before")
    @classmethod
    def _by_kind(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        kind = value.get("kind", "mtop")
        if not isinstance(kind, str) or kind not in MODEL_SECTIONS:
            raise ValueError(f"kind = {kind!r} is not one of {', '.join(MODEL_SECTIONS)}")
        return MODEL_SECTIONS[kind].model_validate(value)

    @field_validator("rules")
    @classmethod
    def _are_rules(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return None if value is None else tuple(str(Rule.parse(text)) for text in value)

    @model_validator(mode="after")
    def _tasks_fit(self) -> Self:
        if not self.task:  # a constraint of the field would also complain of a list whose tasks have mistakes
            raise TaskError("there is no task; add at least one [[task]]")
        check_task_names(task.name for task in self.task)
        combining = [task for task in self.task if task.combine != "mean"]
        if combining and self.backbone.long_texts == "cut":
            raise TaskError(
                f"task {combining[0].name!r}: combine = {combining[0].combine!r} is about windows, and texts are cut; "
                'set backbone.long_texts = "windows", or remove it'
            )
        grouped = [task.name for task in self.task if task.prompt_group is not None]
        if grouped and not isinstance(self.model, MTOPModelConfig):
            raise TaskError(f"task {grouped[0]!r}: model.kind = {self.model.kind!r} has no prompt_group; remove it")
        without = [task.name for task in self.task if task.rate is None]
        if 0 < len(without) < len(self.task):
            raise TaskError(f"task {without[0]!r} has no rate, and others have one; give all tasks one, or none")
        if self.unlabelled is not None and isinstance(self.model, SingleTaskModelConfig):
            raise ValueError(f"unlabelled texts teach all tasks at once, which model.kind = {self.model.kind!r} cannot")
        return self

    @model_validator(mode="after")
    def _families_fit(self) -> Self:
        of_family = self.family_of()
        if (of_family or self.family) and not isinstance(self.model, MTOPModelConfig):
            what = f"task {next(iter(of_family))!r}" if of_family else f"family {self.family[0].name!r}"
            raise TaskError(f"{what}: model.kind = {self.model.kind!r} has no families; remove it")
        vector = [task.name for task in self.tasks() if task.reads_vector and task.name in of_family]
        if vector:
            raise TaskError(
                f"task {vector[0]!r}: the vector is that of the encoder as it is for all; remove its family"
            )
        return self

    @model_validator(mode="after")
    def _inputs_fit(self) -> Self:
        for spec in self.model.vector_inputs:
            for task in self.task:
                if spec.column in (*task.text, task.label):
                    raise TaskError(f"task {task.name!r}: {spec.column!r} is a column of it and of model.inputs")
        if self.unlabelled is not None and self.model.vector_inputs:
            raise ValueError("texts of `unlabelled` have nothing beside them; remove that section, or model.inputs")
        return self

    def tasks(self) -> list[Task]:
        """The definitions of all tasks, in the order of the file."""
        return [task.definition(self.model.default_reader) for task in self.task]

    def families(self) -> list[Family]:
        """The families, in the order of the file."""
        return [family.family() for family in self.family]

    def family_of(self) -> dict[str, str]:
        """Task -> family, of the tasks that have one."""
        return {task.name: task.family for task in self.task if task.family is not None}

    def teacher(self, number: int) -> Config:
        """How teacher `number`, from 0 on, is trained: on the same examples, by a seed of its own, without teachers.

        Args:
            number: Of the `unlabelled.teachers`.
        """
        kind = "mt-dnn" if self.unlabelled is None else self.unlabelled.teacher_kind
        free = [task.model_copy(update={"reads": None, "prompt_group": None, "family": None}) for task in self.task]
        return self.model_copy(
            update={
                "model": MODEL_SECTIONS[kind].model_validate({"kind": kind}),
                "train": self.train.model_copy(update={"seed": self.train.seed + 1000 * (number + 1)}),
                "unlabelled": None,
            }
        ).with_tasks(free)

    def with_tasks(self, tasks: Sequence[TaskConfig]) -> Config:
        """The same with these tasks, and of the families those that they name."""
        named = {task.family for task in tasks}
        families = tuple(family for family in self.family if family.name in named)
        return self.model_copy(update={"task": tuple(tasks), "family": families})

    def with_prompt_groups(self, groups: Mapping[str, str]) -> Config:
        """The same with each of these tasks in a prompt group, and no other groups than those that tasks name."""
        tasks = tuple(
            task.model_copy(update={"prompt_group": groups.get(task.name, task.prompt_group)}) for task in self.task
        )
        return self.model_copy(update={"model": self.model.model_copy(update={"prompt_groups": 0}), "task": tasks})

    def prompt_groups(self) -> dict[str, str]:
        """Task -> prompt group, of the tasks that share prompts.

        A task's own `prompt_group` counts. The others are assigned round-robin to the groups "1" to "G" where
        `model.prompt_groups` is G, so that tasks appended to the file leave the groups of those before as they are.
        Groups by correlation are no longer open here: tasks were given theirs (`with_prompt_groups`).
        """
        named = {task.name: task.prompt_group for task in self.task if task.prompt_group is not None}
        if not isinstance(self.model, MTOPModelConfig):
            return {}
        if isinstance(self.model.prompt_groups, dict):
            raise ValueError("groups by correlation are not known before tasks have been trained alone")
        numbers = cycle(str(number + 1) for number in range(self.model.prompt_groups))
        assigned = zip((task.name for task in self.task if task.name not in named), numbers, strict=False)
        return {**named, **dict(assigned)}
