"""A bundle's task as a configuration names it again: to be evaluated, or decided otherwise."""

from __future__ import annotations

from dataclasses import replace

from mtop_batch.config.task import TaskConfig
from mtop_batch.errors import TaskError
from mtop_batch.tasks import Task


def task_definition(source: TaskConfig, known: Task, model_uri: str) -> Task:
    """The bundle's task, judged by the metric that the configuration names.

    Raises:
        TaskError: The task means something else in the configuration than in the bundle.
    """
    wanted = source.definition(known.reads)
    for key in ("kind", "reads", "labels", "text", "combine"):
        ours, theirs = getattr(wanted, key), getattr(known, key)
        if ours != theirs:
            raise TaskError(
                f"task {known.name!r}: {key} = {ours!r} in the configuration, but the bundle {model_uri} was "
                f"trained with {theirs!r}; use the configuration it was trained with (training.json in the bundle)"
            )
    return replace(known, metric=wanted.metric)
