"""`mtop label`: plan, label what is not current, report.

The order of a run: read what the bundle says of itself, plan, say what will be done; then, if there is something to
do, take the lease, record the run, stream the units through Ray or this process, ask the gate, and publish. Every run
that was more than a plan leaves a report, also one that found nothing to do and one that failed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ray.exceptions import RayTaskError
from rich.console import Console

from mtop_batch import storage
from mtop_batch.corpus.paths import parse_partitions
from mtop_batch.engine.labelling.gate import ask_gate
from mtop_batch.engine.labelling.options import LabelOptions, other_texts, wanted_labels
from mtop_batch.engine.labelling.units import label_units
from mtop_batch.engine.monitoring.notify import check_notify_url, notify, summary
from mtop_batch.errors import AccessRefused, ConfigError, JobError, LabelTableError, MtopError, one_line
from mtop_batch.labelling.plan.explain import estimate, explain_plan, plan_dict
from mtop_batch.labelling.plan.planner import plan_labels
from mtop_batch.labelling.plan.removals import check_removals
from mtop_batch.labelling.plan.work import Plan
from mtop_batch.labelling.report.run_report import RunReport, write_report
from mtop_batch.lines import for_people
from mtop_batch.model.bundle.files import check_bundle
from mtop_batch.storage.conditional import can_compare
from mtop_batch.table.definition import Definition
from mtop_batch.table.lake.sync import check_lake, sync_lake
from mtop_batch.table.lease.lease import Lease, hold_lease
from mtop_batch.table.publisher import publish
from mtop_batch.table.runs import check_same_tasks, list_runs, new_run_id, write_run
from mtop_batch.table.store import remove_unfinished, unfinished

__all__ = ["LabelOptions", "label_corpus"]

# Ray Data appends what it would have one configure to the messages of exceptions.
_RAYS_ADVICE = re.compile(r"\nFailed to \S.* after \d+/\d+ attempts .*", re.DOTALL)


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
    definition = wanted_labels(options)
    for warning in other_texts(definition):
        _log(f"warning: {warning}")
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


def _run(options: LabelOptions, report: RunReport, lease: Lease | None) -> dict[str, Any]:
    """Do what is planned; the report is written whatever happens, as long as storage answers."""
    write_run(options.labels, report.run, report.definition, report.plan.corpus, parse_partitions(options.partitions))
    failure = "stopped from outside"
    try:
        if lease:
            _remove_damaged(options, report, lease)
            label_units(options, report, lease)
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
