"""The three stages of a piece of work: read and tokenise, label, write.

A piece of work is a list of units that want the same tasks. Between stages, and so between processes, a unit travels
as one Arrow IPC stream: ragged tokens, never padded lists; its schema metadata says which unit it is and what its
result is so far. A source file that cannot be read goes through with the reason and without rows.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mtop_batch.corpus.files import UnreadableSource
from mtop_batch.data.input_vectors import InputVectors
from mtop_batch.data.tokens import TextTokenizer, Tokens, reasons_without
from mtop_batch.errors import MtopError, one_line
from mtop_batch.labelling.plan.work import SourceOfLabels, Target, Unit
from mtop_batch.labelling.run.probes import ProbePredictor, read_vectors
from mtop_batch.labelling.run.read_rows import read_unit
from mtop_batch.labelling.run.scores import read_scores
from mtop_batch.precision import PrecisionChoice
from mtop_batch.storage.retry import DEFAULT_RETRY_TIMEOUT_S, EventSink, ignore_event, with_retries
from mtop_batch.table.columns import VECTOR_COLUMN, given_labels, label_counts
from mtop_batch.table.definition import Definition
from mtop_batch.table.lease.lease import LeaseToken
from mtop_batch.table.outputs import TaskOutputs, decide_outputs, label_columns, stored_outputs
from mtop_batch.table.store import write_label_file
from mtop_batch.tasks import Task, VectorInput

if TYPE_CHECKING:
    from mtop_batch.labelling.run.predictor import Predictor

MAX_ERROR_EXAMPLES = 5
KILLED = "it killed the process that worked on it, again and again, also alone: by the memory it takes, or by a fault"
"""The reason of a unit that no process survives."""
_METADATA_KEY = b"mtop_unit"

# A piece costs the engine some 0.1 s; the last ones should leave no actor idle for long.
_MIN_PIECE_ROWS = 1_000
_PIECES_PER_ACTOR = 8


@dataclass(frozen=True)
class LabelJob:
    """What all pieces of work of a run share.

    Args:
        corpus: URI of the corpus.
        labels: URI of the label table.
        run: The run's id.
        definition: The wanted tasks with their fingerprints, and the columns they are computed from.
        lease: The run's right to write; asked before every label file.
        retry_timeout_s: The run fails when storage has not answered for so long.
        precision: Of the model, as `Predictor` takes it.
        event_sink: Called, in whatever process a stage runs, when storage does not answer and when it does again.
    """

    corpus: str
    labels: str
    run: str
    definition: Definition
    lease: LeaseToken
    retry_timeout_s: float = DEFAULT_RETRY_TIMEOUT_S
    precision: PrecisionChoice = "auto"
    event_sink: EventSink = ignore_event


@dataclass
class UnitResult:
    """The result of a unit; the run report adds these up.

    `rows == labelled + errors`; all are 0 where `unreadable` says why the source could not be read.

    Args:
        source: The source file, below the corpus.
        unit: The unit, as messages name it.
        rows: Rows written.
        labelled: Rows that have labels.
        errors: Rows that have the reason why they have none.
        cells: Rows x tasks that are current now.
        computed_from: What the labels were computed from.
        unreadable: Why the source could not be read, if so.
        error_reasons: How often each reason occurred.
        error_examples: The first few rows without labels: row number in the source file and reason.
        label_counts: Task -> label -> articles.
        list_counts: Task -> articles, of tasks that give an article any number of labels.
        abstained: Task -> articles without a label because it is too unsure.
        corrected: Task -> articles whose label a rule has changed.
        texts_cut: Rows of which the model does not read everything.
        texts_in_windows: Rows that are read in several windows.
        num_tokens: Tokens of the texts, without padding; what windows share counts in each.
        num_padded_tokens: Tokens that went through the model, prompts aside.
        num_bytes: Bytes of the label files.
        flops: FLOP that the texts take (`mtop_batch.model.flops`).
        peak_flops_per_s: Measured peak of the device: FLOP/s of a large matrix product.
        retries: How often storage did not answer and was asked again.
        seconds: Per stage ("read", "tokenise", "model", "write"; "probes" or "decide" in place of the two in the middle
            where labels are computed from stored vectors or scores).
    """

    source: str
    unit: str = ""
    rows: int = 0
    labelled: int = 0
    errors: int = 0
    cells: int = 0
    computed_from: SourceOfLabels = "texts"
    unreadable: str | None = None
    error_reasons: dict[str, int] = field(default_factory=dict)
    error_examples: list[dict[str, Any]] = field(default_factory=list)
    label_counts: dict[str, dict[str, int]] = field(default_factory=dict)
    list_counts: dict[str, int] = field(default_factory=dict)
    abstained: dict[str, int] = field(default_factory=dict)
    corrected: dict[str, int] = field(default_factory=dict)
    texts_cut: int = 0
    texts_in_windows: int = 0
    num_tokens: int = 0
    num_padded_tokens: int = 0
    num_bytes: int = 0
    flops: float = 0.0
    peak_flops_per_s: float = 0.0
    retries: int = 0
    seconds: dict[str, float] = field(default_factory=dict)


def pieces_of_work(units: Iterable[Unit], max_rows: int) -> list[list[Unit]]:
    """Put units that want the same tasks from the same kind of input together, in their order, up to `max_rows` rows.

    Many small files then cost one batch of the model and one task of the engine, not one each.
    """
    pieces: list[list[Unit]] = []
    newest: dict[tuple[tuple[str, ...], str], list[Unit]] = {}
    num_rows: Counter[tuple[tuple[str, ...], str]] = Counter()
    for unit in units:
        alike = unit.tasks, unit.source_of_labels
        if alike not in newest or num_rows[alike] + unit.num_rows > max_rows:
            newest[alike] = []
            num_rows[alike] = 0
            pieces.append(newest[alike])
        newest[alike].append(unit)
        num_rows[alike] += unit.num_rows
    return pieces


def rows_of_a_piece(num_rows: int, unit_rows: int, num_actors: int) -> int:
    """How many rows to put together: enough to be worth a task, few enough to keep all actors busy to the end.

    Args:
        num_rows: Of all units.
        unit_rows: Most rows of a unit, and so the most.
        num_actors: That the cluster has room for.

    >>> rows_of_a_piece(10_000_000, 20_000, 4), rows_of_a_piece(40_000, 20_000, 2), rows_of_a_piece(300, 20_000, 2)
    (20000, 2500, 1000)
    """
    return min(unit_rows, max(_MIN_PIECE_ROWS, num_rows // (_PIECES_PER_ACTOR * num_actors)))


def read_and_tokenise(job: LabelJob, units: Sequence[Unit], tokenizer: TextTokenizer) -> list[bytes]:
    """First stage: one stream per unit with the columns `id`, `input_ids`, `first_length` and `error`, `words` where
    token tasks are wanted, and `input <column>` for what stands beside texts.

    A source that cannot be read, for whatever reason but storage, does not raise: its stream says so.

    Raises:
        StorageError: Storage did not answer for the job's retry timeout.
    """
    return [_read_unit(job, unit, tokenizer) for unit in units]


def label(streams: Sequence[Any], predictor: Predictor) -> list[bytes]:
    """Second stage: the rows of all units together through the model; one stream per unit with its label columns.

    Args:
        streams: What the first stage returned, as bytes or Arrow buffers.
        predictor: Of what the units want.
    """
    opened = [_open_stream(stream) for stream in streams]
    tokens = Tokens.concat(Tokens.from_arrow(table) for table, _, _ in opened)
    vectors = tuple(
        InputVectors.concat([_vectors_of(table, spec) for table, _, _ in opened]) for spec in predictor.inputs
    )
    outputs = predictor.predict_tokens(tokens, vectors)
    peak_flops_per_s = predictor.measure_peak_flops_per_s()
    labelled, start = [], 0
    for table, unit, result in opened:
        rows = slice(start, start + len(table))
        start += len(table)
        result.num_tokens = int(tokens.lengths[rows].sum())
        share = result.num_tokens / max(1, outputs.num_tokens)
        result.num_padded_tokens = round(outputs.num_padded_tokens * share)
        result.flops = outputs.flops * share
        result.peak_flops_per_s = peak_flops_per_s
        result.seconds["model"] = outputs.seconds * share
        found = _labelled(table, predictor.tasks, outputs[rows], result, unit.text_columns)
        labelled.append(_stream(found, unit, result))
    return labelled


def label_from_vectors(job: LabelJob, units: Sequence[Unit], predictor: ProbePredictor) -> list[bytes]:
    """First and second stage of units that have vectors: these are read instead of texts, and no encoder runs.

    Args:
        job: As for the other stages.
        units: Each with `vectors`.
        predictor: Of the tasks that the units want, and perhaps of others.

    Raises:
        DamagedLabelFile: A label file with vectors is not what it was when the run was planned.
        StorageError: Storage did not answer for the job's retry timeout.
    """
    return [_label_from_vectors(job, unit, predictor.of(unit.tasks)) for unit in units]


def label_from_scores(job: LabelJob, units: Sequence[Unit]) -> list[bytes]:
    """First and second stage of units of which the scores are stored: only decisions are made, and no model is read.

    Raises:
        DamagedLabelFile: A label file with scores is not what it was when the run was planned.
        StorageError: Storage did not answer for the job's retry timeout.
    """
    return [_label_from_scores(job, unit) for unit in units]


def write(job: LabelJob, streams: Sequence[Any]) -> list[UnitResult]:
    """Third stage: write each unit's label files; a file becomes visible whole or not at all.

    Raises:
        LeaseLost: Another run has taken the label table over.
        StorageError: Storage did not answer for the job's retry timeout. Files already written are whole and stay; the
            next run finds them current.
    """
    return [_write_unit(job, *_open_stream(stream)) for stream in streams]


def killed_units(units: Iterable[Unit]) -> list[bytes]:
    """In place of the result of a stage: streams of units that no process has survived."""
    nothing = _token_table(pa.chunked_array([pa.nulls(0)]), [], [])
    return [_stream(nothing, unit, UnitResult(unit.source.path, str(unit), unreadable=KILLED)) for unit in units]


def units_of(streams: Iterable[Any]) -> list[Unit]:
    """The units of streams, without a look at their rows."""
    metadata = (pa.ipc.open_stream(stream).schema.metadata[_METADATA_KEY] for stream in streams)
    return [Unit.from_dict(json.loads(content)["unit"]) for content in metadata]


def _read_unit(job: LabelJob, unit: Unit, tokenizer: TextTokenizer) -> bytes:
    result = UnitResult(unit.source.path, str(unit))
    started = time.perf_counter()
    table = _token_table(pa.chunked_array([pa.nulls(0)]), [], [])
    try:
        read = partial(_tokenised, job, unit, tokenizer, result)
        table, result.retries = with_retries(read, result.unit, job.event_sink, job.retry_timeout_s)
    except UnreadableSource as unreadable:
        result.unreadable = str(unreadable)
    except MtopError:
        raise
    except Exception as error:  # one odd file must not stop the others
        result.unreadable = f"reading it failed unexpectedly: {one_line(error, with_type=True)}"
    result.seconds["read"] = time.perf_counter() - started - result.seconds.get("tokenise", 0.0)
    return _stream(table, unit, result)


def _label_from_vectors(job: LabelJob, unit: Unit, predictor: ProbePredictor) -> bytes:
    result = UnitResult(unit.source.path, str(unit), computed_from="vectors")
    started = time.perf_counter()
    read = partial(read_vectors, job.labels, unit)
    table, result.retries = with_retries(read, result.unit, job.event_sink, job.retry_timeout_s)
    result.seconds["read"] = time.perf_counter() - started
    outputs = predictor.predict(table[VECTOR_COLUMN])
    result.seconds["probes"] = outputs.seconds
    return _stream(_labelled(table, predictor.tasks, outputs, result), unit, result)


def _label_from_scores(job: LabelJob, unit: Unit) -> bytes:
    result = UnitResult(unit.source.path, str(unit), computed_from="scores")
    started = time.perf_counter()
    read = partial(read_scores, job.labels, unit)
    table, result.retries = with_retries(read, result.unit, job.event_sink, job.retry_timeout_s)
    result.seconds["read"] = time.perf_counter() - started
    wanted = set(unit.tasks)
    tasks = [task for task in job.definition.tasks if task.name in wanted]
    outputs = stored_outputs(tasks, {name: table[name] for name in table.column_names}, len(table))
    labelled = _labelled(table, tasks, outputs, result)
    result.seconds["decide"] = time.perf_counter() - started - result.seconds["read"]
    return _stream(labelled, unit, result)


def _labelled(
    table: pa.Table,
    tasks: Sequence[Task],
    outputs: TaskOutputs,
    result: UnitResult,
    text_columns: Sequence[str] | None = None,
) -> pa.Table:
    """`id`, the columns of the tasks, and `error`; what rules have corrected is counted."""
    decided = decide_outputs(tasks, outputs)
    counts = {name: int(np.count_nonzero(of_task.corrected)) for name, of_task in decided.items()}
    result.corrected = {name: count for name, count in counts.items() if count}
    valid = pc.is_null(table["error"]).to_numpy()
    columns = dict(label_columns(tasks, outputs, valid, decided, text_columns))
    return pa.table({"id": table["id"], **columns, "error": table["error"]})


def _tokenised(job: LabelJob, unit: Unit, tokenizer: TextTokenizer, result: UnitResult) -> pa.Table:
    ids, tokens, errors, vectors = [], [], [], []
    inputs = job.definition.vector_inputs
    tokenise_s = 0.0
    words = any(task.is_token and task.name in unit.tasks for task in job.definition.tasks)
    id_column, max_chars = job.definition.id_column, tokenizer.max_chars
    for batch in read_unit(job.corpus, unit, id_column, max_chars=max_chars, in_columns=words, inputs=inputs):
        ids.append(batch.ids)
        vectors.append(batch.vectors)
        started = time.perf_counter()
        found, num_cut = tokenizer.encode_and_count(batch.texts, batch.seconds, words=words)
        tokenise_s += time.perf_counter() - started
        tokens.append(found)
        result.texts_cut += num_cut
        result.texts_in_windows += int(np.count_nonzero(found.lengths > tokenizer.max_tokens))
        errors += reasons_without(tokens[-1], batch.errors)
    result.seconds["tokenise"] = tokenise_s
    beside = {
        _vectors_key(spec): InputVectors.concat(of_input)
        for spec, of_input in zip(inputs, zip(*vectors, strict=True), strict=True)
    }
    return _token_table(pa.chunked_array(ids), tokens, errors, beside)


def _token_table(
    ids: pa.ChunkedArray,
    tokens: Sequence[Tokens],
    errors: Sequence[str | None],
    vectors: Mapping[str, InputVectors] | None = None,
) -> pa.Table:
    columns = Tokens.concat(tokens).to_arrow()
    for name, of in (vectors or {}).items():
        columns = columns.append_column(name, of.to_arrow())
    return columns.add_column(0, "id", ids).append_column("error", pa.array(errors, pa.string()))


def _vectors_key(spec: VectorInput) -> str:
    """The column of a stream with what stands beside texts."""
    return f"input {spec.column}"


def _vectors_of(table: pa.Table, spec: VectorInput) -> InputVectors:
    """What the rows of a stream have of an input; the stream of an unreadable source has neither."""
    return InputVectors.from_arrow(table[_vectors_key(spec)]) if len(table) else InputVectors.none(spec.size, 0)


def _write_unit(job: LabelJob, table: pa.Table, unit: Unit, result: UnitResult) -> UnitResult:
    if result.unreadable is not None:
        return result
    started = time.perf_counter()
    for target in unit.targets:
        write_one = partial(_write_target, job, table, unit, target)
        num_bytes, retries = with_retries(write_one, result.unit, job.event_sink, job.retry_timeout_s)
        result.num_bytes += num_bytes
        result.retries += retries
    result.seconds["write"] = time.perf_counter() - started
    _count(table, unit, result)
    return result


def _write_target(job: LabelJob, table: pa.Table, unit: Unit, target: Target) -> int:
    job.lease.check()
    columns = {name: table[name] for name in table.column_names}
    return write_label_file(
        job.labels,
        target.file,
        columns["id"],
        columns,
        columns["error"],
        unit.footer(target, job.definition, job.run),
    )


def _count(table: pa.Table, unit: Unit, result: UnitResult) -> None:
    errors = table["error"].drop_null()
    result.rows, result.errors = len(table), len(errors)
    result.labelled = result.rows - result.errors
    result.cells = unit.num_cells
    result.error_reasons = _value_counts(errors)
    if result.errors:
        rows = pc.indices_nonzero(pc.is_valid(table["error"]))[:MAX_ERROR_EXAMPLES].to_pylist()
        result.error_examples = [
            {"source": result.source, "row": unit.rows[0] + row, "error": table["error"][row].as_py()} for row in rows
        ]
    names = set(table.column_names)
    for task in unit.tasks:
        if f"{task}_label" in names:
            labels = given_labels(table[f"{task}_label"])
            result.label_counts[task] = label_counts(labels)
            if num_abstained := labels.null_count - result.errors:
                result.abstained[task] = num_abstained
            if pa.types.is_list(labels.type):
                result.list_counts[task] = len(labels) - labels.null_count


def _value_counts(values: pa.ChunkedArray) -> dict[str, int]:
    return {str(entry["values"]): entry["counts"] for entry in pc.value_counts(values).to_pylist()}


def _stream(table: pa.Table, unit: Unit, result: UnitResult) -> bytes:
    metadata = {_METADATA_KEY: json.dumps({"unit": unit.to_dict(), "result": asdict(result)}).encode()}
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema.with_metadata(metadata)) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def _open_stream(stream: Any) -> tuple[pa.Table, Unit, UnitResult]:
    table = pa.ipc.open_stream(stream).read_all()
    content = json.loads(table.schema.metadata[_METADATA_KEY])
    return table, Unit.from_dict(content["unit"]), UnitResult(**content["result"])
