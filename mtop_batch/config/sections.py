"""A configuration file: every section and key, its default and what is allowed.

The resolved configuration is stored in the bundle, so that a bundle says how it was made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any, Literal, Self

from pydantic import Field, SerializeAsAny, field_validator, model_validator

from mtop_batch.config.model import MODEL_SECTIONS, ModelConfig, MTOPModelConfig, SingleTaskModelConfig
from mtop_batch.config.section import GivenAddress, Section
from mtop_batch.config.task import FamilyConfig, SourceConfig, TaskConfig
from mtop_batch.config.train import AddTasksConfig, TrainConfig, UnlabelledConfig
from mtop_batch.decisions.rules import Rule
from mtop_batch.errors import TaskError
from mtop_batch.families import Family
from mtop_batch.storage import absolute
from mtop_batch.tasks import Task, check_task_names

_WINDOW_OVERLAP, _MAX_WINDOWS = 16, 8
# Of a text: twenty thousand articles, a unit of work, have a place in memory together.
_MOST_TOKENS = 32_768


class BackboneConfig(Section):
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


class GateConfig(Section):
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


class Config(Section):
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
    source: tuple[SourceConfig, ...] = ()
    """Texts without labels that `mtop prefinetune` learns from, one table each."""
    task: tuple[TaskConfig, ...] = ()
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
        if not self.task and not self.source:  # a constraint of the field would complain of tasks with mistakes too
            raise TaskError("there is no task; add at least one [[task]]")
        check_task_names(each.name for each in self._learned)
        combining = [task for task in self.task if task.combine != "mean"]
        if combining and self.backbone.long_texts == "cut":
            raise TaskError(
                f"task {combining[0].name!r}: combine = {combining[0].combine!r} is about windows, and texts are cut; "
                'set backbone.long_texts = "windows", or remove it'
            )
        grouped = [task.name for task in self.task if task.prompt_group is not None]
        if grouped and not isinstance(self.model, MTOPModelConfig):
            raise TaskError(f"task {grouped[0]!r}: model.kind = {self.model.kind!r} has no prompt_group; remove it")
        without = [each.name for each in self._learned if each.rate is None]
        if 0 < len(without) < len(self._learned):
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

    @property
    def _learned(self) -> tuple[TaskConfig | SourceConfig, ...]:
        """All that steps are drawn from."""
        return (*self.task, *self.source)

    def families(self) -> list[Family]:
        """The families, in the order of the file."""
        return [family.family() for family in self.family]

    def family_of(self) -> dict[str, str]:
        """Task -> family, of the tasks and sources that have one."""
        return {each.name: each.family for each in self._learned if each.family is not None}

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
        Groups of tasks that are alike are no longer open here: tasks were given theirs (`with_prompt_groups`). Those
        that choose theirs begin as if they were assigned.
        """
        named = {task.name: task.prompt_group for task in self.task if task.prompt_group is not None}
        if not isinstance(self.model, MTOPModelConfig):
            return {}
        if self.model.like_groups is not None:
            raise ValueError(
                "groups of tasks that are alike are not open here: give tasks theirs (`with_prompt_groups`)"
            )
        numbers = cycle(str(number + 1) for number in range(self.model.num_groups))
        assigned = zip((task.name for task in self.task if task.name not in named), numbers, strict=False)
        return {**named, **dict(assigned)}

    def choosing_tasks(self) -> list[str]:
        """The tasks that choose their prompt group while they train."""
        if not isinstance(self.model, MTOPModelConfig) or not self.model.learns_groups:
            return []
        tasks = zip(self.task, self.tasks(), strict=True)
        return [own.name for own, task in tasks if own.prompt_group is None and task.reads_prompts]
