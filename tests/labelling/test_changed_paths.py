"""Paths that were a file and are a directory now, or belong to another corpus: on a local disk and on S3."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtop_batch import storage
from mtop_batch.engine.publish import publish_table
from mtop_batch.labelling.plan.explain import explain_plan, plan_dict
from mtop_batch.labelling.plan.planner import plan_labels
from mtop_batch.labelling.plan.work import Plan
from mtop_batch.table.read import read_labels
from tests.labelling.support import articles, definition, run_plan

AB = definition({"a": "1", "b": "1"})


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place of its own on a local disk and on an S3 server."""
    if request.param == "local":
        return str(tmp_path)
    server = request.getfixturevalue("s3")
    return f"s3://{server.bucket}/{uuid4().hex}"


def put(root: str, files: dict[str, Any]) -> None:
    for path, columns in files.items():
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table(columns), sink)
        storage.write_bytes(storage.join(root, path), sink.getvalue())


def remove(root: str, *paths: str) -> None:
    for path in paths:
        storage.delete(storage.join(root, path))
        if not storage.is_remote(root):
            parent = (Path(root) / path).parent
            if not list(parent.iterdir()):
                parent.rmdir()


def plan(corpus: str, labels: str) -> Plan:
    return plan_labels(corpus, labels, AB)


def ids(labels: str) -> list[str]:
    return sorted(read_labels(labels)["id"].to_pylist())


def test_a_file_that_becomes_a_directory_and_a_file_again_is_labelled_as_it_is(root: str) -> None:
    corpus, labels = storage.join(root, "corpus"), storage.join(root, "labels")
    put(corpus, {"x.parquet": articles(2), "y.parquet": articles(1, start=90)})
    run_plan(plan(corpus, labels), AB)

    remove(corpus, "x.parquet")
    parts = {"x.parquet/part-0.parquet": articles(2, start=10), "x.parquet/d=1/part-1.parquet": articles(1, start=20)}
    put(corpus, parts)
    as_directory = plan(corpus, labels)
    assert (as_directory.displaced, as_directory.orphaned) == (("x.parquet",), ())
    run_plan(as_directory, AB)
    assert ids(labels) == ["a10", "a11", "a20", "a90"]
    assert not plan(corpus, labels).has_work

    remove(corpus, *reversed(parts))
    put(corpus, {"x.parquet": articles(3, start=30)})
    as_file = plan(corpus, labels)
    assert as_file.displaced == tuple(sorted(parts))
    run_plan(as_file, AB)
    assert ids(labels) == ["a30", "a31", "a32", "a90"]
    assert not plan(corpus, labels).has_work
    publish_table_again(labels)
    assert ids(labels) == ["a30", "a31", "a32", "a90"]


def publish_table_again(labels: str) -> None:
    """`mtop publish`, which looks at the store alone; the store still has what made way."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mtop_batch.engine.publish._wanted", lambda *_: (AB.view, AB.kinds, {}, "models/news"))
        publish_table(labels)


def test_what_makes_way_stays_until_something_takes_its_place(tmp_path: Path) -> None:
    corpus, labels = str(tmp_path / "corpus"), str(tmp_path / "labels")
    put(corpus, {"x.parquet": articles(2), "y.parquet": articles(1, start=90)})
    run_plan(plan(corpus, labels), AB)
    remove(corpus, "x.parquet")
    put(corpus, {"x.parquet/part-0.parquet": articles(2, start=10)})
    run_plan(plan(corpus, labels), AB, units=[])
    assert ids(labels) == ["a0", "a1", "a90"]


def test_a_directory_left_empty_makes_way(tmp_path: Path) -> None:
    corpus, labels = str(tmp_path / "corpus"), str(tmp_path / "labels")
    put(corpus, {"x.parquet": articles(2)})
    (tmp_path / "labels" / "current" / "x.parquet" / "d=1").mkdir(parents=True)
    run_plan(plan(corpus, labels), AB)
    assert ids(labels) == ["a0", "a1"]


def test_names_that_are_file_and_directory_at_once_are_named(tmp_path: Path) -> None:
    corpus, labels = f"memory://{uuid4().hex}/corpus", str(tmp_path / "labels")
    put(corpus, {"x.pq": articles(1), "x.pq.parquet/a.parquet": articles(1), "b.parquet": articles(1)})
    found = plan(corpus, labels)
    ((path, reason),) = found.unreadable
    assert (path, found.num_files) == ("x.pq.parquet/a.parquet", 2)
    assert "has the name of another source file" in reason


def test_another_corpus_with_the_same_names_is_told_before_it_replaces_anything(root: str) -> None:
    first, second, labels = (storage.join(root, name) for name in ("first", "second", "labels"))
    put(first, {"x.parquet": articles(2)})
    run_plan(plan(first, labels), AB)
    put(first, {"x.parquet": articles(3), "y.parquet": articles(1, start=9)})
    assert not plan(first, labels).other_corpus
    assert not plan(storage.join(first, "x.parquet"), labels).other_corpus
    put(second, {"z.parquet": articles(1)})
    assert not plan(second, labels).other_corpus
    put(second, {"x.parquet": articles(2, start=50)})
    found = plan(second, labels)
    assert found.other_corpus == plan_dict(found)["other_corpus"] == first
    assert f"labelled another corpus, {first}" in explain_plan(found, None)


@pytest.mark.parametrize("name", ["_a.parquet", ".b.pq", "part-00000"])
def test_a_file_named_by_itself_is_published_where_readers_see_it(tmp_path: Path, name: str) -> None:
    corpus, labels = str(tmp_path / "corpus"), str(tmp_path / "labels")
    put(corpus, {name: articles(2)})
    run_plan(plan(f"{corpus}/{name}", labels), AB)
    assert ids(labels) == ["a0", "a1"]
    (published,) = Path(labels).glob("current/*.parquet")
    assert not published.name.startswith(("_", "."))
    assert not plan(f"{corpus}/{name}", labels).has_work


def test_partitions_that_start_with_an_underscore_are_labelled(root: str) -> None:
    corpus, labels = storage.join(root, "corpus"), storage.join(root, "labels")
    put(corpus, {"_year=2024/a.parquet": articles(2), "_b.parquet": articles(1)})
    found = plan(corpus, labels)
    assert found.hidden_files == ("_b.parquet",)
    assert "hidden by a name" in explain_plan(found, None)
    run_plan(found, AB)
    assert read_labels(labels, partition={"_year": "2024"}).num_rows == 2
    assert not plan(corpus, labels).has_work
