"""Parquet files with a column that Arrow refuses: whoever does not want that column reads the others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtop_batch.data.sources import read_columns
from mtop_batch.errors import DataError
from mtop_batch.labelling.plan.planner import plan_labels
from mtop_batch.storage import parquet
from mtop_batch.storage.parquet import open_parquet
from mtop_batch.table.read import read_labels
from tests.labelling.support import articles, definition, run_plan

AB = definition({"a": "1"})
REPETITION, NAME, CONVERTED_TYPE = 3, 4, 6
I32, OPTIONAL, MAP = 5, 1, 1


def optional_keys(elements: list[parquet.Struct]) -> None:
    (key,) = [element for element in elements if element[NAME][1] == b"key"]
    key[REPETITION] = (I32, OPTIONAL)


def a_struct_that_says_map(elements: list[parquet.Struct]) -> None:
    (struct,) = [element for element in elements if element[NAME][1] == b"where"]
    struct[CONVERTED_TYPE] = (I32, MAP)


DAMAGES = {"Map keys must be annotated": optional_keys, "map": a_struct_that_says_map}


def write(path: Path, damage: Callable[[list[parquet.Struct]], None]) -> None:
    """Articles of several row groups, with a map and a struct between the columns that are wanted."""
    columns: dict[str, Any] = articles(5)
    extra = {
        "topics": pa.array([[("k", 1)]] * 5, pa.map_(pa.string(), pa.int64())),
        "where": pa.array([{"place": "here", "n": [1]}] * 5),
    }
    table = pa.table({"id": columns["id"], **extra, "title": columns["title"], "body": columns["body"]})
    sorting = [pq.SortingColumn(0)]
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=2, sorting_columns=sorting, write_page_checksum=True)
    data = sink.getvalue().to_pybytes()
    footer = parquet._read_footer(pa.BufferReader(data))
    assert footer is not None
    damage(footer[parquet._SCHEMA][1][1])
    encoded = parquet._struct_bytes(footer)
    length = int.from_bytes(data[-8:-4], "little")
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data[: -8 - length] + encoded + len(encoded).to_bytes(4, "little") + b"PAR1")


@pytest.mark.parametrize("message", DAMAGES)
def test_columns_that_nobody_wants_do_not_keep_a_file_from_being_read(tmp_path: Path, message: str) -> None:
    corpus, labels = tmp_path / "corpus", tmp_path / "labels"
    write(corpus / "a.parquet", DAMAGES[message])
    with pytest.raises((pa.ArrowInvalid, pa.ArrowNotImplementedError), match=f"(?i){message}"):
        pq.read_metadata(corpus / "a.parquet")
    plan = plan_labels(str(corpus), str(labels), AB)
    assert plan.unreadable == ()
    run_plan(plan, AB)
    assert read_labels(str(labels))["id"].to_pylist() == articles(5)["id"]
    (part,) = read_columns(str(corpus), ["title"])
    assert part.table["title"].to_pylist() == articles(5)["title"]


def test_a_wanted_column_that_cannot_be_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", optional_keys)
    with pytest.raises(DataError, match="Map keys must be annotated"):
        read_columns(str(tmp_path), ["title", "topics"])
    with pytest.raises(DataError, match="no column 'titel'; did you mean 'title'"):
        read_columns(str(tmp_path), ["titel"])


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + b"\xff" * 40 + b"\x28\x00\x00\x00PAR1", b"x" * 30])
def test_what_is_not_parquet_stays_what_it_is(content: bytes) -> None:
    with pytest.raises((pa.ArrowException, OSError)):
        open_parquet(pa.BufferReader(content), lambda names: names)


def test_a_footer_is_written_again_as_it_was_read() -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(
        pa.table({"a" * 300: range(1000), "b": [0.5] * 1000, "c": [[{"x": b"y"}]] * 1000}), sink, row_group_size=30
    )
    data = sink.getvalue().to_pybytes()
    length = int.from_bytes(data[-8:-4], "little")
    footer = parquet._read_footer(pa.BufferReader(data))
    assert footer is not None
    assert parquet._struct_bytes(footer) == data[-8 - length : -8]
