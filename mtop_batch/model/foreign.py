"""Settings of a model that transformers would follow to code or weights from elsewhere.

A configuration may name attention or other kernels of a hub repository, weights of a second model, or a quantisation.
No bundle has such settings when it is written, so one that has is not loaded. (Modules that come with a model,
`auto_map`, are never run.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_FOREIGN = {
    "_attn_implementation",
    "_attn_implementation_internal",
    "_experts_implementation",
    "_experts_implementation_internal",
    "attn_implementation",
    "experts_implementation",
    "kernel_config",
    "quantization_config",
    "use_kernels",
    "use_pretrained_backbone",
    "use_timm_backbone",
}


def foreign_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Such settings in a configuration, however deep, by the way to them; those that are null or off do not count.

    >>> foreign_settings({"backbone_config": {"attn_implementation": "some/kernels", "use_kernels": False}})
    {'backbone_config.attn_implementation': 'some/kernels'}
    """
    return dict(_foreign(config, ""))


def _foreign(value: Any, way: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key in _FOREIGN and inner:
                yield f"{way}{key}", inner
            else:
                yield from _foreign(inner, f"{way}{key}.")
    elif isinstance(value, list):
        for inner in value:
            yield from _foreign(inner, way)
