"""The footer of every label file: what was read, by which definition, in which run.

It is JSON under the key `mtop_batch` of the Parquet footer, so a label file explains itself; there is no other
record.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from mtop_batch.corpus.files import SourceFile
from mtop_batch.errors import LabelTableError
from mtop_batch.table.definition import LabelSet
from mtop_batch.table.row_ranges import RowRange

FOOTER_KEY = "mtop_batch"
_FORMAT = 1


@dataclass(frozen=True)
class Footer:
    """What a label file says about itself.

    Args:
        source: The source file as it was read.
        num_rows: Rows of the whole source file.
        num_row_groups: Row groups of the whole source file.
        row_groups: The row groups that were read: first, and the one after the last.
        rows: The same in rows of the source file; as many rows as the label file has.
        fingerprints: Per task, what computed it.
        kinds: Per task, "classification", "regression" or "probe"; "vector" for vectors.
        bundles: Per task, the name of the bundle that computed it.
        bundle: URI of that bundle.
        text_columns: The text columns that were asked for.
        text_columns_used: Those that the source file has.
        id_column: The source column that became `id`.
        run: Id of the run that wrote the file.
    """

    source: SourceFile
    num_rows: int
    num_row_groups: int
    row_groups: tuple[int, int]
    rows: RowRange
    fingerprints: Mapping[str, str]
    kinds: Mapping[str, str]
    bundles: Mapping[str, str]
    bundle: str
    text_columns: tuple[str, ...]
    text_columns_used: tuple[str, ...]
    id_column: str
    run: str

    def label_set(self, name: str) -> LabelSet:
        """The definition of the label set `name` that this footer was found in."""
        return LabelSet(name, self.fingerprints, self.text_columns, self.id_column, self.kinds)

    def encode(self) -> bytes:
        """The footer's JSON: the same bytes for the same values."""
        content = {
            "format": _FORMAT,
            "source": {
                "path": self.source.path,
                "size": self.source.size,
                "version": self.source.version,
                "num_rows": self.num_rows,
                "row_groups": self.row_groups,
                "num_row_groups": self.num_row_groups,
                "rows": self.rows,
            },
            "tasks": {
                name: {"fingerprint": fingerprint, "kind": self.kinds[name], "bundle": self.bundles[name]}
                for name, fingerprint in self.fingerprints.items()
            },
            "bundle": self.bundle,
            "text_columns": self.text_columns,
            "text_columns_used": self.text_columns_used,
            "id_column": self.id_column,
            "run": self.run,
        }
        return json.dumps(content, separators=(",", ":")).encode()

    @classmethod
    def decode(cls, data: bytes) -> Footer:
        """The footer that `encode` wrote.

        Raises:
            LabelTableError: It was written by a later version of this package.
            ValueError: It is not such a footer.
        """
        try:
            content = json.loads(data)
            if content["format"] > _FORMAT:
                raise LabelTableError(
                    f"label files have format {content['format']}, this version knows {_FORMAT}; update mtop-batch"
                )
            source, tasks = content["source"], content["tasks"]
            return cls(
                source=SourceFile(source["path"], source["size"], source["version"]),
                num_rows=source["num_rows"],
                num_row_groups=source["num_row_groups"],
                row_groups=_pair(source["row_groups"]),
                rows=_pair(source["rows"]),
                fingerprints={name: task["fingerprint"] for name, task in tasks.items()},
                kinds={name: task["kind"] for name, task in tasks.items()},
                bundles={name: task["bundle"] for name, task in tasks.items()},
                bundle=content["bundle"],
                text_columns=tuple(content["text_columns"]),
                text_columns_used=tuple(content["text_columns_used"]),
                id_column=content["id_column"],
                run=content["run"],
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a label file's footer: {error}") from error


def _pair(values: list[int]) -> tuple[int, int]:
    first, second = values
    return first, second
