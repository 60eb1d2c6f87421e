"""The label table as one: which label file gives the labels of which rows, and the rows themselves as a stream.

The footers of all label files in scope are read first; they say what is where. The rows follow in the order of the
source files' paths and of their rows, a few label files in memory at a time.

Label sets overlap: an old bundle's labels stay beside a new one's, a task added later has a set of its own, and two
sets may have cut the same source file differently. They are merged by row position, never by id: ids may be null or
repeat.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import pyarrow as pa

from mtop_batch import storage
from mtop_batch.corpus.files import SourceFile
from mtop_batch.corpus.paths import in_partition
from mtop_batch.errors import LabelTableError
from mtop_batch.table.columns import VECTOR_COLUMN, task_columns
from mtop_batch.table.definition import VECTOR, LabelSet
from mtop_batch.table.footer import Footer
from mtop_batch.table.names import source_path
from mtop_batch.table.row_ranges import RowRange
from mtop_batch.table.runs import current_definitions
from mtop_batch.table.store import list_label_files, read_footer_and_schema, read_label_file, read_label_sets
from mtop_batch.tasks import select_tasks

# Label files of up to some ten thousand rows: enough at once to keep an object store busy, few enough for memory.
_FILES_AHEAD = 8

Content = tuple[Footer, pa.Table]
"""A label file's footer and those of its columns that are needed."""


@dataclass(frozen=True, slots=True)
class TableFile:
    """A label file: the rows of which source it holds, the run that wrote it, the types of its ids and vectors."""

    label_set: str
    path: str
    source: SourceFile
    rows: RowRange
    run: str
    id_type: pa.DataType
    vector_type: pa.DataType | None = None


@dataclass(frozen=True)
class Segment:
    """Rows of a source file whose labels come from the same label files.

    Args:
        rows: The range in the source file.
        files: The label files to look into; the first is the newest.
        choice: For each task, the index in `files` of the one that has its current labels; a task without is not here.
    """

    rows: RowRange
    files: tuple[TableFile, ...]
    choice: Mapping[str, int]


class Chooser:
    """Chooses among label files that cover the same rows.

    Args:
        tasks: The tasks wanted.
        label_sets: Definitions of the label sets, by name.
        current: Per task, the definition that makes its labels current (of the newest run that wanted it).
    """

    def __init__(
        self, tasks: Sequence[str], label_sets: Mapping[str, LabelSet], current: Mapping[str, LabelSet]
    ) -> None:
        self._tasks = tasks
        self._label_sets = label_sets
        self._current = current
        self._known: dict[Hashable, Mapping[str, int]] = {}

    def choose(self, files: Sequence[TableFile]) -> Mapping[str, int]:
        """For each task that one of the files has, the index of the file: current definition first, then newest.

        Vectors of another definition than the current one cannot be compared with the others: they are not chosen.

        Args:
            files: From new to old.
        """
        key = tuple(file.label_set for file in files)
        if key not in self._known:
            self._known[key] = {task: index for task in self._tasks if (index := self._best(task, files)) is not None}
        return self._known[key]

    def _best(self, task: str, files: Sequence[TableFile]) -> int | None:
        having = [index for index, file in enumerate(files) if task in self._label_sets[file.label_set].fingerprints]
        current = [index for index in having if self.is_current(task, files[index].label_set)]
        return next(iter(current if task == VECTOR else current or having), None)

    def is_current(self, task: str, label_set: str) -> bool:
        """Whether the labels of a task in a label set are of the definition that makes them current."""
        wanted, found = self._current.get(task), self._label_sets[label_set]
        if wanted is None:
            return False
        return (wanted.columns, wanted.fingerprints[task]) == (found.columns, found.fingerprints[task])


def merge_files(
    files: Iterable[TableFile], choose: Callable[[Sequence[TableFile]], Mapping[str, int]]
) -> list[Segment]:
    """Merge the label files of one source file: segments, each row in exactly one, with the label files chosen for it.

    The newest label file says which content of the source is the current one; labels of other content are left out.

    Args:
        files: All label files of one source file.
        choose: `Chooser.choose`.
    """
    newest_first = sorted(files, key=lambda file: (file.run, file.label_set, file.path), reverse=True)
    current = [file for file in newest_first if file.source == newest_first[0].source]
    edges = sorted({edge for file in current for edge in file.rows})
    return [Segment(rows, covering, choose(covering)) for rows, covering in _covered(edges, current)]


def _covered(edges: Sequence[int], files: Sequence[TableFile]) -> Iterator[tuple[RowRange, tuple[TableFile, ...]]]:
    """The ranges between neighbouring edges that at least one file covers, with the files that do."""
    for start, stop in pairwise(edges):
        covering = tuple(file for file in files if file.rows[0] <= start and stop <= file.rows[1])
        if covering:
            yield (start, stop), covering


@dataclass(frozen=True)
class LoadedSegment:
    """A segment with what its label files hold."""

    segment: Segment
    contents: Mapping[TableFile, Content]

    def __len__(self) -> int:
        start, stop = self.segment.rows
        return stop - start

    @property
    def id_file(self) -> TableFile:
        """The file whose ids are shown."""
        return _id_file(self.segment)

    def files_used(self) -> list[TableFile]:
        """The files that have the current labels of a task, or the ids."""
        return _files_used(self.segment)

    def file_of(self, task: str) -> TableFile | None:
        """The file with the task's current labels, if there are any."""
        index = self.segment.choice.get(task)
        return None if index is None else self.segment.files[index]

    def footer(self, file: TableFile) -> Footer:
        """The footer of one of the files used."""
        return self.contents[file][0]

    def has(self, file: TableFile, name: str) -> bool:
        """Whether one of the files used has a column."""
        return self.contents[file][1].schema.get_field_index(name) >= 0

    def column(self, file: TableFile, name: str) -> pa.ChunkedArray:
        """The segment's rows of a column of one of the files used."""
        return self.contents[file][1].column(name).slice(self.segment.rows[0] - file.rows[0], len(self))


@dataclass(frozen=True)
class TableScan:
    """What a label table shows, before its rows are read.

    Args:
        labels: The label table.
        tasks: The tasks to show.
        label_sets: Definitions of the label sets, by name.
        chooser: Knows which definitions are the current ones.
        files: The label files in scope, with their bytes.
        segments_by_source: For each source file in scope, in order of the paths, its path and segments.
    """

    labels: str
    tasks: tuple[str, ...]
    label_sets: Mapping[str, LabelSet]
    chooser: Chooser
    files: Sequence[tuple[TableFile, int]]
    segments_by_source: Sequence[tuple[str, Sequence[Segment]]]

    def kind(self, task: str) -> str:
        """The task's kind; "regression" only if it has labels in no label set."""
        kinds = {label_set.kinds[task] for label_set in self.label_sets.values() if task in label_set.fingerprints}
        return min(kinds, key=("vector", "classification", "probe", "regression").index)

    def columns_of(self, task: str) -> list[str]:
        """The task's columns."""
        return task_columns(task, self.kind(task))

    def id_types(self) -> set[pa.DataType]:
        """The types of the ids that are shown."""
        return {_id_file(segment).id_type for _, segments in self.segments_by_source for segment in segments}

    def vector_type(self) -> pa.DataType:
        """The type of the vectors that are shown; they are of one definition, and so of one length."""
        chosen = (
            s.files[s.choice[VECTOR]] for _, segments in self.segments_by_source for s in segments if VECTOR in s.choice
        )
        return next((file.vector_type for file in chosen), pa.list_(pa.float16()))

    def load(self) -> Iterator[LoadedSegment]:
        """Read the rows, segment by segment.

        Raises:
            LabelTableError: A label file cannot be read, or was replaced since the scan was opened.
        """
        contents = storage.in_threads(self._read, self._reads(), _FILES_AHEAD, ahead=_FILES_AHEAD)
        for _, segments in self.segments_by_source:
            held: dict[TableFile, Content] = {}
            for segment in segments:
                used = _files_used(segment)
                while not held.keys() >= set(used):
                    file, content = next(contents)
                    held[file] = content
                yield LoadedSegment(segment, {file: held[file] for file in used})
                held = {file: content for file, content in held.items() if file.rows[1] > segment.rows[1]}

    def _reads(self) -> Iterator[tuple[TableFile, list[str]]]:
        """The label files that are needed, in the order of their first use, each with its columns."""
        for _, segments in self.segments_by_source:
            tasks_of: dict[TableFile, set[str]] = {}
            for segment in segments:
                for file in _files_used(segment):
                    tasks_of.setdefault(file, set())
                for task, index in segment.choice.items():
                    tasks_of[segment.files[index]].add(task)
            for file, tasks in tasks_of.items():
                columns = [name for task in self.tasks if task in tasks for name in self.columns_of(task)]
                yield file, ["id", *columns, "error"]

    def _read(self, needed: tuple[TableFile, list[str]]) -> tuple[TableFile, Content]:
        file, columns = needed
        footer, table = read_label_file(self.labels, file.label_set, file.path, columns)
        if footer.run != file.run:
            raise LabelTableError(f"{file.label_set}/{file.path} was replaced while it was read; read the labels again")
        return file, (footer, table)


def open_scan(
    labels: str, tasks: Sequence[str] | None, partition: Mapping[str, str] | None, *, vectors: bool = False
) -> TableScan:
    """Read the footers of the label files in scope, and choose among them.

    Args:
        labels: The label table.
        tasks: Only these; all by default.
        partition: Only articles of this hive partition.
        vectors: The vectors too, as the task `VECTOR`, the last one.

    Raises:
        LabelTableError: There are no labels, or no vectors, or they cannot be read.
        TaskError: No label set has one of the tasks.
    """
    labels = storage.absolute(labels)
    listing = list_label_files(labels)
    label_sets = {label_set.name: label_set for label_set in read_label_sets(labels, listing)}
    if not label_sets:
        raise LabelTableError(f"there are no labels in {labels}; check the path, or run `mtop label` first")
    found = list(dict.fromkeys(task for label_set in label_sets.values() for task in label_set.fingerprints))
    known = [task for task in found if task != VECTOR]
    wanted = known if tasks is None else select_tasks(tasks, known)
    if vectors:
        if VECTOR not in found:
            raise LabelTableError(f"there are no vectors in {labels}; run `mtop label --vectors` first")
        wanted = [*wanted, VECTOR]
    chooser = Chooser(wanted, label_sets, current_definitions(labels, wanted))
    in_scope = {
        name: {path: size for path, size in listing[name].items() if in_partition(path, partition or {})}
        for name in label_sets
    }
    files = _read_files(labels, in_scope)
    by_source: dict[str, list[TableFile]] = defaultdict(list)
    for file, _ in files:
        by_source[source_path(file.path)].append(file)
    segments_by_source = [(path, merge_files(by_source[path], chooser.choose)) for path in sorted(by_source)]
    return TableScan(labels, tuple(wanted), label_sets, chooser, files, segments_by_source)


def _read_files(labels: str, listing: Mapping[str, Mapping[str, int]]) -> list[tuple[TableFile, int]]:
    def read(name: tuple[str, str, int]) -> tuple[TableFile, int]:
        label_set, path, size = name
        footer, schema = read_footer_and_schema(labels, label_set, path, size)
        vector_type = schema.field(VECTOR_COLUMN).type if VECTOR in footer.fingerprints else None
        id_type = schema.field("id").type
        return TableFile(label_set, path, footer.source, footer.rows, footer.run, id_type, vector_type), size

    names = ((label_set, path, size) for label_set, sizes in listing.items() for path, size in sizes.items())
    return list(storage.in_threads(read, names))


def _id_file(segment: Segment) -> TableFile:
    """The file whose ids are shown: one that is read for its labels, if any is."""
    return segment.files[min(segment.choice.values(), default=0)]


def _files_used(segment: Segment) -> list[TableFile]:
    return list(dict.fromkeys([_id_file(segment), *(segment.files[index] for index in segment.choice.values())]))
