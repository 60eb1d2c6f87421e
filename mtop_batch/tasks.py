"""Tasks: what a model is asked about a text.

A `Task` is the part of a task's definition that decides its output: name, kind, reader, labels, text columns. Where its
examples lie is the configuration's business (`mtop_batch.config`).

A task is a reader and a head. Its kind says what comes out (a label, any number of labels, a number, the entities of a
text), its reader what the head is given: the encoder's outputs at the task's prompts, the output of a pooler, the
document vector, or the outputs at the text's own words.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import isfinite
from typing import Any, Literal, cast, get_args

from mtop_batch.errors import TaskError
from mtop_batch.lines import did_you_mean, listed

TaskKind = Literal["classification", "multi-label", "regression", "token"]
Reader = Literal["prompts", "pooled", "attention", "vector", "words"]
LabelBy = Literal["name", "index"]
"""What numbers in a label column are: labels, or indices into a task's labels."""
Metric = Literal[
    "accuracy",
    "f1",
    "matthews",
    "micro_f1",
    "macro_f1",
    "subset_accuracy",
    "pearson",
    "spearman",
    "pearson_spearman",
    "entity_f1",
]
ScoresKept = Literal["label", "all"]
"""Whose probabilities the label table keeps: those of the labels that a text is given, or those of all labels too."""
Combine = Literal["mean", "max", "first"]
"""How what a text's windows say becomes one thing."""

TASK_KINDS: tuple[TaskKind, ...] = get_args(TaskKind)
READERS: tuple[Reader, ...] = get_args(Reader)
PROBE = "probe"
NO_TAG = -100
"""Stands in place of the tag of a token at which a token task decides nothing."""
METRICS: Mapping[TaskKind, tuple[Metric, ...]] = {
    "classification": ("accuracy", "f1", "matthews"),
    "multi-label": ("micro_f1", "macro_f1", "subset_accuracy"),
    "regression": ("pearson_spearman", "pearson", "spearman"),
    "token": ("entity_f1",),
}
NAME_PATTERN = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,99}")


@dataclass(frozen=True)
class Decision:
    """What turns the probabilities that a model puts out into a task's label and score (`mtop_batch.decisions`).

    Args:
        temperature: What logits are divided by: above 1 where the model is too sure of itself.
        thresholds: The least probability at which a label is given: of the last label of two, or of each label of a
            multi-label task; one half if left out.
        abstain_below: Where the probability of what was decided is less, there is no label.
        rules: What must hold between the labels of this task and others (`mtop_batch.rules`); each of them has it too.
    """

    temperature: float = 1.0
    thresholds: tuple[float, ...] = ()
    abstain_below: float = 0.0
    rules: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    """One task.

    A *probe* is a classification that reads the document vector and has no prompts (`document_vectors`).

    Args:
        name: Letters, digits, `_` and `-`, starting with a letter; it names the columns `<name>_label` and
            `<name>_score`.
        kind: "classification", of which a text has one label; "multi-label", of which it has any number, also none;
            "regression"; or "token", which finds entities in a text. "probe" is short for a classification that reads
            "vector".
        labels: The labels in the order of the head's outputs; two or more for a classification, one or more for a
            multi-label task, none for a regression; of a token task the types of entities, one or more.
        text: The column(s) its texts come from: one, or two for a pair.
        metric: The metric that judges it; "" chooses the first that `METRICS` allows for the kind.
        reads: "prompts", "pooled" (the encoder's output at the first token), "attention" (its outputs at all tokens)
            or "vector"; the kind of model decides which of them it has. A token task, and no other, reads "words" (the
            encoder's output at the first token of each word).
        mean: Of the numbers that a regression learned from. The task's head puts out how many standard deviations a
            text's value is away from it, so that values of any size are learned alike.
        std: Their standard deviation.
        scores: "label", or "all" for a column `<name>_scores` with the probabilities of all labels; nothing that is
            computed depends on it.
        decision: How probabilities become its labels. Set once it is trained; a new task decides as every task does:
            the likeliest label, or of a multi-label task all of at least one half.
        combine: Of a long text that a model reads in windows: "mean" of their logits (of a regression, of their
            values), "max" for each label by itself, or "first", what the first window says alone. A task that reads the
            vector has "mean": it reads that of all windows.

    Raises:
        TaskError: A field is outside what is allowed.
    """

    name: str
    kind: TaskKind | Literal["probe"] = "classification"
    labels: tuple[str, ...] = ("no", "yes")
    text: tuple[str, ...] = ("text",)
    metric: Metric | Literal[""] = ""
    reads: Reader = "prompts"
    mean: float = 0.0
    std: float = 1.0
    scores: ScoresKept = "label"
    decision: Decision = field(default_factory=Decision)
    combine: Combine = "mean"

    def __post_init__(self) -> None:
        if not NAME_PATTERN.fullmatch(self.name):
            raise TaskError(
                f"task name {self.name!r} is not allowed: use letters, digits, '_' and '-', starting with a letter "
                "(it names label columns)"
            )
        if self.kind == PROBE:
            object.__setattr__(self, "kind", "classification")
            object.__setattr__(self, "reads", "vector")
        if self.kind == "token" and self.reads == "prompts":
            object.__setattr__(self, "reads", "words")
        for key, value, allowed in (
            ("kind", self.kind, (*TASK_KINDS, PROBE)),
            ("reads", self.reads, READERS),
            ("scores", self.scores, get_args(ScoresKept)),
            ("combine", self.combine, get_args(Combine)),
        ):
            if value not in allowed:
                raise TaskError(f"task {self.name!r}: {key} = {value!r} is not one of {', '.join(allowed)}")
        self._check_labels()
        self._check_decision()
        self._check_reader()
        if not 1 <= len(self.text) <= 2 or len(set(self.text)) < len(self.text):
            raise TaskError(
                f"task {self.name!r}: text = {list(self.text)} names {len(self.text)} columns; "
                "give one, or two different ones for a pair of texts"
            )
        if not self.metric:
            object.__setattr__(self, "metric", self._metrics[0])
        if not (isfinite(self.mean) and isfinite(self.std) and self.std > 0):
            raise TaskError(f"task {self.name!r}: mean = {self.mean} and std = {self.std} are not finite, and above 0")
        if self.metric not in self._metrics:
            raise TaskError(
                f"task {self.name!r}: metric = {self.metric!r} does not fit a {self.kind} task; "
                f"allowed: {', '.join(self._metrics)}"
            )

    def _check_reader(self) -> None:
        if self.is_token != (self.reads == "words"):
            raise TaskError(
                f"task {self.name!r}: reads = {self.reads!r} does not fit kind = {self.kind!r}; a token task reads "
                '"words", and no other task does: remove `reads`'
            )
        if self.reads_vector and self.combine != "mean":
            raise TaskError(
                f"task {self.name!r}: combine = {self.combine!r} does not fit a task that reads the vector, which is "
                "the mean over a text's windows; remove it"
            )
        if self.is_token and self.combine != "mean":
            raise TaskError(
                f"task {self.name!r}: combine = {self.combine!r} does not fit a token task, for which each word of a "
                "text is read in the window that has the most of the text around it; remove it"
            )

    def _check_labels(self) -> None:
        if self.kind == "regression":
            if self.labels:
                raise TaskError(
                    f"task {self.name!r}: a regression task has no labels; remove labels = {list(self.labels)}"
                )
            if self.scores == "all":
                raise TaskError(
                    f'task {self.name!r}: a regression task has one value and no labels; remove scores = "all"'
                )
            return
        least, said = (2, "two") if self.kind == "classification" else (1, "one")
        if len(self.labels) < least:
            raise TaskError(
                f"task {self.name!r}: labels = {list(self.labels)}; a {self.kind} task needs at least {said}"
            )
        if self.kind != "classification" and "" in self.labels:
            what = "entities" if self.is_token else "labels"
            raise TaskError(f"task {self.name!r}: one of its labels is empty; a text without {what} needs none")
        if self.is_token and self.scores == "all":
            raise TaskError(
                f'task {self.name!r}: a token task keeps the score of each entity that it finds; remove scores = "all"'
            )
        repeated = [label for label, count in Counter(self.labels).items() if count > 1]
        if repeated:
            raise TaskError(f"task {self.name!r}: labels {repeated} are given more than once")

    def _check_decision(self) -> None:
        decision = self.decision
        if decision == Decision():
            return
        if self.kind == "regression":
            raise TaskError(
                f"task {self.name!r}: a regression has a value and no labels; nothing is to be decided of it"
            )
        if self.is_token:
            raise TaskError(
                f"task {self.name!r}: a token task has no temperature, thresholds, abstention or rules; it finds the "
                "likeliest entities"
            )
        if not (isfinite(decision.temperature) and decision.temperature > 0):
            raise TaskError(f"task {self.name!r}: temperature = {decision.temperature} is not above 0")
        for what, value in (
            *(("a threshold of", threshold) for threshold in decision.thresholds),
            ("abstain_below =", decision.abstain_below),
        ):
            if not 0 <= value <= 1:
                raise TaskError(f"task {self.name!r}: {what} {value} is outside [0, 1]; it is a probability")
        wanted = len(self.labels) if self.is_multi_label else 1 if self.is_binary else 0
        if decision.thresholds and len(decision.thresholds) != wanted:
            allowed = f"it takes {wanted}" if wanted else "a task with more than two labels takes none"
            raise TaskError(f"task {self.name!r}: {len(decision.thresholds)} thresholds are given; {allowed}")

    @property
    def _metrics(self) -> tuple[Metric, ...]:
        return METRICS[cast(TaskKind, self.kind)]  # "probe" has become a classification

    @property
    def reads_vector(self) -> bool:
        """Whether the document vector is all that the task needs of a text."""
        return self.reads == "vector"

    @property
    def reads_prompts(self) -> bool:
        """Whether the task has prompts, its own or shared ones."""
        return self.reads == "prompts"

    @property
    def is_multi_label(self) -> bool:
        """Whether a text has any number of the labels."""
        return self.kind == "multi-label"

    @property
    def is_token(self) -> bool:
        """Whether it finds entities in a text, so that its labels are types of these."""
        return self.kind == "token"

    @property
    def has_labels_of_texts(self) -> bool:
        """Whether what it says of a text is labels, which are decided from their probabilities."""
        return self.kind in ("classification", "multi-label")

    @property
    def is_binary(self) -> bool:
        """Whether a text has one of two labels, so that the probability of one says that of the other."""
        return self.kind == "classification" and len(self.labels) == 2

    @property
    def has_decision(self) -> bool:
        """Whether it decides in a way of its own."""
        return self.decision != Decision()

    @property
    def keeps_probabilities(self) -> bool:
        """Whether the label table is made of the probabilities of all labels, and not of the likeliest one alone.

        Of two labels that one says both.
        """
        return self.is_multi_label or (not self.is_binary and (self.scores == "all" or self.has_decision))

    @property
    def num_outputs(self) -> int:
        """Outputs of the task's head: one per label, or one for regression; of a token task one per tag.

        The tags (`mtop_batch.data.entities.tags`) are "outside", and for each type "begins" and "goes on".
        """
        return 2 * len(self.labels) + 1 if self.is_token else len(self.labels) or 1

    def to_dict(self) -> dict[str, Any]:
        """The task as JSON-ready values; its decision only where it has one of its own."""
        values = asdict(self)
        decision = values.pop("decision")
        own = {"decision": _listed(decision)} if self.has_decision else {}
        return {**_listed(values), **own}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Task:
        """The task that `to_dict` described.

        Raises:
            TaskError: A field is unknown or outside what is allowed.
        """
        unknown = sorted(set(values) - set(cls.__dataclass_fields__))
        if unknown:
            raise TaskError(f"unknown task fields {unknown}; known: {sorted(cls.__dataclass_fields__)}")
        fields = _tuples(values)
        if "decision" in fields:
            unknown = sorted(set(fields["decision"]) - set(Decision.__dataclass_fields__))
            if unknown:
                raise TaskError(f"unknown fields of a task's decision: {unknown}")
            fields["decision"] = Decision(**_tuples(fields["decision"]))
        return cls(**fields)


def _listed(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


@dataclass(frozen=True)
class VectorInput:
    """Vectors that a model reads beside each text, from a column of the articles.

    Args:
        column: The column: lists of floats, or lists of such lists.
        size: Numbers of a vector.
        tokens: Most vectors of an article; each takes a position in the sequence.
    """

    column: str
    size: int
    tokens: int = 1


def check_task_names(names: Iterable[str]) -> None:
    """Refuse task names that occur twice, also when they differ in case only (columns of a label table do not).

    Raises:
        TaskError: Two names are the same.
    """
    seen: dict[str, str] = {}
    for name in names:
        if name.lower() in seen:
            raise TaskError(
                f"two tasks are called {seen[name.lower()]!r} and {name!r}; names must differ in more than case"
            )
        seen[name.lower()] = name


def select_tasks(names: Sequence[str], known: Sequence[str]) -> list[str]:
    """The wanted names in the order of `known`.

    Raises:
        TaskError: A name is not known; the message offers the closest one.
    """
    known_names = set(known)
    for name in names:
        if name not in known_names:
            raise TaskError(f"there is no task {name!r}; {did_you_mean(name, known)}tasks: {listed(known)}")
    wanted = set(names)
    return [name for name in known if name in wanted]
