"""How labels and scores are spread over articles, and how far two such distributions are apart."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mtop_batch.table.gate.label_codes import Floats

SCORE_BINS = 20
# Bins of values grow with the value: 0.1 wide near zero, a tenth of the value far from it.
_VALUE_BINS_PER_UNIT = 10


@dataclass
class Scores:
    """Scores (or values) of some articles: how many, their sum, and how many in each bin."""

    count: int = 0
    total: float = 0.0
    bins: Counter[int] = field(default_factory=Counter)

    def add(self, scores: Floats, *, are_values: bool) -> None:
        """Count scores of 0 to 1, or values of any size."""
        self.count += len(scores)
        self.total += float(scores.sum())
        places = np.arcsinh(scores) * _VALUE_BINS_PER_UNIT if are_values else np.clip(scores, 0, 0.999) * SCORE_BINS
        numbers, counts = np.unique(np.floor(places).astype(np.int64), return_counts=True)
        self.bins.update(dict(zip(numbers.tolist(), counts.tolist(), strict=True)))

    def merge(self, other: Scores) -> None:
        """Count those of the other too."""
        self.count += other.count
        self.total += other.total
        self.bins.update(other.bins)

    @property
    def mean(self) -> float | None:
        """None if there are none."""
        return self.total / self.count if self.count else None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: count, mean, and the bins in order."""
        mean = None if self.mean is None else round(self.mean, 6)
        return {"count": self.count, "mean": mean, "bins": {str(key): self.bins[key] for key in sorted(self.bins)}}


class LabelCounts(Counter[str]):
    """Articles per label, or per bin of values.

    Args:
        counts: The articles.
        articles: How many they are, where an article may have several labels, or none; by default the counts' sum.
    """

    def __init__(self, counts: Mapping[str, int], articles: int | None = None) -> None:
        super().__init__(counts)
        self.articles = self.total() if articles is None else articles


def bins_by_name(scores: Scores) -> LabelCounts:
    """Values by the lower end of their bin."""
    return LabelCounts(
        {f"{math.sinh(key / _VALUE_BINS_PER_UNIT):.4g}": scores.bins[key] for key in sorted(scores.bins)}
    )


def stability(old: Mapping[str, int], new: Mapping[str, int]) -> float | None:
    """The population stability index of two distributions; None where one is empty.

    sum over labels of (p - q) ln(p / q), with half an article added to each label. Below 0.1 they are alike, above 0.25
    they are not.

    >>> stability({"no": 76, "yes": 24}, {"no": 75, "yes": 25}), stability({"no": 76, "yes": 24}, {"no": 5, "yes": 95})
    (0.0005, 2.807)
    """
    labels = old.keys() | new.keys()
    totals = [sum(counts.values()) + len(labels) / 2 for counts in (old, new)]
    if not old or not new:
        return None
    shares = [
        [(counts.get(label, 0) + 0.5) / total for label in sorted(labels)]
        for counts, total in zip((old, new), totals, strict=True)
    ]
    return round(sum((q - p) * math.log(q / p) for p, q in zip(*shares, strict=True)), 4)
