"""Families: tasks that share the last layers of the encoder with one another and the others with all tasks.

A family has LoRA in the last layers (`mtop_batch.model.encoder.lora`), so a text goes through these once for each
family, and through the layers below once for all of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite

from mtop_batch.errors import TaskError
from mtop_batch.lines import did_you_mean, listed
from mtop_batch.tasks import NAME_PATTERN


@dataclass(frozen=True)
class Family:
    """Tasks that share LoRA in the last layers of the encoder, beside others that have their own or none.

    Args:
        name: Letters, digits, `_` and `-`, starting with a letter.
        rank: Of the LoRA.
        alpha: The LoRA is scaled by alpha / rank.
        layers: In how many of the encoder's last layers it is.

    Raises:
        TaskError: A field is outside what is allowed.
    """

    name: str
    rank: int = 8
    alpha: float = 16.0
    layers: int = 2

    def __post_init__(self) -> None:
        if not NAME_PATTERN.fullmatch(self.name):
            raise TaskError(
                f"family name {self.name!r} is not allowed: use letters, digits, '_' and '-', starting with a letter"
            )
        for key, value in (("rank", self.rank), ("alpha", self.alpha), ("layers", self.layers)):
            if not (value > 0 and isfinite(value)):
                raise TaskError(f"family {self.name!r}: {key} = {value} is not positive")


@dataclass(frozen=True)
class EncoderPasses:
    """How often a text goes through the encoder of a model, for some of its tasks.

    Args:
        per_task: It does so once for each task.
        num_layers: L, of the encoder.
        layers: k of each family, by its name.
        family_of: Task -> family, of the tasks that have one.
    """

    per_task: bool = False
    num_layers: int = 1
    layers: Mapping[str, int] = field(default_factory=dict)
    family_of: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, tasks: Collection[str]) -> float:
        """Passes, parts of one included; tasks of no family count as a family that changes no layer.

        For F families of k layers and no other task it is (L - k + F k) / L.

        >>> EncoderPasses(False, 6, {"a": 2, "b": 2}, {"names": "a", "topic": "b"})(["names", "topic"])
        1.3333333333333333
        """
        if self.per_task:
            return float(len(tasks))
        families = {self.family_of.get(task) for task in tasks}
        own = [self.layers[family] for family in families if family is not None]
        shared = self.num_layers if None in families or not own else self.num_layers - min(own)
        return (shared + sum(own)) / self.num_layers


def check_families(families: Sequence[Family], family_of: Mapping[str, str], known: Sequence[str] = ()) -> None:
    """Refuse families that do not fit together with the tasks.

    Args:
        families: New ones.
        family_of: Task -> family, of the tasks that have one.
        known: Names of families that are there already.

    Raises:
        TaskError: A task's family is not known, a new family has no task, or two have the same name.
    """
    names = [*known, *(family.name for family in families)]
    for name, count in Counter(names).items():
        if count > 1:
            what = (
                "is there already; its tasks name it, and [[family]] is for new ones" if name in known else "is twice"
            )
            raise TaskError(f"family {name!r} {what}: remove one [[family]]")
    for task, name in family_of.items():
        if name not in names:
            allowed = f"families: {listed(names)}" if names else "there is none: add a [[family]] with this name"
            raise TaskError(f"task {task!r}: there is no family {name!r}; {did_you_mean(name, names)}{allowed}")
    for family in families:
        if family.name not in family_of.values():
            raise TaskError(
                f'family {family.name!r} has no task; write family = "{family.name}" in a [[task]], or remove it'
            )
