"""The published table: a pure function of the store, replaced in one step, the same for every reader."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtop_batch import storage
from mtop_batch.corpus.files import SourceFile
from mtop_batch.errors import LabelTableError
from mtop_batch.labelling.plan.planner import plan_labels
from mtop_batch.table.columns import OutputKind
from mtop_batch.table.definition import Definition
from mtop_batch.table.names import published_path
from mtop_batch.table.published import TableSchema, common_id_type, read_table_schema
from mtop_batch.table.publisher import Published, publish
from mtop_batch.table.read import read_labels
from tests.labelling.support import (
    articles,
    definition,
    expected_label,
    label_corpus,
    label_unit,
    run_plan,
    small_slices,
    write_corpus,
)

AB = definition({"a": "1", "b": "1"})
ABD = definition({"a": "1", "b": "1", "d": "1"})
X, Y = "d=1/x.parquet", "d=2/y.parquet"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Two source files with articles 0 to 4 and 5 to 8."""
    write_corpus(tmp_path / "corpus", {X: articles(5), Y: articles(4, start=5)})
    return tmp_path / "corpus"


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    return tmp_path / "labels"


def sources(corpus: Path) -> list[SourceFile]:
    return [SourceFile(info.path, info.size, info.version) for info in storage.list_files(str(corpus))]


def compute(corpus: Path, labels: Path, wanted: Definition) -> None:
    """Fill the store, and publish nothing."""
    plan = plan_labels(str(corpus), str(labels), wanted)
    for unit in plan.units:
        label_unit(plan.corpus, plan.labels, wanted, unit, "computed")


def republish(corpus: Path, labels: Path, wanted: Definition, **options: Any) -> Published:
    return publish(str(labels), wanted.view, wanted.kinds, sources(corpus), "published", **options)


def answers(task: str, fingerprint: str, numbers: Sequence[int]) -> list[str]:
    """What the task should say of these articles."""
    return [expected_label(task, fingerprint, f"title {n}", f"body {n}")[0] for n in numbers]


def check_columns(labels: Path, *names: str) -> None:
    """Every published file has these columns, and so says the table."""
    schemas = {path: pq.read_schema(path).remove_metadata() for path in (labels / "current").rglob("*.parquet")}
    table = read_table_schema(str(labels))
    assert table is not None
    assert table.arrow.names == list(names)
    assert {path: schema.equals(table.arrow) for path, schema in schemas.items()} == dict.fromkeys(schemas, True)


def test_each_article_is_published_once_in_the_order_of_its_source(corpus: Path, labels: Path) -> None:
    with small_slices(2):
        compute(corpus, labels, AB)
    done = republish(corpus, labels, AB)
    assert (done.files, done.rows) == ({X: 5, Y: 4}, 9)
    check_columns(labels, "id", "a_label", "a_score", "b_label", "b_score", "error")
    table = read_labels(str(labels))
    assert table["id"].to_pylist() == [f"a{n}" for n in range(9)]
    for task in "ab":
        assert table[f"{task}_label"].to_pylist() == answers(task, "1", range(9))


def test_publishing_again_changes_nothing(corpus: Path, labels: Path) -> None:
    label_corpus(corpus, labels, AB)
    before = {path: path.stat().st_mtime_ns for path in labels.rglob("*") if path.is_file()}
    done = republish(corpus, labels, AB)
    assert (done.files, sorted(done.current)) == ({}, [X, Y])
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_task_that_enters_by_a_run_on_one_partition_is_null_elsewhere(corpus: Path, labels: Path) -> None:
    label_corpus(corpus, labels, AB)
    label_corpus(corpus, labels, ABD, ["d=1"])
    check_columns(labels, "id", "a_label", "a_score", "b_label", "b_score", "d_label", "d_score", "error")
    table = read_labels(str(labels))
    assert table["d_label"].to_pylist() == [*answers("d", "1", range(5)), None, None, None, None]
    assert table["a_label"].to_pylist() == answers("a", "1", range(9))


def test_a_source_that_lacks_labels_stays_what_it_was_but_gets_the_columns(corpus: Path, labels: Path) -> None:
    label_corpus(corpus, labels, AB)
    plan = plan_labels(str(corpus), str(labels), ABD)
    run_plan(plan, ABD, plan.units[:1])
    check_columns(labels, "id", "a_label", "a_score", "b_label", "b_score", "d_label", "d_score", "error")
    table = read_labels(str(labels))
    assert table["d_label"].null_count == 4
    assert table["a_label"].null_count == 0
    done = republish(corpus, labels, ABD)
    assert (done.incomplete, done.current) == ([Y], [X])


def test_going_back_to_an_older_definition_needs_no_computing(corpus: Path, labels: Path) -> None:
    old, new = definition({"a": "old"}), definition({"a": "new"}, bundle_name="news-2")
    for wanted in (old, new):
        label_corpus(corpus, labels, wanted)
    done = republish(corpus, labels, old)
    assert sorted(done.files) == [X, Y]
    rows = read_labels(str(labels), provenance=True)
    assert (set(rows["a_fingerprint"].to_pylist()), set(rows["a_bundle"].to_pylist())) == ({"old"}, {"news"})
    assert rows["a_label"].to_pylist() == answers("a", "old", range(9))


def test_other_tasks_keep_their_labels_when_one_is_published(corpus: Path, labels: Path) -> None:
    label_corpus(corpus, labels, definition({"a": "1", "b": "1"}))
    label_corpus(corpus, labels, definition({"b": "2"}))
    table = read_labels(str(labels))
    assert table["a_label"].to_pylist() == answers("a", "1", range(9))
    assert table["b_label"].to_pylist() == answers("b", "2", range(9))


def test_changed_content_is_replaced_in_one_step_with_all_that_is_wanted(corpus: Path, labels: Path) -> None:
    label_corpus(corpus, labels, ABD)
    write_corpus(corpus, {X: articles(2, start=70)})
    label_corpus(corpus, labels, AB)
    table = read_labels(str(labels))
    assert table["id"].to_pylist()[:2] == ["a70", "a71"]
    assert table["a_label"].to_pylist()[:2] == answers("a", "1", [70, 71])
    assert table["d_label"].to_pylist()[:3] == [None, None, *answers("d", "1", [5])]


def test_a_source_may_be_published_with_what_there_is(corpus: Path, labels: Path) -> None:
    compute(corpus, labels, AB)
    done = republish(corpus, labels, ABD, require_all=False)
    assert sorted(done.files) == sorted(done.incomplete) == [X, Y]
    table = read_labels(str(labels))
    assert (table["d_label"].null_count, table["a_label"].null_count) == (9, 0)


def test_a_damaged_label_file_keeps_its_source_from_being_published(corpus: Path, labels: Path) -> None:
    compute(corpus, labels, AB)
    path = next((labels / "_store").rglob("x.parquet@/*"))
    content = bytearray(path.read_bytes())
    content[4:60] = b"?" * 56  # pages behind a sound footer
    path.write_bytes(content)
    done = republish(corpus, labels, AB)
    assert (list(done.damaged), list(done.files)) == ([X], [Y])
    assert read_labels(str(labels)).num_rows == 4


def once(action: Callable[[], object]) -> Callable[[], None]:
    """A check that does something before the first write: then others have written in between."""
    left = [action]

    def check() -> None:
        if left:
            left.pop()()

    return check


@pytest.mark.parametrize("computed", [True, False], ids=["computed before", "computed meanwhile"])
def test_what_another_publisher_wrote_in_between_is_kept(corpus: Path, labels: Path, computed: bool) -> None:
    wanted, other = definition({"d": "1"}), definition({"e": "1"})
    label_corpus(corpus, labels, AB)
    for each in (wanted, other) if computed else (wanted,):
        compute(corpus, labels, each)
    republish(corpus, labels, wanted, check=once(lambda: label_corpus(corpus, labels, other)))
    table = read_labels(str(labels))
    for task in "abde":
        assert table[f"{task}_label"].to_pylist() == answers(task, "1", range(9))
    assert sorted(republish(corpus, labels, wanted).current) == [X, Y]
    assert sorted(republish(corpus, labels, other).current) == [X, Y]


def test_files_that_another_publisher_adds_in_between_get_the_columns_too(corpus: Path, labels: Path) -> None:
    label_corpus(corpus, labels, AB, ["d=1"])
    compute(corpus, labels, ABD)
    publish_x = [source for source in sources(corpus) if source.path == X]

    def other() -> None:
        republish(corpus, labels, AB)

    publish(str(labels), ABD.view, ABD.kinds, publish_x, "r", check=once(other))
    check_columns(labels, "id", "a_label", "a_score", "b_label", "b_score", "d_label", "d_score", "error")
    assert read_labels(str(labels))["d_label"].null_count == 4


def test_a_damaged_published_file_of_another_partition_stops_nothing(corpus: Path, labels: Path) -> None:
    label_corpus(corpus, labels, AB)
    (labels / "current" / Y).write_bytes(b"")
    compute(corpus, labels, ABD)
    done = publish(str(labels), ABD.view, ABD.kinds, sources(corpus)[:1], "r")
    assert (list(done.files), list(done.damaged)) == ([X], [Y])
    with pytest.raises(LabelTableError, match=r"y\.parquet cannot be read"):
        read_labels(str(labels))


def test_a_file_that_changes_whenever_it_is_written_is_an_error(corpus: Path, labels: Path) -> None:
    label_corpus(corpus, labels, AB)
    compute(corpus, labels, ABD)

    def meddle() -> None:  # called from several threads
        for path in (labels / "current").rglob("*.parquet"):
            copy = f"{path}.{threading.get_ident()}"
            shutil.copy(path, copy)
            shutil.move(copy, path)

    with pytest.raises(LabelTableError, match="changes whenever it is published; find out what else writes"):
        republish(corpus, labels, ABD, check=meddle)
    assert read_labels(str(labels)).num_rows == 9


def test_nothing_is_written_when_the_run_may_not_write_any_more(corpus: Path, labels: Path) -> None:
    compute(corpus, labels, AB)

    def lost() -> None:
        raise LabelTableError("the lease is lost")

    with pytest.raises(LabelTableError, match="the lease is lost"):
        republish(corpus, labels, AB, check=lost)
    assert not (labels / "current").exists()


def test_a_source_that_is_gone_is_removed_by_its_name(corpus: Path, labels: Path) -> None:
    label_corpus(corpus, labels, AB)
    done = publish(str(labels), AB.view, AB.kinds, [], "r", orphans=[Y, "d=3/never-there.parquet"])
    assert (Y in done.removed, read_labels(str(labels))["id"].to_pylist()) == (True, [f"a{n}" for n in range(5)])


def test_published_files_end_in_parquet_whatever_their_sources_do(tmp_path: Path, labels: Path) -> None:
    names = ["a.PARQUET", "a.parquet", "b.pq", "b.pq.parquet", "c d.Parq"]
    write_corpus(tmp_path / "corpus", {name: articles(1, start=n) for n, name in enumerate(names)})
    label_corpus(tmp_path / "corpus", labels, AB)
    found = sorted(path.name for path in (labels / "current").iterdir())
    assert found == sorted(map(published_path, names))
    assert sorted(read_labels(str(labels))["id"].to_pylist()) == [f"a{n}" for n in range(5)]
    assert not plan_labels(str(tmp_path / "corpus"), str(labels), AB).has_work


def ids_of(tmp_path: Path, labels: Path, *columns: pa.Array) -> pa.ChunkedArray:
    """The published ids of a corpus whose files come one after the other."""
    for n, ids in enumerate(columns):
        write_corpus(tmp_path / "corpus", {f"{n}.parquet": pa.table({"id": ids, "body": ["x"] * len(ids)})})
        label_corpus(tmp_path / "corpus", labels, definition({"a": "1"}))
    check_columns(labels, "id", "a_label", "a_score", "error")
    assert not plan_labels(str(tmp_path / "corpus"), str(labels), definition({"a": "1"})).has_work
    return read_labels(str(labels))["id"]


WHOLE, FRACTIONS = pa.array([3.0, None]), pa.array([0.5])
NAN, DECIMALS = float("nan"), ["x", "7", "8.50"]
MOMENT = pa.array([0], pa.timestamp("us"))
ID_CASES = {
    "integers": ([pa.array([1], pa.int8()), pa.array([2], pa.int32())], pa.int64(), [1, 2]),
    "whole": ([pa.array([1]), WHOLE], pa.int64(), [1, 3, None]),
    "whole first": ([WHOLE, pa.array([1])], pa.int64(), [3, None, 1]),
    "fractions": ([pa.array([1]), WHOLE, FRACTIONS], pa.string(), ["1", "3", None, "0.5"]),
    "floats": ([FRACTIONS, pa.array([2.0], pa.float32())], pa.float64(), [0.5, 2.0]),
    "strings": ([pa.array([1]), pa.array(["x"])], pa.string(), ["1", "x"]),
    "strings first": ([pa.array(["x"]), pa.array([1])], pa.string(), ["x", "1"]),
    "dictionary": ([pa.array(["x"]).dictionary_encode(), pa.array(["y"])], pa.string(), ["x", "y"]),
    "too large": ([pa.array([1]), pa.array([2**64 - 1], pa.uint64())], pa.string(), ["1", str(2**64 - 1)]),
    "nulls": ([pa.array([1]), pa.nulls(2)], pa.int64(), [1, None, None]),
    "nulls first": ([pa.nulls(2), pa.array([1])], pa.int64(), [None, None, 1]),
    "nothing but nulls": ([pa.nulls(2)], pa.null(), [None, None]),
    "gaps": ([pa.array([7]), pa.array([7.0, NAN, None]), pa.array(["x"])], pa.string(), ["7", "7", None, None, "x"]),
    "gaps in whole numbers": ([pa.array([7]), pa.array([8.0, NAN])], pa.int64(), [7, 8, None]),
    "decimals": ([pa.array([7]), pa.array([Decimal("8.00"), None])], pa.int64(), [7, 8, None]),
    "decimals and strings": ([pa.array(["x"]), pa.array([Decimal("7.00"), Decimal("8.50")])], pa.string(), DECIMALS),
    "dictionary of integers": ([pa.array([1]), pa.array([2]).dictionary_encode()], pa.int64(), [1, 2]),
    "nulls of strings": ([pa.array([1]), pa.nulls(2, pa.string())], pa.int64(), [1, None, None]),
    "nulls of booleans first": ([pa.nulls(1, pa.bool_()), pa.array([1])], pa.int64(), [None, 1]),
    "NaN beside times": ([MOMENT, pa.array([NAN, NAN])], MOMENT.type, [*MOMENT.to_pylist(), None, None]),
    "times of two units": ([MOMENT.cast("timestamp[ms]"), MOMENT], MOMENT.type, MOMENT.to_pylist() * 2),
    "times of two units, finer first": ([MOMENT, MOMENT.cast("timestamp[s]")], MOMENT.type, MOMENT.to_pylist() * 2),
    "bytes that are no text": ([pa.array(["x"]), pa.array([b"\xff\x01"])], pa.string(), ["x", "ff01"]),
    "no rows": ([pa.array([], pa.string()), pa.array([1])], pa.int64(), [1]),
}


@pytest.mark.parametrize("case", ID_CASES)
def test_ids_of_all_files_get_one_type(tmp_path: Path, labels: Path, case: str) -> None:
    columns, id_type, expected = ID_CASES[case]
    ids = ids_of(tmp_path, labels, *columns)
    assert (ids.type, ids.to_pylist()) == (id_type, expected)


def test_ids_that_are_bytes_are_published_too(tmp_path: Path, labels: Path) -> None:
    ids = ids_of(tmp_path, labels, pa.array(["x"]), pa.array([b"\xff", None]))
    assert (ids.type, ids[0].as_py(), ids[2].as_py()) == (pa.string(), "x", None)


def test_the_common_type_of_ids_does_not_depend_on_their_order() -> None:
    types = [pa.null(), pa.int8(), pa.int64(), pa.uint64(), pa.float32(), pa.float64(), pa.string(), pa.binary()]
    for first in types:
        for second in types:
            assert common_id_type(first, second) == common_id_type(second, first)


def test_the_tables_columns_are_read_back_as_written(labels: Path) -> None:
    schema = TableSchema(
        {"a": OutputKind("classification"), "r": OutputKind("regression")}, pa.dictionary(pa.int32(), pa.string())
    )
    assert TableSchema.decode(schema.encode(), "x") == schema
    assert schema.with_tasks({"_vector": OutputKind("vector")}) == schema
    assert read_table_schema(str(labels)) is None


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[]", b'{"format": 9}', b'{"format": 1, "tasks": {}, "id_type": "eA=="}']
)
def test_a_damaged_note_of_the_columns_says_what_to_do(labels: Path, data: bytes) -> None:
    storage.write_bytes(str(labels / "_table.json"), data)
    with pytest.raises(LabelTableError, match=r"_table\.json cannot be read: .*; remove it, and the next `mtop label`"):
        read_table_schema(str(labels))


def test_the_note_of_the_columns_can_be_made_anew(corpus: Path, labels: Path) -> None:
    label_corpus(corpus, labels, AB)
    label_corpus(corpus, labels, definition({"d": "1"}), ["d=1"])
    before = read_labels(str(labels))
    (labels / "_table.json").unlink()
    label_corpus(corpus, labels, AB)
    label_corpus(corpus, labels, definition({"d": "1"}), ["d=1"])
    assert read_labels(str(labels)).equals(before)
