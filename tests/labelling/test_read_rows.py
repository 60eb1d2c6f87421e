"""Reading units: every text type, every bad row its reason, files that change or break on the way."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtop_batch.corpus.files import SourceChanged, UnreadableSource
from mtop_batch.labelling.plan.planner import plan_labels
from mtop_batch.labelling.run import read_rows
from mtop_batch.labelling.run.read_rows import TextBatch, read_unit
from tests.labelling.support import articles, definition, small_slices, write_corpus

WANTED = definition({"a": "1"})
Row = tuple[str | None, str | None, str | None]


def read_all(root: Path, columns: Any, slice_rows: int = 1000, **options: Any) -> tuple[list[Any], list[Row]]:
    """Ids, and (text, second text, error) of every row of a corpus of one file."""
    write_corpus(root / "c", {"x.parquet": columns}, **options)
    with small_slices(slice_rows):
        plan = plan_labels(str(root / "c"), str(root / "l"), WANTED)
    batches = [batch for unit in plan.units for batch in read_unit(plan.corpus, unit, "id", batch_rows=3)]
    return [value for batch in batches for value in batch.ids.to_pylist()], rows_of(batches)


def rows_of(batches: Sequence[TextBatch]) -> list[Row]:
    return [
        row
        for batch in batches
        for row in zip(batch.texts, batch.seconds or [None] * len(batch), batch.errors, strict=True)
    ]


def test_rows_come_in_order_with_both_texts(tmp_path: Path) -> None:
    ids, rows = read_all(tmp_path, articles(8))
    assert ids == [f"a{n}" for n in range(8)]
    assert rows == [(f"title {n}", f"body {n}", None) for n in range(8)]


def test_null_and_blank_texts_are_left_out_of_a_pair_or_become_errors(tmp_path: Path) -> None:
    titles = ["t", None, " ", None, "", "t", "t"]
    bodies = ["b", "b", "b", None, None, " \n\t\u3000", None]
    _, rows = read_all(tmp_path, {"id": range(7), "title": titles, "body": bodies})
    assert rows == [
        ("t", "b", None),
        ("b", None, None),
        ("b", None, None),
        (None, None, "text is null"),
        (None, None, "text is empty"),
        ("t", None, None),
        ("t", None, None),
    ]


@pytest.mark.parametrize(
    "column_type",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.binary(),
        pa.large_binary(),
        pa.binary_view(),
        pa.dictionary(pa.int32(), pa.string()),
        pa.dictionary(pa.int8(), pa.large_string()),
    ],
    ids=str,
)
def test_every_type_of_text_is_read(tmp_path: Path, column_type: pa.DataType) -> None:
    values = ["ü😀", None, "  ", "x" * 70]
    value_type = column_type.value_type if pa.types.is_dictionary(column_type) else column_type
    is_text = "string" in str(value_type)
    column = pa.array([v if v is None or is_text else v.encode() for v in values], value_type)
    column = column.dictionary_encode().cast(column_type) if pa.types.is_dictionary(column_type) else column
    _, rows = read_all(tmp_path, {"id": range(4), "body": column})
    assert rows == [
        ("ü😀", None, None),
        (None, None, "text is null"),
        (None, None, "text is empty"),
        ("x" * 70, None, None),
    ]


@pytest.mark.parametrize(
    ("column", "found"),
    [
        (pa.array([1, None]), "int64"),
        (pa.array([["a"], None]), "list<element: string>"),
        (pa.array([{"a": "b"}, None]), "struct<a: string>"),
    ],
    ids=["int", "list", "struct"],
)
def test_a_value_of_another_type_is_an_error_of_its_row(tmp_path: Path, column: pa.Array, found: str) -> None:
    _, rows = read_all(tmp_path, {"id": [1, 2], "title": ["t", "t"], "body": column})
    assert rows == [(None, None, f"text column 'body' has type {found}, not string"), ("t", None, None)]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([float("nan"), None]),
        pa.nulls(2, pa.bool_()),
        pa.nulls(2, pa.timestamp("us")),
        pa.nulls(2, pa.list_(pa.string())),
        pa.nulls(2, pa.uuid()),
        pa.array([float("nan"), None]).dictionary_encode(),
    ],
    ids=lambda column: str(column.type),
)
def test_a_column_without_values_is_null_whatever_its_type(tmp_path: Path, column: pa.Array) -> None:
    _, rows = read_all(tmp_path, {"id": [1, 2], "title": ["t", None], "body": column})
    assert rows == [("t", None, None), (None, None, "text is null")]


def test_a_column_of_nulls_is_null(tmp_path: Path) -> None:
    _, rows = read_all(tmp_path, {"id": [1, 2], "title": ["t", None], "body": pa.nulls(2)})
    assert rows == [("t", None, None), (None, None, "text is null")]


def test_invalid_utf8_is_an_error_of_its_row_only(tmp_path: Path) -> None:
    raw = pa.array([b"fine", b"\xff\xfe", b"ok \xf0\x9f\x98\x80", None])
    as_string = pa.Array.from_buffers(pa.string(), 4, raw.buffers())
    for column in (raw, as_string):
        _, rows = read_all(tmp_path, {"id": range(4), "body": column})
        assert [text for text, _, _ in rows] == ["fine", None, "ok 😀", None]
        assert [error for _, _, error in rows] == [None, "text column 'body' is not valid UTF-8", None, "text is null"]


def test_long_texts_are_cut_by_code_points(tmp_path: Path) -> None:
    write_corpus(tmp_path / "c", {"x.parquet": {"id": [1, 2], "body": ["😀" * 2_500_000, " " * 9 + "end"]}})
    plan = plan_labels(str(tmp_path / "c"), str(tmp_path / "l"), WANTED)
    (batch,) = read_unit(plan.corpus, plan.units[0], "id", max_chars=10)
    assert batch.texts == ["😀" * 10, " " * 9 + "e"]


def test_batches_have_fewer_rows_where_texts_are_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_rows, "_BATCH_BYTES", 64_000)
    write_corpus(tmp_path / "c", {"x.parquet": {"id": range(20), "body": [f"{n:010d}" * 1000 for n in range(20)]}})
    plan = plan_labels(str(tmp_path / "c"), str(tmp_path / "l"), WANTED)
    sizes = [len(batch) for batch in read_unit(plan.corpus, plan.units[0], "id")]
    assert sum(sizes) == 20
    assert 1 < max(sizes) <= 6


@pytest.mark.parametrize("slice_rows", [1, 3, 5, 7, 100])
@pytest.mark.parametrize("row_group_size", [1, 4, 50])
def test_slices_of_any_size_read_every_row_once(tmp_path: Path, slice_rows: int, row_group_size: int) -> None:
    ids, rows = read_all(tmp_path, articles(23), slice_rows=slice_rows, row_group_size=row_group_size)
    assert ids == [f"a{n}" for n in range(23)]
    assert [text for text, _, _ in rows] == [f"title {n}" for n in range(23)]


@pytest.mark.parametrize(
    "ids",
    [
        pa.array([1, None, 1], pa.uint8()),
        pa.array([b"\xff", b"", None]),
        pa.array([uuid.UUID(int=n).bytes for n in range(3)], pa.uuid()),
        pa.array(["a", "a", None]).dictionary_encode(),
        pa.array(["a", "b", "c"], pa.string_view()),
        pa.array([{"a": 1}, None, {"a": 2}]),
    ],
    ids=lambda array: str(array.type),
)
def test_ids_of_any_type_come_unchanged(tmp_path: Path, ids: pa.Array) -> None:
    found, _ = read_all(tmp_path, pa.table({"id": ids, "body": ["x", "y", "z"]}))
    assert found == ids.to_pylist()


@pytest.fixture
def planned(tmp_path: Path) -> tuple[Path, Any]:
    """A corpus of one file, and its unit."""
    write_corpus(tmp_path / "c", {"x.parquet": articles(300)}, row_group_size=100)
    return tmp_path / "c", plan_labels(str(tmp_path / "c"), str(tmp_path / "l"), WANTED).units[0]


def test_a_file_that_changed_or_vanished_since_the_plan_is_not_read(planned: tuple[Path, Any]) -> None:
    root, unit = planned
    write_corpus(root, {"x.parquet": articles(300, start=1)}, row_group_size=100)
    with pytest.raises(SourceChanged, match="changed while the run was going on"):
        list(read_unit(str(root), unit, "id"))
    (root / "x.parquet").unlink()
    with pytest.raises(SourceChanged, match="vanished while the run was going on"):
        list(read_unit(str(root), unit, "id"))


def test_a_file_that_changes_while_it_is_read_is_found_out_at_the_end(planned: tuple[Path, Any]) -> None:
    root, unit = planned
    batches = read_unit(str(root), unit, "id", batch_rows=10)
    next(batches)
    os.utime(root / "x.parquet", ns=(1, 1))
    with pytest.raises(SourceChanged):
        list(batches)


def test_damaged_pages_behind_a_sound_footer_are_found_while_reading(tmp_path: Path) -> None:
    write_corpus(tmp_path, {"x.parquet": articles(3000)}, compression="zstd", use_dictionary=False)
    content = bytearray((tmp_path / "x.parquet").read_bytes())
    content[100 : len(content) // 3] = b"?" * (len(content) // 3 - 100)
    (tmp_path / "x.parquet").write_bytes(content)
    unit = plan_labels(str(tmp_path), str(tmp_path.parent / "labels"), WANTED).units[0]
    with pytest.raises(UnreadableSource, match="not readable as Parquet"):
        list(read_unit(str(tmp_path), unit, "id"))


@contextmanager
def arrow_memory() -> Iterator[pa.MemoryPool]:
    """A memory pool that Arrow uses meanwhile, and nobody else does; it knows its peak."""
    pool, before = pa.system_memory_pool(), pa.default_memory_pool()
    pa.set_memory_pool(pool)
    try:
        yield pool
    finally:
        pa.set_memory_pool(before)


LONG = "bank " * 50_000
AS_DICTIONARY = {"store_schema": False, "compression": "zstd"}
BY_PREFIX = {"use_dictionary": False, "column_encoding": {"body": "DELTA_BYTE_ARRAY"}, "compression": "zstd"}


def few_texts(dictionary: pa.Array) -> pa.Array:
    """9,000 rows of two texts and nulls, without 2 GB of texts."""
    return pa.DictionaryArray.from_arrays(pa.array([None, 0, 1] * 3_000, pa.int32()), dictionary)


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (lambda: few_texts(pa.array([LONG, "short"])), AS_DICTIONARY),
        (lambda: few_texts(pa.array([LONG.encode(), b"short"])), AS_DICTIONARY),
        (lambda: few_texts(pa.array([LONG, "short"])), {"compression": "zstd"}),
        (lambda: pa.array([None, LONG, "short"] * 500), BY_PREFIX),
        (lambda: pa.array([None, LONG, "short"] * 500), {"compression": "zstd", "row_group_size": 100}),
    ],
    ids=["dictionary", "dictionary of bytes", "type dictionary", "prefixes", "row groups"],
)
def test_a_small_file_that_decodes_to_much_is_read_in_little_memory(
    tmp_path: Path, make: Callable[[], pa.Array], options: dict[str, Any]
) -> None:
    body = make()
    write_corpus(tmp_path / "c", {"x.parquet": pa.table({"id": range(len(body)), "body": body})}, **options)
    assert (tmp_path / "c" / "x.parquet").stat().st_size < 100_000
    (unit,) = plan_labels(str(tmp_path / "c"), str(tmp_path / "l"), WANTED).units
    texts: list[str | None] = []
    with arrow_memory() as pool:
        for batch in read_unit(str(tmp_path / "c"), unit, "id", max_chars=30_000):
            assert sum(len(text or "") for text in batch.texts) < 40_000_000
            texts += [text and text[-10_000:] for text in batch.texts]
        assert pool.max_memory() < 150e6
    assert texts == [None, LONG[20_000:30_000], "short"] * (len(body) // 3)


@pytest.mark.parametrize("as_type", [pa.string(), pa.large_binary()], ids=str)
def test_ids_that_take_gigabytes_make_their_file_unreadable(tmp_path: Path, as_type: pa.DataType) -> None:
    ids = few_texts(pa.array([LONG, "short"]).cast(as_type))
    write_corpus(tmp_path / "c", {"x.parquet": pa.table({"id": ids, "body": ["x"] * len(ids)})}, **AS_DICTIONARY)
    (unit,) = plan_labels(str(tmp_path / "c"), str(tmp_path / "l"), WANTED).units
    with (
        arrow_memory() as pool,
        pytest.raises(UnreadableSource, match=r"the ids of 9,000 rows take more than 64 MB; name another --id-column"),
    ):
        list(read_unit(str(tmp_path / "c"), unit, "id"))
    assert pool.max_memory() < 150e6


def test_columns_that_are_read_in_different_steps_stay_side_by_side(tmp_path: Path) -> None:
    titles = pa.DictionaryArray.from_arrays(pa.array([n % 2 for n in range(5_000)], pa.int32()), pa.array(["t", LONG]))
    bodies = [f"{n} " + "b" * (n % 300) for n in range(5_000)]
    columns = pa.table({"id": range(5_000), "title": titles, "body": bodies})
    write_corpus(tmp_path / "c", {"x.parquet": columns}, **AS_DICTIONARY, row_group_size=2_100)
    with small_slices(1_800):
        plan = plan_labels(str(tmp_path / "c"), str(tmp_path / "l"), WANTED)
    batches = [batch for unit in plan.units for batch in read_unit(plan.corpus, unit, "id", max_chars=40)]
    assert [value for batch in batches for value in batch.ids.to_pylist()] == list(range(5_000))
    titles_cut = [["t", LONG[:40]][n % 2] for n in range(5_000)]
    assert rows_of(batches) == [(titles_cut[n], bodies[n][:40], None) for n in range(5_000)]


texts = st.none() | st.sampled_from(["", " ", "\n"]) | st.text(max_size=5)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(texts, texts), max_size=12), st.integers(1, 5))
def test_every_row_has_either_a_text_or_a_reason(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str | None, str | None]], slice_rows: int
) -> None:
    schema = pa.schema([("id", pa.int64()), ("title", pa.string()), ("body", pa.string())])
    columns = [list(range(len(pairs))), [title for title, _ in pairs], [body for _, body in pairs]]
    table = pa.table(dict(zip(schema.names, columns, strict=True)), schema=schema)
    ids, rows = read_all(tmp_path_factory.mktemp("t"), table, slice_rows=slice_rows)
    assert ids == list(range(len(pairs)))
    for (first, second, error), pair in zip(rows, pairs, strict=True):
        usable = [text for text in pair if text and text.strip()]
        assert [text for text in (first, second) if text is not None] == usable
        assert (error is None) == bool(usable)
