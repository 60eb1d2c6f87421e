"""Which tasks use the same heads: Kendall's rank correlation between matrices of importance, and groups by it, or by
any other similarity.

Shapes: N tasks, R examples, L layers, H heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy.cluster.hierarchy import fcluster, leaves_list, linkage
from scipy.spatial.distance import squareform
from scipy.stats import kendalltau

from mtop_batch.selection.importance import FloatArray, normalised

Correlations = npt.NDArray[np.float64]


def kendall_tau(first: npt.NDArray[np.floating], second: npt.NDArray[np.floating]) -> float:
    """Kendall's tau-b of two matrices (L, H); 0 where one has the same value everywhere and so ranks nothing."""
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(kendalltau(first.ravel(), second.ravel()).statistic)


def task_correlations(importance: Sequence[FloatArray]) -> Correlations:
    """(N, N) The correlation of each two of N tasks."""
    found = np.eye(len(importance))
    for row, first in enumerate(importance):
        for column, second in enumerate(importance[:row]):
            found[row, column] = found[column, row] = kendall_tau(first, second)
    return found


def example_correlations(gradients: FloatArray, primary: FloatArray) -> Correlations:
    """(R,) The correlation of each example's own matrix, from (R, L, H) gradients, with the (L, H) of a task."""
    return np.array([kendall_tau(own, primary) for own in normalised(gradients)])


def cluster_tree(correlations: Correlations) -> npt.NDArray[np.float64]:
    """The hierarchy of N tasks, at least two, as SciPy has it: average linkage of the distances 1 - tau."""
    distances = np.clip(1 - correlations, 0, None)
    np.fill_diagonal(distances, 0)
    return linkage(squareform(distances, checks=False), method="average")


def similar_first(correlations: Correlations) -> list[int]:
    """The N tasks in an order in which those that correlate stand together."""
    if len(correlations) < 2:
        return list(range(len(correlations)))
    return [int(index) for index in leaves_list(cluster_tree(correlations))]


def similarity_groups(names: Sequence[str], correlations: Correlations, num_groups: int) -> Mapping[str, str]:
    """Task -> group, at most so many groups: "c1" is the first task's, and so on in the order of the tasks."""
    if len(names) < 2:
        return dict.fromkeys(names, "c1")
    numbers = fcluster(cluster_tree(correlations), num_groups, criterion="maxclust").tolist()
    order = list(dict.fromkeys(numbers))
    return {name: f"c{order.index(number) + 1}" for name, number in zip(names, numbers, strict=True)}
