"""Is a method better than another? The difference of their means, paired by seed and by test example.

The interval is that of a bootstrap in two levels: seeds are drawn again with replacement, and so are the test examples
of each task, the same for both methods and all seeds. A draw of examples is a weight for each, so a metric of all draws
is a few matrix products. Correlations by rank keep the ranks of the whole test set.

Of a token task an example is a text: whoever draws it draws all of its entities, and what was found in it.

Shapes: S seeds, n test examples of a task, W draws, C labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from mtop_batch.tasks import Metric

Values = npt.NDArray[np.float64]
Outcome = Literal["win", "tie", "loss"]

DRAWS = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class TestOutputs:
    """What a method said of the test examples of a task.

    Args:
        predictions: (S, n) Label ids, or values of a regression, in the order of the seeds; (S, n, C) 1 for the labels
            that are given, else 0, of a multi-label task; (S, n, 2) how many entities are found, and right, of a token
            task.
        labels: (n,), or (n, C); of a token task (n,) how many entities there are.
        metric: That judges them.
        num_labels: C; 1 for a regression.
    """

    __test__ = False  # pytest takes it for a test otherwise

    predictions: Values
    labels: Values
    metric: Metric
    num_labels: int

    def samples(self, weights: Values) -> Values:
        """(W, S) The metric of each draw and seed; `weights` (W, n) says how often each example was drawn."""
        columns = [_metric(self.metric, row, self.labels, self.num_labels, weights) for row in self.predictions]
        return np.stack(columns, axis=1)

    def value(self) -> Values:
        """(S,) The metric of each seed."""
        return self.samples(np.ones((1, len(self.labels))))[0]


@dataclass(frozen=True)
class Difference:
    """How much better a method is than another, in points of the metric (1 is all).

    Args:
        mean: Over the seeds that both have.
        low: Of the interval.
        high: Of the interval.
        seeds: How many both have.
    """

    mean: float
    low: float
    high: float
    seeds: int

    @property
    def outcome(self) -> Outcome:
        """ "win" or "loss" where the interval has no zero in it; a tie also where there are too few seeds to tell."""
        if self.seeds < 2 or self.low <= 0 <= self.high:
            return "tie"
        return "win" if self.mean > 0 else "loss"


@dataclass(frozen=True)
class Differences:
    """How much better a method is than another at each of some tasks.

    Args:
        values: The difference at each task.
        samples: (W,) The same of each draw, of each task.
        num_seeds: S
    """

    values: Sequence[float]
    samples: Sequence[Values]
    num_seeds: int

    @property
    def by_task(self) -> list[Difference]:
        """That of each task."""
        return [self.mean([place]) for place in range(len(self.values))]

    def mean(self, places: Sequence[int] | None = None) -> Difference:
        """That of the means over some of the tasks, by their places; None for all."""
        places = range(len(self.values)) if places is None else places
        value = float(np.mean([self.values[place] for place in places]))
        return _difference(value, np.mean([self.samples[place] for place in places], axis=0), self.num_seeds)


@dataclass(frozen=True)
class Drawn:
    """The metrics of a method under each draw; what is drawn is the same for all methods with as many seeds.

    Args:
        values: (S,) The metric of each task and seed, of all examples.
        samples: (W, S) Those of each draw of examples.
        seed_weights: (W, S) The share of each seed in each draw.
    """

    values: Sequence[Values]
    samples: Sequence[Values]
    seed_weights: Values

    @classmethod
    def of(cls, outputs: Sequence[TestOutputs], seed: int = 0, draws: int = DRAWS) -> Drawn:
        """Draw.

        Args:
            outputs: Of each task; all have the same S seeds.
            seed: Of the draws.
            draws: W.
        """
        num_seeds = len(outputs[0].predictions)
        counts = _draw((num_seeds, *(len(own.labels) for own in outputs)), seed, draws)
        samples = [own.samples(count.astype(np.float64)) for own, count in zip(outputs, counts[1:], strict=True)]
        return cls([own.value() for own in outputs], samples, counts[0] / num_seeds)


def differences(first: Drawn, second: Drawn) -> Differences:
    """How much better the first method is than the second, of the same tasks, seeds and draws."""
    samples = [
        ((own - other) * first.seed_weights).sum(axis=1)
        for own, other in zip(first.samples, second.samples, strict=True)
    ]
    values = [float((own - other).mean()) for own, other in zip(first.values, second.values, strict=True)]
    return Differences(values, samples, len(first.values[0]))


@lru_cache(maxsize=1)
def _draw(sizes: tuple[int, ...], seed: int, draws: int) -> list[npt.NDArray[np.uint16]]:
    """(W, n) Of each n, how often each of so many is drawn; kept, for all rows of a table have the same."""
    rng = np.random.default_rng(seed)
    return [rng.multinomial(n, np.full(n, 1 / n), draws).astype(np.uint16) for n in sizes]


def _difference(value: float, drawn: Values, num_seeds: int) -> Difference:
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Difference(value, float(low), float(high), num_seeds)


def _metric(name: Metric, predictions: Values, labels: Values, num_labels: int, weights: Values) -> Values:
    """(W,) The metric under each row of weights (W, n)."""
    match name:
        case "accuracy":
            return weights @ (predictions == labels) / weights.sum(axis=1)
        case "f1":
            return _f1(_confusions(predictions, labels, num_labels, weights))
        case "matthews":
            return _matthews(_confusions(predictions, labels, num_labels, weights))
        case "micro_f1":
            return _ratio(*(counts.sum(axis=1) for counts in _hits_and_sizes(predictions, labels, weights)))
        case "macro_f1":
            hits, sizes = _hits_and_sizes(predictions, labels, weights)
            present = (sizes > 0).sum(axis=1)
            return _ratio(_ratio(hits, sizes).sum(axis=1), present.astype(np.float64))
        case "subset_accuracy":
            return weights @ (predictions == labels).all(axis=1) / weights.sum(axis=1)
        case "pearson":
            return _pearson(predictions, labels, weights)
        case "spearman":
            return _pearson(rankdata(predictions), rankdata(labels), weights)
        case "pearson_spearman":
            both = [_metric(part, predictions, labels, num_labels, weights) for part in _CORRELATIONS]
            return np.mean(both, axis=0)
        case "entity_f1":
            found, right = (weights @ predictions).T
            return _ratio(2 * right, weights @ labels + found)


_CORRELATIONS: tuple[Metric, Metric] = ("pearson", "spearman")


def _confusions(predictions: Values, labels: Values, num_labels: int, weights: Values) -> Values:
    """(W, C, C) Weights by true and predicted label."""
    cell = (labels * num_labels + predictions).astype(np.int64)
    one_hot = np.eye(num_labels**2)[cell]
    return (weights @ one_hot).reshape(-1, num_labels, num_labels)


def _f1(confusions: Values) -> Values:
    """F1 of the second of two labels; else the mean over the labels that occur or are predicted."""
    hits = np.diagonal(confusions, axis1=1, axis2=2)
    sizes = confusions.sum(axis=1) + confusions.sum(axis=2)
    scores = 2 * hits / np.maximum(sizes, 1e-12)
    if confusions.shape[1] == 2:
        return scores[:, 1]
    present = sizes > 0
    return (scores * present).sum(axis=1) / present.sum(axis=1)


def _hits_and_sizes(predictions: Values, labels: Values, weights: Values) -> tuple[Values, Values]:
    """(W, C) Of each label by itself: twice its true positives, and how often it is given or predicted; F1's parts."""
    return 2 * (weights @ (predictions * labels)), weights @ (predictions + labels)


def _ratio(top: Values, bottom: Values) -> Values:
    """Their ratio, 0 where the lower one is."""
    return np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)


def _matthews(confusions: Values) -> Values:
    total, hits = confusions.sum(axis=(1, 2)), np.trace(confusions, axis1=1, axis2=2)
    true, predicted = confusions.sum(axis=2), confusions.sum(axis=1)
    scale = np.sqrt((total**2 - (true**2).sum(axis=1)) * (total**2 - (predicted**2).sum(axis=1)))
    top = hits * total - (true * predicted).sum(axis=1)
    return np.divide(top, scale, out=np.zeros_like(top), where=scale > 0)


def _pearson(first: Values, second: Values, weights: Values) -> Values:
    total = weights.sum(axis=1)

    def mean(values: Values) -> Values:
        return weights @ values / total

    # About their means, so that little is lost to rounding.
    first, second = first - first.mean(), second - second.mean()
    covariance = mean(first * second) - mean(first) * mean(second)
    variances = (mean(first**2) - mean(first) ** 2) * (mean(second**2) - mean(second) ** 2)
    defined = variances > 1e-18
    return np.divide(covariance, np.sqrt(np.maximum(variances, 0)), out=np.zeros_like(total), where=defined)
