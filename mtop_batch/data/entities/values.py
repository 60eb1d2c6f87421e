"""Label columns of token tasks to entities: tags beside lists of words, or spans of texts.

Words stand one after the other with a space between them, and an entity reaches from its first word to its last: as if
that text had been given with spans. Tags are strings, or whole numbers with names (`ClassLabel`); which schemes says
`data.entities.tags.entities_of_tags`. A span is a struct with `start`, the character after it as `end`, and `label`;
`column` names its text column where the task has two. So the label table writes entities, and its columns can be
learned from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mtop_batch.data.entities.spans import Entity
from mtop_batch.data.entities.tags import entities_of_tags
from mtop_batch.data.sources import Part
from mtop_batch.data.text_rows import TEXT_IS_EMPTY, TEXT_IS_NULL, text_column
from mtop_batch.errors import DataError
from mtop_batch.tasks import Task

_SPAN_FIELDS = ("start", "end", "label")


@dataclass
class EntityRows:
    """Texts and their entities.

    Args:
        texts: One for each row; "" where there is only a second one.
        seconds: The second texts, None where there is none; None if the task has one text column.
        entities: Those of each row.
        skipped: Rows that are no examples: their number in the source, over all its files, and the reason.
    """

    texts: list[str] = field(default_factory=list)
    seconds: list[str | None] | None = None
    entities: list[list[Entity]] = field(default_factory=list)
    skipped: list[tuple[int, str]] = field(default_factory=list)


class _Bad(Exception):
    """What is wrong with a row's label, and what is allowed."""


def read_entities(task: Task, parts: Sequence[Part], column: str) -> EntityRows:
    """The texts of all rows of a source that have one and a label, and their entities.

    Args:
        task: A token task.
        parts: The source's, in order; each has the task's text columns and the label column.
        column: The label column.

    Raises:
        DataError: A column has another type; tags are not as many as words; a type or tag is not allowed; a span is not
            inside its text, is empty, or overlaps another one.
    """
    rows = EntityRows(seconds=[] if len(task.text) == 2 else None)
    before = 0
    for part in parts:
        read = _read_words if _is_list(part.table[task.text[0]].type) else _read_spans
        read(task, part, column, rows, before)
        before += len(part.table)
    return rows


def _is_list(kind: pa.DataType) -> bool:
    types = pa.types
    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def _is_string(kind: pa.DataType) -> bool:
    types = pa.types
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _refuse_type(task: Task, part: Part, column: str, kind: pa.DataType, allowed: str) -> DataError:
    return DataError(f"task {task.name!r}: column {column!r} of {part.name} has type {kind}; allowed is {allowed}")


# --- words and tags -----------------------------------------------------------------------------------------------


def _read_words(task: Task, part: Part, column: str, rows: EntityRows, before: int) -> None:
    if len(task.text) == 2:
        raise DataError(
            f"task {task.name!r}: {part.name} has words in {task.text[0]!r}, and a task on words has one text column; "
            "give texts with spans for two"
        )
    words, tags = part.table[task.text[0]], part.table[column]
    if not _is_string(words.type.value_type):
        raise _refuse_type(task, part, task.text[0], words.type, "texts, or lists of words")
    if not _is_list(tags.type):
        raise _refuse_type(task, part, column, tags.type, "a list of tags beside lists of words")
    names = part.label_names.get(column)
    if pa.types.is_integer(tags.type.value_type) and names is None:
        raise DataError(
            f"task {task.name!r}: the tags in {column!r} of {part.name} are numbers without names; write the tags as "
            "strings, or the column as a ClassLabel of `datasets`, which names them"
        )
    if not pa.types.is_integer(tags.type.value_type) and not _is_string(tags.type.value_type):
        raise _refuse_type(task, part, column, tags.type, "lists of tags, as strings or as numbers with names")
    for row, (own_words, own_tags) in enumerate(zip(words.to_pylist(), tags.to_pylist(), strict=True)):
        reason = _why_no_example(own_words, own_tags)
        if reason:
            rows.skipped.append((before + row, reason))
            continue
        try:
            entities = _entities_of_words(task, own_words, own_tags, names)
        except _Bad as bad:
            raise DataError(f"task {task.name!r}: {part.name}, row {row}: {bad}") from None
        rows.texts.append(" ".join(own_words))
        rows.entities.append(entities)


def _why_no_example(words: Sequence[str] | None, tags: Sequence[Any] | None) -> str:
    if tags is None:
        return "label is null"
    if words is None:
        return TEXT_IS_NULL
    return "" if any(word and not word.isspace() for word in words) else TEXT_IS_EMPTY


def _entities_of_words(
    task: Task, words: Sequence[str | None], tags: Sequence[str | int | None], names: Sequence[str] | None
) -> list[Entity]:
    if len(words) != len(tags):
        raise _Bad(f"it has {len(words)} words and {len(tags)} tags; give each word one")
    if None in words or None in tags:
        raise _Bad(f"null stands among its {'words' if None in words else 'tags'}; give each word a tag")
    if names is not None:
        if bad := [tag for tag in tags if not 0 <= int(tag or 0) < len(names)]:
            raise _Bad(f"tag {bad[0]} has no name; there are {len(names)} names, from 0 on")
        tags = [names[int(tag or 0)] for tag in tags]
    try:
        found = entities_of_tags([str(tag) for tag in tags], task.labels)
    except ValueError as error:
        raise _Bad(
            f"tag {str(error)!r} cannot be used; allowed are 'O', and 'B-' and 'I-' (also 'E-', 'L-', 'S-', 'U-') "
            f"before a type; types: {_listed(task.labels)}"
        ) from None
    starts = [0]
    for word in words:
        starts.append(starts[-1] + len(word or "") + 1)
    spans = [(0, starts[first], starts[stop] - 1, label) for first, stop, label in found]
    if any(start >= end for _, start, end, _ in spans):
        raise _Bad("a word that is empty has the tag of an entity; tag it 'O', or leave it out")
    return spans


# --- texts and spans ----------------------------------------------------------------------------------------------


def _read_spans(task: Task, part: Part, column: str, rows: EntityRows, before: int) -> None:
    spans = part.table[column]
    wanted = "list of structs with start, end and label beside texts"
    if not _is_list(spans.type) or not pa.types.is_struct(spans.type.value_type):
        raise _refuse_type(task, part, column, spans.type, f"a {wanted}; tags go with lists of words")
    names = [member.name for member in spans.type.value_type]
    if missing := [name for name in _SPAN_FIELDS if name not in names]:
        raise _refuse_type(task, part, column, spans.type, f"a {wanted}, and it has no {missing[0]!r}")
    texts, problems = zip(
        *(text_column(part.table[name], name, part.name, f"task {task.name!r}: ") for name in task.text), strict=True
    )
    whys = pc.coalesce(*problems).to_pylist()
    columns = [column.to_pylist() for column in texts]
    for row, (own, why, *given) in enumerate(zip(spans.to_pylist(), whys, *columns, strict=True)):
        present = [None if text is None or not text or text.isspace() else text for text in given]
        if own is None or why or not any(present):
            silent = TEXT_IS_NULL if all(text is None for text in given) else TEXT_IS_EMPTY
            rows.skipped.append((before + row, "label is null" if own is None else why or silent))
            continue
        try:
            entities = [_entity(task, span, given) for span in own]
            _check_apart(entities, given)
        except _Bad as bad:
            raise DataError(f"task {task.name!r}: {part.name}, row {row}: {bad}") from None
        rows.texts.append(present[0] or "")
        if rows.seconds is not None:
            rows.seconds.append(present[1])
        rows.entities.append(entities)


def _entity(task: Task, span: Mapping[str, Any] | None, texts: Sequence[str | None]) -> Entity:
    if span is None or any(span[name] is None for name in _SPAN_FIELDS):
        raise _Bad("null stands among its spans; leave it out")
    column, label, start, end = span.get("column"), span["label"], span["start"], span["end"]
    if column is None:
        column = task.text[0]
    if column not in task.text:
        raise _Bad(f"a span is in column {column!r}; text columns of the task: {_listed(task.text)}")
    if label not in task.labels:
        raise _Bad(f"type {label!r} cannot be used; types: {_listed(task.labels)}")
    side = task.text.index(column)
    length = len(texts[side] or "")
    if not 0 <= start < end <= length:
        raise _Bad(
            f"the span from {start} to {end} is not inside {column!r}, which has {length} characters; `end` is the "
            "character after the last one"
        )
    return side, start, end, task.labels.index(label)


def _check_apart(entities: Sequence[Entity], texts: Sequence[str | None]) -> None:
    for (side, start, end, _), (other, begin, stop, _) in pairwise(sorted(entities)):
        if side == other and begin < end:
            text = texts[side] or ""
            raise _Bad(
                f"the spans {text[start:end]!r} ({start} to {end}) and {text[begin:stop]!r} ({begin} to {stop}) "
                "overlap; keep one of them"
            )


def _listed(values: Sequence[str]) -> str:
    return ", ".join(map(repr, values))
