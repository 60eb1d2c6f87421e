"""What a method is: a way to train, and the tasks it is for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mtop_batch.tasks import Reader


@dataclass(frozen=True)
class Share:
    """Some tasks of a large set, as `mtop build-many` makes one.

    Args:
        first: The first so many tasks of its sites.
        large: And the very large one, which is called "large".
    """

    first: int
    large: bool = False


@dataclass(frozen=True)
class Method:
    """A way to train.

    Args:
        title: As tables call it.
        model: The section `[model]` of its configuration.
        train: What its `[train]` has besides `COMMON`.
        unlabelled: Its section `[unlabelled]`, but for the corpus; None if it learns from labelled examples only.
        auxiliary: How each task gets a model of its own, trained with tasks that help it: the "method" of
            `selection.select`, or "alone" for none, and its options; None where one model has all tasks.
        reads: What its tasks read; None for what the kind of model has them read.
        judged: The tasks that it is tested on; None for all of the data set.
        learns: The tasks that it is trained on; None for those that it is tested on.
        begins_with: The method whose run with the same seed leaves the encoder that it begins with; None for the
            pretrained one.
    """

    title: str
    model: Mapping[str, Any]
    train: Mapping[str, Any] = field(default_factory=dict)
    unlabelled: Mapping[str, Any] | None = None
    auxiliary: Mapping[str, Any] | None = None
    reads: Reader | None = None
    judged: Share | None = None
    learns: Share | None = None
    begins_with: str | None = None
