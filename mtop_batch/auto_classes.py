"""Makes `transformers.AutoConfig` and `AutoModel` know the models of this package, as soon as anybody asks for these.

`import mtop_batch` itself imports neither transformers nor torch, which take seconds: it waits for the modules in which
transformers keeps what it knows.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any


def register_configurations() -> None:
    """Let `AutoConfig` know every kind of model."""
    from transformers import AutoConfig

    from mtop_batch.model.kinds.config import MTOPConfig

    AutoConfig.register(MTOPConfig.model_type, MTOPConfig, exist_ok=True)


def register_models() -> None:
    """Let `AutoModel` know every kind of model."""
    from transformers import AutoModel

    from mtop_batch.model.kinds.by_name import KINDS

    for kind in KINDS.values():
        AutoModel.register(kind.config_class, kind, exist_ok=True)


_REGISTRATIONS: dict[str, Callable[[], None]] = {
    "transformers.models.auto.configuration_auto": register_configurations,
    "transformers.models.auto.modeling_auto": register_models,
}


def register_when_imported() -> None:
    """Register with what is imported already, and with the rest when it is."""
    for name, register in _REGISTRATIONS.items():
        if name in sys.modules:
            register()
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder:
    """Finds the modules of `_REGISTRATIONS` as usual, and registers when they have been executed."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in _REGISTRATIONS:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            execute = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                _REGISTRATIONS[name]()

            loader.exec_module = exec_module
        return spec
