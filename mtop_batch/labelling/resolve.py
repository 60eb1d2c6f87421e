"""Which label file speaks for which rows of a source file: pure functions, no files.

Label sets overlap: an old bundle's labels stay beside a new one's, a task added later has a set of its own, and two
sets may have cut the same source file differently. They are put together by row position, never by id: ids may be
null or repeat.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import pyarrow as pa

from mtop_batch.corpus.files import SourceFile
from mtop_batch.labelling.definition import VECTOR, LabelSet
from mtop_batch.labelling.slices import Rows


@dataclass(frozen=True, slots=True)
class TableFile:
    """A label file: the rows of which source it holds, the run that wrote it, the types of its ids and vectors."""

    label_set: str
    path: str
    source: SourceFile
    rows: Rows
    run: str
    id_type: pa.DataType
    vector_type: pa.DataType | None = None


@dataclass(frozen=True)
class Segment:
    """Rows of a source file that are answered alike.

    Args:
        rows: The range in the source file.
        files: The label files to look into; the first is the newest.
        choice: For each task, the index in `files` of the one that has its current labels; a task without is not here.
    """

    rows: Rows
    files: tuple[TableFile, ...]
    choice: Mapping[str, int]


class Chooser:
    """Chooses among label files that cover the same rows.

    Args:
        tasks: The tasks wanted.
        label_sets: Definitions of the label sets, by name.
        present: Per task, the definition that makes its labels current (of the newest run that wanted it).
    """

    def __init__(
        self, tasks: Sequence[str], label_sets: Mapping[str, LabelSet], present: Mapping[str, LabelSet]
    ) -> None:
        self._tasks = tasks
        self._label_sets = label_sets
        self._present = present
        self._known: dict[Hashable, Mapping[str, int]] = {}

    def choose(self, files: Sequence[TableFile]) -> Mapping[str, int]:
        """For each task that one of the files has, the index of the file: present definition first, then newest.

        Vectors of another definition than the present one cannot be compared with the others: they are not chosen.

        Args:
            files: From new to old.
        """
        key = tuple(file.label_set for file in files)
        if key not in self._known:
            self._known[key] = {task: index for task in self._tasks if (index := self._best(task, files)) is not None}
        return self._known[key]

    def _best(self, task: str, files: Sequence[TableFile]) -> int | None:
        having = [index for index, file in enumerate(files) if task in self._label_sets[file.label_set].tasks]
        present = [index for index in having if self.is_present(task, files[index].label_set)]
        return next(iter(present if task == VECTOR else present or having), None)

    def is_present(self, task: str, label_set: str) -> bool:
        """Whether the labels of a task in a label set are of the definition that makes them current."""
        present, found = self._present.get(task), self._label_sets[label_set]
        return present is not None and (present.columns, present.tasks[task]) == (found.columns, found.tasks[task])


def resolve(files: Iterable[TableFile], choose: Callable[[Sequence[TableFile]], Mapping[str, int]]) -> list[Segment]:
    """Cut one source file into segments, each row in exactly one, and choose label files for each.

    The newest label file says which content of the source is the present one; labels of other content are left out.

    Args:
        files: All label files of one source file.
        choose: `Chooser.choose`.
    """
    newest_first = sorted(files, key=lambda file: (file.run, file.label_set, file.path), reverse=True)
    present = [file for file in newest_first if file.source == newest_first[0].source]
    edges = sorted({edge for file in present for edge in file.rows})
    return [Segment(rows, covering, choose(covering)) for rows, covering in _covered(edges, present)]


def _covered(edges: Sequence[int], files: Sequence[TableFile]) -> Iterator[tuple[Rows, tuple[TableFile, ...]]]:
    """The ranges between neighbouring edges that at least one file covers, with the files that do."""
    for start, stop in pairwise(edges):
        covering = tuple(file for file in files if file.rows[0] <= start and stop <= file.rows[1])
        if covering:
            yield (start, stop), covering
