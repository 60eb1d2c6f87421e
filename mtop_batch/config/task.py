"""The tables `[[task]]`, `[[family]]` and `[[source]]`."""

from __future__ import annotations

from math import inf
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from mtop_batch.config.section import Address, GivenAddress, Section
from mtop_batch.errors import ConfigError, TaskError
from mtop_batch.families import Family
from mtop_batch.lines import listed
from mtop_batch.storage import check_address
from mtop_batch.tasks import Combine, LabelBy, Metric, Reader, ScoresKept, Task, TaskKind


class DecideConfig(Section):
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


class FamilyConfig(Section):
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


class TaskConfig(Section):
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
    eval: GivenAddress | None = None
    """Evaluation examples, as for `train`: they choose the checkpoint. Required, but by `mtop prefinetune`."""
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

    @property
    def evaluation(self) -> str:
        """Where the evaluation examples are.

        Raises:
            ConfigError: There are none.
        """
        if self.eval is None:
            raise ConfigError(f"task {self.name!r} has no evaluation examples; add eval = PATH")
        return self.eval

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


class SourceConfig(Section):
    """Texts without labels that `mtop prefinetune` learns from, beside or in place of tasks.

    Of two text columns, such as title and body, each text learns to find the other one of its row among those of the
    batch. With a teacher it is entities that are learned: those of all types that the teacher finds in the texts.
    """

    name: str
    """Letters, digits, `_` and `-`, starting with a letter; no task may have it too."""
    corpus: GivenAddress
    """Parquet file or directory (local or object storage), or CSV file."""
    text: tuple[str, ...] = Field(min_length=1, max_length=2)
    """Its text columns: two, or with a teacher one or two."""
    teacher: Address = ""
    """A bundle with token tasks, whose tokenizer has the same vocabulary as the backbone's: its probability of each tag
    of each word is what is learned."""
    family: str | None = None
    """The `[[family]]` that it teaches; without it the encoder alone learns."""
    max_texts: int = Field(100_000, ge=2)
    """Most rows; of a larger corpus a random part is taken."""
    rate: float | None = Field(None, gt=0, le=1e6)
    """As for a task."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        Task(self.name, text=self.text)  # names and columns are those of a task
        if len(self.text) < 2 and not self.teacher:
            raise ValueError(
                "text names one column: give two whose texts belong together, such as title and body, or a teacher"
            )
        return self


def _is_weight(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < inf
