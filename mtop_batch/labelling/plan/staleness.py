"""Which cells are not current: a pure comparison of a definition with the names of the label files.

A cell is (unit of the corpus, task). Everything a run does follows from it: a first run, a nightly run, a resume
after a crash, a new task and a new model differ only in which cells are found current.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from mtop_batch.corpus.files import Layout, SourceFile
from mtop_batch.labelling.plan.placement import choose_label_sets
from mtop_batch.labelling.plan.work import Target, Unit
from mtop_batch.table.definition import VECTOR, Definition, LabelSet
from mtop_batch.table.names import content_id, label_path
from mtop_batch.table.row_ranges import RowRange, is_tiling, row_groups_of, slice_rows
from mtop_batch.table.store import LabelFile, StoreListing

NEW_FILE = "new file"
NEW_TASK = "new task"
UNFINISHED = "unfinished file"
CONTENT_CHANGED = "content changed"
TASK_CHANGED = "task changed"
BUNDLE_CHANGED = "bundle changed"
COLUMNS_CHANGED = "text or id column changed"
SCORES_WANTED = "scores of all labels wanted"
DECISION_CHANGED = "decision changed"
SCORES_LACKING = 'decision changed, scores not stored (scores = "all" keeps them)'
DAMAGED = "damaged label file"


@dataclass(frozen=True)
class _TaskGroup:
    """Wanted tasks of one input that no label set tells apart: they are current, or not, in the same places."""

    tasks: tuple[str, ...]
    label_sets: frozenset[str]
    """Sets that hold these tasks as the definition wants them."""
    other_sets: tuple[tuple[str, str], ...]
    """Sets that hold them otherwise, each with what differs."""


class Staleness:
    """What the store holds of the cells that a definition wants.

    Args:
        definition: What is wanted.
        label_sets: Definitions of the store's label sets.
        listing: The label files.
        damaged: Those of them that were read and are not what their names say.
    """

    def __init__(
        self,
        definition: Definition,
        label_sets: Collection[LabelSet],
        listing: StoreListing,
        damaged: Collection[LabelFile] = (),
    ) -> None:
        self._definition = definition
        self._label_sets = {label_set.name: label_set for label_set in label_sets}
        self._listing = listing
        self._damaged = frozenset(damaged)
        self._groups = _group_tasks(definition, label_sets)
        self._vector_sets = {
            columns: sorted(
                found.name for found in label_sets if definition.vector_view(columns).matches(found.view, VECTOR)
            )
            for columns in set(definition.text_columns.values())
        }
        self._score_sets = {
            task: sorted(found.name for found in label_sets if definition.can_be_decided_from(found, task))
            for task in definition.label_tasks
        }
        self._chosen: dict[frozenset[int], list[tuple[str, tuple[str, ...]]]] = {}
        self._tasks: dict[tuple[tuple[str, ...], ...], tuple[str, ...]] = {}

    def has_vectors(self, source: SourceFile, num_rows: int) -> bool:
        """Whether the vectors of a source file are stored, all of one label set."""
        stored = self._stored(source)
        names = self._vector_sets[self._definition.text_columns[VECTOR]]
        return any(is_tiling(stored.get(name, {}), num_rows) for name in names)

    def units(self, source: SourceFile, layout: Layout) -> list[Unit]:
        """The units that make a source file current, in order: for each slice one per input of which it lacks a label,
        or two, where stored scores are enough for some of its tasks.

        A published file takes each task from one label set. So a task is current where a set has it for all slices;
        else one set is chosen, which gets it for those that it lacks.
        """
        stored, slices = self._stored(source), slice_rows(layout.row_groups)
        whole = {name for name, files in stored.items() if all(rows in files for rows in slices)}
        stale = frozenset(index for index, group in enumerate(self._groups) if whole.isdisjoint(group.label_sets))
        if not stale:
            return []
        units = []
        for rows in slices:
            missing: dict[tuple[tuple[str, ...], bool], list[tuple[str, tuple[str, ...]]]] = {}
            scores: list[Target] = []
            for name, tasks in self._chosen_sets(stale):
                if rows not in stored.get(name, {}):
                    of_set = self._stored_scores(stored, rows, tasks)
                    scores += of_set
                    missing.setdefault((self._definition.text_columns[tasks[0]], bool(of_set)), []).append(
                        (name, tasks)
                    )
            for (columns, from_scores), of_input in missing.items():
                unit = self._unit(source, layout, rows, columns, of_input)
                if from_scores:
                    of_unit = tuple(target for target in scores if target.tasks[0] in unit.tasks)
                    unit = replace(unit, scores=of_unit)
                elif self._definition.probes.issuperset(unit.tasks):
                    vectors = (
                        stored[name][rows] for name in self._vector_sets[columns] if rows in stored.get(name, {})
                    )
                    unit = replace(unit, vectors=next(vectors, None))
                units.append(unit)
        return units

    def _stored_scores(
        self, stored: Mapping[str, Mapping[RowRange, LabelFile]], rows: RowRange, tasks: Sequence[str]
    ) -> list[Target]:
        """The label files with the scores of these rows, and for which of the tasks; none unless for all of them."""
        found: dict[LabelFile, list[str]] = {}
        for task in tasks:
            files = (stored[name][rows] for name in self._score_sets.get(task, ()) if rows in stored.get(name, {}))
            file = next(files, None)
            if file is None:
                return []
            found.setdefault(file, []).append(task)
        return [Target(file, tuple(of_file)) for file, of_file in found.items()]

    def reasons(self, source: SourceFile, units: Iterable[Unit]) -> Counter[str]:
        """Why the cells of a source file's units are not current, each counted as articles x tasks."""
        found = [(group.tasks, self._reason(source, group)) for group in self._groups]
        reasons: Counter[str] = Counter()
        for unit in units:
            for tasks, reason in found:
                if tasks[0] in unit.tasks:  # a unit wants all tasks of a group or none
                    reasons[reason] += len(tasks) * unit.num_rows
        return reasons

    def _stored(self, source: SourceFile) -> Mapping[str, Mapping[RowRange, LabelFile]]:
        """The label files of the source file's content that are not damaged."""
        found = self._listing.of(source.path, content_id(source))
        if self._damaged.isdisjoint(file for files in found.values() for file in files.values()):
            return found
        return {
            name: {rows: file for rows, file in files.items() if file not in self._damaged}
            for name, files in found.items()
        }

    def _chosen_sets(self, stale: frozenset[int]) -> list[tuple[str, tuple[str, ...]]]:
        """The label sets that get the tasks of these groups."""
        if stale not in self._chosen:
            wanted = {task for index in stale for task in self._groups[index].tasks}
            tasks = tuple(task for task in self._definition.fingerprints if task in wanted)
            self._chosen[stale] = choose_label_sets(self._definition, tasks, self._label_sets.values())
        return self._chosen[stale]

    def _unit(
        self,
        source: SourceFile,
        layout: Layout,
        rows: RowRange,
        columns: tuple[str, ...],
        missing: Sequence[tuple[str, tuple[str, ...]]],
    ) -> Unit:
        members = tuple(tasks for _, tasks in missing)
        if members not in self._tasks:  # units that want the same tasks share one tuple: there may be a thousand
            wanted = {task for tasks in members for task in tasks}
            self._tasks[members] = tuple(task for task in self._definition.fingerprints if task in wanted)
        tasks = self._tasks[members]
        path = label_path(source, rows)
        return Unit(
            source=source,
            num_rows_file=sum(layout.row_groups),
            num_row_groups=len(layout.row_groups),
            row_groups=row_groups_of(layout.row_groups, rows),
            rows=rows,
            text_columns=layout.text_columns[columns],
            tasks=tasks,
            targets=tuple(Target(LabelFile(label_set, path), of_set) for label_set, of_set in missing),
        )

    def _reason(self, source: SourceFile, group: _TaskGroup) -> str:
        of_content = self._listing.of(source.path, content_id(source))
        current = [file for name in group.label_sets for file in of_content.get(name, {}).values()]
        if any(file not in self._damaged for file in current):
            return UNFINISHED
        if current:
            return DAMAGED
        present = self._listing.label_sets_of(source.path)
        if present & group.label_sets:
            return CONTENT_CHANGED
        differences = {difference for name, difference in group.other_sets if name in present}
        for reason in (DECISION_CHANGED, SCORES_LACKING, SCORES_WANTED, COLUMNS_CHANGED, TASK_CHANGED, BUNDLE_CHANGED):
            if reason in differences:
                return reason
        return NEW_TASK if present else NEW_FILE


def relevant_sets(definition: Definition, label_sets: Iterable[LabelSet]) -> list[LabelSet]:
    """The label sets whose files decide what is current, or what it can be computed from.

    They hold at least one wanted task as it is wanted, or its scores, or vectors that a wanted probe reads.
    """
    views = [definition.vector_view(columns) for columns in {definition.text_columns[p] for p in definition.probes}]
    return [
        label_set
        for label_set in label_sets
        if any(
            definition.view.matches(label_set.view, task) or definition.can_be_decided_from(label_set, task)
            for task in definition.fingerprints
        )
        or any(view.matches(label_set.view, VECTOR) for view in views)
    ]


def _group_tasks(definition: Definition, label_sets: Iterable[LabelSet]) -> list[_TaskGroup]:
    same: dict[str, list[str]] = defaultdict(list)
    differing: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for label_set in label_sets:
        for task, difference in _differences(definition, label_set).items():
            if difference:
                differing[task].append((label_set.name, difference))
            else:
                same[task].append(label_set.name)
    groups: dict[tuple[tuple[str, ...], frozenset[str], tuple[tuple[str, str], ...]], list[str]] = defaultdict(list)
    for task in definition.fingerprints:
        groups[definition.text_columns[task], frozenset(same[task]), tuple(sorted(differing[task]))].append(task)
    return [_TaskGroup(tuple(tasks), label_sets, others) for (_, label_sets, others), tasks in groups.items()]


def _differences(definition: Definition, label_set: LabelSet) -> dict[str, str]:
    """For each wanted task that a label set has, how its definition there differs; "" if it does not."""
    common = [task for task in definition.fingerprints if task in label_set.fingerprints]
    unchanged = [task for task in common if label_set.fingerprints[task] == definition.fingerprints[task]]
    changed = TASK_CHANGED if unchanged or len(common) == 1 else BUNDLE_CHANGED
    moved = {task for task in common if label_set.view.columns(task) != definition.view.columns(task)}
    lacking = definition.view.all_scores - label_set.view.all_scores

    def difference(task: str) -> str:
        if task not in unchanged:
            return changed
        if task in moved:
            return COLUMNS_CHANGED
        if task in lacking:
            return SCORES_WANTED
        if definition.view.matches(label_set.view, task):
            return ""
        return DECISION_CHANGED if definition.can_be_decided_from(label_set, task) else SCORES_LACKING

    return {task: difference(task) for task in common}
