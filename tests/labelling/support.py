"""Small corpora, and a stand-in for the model: what a label should be can be read off the text."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtop_batch import storage
from mtop_batch.labelling.plan import staleness
from mtop_batch.labelling.plan.planner import plan_labels
from mtop_batch.labelling.plan.work import Plan, Unit
from mtop_batch.labelling.run.read_rows import read_unit
from mtop_batch.table.columns import ENTITIES_TYPE, LABEL_TYPE
from mtop_batch.table.definition import VECTOR, Definition
from mtop_batch.table.outputs import TaskOutputs, label_columns
from mtop_batch.table.publisher import publish
from mtop_batch.table.row_ranges import slice_rows
from mtop_batch.table.runs import new_run_id, write_run
from mtop_batch.table.store import write_label_file
from mtop_batch.tasks import Task


def definition(fingerprints: Mapping[str, str], **options: Any) -> Definition:
    """A definition of yes-or-no tasks with these fingerprints; vectors come last, and have fingerprint 1 if not wanted.

    All read title and body unless `text_columns` names others, for all tasks or, as a mapping, for some. Tasks whose
    name starts with "r" are regressions, those with "p" probes; `tasks` names others.
    """
    others = {task.name: task for task in options.pop("tasks", ())}
    records = tuple(
        others[name]
        if name in others
        else Task(name, kind="regression", labels=())
        if name.startswith("r")
        else Task(name, "probe" if name.startswith("p") else "classification")
        for name in fingerprints
        if name != VECTOR
    )
    ordered = dict(sorted(fingerprints.items(), key=lambda item: item[0] == VECTOR))
    given = options.pop("text_columns", {})
    columns = dict.fromkeys([*ordered, VECTOR], ("title", "body"))
    columns |= given if isinstance(given, Mapping) else dict.fromkeys(columns, given)
    options = {"bundle_name": "news", "bundle_uri": "models/news", "vector": ordered.get(VECTOR, "1"), **options}
    return Definition(tasks=records, fingerprints=ordered, text_columns=columns, **options)


def write_corpus(root: Path, files: Mapping[str, Any], **options: Any) -> None:
    """Write Parquet files: each a table, or a dict of columns."""
    for name, columns in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        table = columns if isinstance(columns, pa.Table) else pa.table(columns)
        pq.write_table(table, path, **options)


def articles(count: int, start: int = 0) -> dict[str, list[Any]]:
    """Columns of `count` articles with ids from `start`."""
    numbers = range(start, start + count)
    return {
        "id": [f"a{n}" for n in numbers],
        "title": [f"title {n}" for n in numbers],
        "body": [f"body {n}" for n in numbers],
    }


def expected_label(task: str, fingerprint: str, text: str, second: str | None) -> tuple[str, float]:
    """What the stand-in says: as arbitrary as a model, and as deterministic."""
    digest = hashlib.sha256(f"{task}|{fingerprint}|{text}|{second}".encode()).digest()
    return ("yes" if digest[0] % 2 else "no"), digest[1] / 256


def expected_entities(task: Task, fingerprint: str, column: str, text: str) -> list[dict[str, Any]]:
    """The entities that the stand-in finds: none, one or two."""
    digest = hashlib.sha256(f"{task.name}|{fingerprint}|{text}".encode()).digest()
    places = [(2 * number, 2 * number + 1) for number in range(digest[0] % 3)]
    label = task.labels[digest[1] % len(task.labels)]
    return [{"column": column, "start": s, "end": e, "label": label, "score": 0.5} for s, e in places]


def expected_probabilities(task: Task, fingerprint: str, text: str, second: str | None) -> list[float]:
    """What the stand-in says of all labels of a task that has more than one, or keeps their scores."""
    if task.is_multi_label:
        digest = hashlib.sha256(f"{task.name}|{fingerprint}|{text}|{second}".encode()).digest()
        return [value / 256 for value in digest[: len(task.labels)]]
    label, score = expected_label(task.name, fingerprint, text, second)
    others = (1 - score) / (len(task.labels) - 1)
    return [score if name == label else others for name in task.labels]


def _columns_of_all(
    task: Task, fingerprint: str, texts: Sequence[tuple[str | None, str | None]]
) -> dict[str, pa.Array]:
    """The columns of a task of which the probabilities of all labels are kept."""
    has_text = np.array([text is not None for text, _ in texts], bool)
    probabilities = np.full((len(task.labels), len(texts)), np.nan, np.float32)
    label_ids = np.full((1, len(texts)), -1, np.int32)
    for row, (text, second) in enumerate(texts):
        if text is not None:
            probabilities[:, row] = expected_probabilities(task, fingerprint, text, second)
            if not task.is_multi_label:
                label_ids[0, row] = task.labels.index(expected_label(task.name, fingerprint, text, second)[0])
    scores = probabilities.max(axis=0) if task.is_multi_label else probabilities[label_ids[0], range(len(texts))]
    outputs = TaskOutputs(label_ids, scores[None], probabilities={task.name: probabilities})
    return dict(label_columns([task], outputs, has_text))


def _has_more(task: Task) -> bool:
    """Whether its columns are not just the likeliest label and its score."""
    return task.keeps_probabilities or task.scores == "all"


def label_unit(corpus: str, labels: str, wanted: Definition, unit: Unit, run: str, max_targets: int = 99) -> None:
    """Read, label and write one unit; at most so many of its label files, as if killed between two."""
    batches = list(read_unit(corpus, unit, wanted.id_column, batch_rows=7))
    texts = [text for batch in batches for text in batch.texts]
    seconds = [second for batch in batches for second in batch.seconds or [None] * len(batch)]
    errors = [error for batch in batches for error in batch.errors]
    ids = pa.chunked_array([batch.ids for batch in batches]) if batches else pa.chunked_array([[]], pa.string())
    columns: dict[str, pa.Array] = {}
    if VECTOR in unit.tasks:
        vectors = [None if text is None else [len(text), 1.0] for text in texts]
        columns["vector"] = pa.array(vectors, pa.list_(pa.float16(), 2))
    pairs_of_texts = list(zip(texts, seconds, strict=True))
    kept = {task.name: task for task in wanted.tasks if _has_more(task) and task.name in unit.tasks}
    for name, kept_task in kept.items():
        columns |= _columns_of_all(kept_task, wanted.fingerprints[name], pairs_of_texts)
    finding = {task.name: task for task in wanted.tasks if task.is_token and task.name in unit.tasks}
    for name, token_task in finding.items():
        found = [
            None
            if text is None
            else expected_entities(token_task, wanted.fingerprints[name], unit.text_columns[0], text)
            for text, _ in pairs_of_texts
        ]
        columns[f"{name}_label"] = pa.array(found, ENTITIES_TYPE)
        columns[f"{name}_score"] = pa.array([None if row is None else 0.5 for row in found], pa.float32())
    for task in (task for task in unit.tasks if task != VECTOR and task not in {**kept, **finding}):
        pairs = [
            (None, None) if text is None else expected_label(task, wanted.fingerprints[task], text, second)
            for text, second in pairs_of_texts
        ]
        columns[f"{task}_label"] = pa.array([label for label, _ in pairs], pa.string()).cast(LABEL_TYPE)
        columns[f"{task}_score"] = pa.array([score for _, score in pairs], pa.float32())
    for target in unit.targets[:max_targets]:
        write_label_file(labels, target.file, ids, columns, errors, unit.footer(target, wanted, run))


@contextmanager
def small_slices(num_rows: int) -> Iterator[None]:
    """Source files are cut into slices of so many rows: the same numbers everywhere, as in the real thing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(staleness, "slice_rows", partial(slice_rows, slice_rows=num_rows))
        yield


def run_plan(plan: Plan, wanted: Definition, units: Iterable[Unit] | None = None) -> str:
    """Do all or some units of a plan and publish, as a run would; returns the run's id."""
    run = new_run_id()
    write_run(plan.labels, run, wanted, plan.corpus)
    for file in plan.damaged:
        storage.delete(file.uri(plan.labels))
    for unit in plan.units if units is None else units:
        label_unit(plan.corpus, plan.labels, wanted, unit, run)
    publish(plan.labels, wanted.view, wanted.kinds, plan.to_publish, run, orphans=plan.removals)
    return run


def label_corpus(corpus: Path, labels: Path, wanted: Definition, partitions: Sequence[str] = ()) -> Plan:
    """Plan and do everything; returns the plan that was done."""
    plan = plan_labels(str(corpus), str(labels), wanted, partitions=partitions)
    run_plan(plan, wanted)
    return plan
