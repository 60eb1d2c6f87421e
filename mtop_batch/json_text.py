"""JSON that any reader takes: Python would also write NaN and Infinity, which are no JSON."""

from __future__ import annotations

import json
import math
from typing import Any


def to_json(value: Any, *, indent: int | None = None) -> str:
    """A value as JSON; a number that is not finite becomes null, and text that is not Unicode an escape.

    >>> to_json({"loss": float("nan"), "labels": ("no", "ja ü")})
    '{"loss": null, "labels": ["no", "ja ü"]}'
    """
    text = json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False)
    # A file name that is not UTF-8 has half a surrogate pair, for which JSON has an escape.
    return text.encode(errors="backslashreplace").decode()


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
