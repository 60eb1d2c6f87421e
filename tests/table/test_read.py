"""Label files and the table as one: every article once for any reader, with the labels of the current definition."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtop_batch.errors import DamagedLabelFile, LabelTableError, TaskError
from mtop_batch.labelling.plan.planner import plan_labels
from mtop_batch.table.columns import label_schema
from mtop_batch.table.footer import FOOTER_KEY, Footer
from mtop_batch.table.read import iter_labels, read_labels
from mtop_batch.table.runs import new_run_id, write_run
from mtop_batch.table.store import list_label_files, read_footer, remove_unfinished, write_label_file
from mtop_batch.tasks import Task
from tests.labelling.support import (
    articles,
    definition,
    expected_label,
    label_corpus,
    label_unit,
    run_plan,
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
def labels(tmp_path: Path) -> Path:
    return tmp_path / "labels"


def answers(fingerprints: Mapping[str, str], number: int) -> dict[str, Any]:
    """The row that article `number` should have."""
    row: dict[str, Any] = {"id": f"a{number}"}
    for task, fingerprint in fingerprints.items():
        label, score = expected_label(task, fingerprint, f"title {number}", f"body {number}")
        row |= {f"{task}_label": label, f"{task}_score": score}
    return row


def test_a_label_file_has_the_contract_columns_and_footer(corpus: Path, labels: Path) -> None:
    wanted = definition({"a": "f1", "r": "f2"})
    label_corpus(corpus, labels, wanted)
    path = labels / wanted.label_set_name("ar") / "lang=de/date=2026-11-20/x.parquet"
    parquet = pq.ParquetFile(path)
    label_type = pa.dictionary(pa.int32(), pa.string())
    assert parquet.schema_arrow.equals(
        pa.schema(
            {
                "id": pa.string(),
                "a_label": label_type,
                "a_score": pa.float32(),
                "r_score": pa.float32(),
                "error": pa.string(),
            }
        )
    )
    assert parquet.metadata.row_group(0).column(0).compression == "ZSTD"
    footer = json.loads(parquet.metadata.metadata[FOOTER_KEY.encode()])
    size = (corpus / "lang=de/date=2026-11-20/x.parquet").stat().st_size
    source = footer["source"]
    assert (source["path"], source["size"]) == ("lang=de/date=2026-11-20/x.parquet", size)
    assert (source["num_rows"], source["row_groups"], source["num_row_groups"], source["rows"]) == (
        5,
        [0, 3],
        3,
        [0, 5],
    )
    assert footer["tasks"]["a"] == {"fingerprint": "f1", "kind": "classification", "bundle": "news"}
    assert footer["text_columns_used"] == footer["text_columns"] == ["title", "body"]


def test_any_reader_sees_every_article_once(corpus: Path, labels: Path) -> None:
    label_corpus(corpus, labels, AB, unit_rows=2)
    (root,) = (path for path in labels.iterdir() if not path.name.startswith("_"))
    expected = sorted(f"a{n}" for n in range(12))
    query = f"select id, lang, a_label from read_parquet('{root}/**/*.parquet', hive_partitioning=true)"
    assert sorted(row[0] for row in duckdb.connect().execute(query).fetchall()) == expected
    assert sorted(pl.scan_parquet(root, hive_partitioning=True).collect()["id"]) == expected
    dataset = ds.dataset(root, partitioning="hive")
    assert sorted(dataset.to_table()["id"].to_pylist()) == expected
    assert sorted(read_labels(str(labels))["id"].to_pylist()) == expected


def test_the_same_input_gives_the_same_bytes(corpus: Path, tmp_path: Path) -> None:
    digests = []
    for name in ("one", "two"):
        plan = plan_labels(str(corpus), str(tmp_path / name), AB)
        for unit in plan.units:
            label_unit(plan.corpus, plan.labels, AB, unit, run="the run")
        files = sorted((tmp_path / name).rglob("*.parquet"))
        digests.append([hashlib.sha256(path.read_bytes()).hexdigest() for path in files])
    assert digests[0] == digests[1]
    assert len(digests[0]) == 3


def test_labels_of_another_number_of_rows_are_not_written(corpus: Path, labels: Path) -> None:
    unit = plan_labels(str(corpus), str(labels), definition({"a": "1"})).units[0]
    wanted, target = definition({"a": "1"}), unit.targets[0]
    columns = {"a_label": pa.array(["yes"] * 4).dictionary_encode(), "a_score": pa.array([0.5] * 4, pa.float32())}
    ids = pa.array(["i"] * 4)
    with pytest.raises(LabelTableError, match="5 rows were read, but there are labels for"):
        write_label_file(str(labels), target, ids, columns, [None] * 4, unit.footer(target, wanted, "r"), wanted.tasks)
    assert not labels.exists()


def test_a_killed_writer_leaves_nothing_that_a_reader_fails_on(
    corpus: Path, labels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    label_corpus(corpus, labels, AB)
    wanted = definition({"d": "1"})
    unit = plan_labels(str(corpus), str(labels), wanted).units[0]

    def die(*_: object, **__: object) -> None:
        raise SystemExit  # before anything is tidied up, as after SIGKILL

    monkeypatch.setattr(os, "replace", die)
    monkeypatch.setattr(Path, "unlink", die)
    with pytest.raises(SystemExit):
        label_unit(str(corpus), str(labels), wanted, unit, "r")
    assert list((labels / "_unfinished").iterdir())
    assert pl.scan_parquet(labels / AB.label_set_name("ab")).collect().height == 12
    assert read_labels(str(labels)).num_rows == 12
    monkeypatch.undo()
    remove_unfinished(str(labels))
    assert not (labels / "_unfinished").exists()


def test_a_schema_has_no_label_column_for_regressions() -> None:
    tasks = [Task("a"), Task("r", kind="regression", labels=())]
    assert label_schema(pa.int64(), tasks).names == ["id", "a_label", "a_score", "r_score", "error"]


def test_footers_of_a_later_version_are_not_touched_and_other_files_are_damaged(corpus: Path, labels: Path) -> None:
    with pytest.raises(LabelTableError, match="update mtop-batch"):
        Footer.decode(b'{"format": 99}')
    for data in (b"[]", b"{}", b'{"format": 1}'):
        with pytest.raises(ValueError, match="not a label file's footer"):
            Footer.decode(data)
    with pytest.raises(DamagedLabelFile, match="has no key 'mtop_batch'"):
        read_footer(str(corpus), "lang=de", "date=2026-11-20/x.parquet")


def test_label_sets_are_joined_by_row(corpus: Path, labels: Path) -> None:
    label_corpus(corpus, labels, AB, unit_rows=2)
    abd = definition({"a": "1", "b": "1", "d": "1"})
    label_corpus(corpus, labels, abd, unit_rows=4)
    table = read_labels(str(labels))
    assert table.column_names[:3] == ["id", "lang", "date"]
    rows = table.drop_columns(["lang", "date", "error"]).to_pylist()
    assert rows == [answers(abd.fingerprints, n) for n in range(12)]
    assert table["date"].to_pylist()[-4:] == ["2026-11-20", None, None, None]


def test_rows_with_null_and_repeated_ids_are_kept_apart(tmp_path: Path, labels: Path) -> None:
    columns = {"id": [None, "x", "x", None], "title": [f"t{n}" for n in range(4)]}
    write_corpus(tmp_path / "corpus", {"x.parquet": columns})
    label_corpus(tmp_path / "corpus", labels, definition({"a": "1"}))
    label_corpus(tmp_path / "corpus", labels, definition({"a": "1", "b": "1"}))
    table = read_labels(str(labels))
    assert table["id"].to_pylist() == [None, "x", "x", None]
    for task in "ab":
        assert table[f"{task}_label"].to_pylist() == [expected_label(task, "1", f"t{n}", None)[0] for n in range(4)]


def test_the_newest_wanted_definition_wins_where_it_has_labels(corpus: Path, labels: Path) -> None:
    old, new = definition({"a": "old"}), definition({"a": "new"}, bundle_name="news-2")
    label_corpus(corpus, labels, old)
    plan = plan_labels(str(corpus), str(labels), new)
    run_plan(plan, new, plan.units[:1])
    rows = read_labels(str(labels), provenance=True).to_pylist()
    assert [row["a_fingerprint"] for row in rows] == ["new"] * 5 + ["old"] * 7
    assert [row["a_bundle"] for row in rows] == ["news-2"] * 5 + ["news"] * 7
    assert [row["a_label"] for row in rows][:5] == [answers(new.fingerprints, n)["a_label"] for n in range(5)]


def test_going_back_to_an_old_bundle_shows_its_labels_again(corpus: Path, labels: Path) -> None:
    for fingerprint in ("old", "new"):
        label_corpus(corpus, labels, definition({"a": fingerprint}))
    assert label_corpus(corpus, labels, definition({"a": "old"})).units == ()
    rows = read_labels(str(labels), provenance=True).to_pylist()
    assert {row["a_fingerprint"] for row in rows} == {"old"}


def test_labels_of_replaced_content_are_not_shown(corpus: Path, labels: Path) -> None:
    label_corpus(corpus, labels, AB)
    write_corpus(corpus, {"lang=de/date=2026-11-20/x.parquet": articles(2, start=70)})
    label_corpus(corpus, labels, definition({"d": "1"}))
    rows = read_labels(str(labels)).to_pylist()
    assert [row["id"] for row in rows[:2]] == ["a70", "a71"]
    assert [row["a_label"] for row in rows[:2]] == [None, None]
    assert len(rows) == 9


def test_tasks_and_partitions_can_be_chosen(corpus: Path, labels: Path) -> None:
    label_corpus(corpus, labels, AB)
    table = read_labels(str(labels), ["b"], partition={"lang": "en", "date": "2026-11-20"})
    assert table.column_names == ["id", "lang", "date", "b_label", "b_score", "error"]
    assert table["id"].to_pylist() == [f"a{n}" for n in range(5, 9)]
    nothing = read_labels(str(labels), partition={"lang": "xx"})
    assert (nothing.num_rows, nothing.column_names[-1]) == (0, "error")
    with pytest.raises(TaskError, match="there is no task 'c'"):
        read_labels(str(labels), ["c"])


def test_errors_of_rows_are_kept(tmp_path: Path, labels: Path) -> None:
    write_corpus(tmp_path / "corpus", {"x.parquet": {"id": [1, 2, 3], "body": ["x", None, ""]}})
    label_corpus(tmp_path / "corpus", labels, AB)
    rows = read_labels(str(labels)).to_pylist()
    assert [row["error"] for row in rows] == [None, "text is null", "text is empty"]
    assert [(row["a_label"] is None, row["b_score"] is None) for row in rows] == [
        (False, False),
        (True, True),
        (True, True),
    ]


def test_ids_of_different_types_are_brought_together_or_refused(tmp_path: Path, labels: Path) -> None:
    def files(*ids: pa.Array) -> dict[str, pa.Table]:
        return {f"{n}.parquet": pa.table({"id": array, "body": ["x"] * len(array)}) for n, array in enumerate(ids)}

    integers = (pa.array([1], pa.int8()), pa.array([2], pa.int64()))
    for name, arrays, expected in (
        ("integers", integers, [1, 2]),
        ("mixed", (*integers, pa.array(["x"]).dictionary_encode()), ["1", "2", "x"]),
    ):
        write_corpus(tmp_path / name, files(*arrays))
        label_corpus(tmp_path / name, labels / name, AB)
        assert read_labels(str(labels / name))["id"].to_pylist() == expected
    write_corpus(tmp_path / "bad", files(pa.array(["x"]), pa.array([b"\xff"])))
    label_corpus(tmp_path / "bad", labels / "bad", AB)
    with pytest.raises(LabelTableError, match="types that do not go together"):
        read_labels(str(labels / "bad"))


def test_the_stream_is_the_table_in_pieces_of_one_schema(tmp_path: Path, labels: Path) -> None:
    ids = [pa.array(range(5), pa.int16()), pa.array([], pa.int64()), pa.array(["x", None])]
    files = {f"d={n}/{n}.parquet": pa.table({"id": array, "body": ["x"] * len(array)}) for n, array in enumerate(ids)}
    write_corpus(tmp_path / "corpus", files, row_group_size=2)
    label_corpus(tmp_path / "corpus", labels, AB, unit_rows=2)
    label_corpus(tmp_path / "corpus", labels, definition({"a": "1", "r": "1"}))
    pieces = list(iter_labels(str(labels), provenance=True))
    table = read_labels(str(labels), provenance=True)
    assert [piece.num_rows for piece in pieces] == [2, 2, 1, 2]
    assert {piece.schema for piece in pieces} == {table.schema}
    assert pa.concat_tables(pieces).to_pylist() == table.to_pylist()
    assert table["id"].to_pylist() == ["0", "1", "2", "3", "4", "x", None]
    nothing = definition({"a": "1"})
    write_corpus(tmp_path / "empty", {"x.parquet": articles(0)})
    label_corpus(tmp_path / "empty", labels / "empty", nothing)
    assert (list(iter_labels(str(labels / "empty"))), read_labels(str(labels / "empty")).num_rows) == ([], 0)


def test_the_stream_holds_a_few_label_files_in_memory(tmp_path: Path, labels: Path) -> None:
    columns = {"id": [f"{n:0100d}" for n in range(5_000)], "body": ["x"] * 5_000}
    write_corpus(tmp_path / "corpus", {f"{n:02d}.parquet": columns for n in range(60)})
    label_corpus(tmp_path / "corpus", labels, definition({"r": "1"}))
    gc.collect()
    before = pa.total_allocated_bytes()
    most = num_bytes = 0
    for piece in iter_labels(str(labels)):
        num_bytes += piece.nbytes
        most = max(most, pa.total_allocated_bytes() - before)
        time.sleep(0.005)  # so that reading runs ahead as far as it can
    assert num_bytes > 60 * 5_000 * 100
    assert most < num_bytes / 3


def test_a_label_file_replaced_while_the_stream_is_read_is_an_error(corpus: Path, labels: Path) -> None:
    label_corpus(corpus, labels, AB)
    stream = iter_labels(str(labels))
    for path in labels.glob("[!_]*/**/*.parquet"):
        path.unlink()
    label_corpus(corpus, labels, AB)
    with pytest.raises(LabelTableError, match="was replaced while it was read"):
        list(stream)


def test_a_footer_is_found_whatever_size_the_listing_told(corpus: Path, labels: Path) -> None:
    label_corpus(corpus, labels, AB)
    ((label_set, sizes),) = list_label_files(str(labels)).items()
    for path, size in sizes.items():
        assert size == (labels / label_set / path).stat().st_size
        found = [read_footer(str(labels), label_set, path, told) for told in (size, None, 5, size - 100, size + 100)]
        assert {footer.source.path for footer in found} == {path}
    with pytest.raises(DamagedLabelFile, match="vanished"):
        read_footer(str(labels), label_set, "none.parquet", 1000)


def test_a_place_without_labels_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LabelTableError, match="there are no labels in"):
        read_labels(str(tmp_path / "nowhere"))


@settings(deadline=None, max_examples=25)
@given(
    st.lists(
        st.tuples(st.sets(st.sampled_from("abc"), min_size=1), st.sampled_from("12"), st.integers(1, 7)),
        min_size=1,
        max_size=4,
    ),
    st.data(),
)
def test_over_any_subsets_of_sets_every_article_comes_once_with_current_labels(
    tmp_path_factory: pytest.TempPathFactory, runs: list[tuple[set[str], str, int]], data: st.DataObject
) -> None:
    root = tmp_path_factory.mktemp("t")
    write_corpus(root / "corpus", {"x.parquet": articles(9), "d=1/y.parquet": articles(4, start=9)}, row_group_size=4)
    labelled: dict[tuple[str, str], set[int]] = {}
    current: dict[str, str] = {}
    for tasks, fingerprint, unit_rows in runs:
        wanted = definition(dict.fromkeys(sorted(tasks), fingerprint))
        plan = plan_labels(str(root / "corpus"), str(root / "labels"), wanted, unit_rows=unit_rows)
        units = [unit for unit in plan.units if data.draw(st.booleans())]
        run_plan(plan, wanted, units)
        current |= wanted.fingerprints
        for unit in units:
            start = 9 if "y" in unit.source.path else 0
            for task in unit.tasks:
                labelled.setdefault((task, fingerprint), set()).update(
                    range(start + unit.rows[0], start + unit.rows[1])
                )
    known = set().union(*labelled.values()) if labelled else set()
    if not known:
        return
    rows = {row["id"]: row for row in read_labels(str(root / "labels"), provenance=True).to_pylist()}
    assert sorted(rows) == sorted(f"a{n}" for n in known)
    for number in known:
        row = rows[f"a{number}"]
        for task in {task for task, _ in labelled}:
            having = [f for f in "12" if number in labelled.get((task, f), ())]
            best = current[task] if current[task] in having else next(iter(having), None)
            assert row[f"{task}_fingerprint"] == best
            if best is not None:
                assert row[f"{task}_label"] == answers({task: best}, number)[f"{task}_label"]


def test_a_run_that_wrote_nothing_still_says_what_is_wanted(corpus: Path, labels: Path) -> None:
    for fingerprint in ("1", "2"):
        label_corpus(corpus, labels, definition({"a": fingerprint}))
    write_run(str(labels), new_run_id(), definition({"a": "1"}), str(corpus))
    fingerprints = set(read_labels(str(labels), provenance=True)["a_fingerprint"].to_pylist())
    assert fingerprints == {"1"}
