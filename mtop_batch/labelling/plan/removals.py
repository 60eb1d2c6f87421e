"""What a run may remove: published files whose source file is gone, if that is what was meant."""

from __future__ import annotations

from mtop_batch.errors import ConfigError
from mtop_batch.labelling.plan.work import Plan
from mtop_batch.lines import counted, shown
from mtop_batch.table.runs import list_runs, read_run
from mtop_batch.table.vacuum import MAX_SHARE


def check_removals(plan: Plan) -> None:
    """Refuse a plan that removes most of the published table, which is seldom what is meant.

    Raises:
        ConfigError: It does.
    """
    if len(plan.removals) > MAX_SHARE * plan.num_published:
        raise ConfigError(
            f"--prune would remove {len(plan.removals):,} of {plan.num_published:,} published files, such as "
            f"{shown(plan.removals[0])}: that is more than {MAX_SHARE:.0%}; if it is right, give --force"
        )


def check_same_corpus(plan: Plan) -> None:
    """A mistyped corpus must not empty the table: to it, the labels of all other files are orphaned.

    Raises:
        ConfigError: The newest run was for another corpus, or there is none to know it from.
    """
    known = _newest_corpus(plan.labels)
    if known != plan.corpus:
        raise ConfigError(
            f"--prune would remove {counted(len(plan.orphaned), 'published file')}, such as {shown(plan.orphaned[0])}, "
            f"because --corpus {plan.corpus} does not have their source files; but the newest run on {plan.labels} was "
            f"for {known or 'an unknown corpus'}. If the corpus has moved, run once without --prune"
        )


def other_corpus(labels: str, root: str) -> str:
    """The corpus that the newest run labelled, if it was another one; "" if not."""
    known = _newest_corpus(labels) or root
    return "" if known == root else known


def _newest_corpus(labels: str) -> str | None:
    newest = next(iter(list_runs(labels)), None)
    return read_run(labels, newest).corpus if newest else None
