"""The record of each run: what it wanted, written when it starts.

    <labels>/_runs/<run>/run.json       the definition
    <labels>/_runs/<run>/report.json    its result, see `mtop_batch.labelling.report.run_report`

The newest run that wanted a task says which of its labels are the current ones, and which vectors.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice

from mtop_batch import storage
from mtop_batch.errors import LabelTableError, TaskError
from mtop_batch.lines import listed
from mtop_batch.table.definition import Definition, ViewDefinition

_FORMAT = 2
_RUNS_LOOKED_AT = 10


def new_run_id(now: datetime | None = None) -> str:
    """A run id such as `20261120T020000Z-1a2b3c`: later runs have greater ids.

    The six hexadecimal digits are the microsecond and a random one.
    """
    now = (now or datetime.now(UTC)).astimezone(UTC)
    return f"{now:%Y%m%dT%H%M%SZ}-{now.microsecond:05x}{secrets.randbelow(16):x}"


def run_uri(labels: str, run: str, name: str) -> str:
    """Where a run keeps its file `name`."""
    return storage.join(labels, "_runs", run, name)


@dataclass(frozen=True)
class RunRecord:
    """What a run wanted.

    Args:
        run: Its id.
        wanted: Its definition.
        task_labels: The labels of each task; none for a regression.
        task_kinds: Their kinds, where a run has noted them.
        bundle: URI of the bundle.
        corpus: URI of the corpus.
        partitions: The `--partition` filter.
        started: When, as ISO 8601.
    """

    run: str
    wanted: ViewDefinition
    task_labels: Mapping[str, Sequence[str]]
    bundle: str
    corpus: str
    partitions: Mapping[str, str]
    started: str = ""
    task_kinds: Mapping[str, str] = field(default_factory=dict)


def write_run(
    labels: str, run: str, definition: Definition, corpus: str, partitions: Mapping[str, str] | None = None
) -> None:
    """Write `run.json`, before the first label file of the run.

    Raises:
        StorageError: The storage cannot be reached or refuses.
    """
    task_labels = {task.name: task.labels for task in definition.tasks}
    kinds = {task.name: task.kind for task in definition.tasks}
    record = RunRecord(
        run, definition.view, task_labels, definition.bundle_uri, corpus, partitions or {}, task_kinds=kinds
    )
    record_run(labels, record)


def record_run(labels: str, record: RunRecord) -> None:
    """Write a run's record, as started now; errors are those of `write_run`."""
    content = {
        "format": _FORMAT,
        "run": record.run,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "corpus": record.corpus,
        "partitions": dict(record.partitions),
        "bundle": record.bundle,
        "tasks": dict(record.wanted.fingerprints),
        "task_labels": {task: list(names) for task, names in record.task_labels.items()},
        "task_kinds": dict(record.task_kinds),
        "all_scores": sorted(record.wanted.all_scores),
        "decisions": dict(record.wanted.decisions),
        "text_columns": dict(record.wanted.text_columns),
        "id_column": record.wanted.id_column,
    }
    storage.write_bytes(run_uri(labels, record.run, "run.json"), json.dumps(content, indent=2).encode())


def list_runs(labels: str) -> list[str]:
    """Ids of the table's runs, the newest first."""
    files = storage.list_files(storage.join(labels, "_runs"), suffix="/run.json")
    return sorted((info.path.removesuffix("/run.json") for info in files), reverse=True)


def read_run(labels: str, run: str) -> RunRecord:
    """A run's record.

    Raises:
        LabelTableError: It cannot be read.
    """
    uri = run_uri(labels, run, "run.json")
    try:
        content = json.loads(storage.read_bytes(uri))
        if content["format"] != _FORMAT:
            raise ValueError(f"it has format {content['format']}, this version reads {_FORMAT}")
        text_columns = {task: tuple(columns) for task, columns in content["text_columns"].items()}
        return RunRecord(
            run=run,
            wanted=ViewDefinition(
                content["tasks"],
                text_columns,
                content["id_column"],
                frozenset(content.get("all_scores", ())),
                content.get("decisions", {}),
            ),
            task_labels=content.get("task_labels", {}),
            task_kinds=content.get("task_kinds", {}),
            bundle=content["bundle"],
            corpus=content["corpus"],
            partitions=content["partitions"],
            started=content["started"],
        )
    except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
        raise LabelTableError(
            f"{uri} is not the record of a run ({error!r}); remove it and run `mtop label`"
        ) from error


def current_definitions(labels: str, tasks: Sequence[str]) -> dict[str, ViewDefinition]:
    """For each task, what the newest run wanted that wanted it: labels of that definition are the current ones.

    Args:
        labels: The label table.
        tasks: The tasks asked about; the others' definitions come along as far as they are met.
    """
    found: dict[str, ViewDefinition] = {}
    for record in _newest_first(labels):
        for task in record.wanted.fingerprints:
            found.setdefault(task, record.wanted)
        if found.keys() >= set(tasks):
            break
    return found


def check_same_tasks(labels: str, definition: Definition) -> None:
    """Refuse a bundle whose tasks have the names of others in the label table: their columns would mix two meanings.

    A task trained anew may have got or lost labels; one that shares none with the newest of the last runs that wanted
    it is another task, and so is one of another kind.

    Raises:
        TaskError: There is such a task.
        LabelTableError: The label table cannot be read.
    """
    open_tasks = {task.name: task for task in definition.tasks}
    for record in islice(_newest_first(labels), _RUNS_LOOKED_AT):
        for name in open_tasks.keys() & record.task_labels.keys():
            before, task = record.task_labels[name], open_tasks.pop(name)
            kind = record.task_kinds.get(name) or ("classification" if before else "regression")
            if kind != task.kind or (task.labels and not set(before) & set(task.labels)):
                raise TaskError(
                    f"task {name!r} has {_labels(task.kind, task.labels)} in bundle {definition.bundle_uri}, but "
                    f"{_labels(kind, before)} in the label table {labels} (run {record.run}, bundle {record.bundle}): "
                    "another task of the same name. Check --model and --labels; leave the task out with --tasks, or "
                    "give its bundle a table of its own"
                )
        if not open_tasks:
            break


def _labels(kind: str, labels: Sequence[str]) -> str:
    if not labels:
        return "a value and no labels"
    if kind == "token":
        return f"entities of the types {listed(labels)}"
    return f"{'any number of ' if kind == 'multi-label' else ''}the labels {listed(labels)}"


def _newest_first(labels: str) -> Iterator[RunRecord]:
    return (read_run(labels, run) for run in list_runs(labels))
