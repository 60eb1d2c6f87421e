"""The records of runs: one JSON file each, with all that the page of results is written from.

<results>/<digest>.json          a run
<results>/data-<digest>.json     the labels of a data set's test parts, once for all runs on it
<results>/speed-<digest>.json    how fast a method labels
<results>/encoders/<digest>.safetensors   the encoder of a run that others begin with
"""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import distributions, version
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mtop_batch import storage
from mtop_batch.data.entities.spans import Entities, num_right
from mtop_batch.data.raw_examples import RawExamples
from mtop_batch.errors import DataError
from mtop_batch.experiments.runs.data_set import DataSet
from mtop_batch.experiments.runs.specs import RunSpec
from mtop_batch.json_text import to_json
from mtop_batch.tasks import Task

_PACKAGES = ("torch", "transformers", "tokenizers", "pyarrow", "ray")
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_DECIMALS = 4

Values = npt.NDArray[np.float64]
Compact = str | list[float] | dict[str, Any]
"""Label ids as one digit each where there are few labels; otherwise numbers. Of a multi-label task the number of
labels, and the ids that each example has, with blanks between. Of what a token task finds, how many entities it finds
in each example and how many of them are right; of what is given how many there are: that is all that F1 is made of."""


@dataclass(frozen=True)
class RunRecord:
    """How a run went.

    Args:
        spec: What was run.
        dev: Task that is judged -> metric -> value on its evaluation examples, at the chosen weights.
        test: The same on its test examples.
        predictions: Task -> what the model says of each test example (`pack`).
        history: Evaluations, oldest first: step, epoch, mean, and each task's own metric; those of a task come together
            where each has a model of its own.
        best_step: The steps after which the weights were taken; a sum where each task has its own.
        num_steps: Of the whole run.
        passes: Forward passes for all labels of a text.
        parameters: "total", "per_task" (the mean over tasks of what belongs to a task alone) and "backbone".
        seconds: "teachers", "warm_start", "train", "test"; "selection" where auxiliary tasks were chosen, and
            "prefinetune" where the encoder learned from source tasks before: what that takes where nothing is known
            yet, one training after the other.
        machine: Where it ran, and the precision of training.
        versions: Of what computes.
        finished: When, in UTC.
        chosen: Task -> the tasks that it was trained with, where these were chosen.
        selection_steps: Training steps that choosing takes, beside `num_steps`.
    """

    spec: RunSpec
    dev: dict[str, dict[str, float]]
    test: dict[str, dict[str, float]]
    predictions: dict[str, Compact]
    history: list[dict[str, Any]]
    best_step: int
    num_steps: int
    passes: float
    parameters: dict[str, float]
    seconds: dict[str, float]
    machine: dict[str, Any]
    versions: dict[str, str]
    finished: str
    chosen: dict[str, list[str]] = field(default_factory=dict)
    selection_steps: int = 0

    def to_json(self) -> bytes:
        """As a file; each task and evaluation has a line."""
        return _json({**asdict(self), "digest": self.spec.digest})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunRecord:
        """The record of a file's values."""
        known = {key: value for key, value in values.items() if key not in ("digest", "spec", "dev", "test")}
        dev, test = (_with_undefined(values[part]) for part in ("dev", "test"))
        return cls(spec=RunSpec(**values["spec"]), dev=dev, test=test, **known)


@dataclass(frozen=True)
class DataRecord:
    """The test parts of a data set.

    Args:
        name: Of the data set.
        digest: Of the data set.
        tasks: `Task.to_dict` of each.
        sizes: Task -> part -> number of examples, before any are left out of training.
        labels: Task -> label of each test example (`pack`).
    """

    name: str
    digest: str
    tasks: list[dict[str, Any]]
    sizes: dict[str, dict[str, int]]
    labels: dict[str, Compact]

    @classmethod
    def of(cls, data: DataSet) -> DataRecord:
        """Of a data set that was read."""
        names = [task.config.name for task in data.tasks]
        return cls(
            data.name,
            data.digest,
            [task.config.definition().to_dict() for task in data.tasks],
            {
                name: {"train": len(task.train), "eval": len(task.eval), "test": len(task.test)}
                for name, task in zip(names, data.tasks, strict=True)
            },
            {name: pack_labels(task.test) for name, task in zip(names, data.tasks, strict=True)},
        )

    def to_json(self) -> bytes:
        """As a file."""
        return _json(asdict(self))

    def definitions(self) -> list[Task]:
        """The tasks."""
        return [Task.from_dict(task) for task in self.tasks]


@dataclass(frozen=True)
class SpeedRecord:
    """How fast a method gives all labels of texts, alone on its machine.

    Args:
        digest: Of what decides it but for the machine.
        method: Its name.
        model: What is said in its section `[model]`.
        data: Name of the data set.
        data_digest: Of the data set.
        backbone: The pretrained encoder.
        documents: How many texts.
        documents_per_s: The best of three times.
        precision: Of the model.
        machine: Where it ran.
        one_task: How many times faster the same model is with the first task alone; None if that was not measured.
        full: The same two for texts of `max_tokens` tokens, as "documents_per_s" and "one_task"; None as before.
    """

    digest: str
    method: str
    model: dict[str, Any]
    data: str
    data_digest: str
    backbone: str
    documents: int
    documents_per_s: float
    precision: str
    machine: dict[str, Any]
    one_task: float | None = None
    full: dict[str, float] | None = None

    def to_json(self) -> bytes:
        """As a file."""
        return _json({key: value for key, value in asdict(self).items() if value is not None})


@dataclass(frozen=True)
class Records:
    """All records of a directory, in the order of their names."""

    runs: list[RunRecord] = field(default_factory=list)
    data: dict[str, DataRecord] = field(default_factory=dict)
    speeds: list[SpeedRecord] = field(default_factory=list)


def run_uri(results: str, digest: str) -> str:
    """Where the record of a run lies."""
    return storage.join(results, f"{digest}.json")


def data_uri(results: str, digest: str) -> str:
    """Where the record of a data set lies."""
    return storage.join(results, f"data-{digest}.json")


def encoder_uri(encoders: str, digest: str) -> str:
    """Where the encoder that a run left lies."""
    return storage.join(encoders, f"{digest}.safetensors")


def speed_uri(results: str, digest: str) -> str:
    """Where the record of a method's speed lies."""
    return storage.join(results, f"speed-{digest}.json")


def read_records(results: str) -> Records:
    """The records of a directory or prefix.

    Raises:
        DataError: A file is no record of this version.
        LabelTableError: The storage cannot be reached or refuses.
    """
    found = Records()
    for info in sorted(storage.list_files(results, suffix=".json"), key=lambda info: info.path):
        if "/" in info.path:
            continue
        uri = storage.join(results, info.path)
        try:
            values = json.loads(storage.read_bytes(uri))
            if info.path.startswith("data-"):
                record = DataRecord(**values)
                found.data[record.digest] = record
            elif info.path.startswith("speed-"):
                found.speeds.append(SpeedRecord(**values))
            else:
                found.runs.append(RunRecord.from_dict(values))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{uri} is not a record of this version; move it away, or run it again") from error
    return found


def pack(values: npt.NDArray[Any]) -> Compact:
    """Label ids, or values of a regression, or which labels examples have, as JSON.

    >>> pack(np.array([0, 2, 1])), pack(np.array([0.25, 4.0]))
    ('021', [0.25, 4.0])
    >>> pack(np.array([[1, 0, 1], [0, 0, 0]]))
    {'num_labels': 3, 'given': ['0 2', '']}
    """
    if values.ndim == 2:
        given = [" ".join(map(str, np.flatnonzero(row))) for row in values]
        return {"num_labels": values.shape[1], "given": given}
    whole = bool(np.all(values == np.floor(values))) and len(values) > 0
    if whole and np.issubdtype(values.dtype, np.integer) and values.min() >= 0 and values.max() < len(_DIGITS):
        return "".join(_DIGITS[int(value)] for value in values)
    return [round(float(value), _DECIMALS) for value in values]


def pack_labels(examples: RawExamples) -> Compact:
    """The labels of examples; of a token task how many entities each has."""
    return pack(examples.labels if examples.entities is None else np.diff(examples.entities.offsets))


def pack_entities(given: Entities, found: Entities) -> Compact:
    """How many entities are found in each example, and how many of them are right."""
    return {"found": pack(np.diff(found.offsets)), "right": pack(num_right(given, found))}


def unpack(packed: Compact) -> Values:
    """What was packed, as floats; of what a token task finds (R, 2) how many entities, and how many right ones."""
    if isinstance(packed, str):
        return np.array([_DIGITS.index(digit) for digit in packed], dtype=np.float64)
    if isinstance(packed, dict) and "found" in packed:
        return np.column_stack([unpack(packed[key]) for key in ("found", "right")])
    if isinstance(packed, dict):
        has_label = np.zeros((len(packed["given"]), packed["num_labels"]))
        for row, ids in zip(has_label, packed["given"], strict=True):
            row[[int(label) for label in ids.split()]] = 1
        return has_label
    return np.array(packed, dtype=np.float64)


def machine(device: torch.device) -> dict[str, Any]:
    """What a run computed on."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {"gpu": gpu, "cpu": _cpu_model(), "cores": os.cpu_count()}


def versions() -> dict[str, str]:
    """Versions of what computes, of those packages that are installed."""
    installed = {distribution.name for distribution in distributions()}
    return {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES if name in installed}}


def _with_undefined(metrics: Mapping[str, Mapping[str, float | None]]) -> dict[str, dict[str, float]]:
    """Metrics as they were before JSON, which has no NaN."""
    return {
        task: {name: math.nan if value is None else value for name, value in of.items()} for task, of in metrics.items()
    }


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor()


def _json(values: Mapping[str, Any]) -> bytes:
    """One line for each key, and for each entry of those with many."""
    return (_lines(values, 0) + "\n").encode()


def _lines(value: Any, depth: int) -> str:
    deep: Sequence[tuple[str, Any]] = []
    if depth < 2 and isinstance(value, Mapping) and value:
        deep = [(f"{to_json(key)}: ", item) for key, item in value.items()]
    elif depth < 2 and isinstance(value, list) and value and isinstance(value[0], Mapping):
        deep = [("", item) for item in value]
    if not deep:
        return to_json(value)
    inner = ",\n".join(" " * (depth + 1) + key + _lines(item, depth + 1) for key, item in deep)
    first, last = ("{", "}") if isinstance(value, Mapping) else ("[", "]")
    return f"{first}\n{inner}\n{' ' * depth}{last}"
