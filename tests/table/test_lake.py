"""The published table as a Delta and an Iceberg table: the same rows for every reader, one commit for each run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pytest
from deltalake import DeltaTable, QueryBuilder, write_deltalake
from pyiceberg.catalog import load_catalog
from pyiceberg.table import Table

from mtop_batch import storage
from mtop_batch.errors import ConfigError, LabelTableError
from mtop_batch.table.definition import Definition
from mtop_batch.table.lake import sync
from mtop_batch.table.lake.rows import CurrentTable, lake_type
from mtop_batch.table.lake.sync import CommitConflict, LakeCommit, check_lake, sync_lake
from mtop_batch.table.lake.target import LakeTarget, lake_target
from mtop_batch.table.publisher import publish
from mtop_batch.table.read import read_labels
from mtop_batch.tasks import Task
from tests.labelling.support import articles, definition, label_corpus, write_corpus
from tests.s3 import S3Server
from tests.table.test_publish import republish

ROOT = Path(__file__).parent.parent.parent
AB = definition({"a": "1", "b": "1"})
ABDR = definition({"a": "1", "b": "2", "d": "1", "r": "1"}, bundle_name="news-2")
X, Y, Z = "day=1/x.parquet", "day=2/y.parquet", "z.parquet"
FORMATS = ("delta", "iceberg")


@dataclass
class World:
    """A corpus, its label table, and the lake table that it is published to."""

    root: Path
    target: LakeTarget
    labels: Any  # a path, or an address on S3

    @property
    def corpus(self) -> Path:
        return self.root / "corpus"

    def label(self, wanted: Definition, partitions: tuple[str, ...] = ()) -> LakeCommit:
        """What a run does: labels, publishes, commits."""
        label_corpus(self.corpus, self.labels, wanted, partitions)
        return self.sync()

    def sync(self, run: str = "run") -> LakeCommit:
        done = sync_lake(self.target, str(self.labels), run)
        assert done is not None
        return done

    def delta(self, version: int | None = None) -> DeltaTable:
        return DeltaTable(str(self.target.place), version=version, storage_options=storage.s3_options("s3://"))

    def iceberg(self) -> Table:
        names = {"AWS_ENDPOINT_URL": "s3.endpoint", "AWS_REGION": "s3.region"}
        properties = {names[name]: value for name, value in os.environ.items() if name in names}
        return load_catalog("default", uri=self.target.catalog, **properties).load_table(self.target.table)

    def commits(self) -> int:
        """How often the table has been committed to: Delta's versions, or Iceberg's metadata files."""
        return self.delta().version() if self.target.format == "delta" else len(self.iceberg().metadata.metadata_log)

    def readers(self) -> Mapping[str, Callable[[], pa.Table]]:
        if self.target.format == "delta":
            return {
                "duckdb": lambda: by_duckdb(self.delta().to_pyarrow_dataset()),
                "polars": lambda: pl.read_delta(self.delta()).to_arrow(),
                "datafusion": lambda: pa.table(
                    QueryBuilder().register("t", self.delta()).execute("select * from t").read_all()
                ),
            }
        return {
            "duckdb": lambda: by_duckdb(self.iceberg().scan().to_arrow()),
            "polars": lambda: (
                pl.scan_iceberg(self.iceberg(), storage_options=storage.s3_options("s3://")).collect().to_arrow()
            ),
        }

    def check(self) -> None:
        """Every reader sees the rows of the published table, with its types."""
        expected = sorted_rows(read_labels(str(self.labels)))
        for reader, read in self.readers().items():
            found = read()
            assert sorted_rows(found.drop_columns(["source_file", "labels_version"])) == expected, reader
            types = {field.type for field in found.schema if field.name.endswith("_score") and field.name != "m_score"}
            assert types == {pa.float32()}, reader
            assert {str(row["source_file"]) for row in found.to_pylist()} <= {X, Y, Z}


def by_duckdb(table: Any) -> pa.Table:
    return duckdb.connect().register("lake", table).sql("from lake").to_arrow_table()


def sorted_rows(table: pa.Table) -> list[dict[str, Any]]:
    rows = [{name: row[name] for name in sorted(row)} for row in table.to_pylist()]
    return sorted(rows, key=lambda row: str(row["id"]))


def make_world(root: Path, table_format: str, labels: str | None = None) -> World:
    labels = labels or str(root / "labels")
    if table_format == "delta":
        target = lake_target("delta", labels, None, None, None)
    else:
        target = lake_target("iceberg", labels, None, f"sqlite:///{root}/catalog.db", "news.labels")
    assert target is not None
    write_corpus(root / "corpus", {X: articles(5), Y: articles(4, start=5), Z: articles(3, start=9)})
    return World(root, target, labels if storage.is_remote(labels) else Path(labels))


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLARS_ICEBERG_PLANNER", "pyiceberg")
    monkeypatch.setattr(sync, "_LONGEST_WAIT_S", 0.01)


@pytest.fixture(params=FORMATS)
def world(tmp_path: Path, request: pytest.FixtureRequest) -> World:
    """Three source files with articles 0 to 11, nothing labelled."""
    return make_world(tmp_path, request.param)


@pytest.fixture
def published(world: World) -> World:
    """The same labelled, published and committed."""
    world.label(AB)
    return world


def test_every_reader_sees_the_published_rows(world: World) -> None:
    done = world.label(AB)
    assert (done.committed, done.files, done.rows, done.removed_rows) == (True, 3, 12, 0)
    assert done.summary().startswith(str(world.target))
    assert done.summary().endswith(": 12 rows of 3 files in place of 0")
    world.check()


def test_where_nothing_has_changed_there_is_no_commit(published: World) -> None:
    before = published.commits()
    done = published.label(AB)
    assert (done.committed, done.rows, published.commits()) == (False, 0, before)
    assert "already up to date" in done.summary()


def test_a_changed_file_is_replaced_in_one_commit(published: World) -> None:
    before = published.commits()
    write_corpus(published.corpus, {Y: articles(2, start=50)})
    done = published.label(AB)
    assert (done.files, done.rows, done.removed_rows, published.commits()) == (1, 2, 4, before + 1)
    published.check()


def test_a_new_file_is_added(published: World) -> None:
    (published.corpus / Y).unlink()
    write_corpus(published.corpus, {"day=2/x.parquet": articles(2, start=50)})
    done = published.label(AB)
    assert (done.files, done.rows, done.removed_rows) == (1, 2, 0)
    assert len(read_labels(str(published.labels))) == 14


@pytest.mark.parametrize("left", [[X, Y], []], ids=["one", "all"])
def test_a_removed_file_is_removed(published: World, left: list[str]) -> None:
    gone = sorted({X, Y, Z} - set(left))
    publish(str(published.labels), AB.view, AB.kinds, [], "prune", orphans=gone)
    done = published.sync()
    assert (done.files, done.rows, done.removed_rows) == (0, 0, 12 - 9 * bool(left))
    published.check()
    assert not published.sync().committed


def test_a_task_that_enters_by_a_backfill_of_one_partition_is_null_elsewhere(published: World) -> None:
    before = published.commits()
    done = published.label(ABDR, ("day=2",))
    assert (done.files, done.rows, done.removed_rows, published.commits()) == (1, 4, 4, before + 1)
    published.check()
    done = published.label(ABDR)
    assert (done.files, done.rows, done.removed_rows) == (2, 8, 8)
    published.check()


def test_a_partition_key_that_enters_is_null_elsewhere(published: World) -> None:
    write_corpus(published.corpus, {"lang=en/x.parquet": articles(2, start=90)})
    assert published.label(AB).rows == 2
    found = sorted_rows(published.readers()["duckdb"]())
    assert [row["lang"] for row in found if row["id"] in ("a0", "a90")] == [None, "en"]


def test_a_rollback_is_one_more_commit_and_the_snapshots_before_it_stay(published: World) -> None:
    first = sorted_rows(published.readers()["duckdb"]())
    published.label(definition({"a": "2", "b": "1"}))
    changed, before = sorted_rows(published.readers()["duckdb"]()), published.commits()
    republish(published.corpus, published.labels, AB)
    done = published.sync("back")
    assert (done.rows, done.removed_rows, published.commits()) == (12, 12, before + 1)
    published.check()
    assert sorted_rows(published.readers()["duckdb"]()) == first
    assert changed != first
    if published.target.format == "delta":
        assert published.delta().history(1)[0]["mtop_run"] == "back"
        assert sorted_rows(by_duckdb(published.delta(before).to_pyarrow_dataset())) == changed
    else:
        current = published.iceberg().current_snapshot()
        assert current is not None
        assert current.summary is not None
        assert current.summary["mtop_run"] == "back"


@pytest.mark.parametrize("ids", [["x", None], [10**6, 7]], ids=["strings", "larger numbers"])
def test_ids_of_another_type_are_one_commit_of_all_rows(tmp_path: Path, world: World, ids: list[Any]) -> None:
    write_corpus(world.corpus, {path: {"id": [n], "body": ["b"]} for n, path in enumerate((X, Y, Z))})
    write_corpus(world.corpus, {X: pa.table({"id": pa.array([3], pa.int8()), "body": ["b"]})})
    world.label(definition({"a": "1"}))
    before = world.commits()
    write_corpus(world.corpus, {X: {"id": ids, "body": ["b", "c"]}})
    world.label(definition({"a": "1"}))
    assert world.commits() == before + 1
    world.check()


@pytest.mark.parametrize(
    ("arrow", "expected"),
    [
        (pa.null(), pa.string()),
        (pa.int16(), pa.int32()),
        (pa.uint64(), pa.decimal128(20, 0)),
        (pa.timestamp("ms"), pa.timestamp("us")),
        (pa.timestamp("ns"), pa.string()),
        (pa.dictionary(pa.int32(), pa.int64()), pa.int64()),
        (pa.list_(pa.int64()), pa.string()),
    ],
)
def test_types_that_the_formats_lack(arrow: pa.DataType, expected: pa.DataType) -> None:
    assert lake_type(arrow) == expected


IDS = {
    "null": pa.nulls(2),
    "decimal": pa.array([1, None], pa.decimal128(5, 2)),
    "unsigned": pa.array([1, 2**64 - 1], pa.uint64()),
    "time": pa.array([1, None], pa.timestamp("ns")),
    "zone": pa.array([1, None], pa.timestamp("us", "Europe/Rome")),
    "date": pa.array([1, None], pa.date32()),
    "bytes": pa.array([b"\xff", None]),
    "list": pa.array([[1], None]),
}


LISTS = Task("m", "multi-label", labels=("film", "sport", "money"), scores="all")


def test_lists_of_labels_and_scores_are_lists(world: World) -> None:
    first = definition({"m": "1", "a": "1"}, tasks=[LISTS])
    world.label(first)
    world.check()
    assert world.sync().to_dict() == world.sync().to_dict()
    commits = world.commits()
    world.label(first)
    assert world.commits() == commits
    # Scores of articles that wait for the retrained task move to other places.
    labels = ("money", "film", "art")
    retrained = definition({"m": "2", "a": "1"}, tasks=[replace(LISTS, labels=labels)], bundle_name="news-2")
    world.label(retrained, ("day=1",))
    world.check()


def test_entities_are_lists_of_structs(world: World) -> None:
    names = Task("n", "token", labels=("PER", "LOC"))
    world.label(definition({"a": "1"}))
    world.check()
    first = definition({"a": "1", "n": "1"}, tasks=[names])
    world.label(first)
    world.check()
    commits = world.commits()
    world.label(first)
    assert world.commits() == commits
    world.label(definition({"a": "1", "n": "2"}, tasks=[names], bundle_name="news-2"), ("day=1",))
    world.check()


@pytest.mark.parametrize("case", IDS)
def test_ids_of_all_types_can_be_committed(world: World, case: str) -> None:
    for path in (Y, Z):
        (world.corpus / path).unlink()
    write_corpus(world.corpus, {X: pa.table({"id": IDS[case], "body": ["b", "c"]})})
    assert world.label(definition({"a": "1"})).rows == 2
    assert len(world.readers()["duckdb"]()) == 2
    assert not world.sync().committed


KILL = """
import os, signal, sys
from mtop_batch.table.lake import sync
from mtop_batch.table.lake.rows import CurrentTable
from mtop_batch.table.lake.target import LakeTarget

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

when, labels, target = sys.argv[1], sys.argv[2], LakeTarget(*(text or None for text in sys.argv[3:]))
batches = CurrentTable.batches
def some(self, versions):
    yield from batches(self, versions)
    die()
if when == "while the rows are written":
    CurrentTable.batches = some
if when == "behind the commit":
    sync.LakeCommit = die
if when == "behind the creation":
    lake = type(sync.connect(target, labels))
    create = lake.create
    lake.create = lambda self, schema: die(create(self, schema))
sync.sync_lake(target, labels, "killed")
"""


@pytest.mark.parametrize("when", ["while the rows are written", "behind the commit", "behind the creation"])
def test_a_killed_run_leaves_the_old_snapshot_or_the_new_one_and_the_next_does_the_rest(
    world: World, when: str
) -> None:
    if when != "behind the creation":
        world.label(AB)
    label_corpus(world.corpus, world.labels, ABDR)
    before = None if when == "behind the creation" else sorted_rows(world.readers()["duckdb"]())
    target = world.target
    arguments = [when, str(world.labels), target.format, target.place or "", target.catalog, target.table]
    killed = subprocess.run([sys.executable, "-c", KILL, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    if when == "while the rows are written":
        assert sorted_rows(world.readers()["duckdb"]()) == before
    if when == "behind the commit":
        world.check()
    assert world.sync().committed == (when != "behind the commit")
    world.check()


def before_the_rows(monkeypatch: pytest.MonkeyPatch, action: Callable[[], object]) -> None:
    """Do something, once, between the comparison and the commit; in another thread, for libraries forbid it in this."""
    batches, left = CurrentTable.batches, [action]

    def patched(self: CurrentTable, versions: Any) -> Iterator[pa.RecordBatch]:
        if left:
            thread = threading.Thread(target=left.pop())
            thread.start()
            thread.join()
        return batches(self, versions)

    monkeypatch.setattr(CurrentTable, "batches", patched)


def test_a_run_whose_commit_comes_second_finds_it_done(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    label_corpus(world.corpus, world.labels, AB)
    others: list[LakeCommit] = []
    before_the_rows(monkeypatch, lambda: others.append(world.sync("other")))
    done = world.sync()
    assert (others[0].committed, done.committed) == (True, False)
    world.check()


def test_a_table_that_changes_between_comparison_and_commit_is_compared_afresh(
    published: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    label_corpus(published.corpus, published.labels, definition({"a": "2", "b": "1"}))

    def other_run() -> None:
        write_corpus(published.corpus, {Y: articles(3, start=70)})
        label_corpus(published.corpus, published.labels, ABDR)

    before_the_rows(monkeypatch, other_run)
    assert published.sync().committed
    published.check()


def test_many_commits_at_once_leave_each_article_once(world: World) -> None:
    label_corpus(world.corpus, world.labels, AB)
    sync.connect(world.target, str(world.labels))  # a catalogue's own tables are there before
    done: list[LakeCommit] = []
    threads = [threading.Thread(target=lambda: done.append(world.sync())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(each.committed for each in done) == [False, False, False, True]
    world.check()


def test_a_table_that_changes_all_the_time_is_an_error(published: World, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = sync.connect(published.target, str(published.labels)).open()

    def conflict(*_: Any) -> None:
        raise CommitConflict

    monkeypatch.setattr(type(snapshot), "commit", conflict)
    label_corpus(published.corpus, published.labels, ABDR)
    with pytest.raises(LabelTableError, match="changes whenever it is committed to; find out what else writes it"):
        published.sync()


def test_rows_that_somebody_else_has_added_go_with_the_next_commit(published: World) -> None:
    rows = published.readers()["polars"]()
    unknown = rows.slice(0, 2).drop_columns(["labels_version"])
    doubled = rows.slice(2, 1)
    for extra in (unknown, doubled):
        if published.target.format == "delta":
            write_deltalake(published.delta(), extra, mode="append", schema_mode="merge")
        else:
            published.iceberg().append(extra)
        assert published.sync().committed
        published.check()


def test_rows_are_handed_over_in_bounded_files(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"mtop_batch.table.lake.{world.target.format}._FILE_BYTES", 1)
    label_corpus(world.corpus, world.labels, AB)
    world.sync()
    if world.target.format == "iceberg":
        assert len(list(world.iceberg().scan().plan_files())) == 3
    world.check()


def test_nothing_published_is_nothing_to_commit(world: World) -> None:
    check_lake(world.target, str(world.labels))
    assert sync_lake(world.target, str(world.labels), "run") is None
    assert not world.labels.exists()


def test_a_damaged_published_file_is_named_and_nothing_is_committed(published: World) -> None:
    before = published.commits()
    (published.labels / "current" / Y).write_bytes(b"PAR1")
    with pytest.raises(LabelTableError, match=r"current/day=2/y\.parquet cannot be read; remove it and run"):
        published.sync()
    assert published.commits() == before


def test_a_partition_key_with_the_name_of_one_of_its_columns_is_refused(world: World) -> None:
    write_corpus(world.corpus, {"Source_File=1/x.parquet": articles(1, start=80)})
    with pytest.raises(ConfigError, match="partition key 'Source_File' has the name of a column"):
        world.label(AB)


def test_other_files_in_its_place_are_refused(world: World) -> None:
    place = world.labels / world.target.format
    place.mkdir(parents=True)
    (place / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"--lake .* has files, and (is not a Delta|the catalogue knows no) table"):
        check_lake(world.target, str(world.labels))


def foreign(world: World, table: pa.Table) -> None:
    """Put a table of somebody else where the lake table is to be."""
    if world.target.format == "delta":
        write_deltalake(str(world.target.place), table)
        return
    catalog = load_catalog("default", uri=world.target.catalog)
    catalog.create_namespace("news")
    catalog.create_table("news.labels", table.schema, location=str(world.root / "foreign")).append(table)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"id": ["a"], "price": [1.0]},
            "not one that mtop has created: it lacks source_file, labels_version, and has id",
        ),
        (
            {"id": ["a"], "source_file": ["x"], "labels_version": ["y"], "a_score": [1.0]},
            "has a column a_score of type double, the label table one of type float; name another place",
        ),
    ],
    ids=["not ours", "another type"],
)
def test_a_table_of_something_else_is_refused(world: World, columns: dict[str, Any], message: str) -> None:
    label_corpus(world.corpus, world.labels, AB)
    foreign(world, pa.table(columns))
    before = world.commits()
    for act in (lambda: check_lake(world.target, str(world.labels)), world.sync):
        with pytest.raises(ConfigError, match=message):
            act()
    assert world.commits() == before


@pytest.mark.parametrize("table_format", FORMATS)
def test_a_missing_library_is_one_line(table_format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = make_world(tmp_path, table_format)
    library = {"delta": "deltalake", "iceberg": "pyiceberg.catalog"}[table_format]
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, f"mtop_batch.table.lake.{table_format}", raising=False)
    with pytest.raises(ConfigError, match=rf"needs \w+: pip install 'mtop-batch\[{table_format}\]'"):
        check_lake(world.target, str(world.labels))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("delta", None, "x", None), "--catalog goes with --format iceberg"),
        (("parquet", "x", None, None), "--lake goes with --format delta or iceberg"),
        (("parquet", None, None, "a.b"), "--table goes with --format iceberg"),
        (("iceberg", None, None, None), "--table None does not name an Iceberg table; write namespace.table"),
        (("iceberg", None, None, "labels"), "does not name an Iceberg table"),
        (("iceberg", None, None, "news."), "does not name an Iceberg table"),
        (("hudi", None, None, None), "--format 'hudi' is not one of parquet, delta, iceberg"),
        (
            ("iceberg", None, "postgresql://me:pw@host/db", "a.b"),
            r"--catalog postgresql://\*\*\*@host/db: a URI must not",
        ),
        (("delta", "s3://key:secret@bucket/x", None, None), "must not carry credentials"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: tuple[Any, ...], message: str) -> None:
    table_format, lake, catalog, table = options
    with pytest.raises(ConfigError, match=message):
        lake_target(table_format, "labels", lake, catalog, table)


@pytest.mark.parametrize(
    ("catalog", "message"),
    [
        (
            "warehouse",
            "--catalog 'warehouse' is not configured; give its URI in ~/.pyiceberg.yaml or as PYICEBERG_CATALOG",
        ),
        (
            "sqlite:////nowhere/at/all.db",
            "--catalog sqlite:////nowhere/at/all.db cannot be used: .*unable to open database",
        ),
        ("ftp://host/x", "--catalog ftp://host/x cannot be used: Could not infer the catalog type"),
        ("http://127.0.0.1:9/", "--catalog http://127.0.0.1:9/ cannot be used: .*(refused|Max retries)"),
    ],
)
def test_a_catalogue_that_cannot_be_used_is_refused(tmp_path: Path, catalog: str, message: str) -> None:
    target = lake_target("iceberg", str(tmp_path / "labels"), None, catalog, "news.labels")
    assert target is not None
    with pytest.raises(ConfigError, match=message):
        check_lake(target, str(tmp_path / "labels"))


def test_a_catalogue_of_the_configuration_says_where_its_tables_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYICEBERG_CATALOG__WAREHOUSE__URI", f"sqlite:///{tmp_path}/catalog.db")
    monkeypatch.setenv("PYICEBERG_CATALOG__WAREHOUSE__WAREHOUSE", str(tmp_path / "warehouse"))
    world = make_world(tmp_path, "iceberg")
    world.target = LakeTarget("iceberg", None, "warehouse", "news.labels")
    assert world.label(AB).rows == 12
    assert list((tmp_path / "warehouse").rglob("*.parquet"))


@pytest.mark.parametrize("name", ["plain %20", "a%2Fb"])
def test_places_that_deltalake_gets_wrong_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="deltalake takes the '%' for an escape; name a place without it"):
        check_lake(LakeTarget("delta", str(tmp_path / name)), str(tmp_path))


def test_a_file_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for place in ("file", "file/below"):
        with pytest.raises(ConfigError, match="file"):
            check_lake(LakeTarget("delta", str(tmp_path / place)), str(tmp_path))


@pytest.mark.parametrize("table_format", FORMATS)
def test_on_s3_a_changed_file_and_a_rollback_are_read_back(table_format: str, tmp_path: Path, s3: S3Server) -> None:
    world = make_world(tmp_path, table_format, f"s3://{s3.bucket}/{tmp_path.name}/labels")
    assert world.label(AB).rows == 12
    world.check()
    write_corpus(world.corpus, {Y: articles(2, start=50)})
    assert world.label(AB).rows == 2
    assert world.label(definition({"a": "2", "b": "1"})).rows == 10
    world.check()
    republish(world.corpus, world.labels, AB)
    assert world.sync().rows == 10
    world.check()
    assert not world.sync().committed


@pytest.mark.parametrize("table_format", FORMATS)
def test_credentials_that_are_refused_are_told_without_them(
    table_format: str, tmp_path: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(tmp_path, table_format, f"s3://{s3.bucket}/{tmp_path.name}/labels")
    world.label(AB)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret")
    with pytest.raises(ConfigError) as refused:
        check_lake(world.target, str(world.labels))
    assert "wrong-secret" not in str(refused.value)
    assert "\n" not in str(refused.value)
