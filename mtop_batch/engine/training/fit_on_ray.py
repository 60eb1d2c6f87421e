"""Decisions of a model that was trained on Ray, fitted there too."""

from __future__ import annotations

from typing import Any

import ray
from ray.exceptions import RayTaskError

from mtop_batch.config.sections import Config
from mtop_batch.engine.monitoring.memory import KEEP_FREED_MEMORY
from mtop_batch.engine.session import Resources
from mtop_batch.engine.training.fit_decisions import Examples, fit_on
from mtop_batch.engine.training.single_tasks import max_threads
from mtop_batch.engine.training.workers import use_threads
from mtop_batch.errors import MtopError
from mtop_batch.model.kinds.base import MultiTaskModel
from mtop_batch.precision import PrecisionChoice
from mtop_batch.training.calibration.fit_decisions import FittedDecision


def fit_on_ray(
    model: MultiTaskModel, examples: Examples, config: Config, precision: PrecisionChoice, resources: Resources
) -> dict[str, FittedDecision]:
    """`fit_on` on one of Ray's workers, with a GPU if there are any; the model stays as it is."""
    options: dict[str, Any] = {"num_cpus": 1, "runtime_env": {"env_vars": dict(KEEP_FREED_MEMORY)}}
    if resources.num_gpus:
        options["num_gpus"] = 1
    try:
        found: dict[str, FittedDecision] = ray.get(
            ray.remote(_fit_there).options(**options).remote(model, examples, config, precision, max_threads())
        )
    except RayTaskError as error:
        raise error.cause if isinstance(error.cause, MtopError) else error from error
    return found


def _fit_there(
    model: MultiTaskModel, examples: Examples, config: Config, precision: PrecisionChoice, threads: int | None
) -> dict[str, FittedDecision]:
    """A Ray task."""
    use_threads(1, threads)
    return fit_on(model, examples, config, precision)
