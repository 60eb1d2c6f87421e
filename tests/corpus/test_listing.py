"""What belongs to a corpus: hidden names, links and files that vanish, and tables that have a log of their own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mtop_batch import storage
from mtop_batch.corpus.listing import Listing, list_corpus
from mtop_batch.data.sources import read_columns
from mtop_batch.errors import DataError, StorageError
from tests.labelling.support import articles, write_corpus


def listed(corpus: Path, labels: str = "/labels") -> Listing:
    return list_corpus(str(corpus), labels)


def paths(listing: Listing) -> list[str]:
    return [source.path for source in listing.sources]


def test_a_partition_may_start_with_an_underscore_and_what_is_hidden_is_named(tmp_path: Path) -> None:
    names = ["_year=2024/a.parquet", "a.parquet", "_b.parquet", ".c.pq", "_old/d.parquet", "_year=2024/_e.parquet"]
    write_corpus(tmp_path, {name: articles(1) for name in [*names, "_labels/current/a.parquet"]})
    (tmp_path / "_SUCCESS").touch()
    (tmp_path / "note.txt").touch()
    listing = listed(tmp_path, str(tmp_path / "_labels"))
    assert paths(listing) == ["_year=2024/a.parquet", "a.parquet"]
    assert listing.ignored == ["note.txt"]
    assert listing.hidden == [".c.pq", "_b.parquet", "_old/d.parquet", "_year=2024/_e.parquet"]


@pytest.mark.parametrize("name", ["_a.parquet", ".a.pq", "part-00000", "a.PARQUET"])
def test_a_file_that_is_named_is_taken_whatever_its_name(tmp_path: Path, name: str) -> None:
    write_corpus(tmp_path, {name: articles(1), "b.parquet": articles(1)})
    listing = listed(tmp_path / name)
    assert (listing.root, paths(listing), listing.is_one_file) == (str(tmp_path), [name], True)


def test_a_corpus_of_hidden_files_says_so(tmp_path: Path) -> None:
    write_corpus(tmp_path, {"_a.parquet": articles(1)})
    with pytest.raises(DataError, match=r"its 1 Parquet files, such as _a\.parquet, are hidden"):
        listed(tmp_path)


def test_a_bad_link_is_one_bad_entry(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus", {"a.parquet": articles(1)})
    (tmp_path / "corpus" / "self").symlink_to(tmp_path / "corpus" / "self")
    (tmp_path / "corpus" / "one").symlink_to(tmp_path / "corpus" / "two")
    (tmp_path / "corpus" / "two").symlink_to(tmp_path / "corpus" / "one")
    (tmp_path / "corpus" / "long").symlink_to("x" * 300)
    (tmp_path / "corpus" / "up").symlink_to(tmp_path / "corpus")
    listing = listed(tmp_path / "corpus")
    assert paths(listing) == ["a.parquet"]
    assert listing.dangling == ["long", "one", "self", "two"]


def forbid(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    """Let the directory refuse to be read; tests may run as somebody who may read everything."""
    scandir = os.scandir

    def refusing(path: str) -> Any:
        if os.path.realpath(path) == str(directory):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)


def test_a_link_to_what_may_not_be_read_is_one_bad_entry_and_a_directory_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_corpus(tmp_path, {"corpus/a.parquet": articles(1), "secret/b.parquet": articles(1)})
    (tmp_path / "corpus" / "link").symlink_to(tmp_path / "secret")
    forbid(monkeypatch, tmp_path / "secret")
    assert (paths(listed(tmp_path / "corpus")), listed(tmp_path / "corpus").dangling) == (["a.parquet"], ["link"])
    with pytest.raises(StorageError, match="Permission denied"):
        storage.list_files(str(tmp_path))


def test_hidden_directories_that_may_not_be_read_are_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_corpus(tmp_path, {"a.parquet": articles(1), ".trash/b.parquet": articles(1)})
    forbid(monkeypatch, tmp_path / ".trash")
    assert paths(listed(tmp_path)) == ["a.parquet"]


def vanishing(monkeypatch: pytest.MonkeyPatch, vanish: Iterator[Any]) -> None:
    """Do the next thing of `vanish` between the listing of a directory and the first look at its entries."""
    scandir = os.scandir

    class Entries:
        def __init__(self, path: str) -> None:
            with scandir(path) as found:
                self._entries = list(found)
            next(vanish, None)

        def __enter__(self) -> Iterator[Any]:
            return iter(self._entries)

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(os, "scandir", Entries)


@pytest.mark.parametrize("what", ["file", "directory", "directory that becomes a file"])
def test_what_is_gone_between_listing_and_looking_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    write_corpus(tmp_path, {"a.parquet": articles(1), "gone/b.parquet": articles(1), "gone.parquet": articles(1)})

    def vanish() -> Iterator[None]:
        if what == "file":
            (tmp_path / "gone.parquet").unlink()
        else:
            (tmp_path / "gone" / "b.parquet").unlink()
            (tmp_path / "gone").rmdir()
        if "becomes" in what:
            (tmp_path / "gone").touch()
        yield

    vanishing(monkeypatch, vanish())
    assert "a.parquet" in paths(listed(tmp_path))
    assert not {"gone.parquet" if what == "file" else "gone/b.parquet"} & set(paths(listed(tmp_path)))


LOGS = {
    "_delta_log/00000000000000000000.json": "a Delta table",
    "_delta_log/00000000000000000010.checkpoint.parquet": "a Delta table",
    "metadata/00001-4f3e.metadata.json": "an Iceberg table",
    "metadata/00001-4f3e.metadata.json.gz": "an Iceberg table",
    ".hoodie/hoodie.properties": "a Hudi table",
    "snapshot/snapshot-7": "a Paimon table",
    "_spark_metadata/0": "the output of a Spark stream",
}


@pytest.mark.parametrize("log", LOGS)
@pytest.mark.parametrize("above", ["", "tables/news/"])
def test_a_table_with_a_log_is_refused_with_the_way_out(tmp_path: Path, log: str, above: str) -> None:
    write_corpus(tmp_path, {f"{above}date=1/a.parquet": articles(1)})
    (tmp_path / above / log).parent.mkdir(parents=True)
    (tmp_path / above / log).touch()
    for read in (lambda: listed(tmp_path), lambda: read_columns(str(tmp_path), ["id"])):
        with pytest.raises(DataError, match=f"{LOGS[log]}.*Write what counts as plain Parquet") as caught:
            read()
        assert str(tmp_path / above).rstrip("/") + " is" in str(caught.value)


def test_a_partition_of_a_table_with_a_log_is_refused_too(tmp_path: Path) -> None:
    write_corpus(tmp_path, {"date=1/lang=en/a.parquet": articles(1)})
    assert paths(listed(tmp_path / "date=1" / "lang=en")) == ["a.parquet"]
    (tmp_path / "_delta_log").mkdir()
    with pytest.raises(DataError, match=f"{tmp_path} is a Delta table"):
        listed(tmp_path / "date=1" / "lang=en")


def test_names_that_only_look_like_logs_are_no_tables(tmp_path: Path) -> None:
    write_corpus(tmp_path, {"a.parquet": articles(1), "metadata/b.parquet": articles(1)})
    (tmp_path / "metadata" / "notes.json").touch()
    (tmp_path / "_delta_log.json").touch()
    assert paths(listed(tmp_path)) == ["a.parquet", "metadata/b.parquet"]


def test_training_data_may_have_any_of_the_names(tmp_path: Path) -> None:
    names = ["a.PARQUET", "b.pq", "_year=2024/c.parq", "_hidden.parquet"]
    write_corpus(tmp_path, {name: articles(1, start=row) for row, name in enumerate(names)})
    found = [part.table["id"].to_pylist() for part in read_columns(str(tmp_path), ["id"])]
    assert sorted(found) == [["a0"], ["a1"], ["a2"]]
