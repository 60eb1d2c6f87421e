"""Prompt groups of tasks that are alike: in the heads that their own models use, or in their names and labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from mtop_batch.config.model import MTOPModelConfig
from mtop_batch.config.sections import Config
from mtop_batch.config.task import TaskConfig
from mtop_batch.selection.correlation import Correlations, similarity_groups
from mtop_batch.selection.jobs import Jobs
from mtop_batch.selection.select import Run, measure

_WORDS = r"[^\W\d_]{2,}"


def open_tasks(config: Config) -> list[TaskConfig]:
    """The tasks that are to be put into groups of tasks that are alike; none if groups are made otherwise."""
    section = config.model
    if not isinstance(section, MTOPModelConfig) or section.like_groups is None:
        return []
    return [task for task in config.task if task.prompt_group is None]


def needs_trainings(config: Config) -> bool:
    """Whether tasks are trained alone to find their groups."""
    section = config.model
    by_correlation = isinstance(section, MTOPModelConfig) and (section.like_groups or ("",))[0] == "correlation"
    return by_correlation and bool(open_tasks(config))


def with_like_groups(config: Config, jobs: Jobs | None = None, run: Run | None = None) -> Config:
    """The configuration with tasks in groups of those that are alike, if it asks for that; else as it is.

    Args:
        config: Of a training.
        jobs: Of the same; only for groups by correlation, like the next.
        run: Runs the trainings of tasks alone.

    Raises:
        MtopError: As `run`.
    """
    section = config.model
    if not isinstance(section, MTOPModelConfig) or section.like_groups is None:
        return config
    free = open_tasks(config)
    if not free:
        return config.with_prompt_groups({})
    by, number = section.like_groups
    names = [task.name for task in free]
    if by == "labels":
        similarities = label_similarities(free)
    elif jobs is None or run is None:
        raise ValueError("groups by correlation need trainings of tasks alone")
    else:
        similarities = measure(jobs, run, names).correlations
    return config.with_prompt_groups(similarity_groups(names, similarities, number))


def label_similarities(tasks: Sequence[TaskConfig]) -> Correlations:
    """(N, N) Cosines between the words of tasks' names and labels; a word of many tasks counts little."""
    words = [" ".join((task.name, *task.labels)) for task in tasks]
    weights = TfidfVectorizer(token_pattern=_WORDS, sublinear_tf=True)
    try:
        found = weights.fit_transform(words)
    except ValueError:  # names and labels without any word
        return np.eye(len(tasks))
    similarities: Correlations = np.clip((found @ found.T).toarray(), 0, 1)
    return similarities
