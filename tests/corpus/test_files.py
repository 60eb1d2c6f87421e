"""Source files: what is in them, and a bad file told from storage that does not answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from mtop_batch import storage
from mtop_batch.corpus.files import Layout, MissingColumns, SourceFile, UnreadableSource, read_layout
from mtop_batch.errors import StorageError
from mtop_batch.labelling.plan.planner import plan_labels
from mtop_batch.labelling.run.read_rows import read_unit
from tests.labelling.support import articles, definition, write_corpus

BOTH = ("title", "body")


def source(root: Path, name: str = "x.parquet") -> SourceFile:
    info = next(info for info in storage.list_files(str(root)) if info.path == name)
    return SourceFile(info.path, info.size, info.version)


def layout(root: Path, found: SourceFile, *, required: bool = False) -> Layout:
    return read_layout(str(root), found, id_column="id", inputs=[BOTH], text_columns_required=required)


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
        ("z.parquet", "2 columns 'body'"),
    ):
        with pytest.raises(MissingColumns, match=message):
            layout(tmp_path, source(tmp_path, name))


def test_explicit_text_columns_must_all_be_there(tmp_path: Path) -> None:
    write_corpus(tmp_path, {"x.parquet": {"id": [1], "body": ["t"]}})
    assert layout(tmp_path, source(tmp_path)).text_columns == {BOTH: ("body",)}
    with pytest.raises(MissingColumns, match="no text column 'title'"):
        layout(tmp_path, source(tmp_path), required=True)


def varint(value: int) -> bytes:
    """A whole number as Thrift's compact protocol has it."""
    zigzag = (value << 1) ^ (value >> 63)
    found = bytearray()
    while zigzag > 0x7F:
        found.append(zigzag & 0x7F | 0x80)
        zigzag >>= 7
    return bytes([*found, zigzag])


def with_row_counts(content: bytes, before: int, *counts: int) -> bytes:
    """A Parquet file that says other row counts: that of each column, of the row group, and of the file.

    They follow one another as fields of type i64 (0x16).
    """
    length = int.from_bytes(content[-8:-4], "little")
    data, footer = content[: -8 - length], content[-8 - length : -8]
    parts = footer.split(b"\x16" + varint(before))
    assert len(parts) == len(counts) + 1
    forged = parts[0] + b"".join(b"\x16" + varint(count) + part for count, part in zip(counts, parts[1:], strict=True))
    return data + forged + len(forged).to_bytes(4, "little") + b"PAR1"


@pytest.mark.parametrize(
    ("in_file", "in_row_group", "reason"),
    [
        (-1, -1, "do not add up|not readable"),
        (7_777, -7_777, "do not add up|not readable"),
        (7_778, 7_777, "do not add up: 7778 in all, 7777 by row groups"),
        (7_777, 8_000, "do not add up"),
        (400_000_000_000, 400_000_000_000, "says that it has 400,000,000,000 rows"),
        (5_000_000, 5_000_000, r"5,000,000 rows; a file of [\d,]+ bytes may have up to"),
    ],
)
def test_row_counts_that_cannot_be_make_a_file_unreadable(
    tmp_path: Path, in_file: int, in_row_group: int, reason: str
) -> None:
    same = {"id": pa.repeat(1, 7_777), "body": pa.repeat("text", 7_777)}
    write_corpus(tmp_path, {"x.parquet": same}, store_schema=False, compression="zstd", write_statistics=False)
    content = (tmp_path / "x.parquet").read_bytes()
    # The file's own count stands before those of its row groups.
    counts = (in_file, in_row_group, in_row_group, in_row_group)
    (tmp_path / "x.parquet").write_bytes(with_row_counts(content, 7_777, *counts))
    with pytest.raises(UnreadableSource, match=reason):
        layout(tmp_path, source(tmp_path))


def test_a_file_that_has_fewer_rows_than_it_says_is_unreadable_and_never_materialised(tmp_path: Path) -> None:
    same = {"id": pa.repeat(1, 7_777), "body": pa.repeat("text", 7_777)}
    write_corpus(tmp_path, {"x.parquet": same}, store_schema=False, compression="zstd", write_statistics=False)
    content = (tmp_path / "x.parquet").read_bytes()
    (tmp_path / "x.parquet").write_bytes(with_row_counts(content, 7_777, *[900_000] * 4))
    plan = plan_labels(str(tmp_path), str(tmp_path / "_labels"), definition({"a": "1"}))
    assert len(plan.units) == 45
    for unit in (plan.units[0], plan.units[-1]):
        with pytest.raises(UnreadableSource):
            list(read_unit(str(tmp_path), unit, "id"))
