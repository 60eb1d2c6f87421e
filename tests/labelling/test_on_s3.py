"""The same on a real S3 server: listings with etags, plans, label files, and what an outage looks like."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtop_batch import storage
from mtop_batch.corpus.files import AccessDenied, Layout, SourceChanged, SourceFile, read_layout
from mtop_batch.errors import AccessRefused, StorageError
from mtop_batch.labelling.plan import layouts
from mtop_batch.labelling.plan import staleness as why
from mtop_batch.labelling.plan.planner import plan_labels
from mtop_batch.labelling.plan.work import Unit
from mtop_batch.labelling.run.read_rows import read_unit
from mtop_batch.storage import clients
from mtop_batch.table.publisher import publish
from mtop_batch.table.read import read_labels
from tests.labelling.support import articles, definition, label_unit, run_plan
from tests.s3 import S3Server, s3_server

AB = definition({"a": "1", "b": "1"})


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def root(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty prefix on the server, which the environment leads to."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(clients, "_S3_ATTEMPTS", 3)
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 1)
    clients._pyarrow_s3.cache_clear()
    return f"s3://{server.bucket}/{uuid4().hex}"


def put(uri: str, columns: dict[str, list[str]]) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    storage.write_bytes(uri, sink.getvalue())


def test_files_are_listed_written_and_removed(root: str, tmp_path: Path) -> None:
    odd = storage.join(root, "date=2026-11-20/a b ü%20+=1.parquet")
    storage.write_bytes(odd, b"x" * 5)
    storage.write_bytes(storage.join(root, "_hidden/x"), b"")
    assert storage.list_files(root)[0] == storage.FileInfo(
        "date=2026-11-20/a b ü%20+=1.parquet", 5, storage.stat(odd).version
    )
    assert (storage.exists(root), storage.is_file(root), storage.is_file(odd)) == (True, False, True)
    storage.download(odd, tmp_path / "copy")
    storage.upload(tmp_path / "copy", storage.join(root, "copy"))
    assert storage.read_bytes(storage.join(root, "copy")) == b"xxxxx"
    for _ in range(2):
        storage.delete(odd)
    assert not storage.is_file(odd)
    assert storage.list_files(storage.join(root, "nothing")) == []
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(odd)


def test_more_than_a_page_of_keys_is_listed(root: str) -> None:
    list(
        storage.in_threads(lambda n: storage.write_bytes(storage.join(root, f"{n:05d}"), b""), range(1_050), threads=8)
    )
    assert [info.path for info in storage.list_files(root)] == [f"{n:05d}" for n in range(1_050)]


def test_a_corpus_on_s3_is_labelled_once_and_again_where_it_changed(root: str) -> None:
    corpus, labels = storage.join(root, "corpus"), storage.join(root, "labels")
    put(storage.join(corpus, "date=1/x y.parquet"), articles(5))
    put(storage.join(corpus, "date=2/ü.parquet"), articles(4, start=5))
    run_plan(plan_labels(corpus, labels, AB), AB)
    assert plan_labels(corpus, labels, AB).units == ()
    put(storage.join(corpus, "date=2/ü.parquet"), articles(4, start=6))
    plan = plan_labels(corpus, labels, AB)
    assert plan.reasons == Counter({why.CONTENT_CHANGED: 8})
    run_plan(plan, AB)
    ids = read_labels(labels)["id"].to_pylist()
    assert ids == [f"a{n}" for n in (0, 1, 2, 3, 4, 6, 7, 8, 9)]


def test_articles_of_a_source_that_is_gone_are_removed_once_and_come_back_with_it(root: str) -> None:
    corpus, labels = storage.join(root, "corpus"), storage.join(root, "labels")
    put(storage.join(corpus, "x.parquet"), articles(5))
    put(storage.join(corpus, "y.parquet"), articles(4, start=5))
    run_plan(plan_labels(corpus, labels, AB), AB)
    storage.delete(storage.join(corpus, "y.parquet"))
    run_plan(plan_labels(corpus, labels, AB, prune=True), AB)
    assert read_labels(labels).num_rows == 5
    again = plan_labels(corpus, labels, AB, prune=True)
    assert (again.orphaned, again.has_work) == ((), False)
    put(storage.join(corpus, "y.parquet"), articles(4, start=5))
    plan = plan_labels(corpus, labels, AB)
    assert (len(plan.units), len(plan.to_publish)) == (1, 1)  # their label files went with them
    run_plan(plan, AB)
    assert read_labels(labels).num_rows == 9


def test_a_published_file_is_not_overwritten_blindly(root: str) -> None:
    corpus, labels = storage.join(root, "corpus"), storage.join(root, "labels")
    put(storage.join(corpus, "x.parquet"), articles(5))
    run_plan(plan_labels(corpus, labels, AB), AB)
    d, e = definition({"d": "1"}), definition({"e": "1"})
    plan = plan_labels(corpus, labels, d)
    label_unit(corpus, labels, d, plan.units[0], "r")
    others = [lambda: run_plan(plan_labels(corpus, labels, e), e)]

    def meanwhile() -> None:
        if others:
            others.pop()()

    publish(labels, d.view, d.kinds, plan.to_publish, "r", check=meanwhile)
    table = read_labels(labels)
    assert table.num_rows == 5
    assert [table[f"{task}_label"].null_count for task in "abde"] == [0, 0, 0, 0]


def test_a_file_replaced_since_the_plan_is_found_out_by_its_etag(root: str) -> None:
    corpus = storage.join(root, "corpus")
    put(storage.join(corpus, "x.parquet"), articles(5))
    (unit,) = plan_labels(corpus, storage.join(root, "labels"), AB).units
    put(storage.join(corpus, "x.parquet"), articles(5, start=1))
    with pytest.raises(SourceChanged, match="changed"):
        list(read_unit(corpus, unit, "id"))


def test_wrong_credentials_and_missing_buckets_are_told_without_secrets(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StorageError, match="the bucket does not exist"):
        storage.list_files("s3://no-such-bucket/x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret")
    for call in (storage.list_files, storage.read_bytes, storage.exists):
        with pytest.raises(StorageError, match=r"was refused.*AWS_ACCESS_KEY_ID") as caught:
            call(storage.join(root, "x"))
        assert "wrong-secret" not in str(caught.value)


@pytest.fixture
def take_away(root: str, server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], object]:
    """Takes a right away from the test, which is a user that may read, write and list the bucket."""
    name = f"guest{uuid4().hex[:6]}"
    for variable, value in server.configure_user(name, "Read,Write,List").items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    return lambda action: server.configure_user(name, action, remove=True)


def test_rights_that_are_taken_away_say_nothing_about_files(root: str, take_away: Callable[[str], object]) -> None:
    corpus, labels = storage.join(root, "corpus"), storage.join(root, "labels")
    put(storage.join(corpus, "x.parquet"), articles(5))
    run_plan(plan_labels(corpus, labels, AB), AB)
    put(storage.join(corpus, "y.parquet"), articles(4, start=5))
    plan = plan_labels(corpus, labels, AB)
    (unit,) = plan.units

    take_away("Write")
    with pytest.raises(StorageError, match="was refused"):
        label_unit(corpus, labels, AB, unit, "r")
    with pytest.raises(StorageError, match="was refused"):
        run_plan(plan, AB, units=())
    assert plan_labels(corpus, labels, AB) == plan

    take_away("Read")
    with pytest.raises(AccessRefused, match=r"access to s3://.*/corpus/y.parquet was refused; check the credentials"):
        list(read_unit(corpus, unit, "id"))
    for call in (lambda: plan_labels(corpus, labels, AB), lambda: read_labels(labels)):
        with pytest.raises(StorageError, match="refused"):
            call()


def test_a_run_may_not_begin_where_no_source_file_may_be_read(root: str, take_away: Callable[[str], object]) -> None:
    corpus = storage.join(root, "corpus")
    for name in "xy":
        put(storage.join(corpus, f"{name}.parquet"), articles(5))
    take_away("Read")
    with pytest.raises(AccessRefused, match=r"access to s3://.*/corpus/x.parquet was refused"):
        bad_sources(corpus)


def bad_sources(corpus: str) -> list[tuple[str, str]]:
    sources = [SourceFile(info.path, info.size, info.version) for info in storage.list_files(corpus)]
    return layouts.read_layouts(corpus, sources, AB, has_current=False)[1]


def test_one_source_file_that_may_not_be_read_is_a_bad_one_among_others(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = storage.join(root, "corpus")
    for name in "xyz":
        put(storage.join(corpus, f"{name}.parquet"), articles(5))

    def read(corpus: str, source: SourceFile, **options: Any) -> Layout:
        if source.path == "y.parquet":
            raise AccessDenied("access denied")
        return read_layout(corpus, source, **options)

    monkeypatch.setattr("mtop_batch.labelling.plan.layouts.read_layout", read)
    assert bad_sources(corpus) == [("y.parquet", "access denied")]


def test_a_server_that_is_down_is_an_outage_and_not_a_missing_or_bad_file(
    root: str, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    corpus = storage.join(root, "corpus")
    put(storage.join(corpus, "x.parquet"), articles(5))
    (unit,) = plan_labels(corpus, storage.join(root, "labels"), AB).units
    server.stop()
    try:
        with pytest.raises(StorageError, match="cannot be reached"):
            list(read_unit(corpus, unit, "id"))
        with pytest.raises(StorageError, match="cannot be reached"):
            storage.list_files(corpus)
    finally:
        server.start()
    assert rows_when_back(corpus, unit) == 5


def rows_when_back(corpus: str, unit: Unit) -> int:
    """Rows of a unit, as soon as the server answers; it says "internal error" until its volumes are back."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return sum(len(batch) for batch in read_unit(corpus, unit, "id"))
        except StorageError:
            assert time.monotonic() < deadline
            time.sleep(0.2)
