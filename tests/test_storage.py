"""Storage: listings, atomic writes, and one clear line when a service does not answer."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pyarrow as pa
import pytest

from mtop_batch import storage
from mtop_batch.errors import AccessRefused, ConfigError, LabelTableError, StorageError, StorageFull
from mtop_batch.storage import clients, conditional
from mtop_batch.storage.retry import with_retries
from tests.s3_stub import s3_stub


@pytest.fixture(params=["local", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place of its own on a local disk and on an object store."""
    return str(tmp_path / "root") if request.param == "local" else f"memory://bucket-{uuid4().hex}/root"


def test_written_files_are_listed_with_paths_below_the_root(root: str) -> None:
    for path in ("b.parquet", "date=2026-11-20/a b.parquet", "note.txt"):
        storage.write_bytes(storage.join(root, path), b"12345")
    listed = storage.list_files(root, suffix=".parquet")
    assert [info.path for info in listed] == ["b.parquet", "date=2026-11-20/a b.parquet"]
    assert all(info.size == 5 and info.version for info in listed)


def test_hidden_names_below_the_root_are_left_out_but_the_root_itself_may_be_hidden(root: str) -> None:
    for path in ("_runs/r/run.json", ".tmp/a", "x/_y/z", "x/.z", "x/z"):
        storage.write_bytes(storage.join(root, path), b"")
    assert [info.path for info in storage.list_files(root)] == ["x/z"]
    assert [info.path for info in storage.list_files(storage.join(root, "_runs"))] == ["r/run.json"]


def test_a_single_file_can_be_listed_as_its_own_root(root: str) -> None:
    uri = storage.join(root, "x/a.parquet")
    storage.write_bytes(uri, b"abc")
    assert [info.path for info in storage.list_files(uri)] == ["a.parquet"]
    assert storage.stat(uri) == storage.list_files(uri)[0]
    assert storage.is_file(uri)
    assert not storage.is_file(storage.join(root, "x"))


def test_a_root_that_does_not_exist_has_no_files(root: str) -> None:
    assert storage.list_files(root) == []
    assert not storage.exists(root)


def test_version_changes_with_the_content(root: str) -> None:
    uri = storage.join(root, "a")
    storage.write_bytes(uri, b"1")
    before = storage.stat(uri).version
    storage.write_bytes(uri, b"2")
    assert storage.stat(uri).version != before


def test_read_write_delete_and_copies(root: str, tmp_path: Path) -> None:
    uri = storage.join(root, "deep/er/file")
    storage.write_bytes(uri, pa.py_buffer(b"data"))
    assert storage.exists(uri)
    assert storage.exists(storage.join(root, "deep"))
    storage.download(uri, tmp_path / "copies" / "one")
    storage.upload(tmp_path / "copies" / "one", storage.join(root, "two"))
    assert storage.read_bytes(storage.join(root, "two")) == b"data"
    storage.delete(uri)
    storage.delete(uri)
    assert not storage.exists(uri)


def test_a_missing_file_is_file_not_found(root: str, tmp_path: Path) -> None:
    uri = storage.join(root, "nothing")
    for call in (storage.read_bytes, storage.stat):
        with pytest.raises(FileNotFoundError):
            call(uri)
    with pytest.raises(FileNotFoundError):
        storage.download(uri, tmp_path / "copy")
    assert not list(tmp_path.glob("**/*copy*"))


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = str(tmp_path / "a")
    storage.write_bytes(uri, b"old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(StorageError, match="No space left on device"):
        storage.write_bytes(uri, b"new")
    assert storage.read_bytes(uri) == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_a_full_disk_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    events: list[object] = []
    with pytest.raises(StorageFull, match="free some space"):
        with_retries(lambda: storage.write_bytes(str(tmp_path / "a"), b""), "a.parquet", events.append, 60.0)
    assert events == []


@pytest.mark.parametrize("part", ["..", "../x", "a/../../x", "/etc/passwd", ""])
def test_join_stays_below_its_uri(part: str) -> None:
    with pytest.raises(LabelTableError, match="does not stay below"):
        storage.join("s3://bucket/labels", part)


@pytest.mark.parametrize(
    ("uri", "expected"), [("/", "/a/b"), ("x/", "x/a/b"), ("s3://b/x//", "s3://b/x/a/b"), (".", "./a/b")]
)
def test_join_puts_one_slash_between(uri: str, expected: str) -> None:
    assert storage.join(uri, "a", "b") == expected


def test_absolute_changes_local_paths_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.absolute("x/../y/") == str(tmp_path / "y")
    assert storage.absolute("file:///data/x%20y") == "/data/x y"
    assert storage.absolute("s3://b/x/") == "s3://b/x"


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a").write_bytes(b"x")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "up").symlink_to(tmp_path / "root")
    (tmp_path / "root" / "gone").symlink_to(tmp_path / "nowhere")
    listed = storage.list_files(str(tmp_path / "root"))
    assert [info.path for info in listed] == ["gone", "link/a"]


def test_an_unreachable_server_is_named_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "_S3_ATTEMPTS", 2)
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 1)
    for key, value in {
        "AWS_ENDPOINT_URL": "http://user:hunter2@127.0.0.1:9",
        "AWS_ACCESS_KEY_ID": "AKIATEST",
        "AWS_SECRET_ACCESS_KEY": "s3cr3t",
        "AWS_MAX_ATTEMPTS": "1",
    }.items():
        monkeypatch.setenv(key, value)
    for call in (storage.list_files, storage.read_bytes, storage.exists):
        with pytest.raises(StorageError, match=r"s3://bucket/x at 127\.0\.0\.1 cannot be reached") as caught:
            call("s3://bucket/x")
        assert "hunter2" not in str(caught.value)
        assert "s3cr3t" not in str(caught.value)


def test_credentials_in_a_uri_are_refused_without_repeating_them() -> None:
    with pytest.raises(ConfigError, match="must not carry credentials or a signature") as caught:
        storage.filesystem("s3://KEY:hunter2@bucket/x")
    assert "hunter2" not in str(caught.value)


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(ConfigError, match="storage nosuch:// cannot be used"):
        storage.list_files("nosuch://x/y")


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place where writes can be made on condition: a local disk and an S3 server."""
    if request.param == "local":
        return str(tmp_path / "place")
    server = request.getfixturevalue("s3")
    return f"s3://{server.bucket}/{uuid4().hex}"


def replace_version(uri: str, version: str | None, data: bytes, tmp_path: Path) -> bool:
    lock, unfinished = str(tmp_path / "x.lock"), str(tmp_path / "unfinished")
    return conditional.replace_version(uri, version, data, lock=lock, unfinished=unfinished)


def test_a_file_is_created_by_the_first_who_writes_it(place: str, tmp_path: Path) -> None:
    uri = storage.join(place, "d=1/a b.parquet")
    assert conditional.create(uri, pa.py_buffer(b"first"), unfinished=str(tmp_path / "unfinished"))
    assert not conditional.create(uri, b"second", unfinished=str(tmp_path / "unfinished"))
    assert storage.read_bytes(uri) == b"first"


def test_of_many_who_create_a_file_at_once_one_succeeds(place: str, tmp_path: Path) -> None:
    uri = storage.join(place, "a")

    def create(number: int) -> bool:
        return conditional.create(uri, b"%d" % number, unfinished=str(tmp_path / "unfinished"))

    created = list(storage.in_threads(create, range(8), threads=8))
    assert [number for number, first in enumerate(created) if first] == [int(storage.read_bytes(uri))]


def test_a_file_is_replaced_only_while_it_is_what_was_listed(place: str, tmp_path: Path) -> None:
    uri = storage.join(place, "a")
    assert replace_version(uri, None, b"1", tmp_path)
    assert not replace_version(uri, None, b"2", tmp_path)
    (listed,) = storage.list_files(place)
    assert replace_version(uri, listed.version, b"3", tmp_path)
    assert not replace_version(uri, listed.version, b"4", tmp_path)
    assert storage.read_bytes(uri) == b"3"
    storage.delete(uri)
    assert not replace_version(uri, listed.version, b"5", tmp_path)
    assert not storage.exists(uri)


def test_a_file_is_removed_only_while_it_is_what_was_listed(tmp_path: Path) -> None:
    uri, lock = str(tmp_path / "a"), str(tmp_path / "x.lock")
    assert conditional.delete_version(uri, "1", lock=lock)
    storage.write_bytes(uri, b"1")
    listed = storage.stat(uri)
    assert not conditional.delete_version(uri, "another", lock=lock)
    assert conditional.delete_version(uri, listed.version, lock=lock)
    assert not storage.exists(uri)


def test_a_failed_creation_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(StorageError, match="No space left on device"):
        conditional.create(str(tmp_path / "a"), b"new", unfinished=str(tmp_path / "unfinished"))
    assert os.listdir(tmp_path / "unfinished") == []
    assert not storage.exists(str(tmp_path / "a"))


def test_storage_that_compares_is_found_out_with_one_small_file(place: str, tmp_path: Path) -> None:
    uri = storage.join(place, "_probe.json")
    for _ in range(2):
        assert conditional.can_compare(uri, unfinished=str(tmp_path / "unfinished"))
    assert storage.read_bytes(uri) == b"{}"


@pytest.fixture
def stub_environment(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Leads the clients to an endpoint, without their patience."""

    def lead(endpoint: str) -> None:
        monkeypatch.setattr(clients, "_S3_ATTEMPTS", 2)
        monkeypatch.setattr("s3fs.S3FileSystem.retries", 1)
        keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "hunter2", "AWS_REGION": "us-east-1"}
        for name, value in {**keys, "AWS_ENDPOINT_URL": endpoint, "AWS_MAX_ATTEMPTS": "1"}.items():
            monkeypatch.setenv(name, value)

    return lead


def test_a_server_that_ignores_conditions_is_found_out(stub_environment: Callable[[str], None]) -> None:
    with s3_stub() as endpoint:
        stub_environment(endpoint)
        assert conditional.create("s3://bucket/a", b"1", unfinished="")
        assert conditional.create("s3://bucket/a", b"2", unfinished="")
        assert not conditional.can_compare("s3://bucket/labels/_probe.json", unfinished="")


@pytest.mark.parametrize(
    "refusal", [(400, "ExpiredToken"), (401, "Unauthorized"), (403, "AccessDenied"), (400, "InvalidToken")], ids=str
)
def test_a_refusal_is_no_absence_whatever_its_status(
    stub_environment: Callable[[str], None], refusal: tuple[int, str]
) -> None:
    calls: list[Callable[[str], object]] = [
        storage.list_files,
        storage.read_bytes,
        conditional.read,
        storage.delete,
        lambda uri: conditional.create(uri, b"", unfinished=""),
        lambda uri: storage.write_bytes(uri, b""),
    ]
    with s3_stub(refusal=refusal) as endpoint:
        stub_environment(endpoint)
        for call in calls:
            with pytest.raises(StorageError) as caught:
                call("s3://bucket/labels/x")
            assert "hunter2" not in str(caught.value)
        with pytest.raises(AccessRefused, match="was refused"):
            storage.list_files("s3://bucket/labels")


def test_in_threads_keeps_the_order_and_raises() -> None:
    assert list(storage.in_threads(lambda x: x * x, range(100), threads=4)) == [x * x for x in range(100)]
    with pytest.raises(ZeroDivisionError):
        list(storage.in_threads(lambda x: 1 / x, [1, 0]))
