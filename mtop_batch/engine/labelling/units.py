"""The units of a labelling run, through the engine that they need: Ray, or this process alone.

Labels from stored scores or vectors need no model, and a million of them take less time than Ray and its workers take
to start. So a moderate number is computed in this process, unless a cluster is there already.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial

import ray

from mtop_batch.engine.labelling.options import LabelOptions
from mtop_batch.engine.monitoring.label_monitor import LabelMonitor
from mtop_batch.engine.monitoring.native_stderr import without_unwanted_lines
from mtop_batch.engine.monitoring.progress import Progress
from mtop_batch.engine.session import num_cores, ray_session
from mtop_batch.errors import JobError
from mtop_batch.labelling.plan.work import Plan, Unit
from mtop_batch.labelling.report.run_report import RunReport
from mtop_batch.labelling.run.probes import ProbePredictor
from mtop_batch.labelling.run.stages import (
    LabelJob,
    UnitResult,
    label_from_scores,
    label_from_vectors,
    pieces_of_work,
    rows_of_a_piece,
    write,
)
from mtop_batch.lines import counted
from mtop_batch.storage.retry import EventSink
from mtop_batch.table.lease.lease import Lease

# Most cells to compute in this process: what is decided in some ten seconds, on one core.
_MOST_CELLS_HERE = 10_000_000


def label_units(options: LabelOptions, report: RunReport, lease: Lease) -> None:
    """Label the units of a plan; the report adds up their results.

    Raises:
        JobError: More rows than `options.max_error_fraction` allows cannot be labelled; or Ray cannot start.
        Exception: What a stage raised, wrapped by Ray if it ran there. What was written stays.
    """
    if not report.plan.units:
        return
    engine = _this_process if needs_no_engine(report.plan) else _on_ray
    with engine(options, report, lease) as (results, monitor):
        for result in results:
            lease.check()
            monitor.unit_done(result)
            if options.max_error_fraction is not None:
                _check_errors(report, options.max_error_fraction)


def needs_no_engine(plan: Plan) -> bool:
    """Whether to compute a plan's labels in this process: few enough, of what is stored, and no cluster is there."""
    has_ray = ray.is_initialized() or os.environ.get("RAY_ADDRESS", "") not in ("", "local")
    return not has_ray and not plan.units_from("texts") and plan.cells_planned <= _MOST_CELLS_HERE


@contextmanager
def _this_process(
    options: LabelOptions, report: RunReport, lease: Lease
) -> Iterator[tuple[Iterable[UnitResult], LabelMonitor]]:
    with Progress() as progress:
        pieces = _pieces(options, report.plan, num_cores())
        report.num_actors = 0
        what = (
            f"in this process, on {counted(num_cores(), 'CPU')}; everything is computed from stored vectors or scores"
        )
        progress.note(f"run {report.run} begins {what}")
        progress.phase("label", total=report.plan.num_rows_planned, unit="articles")
        monitor = LabelMonitor(progress, report, 0)
        with closing(run_in_threads(_job(options, report, lease, monitor.record), options.model, pieces)) as results:
            yield results, monitor


@contextmanager
def _on_ray(
    options: LabelOptions, report: RunReport, lease: Lease
) -> Iterator[tuple[Iterable[UnitResult], LabelMonitor]]:
    from mtop_batch.engine.labelling.pipeline import most_actors, plan_actors, run_pieces
    from mtop_batch.engine.monitoring.events import EventQueue
    from mtop_batch.engine.monitoring.metrics import RunMetrics

    plan = report.plan
    with without_unwanted_lines(), ray_session(spare_cpus=1) as resources, Progress() as progress:
        pieces = _pieces(options, plan, most_actors(resources, options.num_actors))
        num_from_texts = sum(piece[0].source_of_labels == "texts" for piece in pieces)
        pool = plan_actors(resources, options.num_actors, num_from_texts)
        report.num_actors = pool.size
        progress.note(f"run {report.run} begins on {resources}; {pool}")
        progress.phase("label", total=plan.num_rows_planned, unit="articles")
        metrics = RunMetrics(options.labels, plan.num_rows_planned, pool.size)
        monitor, queue = LabelMonitor(progress, report, pool.size, metrics=metrics), EventQueue()
        job = _job(options, report, lease, queue.emit)
        with monitor.following(queue), closing(run_pieces(job, options.model, pieces, pool)) as results:
            yield results, monitor


def _pieces(options: LabelOptions, plan: Plan, num_actors: int) -> list[list[Unit]]:
    return pieces_of_work(plan.units, rows_of_a_piece(plan.num_rows_planned, options.unit_rows, num_actors))


def _job(options: LabelOptions, report: RunReport, lease: Lease, event_sink: EventSink) -> LabelJob:
    return LabelJob(
        corpus=report.plan.corpus,
        labels=options.labels,
        run=report.run,
        definition=report.definition,
        lease=lease.token,
        retry_timeout_s=options.retry_timeout_s,
        precision=options.precision,
        event_sink=event_sink,
    )


def run_in_threads(job: LabelJob, bundle_uri: str, pieces: Sequence[Sequence[Unit]]) -> Generator[UnitResult]:
    """Run pieces of work of stored scores or vectors; yields each unit's result when its label files are written.

    Closing the iterator stops the work after the pieces that are being worked on. What was written stays.
    """
    probes = [task for task in job.definition.tasks if task.reads_vector]
    from_vectors = any(piece[0].source_of_labels == "vectors" for piece in pieces)
    work = partial(_label_and_write, job, ProbePredictor.load(bundle_uri, probes) if from_vectors else None)
    # Reading, computing and writing Parquet leave Python's lock to others most of the time.
    pool = ThreadPoolExecutor(num_cores(), thread_name_prefix="label")
    begun: deque[Future[list[UnitResult]]] = deque()
    try:
        for piece in pieces:
            begun.append(pool.submit(work, piece))
            if len(begun) > num_cores():
                yield from begun.popleft().result()
        while begun:
            yield from begun.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _label_and_write(job: LabelJob, predictor: ProbePredictor | None, piece: Sequence[Unit]) -> list[UnitResult]:
    if piece[0].source_of_labels == "vectors" and predictor is not None:
        return write(job, label_from_vectors(job, piece, predictor))
    return write(job, label_from_scores(job, piece))


def _check_errors(report: RunReport, max_error_fraction: float) -> None:
    """Stop as soon as no good row to come can bring the share of errors down to what is allowed."""
    num_rows = report.plan.num_rows_planned
    if report.errors > max_error_fraction * num_rows:
        reasons = ", ".join(f"{reason} ({count:,})" for reason, count in report.error_reasons.most_common(3))
        raise JobError(
            f"{report.errors:,} of the run's {num_rows:,} rows cannot be labelled: {reasons}; that is more than "
            f"--max-error-fraction {max_error_fraction:g} allows. Fix the corpus or allow more, and run again"
        )
