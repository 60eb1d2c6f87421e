"""Writes configuration.md: every key of a configuration file, from the models in `mtop_batch.config`.

    python docs/generate_configuration.py

A key's sentence is the string below its field. A section that is one of several models (by `kind`) has a table each.
"""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from mtop_batch.config.model import MODEL_SECTIONS, ModelConfig, VectorInputConfig
from mtop_batch.config.sections import Config
from mtop_batch.config.task import DecideConfig
from mtop_batch.tasks import METRICS

PAGE = Path(__file__).parent / "configuration.md"
HEAD = """# Configuration

A TOML file, checked before any work starts; an unknown key is refused with the closest known one. `mtop train`,
`mtop evaluate`, `mtop add-tasks` and `mtop calibrate` read it; `mtop label` and `mtop publish` its section `[gate]`.
`--set train.epochs=3` overrides a key. Relative paths start in the working directory. Generated from
`mtop_batch.config`.
"""
_NAMES = {str: "string", int: "int", float: "float", bool: "bool"}


def reference() -> str:
    """The whole page."""
    metrics = "\n".join(f"* `{kind}`: {', '.join(f'`{name}`' for name in names)}" for kind, names in METRICS.items())
    top: tuple[str, type[BaseModel]] = "Top level", Config
    unique = dict.fromkeys([top, *_sections(Config)])  # kinds of models share sections
    sections = "\n".join(_section(title, model) for title, model in unique)
    return (
        f"{HEAD}\n{sections}\n## Metrics\n\nThose that fit each kind of task; the first is the default.\n\n{metrics}\n"
    )


def _sections(model: type[BaseModel], above: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Title and model of each section below a model."""
    for name, field in model.model_fields.items():
        choices = _models(field.annotation)
        for choice in choices:
            title = f"`[[{name}]]`" if get_origin(field.annotation) is tuple else f"`[{above}{name}]`"
            if choice is DecideConfig:
                title = f"`{name}` of a task"
            if choice is VectorInputConfig:
                title = f"`{name}` of `[model]`"
            if len(choices) > 1:
                title += f", kind = {_type_name(choice.model_fields['kind'].annotation)}"
            yield title, choice
            yield from _sections(choice, f"{above}{name}.")


def _section(title: str, model: type[BaseModel]) -> str:
    sentences = _sentences(model)
    rows = [
        f"|`{name}`|{_type(field)}|{_default(field)}|{sentences[name]}|"
        for name, field in model.model_fields.items()
        if not _models(field.annotation) or field.default == ()
    ]
    about = " ".join(inspect.cleandoc(model.__doc__ or "").split())
    return "\n".join([f"## {title}", "", about, "", "|key|type|default||", "|---|---|---|---|", *rows, ""])


def _sentences(model: type[BaseModel]) -> dict[str, str]:
    """Field -> the string below it, over the model and those that it extends."""
    sentences: dict[str, str] = {}
    for owner in reversed(model.__mro__):
        if not issubclass(owner, BaseModel) or owner is BaseModel:
            continue
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
        assert isinstance(body, ast.ClassDef)
        for field, below in zip(body.body, body.body[1:], strict=False):
            is_text = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and is_text:
                sentences[field.target.id] = " ".join(str(below.value.value).split())  # type: ignore[attr-defined]
    return sentences


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a field may hold: none where it holds a value."""
    if annotation is ModelConfig:
        return list(MODEL_SECTIONS.values())
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


def _type(field: FieldInfo) -> str:
    bounds = [
        f"{sign}{limit:,}"
        for name, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))
        for limit in (getattr(constraint, name, None) for constraint in field.metadata)
        if limit is not None
    ]
    return ", ".join([_type_name(field.annotation), *bounds])


def _type_name(annotation: Any) -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type_name(parts[0])
    if origin is Literal:
        return ", ".join(f"`{part}`" for part in parts)
    if origin is tuple:
        return f"list of {_type_name(parts[0])}s"
    if origin is dict:
        return f"table of {_type_name(parts[1])}s"
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return "table"
    if parts:
        return " or ".join(_type_name(part) for part in parts if part is not type(None))
    return _NAMES[annotation]


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default is None:
        return ""
    value = list(field.default) if isinstance(field.default, tuple) else field.default
    return f"`{json.dumps(value)}`"


if __name__ == "__main__":
    PAGE.write_text(reference())
