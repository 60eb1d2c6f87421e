"""`mtop compare`: what another bundle would change, on a sample of a corpus and before anything is labelled."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mtop_batch import storage
from mtop_batch.corpus.files import UnreadableSource
from mtop_batch.corpus.listing import list_corpus
from mtop_batch.corpus.paths import parse_partitions
from mtop_batch.data.input_vectors import InputVectors
from mtop_batch.engine.labelling.gate import bundle_metrics, metric_change
from mtop_batch.errors import DataError, TaskError
from mtop_batch.labelling.plan.sample import Block, draw_sample
from mtop_batch.labelling.run.predictor import Predictor
from mtop_batch.labelling.run.read_rows import TextBatch, read_unit
from mtop_batch.lines import shown
from mtop_batch.model.bundle.files import BundleInfo, read_bundle_info
from mtop_batch.precision import PrecisionChoice
from mtop_batch.table.columns import ENTITIES_TYPE
from mtop_batch.table.gate.rules import DEFAULT_RULES, Rules, TableChange, judge
from mtop_batch.table.gate.statistics import TaskChange
from mtop_batch.tasks import VectorInput, select_tasks

_TEXT_CHARS = 300

_Columns = tuple[str, ...]


@dataclass(frozen=True)
class CompareOptions:
    """The options of `mtop compare`; empty tuples stand for the default.

    Args:
        model: URI of the bundle whose labels are compared with.
        other: URI of the bundle that would take its place.
        corpus: URI of the corpus.
        sample: Articles to label with both.
        tasks: Only these tasks; by default those that both bundles have.
        partitions: Only source files of these hive partitions, `key=value`.
        allow_empty: No source file need be in the partition.
        id_column: Column that identifies an article.
        text_columns: One text column, or two for a pair, for all tasks; by default those that each bundle's task was
            trained on, as far as a file has them.
        seed: Decides which articles.
        precision: Of the models.
        rules: What the gate would let through.
    """

    model: str
    other: str
    corpus: str
    sample: int = 5000
    tasks: tuple[str, ...] = ()
    partitions: tuple[str, ...] = ()
    allow_empty: bool = False
    id_column: str = "id"
    text_columns: tuple[str, ...] = ()
    seed: int = 0
    precision: PrecisionChoice = "auto"
    rules: Rules = DEFAULT_RULES


def compare_bundles(options: CompareOptions, *, flips_uri: str | None = None) -> dict[str, Any]:
    """Label a sample with two bundles, and compare: in this process, on a GPU if there is one.

    Args:
        options: What to compare on what.
        flips_uri: Where to write the articles whose labels differ, as Parquet; one row per article and task.

    Returns:
        The comparison, JSON-ready.

    Raises:
        BundleError: One of the bundles is missing or damaged.
        TaskError: They have no task in common, or lack one of those named.
        ConfigError, DataError: The corpus, partition or columns cannot work.
    """
    first, second = read_bundle_info(options.model), read_bundle_info(options.other)
    tasks = _common_tasks(first, second, options.tasks)
    old_columns, new_columns = (_columns_of_tasks(bundle, tasks, options.text_columns) for bundle in (first, second))
    beside = tuple(dict.fromkeys([*first.inputs, *second.inputs]))
    sample = _read_sample(options, {*old_columns.values(), *new_columns.values()}, beside)
    old = _predict(first, sample, old_columns, options.precision)
    new = _predict(second, sample, new_columns, options.precision)
    change = TableChange(articles=len(sample), new_errors=int(new["error"].is_valid().to_numpy().sum()))
    kinds = {task.name: task.kind for task in second.tasks}
    metrics, metric_names = [bundle_metrics(uri) for uri in (options.model, options.other)], _metric_names(second)
    found = {task: metric_change(metric_names[task], *(of.get(task, {}) for of in metrics)) for task in tasks}
    change.metrics = {task: metric for task, metric in found.items() if metric is not None}
    for task in tasks:
        of_task = change.tasks[task] = TaskChange(kinds[task], second.fingerprints[task])
        for source, rows, first_row in sample.slices():
            replaced = first.name, first.fingerprints[task]
            of_task.add(task, new[rows], old[rows], source=source, first_row=first_row, replaced=replaced)
        for example in of_task.examples:
            example["text"] = sample.text_of(example["source"], example["row"], new_columns[task])
    if flips_uri is not None:
        _write_flips(flips_uri, sample, old, new, new_columns)
    verdict = judge(change, options.rules).to_dict()
    return {
        "model": first.uri,
        "with": second.uri,
        "corpus": storage.absolute(options.corpus),
        "articles": len(sample),
        "errors": change.new_errors,
        "unreadable_files": [{"path": path, "reason": reason} for path, reason in sorted(sample.unreadable.items())],
        "only_in_model": [name for name in first.fingerprints if name not in tasks],
        "only_in_with": [name for name in second.fingerprints if name not in tasks],
        "same_fingerprint": [task for task in tasks if first.fingerprints[task] == second.fingerprints[task]],
        "tasks": {task: {"agreement": round(1 - of["disagreement"], 6), **of} for task, of in verdict["tasks"].items()},
        "gate": {key: verdict[key] for key in ("open", "reasons", "rules")},
    }


@dataclass(frozen=True)
class _Sample:
    """The articles of a sample, block by block, with a text or a pair of texts for each of the inputs, and with what
    stands beside them."""

    blocks: Sequence[Block]
    lengths: Sequence[int]
    ids: Sequence[Any]
    texts: Mapping[_Columns, Sequence[tuple[str | None, str | None]]]
    vectors: Mapping[VectorInput, InputVectors]
    unreadable: Mapping[str, str]

    def __len__(self) -> int:
        return len(self.ids)

    def slices(self) -> list[tuple[str, slice, int]]:
        """For each block its source, its place in the sample, and its first row in the source."""
        found, start = [], 0
        for block, length in zip(self.blocks, self.lengths, strict=True):
            found.append((block.source.path, slice(start, start + length), block.rows[0]))
            start += length
        return found

    def text_of(self, source: str, row: int, columns: _Columns) -> str:
        """The beginning of an article as these columns have it."""
        for path, rows, first_row in self.slices():
            if path == source and first_row <= row < first_row + rows.stop - rows.start:
                return self.beginning(rows.start + row - first_row, columns)
        return ""

    def beginning(self, index: int, columns: _Columns) -> str:
        """The beginning of the article at a place in the sample."""
        texts = self.texts[columns][index]
        return "\n".join(text for text in texts if text)[:_TEXT_CHARS]


def _common_tasks(first: BundleInfo, second: BundleInfo, wanted: Sequence[str]) -> list[str]:
    kinds = [{task.name: task.kind for task in bundle.tasks} for bundle in (first, second)]
    common = [name for name, kind in kinds[0].items() if kinds[1].get(name) == kind]
    if not common:
        raise TaskError(f"{first.uri} and {second.uri} have no task of the same name and kind; nothing to compare")
    return select_tasks(wanted, common) if wanted else common


def _columns_of_tasks(bundle: BundleInfo, tasks: Sequence[str], given: _Columns) -> dict[str, _Columns]:
    """What each task reads, as `mtop label` would have it."""
    return {task.name: given or task.text for task in bundle.tasks if task.name in tasks}


def _read_sample(options: CompareOptions, inputs: Collection[_Columns], beside: Sequence[VectorInput]) -> _Sample:
    listing = list_corpus(storage.absolute(options.corpus))
    sources = listing.in_partition(parse_partitions(options.partitions), allow_empty=options.allow_empty)
    blocks, unreadable = draw_sample(
        listing.root,
        sources,
        options.sample,
        id_column=options.id_column,
        inputs=inputs,
        text_columns_required=bool(options.text_columns),
        vector_columns=[spec.column for spec in beside],
        seed=options.seed,
    )
    if not blocks and unreadable:
        path, reason = next(iter(unreadable.items()))
        raise DataError(
            f"{shown(storage.join(listing.root, path))}: {reason}; no file of --corpus {options.corpus} can be read"
        )
    kept: list[Block] = []
    lengths: list[int] = []
    ids: list[Any] = []
    texts: dict[_Columns, list[tuple[str | None, str | None]]] = {columns: [] for columns in inputs}
    vectors = {spec: [InputVectors.none(spec.size, 0)] for spec in beside}
    for block in blocks:
        try:
            read = {
                columns: list(read_unit(listing.root, block.unit(columns), options.id_column, inputs=beside))
                for columns in inputs
            }
        except UnreadableSource as error:
            unreadable[block.source.path] = str(error)
            continue
        kept.append(block)
        lengths.append(min(block.num_rows, options.sample - len(ids)))  # the last block is cut
        for columns, batches in read.items():
            of_block = [row for batch in batches for row in _rows(batch)]
            texts[columns] += of_block[: lengths[-1]]
        ids += [value for batch in batches for value in batch.ids.to_pylist()][: lengths[-1]]
        for spec, of_batches in zip(beside, zip(*(batch.vectors for batch in batches), strict=True), strict=True):
            vectors[spec].append(InputVectors.concat(of_batches).take(np.arange(lengths[-1])))
    of_all = {spec: InputVectors.concat(found) for spec, found in vectors.items()}
    return _Sample(kept, lengths, ids, texts, of_all, unreadable)


def _rows(batch: TextBatch) -> Iterable[tuple[str | None, str | None]]:
    return zip(batch.texts, batch.seconds or [None] * len(batch), strict=True)


def _predict(
    bundle: BundleInfo, sample: _Sample, columns_of_tasks: Mapping[str, _Columns], precision: PrecisionChoice
) -> pa.Table:
    """The labels of all tasks, those that read the same together; an error where a task has no text."""
    ids = pa.array([None if value is None else str(value) for value in sample.ids], pa.string())
    found: dict[str, pa.ChunkedArray | pa.Array] = {"id": ids, "error": pa.nulls(len(sample), pa.string())}
    for columns in dict.fromkeys(columns_of_tasks.values()):
        tasks = [task for task, read in columns_of_tasks.items() if read == columns]
        texts, seconds = [text for text, _ in sample.texts[columns]], [second for _, second in sample.texts[columns]]
        inputs = {spec.column: sample.vectors[spec].to_arrow() for spec in bundle.inputs}
        predictor = Predictor.load(bundle.uri, tasks=tasks, precision=precision)
        labels = predictor.predict(texts, seconds, inputs=inputs)
        error = pc.coalesce(found["error"], labels["error"])
        found |= {**{name: labels[name] for name in labels.column_names}, "error": error}
    return pa.table(found)


def _metric_names(bundle: BundleInfo) -> dict[str, str]:
    return {task.name: str(task.metric) for task in bundle.tasks}


def _write_flips(
    uri: str, sample: _Sample, old: pa.Table, new: pa.Table, columns_of_tasks: Mapping[str, _Columns]
) -> None:
    """Write the articles whose labels differ, with the texts that the new bundle reads."""
    rows: list[dict[str, Any]] = []
    places = [
        (source, first_row + index) for source, of, first_row in sample.slices() for index in range(of.stop - of.start)
    ]
    for task, read in columns_of_tasks.items():
        if f"{task}_label" not in new.schema.names:
            continue
        columns = [column for table in (old, new) for column in _labels_and_scores(table, task)]
        for index, cells in enumerate(zip(*columns, strict=True)):
            for was, was_score, now, now_score in _flips(*cells):
                source, row = places[index]
                rows.append(
                    {
                        "task": task,
                        "source": source,
                        "row": row,
                        "id": new["id"][index].as_py(),
                        "old": was,
                        "old_score": was_score,
                        "new": now,
                        "new_score": now_score,
                        "text": sample.beginning(index, read),
                    }
                )
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=_FLIPS), sink)
    storage.write_bytes(uri, sink.getvalue().to_pybytes())


def _labels_and_scores(table: pa.Table, task: str) -> tuple[list[Any], list[Any]]:
    """The label and the score of each article; of a token task lists of both, a label for each entity."""
    labels, scores = table[f"{task}_label"].to_pylist(), table[f"{task}_score"].to_pylist()
    if table.schema.field(f"{task}_label").type != ENTITIES_TYPE:
        return labels, scores
    names = [row and [f"{of['label']} {of['column']} {of['start']}-{of['end']}" for of in row] for row in labels]
    return names, [row and [of["score"] for of in row] for row in labels]


def _flips(was: Any, was_score: Any, now: Any, now_score: Any) -> list[tuple[Any, Any, Any, Any]]:
    """The old and the new label where they differ, with their scores.

    Of lists each label that is in one of them only, beside null.
    """
    if not isinstance(was, list) or not isinstance(now, list):
        return [(was, was_score, now, now_score)] if was != now and not isinstance(was or now, list) else []
    lost = [(label, score, None, None) for label, score in zip(was, was_score, strict=True) if label not in now]
    gained = [(None, None, label, score) for label, score in zip(now, now_score, strict=True) if label not in was]
    return [*lost, *gained]


_FLIPS = pa.schema(
    [
        ("task", pa.string()),
        ("source", pa.string()),
        ("row", pa.int64()),
        ("id", pa.string()),
        ("old", pa.string()),
        ("old_score", pa.float32()),
        ("new", pa.string()),
        ("new_score", pa.float32()),
        ("text", pa.string()),
    ]
)
