"""Source files: what is in them, and a bad file told from storage that does not answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from mtop_batch import storage
from mtop_batch.corpus.files import Layout, MissingColumns, SourceFile, UnreadableSource, read_layout
from mtop_batch.errors import StorageError
from tests.labelling.support import articles, write_corpus


def source(root: Path, name: str = "x.parquet") -> SourceFile:
    info = next(info for info in storage.list_files(str(root)) if info.path == name)
    return SourceFile(info.path, info.size, info.version)


def layout(root: Path, found: SourceFile, *, required: bool = False) -> Layout:
    columns = ("title", "body")
    return read_layout(str(root), found, id_column="id", text_columns=columns, text_columns_required=required)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", r"empty \(0 bytes\)"),
        (b"no parquet at all", "not readable as Parquet"),
        (b"PAR1 cut off", "not readable as Parquet"),
        (b"PAR1" + b"\x00" * 60 + b"\x08\x00\x00\x00PAR1", "not readable as Parquet"),
    ],
    ids=["empty", "text", "truncated", "bad footer"],
)
def test_bad_files_are_told_with_a_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "x.parquet").write_bytes(content)
    with pytest.raises(UnreadableSource, match=reason) as caught:
        layout(tmp_path, source(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_forbidden_file_is_a_bad_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_corpus(tmp_path, {"x.parquet": articles(1)})
    found = source(tmp_path)

    def fail(uri: str) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(storage, "filesystem", fail)
    with pytest.raises(UnreadableSource, match="access denied"):
        layout(tmp_path, found)


def test_storage_that_does_not_answer_says_nothing_about_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_corpus(tmp_path, {"x.parquet": articles(1)})
    found = source(tmp_path)

    def fail(uri: str) -> Any:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(storage, "filesystem", fail)
    with pytest.raises(StorageError, match="Input/output error"):
        layout(tmp_path, found)


def test_missing_and_repeated_columns_are_told_with_those_that_are_there(tmp_path: Path) -> None:
    repeated = pa.Table.from_arrays([pa.array([1]), pa.array(["t"]), pa.array(["t"])], names=["id", "body", "body"])
    files = {"x.parquet": {"key": [1], "body": ["t"]}, "y.parquet": {"id": [1], "text": ["t"]}, "z.parquet": repeated}
    write_corpus(tmp_path, files)
    for name, message in (
        ("x.parquet", "no id column 'id'; columns: key, body"),
        ("y.parquet", "no text column 'title' or 'body'; columns: id, text"),
        ("z.parquet", "column 'body' occurs 2 times"),
    ):
        with pytest.raises(MissingColumns, match=message):
            layout(tmp_path, source(tmp_path, name))


def test_explicit_text_columns_must_all_be_there(tmp_path: Path) -> None:
    write_corpus(tmp_path, {"x.parquet": {"id": [1], "body": ["t"]}})
    assert layout(tmp_path, source(tmp_path)).text_columns == ("body",)
    with pytest.raises(MissingColumns, match="no text column 'title'"):
        layout(tmp_path, source(tmp_path), required=True)
