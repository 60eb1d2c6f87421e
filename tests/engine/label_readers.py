"""What plain readers see of a label table while it is written, and whether two tables hold the same bytes."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from mtop_batch import storage
from mtop_batch.errors import LabelTableError
from mtop_batch.table.footer import FOOTER_KEY

Sources = Mapping[str, Sequence[str]]
"""Ids of the articles of each source file, in order."""

_INTERVAL_S = 0.3


class TableReader:
    """Reads a label table again and again in a thread while the block runs; what it finds wrong ends the block.

    Args:
        labels: The label table.
        sources: What may be in it.
        through_outages: Storage that does not answer is not what is looked for.
    """

    def __init__(self, labels: str, sources: Sources, *, through_outages: bool) -> None:
        self._labels = labels
        self._sources = sources
        self._through_outages = through_outages
        self._checked: set[tuple[str, str]] = set()
        self._ended = threading.Event()
        self._wrong: BaseException | None = None
        self._thread = threading.Thread(target=self._watch, name="reader", daemon=True)
        self.num_looks = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()
        if self._wrong is not None and error is None:
            raise self._wrong
        if error is None:
            self.look()

    def look(self) -> int:
        """Check everything there is to see now; returns the number of published files.

        Raises:
            AssertionError: A reader sees what it must never see.
        """
        for name, version in label_files(self._labels).items():
            if (name, version) not in self._checked:
                check_label_file(storage.read_bytes(storage.join(self._labels, "_store", name)), name, self._sources)
                self._checked.add((name, version))
        files = published_files(self._labels)
        for name, version in files.items():
            if (name, version) not in self._checked:
                check_published_file(storage.read_bytes(storage.join(self._labels, "current", name)), self._sources)
                self._checked.add((name, version))
        if files:
            check_data_set(storage.join(self._labels, "current"), self._sources)
        self.num_looks += 1
        return len(files)

    def _watch(self) -> None:
        while not self._ended.wait(_INTERVAL_S):
            try:
                self.look()
            except (LabelTableError, OSError, duckdb.Error) as error:
                if not self._through_outages:
                    self._wrong = error
                    return
            except BaseException as error:  # is raised again where the block ends
                self._wrong = error
                return


def label_files(labels: str) -> dict[str, str]:
    """Name and version of every label file of the store."""
    return {info.path: info.version for info in storage.list_files(storage.join(labels, "_store"))}


def published_files(labels: str) -> dict[str, str]:
    """Name and version of every published file."""
    return {info.path: info.version for info in storage.list_files(storage.join(labels, "current"))}


def check_label_file(data: bytes, name: str, sources: Sources) -> None:
    """A label file is whole, and has the rows of its slice of the source file in their order."""
    file = pq.ParquetFile(pa.BufferReader(data))
    record = json.loads(file.metadata.metadata[FOOTER_KEY.encode()])
    start, stop = record["rows"]
    assert file.read()["id"].to_pylist() == list(sources[record["source"]["path"]][start:stop]), name


def check_published_file(data: bytes, sources: Sources) -> None:
    """A published file is whole, and has all rows of its source file in their order, with a label or an error each."""
    file = pq.ParquetFile(pa.BufferReader(data))
    path = json.loads(file.metadata.metadata[FOOTER_KEY.encode()])["source"]["path"]
    table = file.read()
    assert table["id"].to_pylist() == list(sources[path]), path
    scores = [name for name in table.column_names if name.endswith("_score")]
    for row in table.select([*scores, "error"]).to_pylist():
        assert all((row[name] is None) == (row["error"] is not None) for name in scores), (path, row)


def check_data_set(directory: str, sources: Sources) -> None:
    """Plain readers of the published table see no article twice and none that is not in the corpus."""
    fs, path = storage.filesystem(directory)
    seen = ds.dataset(path, filesystem=fs, format="parquet", partitioning="hive").to_table(["id", "date"])
    known = {article for articles in sources.values() for article in articles}
    ids = seen["id"].to_pylist()
    assert len(ids) == len(set(ids)), "pyarrow sees an article twice"
    assert known.issuperset(ids)
    connection = duckdb.connect()
    if storage.is_remote(directory):
        connection.register_filesystem(storage.fsspec_filesystem(directory)[0])
    query = f"SELECT count(*), count(DISTINCT id) FROM read_parquet('{directory}/**/*.parquet', hive_partitioning=true)"
    found = connection.execute(query).fetchone()
    assert found is not None
    assert found[0] == found[1], "DuckDB sees an article twice"


def contents(labels: str) -> dict[str, bytes]:
    """All label files and published files by name, with one run id in place of everyone's."""
    names = [f"_store/{name}" for name in label_files(labels)] + [f"current/{name}" for name in published_files(labels)]
    data = storage.in_threads(lambda name: storage.read_bytes(storage.join(labels, name)), names)
    return {name: _without_run(content) for name, content in zip(names, data, strict=True)}


def num_rows(labels: str) -> int:
    """Rows of all label files."""
    fs, path = storage.filesystem(storage.join(labels, "_store"))
    names = [f"{path}/{name}" for name in label_files(labels)]
    return sum(pq.read_metadata(name, filesystem=fs).num_rows for name in names)


def reports(labels: str) -> list[dict[str, Any]]:
    """The reports of the table's runs, the oldest first."""
    found = storage.list_files(storage.join(labels, "_runs"), suffix="/report.json")
    return [json.loads(storage.read_bytes(storage.join(labels, "_runs", info.path))) for info in found]


def _without_run(content: bytes) -> bytes:
    run = json.loads(pq.read_metadata(pa.BufferReader(content)).metadata[FOOTER_KEY.encode()])["run"]
    assert content.count(run.encode()) == 1
    return content.replace(run.encode(), b"-" * len(run))
