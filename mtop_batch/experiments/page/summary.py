"""Records of runs as rows of tables: median and spread over seeds, and the difference to MTOP."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from statistics import mean, median

import numpy as np
import numpy.typing as npt

from mtop_batch.experiments.methods.families import ENTITIES, TEXTS, family_of
from mtop_batch.experiments.methods.method import COMMON
from mtop_batch.experiments.methods.tables import (
    METHODS,
    TABLE_DATA,
    TABLE_METHODS,
    TABLES,
    TableName,
    labels_alike,
    references,
)
from mtop_batch.experiments.page.statistics import Difference, Differences, Drawn, TestOutputs, differences
from mtop_batch.experiments.runs.records import DataRecord, Records, RunRecord, SpeedRecord, unpack
from mtop_batch.experiments.runs.specs import RunSpec
from mtop_batch.tasks import Metric, Task

# Table 3 judges these otherwise than Table 2.
_TABLE_3_METRICS: Mapping[str, Metric] = {"mrpc": "accuracy", "qqp": "accuracy", "stsb": "pearson_spearman"}


@dataclass(frozen=True)
class Setting:
    """What the runs of a table share."""

    data: str
    data_digest: str
    examples: int | None
    backbone: str
    max_tokens: int
    changes: str
    """What all methods have in `[train]` otherwise than `COMMON`, as JSON."""
    fraction: float | None = None
    among: str = ""
    """Digest of the tasks that may help those that all methods are judged on; empty where these are all."""
    num_among: int = 0

    @property
    def examples_named(self) -> str:
        """How many training examples, for people."""
        if self.fraction is not None:
            return f"{100 * self.fraction:g} % of the examples of a task"
        return f"at most {self.examples:,} examples a task" if self.examples else "all examples"

    @classmethod
    def of(cls, spec: RunSpec) -> Setting:
        """The setting of a run."""
        return cls(
            spec.data,
            spec.data_digest,
            spec.examples,
            spec.backbone,
            spec.max_tokens,
            json.dumps(_changes(spec)),
            spec.fraction,
            **({"among": spec.among["digest"], "num_among": spec.among["number"]} if spec.among else {}),
        )


@dataclass(frozen=True)
class Spread:
    """A metric over seeds, in per cent."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Of shares of one."""
        percent = [100 * value for value in values]
        return cls(median(percent), min(percent), max(percent))


@dataclass(frozen=True)
class FamilyMean:
    """The mean of a method over the tasks of a family.

    Args:
        spread: Over the seeds.
        difference: To what the table compares with, as in `Row`.
    """

    spread: Spread
    difference: Difference | None


@dataclass(frozen=True)
class Comparison:
    """How much better a method is than another, over the seeds that both have.

    Args:
        difference: Of the means over the tasks.
        by_task: Task -> the same, of each task.
    """

    difference: Difference
    by_task: Mapping[str, Difference]


@dataclass(frozen=True)
class Row:
    """A method in a table.

    Args:
        method: Its name.
        runs: By seed, at least one.
        tasks: Task -> test metric over the seeds.
        mean: The mean over tasks, over the seeds.
        dev_mean: The same on evaluation examples, at the chosen weights.
        comparisons: With each method that the table compares with (`ResultTable.compared_with`), by its name; none with
            itself, or where they have no seed in common.
        speed: How fast it labels; None if that was not measured.
        tenths: The means over the tenth of the tasks with the most and with the fewest training examples ("T10" and
            "B10" of large-scale multi-task learning); None if it was not run, or there are fewer than ten tasks.
        families: "entities" and "texts" -> the mean over the token tasks and over all others, of a table about these.
    """

    method: str
    runs: Mapping[int, RunRecord]
    tasks: Mapping[str, Spread]
    mean: Spread
    dev_mean: Spread
    comparisons: Mapping[str, Comparison]
    speed: SpeedRecord | None
    tenths: tuple[Spread, Spread] | None = None
    families: Mapping[str, FamilyMean] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """As tables call it."""
        return METHODS[self.method].title


@dataclass(frozen=True)
class ResultTable:
    """A table of the results, with a row for each of its methods that was run."""

    name: TableName
    setting: Setting
    data: DataRecord
    tasks: Sequence[Task]
    rows: Sequence[Row]

    @property
    def compared_with(self) -> list[str]:
        """The methods that it compares with, as far as they were run; the first that it would, if none was."""
        run = {row.method for row in self.rows}
        wanted = references(self.name)
        return [method for method in wanted if method in run] or [wanted[0]]

    @property
    def not_run(self) -> list[str]:
        """The titles of its methods that were not run."""
        run = {row.method for row in self.rows}
        return [METHODS[method].title for method in TABLE_METHODS[self.name] if method not in run]

    @property
    def is_of_many(self) -> bool:
        """Whether its tasks are too many to have a column each."""
        return TABLE_DATA[self.name] == "many"

    @property
    def seeds(self) -> list[int]:
        """Those of any run."""
        return sorted({seed for row in self.rows for seed in row.runs})


def tables(records: Records) -> list[ResultTable]:
    """All tables that the records have a run for, the largest settings first.

    A method that stands in several tables, such as MTOP, is a reason for a table of its own name only: a table appears
    if a run of a method is there that no other table has, or if it is the first table of that data set. That has no
    table of primary tasks whose runs all stand in one of auxiliary tasks.
    """
    found: dict[Setting, list[RunRecord]] = {}
    for run in records.runs:
        if run.spec.data_digest in records.data and run.spec.method in METHODS:
            found.setdefault(Setting.of(run.spec), []).append(run)
    made = [
        _table(name, setting, runs, records)
        for setting, runs in found.items()
        for name in TABLES
        if _belongs(name, setting, {run.spec.method for run in runs})
    ]
    return sorted(made, key=_order)


def _belongs(name: TableName, setting: Setting, methods: set[str]) -> bool:
    own = set(TABLE_METHODS[name])
    if name in ("news", "glue", "many"):
        elsewhere = methods <= set(TABLE_METHODS["auxiliary"]) and _belongs("auxiliary", setting, methods)
        return TABLE_DATA[name] == setting.data and bool(methods & own) and not (setting.among and elsewhere)
    others = {method for other in TABLES if other != name for method in TABLE_METHODS[other]}
    return bool(methods & (own - others))


def _order(table: ResultTable) -> tuple[int, float, float, str]:
    setting = table.setting
    size = -(setting.examples or float("inf")), -(setting.fraction or 1.0)
    return TABLES.index(table.name), *size, repr(setting)


def _table(name: TableName, setting: Setting, runs: Sequence[RunRecord], records: Records) -> ResultTable:
    data = records.data[setting.data_digest]
    metrics = _TABLE_3_METRICS if name == "ablations" else {}
    tasks = [replace(task, metric=metrics.get(task.name, task.metric)) for task in data.definitions()]
    by_method: dict[str, dict[int, RunRecord]] = {}
    for run in runs:
        by_method.setdefault(run.spec.method, {})[run.spec.seed] = run
    labels = {name: unpack(packed) for name, packed in data.labels.items()}

    def outputs(found: Mapping[int, RunRecord], seeds: Sequence[int]) -> list[TestOutputs]:
        return [
            TestOutputs(
                np.stack([unpack(found[seed].predictions[task.name]) for seed in seeds]),
                labels[task.name],
                task.metric or "accuracy",
                task.num_outputs,
            )
            for task in tasks
        ]

    @cache
    def drawn(method: str, seeds: tuple[int, ...]) -> Drawn:
        return Drawn.of(outputs(by_method[method], seeds))

    def compared(method: str, with_method: str) -> Differences | None:
        own, other = by_method.get(method, {}), by_method.get(with_method, {})
        both = sorted(own.keys() & other.keys())
        if not both or method == with_method:
            return None
        return differences(drawn(method, tuple(both)), drawn(with_method, tuple(both)))

    rows = []
    for method in [method for method in TABLE_METHODS[name] if method in by_method]:
        found = dict(sorted(by_method[method].items()))
        all_compared = {other: compared(method, other) for other in references(name)}
        given = outputs(found, list(found))
        values = {task.name: out.value() for task, out in zip(tasks, given, strict=True)}
        rows.append(
            Row(
                method=method,
                runs=found,
                tasks={task: Spread.of(of_seeds) for task, of_seeds in values.items()},
                mean=Spread.of(np.mean(list(values.values()), axis=0)),
                dev_mean=Spread.of(_dev_mean(run, data.definitions()) for run in found.values()),
                comparisons={
                    other: Comparison(one.mean(), dict(zip(values, one.by_task, strict=True)))
                    for other, one in all_compared.items()
                    if one is not None
                },
                speed=_speed(records.speeds, found),
                tenths=_tenths(values, data) if len(values) >= 10 else None,
                families=_families(tasks, values, all_compared[references(name)[0]]) if name == "families" else {},
            )
        )
    return ResultTable(name, setting, data, tasks, rows)


def _families(
    tasks: Sequence[Task], values: Mapping[str, npt.NDArray[np.float64]], compared: Differences | None
) -> dict[str, FamilyMean]:
    """The means over the tasks of each family, over the seeds."""
    places = {
        family: [place for place, task in enumerate(tasks) if family_of(task.kind) == family]
        for family in (ENTITIES, TEXTS)
    }
    return {
        family: FamilyMean(
            Spread.of(np.mean([values[tasks[place].name] for place in own], axis=0)),
            None if compared is None else compared.mean(own),
        )
        for family, own in places.items()
        if own
    }


def _tenths(values: Mapping[str, npt.NDArray[np.float64]], data: DataRecord) -> tuple[Spread, Spread]:
    """The means over the tenth of the tasks with the most and with the fewest training examples, over the seeds."""
    by_size = sorted(values, key=lambda task: data.sizes[task]["train"])
    count = len(by_size) // 10
    most, fewest = by_size[-count:], by_size[:count]
    return Spread.of(np.mean([values[task] for task in most], axis=0)), Spread.of(
        np.mean([values[task] for task in fewest], axis=0)
    )


def _dev_mean(run: RunRecord, tasks: Sequence[Task]) -> float:
    """On evaluation examples, by the metric that chose the weights."""
    return mean(run.dev[task.name][str(task.metric)] for task in tasks)


def _speed(speeds: Sequence[SpeedRecord], runs: Mapping[int, RunRecord]) -> SpeedRecord | None:
    """The fastest that was measured of what computes the same: machines may differ, and the page says which."""
    spec = next(iter(runs.values())).spec
    computed = labels_alike(spec.method, spec.model)
    same = [
        speed
        for speed in speeds
        if (speed.data_digest, speed.backbone) == (spec.data_digest, spec.backbone)
        and speed.method in METHODS
        and labels_alike(speed.method, speed.model) == computed
    ]
    return max(same, key=lambda speed: speed.documents_per_s, default=None)


def _changes(spec: RunSpec) -> dict[str, object]:
    """What the run has in `[train]` otherwise than its method says."""
    usual = {**COMMON, **METHODS[spec.method].train} if spec.method in METHODS else {}
    return {key: value for key, value in sorted(spec.train.items()) if usual.get(key) != value}
