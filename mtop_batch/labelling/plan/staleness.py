"""Which cells are not current: a pure comparison of a definition with the footers of the label files.

A cell is (unit of the corpus, task). Everything a run does follows from it: a first run, a nightly run, a resume
after a crash, a new task and a new model differ only in which cells are found current.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from mtop_batch.corpus.files import Layout, SourceFile
from mtop_batch.labelling.plan.placement import choose_label_sets
from mtop_batch.labelling.plan.work import Unit, VectorRows
from mtop_batch.table.definition import Definition, LabelSet
from mtop_batch.table.footer import Footer
from mtop_batch.table.names import label_path, source_path
from mtop_batch.table.row_ranges import RowRange, cover, gaps, pieces, row_groups_of, slice_rows
from mtop_batch.table.store import Target

NEW_FILE = "new file"
NEW_TASK = "new task"
UNFINISHED = "unfinished file"
CONTENT_CHANGED = "content changed"
TASK_CHANGED = "task changed"
BUNDLE_CHANGED = "bundle changed"
COLUMNS_CHANGED = "text or id column changed"
DAMAGED = "damaged label file"


@dataclass(frozen=True, slots=True)
class LabelFile:
    """A label file as planning sees it; `source` is None if its footer cannot be read."""

    label_set: str
    path: str
    source: SourceFile | None
    num_rows: int = 0
    rows: RowRange = (0, 0)

    @classmethod
    def of(cls, label_set: str, path: str, footer: Footer) -> LabelFile:
        """The label file with this footer."""
        return cls(label_set, path, footer.source, footer.num_rows, footer.rows)


@dataclass(frozen=True)
class _TaskGroup:
    """Wanted tasks that are in the same label sets: they are current, or not, in the same places."""

    tasks: tuple[str, ...]
    label_sets: frozenset[str]
    """Sets that hold these tasks as the definition wants them."""
    other_sets: tuple[tuple[str, str], ...]
    """Sets that hold them otherwise, each with what differs."""


class Staleness:
    """Which of the cells that a definition wants are current in a label table, and which are stale.

    Args:
        definition: What is wanted.
        label_sets: Definitions of the table's label sets.
        label_files: The label files of the sets that `relevant_sets` names, and those with damaged footers.
        listing: Paths of all label files, by label set.
    """

    def __init__(
        self,
        definition: Definition,
        label_sets: Collection[LabelSet],
        label_files: Iterable[LabelFile],
        listing: Mapping[str, Collection[str]],
    ) -> None:
        self._definition = definition
        self._label_sets = {label_set.name: label_set for label_set in label_sets}
        self._listing = listing
        self._groups = _group_tasks(definition, label_sets)
        self._vector_sets = {label_set.name for label_set in label_sets if label_set.holds_vectors(definition)}
        self._files: dict[str, list[LabelFile]] = defaultdict(list)
        for file in label_files:
            self._files[source_path(file.path)].append(file)
        self._sets_by_source: dict[str, set[str]] = defaultdict(set)
        for name, paths in listing.items():
            for path in paths:
                self._sets_by_source[source_path(path)].add(name)
        self._work: dict[frozenset[int], tuple[tuple[str, ...], list[tuple[str, tuple[str, ...]]]]] = {}

    def num_rows_if_current(self, source: SourceFile) -> int | None:
        """Rows of a source file if every wanted cell of it is current, else None; the file need not be read."""
        current = self._current_files(source)
        if not current:
            return None
        num_rows = current[0].num_rows
        return None if any(self._missing((0, num_rows), current)) else num_rows

    def units(self, source: SourceFile, layout: Layout, unit_rows: int) -> list[Unit]:
        """The units of at most `unit_rows` rows that make a source file current, in order."""
        rows, current = (0, sum(layout.row_groups)), self._current_files(source)
        slices, missing = slice_rows(layout.row_groups, unit_rows), self._missing(rows, current)
        # Stored vectors are one more thing that may be missing: units end where they do.
        vectors = [file for file in current if file.label_set in self._vector_sets]
        without = len(missing)
        missing.append(gaps(rows, (file.rows for file in vectors)))
        return [
            self._unit(source, layout, rows, groups - {without}, () if without in groups else vectors)
            for rows, groups in pieces(slices, missing)
            if groups != {without}
        ]

    def reasons(self, source: SourceFile, units: Iterable[Unit]) -> Counter[str]:
        """Why the cells of a source file's units are not current, each counted as articles x tasks."""
        found = [(group.tasks, self._reason(source, group)) for group in self._groups]
        reasons: Counter[str] = Counter()
        for unit in units:
            for tasks, reason in found:
                if tasks[0] in unit.tasks:  # a unit wants all tasks of a group or none
                    reasons[reason] += len(tasks) * unit.num_rows
        return reasons

    def obsolete(self, source: SourceFile, units: Iterable[Unit]) -> list[str]:
        """Label files of other content of `source` that must go before its units are written.

        They are those in sets that also have, or will have, labels of the current content. One file that is replaced
        by one of the same name needs no deletion: the replacement is a single step.
        """
        planned: dict[str, list[str]] = defaultdict(list)
        for unit in units:
            for target in unit.targets:
                planned[target.label_set].append(target.path)
        files = self._files.get(source.path, [])
        with_current = {file.label_set for file in files if file.source == source}
        obsolete: list[str] = []
        for label_set in sorted(with_current | set(planned)):
            old = [file.path for file in files if file.label_set == label_set and file.source != source]
            replaced_in_one_step = label_set not in with_current and len(old) == 1 and old == planned[label_set]
            if not replaced_in_one_step:
                obsolete += [f"{label_set}/{path}" for path in sorted(old)]
        return obsolete

    def orphaned(self, corpus_paths: Collection[str]) -> list[str]:
        """Label files whose source file is not in the corpus."""
        return sorted(
            f"{name}/{path}"
            for name in self._label_sets
            for path in self._listing.get(name, ())
            if source_path(path) not in corpus_paths
        )

    def _current_files(self, source: SourceFile) -> list[LabelFile]:
        return [file for file in self._files.get(source.path, ()) if file.source == source]

    def _missing(self, rows: RowRange, current: Sequence[LabelFile]) -> list[list[RowRange]]:
        """For each group of tasks, the ranges of rows without a current label."""
        return [
            gaps(rows, (file.rows for file in current if file.label_set in group.label_sets)) for group in self._groups
        ]

    def _unit(
        self,
        source: SourceFile,
        layout: Layout,
        rows: RowRange,
        groups: frozenset[int],
        vectors: Sequence[LabelFile],
    ) -> Unit:
        num_rows = sum(layout.row_groups)
        row_groups, aligned = row_groups_of(layout.row_groups, rows)
        path = label_path(source.path, row_groups, None if aligned else rows, whole=rows == (0, num_rows))
        if groups not in self._work:
            wanted = {task for index in groups for task in self._groups[index].tasks}
            tasks = tuple(task for task in self._definition.fingerprints if task in wanted)
            self._work[groups] = tasks, choose_label_sets(self._definition, tasks, self._label_sets.values())
        tasks, chosen = self._work[groups]
        return Unit(
            source=source,
            num_rows_file=num_rows,
            num_row_groups=len(layout.row_groups),
            row_groups=row_groups,
            rows=rows,
            text_columns=layout.text_columns,
            tasks=tasks,
            targets=tuple(Target(label_set, path, members) for label_set, members in chosen),
            vectors=_vector_rows(rows, vectors) if self._definition.probes.issuperset(tasks) else (),
        )

    def _reason(self, source: SourceFile, group: _TaskGroup) -> str:
        files = [file for file in self._files.get(source.path, ()) if file.label_set in group.label_sets]
        existing = self._sets_by_source.get(source.path, set())
        if any(file.source == source for file in files):
            return UNFINISHED
        if any(file.source is not None for file in files):
            return CONTENT_CHANGED
        if files:
            return DAMAGED
        differences = {difference for name, difference in group.other_sets if name in existing}
        for reason in (COLUMNS_CHANGED, TASK_CHANGED, BUNDLE_CHANGED):
            if reason in differences:
                return reason
        return NEW_TASK if existing else NEW_FILE


def _vector_rows(rows: RowRange, files: Sequence[LabelFile]) -> tuple[VectorRows, ...]:
    """Which label files have the vectors of these rows; each row in one of them."""
    by_rows = {file.rows: file for file in files}
    return tuple(
        VectorRows(by_rows[whole].label_set, by_rows[whole].path, part) for whole, part in cover(rows, by_rows)
    )


def relevant_sets(definition: Definition, label_sets: Iterable[LabelSet]) -> list[LabelSet]:
    """The label sets whose footers decide what is current, or what it can be computed from.

    They hold at least one wanted task as it is wanted, or vectors that a wanted probe reads.
    """
    return [
        label_set
        for label_set in label_sets
        if any(label_set.holds(definition, task) for task in definition.fingerprints)
        or (definition.probes and label_set.holds_vectors(definition))
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
    groups: dict[tuple[frozenset[str], tuple[tuple[str, str], ...]], list[str]] = defaultdict(list)
    for task in definition.fingerprints:
        groups[frozenset(same[task]), tuple(sorted(differing[task]))].append(task)
    return [_TaskGroup(tuple(tasks), label_sets, others) for (label_sets, others), tasks in groups.items()]


def _differences(definition: Definition, label_set: LabelSet) -> dict[str, str]:
    """For each wanted task that a label set has, how its definition there differs; "" if it does not."""
    common = [task for task in definition.fingerprints if task in label_set.fingerprints]
    unchanged = [task for task in common if label_set.fingerprints[task] == definition.fingerprints[task]]
    changed = TASK_CHANGED if unchanged or len(common) == 1 else BUNDLE_CHANGED
    columns = "" if label_set.columns == definition.columns else COLUMNS_CHANGED
    return {task: columns if task in unchanged else changed for task in common}
