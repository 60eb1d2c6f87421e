"""Configuration files: TOML, checked before any work starts.

`load_config` reads a file, applies `--set section.key=value` overrides, and returns a `Config` whose fields say
what is allowed. Unknown keys are refused with the closest known name.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from mtop_batch.config.model import MODEL_SECTIONS, VectorInputConfig
from mtop_batch.config.sections import Config, GateConfig
from mtop_batch.config.task import FamilyConfig, SourceConfig, TaskConfig
from mtop_batch.errors import ConfigError, TaskError
from mtop_batch.storage import absolute, is_remote, read_bytes

_TABLES: Mapping[str | int, type[BaseModel]] = {"task": TaskConfig, "family": FamilyConfig, "source": SourceConfig}
# A thousand tasks take half a megabyte.
_MAX_BYTES = 64_000_000


def load_config(
    path: str | Path,
    overrides: Sequence[str] = (),
    defaults: Mapping[str, Any] | None = None,
    *,
    prefinetunes: bool = False,
) -> Config:
    """Read, complete and check a configuration.

    Args:
        path: A TOML file, local or on object storage. `tasks = "other.toml"` in it takes the `[[task]]` tables from
            that file.
        overrides: `section.key=value` strings; the value is read as TOML, or else as a plain string.
        defaults: Values of keys and sections that the file may leave out.
        prefinetunes: It is for `mtop prefinetune`, which learns from `[[source]]` tables too and evaluates nothing, so
            that tasks need no `eval`.

    Raises:
        ConfigError: The file is missing or not TOML, a key is unknown, or a value is outside what is allowed.
    """
    values = _read_toml(path)
    for override in overrides:
        _apply_override(values, override)
    source = _inline_tasks(values, path)
    config = validate({**(defaults or {}), **values}, source, evaluates=not prefinetunes)
    if config.source and not prefinetunes:
        raise ConfigError(f"{source}: only mtop prefinetune learns from [[source]] tables; remove them")
    return config


def load_tasks(path: str | Path, *, evaluates: bool = True) -> tuple[TaskConfig, ...]:
    """Read and check a file of `[[task]]` tables, as a configuration's `tasks` names one.

    Args:
        path: A TOML file, local or on object storage.
        evaluates: Whether every task must have `eval`.

    Raises:
        ConfigError: As `load_config`.
    """
    values = {"output": "none", "backbone": {"name": "none"}, "tasks": str(path)}
    _inline_tasks(values, path)
    return validate(values, str(path), evaluates=evaluates).task


def load_gate(path: str | Path | None, given: Mapping[str, Any]) -> GateConfig:
    """The rules of the gate: the section `[gate]` of a file, if one is named, and what options say instead.

    Args:
        path: A TOML file, local or on object storage; its other sections are those of a training.
        given: Values by key; None stands for what is not given.

    Raises:
        ConfigError: As for `load_config`; or the file has no such section.
    """
    values = {} if path is None else _read_toml(path)
    if path is not None and not isinstance(values.get("gate"), dict):
        raise ConfigError(f"{path} has no section [gate]; add it, or leave --config out")
    section = {**values.get("gate", {}), **{key: value for key, value in given.items() if value is not None}}
    try:
        return GateConfig.model_validate(section)
    except ValidationError as error:
        details = [{**detail, "loc": ("gate", *detail["loc"])} for detail in error.errors()]
        lines = [_explain(detail, {"gate": section}) for detail in details]
        raise ConfigError(f"{path or 'the options'}: " + "\n  ".join(lines)) from None


def _read_local(place: str) -> bytes:
    """A file, or what a pipe says; a device may never come to an end."""
    with open(place, "rb") as file:
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise ConfigError(f"{place!r} has more than {_MAX_BYTES:,} bytes; a configuration is smaller: name a TOML file")
    return data


def _read_toml(path: str | Path) -> dict[str, Any]:
    try:
        place = absolute(str(path))
        data = read_bytes(place) if is_remote(place) else _read_local(place)
        return tomllib.loads(data.decode("utf-8-sig"))  # some editors begin a file with a byte order mark
    except FileNotFoundError:
        place = "" if is_remote(str(path)) else f" (relative to {Path.cwd()})"
        raise ConfigError(f"there is no configuration file {str(path)!r}{place}") from None
    except IsADirectoryError:
        raise ConfigError(f"{str(path)!r} is a directory; name a TOML file") from None
    except NotADirectoryError:
        through = next((parent for parent in Path(path).parents if parent.is_file()), Path(path).parent)
        raise ConfigError(f"{str(path)!r} leads through {str(through)!r}, which is a file; name a TOML file") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}; check it and who may read it") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: byte {error.start} is not UTF-8; save it as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, value = parse_value(override)
    *sections, last = key.split(".")
    if not last or not all(sections):
        raise _bad_override(override)
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ConfigError(f"--set {override!r}: {section!r} is not a section")
    values[last] = value


def parse_value(override: str) -> tuple[str, Any]:
    """A key and its value, read as TOML or else as a plain string, from `key=value`.

    Raises:
        ConfigError: There is no key, or no `=`.
    """
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise _bad_override(override)
    try:
        return key.strip(), tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), text


def _bad_override(override: str) -> ConfigError:
    return ConfigError(f"--set {override!r} is not of the form section.key=value, such as train.epochs=3")


def _inline_tasks(values: dict[str, Any], path: str | Path) -> str:
    """Put the tables of a file of tasks in their place; returns what to call the whole in messages."""
    if "tasks" not in values:
        return str(path)
    if "task" in values:
        raise ConfigError(f"{path} has both tasks = {values['tasks']!r} and [[task]] tables; keep one of them")
    tasks_file = values.pop("tasks")
    if not isinstance(tasks_file, str):
        raise ConfigError(f"{path}: tasks = {tasks_file!r} must be the path of a TOML file with [[task]] tables")
    tables = _read_toml(tasks_file)
    if set(tables) != {"task"}:
        raise ConfigError(f"{tasks_file} must hold [[task]] tables and nothing else; it has {sorted(tables)}")
    values["task"] = tables["task"]
    return f"{path} with {tasks_file}"


def validate(values: Mapping[str, Any], source: str, *, evaluates: bool = True) -> Config:
    """Check the values of a configuration.

    Args:
        values: By key, sections as mappings.
        source: What an error calls it.
        evaluates: Whether every task must have `eval`.

    Raises:
        ConfigError: A key is unknown, or a value is outside what is allowed.
    """
    missing = _without_eval(values) if evaluates else []
    try:
        config = Config.model_validate(values)
    except TaskError as error:
        raise ConfigError(f"{source}: {error}") from None
    except ValidationError as error:
        lines = [_explain(dict(detail), values) for detail in (*error.errors(), *missing)]
        raise ConfigError(f"{source}: " + "\n  ".join(lines)) from None
    if missing:
        raise ConfigError(f"{source}: " + "\n  ".join(_explain(detail, values) for detail in missing))
    return config


def _without_eval(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What is wrong with tasks that have no evaluation examples, as pydantic says it."""
    tables = values.get("task")
    places = enumerate(tables) if isinstance(tables, list | tuple) else ()
    return [
        {"type": "missing", "loc": ("task", place, "eval")}
        for place, table in places
        if isinstance(table, Mapping) and table.get("eval") is None
    ]


def _explain(detail: dict[str, Any], values: Mapping[str, Any]) -> str:
    """One line of what is wrong, the value, what is allowed, and what to do."""
    location = _dotted(detail["loc"], values)
    if detail["type"] == "extra_forbidden":
        return f"unknown key {location}; {_hint(detail['loc'], values)}"
    if detail["type"] == "missing":
        return f"{location} is missing; add it"
    if detail["type"] == "tuple_type":
        if detail["loc"][0] in _TABLES and len(detail["loc"]) == 1:
            name = detail["loc"][0]
            return f"{name} is one table; write [[{name}]], with two brackets, before the keys of each {name}"
        listed = json.dumps([detail["input"]], ensure_ascii=False, default=str)
        return f"{location} = {detail['input']!r} is no list; write {detail['loc'][-1]} = {listed}"
    if detail["type"].startswith("model_"):
        return f"{location} = {detail['input']!r} is no section of keys and values"
    reason = detail["msg"].removeprefix("Value error, ")
    return f"{location} = {detail['input']!r} cannot be used: {reason[0].lower()}{reason[1:]}"


def _hint(location: Sequence[str | int], values: Mapping[str, Any]) -> str:
    """What an unknown key may have been meant to be."""
    *path, key = location
    if path == ["model"]:
        kind = values["model"].get("kind", "mtop")
        known = list(MODEL_SECTIONS[kind].model_fields)
        others = [other for other, section in MODEL_SECTIONS.items() if key in section.model_fields]
        if others:
            return f"it is a key of kind = {others[0]!r}; those of {kind!r}: {', '.join(known)}"
    else:
        known = _known_keys(path, values)
    close = get_close_matches(str(key), known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"


def _dotted(location: Sequence[str | int], values: Mapping[str, Any]) -> str:
    """`task.3.metric` as `task[politics].metric`, so that the reader finds the place."""
    if len(location) > 1 and location[0] in _TABLES and isinstance(location[1], int):
        table = values[str(location[0])][location[1]]
        name = table.get("name", location[1]) if isinstance(table, dict) else location[1]
        return ".".join([f"{location[0]}[{name}]", *map(str, location[2:])])
    return ".".join(map(str, location)) or "the configuration"


def _known_keys(path: Sequence[str | int], values: Mapping[str, Any]) -> list[str]:
    section: type[BaseModel] = Config
    for part in path:
        if part in _TABLES:
            section = _TABLES[part]
        elif part == "inputs":
            section = VectorInputConfig
        elif part == "model":
            section = MODEL_SECTIONS[values["model"].get("kind", "mtop")]
        elif isinstance(part, str):
            section = _section_of(section.model_fields[part].annotation)
    return list(section.model_fields)


def _section_of(annotation: Any) -> type[BaseModel]:
    """The section that a key holds, also where it may be left out."""
    types = (annotation, *get_args(annotation))
    return next(each for each in types if isinstance(each, type) and issubclass(each, BaseModel))
