"""Label files: written once, whole, with the same bytes; what is found wrong is damage, and only that."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtop_batch import storage
from mtop_batch.errors import DamagedLabelFile, LabelTableError, StorageError
from mtop_batch.labelling.plan.planner import plan_labels
from mtop_batch.labelling.plan.work import Unit
from mtop_batch.storage import clients
from mtop_batch.table.columns import LABEL_TYPE, OutputKind, label_schema
from mtop_batch.table.footer import FOOTER_KEY, LabelFooter
from mtop_batch.table.names import label_path
from mtop_batch.table.store import (
    LabelFile,
    list_store,
    read_footer,
    read_label_file,
    read_label_sets,
    remove_unfinished,
    write_label_file,
)
from tests.labelling.support import articles, definition, label_corpus, label_unit, small_slices, write_corpus
from tests.s3 import S3Server

A = definition({"a": "1"})


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    write_corpus(tmp_path / "corpus", {"d=1/x.parquet": articles(5), "d=2/y z.pq": articles(4, start=5)})
    return tmp_path / "corpus"


@pytest.fixture
def labels(tmp_path: Path) -> str:
    return str(tmp_path / "labels")


@pytest.fixture
def unit(corpus: Path, labels: str) -> Unit:
    return plan_labels(str(corpus), labels, A).units[0]


def write(labels: str, unit: Unit, label: str = "yes", run: str = "r", num_rows: int = 5) -> int:
    """Write the unit's label file, with the same label for all rows."""
    columns = {
        "a_label": pa.array([label] * num_rows, pa.string()).cast(LABEL_TYPE),
        "a_score": pa.array([0.5] * num_rows, pa.float32()),
    }
    (target,) = unit.targets
    ids = pa.array([f"a{n}" for n in range(num_rows)])
    return write_label_file(labels, target.file, ids, columns, [None] * num_rows, unit.footer(target, A, run))


@pytest.fixture
def file(labels: str, unit: Unit) -> LabelFile:
    write(labels, unit)
    return unit.targets[0].file


def test_a_label_file_has_the_columns_and_the_record_of_the_contract(corpus: Path, labels: str) -> None:
    wanted = definition({"a": "f1", "r": "f2"})
    label_corpus(corpus, Path(labels), wanted)
    file = list_store(labels).files_of(wanted.label_set_name("ar"))[0]
    parquet = pq.ParquetFile(file.uri(labels))
    strings = pa.dictionary(pa.int32(), pa.string())
    types = {"id": pa.string(), "a_label": strings, "a_score": pa.float32(), "r_score": pa.float32()}
    assert parquet.schema_arrow.equals(pa.schema({**types, "error": pa.string()}))
    assert parquet.metadata.row_group(0).column(0).compression == "ZSTD"
    footer = json.loads(parquet.metadata.metadata[FOOTER_KEY.encode()])
    size = (corpus / "d=1/x.parquet").stat().st_size
    assert footer["source"] | {"version": ""} == {"path": "d=1/x.parquet", "size": size, "version": "", "num_rows": 5}
    assert (footer["rows"], footer["text_columns_used"]) == ([0, 5], ["title", "body"])
    assert footer["tasks"]["a"] == {"fingerprint": "f1", "kind": "classification", "bundle": "news"}


def test_a_schema_has_no_label_column_for_regressions() -> None:
    kinds = {"a": OutputKind("classification"), "r": OutputKind("regression")}
    assert label_schema(pa.int64(), kinds).names == ["id", "a_label", "a_score", "r_score", "error"]


def test_the_same_input_gives_the_same_bytes(corpus: Path, tmp_path: Path) -> None:
    digests = []
    for name in ("one", "two"):
        plan = plan_labels(str(corpus), str(tmp_path / name), A)
        for unit in plan.units:
            label_unit(plan.corpus, plan.labels, A, unit, run="the run")
        files = sorted((tmp_path / name).rglob("*.parquet"))
        digests.append([hashlib.sha256(path.read_bytes()).hexdigest() for path in files])
    assert digests[0] == digests[1]
    assert len(digests[0]) == 2


def test_who_comes_second_with_the_same_name_changes_nothing(labels: str, unit: Unit, file: LabelFile) -> None:
    before = storage.stat(file.uri(labels)), storage.read_bytes(file.uri(labels))
    assert write(labels, unit, label="no", run="another") == 0
    assert (storage.stat(file.uri(labels)), storage.read_bytes(file.uri(labels))) == before
    assert read_label_file(labels, file, ["a_label"])[1]["a_label"].to_pylist() == ["yes"] * 5


def test_a_disk_without_links_still_takes_whole_files_once(
    labels: str, unit: Unit, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    assert write(labels, unit) > 0
    assert write(labels, unit, label="no") == 0
    assert os.listdir(f"{labels}/_unfinished") == []


def test_labels_of_another_number_of_rows_are_not_written(labels: str, unit: Unit) -> None:
    with pytest.raises(LabelTableError, match="5 rows were read, but there are labels for"):
        write(labels, unit, num_rows=4)
    assert not storage.exists(labels)


def test_a_killed_writer_leaves_nothing_that_is_listed(
    labels: str, unit: Unit, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object, **__: object) -> None:
        raise SystemExit  # before anything is tidied up, as after SIGKILL

    monkeypatch.setattr(os, "link", die)
    monkeypatch.setattr(Path, "unlink", die)
    with pytest.raises(SystemExit):
        write(labels, unit)
    assert os.listdir(f"{labels}/_unfinished")
    assert list_store(labels).sizes == {}
    monkeypatch.undo()
    remove_unfinished(labels)
    assert not storage.exists(f"{labels}/_unfinished")


def test_a_listing_knows_files_by_source_content_and_rows_and_ignores_foreign_ones(corpus: Path, labels: str) -> None:
    with small_slices(2):
        label_corpus(corpus, Path(labels), A)
    for path in ("notes.txt", "top.parquet", "export/all.parquet", "s/x.parquet@/1-000000000-000000005.parquet"):
        storage.write_bytes(storage.join(labels, "_store", path), b"x")
    listing = list_store(labels)
    name = A.label_set_name("a")
    assert (listing.label_sets, len(listing.files_of(name))) == ([name], 5)
    assert len(listing.foreign) == 4
    assert listing.label_sets_of("d=1/x.parquet") == {name}
    content = next(found.content for found in listing.names.values() if found.source_path == "d=1/x.parquet")
    assert sorted(listing.of("d=1/x.parquet", content)[name]) == [(0, 1), (1, 3), (3, 5)]
    assert list_store(f"{labels}/nowhere").sizes == {}


def test_a_footer_is_found_whatever_size_the_listing_told(labels: str, file: LabelFile) -> None:
    size = storage.stat(file.uri(labels)).size
    for told in (size, None, 5, size - 100, size + 100):
        assert read_footer(labels, file, told).source.path == "d=1/x.parquet"


def damaged_contents(whole: bytes, foreign: bytes) -> dict[str, bytes]:
    return {"empty": b"", "cut": whole[:-20], "text": b"hello", "of another kind": foreign}


@pytest.mark.parametrize("kind", ["empty", "cut", "text", "of another kind"])
def test_a_file_that_was_read_and_is_no_label_file_is_damaged(
    corpus: Path, labels: str, file: LabelFile, kind: str
) -> None:
    path = Path(file.uri(labels))
    foreign = (corpus / "d=1/x.parquet").read_bytes()
    path.write_bytes(damaged_contents(path.read_bytes(), foreign)[kind])
    with pytest.raises(DamagedLabelFile):
        read_footer(labels, file, path.stat().st_size)
    with pytest.raises(DamagedLabelFile):
        read_label_file(labels, file, ["id"])
    assert read_label_sets(labels, list_store(labels)) == []


def test_a_file_under_the_name_of_another_is_damaged(labels: str, unit: Unit, file: LabelFile) -> None:
    for source, rows in (
        (replace(unit.source, version="other"), (0, 5)),
        (replace(unit.source, path="d=1/w.parquet"), (0, 5)),
        (unit.source, (0, 4)),
    ):
        other = LabelFile(file.label_set, label_path(source, rows))
        storage.write_bytes(other.uri(labels), storage.read_bytes(file.uri(labels)))
        with pytest.raises(DamagedLabelFile, match=r"says that it has rows \(0, 5\) of d=1/x.parquet"):
            read_footer(labels, other)


def test_a_file_of_another_format_is_not_damaged(
    labels: str, unit: Unit, file: LabelFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.delete(file.uri(labels))
    monkeypatch.setattr("mtop_batch.table.footer.LABEL_FORMAT", 9)
    write(labels, unit)
    monkeypatch.undo()
    with pytest.raises(LabelTableError, match="have format 9") as caught:
        read_footer(labels, file)
    assert not isinstance(caught.value, DamagedLabelFile)


def test_a_label_set_is_known_by_any_of_its_files_that_can_be_read(corpus: Path, labels: str) -> None:
    label_corpus(corpus, Path(labels), A)
    files = list_store(labels).files_of(A.label_set_name("a"))
    Path(files[0].uri(labels)).write_bytes(b"")
    (found,) = read_label_sets(labels, list_store(labels))
    assert (found.name, found.fingerprints, found.kinds) == (
        files[0].label_set,
        {"a": "1"},
        {"a": OutputKind("classification")},
    )


def test_refused_credentials_are_a_storage_error_and_no_damage(
    s3: S3Server, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = f"s3://{s3.bucket}/refused"
    unit = plan_labels(str(corpus), labels, A).units[0]
    write(labels, unit)
    file = unit.targets[0].file
    size = storage.stat(file.uri(labels)).size
    clients._pyarrow_s3.cache_clear()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    for read in (
        lambda: read_footer(labels, file, size),
        lambda: read_label_file(labels, file, ["id"]),
        lambda: list_store(labels),
        lambda: write(labels, unit),
    ):
        with pytest.raises(StorageError, match="refused") as caught:
            read()
        assert not isinstance(caught.value, DamagedLabelFile)


def test_on_s3_a_name_is_written_once_too(s3: S3Server, corpus: Path) -> None:
    labels = f"s3://{s3.bucket}/once"
    unit = plan_labels(str(corpus), labels, A).units[0]
    assert write(labels, unit) > 0
    assert write(labels, unit, label="no") == 0
    footer, table = read_label_file(labels, unit.targets[0].file, ["id", "a_label", "b_label"])
    assert isinstance(footer, LabelFooter)
    assert table.to_pydict() == {"id": [f"a{n}" for n in range(5)], "a_label": ["yes"] * 5}
