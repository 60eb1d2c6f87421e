"""Into which label sets new labels go."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from mtop_batch.table.definition import VECTOR, Definition, LabelSet


def choose_label_sets(
    definition: Definition, tasks: Sequence[str], label_sets: Iterable[LabelSet]
) -> list[tuple[str, tuple[str, ...]]]:
    """Where the labels of `tasks` for one unit go: label sets, each with its tasks.

    Existing sets that hold nothing but some of these tasks are filled up, the largest first; so every set stays a
    complete table, and nightly new files join the sets of earlier ones. What remains becomes one set for each group of
    tasks that read the same columns, are in the same existing sets and can be decided from the same ones (in a first
    run all that read the same), and vectors one of their own. Sets that are created so never split what was one group:
    a run that is cut short and done again ends with the same files as one that was not.
    """
    label_sets = list(label_sets)
    open_tasks = set(tasks)
    candidates = [
        label_set
        for label_set in label_sets
        if set(label_set.fingerprints) <= open_tasks
        and all(definition.view.gives_the_same(label_set.view, task) for task in label_set.fingerprints)
    ]
    chosen: list[tuple[str, tuple[str, ...]]] = []
    for label_set in sorted(candidates, key=lambda candidate: (-len(candidate.fingerprints), candidate.name)):
        if set(label_set.fingerprints) <= open_tasks:
            chosen.append((label_set.name, tuple(label_set.fingerprints)))
            open_tasks -= set(label_set.fingerprints)
    groups: dict[tuple[bool, tuple[str, ...], frozenset[str], frozenset[str]], list[str]] = defaultdict(list)
    for task in tasks:
        if task in open_tasks:
            holders = frozenset(known.name for known in label_sets if definition.view.matches(known.view, task))
            scored = frozenset(known.name for known in label_sets if definition.can_be_decided_from(known, task))
            groups[task == VECTOR, definition.text_columns[task], holders, scored].append(task)
    chosen += [(definition.label_set_name(group), tuple(group)) for group in groups.values()]
    return sorted(chosen, key=lambda target: tasks.index(target[1][0]))
