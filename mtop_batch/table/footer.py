"""The records in label files and in published files: what they were made of.

Each is JSON under the key `mtop_batch` of the Parquet footer, so a file explains itself. What is read is checked
against the records' schema, because a file may come from anywhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from mtop_batch.corpus.files import SourceFile
from mtop_batch.errors import LabelTableError
from mtop_batch.table.columns import OutputKind
from mtop_batch.table.definition import LabelSet, ViewDefinition, identity

FOOTER_KEY = "mtop_batch"
LABEL_FORMAT, PUBLISHED_FORMAT = 2, 2
_MAX_ROWS = 2**48
_OPTIONAL = ("scores", "decision", "uncalibrated")

_Row = Annotated[int, Field(ge=0, le=_MAX_ROWS)]
_STRICT = {"strict": False, "extra": "forbid"}


@checked(frozen=True, config=_STRICT)  # type: ignore[call-overload]
class _Source:
    path: str
    size: Annotated[int, Field(ge=0)]
    version: str
    num_rows: _Row


@checked(frozen=True, config=_STRICT)  # type: ignore[call-overload]
class _LabelledTask:
    fingerprint: str
    kind: str
    bundle: str
    scores: tuple[str, ...] = ()
    decision: str = ""
    uncalibrated: Annotated[int, Field(ge=0)] = 0


@checked(frozen=True, config=_STRICT)  # type: ignore[call-overload]
class _LabelRecord:
    format: int
    source: _Source
    rows: tuple[_Row, _Row]
    tasks: dict[str, _LabelledTask]
    bundle: str
    text_columns: tuple[str, ...]
    text_columns_used: tuple[str, ...]
    id_column: str
    run: str


@checked(frozen=True, config=_STRICT)  # type: ignore[call-overload]
class PublishedTask:
    """What a published file says of a task that it has labels of.

    Args:
        fingerprint: What computed them.
        kind: The task's kind.
        bundle: The name of the bundle that computed them.
        text_columns: The text columns that were asked for.
        id_column: The source column that became `id`.
        label_set: Where its label files lie.
        scores: The labels of its column `<task>_scores`, in order; none where the label files have no such column.
        decision: The decision hash; empty if it decides as every task does.
    """

    fingerprint: str
    kind: str
    bundle: str
    text_columns: tuple[str, ...]
    id_column: str
    label_set: str
    scores: tuple[str, ...] = ()
    decision: str = ""

    @property
    def identity(self) -> str:
        """What computed them, its decision included."""
        return identity(self.fingerprint, self.decision)


@checked(frozen=True, config=_STRICT)  # type: ignore[call-overload]
class _PublishedRecord:
    format: int
    source: _Source
    tasks: dict[str, PublishedTask]
    label_files: tuple[tuple[str, str], ...]
    run: str


_LABEL, _PUBLISHED = TypeAdapter(_LabelRecord), TypeAdapter(_PublishedRecord)


@dataclass(frozen=True)
class LabelFooter:
    """What a label file says about itself.

    Args:
        source: The source file as it was read.
        num_rows: Rows of the whole source file.
        rows: The rows that were read; as many as the label file has.
        fingerprints: Per task, what computed it.
        kinds: Per task, what comes out of it.
        bundles: Per task, the name of the bundle that computed it.
        bundle: URI of that bundle.
        text_columns: The text columns that were asked for.
        text_columns_used: Those that the source file has.
        id_column: The source column that became `id`.
        run: Id of the run that wrote the file.
        decisions: The decision hash of each task that decides in a way of its own.
    """

    source: SourceFile
    num_rows: int
    rows: tuple[int, int]
    fingerprints: Mapping[str, str]
    kinds: Mapping[str, OutputKind]
    bundles: Mapping[str, str]
    bundle: str
    text_columns: tuple[str, ...]
    text_columns_used: tuple[str, ...]
    id_column: str
    run: str
    decisions: Mapping[str, str] = field(default_factory=dict)

    @property
    def view(self) -> ViewDefinition:
        """The definition that the labels were computed by."""
        return ViewDefinition.of_one_input(
            self.fingerprints, self.text_columns, self.id_column, self.kinds, self.decisions
        )

    def label_set(self, name: str) -> LabelSet:
        """The label set `name` that this footer was found in."""
        return LabelSet(name, self.view, self.kinds)

    def encode(self) -> bytes:
        """The footer's JSON: the same bytes for the same values."""
        content = {
            "format": LABEL_FORMAT,
            "source": {**asdict(self.source), "num_rows": self.num_rows},
            "rows": self.rows,
            "tasks": {
                name: _without_defaults(
                    {
                        "fingerprint": fingerprint,
                        "kind": self.kinds[name].kind,
                        "bundle": self.bundles[name],
                        "scores": self.kinds[name].scored,
                        "decision": self.decisions.get(name, ""),
                        "uncalibrated": self.kinds[name].uncalibrated,
                    }
                )
                for name, fingerprint in self.fingerprints.items()
            },
            "bundle": self.bundle,
            "text_columns": self.text_columns,
            "text_columns_used": self.text_columns_used,
            "id_column": self.id_column,
            "run": self.run,
        }
        return json.dumps(content, separators=(",", ":")).encode()

    @classmethod
    def decode(cls, data: bytes, num_rows: int) -> LabelFooter:
        """The footer that `encode` wrote.

        Args:
            data: Its JSON.
            num_rows: Rows of the file that it was found in.

        Raises:
            LabelTableError: It is of another format.
            ValueError: It is not such a footer, or not that of a file with so many rows.
        """
        record = _decode(_LABEL, data, LABEL_FORMAT)
        start, stop = record.rows
        if not start <= stop <= record.source.num_rows or stop - start != num_rows:
            raise ValueError(f"it says rows {start} to {stop} of {record.source.num_rows}, and has {num_rows}")
        return cls(
            source=SourceFile(record.source.path, record.source.size, record.source.version),
            num_rows=record.source.num_rows,
            rows=record.rows,
            fingerprints={name: task.fingerprint for name, task in record.tasks.items()},
            kinds={name: OutputKind(task.kind, task.scores, task.uncalibrated) for name, task in record.tasks.items()},
            bundles={name: task.bundle for name, task in record.tasks.items()},
            bundle=record.bundle,
            text_columns=record.text_columns,
            text_columns_used=record.text_columns_used,
            id_column=record.id_column,
            run=record.run,
            decisions={name: task.decision for name, task in record.tasks.items() if task.decision},
        )


@dataclass(frozen=True)
class PublishedFooter:
    """What a published file says about itself.

    Args:
        source: The source file whose rows it has.
        num_rows: How many.
        tasks: Those that it has labels of; its other columns are null.
        label_files: Label set and path of each label file that it was made of.
        run: Id of the run that published it.
    """

    source: SourceFile
    num_rows: int
    tasks: Mapping[str, PublishedTask]
    label_files: tuple[tuple[str, str], ...]
    run: str

    def view(self, task: str) -> ViewDefinition:
        """The definition that a task's labels were computed by."""
        found = self.tasks.get(task)
        if found is None:
            return ViewDefinition({}, {}, "")
        kinds = {task: OutputKind(found.kind, found.scores)}
        decisions = {task: found.decision} if found.decision else {}
        return ViewDefinition.of_one_input(
            {task: found.fingerprint}, found.text_columns, found.id_column, kinds, decisions
        )

    @cached_property
    def has_rows(self) -> bool:
        """Whether it has articles, or only keeps the place of a source file that is gone."""
        return bool(self.label_files)

    def encode(self) -> bytes:
        """The footer's JSON: the same bytes for the same values."""
        content = {
            "format": PUBLISHED_FORMAT,
            "source": {**asdict(self.source), "num_rows": self.num_rows},
            "tasks": {name: _without_defaults(asdict(task)) for name, task in self.tasks.items()},
            "label_files": self.label_files,
            "run": self.run,
        }
        return json.dumps(content, separators=(",", ":")).encode()

    @classmethod
    def decode(cls, data: bytes, num_rows: int) -> PublishedFooter:
        """The footer that `encode` wrote; arguments and errors are those of `LabelFooter.decode`."""
        record = _decode(_PUBLISHED, data, PUBLISHED_FORMAT)
        if record.source.num_rows != num_rows:
            raise ValueError(f"it says {record.source.num_rows} rows, and has {num_rows}")
        return cls(
            source=SourceFile(record.source.path, record.source.size, record.source.version),
            num_rows=num_rows,
            tasks=record.tasks,
            label_files=record.label_files,
            run=record.run,
        )


def _without_defaults(task: dict[str, Any]) -> dict[str, Any]:
    """A task's record; one with neither scores of all labels nor a decision of its own does not speak of them."""
    return {key: value for key, value in task.items() if key not in _OPTIONAL or value}


def _decode(record: TypeAdapter, data: bytes, known: int):  # type: ignore[type-arg, no-untyped-def]
    try:
        found = json.loads(data)
        if not isinstance(found, dict) or not isinstance(found.get("format"), int):
            raise ValueError("not a footer of a label table's file")
        if found["format"] != known:
            raise LabelTableError(
                f"the label table's files have format {found['format']}, this version reads {known}; use the version "
                "that wrote them, or label into a new place"
            )
        return record.validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(
            f"not a footer of a label table's file: {'.'.join(map(str, first['loc']))}: {first['msg']}"
        ) from error
