"""The decision hash: equal exactly where the same probabilities become the same labels and scores.

Beside the score hash, which covers what costs a forward pass (`mtop_batch.model.bundle.fingerprints`), it covers what
costs none: temperature, thresholds, abstention, and rules. A rule makes a task's labels depend on the probabilities of
the tasks that it is tied to, so their score hashes and decisions count too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

from mtop_batch.decisions.rules import rule_groups
from mtop_batch.tasks import Decision, Task

# Counts up when the same decision comes to give other labels because the code changed.
_COMPUTATION = 1
_HEX_DIGITS = 32


def decision_hashes(tasks: Sequence[Task], fingerprints: Mapping[str, str]) -> dict[str, str]:
    """The decision hash of each task, by name: 32 hexadecimal digits, or "" for one that decides as every task does.

    Args:
        tasks: All that rules tie together, or none of these.
        fingerprints: Their score hashes.

    Raises:
        TaskError: A rule names a task that is not there.
    """
    tied = {task.name: group for group in rule_groups(tasks) for task in group.tasks}
    hashes = {}
    for task in tasks:
        content = {"computation": _COMPUTATION, **asdict(task.decision)}
        if task.name in tied:
            group = tied[task.name]
            content["rules"] = sorted(map(str, group.rules))
            content["tied"] = [
                [other.name, fingerprints[other.name], asdict(_of_others(other.decision))]
                for other in group.tasks
                if other.name != task.name
            ]
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:_HEX_DIGITS]
        hashes[task.name] = digest if task.has_decision else ""
    return hashes


def _of_others(decision: Decision) -> Decision:
    """What of a task's decision other tasks depend on."""
    return replace(decision, abstain_below=0.0, rules=())
