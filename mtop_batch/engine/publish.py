"""`mtop publish` and `mtop vacuum`: what is done to a label table without a corpus, and without computing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mtop_batch import storage
from mtop_batch.corpus.files import SourceFile
from mtop_batch.engine.labelling.gate import ask_gate, published_by
from mtop_batch.errors import DamagedLabelFile, NotInTable, at_the_start
from mtop_batch.labelling.report.run_report import write_report_files
from mtop_batch.lines import counted
from mtop_batch.model.bundle.files import read_bundle_info
from mtop_batch.table.columns import OutputKind
from mtop_batch.table.definition import ViewDefinition, with_all_scores, without_empty
from mtop_batch.table.gate.rules import DEFAULT_RULES, Rules
from mtop_batch.table.lake.sync import LakeCommit, check_lake, sync_lake
from mtop_batch.table.lake.target import LakeTarget
from mtop_batch.table.lease.lease import hold_lease
from mtop_batch.table.names import STORE, displaced, published_path
from mtop_batch.table.published import list_published, near_tables, read_published
from mtop_batch.table.publisher import Published, publish
from mtop_batch.table.runs import RunRecord, current_definitions, list_runs, new_run_id, read_run, record_run
from mtop_batch.table.store import StoreListing, list_store, read_footer
from mtop_batch.table.vacuum import KEEP_RUNS, find_garbage, remove_garbage
from mtop_batch.tasks import select_tasks


def publish_table(
    labels: str,
    model: str | None = None,
    tasks: Sequence[str] = (),
    *,
    lake: LakeTarget | None = None,
    rules: Rules = DEFAULT_RULES,
    force: bool = False,
) -> dict[str, Any]:
    """Make the published table what the store has for a bundle, also an older one; nothing is computed.

    Articles of which the store lacks a label of a task keep the one they have. The gate lets labels pass that readers
    have had before: going back is never held up.

    Args:
        labels: The label table.
        model: The bundle; the one of the newest run by default.
        tasks: Only these tasks; all by default.
        lake: A Delta or Iceberg table to publish to as well.
        rules: Which labels readers may see.
        force: Publish whatever the rules say.

    Returns:
        What was published, and what the gate says, JSON-ready; it is the run's report too. Where the gate is closed,
        nothing was published.

    Raises:
        BundleError, TaskError: There is no such bundle, or it lacks one of the tasks.
        ConfigError: The lake table cannot be published to.
        NotInTable: There is no label table.
        LabelTableError: Another run holds it, or the storage does not answer.
    """
    labels = storage.absolute(labels)
    with at_the_start():
        record = _newest_run(labels)
    if lake is not None:
        check_lake(lake, labels)
    wanted, kinds, task_labels, bundle = _wanted(labels, record, model)
    task_kinds = {task: kind.kind for task, kind in kinds.items()}
    names = select_tasks(tasks or list(wanted.fingerprints), list(wanted.fingerprints))
    wanted = replace(wanted, fingerprints={name: wanted.fingerprints[name] for name in names})
    opened_by = "--force" if force else ""
    if not force and (earlier := published_by(labels, wanted)):
        opened_by = f"run {earlier}, which has published these labels before"
    run = new_run_id()
    done = Published()
    committed: LakeCommit | None = None
    with hold_lease(labels, run) as lease:
        record_run(
            labels,
            replace(record, run=run, wanted=wanted, task_labels=task_labels, task_kinds=task_kinds, bundle=bundle),
        )
        sources = stored_sources(labels)
        gate = ask_gate(
            labels,
            wanted,
            kinds,
            sources,
            bundle,
            rules,
            require_all=False,
            opened_by=opened_by,
            corpus=record.corpus,
        )
        if gate.is_open:
            done = publish(labels, wanted, kinds, sources, run, require_all=False, check=lease.check)
            if lake is not None:
                committed = sync_lake(lake, labels, run)
        report = {
            "run": run,
            "status": "done" if gate.is_open else "gate closed",
            "labels": labels,
            "bundle": bundle,
            "tasks": names,
            "published": done.to_dict() if gate.is_open else None,
            "lake": None if committed is None else committed.to_dict(),
            "gate": gate.to_dict(),
            **done.to_dict(),
        }
        write_report_files(labels, report)
    return report


def vacuum_table(labels: str, *, plan_only: bool = False, force: bool = False, keep_runs: int = KEEP_RUNS) -> str:
    """Remove the label files that nothing needs; returns what was or would be done, in a line.

    Raises:
        ConfigError: It is most of the store, and not forced.
        NotInTable: There is no label table.
        LabelTableError: Another run holds the table, or the storage does not answer.
    """
    labels = storage.absolute(labels)
    with at_the_start():
        is_there = storage.exists(storage.join(labels, STORE))
    if not is_there:
        raise _no_table(labels)
    if plan_only:
        return str(find_garbage(labels, keep_runs=keep_runs))
    with hold_lease(labels, new_run_id()) as lease:
        garbage = find_garbage(labels, keep_runs=keep_runs)
        removed = remove_garbage(labels, garbage, force=force, check=lease.check)
    return f"{counted(removed, 'label file')} removed, {garbage.bytes_to_free / 1e6:,.1f} MB"


def stored_sources(labels: str) -> list[SourceFile]:
    """The source files to publish, without a look at the corpus: in the published content, else in the newest stored.

    Raises:
        LabelTableError: The storage does not answer or refuses.
    """
    listing = list_store(labels)
    infos = list_published(labels)
    found: list[SourceFile] = []
    paths = sorted({name.source_path for name in listing.names.values()})
    # What the store still has of a source file that made way for one which is published.
    made_way = set(displaced(list(map(published_path, paths)), infos))
    for path in paths:
        target = published_path(path)
        if target in made_way:
            continue
        footer = read_published(labels, target, infos[target]).footer if target in infos else None
        source = footer.source if footer is not None and footer.has_rows else _newest_content(labels, listing, path)
        if source is not None:
            found.append(source)
    return found


def _newest_content(labels: str, listing: StoreListing, path: str) -> SourceFile | None:
    newest: tuple[str, SourceFile] | None = None
    for file, name in listing.names.items():
        if name.source_path != path or name.rows[0]:
            continue
        try:
            footer = read_footer(labels, file, listing.sizes[file])
        except DamagedLabelFile:
            continue
        if newest is None or footer.run > newest[0]:
            newest = footer.run, footer.source
    return newest[1] if newest else None


def _newest_run(labels: str) -> RunRecord:
    runs = list_runs(labels)
    if not runs:
        raise _no_table(labels)
    return read_run(labels, runs[0])


def _no_table(labels: str) -> NotInTable:
    hint = near_tables(labels)
    return NotInTable(f"there is no label table in {labels}; {hint}check the path, or run `mtop label` first")


def _wanted(
    labels: str, record: RunRecord, model: str | None
) -> tuple[ViewDefinition, Mapping[str, OutputKind], Mapping[str, Sequence[str]], str]:
    """The definition to publish, what comes out of its tasks, their labels, and the bundle."""
    bundle = read_bundle_info(storage.absolute(model) if model else record.bundle)
    fingerprints = {task.name: bundle.fingerprints[task.name] for task in bundle.tasks}
    known = current_definitions(labels, list(fingerprints))
    text_columns = {
        task.name: known[task.name].text_columns[task.name] if task.name in known else task.text
        for task in bundle.tasks
    }
    kinds = {task.name: OutputKind.of(task) for task in bundle.tasks}
    decisions = without_empty(bundle.decisions)
    view = ViewDefinition(fingerprints, text_columns, record.wanted.id_column, with_all_scores(kinds), decisions)
    return view, kinds, {task.name: task.labels for task in bundle.tasks}, bundle.uri
