"""The records in the table's files: read back as written, and refused when they cannot be true."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mtop_batch.corpus.files import SourceFile
from mtop_batch.errors import LabelTableError
from mtop_batch.table.columns import OutputKind
from mtop_batch.table.footer import LabelFooter, PublishedFooter, PublishedTask
from mtop_batch.table.names import label_path

X = SourceFile("d=1/x ü.parquet", 70, "etag")
LABEL = LabelFooter(
    X,
    9,
    (3, 8),
    {"a": "f"},
    {"a": OutputKind("classification")},
    {"a": "news"},
    "models/news",
    ("title", "body"),
    ("title",),
    "id",
    "r",
)
TASK = PublishedTask("f", "classification", "news", ("title", "body"), "id", "news-1")
PUBLISHED = PublishedFooter(X, 9, {"a": TASK}, (("news-1", label_path(X, (0, 9))),), "r")


def changed(data: bytes, *path: str, value: Any) -> bytes:
    """The footer's JSON with one value replaced, or added."""
    content = place = json.loads(data)
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return json.dumps(content).encode()


def test_footers_are_read_back_as_written() -> None:
    assert LabelFooter.decode(LABEL.encode(), 5) == LABEL
    assert PublishedFooter.decode(PUBLISHED.encode(), 9) == PUBLISHED
    assert LABEL.encode() == LABEL.encode()


def test_a_published_footer_says_by_which_definition_each_task_is() -> None:
    assert LABEL.view.matches(PUBLISHED.view("a"), "a")
    assert not LABEL.view.matches(PUBLISHED.view("b"), "b")
    assert PUBLISHED.has_rows
    assert not PublishedFooter(X, 0, {}, (), "r").has_rows


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("rows",), [-1, 4], "rows.0: Input should be greater than or equal to 0"),
        (("rows",), [8, 3], "says rows 8 to 3"),
        (("rows",), [5, 10], "says rows 5 to 10 of 9"),
        (("rows",), [0, 5, 6], "rows"),
        (("rows",), "all", "rows"),
        (("source", "num_rows"), 400_000_000_000_000_000, "source.num_rows"),
        (("source", "size"), -7, "source.size"),
        (("source",), None, "source"),
        (("tasks", "a"), {}, "tasks.a"),
        (("tasks",), ["a"], "tasks"),
        (("more",), 1, "more"),
    ],
)
def test_a_label_footer_that_cannot_be_true_is_refused(path: tuple[str, ...], value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LabelFooter.decode(changed(LABEL.encode(), *path, value=value), 5)


def test_counts_must_be_those_of_the_file() -> None:
    with pytest.raises(ValueError, match="it says rows 3 to 8 of 9, and has 6"):
        LabelFooter.decode(LABEL.encode(), 6)
    with pytest.raises(ValueError, match="it says 9 rows, and has 8"):
        PublishedFooter.decode(PUBLISHED.encode(), 8)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b"null", b'{"format": "2"}', b'{"format": 2}', b"\xff"])
def test_what_is_no_footer_is_a_value_error(data: bytes) -> None:
    for footer in (LabelFooter, PublishedFooter):
        with pytest.raises(ValueError):
            footer.decode(data, 0)


@pytest.mark.parametrize("number", [1, 3, 99])
def test_another_format_is_not_damage_but_another_version(number: int) -> None:
    for footer, data in ((LabelFooter, LABEL.encode()), (PublishedFooter, PUBLISHED.encode())):
        with pytest.raises(LabelTableError, match=rf"have format {number}, this version reads 2; use the version that"):
            footer.decode(changed(data, "format", value=number), 5)
