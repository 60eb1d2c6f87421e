"""The labelling pipeline on Ray Data: pieces of work stream through reading tasks, labelling actors, writing tasks.

One row of the data set is one piece of work, so nothing depends on how Ray splits, bundles or reorders blocks, and a
piece is what is done again when a process dies. Label files have deterministic names: doing a piece twice changes
nothing.
"""

from __future__ import annotations

import json
import logging
import os
from collections import defaultdict
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset, TaskPoolStrategy

from mtop_batch.data.tokens import TextTokenizer
from mtop_batch.engine.labelling.attempts import Attempts
from mtop_batch.engine.session import Resources
from mtop_batch.labelling.plan.work import SourceOfLabels, Unit, decode_units, encode_units
from mtop_batch.labelling.run.probes import ProbePredictor
from mtop_batch.labelling.run.stages import (
    KILLED,
    LabelJob,
    UnitResult,
    killed_units,
    label,
    label_from_scores,
    label_from_vectors,
    read_and_tokenise,
    units_of,
    write,
)
from mtop_batch.lines import counted
from mtop_batch.model.bundle.files import load_bundle_tokenizer, read_bundle_info
from mtop_batch.storage.retry import ACTOR_STARTED, TRIED_ALONE, with_retries
from mtop_batch.table.definition import VECTOR

if TYPE_CHECKING:
    from mtop_batch.labelling.run.predictor import Predictor

# Readers and writers wait for storage half of the time.
_STORAGE_STAGE_CPUS = 0.5
_ONE_PIECE: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow", "zero_copy_batch": True}


@dataclass(frozen=True)
class ActorPool:
    """How many labelling actors there are, what each of them holds, and what runs beside them.

    Args:
        size: Labelling actors.
        num_gpus: Of each.
        num_cpus: Of each.
        num_storage_tasks: Tasks of each of the two storage stages that run at once; None for as many as fit.
    """

    size: int
    num_gpus: int
    num_cpus: int
    num_storage_tasks: int | None = None

    @property
    def pieces_per_actor(self) -> int:
        """Pieces that an actor has at a time.

        A GPU is done with a piece in about a second, so the next one is ready. On a CPU it takes minutes, and
        one that waits for a busy actor is one that an idle actor cannot have.
        """
        return 2 if self.num_gpus else 1

    def __str__(self) -> str:
        if not self.size:
            return "no labelling actors: everything is computed from stored vectors or scores"
        each = "each " if self.size > 1 else ""
        return f"{counted(self.size, 'labelling actor')}, {each}with {'a GPU' if self.num_gpus else 'a CPU'}"


def most_actors(resources: Resources, num_actors: int | None) -> int:
    """The number asked for, or else one per GPU, or one per CPU but for one per node, which reads and writes."""
    return num_actors or resources.num_gpus or max(1, resources.num_cpus - resources.num_nodes)


def plan_actors(resources: Resources, num_actors: int | None, num_pieces: int) -> ActorPool:
    """Labelling actors on GPUs where there are GPUs, else on CPUs; `most_actors` says how many.

    Args:
        resources: Of the cluster.
        num_actors: Overrides the number.
        num_pieces: Pieces of work that read texts; there are never more actors.
    """
    size = min(most_actors(resources, num_actors), num_pieces)
    if resources.num_gpus:
        return ActorPool(size, num_gpus=1, num_cpus=0)
    num_storage_tasks = min(2 * max(1, resources.num_cpus - size), num_pieces)
    return ActorPool(size, num_gpus=0, num_cpus=1, num_storage_tasks=num_storage_tasks)


def _storage_stage(pool: ActorPool) -> dict[str, Any]:
    """What the tasks of a storage stage ask for.

    Beside actors that hold CPUs they ask for none: when a node is lost, its actors start again on the CPUs that are
    left, and tasks that wait for one of these would wait for ever.
    """
    if pool.num_storage_tasks is None:
        return {"num_cpus": _STORAGE_STAGE_CPUS}
    return {"num_cpus": 0, "compute": TaskPoolStrategy(size=pool.num_storage_tasks)}


def run_pieces(
    job: LabelJob, bundle_uri: str, pieces: Sequence[Sequence[Unit]], pool: ActorPool
) -> Generator[UnitResult]:
    """Run pieces of work on the connected Ray; yields each unit's result when its label files are written.

    Closing the iterator stops the work. What was written stays. Pieces whose scores or vectors are stored come first:
    they need no labelling actors.

    Raises:
        Exception: What a stage raised, wrapped by Ray, when it failed for good.
    """
    _configure_ray_data()
    killed: list[Unit] = []
    for unit, result in _run_all(job, bundle_uri, pieces, pool):
        if result.unreadable == KILLED:
            killed.append(unit)
        else:
            yield result
    if killed:
        job.event_sink({"event": TRIED_ALONE, "units": list(map(str, killed))})
        one_at_a_time = replace(pool, size=min(pool.size, 1), num_storage_tasks=1)
        for _, result in _run_all(job, bundle_uri, [[unit] for unit in killed], one_at_a_time):
            yield result


def _run_all(
    job: LabelJob, bundle_uri: str, pieces: Sequence[Sequence[Unit]], pool: ActorPool
) -> Generator[tuple[Unit, UnitResult]]:
    by_source: dict[SourceOfLabels, list[Sequence[Unit]]] = defaultdict(list)
    for piece in pieces:
        by_source[piece[0].source_of_labels].append(piece)
    if from_scores := by_source["scores"]:
        yield from _results(from_scores, _from_scores(_work(from_scores), job))
    if from_vectors := by_source["vectors"]:
        yield from _results(from_vectors, _from_vectors(_work(from_vectors), job, bundle_uri))
    if from_texts := by_source["texts"]:
        yield from _results(from_texts, _from_texts(_work(from_texts), job, bundle_uri, pool))


def _work(pieces: Sequence[Sequence[Unit]]) -> Dataset:
    rows = [{"piece": number, "work": encode_units(piece)} for number, piece in enumerate(pieces)]
    return ray.data.from_items(rows, override_num_blocks=len(rows))


def _from_texts(work: Dataset, job: LabelJob, bundle_uri: str, pool: ActorPool) -> Dataset:
    storage_stage, attempts = _storage_stage(pool), Attempts()
    return (
        work.map_batches(
            partial(_read_piece, job=job, bundle_uri=bundle_uri, attempts=attempts), **storage_stage, **_ONE_PIECE
        )
        .map_batches(
            _Labeller,
            fn_constructor_kwargs={
                "job": job,
                "bundle_uri": bundle_uri,
                "threads": pool.num_cpus or None,
                "attempts": attempts,
            },
            compute=ActorPoolStrategy(size=pool.size, max_tasks_in_flight_per_actor=pool.pieces_per_actor),
            num_cpus=pool.num_cpus,
            num_gpus=pool.num_gpus,
            **_ONE_PIECE,
        )
        .map_batches(partial(_write_piece, job=job, attempts=attempts), **storage_stage, **_ONE_PIECE)
    )


def _from_vectors(work: Dataset, job: LabelJob, bundle_uri: str) -> Dataset:
    probes = [task for task in job.definition.tasks if task.reads_vector]
    # A few kilobytes each: all go along, a piece takes those that it wants.
    predictor = ProbePredictor.load(bundle_uri, probes)
    label_and_write = partial(_label_and_write, job=job, predictor=predictor, attempts=Attempts())
    return work.map_batches(label_and_write, num_cpus=1, **_ONE_PIECE)


def _from_scores(work: Dataset, job: LabelJob) -> Dataset:
    return work.map_batches(partial(_decide_and_write, job=job, attempts=Attempts()), num_cpus=1, **_ONE_PIECE)


def _results(pieces: Sequence[Sequence[Unit]], written: Dataset) -> Generator[tuple[Unit, UnitResult]]:
    for row in written.iter_rows():
        results = [UnitResult(**values) for values in json.loads(row["results"])]
        yield from zip(pieces[row["piece"]], results, strict=True)


def _configure_ray_data() -> None:
    context = DataContext.get_current()
    context.enable_progress_bars = False  # ours counts articles
    context.target_max_block_size = None  # a piece of work is never split
    context.actor_init_retry_on_errors = True
    context.raise_original_map_exception = True  # what a stage raised, not that one did
    # Ray Data prints stack traces of what a stage raises; the command says it in one line, the file log has it all.
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.CRITICAL)


def _read_piece(block: pa.Table, job: LabelJob, bundle_uri: str, attempts: Attempts) -> pa.Table:
    units = _units(block)
    with attempts.attempt(f"read {_number(block)}") as may_begin:
        if not may_begin:
            return _block(block, units[0].tasks, killed_units(units))
        load = partial(_text_tokenizer, bundle_uri)
        tokenizer, _ = with_retries(load, f"the tokenizer for {units[0]}", job.event_sink, job.retry_timeout_s)
        return _block(block, units[0].tasks, read_and_tokenise(job, units, tokenizer))


def _label_and_write(block: pa.Table, job: LabelJob, predictor: ProbePredictor, attempts: Attempts) -> pa.Table:
    units = _units(block)
    with attempts.attempt(f"label from vectors {_number(block)}") as may_begin:
        streams = label_from_vectors(job, units, predictor) if may_begin else killed_units(units)
        return _results_block(block, write(job, streams))


def _decide_and_write(block: pa.Table, job: LabelJob, attempts: Attempts) -> pa.Table:
    units = _units(block)
    with attempts.attempt(f"label from scores {_number(block)}") as may_begin:
        return _results_block(block, write(job, label_from_scores(job, units) if may_begin else killed_units(units)))


class _Labeller:
    """An actor of the pool: the bundle on one GPU, or on some CPU threads.

    It alone imports torch: the processes that read and write, and the driver, start in a fraction of the time without.
    """

    def __init__(self, job: LabelJob, bundle_uri: str, threads: int | None, attempts: Attempts) -> None:
        import torch

        from mtop_batch.model.bundle.bundle import load_bundle

        if threads:
            torch.set_num_threads(threads)
        load = partial(load_bundle, bundle_uri)
        self._bundle, _ = with_retries(load, f"the bundle for actor {os.getpid()}", job.event_sink, job.retry_timeout_s)
        self._precision = job.precision
        self._attempts = attempts
        self._predictors: dict[tuple[str, ...], Predictor] = {}
        job.event_sink({"event": ACTOR_STARTED})

    def __call__(self, block: pa.Table) -> pa.Table:
        from mtop_batch.labelling.run.predictor import Predictor

        tasks = tuple(block["tasks"][0].as_py())
        if tasks not in self._predictors:
            names = [task for task in tasks if task != VECTOR]
            self._predictors[tasks] = Predictor(
                self._bundle.model,
                self._bundle.tokenizer,
                precision=self._precision,
                tasks=names,
                vectors=VECTOR in tasks,
            )
        streams = _streams(block)
        with self._attempts.attempt(f"label {_number(block)}") as may_begin:
            labelled = label(streams, self._predictors[tasks]) if may_begin else killed_units(units_of(streams))
            return _block(block, tasks, labelled)


def _write_piece(block: pa.Table, job: LabelJob, attempts: Attempts) -> pa.Table:
    streams = _streams(block)
    with attempts.attempt(f"write {_number(block)}") as may_begin:
        return _results_block(block, write(job, streams if may_begin else killed_units(units_of(streams))))


def _number(block: pa.Table) -> int:
    """Which piece it is."""
    return int(block["piece"][0].as_py())


def _units(block: pa.Table) -> list[Unit]:
    return decode_units(block["work"][0].as_py())


def _results_block(block: pa.Table, results: Sequence[UnitResult]) -> pa.Table:
    return pa.table({"piece": block["piece"], "results": [json.dumps([asdict(result) for result in results])]})


def _block(block: pa.Table, tasks: Sequence[str], streams: Sequence[bytes]) -> pa.Table:
    """A block of one row: the number of the piece, the tasks that it wants, and one stream per unit."""
    return pa.table(
        {
            "piece": block["piece"],
            "tasks": pa.array([list(tasks)], pa.list_(pa.string())),
            "streams": pa.array([list(streams)], pa.list_(pa.large_binary())),
        }
    )


def _streams(block: pa.Table) -> list[pa.Buffer]:
    """The streams of a block, not copied."""
    return [value.as_buffer() for value in block["streams"][0].values]


@lru_cache(maxsize=2)
def _text_tokenizer(bundle_uri: str) -> TextTokenizer:
    """The bundle's tokenizer, loaded once per process."""
    return TextTokenizer(load_bundle_tokenizer(bundle_uri), **read_bundle_info(bundle_uri).text_limits)
