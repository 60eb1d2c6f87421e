"""Texts that a task has more than once: in training and in evaluation, or with labels that contradict each other."""

from __future__ import annotations

from dataclasses import dataclass, field

from mtop_batch.data.raw_examples import RawExamples
from mtop_batch.data.same_text import Pair, same_text_key


@dataclass(frozen=True)
class RepeatedText:
    """A text of several examples of a task (`same_text_key`).

    Args:
        text: As the first of them has it.
        second_text: Its second text, if it is a pair.
        train: Label -> training examples. Of a regression, labels are its values.
        eval: Label -> evaluation examples.
    """

    text: str
    second_text: str | None
    train: dict[str, int] = field(default_factory=dict)
    eval: dict[str, int] = field(default_factory=dict)

    @property
    def overlaps(self) -> bool:
        """Whether it is evaluated on and was learned from."""
        return bool(self.train and self.eval)

    @property
    def contradicts(self) -> bool:
        """Whether it has more than one label."""
        return len({*self.train, *self.eval}) > 1


@dataclass(frozen=True)
class Repeats:
    """What of a task's data to doubt.

    Args:
        num_train: Training examples.
        num_overlap: Evaluation examples whose text is among the training examples.
        overlap: Their texts.
        contradictions: Texts with more than one label, in training, in evaluation, or between the two. None of a
            regression, whose values may differ a little.
    """

    num_train: int
    num_overlap: int
    overlap: list[RepeatedText]
    contradictions: list[RepeatedText]


def find_repeats(train: RawExamples, evaluation: RawExamples) -> Repeats:
    """The texts that a task's examples have in common.

    Args:
        train: Its training examples.
        evaluation: Its evaluation examples.
    """
    found: dict[Pair, RepeatedText] = {}
    for part, raw in (("train", train), ("eval", evaluation)):
        for pair, label in zip(raw.pairs(), raw.label_names(), strict=True):
            text = found.setdefault(same_text_key(pair), RepeatedText(*pair))
            labels = text.train if part == "train" else text.eval
            labels[label] = labels.get(label, 0) + 1
    texts = list(found.values())
    overlap = [text for text in texts if text.overlaps]
    is_regression = train.task.kind == "regression"
    return Repeats(
        num_train=len(train),
        num_overlap=sum(sum(text.eval.values()) for text in overlap),
        overlap=overlap,
        contradictions=[] if is_regression else [text for text in texts if text.contradicts],
    )
