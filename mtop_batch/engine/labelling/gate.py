"""The gate at the edge of a job: collects what is to be judged before readers see labels."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice

from mtop_batch import storage
from mtop_batch.config.load import load_gate
from mtop_batch.corpus.files import SourceFile, UnreadableSource, read_layout
from mtop_batch.corpus.listing import list_corpus
from mtop_batch.errors import MtopError
from mtop_batch.labelling.plan.sample import Block
from mtop_batch.labelling.run.read_rows import read_unit
from mtop_batch.model.bundle.files import read_bundle_info
from mtop_batch.table.columns import OutputKind
from mtop_batch.table.definition import ViewDefinition
from mtop_batch.table.gate.preview import preview
from mtop_batch.table.gate.rules import MetricChange, Rules, TableChange, Verdict, judge
from mtop_batch.table.runs import RunRecord, list_runs, read_run, run_uri

_RUNS_LOOKED_AT = 400
_AHEAD = 8
_TASKS_WITH_TEXTS, _TEXT_CHARS = 10, 300


def gate_rules(config: str | None, **given: float | None) -> Rules:
    """The rules of a configuration's section `[gate]`, and those that are given instead, None apart.

    Raises:
        ConfigError: As `load_gate`.
    """
    return Rules(**load_gate(config, given).model_dump())


def ask_gate(
    labels: str,
    wanted: ViewDefinition,
    kinds: Mapping[str, OutputKind],
    sources: Sequence[SourceFile],
    bundle: str,
    rules: Rules,
    *,
    require_all: bool = True,
    opened_by: str = "",
    corpus: str = "",
) -> Verdict:
    """Judge what publishing would change; the first arguments are those of `publish`.

    Args:
        labels: The label table.
        wanted: The definition.
        kinds: What comes out of its tasks.
        sources: The source files to publish.
        bundle: URI of the bundle of the definition.
        rules: How far labels may move.
        require_all: As for `publish`.
        opened_by: Why readers are to see the labels whatever the rules say.
        corpus: Where the source files lie, to show the texts of examples.

    Raises:
        LabelTableError: The storage does not answer or refuses.
    """
    change = preview(labels, wanted, kinds, sources, require_all=require_all)
    change.metrics = metric_changes(labels, change, bundle)
    verdict = judge(change, rules, opened_by=opened_by)
    if verdict.reasons and corpus:
        _add_texts(verdict, corpus, wanted, sources)
    return verdict


def published_by(labels: str, wanted: ViewDefinition) -> str | None:
    """The newest run that published labels of all tasks of a definition, so that readers have had them before."""
    for record in _records(labels):
        if all(wanted.matches(record.wanted, task) for task in wanted.fingerprints) and _has_published(labels, record):
            return record.run
    return None


def metric_changes(labels: str, change: TableChange, bundle: str) -> dict[str, MetricChange]:
    """For each task of a change, its metric by the bundle whose labels are replaced, and by the new one.

    Where a bundle is gone or records no metrics there is nothing to compare.
    """
    replaced = {
        task: of_task.replaced.most_common(1)[0][0][1] for task, of_task in change.tasks.items() if of_task.replaced
    }
    open_tasks = {task for task, fingerprint in replaced.items() if fingerprint != change.tasks[task].fingerprint}
    if not open_tasks:
        return {}
    names = {task.name: str(task.metric) for task in read_bundle_info(bundle).tasks}
    new = bundle_metrics(bundle)
    of_bundle: dict[str, Mapping[str, Mapping[str, float | None]]] = {}
    found: dict[str, MetricChange] = {}
    for record in _records(labels):
        known = open_tasks & record.wanted.fingerprints.keys()
        made = [task for task in known if record.wanted.identity(task) == replaced[task]]
        if made and record.bundle not in of_bundle:
            of_bundle[record.bundle] = bundle_metrics(record.bundle)
        for task in made:
            open_tasks.discard(task)
            change_of_task = metric_change(names[task], of_bundle[record.bundle].get(task, {}), new.get(task, {}))
            if change_of_task is not None:
                found[task] = change_of_task
        if not open_tasks:
            break
    return found


def metric_change(metric: str, old: Mapping[str, float | None], new: Mapping[str, float | None]) -> MetricChange | None:
    """A task's metric by two bundles; None if one does not record it, or no number."""
    before, now = old.get(metric), new.get(metric)
    if before is None or now is None:
        return None
    num_old, num_new = (int(of.get("num_examples") or 0) for of in (old, new))
    return MetricChange(metric, before, num_old, now, num_new)


def bundle_metrics(bundle: str) -> Mapping[str, Mapping[str, float | None]]:
    """What a bundle records of its tasks on development data: task -> metric -> value; nothing if it is gone."""
    try:
        found = json.loads(storage.read_bytes(storage.join(storage.absolute(bundle), "metrics.json")))
    except (MtopError, OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _add_texts(verdict: Verdict, corpus: str, wanted: ViewDefinition, sources: Sequence[SourceFile]) -> None:
    """Give the examples of tasks that close the gate the beginning of their texts, as far as these can be read."""
    try:
        root = list_corpus(corpus).root
    except MtopError:
        return
    by_path = {source.path: source for source in sources}
    closing = dict.fromkeys(reason.task for reason in verdict.reasons if reason.task)
    for task in islice(closing, _TASKS_WITH_TEXTS):
        for example in verdict.change.tasks[task].examples:
            with suppress(MtopError, UnreadableSource):
                source, columns = by_path[example["source"]], wanted.text_columns[task]
                example["text"] = _text_at(root, source, example["row"], wanted.id_column, columns)


def _text_at(root: str, source: SourceFile, row: int, id_column: str, columns: tuple[str, ...]) -> str:
    """The beginning of an article."""
    layout = read_layout(root, source, id_column=id_column, inputs=[columns], text_columns_required=False)
    unit = Block(source, layout, (row, row + 1)).unit(columns)
    (batch,) = read_unit(root, unit, id_column, max_chars=_TEXT_CHARS)
    seconds = batch.seconds or [None]
    return "\n".join(text for text in (batch.texts[0], seconds[0]) if text)[:_TEXT_CHARS]


def _records(labels: str) -> Iterator[RunRecord]:
    runs = islice(list_runs(labels), _RUNS_LOOKED_AT)
    return storage.in_threads(lambda run: read_run(labels, run), runs, ahead=_AHEAD)


def _has_published(labels: str, record: RunRecord) -> bool:
    try:
        return bool(json.loads(storage.read_bytes(run_uri(labels, record.run, "report.json")))["published"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return False
