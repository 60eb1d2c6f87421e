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
            `selection.select`, or "alone" for none, and its options; or "family", for one model of each family. None
            where one model has all tasks.
        reads: What its tasks on texts read; None for what the kind of model has them read.
        families: What `[[family]]` says of each family but its name (`family_methods.family_of`); None where tasks have
            no families.
        prefinetune: How the encoder learns from source tasks before: a section `[train]`, and as "max_examples" most
            examples of a source; None if it begins as pretrained.
        judged: The tasks that it is tested on; None for all of the data set.
        learns: The tasks that it is trained on; None for those that it is tested on.
        own_epochs: Whether it takes as many epochs of these as others take of the tasks that most are tested on, not as
            many steps.
        begins_with: The method whose run with the same seed leaves the encoder that it begins with; None for the
            pretrained one.
    """

    title: str
    model: Mapping[str, Any]
    train: Mapping[str, Any] = field(default_factory=dict)
    unlabelled: Mapping[str, Any] | None = None
    auxiliary: Mapping[str, Any] | None = None
    reads: Reader | None = None
    families: Mapping[str, Any] | None = None
    prefinetune: Mapping[str, Any] | None = None
    judged: Share | None = None
    learns: Share | None = None
    own_epochs: bool = False
    begins_with: str | None = None

    @property
    def alone(self) -> bool:
        """Whether no task learns from another."""
        return self.model["kind"] == "single-task" or (self.auxiliary or {}).get("method") == "alone"


COMMON: Mapping[str, Any] = {
    "epochs": 2,
    "batch_size": 16,
    "learning_rate": 5e-5,
    "weight_decay": 0.01,
    "warmup_fraction": 0.1,
    "max_grad_norm": 1.0,
    "alpha": 1.0,
    "freeze_word_embeddings": True,
}
"""What all methods have in `[train]`: as many labelled examples in as many steps, at the same rate of the backbone.

All is said here, so that a change of a default leaves what a run is, and so its digest, alone.
"""
