"""A corpus of everything that goes wrong or looks odd, and what labelling has to make of it."""

from __future__ import annotations

import base64
import io
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pe

NULL, EMPTY, UNSEEN = "text is null", "text is empty", "text has no visible character"


@dataclass(frozen=True)
class Readable:
    """A file whose rows must all be in the label table.

    Args:
        table: Its content.
        errors: Each row's error; None for a file without any.
        options: Of `pq.write_table`.
        ids: What the ids become, where that is not what they are.
    """

    table: pa.Table
    errors: Sequence[str | None] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    ids: Sequence[Any] | None = None

    @property
    def expected_errors(self) -> list[str | None]:
        """Each row's error."""
        return [None] * self.table.num_rows if self.errors is None else list(self.errors)

    def content(self) -> bytes:
        """The file's bytes."""
        sink = io.BytesIO()
        pq.write_table(self.table, sink, **self.options)
        return sink.getvalue()


@dataclass(frozen=True)
class Unreadable:
    """A file that must be listed with a reason (a regular expression)."""

    content: bytes
    reason: str


def _repeated(count: int) -> pa.Array:
    """One text of 10 MB in every row, of which a file has one copy."""
    return pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), pa.array(["bank " * 2_000_000]))


_AS_DICTIONARY = {"store_schema": False, "compression": "zstd"}


def articles(count: int = 3, **columns: Any) -> pa.Table:
    """A few articles with ids from 0 and a body; what is given replaces or adds columns."""
    return pa.table({"id": range(count), "body": [f"bank profit {n % 7}" for n in range(count)], **columns})


def readable_files() -> dict[str, Readable]:
    """Path below the corpus -> file; every directory `case=...` holds one."""
    cases = {**_texts(), **_ids(), **_columns(), **_layouts()}
    files = {f"case={name.replace(' ', '-')}/x.parquet": file for name, file in cases.items()}
    return {**files, **{path: Readable(articles()) for path in (*PARTITIONS, *NAMES)}}


def _texts() -> dict[str, Readable]:
    raw = pa.array([b"fine", b"\xff\xfe", b"", None, "ok 😀".encode()])
    invalid = "text column 'body' is not valid UTF-8"
    huge = ["bank " * 2_000_000, "😀" * 2_500_000, " " * 10_000_000, "b" * 10_000_000]
    nothing_but = ["😀🎉🚀", "👩‍👩‍👧‍👦🇩🇪", "\u200b", "\x00", "\ufeff", "ﷺ" * 50, "a\u0301" * 100]
    strings = pa.array(["bank", None, "", " \n\u3000", "cup"])
    files = {
        "null and empty": Readable(articles(5, body=strings), [None, NULL, EMPTY, EMPTY, None]),
        "10 MB": Readable(articles(4, body=huge), [None, None, EMPTY, None]),
        "emoji": Readable(articles(7, body=nothing_but), [None, None, UNSEEN, UNSEEN, UNSEEN, None, None]),
        "double without values": Readable(articles(2, body=[float("nan"), None]), [NULL, NULL]),
        "null type": Readable(articles(2, body=pa.nulls(2)), [NULL, NULL]),
        "invalid UTF-8 string": Readable(
            articles(5, body=pa.Array.from_buffers(pa.string(), 5, raw.buffers())), [None, invalid, EMPTY, NULL, None]
        ),
        "invalid UTF-8 binary": Readable(articles(5, body=raw), [None, invalid, EMPTY, NULL, None]),
    }
    for kind in (pa.large_string(), pa.string_view(), pa.large_binary(), pa.binary_view()):
        files[f"text {kind}"] = Readable(articles(5, body=strings.cast(kind)), [None, NULL, EMPTY, EMPTY, None])
    for index in (pa.int8(), pa.int32()):
        column = strings.dictionary_encode().cast(pa.dictionary(index, pa.string()))
        files[f"text dictionary {index}"] = Readable(articles(5, body=column), [None, NULL, EMPTY, EMPTY, None])
    for name, values in {
        "int": pa.array([1, None]),
        "bool": pa.array([True, None]),
        "list": pa.array([["a"], None]),
        "struct": pa.array([{"a": "b"}, None]),
        "map": pa.array([[("a", "b")], None], pa.map_(pa.string(), pa.string())),
        "uuid": pa.array([uuid.UUID(int=1).bytes, None], pa.uuid()),
        "dictionary of int": pa.array([1, None]).dictionary_encode(),
    }.items():
        files[f"text {name}"] = Readable(articles(2, body=values), ["text column 'body' has type", NULL])
    return files


def _ids() -> dict[str, Readable]:
    arrays = {
        "int": pa.array([1, None, 1], pa.uint8()),
        "negative": pa.array([-(2**63), None, 2**63 - 1]),
        "string": pa.array(["a", None, "a"]),
        "large_string": pa.array(["a", None, ""], pa.large_string()),
        "string_view": pa.array(["a", None, "a longer one than fits inline"], pa.string_view()),
        "binary": pa.array([b"\xff", None, b""]),
        "fixed binary": pa.array([b"\xff\xff", None, b"ab"], pa.binary(2)),
        "uuid": pa.array([uuid.UUID(int=5).bytes, None, uuid.UUID(int=5).bytes], pa.uuid()),
        "nulls": pa.nulls(3),
        "float": pa.array([1.5, None, float("nan")]),
        "bool": pa.array([True, None, True]),
        "date": pa.array([0, None, 1], pa.date32()),
        "timestamp": pa.array([0, None, 1], pa.timestamp("us", "Europe/Berlin")),
        "decimal": pa.array([Decimal("1.50"), None, Decimal(0)], pa.decimal128(20, 2)),
        "struct": pa.array([{"a": 1, "b": "x"}, None, {"a": None, "b": None}]),
        "list": pa.array([["a"], None, []]),
        "map": pa.array([[("a", 1)], None, []], pa.map_(pa.string(), pa.int64())),
        "dictionary": pa.array(["a", None, "a"]).dictionary_encode(),
    }
    files = {f"id {name}": Readable(articles(3, id=ids)) for name, ids in arrays.items()}
    many = [f"author {n // 100}" for n in range(5_000)]
    files["id dictionary that grows"] = Readable(
        articles(5_000, id=pa.array(many).dictionary_encode()), options={"row_group_size": 700}
    )
    raw = pa.array([b"a", b"\xff", None])
    invalid = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    wrong = [None, "id column 'id' holds no valid string", None]
    files["id invalid UTF-8"] = Readable(articles(3, id=invalid), wrong, ids=["a", None, None])
    return files


def _columns() -> dict[str, Readable]:
    bystanders = {
        "meta": pa.array([{"tags": [{"a": 1}], "id": 5}, None, {"tags": None, "id": None}]),
        "tags": pa.array([["x", "y"], [], None]),
        "author": pa.array(["a", None, "a"]).dictionary_encode(),
        "key": pa.array([uuid.UUID(int=1).bytes] * 3, pa.uuid()),
        "price": pa.array([Decimal("1.5"), None, Decimal(0)]),
        "id.x": pa.array([1, 2, 3]),
        "Id": pa.array([7, 8, 9]),
        "error": pa.array(["x", "y", "z"]),
        "mood_label": pa.array(["x", "y", "z"]),
    }
    return {
        "bystanders": Readable(articles(3, **bystanders)),
        "struct beside its dotted name": Readable(articles(3, **{"body.x": ["no"] * 3})),
    }


def _layouts() -> dict[str, Readable]:
    long = 3_000
    return {
        "one row": Readable(articles(1)),
        "no rows": Readable(articles(0)),
        "no row groups": Readable(articles(0), options={"row_group_size": 1}),
        "3 GB of one text": Readable(articles(300, body=_repeated(300)), options=_AS_DICTIONARY),
        "one huge row group": Readable(articles(long), options={"row_group_size": long}),
        "10000 row groups": Readable(articles(10_000), options={"row_group_size": 1}),
        "uncompressed v1": Readable(articles(9), options={"compression": "none", "version": "1.0"}),
        "pages v2": Readable(articles(9), options={"compression": "zstd", "data_page_version": "2.0"}),
        "no arrow schema": Readable(articles(9), options={"store_schema": False}),
    }


PARTITIONS = [
    "date=2026-11-20/lang=en us/a.parquet",
    "date=__HIVE_DEFAULT_PARTITION__/a.parquet",
    "date=20.11.2026/a.parquet",
    "date=/a.parquet",
    "k=a=b/a.parquet",
    "=v/a.parquet",
    "stadt=Zürich 東京 😀/a.parquet",
    "esc=a%2Fb%20c%/a.parquet",
    "nested=1/nested=2/a.parquet",
]

NAMES = [
    "names/a b.parquet",
    "names/ü 東京 😀.parquet",
    "names/u\u0308.parquet",
    "names/hash#1.parquet",
    "names/what?a=b.parquet",
    "names/star*[x]{y}.parquet",
    "names/percent%20%.parquet",
    "names/semi;colon&plus+@.parquet",
    "names/quote'\".parquet",
    "names/new\nline.parquet",
    "names/UPPER.PARQUET",
    "names/short.pq",
    "names/part.rg00000-00001.parquet",
    "names/a.parquet.parquet",
    "names/dir.parquet/a.parquet",
    "names/-rf.parquet",
    f"names/{'n' * 180}.parquet",
]

HIDDEN = ["_hidden.parquet", ".hidden.parquet", "_temporary/0/a.parquet", "date=2026-11-20/.crc/a.parquet"]
NOT_PARQUET = ["names/notes.txt", "names/parquet", "names/a.parquet.crc"]


def unreadable_files() -> dict[str, Unreadable]:
    """Path below the corpus -> file."""
    good = Readable(articles(2_000), options={"use_dictionary": False}).content()
    plain = {"use_dictionary": False, "compression": "none", "write_page_checksum": True}
    with_checksums = Readable(articles(2_000), options=plain).content()
    repeated = pa.Table.from_arrays([pa.array([1]), pa.array(["t"]), pa.array(["t"])], names=["id", "body", "body"])
    not_parquet = "not readable as Parquet"
    files = {
        "zero-bytes": Unreadable(b"", "the file is empty"),
        "one-byte": Unreadable(b"P", not_parquet),
        "text": Unreadable(b"id,body\n1,bank profit\n" * 100, not_parquet),
        "json": Unreadable(b'{"id": 1, "body": "bank"}', not_parquet),
        "magic-only": Unreadable(b"PAR1PAR1", not_parquet),
        "truncated": Unreadable(good[: len(good) // 2], not_parquet),
        "no-end": Unreadable(good[:-4], not_parquet),
        "no-beginning": Unreadable(good[2_000:], not_parquet),
        "huge-footer": Unreadable(b"PAR1" + b"\x00" * 60 + b"\xff\xff\xff\x7fPAR1", not_parquet),
        "damaged-page": Unreadable(_damage(good), not_parquet),
        "damaged-value": Unreadable(_damage(with_checksums), not_parquet),
        "gigabytes-of-ids": Unreadable(
            Readable(articles(300, id=_repeated(300)), options=_AS_DICTIONARY).content(), "take more than 64 MB"
        ),
        "no-id": Unreadable(Readable(pa.table({"key": [1], "body": ["t"]})).content(), "no id column 'id'"),
        "no-text": Unreadable(Readable(pa.table({"id": [1], "text": ["t"]})).content(), "no text column"),
        "no-columns": Unreadable(Readable(pa.table({})).content(), "no id column 'id'"),
        "body-twice": Unreadable(Readable(repeated).content(), "2 columns 'body'"),
        "encrypted-footer": Unreadable(_encrypted(plaintext_footer=False), not_parquet),
        "encrypted-column": Unreadable(_encrypted(plaintext_footer=True), not_parquet),
        "n" * 200: Unreadable(good, "longer than 195 bytes"),
        "back\\slash": Unreadable(good, "its path has a backslash"),
    }
    shadowing = {
        f"{key}=5/a.parquet": Unreadable(good, f"its partition key '{key}' is also a column of the label table")
        for key in ("id", "mood_label")
    }
    return {**{f"bad/{name}.parquet": file for name, file in files.items()}, **shadowing}


def _damage(content: bytes) -> bytes:
    return content[:1_000] + b"?" * 1_000 + content[2_000:]


class _Keys(pe.KmsClient):
    """A key service that keeps nothing secret."""

    def wrap_key(self, key_bytes: bytes, _: str) -> bytes:
        return base64.b64encode(key_bytes)

    def unwrap_key(self, wrapped_key: bytes, _: str) -> bytes:
        return base64.b64decode(wrapped_key)


def _encrypted(*, plaintext_footer: bool) -> bytes:
    factory = pe.CryptoFactory(lambda _: _Keys())
    configuration = pe.EncryptionConfiguration(
        footer_key="footer", column_keys={"column": ["body"]}, plaintext_footer=plaintext_footer
    )
    properties = factory.file_encryption_properties(pe.KmsConnectionConfig(), configuration)
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, articles().schema, encryption_properties=properties) as writer:
        writer.write_table(articles())
    return sink.getvalue()


def write_all(root: Path) -> Iterator[Path]:
    """Write the corpus below `root`; yields the files."""
    files = {path: file.content() for path, file in readable_files().items()}
    files |= {path: file.content for path, file in unreadable_files().items()}
    files |= dict.fromkeys(HIDDEN, b"not to be looked at") | dict.fromkeys(NOT_PARQUET, b"")
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        yield path
