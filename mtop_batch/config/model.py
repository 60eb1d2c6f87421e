"""The section `[model]`: a class for each kind of model."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self, cast, get_args

from pydantic import AfterValidator, Field, field_validator, model_validator

from mtop_batch.config.section import Section
from mtop_batch.lines import listed
from mtop_batch.tasks import Reader, VectorInput

_MAX_GROUPS = 256
Likeness = Literal["correlation", "labels"]
Grouping = Literal["correlation", "labels", "learned"]


def _are_different(inputs: tuple[VectorInputConfig, ...]) -> tuple[VectorInputConfig, ...]:
    names = [spec.column for spec in inputs]
    if len(set(names)) < len(names):
        raise ValueError(f"two inputs have one column; columns: {listed(names)}")
    return inputs


class ModelConfig(Section):
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


class VectorInputConfig(Section):
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
    n = 8 }`: tasks whose own models use the same attention heads share prompts (`mtop select-tasks`). `{ by =
    "labels", n = 8 }`: those with like names and labels do. `{ by = "learned", n = 8 }`: tasks choose while they train,
    in which every step computes the prompts of all groups."""
    pooler_rank: int = Field(0, ge=0, le=1024)
    """Rank of the poolers' kernels, which then have 2 * rank * width parameters per task; 0, as in the paper: full
    ones with width^2."""
    attention_width: Literal["dypa"] | Annotated[int, Field(ge=1, le=4096)] = "dypa"
    """Width in which a task that reads by attention (`reads = "attention"`) does so; "dypa": between a sixth and four
    thirds of the encoder's, by how many training examples the task has beside the others."""
    attention_heads: int = Field(2, ge=1, le=64)
    """Of such tasks; a given width is a multiple of it."""
    prompt_init: Literal["random", "token", "cls", "single-task"] = "cls"
    """What prompts start as: random, embeddings of frequent tokens, that of [CLS] (random if there is none), or, as in
    the paper, what the single-task phase learned."""
    pooler_init: Literal["random", "identity", "single-task"] = "identity"
    """What poolers start as: "identity" hands on what the prompts read; heads are random then. "single-task", as in the
    paper: what poolers and heads learned in that phase."""
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
        by_likeness = isinstance(value, dict) and value.keys() == {"by", "n"} and value["by"] in get_args(Grouping)
        number = value["n"] if by_likeness else value
        least = 1 if by_likeness else 0
        if isinstance(number, bool) or not isinstance(number, int) or not least <= number <= _MAX_GROUPS:
            raise ValueError(  # one line, and not one for each of the types that it may have
                f'give a number of groups up to {_MAX_GROUPS}, or {{ by = "correlation", n = 8 }}, or by = "labels" or '
                '"learned"'
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

    @model_validator(mode="after")
    def _choices_are_isolated(self) -> Self:
        if self.learns_groups and self.prompt_attention != "isolated":
            raise ValueError(
                'prompt_groups by = "learned" is for prompts that the text does not see; set prompt_attention = '
                '"isolated", or give a number of groups'
            )
        return self

    @property
    def like_groups(self) -> tuple[Likeness, int] | None:
        """In what tasks of a group are alike, and how many groups; None where groups are made otherwise, or not at
        all.
        """
        if not isinstance(self.prompt_groups, dict) or self.learns_groups:
            return None
        return cast(Likeness, self.prompt_groups["by"]), self.num_groups

    @property
    def learns_groups(self) -> bool:
        """Whether tasks choose their prompt group while they train."""
        return isinstance(self.prompt_groups, dict) and self.prompt_groups["by"] == "learned"

    @property
    def num_groups(self) -> int:
        """How many groups those tasks have that name none."""
        return int(self.prompt_groups["n"]) if isinstance(self.prompt_groups, dict) else self.prompt_groups

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
