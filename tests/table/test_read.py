"""Reading the published table from Python: partitions, provenance, streams, and an error instead of fewer rows."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtop_batch.engine.publish import publish_table, vacuum_table
from mtop_batch.errors import LabelTableError, NotInTable, TaskError
from mtop_batch.labelling.plan.planner import plan_labels
from mtop_batch.table.read import iter_labels, read_labels
from mtop_batch.table.stats import table_stats
from tests.labelling.support import (
    articles,
    definition,
    expected_label,
    label_corpus,
    run_plan,
    small_slices,
    write_corpus,
)

AB = definition({"a": "1", "b": "1"})
FILES = {
    "lang=de/date=2026-11-20/x.parquet": articles(5),
    "lang=en/date=2026-11-20/x y.parquet": articles(4, start=5),
    "lang=en/date=__HIVE_DEFAULT_PARTITION__/z.parquet": articles(3, start=9),
}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    write_corpus(tmp_path / "corpus", FILES, row_group_size=2)
    return tmp_path / "corpus"


@pytest.fixture
def labels(tmp_path: Path) -> str:
    return str(tmp_path / "labels")


def test_rows_come_in_order_with_partitions_and_every_task(corpus: Path, labels: str) -> None:
    label_corpus(corpus, Path(labels), AB)
    label_corpus(corpus, Path(labels), definition({"r": "1"}))
    table = read_labels(labels)
    columns = ["id", "lang", "date", "a_label", "a_score", "b_label", "b_score", "r_score", "error"]
    assert table.column_names == columns
    assert table["id"].to_pylist() == [f"a{n}" for n in range(12)]
    assert table["date"].to_pylist() == ["2026-11-20"] * 9 + [None] * 3
    for n, row in enumerate(table.to_pylist()):
        expected = {task: expected_label(task, "1", f"title {n}", f"body {n}") for task in "abr"}
        assert (row["a_label"], row["a_score"], row["b_label"], row["b_score"]) == (*expected["a"], *expected["b"])
        assert row["r_score"] == expected["r"][1]


def test_tasks_and_partitions_can_be_chosen(corpus: Path, labels: str) -> None:
    label_corpus(corpus, Path(labels), AB)
    table = read_labels(labels, ["b"], partition={"lang": "en", "date": "2026-11-20"})
    assert table.column_names == ["id", "lang", "date", "b_label", "b_score", "error"]
    assert table["id"].to_pylist() == [f"a{n}" for n in range(5, 9)]


def test_a_partition_that_no_file_has_is_an_error_unless_it_may_be_empty(corpus: Path, labels: str) -> None:
    label_corpus(corpus, Path(labels), AB)
    for read in (read_labels, iter_labels, table_stats):
        with pytest.raises(LabelTableError, match=r"no file of lang=eng; the closest are lang=en"):
            read(labels, ["b"], partition={"lang": "eng"})
        with pytest.raises(
            LabelTableError, match=r"no file of lang=en date=2026-12-20; the closest are date=2026-11-20"
        ):
            read(labels, ["b"], partition={"lang": "en", "date": "2026-12-20"})
    nothing = read_labels(labels, ["b"], partition={"lang": "xx"}, allow_empty=True)
    assert (nothing.num_rows, nothing.schema) == (0, read_labels(labels, ["b"]).schema)
    assert table_stats(labels, partition={"lang": "xx"}, allow_empty=True).articles == 0


def test_an_unknown_task_or_partition_key_is_an_error_that_names_the_known_ones(corpus: Path, labels: str) -> None:
    label_corpus(corpus, Path(labels), AB)
    for read in (read_labels, iter_labels):
        with pytest.raises(TaskError, match="there is no task 'c'"):
            read(labels, ["c"])
        with pytest.raises(LabelTableError, match="has no partition key 'day'; partition keys: lang, date"):
            read(labels, partition={"day": "1"})


def test_a_table_without_partitions_says_so(tmp_path: Path, labels: str) -> None:
    write_corpus(tmp_path / "flat", {"x.parquet": articles(2)})
    label_corpus(tmp_path / "flat", Path(labels), AB)
    with pytest.raises(LabelTableError, match="no partition key 'day'; it is not partitioned"):
        read_labels(labels, partition={"day": "1"})


def test_provenance_says_what_computed_each_label(corpus: Path, labels: str) -> None:
    old, new = definition({"a": "old", "b": "1"}), definition({"a": "new", "b": "1"}, bundle_name="news-2")
    label_corpus(corpus, Path(labels), old)
    plan = plan_labels(str(corpus), labels, new)
    run_plan(plan, new, plan.units[:1])
    table = read_labels(labels, provenance=True)
    assert table.column_names[3:7] == ["a_label", "a_score", "a_bundle", "a_fingerprint"]
    assert table["a_fingerprint"].to_pylist() == ["new"] * 5 + ["old"] * 7
    assert table["a_bundle"].to_pylist() == ["news-2"] * 5 + ["news"] * 7
    assert table["b_bundle"].to_pylist() == ["news"] * 12


def test_a_task_without_labels_of_a_file_has_no_provenance_there(corpus: Path, labels: str) -> None:
    label_corpus(corpus, Path(labels), AB)
    label_corpus(corpus, Path(labels), definition({"d": "1"}), ["lang=de"])
    table = read_labels(labels, ["d"], provenance=True)
    assert table["d_fingerprint"].to_pylist() == ["1"] * 5 + [None] * 7
    assert table["d_bundle"].null_count == 7


def test_rows_with_null_and_repeated_ids_are_kept_apart(tmp_path: Path, labels: str) -> None:
    columns = {"id": [None, "x", "x", None], "title": [f"t{n}" for n in range(4)]}
    write_corpus(tmp_path / "corpus", {"x.parquet": columns})
    label_corpus(tmp_path / "corpus", Path(labels), definition({"a": "1"}))
    label_corpus(tmp_path / "corpus", Path(labels), definition({"a": "1", "b": "1"}))
    table = read_labels(labels)
    assert table["id"].to_pylist() == [None, "x", "x", None]
    for task in "ab":
        assert table[f"{task}_label"].to_pylist() == [expected_label(task, "1", f"t{n}", None)[0] for n in range(4)]


def test_errors_of_rows_are_kept(tmp_path: Path, labels: str) -> None:
    write_corpus(tmp_path / "corpus", {"x.parquet": {"id": [1, 2, 3], "body": ["x", None, ""]}})
    label_corpus(tmp_path / "corpus", Path(labels), AB)
    label_corpus(tmp_path / "corpus", Path(labels), definition({"d": "1"}))
    rows = read_labels(labels).to_pylist()
    assert [row["error"] for row in rows] == [None, "text is null", "text is empty"]
    for task in "abd":
        assert [row[f"{task}_label"] is None for row in rows] == [False, True, True]


def test_the_stream_is_the_table_in_pieces_of_one_schema(tmp_path: Path, labels: str) -> None:
    ids = [pa.array(range(5), pa.int16()), pa.array([], pa.int64()), pa.array(["x", None])]
    files = {f"d={n}/{n}.parquet": pa.table({"id": array, "body": ["x"] * len(array)}) for n, array in enumerate(ids)}
    write_corpus(tmp_path / "corpus", files, row_group_size=2)
    with small_slices(2):
        label_corpus(tmp_path / "corpus", Path(labels), AB)
    pieces = list(iter_labels(labels, provenance=True))
    table = read_labels(labels, provenance=True)
    assert [piece.num_rows for piece in pieces] == [5, 0, 2]
    assert {piece.schema for piece in pieces} == {table.schema}
    assert pa.concat_tables(pieces).to_pylist() == table.to_pylist()
    assert table["id"].to_pylist() == ["0", "1", "2", "3", "4", "x", None]


def test_a_table_of_files_without_rows_has_the_columns(tmp_path: Path, labels: str) -> None:
    write_corpus(tmp_path / "corpus", {"x.parquet": articles(0)})
    label_corpus(tmp_path / "corpus", Path(labels), AB)
    table = read_labels(labels)
    assert (table.num_rows, table.column_names[:2]) == (0, ["id", "a_label"])


def test_the_stream_holds_a_few_files_in_memory(tmp_path: Path, labels: str) -> None:
    columns = {"id": [f"{n:0100d}" for n in range(2_000)], "body": ["x"] * 2_000}
    write_corpus(tmp_path / "corpus", {f"{n:02d}.parquet": columns for n in range(30)})
    label_corpus(tmp_path / "corpus", Path(labels), definition({"r": "1"}))
    gc.collect()
    before = pa.total_allocated_bytes()
    most = num_bytes = 0
    for piece in iter_labels(labels):
        num_bytes += piece.nbytes
        most = max(most, pa.total_allocated_bytes() - before)
        time.sleep(0.005)  # so that reading runs ahead as far as it can
    assert num_bytes > 30 * 2_000 * 100
    assert most < num_bytes / 3


def test_a_file_replaced_while_the_stream_is_read_is_old_or_new_but_never_both(corpus: Path, labels: str) -> None:
    label_corpus(corpus, Path(labels), AB)
    stream = iter_labels(labels, provenance=True)
    next(stream)
    label_corpus(corpus, Path(labels), definition({"a": "2", "b": "1"}))
    rest = pa.concat_tables(stream)
    assert rest["id"].to_pylist() == [f"a{n}" for n in range(5, 12)]
    for row in rest.to_pylist():
        number = row["id"][1:]
        label, _ = expected_label("a", row["a_fingerprint"], f"title {number}", f"body {number}")
        assert row["a_label"] == label


def test_a_file_removed_while_the_stream_is_read_is_an_error_and_not_fewer_rows(corpus: Path, labels: str) -> None:
    label_corpus(corpus, Path(labels), AB)
    stream = iter_labels(labels)
    for path in Path(labels, "current").rglob("*.parquet"):
        path.unlink()
    with pytest.raises(LabelTableError, match="was removed while the table was read; read it again"):
        list(stream)


@pytest.mark.parametrize("content", [b"", b"hello", b"PAR1" * 9])
def test_a_damaged_file_is_an_error_and_not_fewer_rows(corpus: Path, labels: str, content: bytes) -> None:
    label_corpus(corpus, Path(labels), AB)
    (Path(labels) / "current/lang=de/date=2026-11-20/x.parquet").write_bytes(content)
    with pytest.raises(LabelTableError, match=r"x\.parquet cannot be read: .*; remove it and run `mtop publish`"):
        read_labels(labels)


def test_a_parquet_file_that_is_none_of_ours_is_an_error(corpus: Path, labels: str) -> None:
    label_corpus(corpus, Path(labels), AB)
    write_corpus(Path(labels) / "current", {"lang=de/date=1/mine.parquet": articles(2)})
    with pytest.raises(LabelTableError, match=r"mine\.parquet cannot be read: .*no key 'mtop_batch'"):
        read_labels(labels)


def test_what_is_not_there_is_a_wrong_request_and_the_closest_is_named(corpus: Path, labels: str) -> None:
    label_corpus(corpus, Path(labels), AB)
    wrong = f"{labels[:-1]}z"
    requests: list[Callable[[], object]] = [
        lambda: read_labels(labels, partition={"dates": "1"}),
        lambda: publish_table(wrong),
        lambda: vacuum_table(wrong),
        lambda: table_stats(wrong),
        lambda: iter_labels(wrong),
    ]
    for request, close in zip(requests, ["date", *[Path(labels).name] * 4], strict=True):
        with pytest.raises(NotInTable, match=f"did you mean '{close}'[?]") as caught:
            request()
        assert caught.value.exit_code == 2
    assert not Path(wrong).exists()


def test_a_place_without_labels_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(
        LabelTableError, match=r"no labels are published in .*; check the path, or run `mtop label` first"
    ):
        read_labels(str(tmp_path / "nowhere"))


runs = st.lists(st.tuples(st.sets(st.sampled_from("abc"), min_size=1), st.sampled_from("12")), min_size=1, max_size=4)


@settings(max_examples=25)
@given(runs, st.data())
def test_after_any_runs_cut_short_every_article_is_there_once_by_one_definition_per_task(
    tmp_path_factory: pytest.TempPathFactory, runs: list[tuple[set[str], str]], data: st.DataObject
) -> None:
    root = tmp_path_factory.mktemp("t")
    write_corpus(root / "corpus", {"x.parquet": articles(9), "d=1/y.parquet": articles(4, start=9)}, row_group_size=4)
    places = {"x.parquet": range(9), "d=1/y.parquet": range(9, 13)}
    shown: dict[tuple[str, str], str] = {}
    with small_slices(4):
        for tasks, fingerprint in runs:
            wanted = definition(dict.fromkeys(sorted(tasks), fingerprint))
            plan = plan_labels(str(root / "corpus"), str(root / "labels"), wanted)
            done = [unit for unit in plan.units if data.draw(st.booleans())]
            run_plan(plan, wanted, done)
            missing = {unit.source.path for unit in plan.units if unit not in done}
            shown |= {(path, task): fingerprint for path in places.keys() - missing for task in tasks}
    expected = {path for path, _ in shown}
    table = read_labels(str(root / "labels"), provenance=True)
    assert sorted(table["id"].to_pylist()) == sorted(f"a{n}" for path in expected for n in places[path])
    for row in table.to_pylist():
        number = int(row["id"][1:])
        for task in {task for run in runs for task in run[0]}:
            found = row[f"{task}_fingerprint"]
            assert found == shown.get(("x.parquet" if number < 9 else "d=1/y.parquet", task))
            if found:
                assert row[f"{task}_label"] == expected_label(task, found, f"title {number}", f"body {number}")[0]
