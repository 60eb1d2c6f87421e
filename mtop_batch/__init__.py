"""One model, one forward pass, every text-classification label.

    from mtop_batch import add_tasks, calibrate, evaluate, label, prefinetune, review, select_tasks, train  # commands
    from mtop_batch import MTOPModel, Predictor, read_labels  # a bundle, and the label table

Names are imported on first use, so that `mtop --help` does not wait for torch. Once this is imported,
`transformers.AutoConfig` and `AutoModel` load bundles too.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mtop_batch.auto_classes import register_when_imported

if TYPE_CHECKING:
    from mtop_batch.api import add_tasks, calibrate, evaluate, label, prefinetune, review, select_tasks, train
    from mtop_batch.errors import BundleError, ConfigError, DataError, JobError, LabelTableError, MtopError, TaskError
    from mtop_batch.labelling.run.predictor import Predictor
    from mtop_batch.model.kinds.config import MTOPConfig
    from mtop_batch.model.kinds.mtop import MTOPModel
    from mtop_batch.table.read import iter_labels, read_labels
    from mtop_batch.tasks import Task

_MODULES = {
    "BundleError": "errors",
    "ConfigError": "errors",
    "DataError": "errors",
    "JobError": "errors",
    "LabelTableError": "errors",
    "MTOPConfig": "model.kinds.config",
    "MTOPModel": "model.kinds.mtop",
    "MtopError": "errors",
    "Predictor": "labelling.run.predictor",
    "Task": "tasks",
    "TaskError": "errors",
    "add_tasks": "api",
    "calibrate": "api",
    "evaluate": "api",
    "iter_labels": "table.read",
    "label": "api",
    "prefinetune": "api",
    "read_labels": "table.read",
    "review": "api",
    "select_tasks": "api",
    "train": "api",
}

__all__ = [
    "BundleError",
    "ConfigError",
    "DataError",
    "JobError",
    "LabelTableError",
    "MTOPConfig",
    "MTOPModel",
    "MtopError",
    "Predictor",
    "Task",
    "TaskError",
    "add_tasks",
    "calibrate",
    "evaluate",
    "iter_labels",
    "label",
    "prefinetune",
    "read_labels",
    "review",
    "select_tasks",
    "train",
]
__version__ = "0.1.0"

register_when_imported()


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'mtop_batch' has no attribute {name!r}")
    return getattr(import_module(f"mtop_batch.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
