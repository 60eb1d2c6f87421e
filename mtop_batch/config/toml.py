"""Values of a configuration as TOML: the standard library reads it only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def pairs(values: Mapping[str, Any]) -> str:
    """A line for each key, but for those without a value.

    >>> print(pairs({"name": "a", "labels": ["no", "yes"], "decide": {"recall": 0.9}, "eval": None}), end="")
    name = "a"
    labels = ["no", "yes"]
    decide = { "recall" = 0.9 }
    """
    return "".join(f"{key} = {_value(value)}\n" for key, value in values.items() if value is not None)


def _value(value: Any) -> str:
    """A value in TOML: as in JSON, but for tables."""
    if isinstance(value, dict):
        items = [f"{_text(key)} = {_value(item)}" for key, item in value.items() if item is not None]
        return "{ " + ", ".join(items) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    return _text(value)


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
