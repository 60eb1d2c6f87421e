"""`mtop publish` and `mtop vacuum`: what is done to a label table without a corpus, and without computing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mtop_batch import storage
from mtop_batch.corpus.files import SourceFile
from mtop_batch.errors import DamagedLabelFile, LabelTableError
from mtop_batch.model.bundle.files import read_bundle_info
from mtop_batch.table.definition import ViewDefinition
from mtop_batch.table.lease.lease import hold_lease
from mtop_batch.table.names import published_path
from mtop_batch.table.published import list_published, read_published
from mtop_batch.table.publisher import publish
from mtop_batch.table.runs import RunRecord, list_runs, new_run_id, read_run, record_run
from mtop_batch.table.store import StoreListing, list_store, read_footer
from mtop_batch.table.vacuum import KEEP_RUNS, find_garbage, remove_garbage
from mtop_batch.tasks import select_tasks


def publish_table(labels: str, model: str | None = None, tasks: Sequence[str] = ()) -> dict[str, Any]:
    """Make the published table what the store has for a bundle, also an older one; nothing is computed.

    Articles of which the store lacks a label of a task keep the one they have.

    Args:
        labels: The label table.
        model: The bundle; the one of the newest run by default.
        tasks: Only these tasks; all by default.

    Returns:
        What was published, JSON-ready.

    Raises:
        BundleError, TaskError: There is no such bundle, or it lacks one of the tasks.
        LabelTableError: There is no label table, another run holds it, or the storage does not answer.
    """
    labels = storage.absolute(labels)
    record = _newest_run(labels)
    wanted, kinds, task_labels, bundle = _wanted(record, model)
    names = select_tasks(tasks or list(wanted.fingerprints), list(wanted.fingerprints))
    wanted = replace(wanted, fingerprints={name: wanted.fingerprints[name] for name in names})
    run = new_run_id()
    with hold_lease(labels, run) as lease:
        record_run(labels, replace(record, run=run, wanted=wanted, task_labels=task_labels, bundle=bundle))
        sources = stored_sources(labels)
        done = publish(labels, wanted, kinds, sources, run, require_all=False, check=lease.check)
    return {"run": run, "bundle": bundle, "tasks": names, **done.to_dict()}


def vacuum_table(labels: str, *, plan_only: bool = False, force: bool = False, keep_runs: int = KEEP_RUNS) -> str:
    """Remove the label files that nothing needs; returns what was or would be done, in a line.

    Raises:
        ConfigError: It is most of the store, and not forced.
        LabelTableError: Another run holds the table, or the storage does not answer.
    """
    labels = storage.absolute(labels)
    if plan_only:
        return str(find_garbage(labels, keep_runs=keep_runs))
    with hold_lease(labels, new_run_id()) as lease:
        garbage = find_garbage(labels, keep_runs=keep_runs)
        removed = remove_garbage(labels, garbage, force=force, check=lease.check)
    return f"{removed:,} label files removed, {garbage.bytes_to_free / 1e6:,.1f} MB"


def stored_sources(labels: str) -> list[SourceFile]:
    """The source files to publish, without a look at the corpus: in the published content, else in the newest stored.

    Raises:
        LabelTableError: The storage does not answer or refuses.
    """
    listing = list_store(labels)
    infos = list_published(labels)
    found: list[SourceFile] = []
    for path in sorted({name.source_path for name in listing.names.values()}):
        target = published_path(path)
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
        raise LabelTableError(f"there is no label table in {labels}; check the path, or run `mtop label` first")
    return read_run(labels, runs[0])


def _wanted(
    record: RunRecord, model: str | None
) -> tuple[ViewDefinition, Mapping[str, str], Mapping[str, Sequence[str]], str]:
    """The definition to publish, the kinds and labels of its tasks, and the bundle."""
    bundle = read_bundle_info(model or record.bundle)
    fingerprints = {task.name: bundle.fingerprints[task.name] for task in bundle.tasks}
    view = ViewDefinition(fingerprints, record.wanted.text_columns, record.wanted.id_column)
    kinds = {task.name: task.kind for task in bundle.tasks}
    return view, kinds, {task.name: task.labels for task in bundle.tasks}, bundle.uri
