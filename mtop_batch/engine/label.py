"""`mtop label`: plan, label what is not current, report.

The order of a run: read what the bundle says of itself, plan, say what will be done; then, if there is something to
do, take the lease, record the run, start Ray, stream the units through it, ask the gate, and publish. Every run that
was more than a plan leaves a report, also one that found nothing to do and one that failed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

from ray.exceptions import RayTaskError
from rich.console import Console

from mtop_batch import storage
from mtop_batch.corpus.paths import parse_partitions
from mtop_batch.engine.gate import ask_gate
from mtop_batch.engine.monitoring.events import EventQueue
from mtop_batch.engine.monitoring.label_monitor import LabelMonitor
from mtop_batch.engine.monitoring.metrics import RunMetrics
from mtop_batch.engine.monitoring.native_stderr import without_unwanted_lines
from mtop_batch.engine.monitoring.notify import check_notify_url, notify, summary
from mtop_batch.engine.monitoring.progress import Progress
from mtop_batch.engine.pipeline import most_actors, plan_actors, run_pieces
from mtop_batch.engine.session import ray_session
from mtop_batch.errors import AccessRefused, ConfigError, JobError, LabelTableError, MtopError, one_line
from mtop_batch.labelling.plan.explain import estimate, explain_plan, plan_dict
from mtop_batch.labelling.plan.planner import plan_labels
from mtop_batch.labelling.plan.removals import check_removals
from mtop_batch.labelling.plan.work import Plan
from mtop_batch.labelling.report.run_report import RunReport, write_report
from mtop_batch.labelling.run.stages import LabelJob, pieces_of_work, rows_of_a_piece
from mtop_batch.lines import for_people
from mtop_batch.model.bundle.files import check_bundle, read_bundle_info
from mtop_batch.precision import PrecisionChoice
from mtop_batch.storage.conditional import can_compare
from mtop_batch.storage.retry import DEFAULT_RETRY_TIMEOUT_S
from mtop_batch.table.definition import VECTOR, Definition
from mtop_batch.table.gate.rules import DEFAULT_RULES, Rules
from mtop_batch.table.lake.sync import check_lake, sync_lake
from mtop_batch.table.lake.target import LakeTarget
from mtop_batch.table.lease.lease import Lease, hold_lease
from mtop_batch.table.publisher import publish
from mtop_batch.table.row_ranges import SLICE_ROWS
from mtop_batch.table.runs import check_same_tasks, list_runs, new_run_id, write_run
from mtop_batch.table.store import remove_unfinished, unfinished
from mtop_batch.tasks import select_tasks

_MAX_NAMED = 5
# Ray Data appends what it would have one configure to the messages of exceptions.
_RAYS_ADVICE = re.compile(r"\nFailed to \S.* after \d+/\d+ attempts .*", re.DOTALL)


@dataclass(frozen=True)
class LabelOptions:
    """The options of `mtop label`; empty tuples stand for the default.

    Args:
        model: URI of the bundle.
        corpus: URI of the corpus.
        labels: URI of the label table.
        tasks: Only these tasks.
        partitions: Only source files of these hive partitions, `key=value`.
        allow_empty: No source file need be in the partition.
        id_column: Column that identifies an article.
        text_columns: One text column, or two for a pair, for all tasks; by default those that each was trained on, as
            far as a file has them.
        unit_rows: Most rows that go through the model together; what is stored does not depend on it.
        num_actors: Labelling actors; by default one per GPU, else one per spare CPU.
        max_error_fraction: The run fails as soon as it is certain that more of its rows than this have errors; by
            default the gate alone looks at them, in the end.
        prune: Remove published files whose source file is gone from the corpus.
        force: Also if that is most of the table.
        publish: Publish what is computed, if the gate lets it through; else it stays in the store.
        lake: A Delta or Iceberg table to publish to as well.
        gate: Which labels readers may see.
        retry_timeout_s: The run fails when storage has not answered for so long.
        vectors: Store document vectors too.
        notify: URL that gets a summary when the run has ended, whatever the end.
        price_per_hour: Of a device (a GPU, or a CPU core where there is none), to tell costs.
        precision: Of the model: "auto" is bf16 where the hardware computes in it, and fp32 elsewhere.
    """

    model: str
    corpus: str
    labels: str
    tasks: tuple[str, ...] = ()
    partitions: tuple[str, ...] = ()
    allow_empty: bool = False
    id_column: str = "id"
    text_columns: tuple[str, ...] = ()
    unit_rows: int = SLICE_ROWS
    num_actors: int | None = None
    max_error_fraction: float | None = None
    prune: bool = False
    force: bool = False
    publish: bool = True
    lake: LakeTarget | None = None
    gate: Rules = DEFAULT_RULES
    retry_timeout_s: float = DEFAULT_RETRY_TIMEOUT_S
    vectors: bool = False
    precision: PrecisionChoice = "auto"
    notify: str | None = None
    price_per_hour: float | None = None


def label_corpus(options: LabelOptions, *, plan_only: bool = False) -> dict[str, Any]:
    """Make every wanted cell of a corpus current, or only say what that takes.

    Args:
        options: What to label with what.
        plan_only: Write nothing.

    Returns:
        The plan or the run report, JSON-ready; both have `unreadable_files`.

    Raises:
        ConfigError, TaskError, DataError, BundleError: Before any work starts.
        LabelTableError, JobError: In the middle; what was written stays, and the same call does the rest.
    """
    if options.notify and not plan_only:
        check_notify_url(options.notify)
    begun: list[RunReport] = []
    failure: str | None = "stopped from outside"
    try:
        result = _label_corpus(options, plan_only, begun)
        failure = None
        return result
    except Exception as error:
        failure = one_line(error, with_type=True)
        raise
    finally:
        if options.notify and not plan_only:
            _notify(options, options.notify, begun, failure)


def _label_corpus(options: LabelOptions, plan_only: bool, begun: list[RunReport]) -> dict[str, Any]:
    """As `label_corpus`; the report of a run goes into `begun` as soon as there is one."""
    options = replace(
        options,
        model=storage.absolute(options.model),
        corpus=storage.absolute(options.corpus),
        labels=storage.absolute(options.labels),
    )
    definition = _definition(options)
    _warn_of_other_texts(definition)
    try:
        storage.check_directory(options.labels, "--labels")
        check_same_tasks(options.labels, definition)
        if options.lake is not None and options.publish and not plan_only:
            check_lake(options.lake, options.labels)
        runs_before = list_runs(options.labels)
        plan = _plan(options, definition)
    except AccessRefused as error:  # at the start it is a wrong option, later an accident
        raise ConfigError(str(error)) from error
    _say(explain_plan(plan, estimate(plan), options.price_per_hour))
    if plan_only:
        return plan_dict(plan, options.price_per_hour)
    if not options.force:
        check_removals(plan)
    if len(plan.units) > len(plan.units_from("scores")):
        check_bundle(options.model)  # here, and not first in every actor
    run = new_run_id()
    if not plan.has_work:
        return _run(options, _begin(options, run, definition, plan, begun), lease=None)
    if not can_compare(storage.join(options.labels, "_probe.json"), unfinished=unfinished(options.labels)):
        _log(f"{options.labels}: this storage has no conditional writes; see that one run at a time writes the table")
    with hold_lease(options.labels, run, note=_log) as lease:
        if list_runs(options.labels) != runs_before:
            _say("another run wrote labels in the meantime; planning again")
            plan = _plan(options, definition)
            if not options.force:
                check_removals(plan)
        return _run(options, _begin(options, run, definition, plan, begun), lease)


def _begin(options: LabelOptions, run: str, definition: Definition, plan: Plan, begun: list[RunReport]) -> RunReport:
    report = RunReport(run, definition, plan, price_per_hour=options.price_per_hour)
    begun.append(report)
    return report


def _notify(options: LabelOptions, url: str, begun: Sequence[RunReport], failure: str | None) -> None:
    """Post how the command ended; one that failed before its run began has nothing to say but why."""
    if begun:
        content = summary(begun[0].to_dict(), begun[0].line())
    else:
        report = {"status": "failed", "failure": failure, "labels": options.labels, "bundle": options.model}
        content = summary(report, f"labelling {options.labels} failed: {failure}")
    if problem := notify(url, content):
        _log(f"the summary could not be posted: {problem}")


def _plan(options: LabelOptions, definition: Definition) -> Plan:
    return plan_labels(
        options.corpus,
        options.labels,
        definition,
        partitions=options.partitions,
        allow_empty=options.allow_empty,
        prune=options.prune,
    )


def _definition(options: LabelOptions) -> Definition:
    bundle = read_bundle_info(options.model)
    names = select_tasks(options.tasks or list(bundle.fingerprints), list(bundle.fingerprints))
    fingerprints = {name: bundle.fingerprints[name] for name in names}
    if options.vectors and not bundle.vector_fingerprint:
        raise ConfigError(
            f"--vectors: the bundle {bundle.uri} has a {bundle.kind!r} model, which reads a text once for each task, "
            "so there is no document vector of the text itself; leave the option out"
        )
    if options.vectors:
        fingerprints[VECTOR] = bundle.vector_fingerprint
    tasks = tuple(task for task in bundle.tasks if task.name in names)
    # Vectors are those of the bundle's first task's texts, whichever tasks are wanted and whatever is added later.
    text_columns = {VECTOR: bundle.tasks[0].text}
    if options.text_columns:
        text_columns = dict.fromkeys([*names, VECTOR], options.text_columns)
    return Definition(
        bundle_name=bundle.name,
        bundle_uri=bundle.uri,
        tasks=tasks,
        fingerprints=fingerprints,
        text_columns=text_columns,
        vector=bundle.vector_fingerprint,
        pass_per_task=bundle.pass_per_task,
        text_limits=bundle.text_limits,
        vector_inputs=bundle.inputs,
        text_columns_required=bool(options.text_columns),
        id_column=options.id_column,
    )


def _warn_of_other_texts(definition: Definition) -> None:
    """Say so where tasks are asked about pairs and learned from single texts, or the other way round."""
    for columns in definition.inputs:
        given = ("single texts", "pairs of texts")[len(columns) - 1]
        others = [task for task in definition.tasks if task.name in definition.inputs[columns]]
        others = [task for task in others if len(task.text) != len(columns)]
        if others:
            learned = ("single texts", "pairs of texts")[len(others[0].text) - 1]
            names = ", ".join(task.name for task in others[:_MAX_NAMED]) + (" ..." if len(others) > _MAX_NAMED else "")
            _log(
                f"warning: --text-columns {','.join(columns)} gives {given} to tasks that were trained on {learned} "
                f"({names}): expect worse labels; without --text-columns they read what they were trained on"
            )


def _run(options: LabelOptions, report: RunReport, lease: Lease | None) -> dict[str, Any]:
    """Do what is planned; the report is written whatever happens, as long as storage answers."""
    write_run(options.labels, report.run, report.definition, report.plan.corpus, parse_partitions(options.partitions))
    failure = "stopped from outside"
    try:
        if lease:
            _remove_damaged(options, report, lease)
            _label_units(options, report, lease)
            _publish(options, report, lease)
        _publish_to_lake(options, report)
        failure = ""
    except Exception as error:
        failure = one_line(_cause(error), with_type=True)
        raise _explained(error, failure) from error
    finally:
        report.finish(failure or None)
        not_reported = _finish(report)
    if not_reported is not None:
        raise not_reported
    return report.to_dict()


def _finish(report: RunReport) -> MtopError | None:
    """Write the report and say the last lines; the error if it cannot be written, with which a good run ends."""
    problem: MtopError | None = None
    try:
        _say(f"report: {write_report(report)}")
    except MtopError as error:
        what = f"the report of run {report.run} could not be written: {error}"
        if report.failure:
            _log(what)
        else:
            problem = LabelTableError(f"{what}; what was labelled stays, and the same command writes another report")
    if report.performance is not None:
        _say(report.performance.line())
        _say(f"bottleneck: {report.performance.bottleneck()}")
    _say(report.line())
    return problem


def _remove_damaged(options: LabelOptions, report: RunReport, lease: Lease) -> None:
    """Delete label files that were found damaged, which nothing else overwrites, and what killed writers left."""
    remove_unfinished(options.labels)
    for file in report.plan.damaged:
        lease.check()
        storage.delete(file.uri(options.labels))


def _publish(options: LabelOptions, report: RunReport, lease: Lease) -> None:
    """Make the published files of the plan's sources what the store has now, if the gate lets it through."""
    plan, definition = report.plan, report.definition
    if not options.publish or not (plan.to_publish or plan.removals):
        return
    report.gate = ask_gate(
        options.labels,
        definition.view,
        definition.kinds,
        plan.to_publish,
        definition.bundle_uri,
        options.gate,
        corpus=options.corpus,
    )
    if not report.gate.is_open:
        _say(f"the gate is closed:\n{report.gate}")
        return
    report.published = publish(
        options.labels,
        definition.view,
        definition.kinds,
        plan.to_publish,
        report.run,
        orphans=plan.removals,
        check=lease.check,
    )


def _publish_to_lake(options: LabelOptions, report: RunReport) -> None:
    """Commit what readers see to the lake table, also where a run before this one did not come so far."""
    is_closed = report.gate is not None and not report.gate.is_open
    if options.lake is not None and options.publish and not is_closed:
        report.lake = sync_lake(options.lake, options.labels, report.run)


def _label_units(options: LabelOptions, report: RunReport, lease: Lease) -> None:
    plan = report.plan
    if not plan.units:
        return
    with without_unwanted_lines(), ray_session(spare_cpus=1) as resources, Progress() as progress:
        num_actors = most_actors(resources, options.num_actors)
        max_rows = rows_of_a_piece(plan.num_rows_planned, options.unit_rows, num_actors)
        pieces = pieces_of_work(plan.units, max_rows)
        num_from_texts = sum(piece[0].source_of_labels == "texts" for piece in pieces)
        pool = plan_actors(resources, options.num_actors, num_from_texts)
        report.num_actors = pool.size
        progress.note(f"run {report.run} begins on {resources}; {pool}")
        progress.phase("label", total=plan.num_rows_planned, unit="articles")
        metrics = RunMetrics(options.labels, plan.num_rows_planned, pool.size)
        monitor, queue = LabelMonitor(progress, report, pool.size, metrics=metrics), EventQueue()
        job = LabelJob(
            corpus=plan.corpus,
            labels=options.labels,
            run=report.run,
            definition=report.definition,
            lease=lease.token,
            retry_timeout_s=options.retry_timeout_s,
            precision=options.precision,
            event_sink=queue.emit,
        )
        with monitor.following(queue), closing(run_pieces(job, options.model, pieces, pool)) as results:
            for result in results:
                lease.check()
                monitor.unit_done(result)
                if options.max_error_fraction is not None:
                    _check_errors(report, options.max_error_fraction)


def _check_errors(report: RunReport, max_error_fraction: float) -> None:
    """Stop as soon as no good row to come can bring the share of errors down to what is allowed."""
    num_rows = report.plan.num_rows_planned
    if report.errors > max_error_fraction * num_rows:
        reasons = ", ".join(f"{reason} ({count:,})" for reason, count in report.error_reasons.most_common(3))
        raise JobError(
            f"{report.errors:,} of the run's {num_rows:,} rows cannot be labelled: {reasons}; that is more than "
            f"--max-error-fraction {max_error_fraction:g} allows. Fix the corpus or allow more, and run again"
        )


def _cause(error: BaseException) -> BaseException:
    """What a stage raised, out of what Ray wrapped around it."""
    while isinstance(error, RayTaskError):
        error = error.cause
    return error


def _explained(error: Exception, failure: str) -> MtopError:
    cause = _cause(error)
    if isinstance(cause, MtopError):
        cause.args = (_RAYS_ADVICE.sub("", str(cause)),)
        return cause
    return JobError(f"the job failed: {failure}; what was written stays, and the same command does the rest")


def _log(text: str) -> None:
    Console(stderr=True, highlight=False).print(for_people(text), markup=False, soft_wrap=True)


def _say(text: str) -> None:
    console = Console(highlight=False)
    for line in text.splitlines():
        console.print(for_people(line), markup=False, soft_wrap=True)
