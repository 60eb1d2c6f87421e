"""Which Delta or Iceberg table the rows of a label table are published to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mtop_batch import storage
from mtop_batch.errors import ConfigError
from mtop_batch.lines import has_secrets, without_secrets
from mtop_batch.table.lake import TableFormat


@dataclass(frozen=True)
class LakeTarget:
    """Where the rows of a label table are published too.

    Args:
        format: Of the table.
        place: Address of the table's files; None lets the Iceberg catalogue say where.
        catalog: Of an Iceberg table: a name of pyiceberg's configuration, or a URI.
        table: Its name there, with its namespace.
    """

    format: Literal["delta", "iceberg"]
    place: str | None
    catalog: str = ""
    table: str = ""

    def __str__(self) -> str:
        return f"the Delta table {self.place}" if self.format == "delta" else f"the Iceberg table {self.table}"


def lake_target(
    format: TableFormat, labels: str, lake: str | None, catalog: str | None, table: str | None
) -> LakeTarget | None:
    """The target of the options `--format`, `--lake`, `--catalog` and `--table`; None for nothing beside Parquet.

    Raises:
        ConfigError: They do not go together, or carry credentials.
    """
    given = {"--lake": lake, "--catalog": catalog, "--table": table}
    options: dict[str, tuple[str, ...]] = {"parquet": (), "delta": ("--lake",), "iceberg": tuple(given)}
    if format not in options:
        raise ConfigError(f"--format {format!r} is not one of {', '.join(options)}")
    for option, value in given.items():
        if value is not None and option not in options[format]:
            goes_with = "--format delta or iceberg" if option == "--lake" else "--format iceberg"
            raise ConfigError(f"{option} goes with {goes_with}; add that, or leave {option} out")
    if format == "parquet":
        return None
    place = None if lake is None else storage.absolute(lake)
    if format == "delta":
        return LakeTarget("delta", place or storage.join(storage.absolute(labels), "delta"))
    if not table or not all(part.strip() for part in table.split(".")) or "." not in table:
        raise ConfigError(
            f"--table {table!r} does not name an Iceberg table; write namespace.table, such as news.labels"
        )
    if catalog is not None and has_secrets(catalog):
        raise ConfigError(
            f"--catalog {without_secrets(catalog)}: a URI must not carry credentials, for it is shown; name a "
            "catalogue, and give its URI in ~/.pyiceberg.yaml or as PYICEBERG_CATALOG__<NAME>__URI"
        )
    return LakeTarget("iceberg", place, catalog or "default", table)
