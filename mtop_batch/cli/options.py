"""Options that several commands have, and what becomes of their values."""

from __future__ import annotations

import re
from typing import Annotated, Any

import typer

from mtop_batch.errors import ConfigError
from mtop_batch.json_text import to_json
from mtop_batch.precision import PrecisionChoice
from mtop_batch.table.lake import TableFormat

# One of the names that commas separate, as it is or in double quotes (which are doubled inside).
_NAME = re.compile(r'(\s*"(?:[^"]|"")*"\s*|[^",][^,]*|\s*),')
_NAMES = re.compile(rf"(?:{_NAME.pattern})+")

ConfigOption = Annotated[str, typer.Option("--config", help="TOML configuration file.", metavar="F.toml")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a configuration value; may be repeated.", metavar="section.key=value"),
]
ModelOption = Annotated[str, typer.Option("--model", help="Bundle: a local directory or s3://... prefix.")]
JsonOption = Annotated[str | None, typer.Option("--json", help="Also write the result here as JSON.", metavar="OUT")]
PrecisionOption = Annotated[
    PrecisionChoice,
    typer.Option("--precision", help="Of the model. auto: bf16 where the hardware gains by it, fp32 elsewhere."),
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace the bundle that the output holds.")]
FormatOption = Annotated[
    TableFormat, typer.Option("--format", help="Publish the same rows to a Delta or Iceberg table too, in one commit.")
]
LakeOption = Annotated[
    str | None, typer.Option("--lake", help="Where its files lie. Default: LABELS/delta, or as the catalogue says.")
]
CatalogOption = Annotated[
    str | None,
    typer.Option(
        "--catalog",
        help="Iceberg catalogue: a name in ~/.pyiceberg.yaml, or a URI. Default: `default`.",
        metavar="NAME_OR_URI",
    ),
]
TableOption = Annotated[
    str | None, typer.Option("--table", help="Name of the Iceberg table.", metavar="NAMESPACE.TABLE")
]
AllowEmptyOption = Annotated[bool, typer.Option("--allow-empty", help="A --partition that no file has is no mistake.")]
GateConfigOption = Annotated[
    str | None, typer.Option("--config", help="TOML file with a section \\[gate].", metavar="F.toml")
]
GateShareOption = Annotated[
    float | None, typer.Option(help="Keep labels back if the share of one changes by more, on the same articles.")
]
GateNewShareOption = Annotated[
    float | None, typer.Option(help="Keep labels back if the share of one changes by more, on new articles.")
]
GateFlipsOption = Annotated[
    float | None, typer.Option(help="Keep labels back if those of more of the same articles change.")
]
GateArticlesOption = Annotated[int | None, typer.Option(help="Keep labels back if they are of fewer articles.")]
GateMetricOption = Annotated[
    float | None, typer.Option(help="Keep labels back if a task's metric on development data drops by more.")
]


def whole_number(text: str, option: str) -> int:
    """What `text` says; ConfigError if it is none."""
    if not text.isdecimal():
        raise ConfigError(f"{option}: {text!r} is not a whole number from 0 on")
    return int(text)


def comma_separated(value: str | None, option: str) -> list[str]:
    """The names in an option's value; ConfigError if one is empty."""
    if value is None:
        return []
    names = []
    for name in _NAME.findall(f"{value},"):
        quoted = name.strip().startswith('"')
        names.append(name.strip()[1:-1].replace('""', '"') if quoted else name.strip())
    if not all(names) or not _NAMES.fullmatch(f"{value},"):
        raise ConfigError(
            f"{option} {value!r} has an empty name, or quotes that do not fit; write names with commas between, such as"
            " a,b, and in double quotes those with a comma, or a space at an end"
        )
    return names


def json_place(typed: str | None) -> str | None:
    """The address of the file to write JSON to; what cannot be one is refused before hours of work."""
    return file_place(typed, "--json")


def file_place(typed: str | None, option: str) -> str | None:
    """The same of the file that another option names."""
    if typed is None:
        return None
    from mtop_batch.storage import file_place

    return file_place(typed, option)


def write_json(place: str | None, value: Any) -> None:
    """Write a result where `--json` says, if it was given."""
    if place is not None:
        from mtop_batch.storage import write_bytes

        write_bytes(place, (to_json(value, indent=2) + "\n").encode())
