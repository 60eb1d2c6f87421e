"""Opening source files, and distinguishing a bad file from storage that does not answer.

A bad file (not Parquet, truncated, encrypted, without the columns, forbidden) is data: it is recorded with its
reason and the others are labelled. Storage that does not answer says nothing about the file: that is an error, and
the work is tried again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from mtop_batch import storage
from mtop_batch.corpus.paths import path_problem
from mtop_batch.errors import AccessRefused, PathTaken, StorageError, one_line
from mtop_batch.lines import listed, shown
from mtop_batch.storage.parquet import open_parquet

# Column chunks are read through a buffer of this size, so a huge row group does not have to fit into memory.
_READING: dict[str, Any] = {"buffer_size": 4 << 20, "pre_buffer": False, "page_checksum_verification": True}
_MAX_REASON = 200
# Work follows from what a file says of itself, so that is not taken without limit. Articles take more than a byte each,
# however well they are compressed.
_MAX_ROWS = 2**31
_MAX_ROWS_PER_BYTE, _SOME_ROWS = 100, 1_000_000
CHANGED = "changed while the run was going on; the next run will label it"
VANISHED = "vanished while the run was going on"
# What pyarrow raises for bytes that are not what they should be.
_DECODE_ERRORS = (OSError, ValueError, KeyError, OverflowError, pa.ArrowException)


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of the corpus at one moment; a new size or version means new content.

    Args:
        path: Below the corpus.
        size: Bytes.
        version: Etag on object stores, modification time (ns) locally.
    """

    path: str
    size: int
    version: str


@dataclass(frozen=True)
class Layout:
    """How a source file is laid out.

    Args:
        row_groups: Rows of each row group.
        text_columns: For each of the inputs asked for, the text columns that the file has of it.
    """

    row_groups: tuple[int, ...]
    text_columns: Mapping[tuple[str, ...], tuple[str, ...]]


class UnreadableSource(Exception):
    """A source file, or what a unit needs of it, cannot be read; the message is the one-line reason."""


class SourceChanged(UnreadableSource):
    """A source file is not the one that was planned."""


class AccessDenied(UnreadableSource):
    """The storage answers, and refuses this file."""

    def as_storage_error(self, uri: str) -> AccessRefused:
        """The same where it says nothing about the file: others can be read no better, or it could be read before."""
        return AccessRefused(
            f"access to {shown(uri)} was refused; check the credentials, which may have expired, and what they are "
            "allowed to do"
        )


class MissingColumns(UnreadableSource):
    """A source file lacks the id column or the text columns."""


@dataclass(frozen=True)
class OpenSource:
    """A source file that is open for reading.

    Args:
        file: Its bytes.
        parquet: What its footer says.
    """

    file: pa.NativeFile
    parquet: pq.ParquetFile

    def reopened(self, read_dictionary: Sequence[str] = ()) -> pq.ParquetFile:
        """The same file once more, with some columns read as dictionaries."""
        return pq.ParquetFile(
            self.file, metadata=self.parquet.metadata, read_dictionary=list(read_dictionary), **_READING
        )


@contextmanager
def open_source(
    corpus: str, source: SourceFile, choose: Callable[[list[str]], Collection[str]]
) -> Iterator[OpenSource]:
    """The source file for reading in pieces, if it is still the one that was listed.

    Args:
        corpus: Where the source file's path starts.
        source: The file, as it was listed.
        choose: Given the names of its columns, returns those that must be readable.

    Raises:
        UnreadableSource: The file is bad; also if pyarrow finds so while the block reads it.
        SourceChanged: It is no longer there, or has another size or version.
        StorageError: The storage does not answer.
    """
    if problem := path_problem(source.path):
        raise UnreadableSource(problem)
    if source.version == storage.DANGLING_LINK:
        raise UnreadableSource("it is a link that leads nowhere, or to what may not be read")
    if source.size == 0:
        raise UnreadableSource("the file is empty (0 bytes)")
    uri = storage.join(corpus, source.path)
    with decoding(uri), _open(uri, source) as file:
        yield OpenSource(file, open_parquet(file, choose, **_READING))


@contextmanager
def decoding(uri: str) -> Iterator[None]:
    """Turn what pyarrow raises while reading `uri` into `UnreadableSource` or `StorageError`."""
    try:
        yield
    except _DECODE_ERRORS as error:
        raise _bad_file(uri, error) from error


def check_unchanged(corpus: str, source: SourceFile) -> None:
    """Make sure that a source file is still the one that was listed.

    Raises:
        SourceChanged: It is not.
        StorageError: The storage does not answer.
    """
    uri = storage.join(corpus, source.path)
    with decoding(uri), _open(uri, source):
        pass


def read_layout(
    corpus: str,
    source: SourceFile,
    *,
    id_column: str,
    inputs: Collection[tuple[str, ...]],
    text_columns_required: bool,
    vector_columns: Collection[str] = (),
) -> Layout:
    """Row groups of a source file, and its text columns.

    Args:
        corpus: Where the source file's path starts.
        source: The file, as it was listed.
        id_column: The column that identifies an article.
        inputs: The text columns asked for, one or two for each input.
        text_columns_required: False lets the file lack some of the text columns (not all of an input).
        vector_columns: The columns with what is read beside texts.

    Raises:
        MissingColumns: It has no id column, or not the text columns or vector columns asked for.
        UnreadableSource: The file is bad.
        StorageError: The storage does not answer.
    """

    def found(names: list[str]) -> dict[tuple[str, ...], tuple[str, ...]]:
        return {columns: _text_columns(names, id_column, columns, text_columns_required) for columns in inputs}

    wanted = {id_column, *vector_columns}
    with open_source(corpus, source, lambda names: {*wanted, *chain(*found(names).values())}) as opened:
        row_groups = _row_groups(opened.parquet.metadata, source.size)
        names = opened.parquet.schema_arrow.names
    for column in vector_columns:
        if names.count(column) != 1:
            count = f"{names.count(column)} columns" if column in names else "no input column"
            raise MissingColumns(f"{count} {column!r}, which the model reads beside texts; columns: {listed(names)}")
    return Layout(row_groups, found(names))


def _row_groups(metadata: pq.FileMetaData, size: int) -> tuple[int, ...]:
    """Rows of each row group, if that can be.

    Raises:
        UnreadableSource: They are negative, do not add up, or are more than a file of this size has.
    """
    row_groups = tuple(metadata.row_group(index).num_rows for index in range(metadata.num_row_groups))
    if any(num_rows < 0 for num_rows in row_groups) or sum(row_groups) != metadata.num_rows:
        raise UnreadableSource(
            f"its row counts do not add up: {metadata.num_rows} in all, {sum(row_groups)} by row groups"
        )
    limit = min(_MAX_ROWS, _SOME_ROWS + _MAX_ROWS_PER_BYTE * size)
    if metadata.num_rows > limit:
        raise UnreadableSource(
            f"it says that it has {metadata.num_rows:,} rows; a file of {size:,} bytes may have up to {limit:,}"
        )
    return row_groups


def _text_columns(names: list[str], id_column: str, text_columns: Sequence[str], required: bool) -> tuple[str, ...]:
    """Those of the text columns that a file has."""
    found = tuple(column for column in text_columns if column in names)
    missing = [column for column in text_columns if column not in names]
    columns = f"columns: {listed(names)}"
    if id_column not in names:
        raise MissingColumns(f"no id column {id_column!r}; {columns}")
    if not found or (missing and required):
        raise MissingColumns(f"no text column {' or '.join(map(repr, missing))}; {columns}")
    for column in (id_column, *found):
        if names.count(column) > 1:
            raise MissingColumns(f"{names.count(column)} columns {column!r}; {columns}")
    return found


@contextmanager
def _open(uri: str, source: SourceFile) -> Iterator[pa.NativeFile]:
    fs, path = storage.filesystem(uri)
    with fs.open_input_file(path) as file:
        # On S3 the open file knows its etag, by the client that waits for a server to come back.
        etag = file.metadata().get("ETag", b"") if isinstance(fs, pafs.S3FileSystem) else b""
        version = etag.decode().strip('"') if etag else storage.stat(uri).version
        if (file.size(), version) != (source.size, source.version):
            raise SourceChanged(CHANGED)
        yield file


def _bad_file(uri: str, error: BaseException) -> UnreadableSource | StorageError:
    """What an exception while reading says: about the file, or about the storage."""
    try:
        with storage.explained(uri):
            if _is_storage_error(error):
                raise error
            _probe(uri)
    except (FileNotFoundError, PathTaken):
        return SourceChanged(VANISHED)
    except StorageError as failure:
        if isinstance(failure.__cause__, Exception) and storage.is_refusal(failure.__cause__):
            return AccessDenied("access denied")
        return failure
    return UnreadableSource(f"not readable as Parquet: {one_line(error)}"[:_MAX_REASON])


def _is_storage_error(error: BaseException) -> bool:
    """Whether the bytes could not be had; what cannot be parsed has neither an errno nor an AWS error."""
    return isinstance(error, OSError) and (error.errno is not None or "AWS Error" in str(error))


def _probe(uri: str) -> None:
    """Read the first and the last byte, past the Parquet reader."""
    fs, path = storage.filesystem(uri)
    with fs.open_input_file(path) as file:
        file.read_at(1, 0)
        file.read_at(1, max(file.size() - 1, 0))
