"""The gate's rules on made-up changes: what closes it, and what must not."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtop_batch.table.gate.distributions import stability
from mtop_batch.table.gate.rules import MetricChange, Rules, TableChange, judge
from mtop_batch.table.gate.statistics import TaskChange

STRICT = Rules(max_new_share_change=0.2, min_articles=50)


def labels_of(task: str, labels: Sequence[str | None], score: float = 0.9) -> pa.Table:
    scores = [None if label is None else score for label in labels]
    return pa.table(
        {
            "id": range(len(labels)),
            f"{task}_label": pa.array(labels, pa.string()).dictionary_encode(),
            f"{task}_score": pa.array(scores, pa.float32()),
        }
    )


def values_of(task: str, values: Sequence[float]) -> pa.Table:
    return pa.table({"id": range(len(values)), f"{task}_score": pa.array(values, pa.float32())})


def yes(count: int, total: int) -> list[str]:
    return ["yes"] * count + ["no"] * (total - count)


def change_of(new: pa.Table, old: pa.Table | None, kind: str = "classification", **options: Any) -> TableChange:
    change = TaskChange(kind, "new")
    change.add("t", new, old, source="a.parquet", replaced=("news", "old"))
    return TableChange(len(new), tasks={"t": change}, **options)


def rules_of(change: TableChange, rules: Rules = STRICT) -> list[str]:
    return [reason.rule for reason in judge(change, rules).reasons]


def test_a_bundle_that_says_yes_to_nearly_all_closes_the_gate() -> None:
    change = change_of(labels_of("t", yes(946, 1000)), labels_of("t", yes(240, 1000)))
    verdict = judge(change, Rules())
    assert not verdict.is_open
    assert [reason.rule for reason in verdict.reasons] == ["max_label_share_change", "max_flips"]
    assert "t: 'yes' goes from 24.0% to 94.6% of 1,000 articles" in str(verdict)
    assert verdict.change.tasks["t"].to_dict()["stability"] > 0.25
    assert judge(change, Rules(), opened_by="--force").is_open


def test_flips_that_leave_the_shares_alone_are_seen() -> None:
    labels = yes(500, 1000)
    change = change_of(labels_of("t", labels[::-1]), labels_of("t", labels))
    assert rules_of(change) == ["max_flips"]


def test_new_articles_are_compared_with_the_last_runs() -> None:
    new = labels_of("t", yes(190, 200))
    assert rules_of(change_of(new, None, usual={"t": [{"yes": 60, "no": 440}]})) == ["max_new_share_change"]
    assert rules_of(change_of(new, None, usual={"t": [{"yes": 60, "no": 440}, {"yes": 180, "no": 20}]})) == []
    assert rules_of(change_of(new, None, usual={"t": []})) == []  # a first run, or a new task


def test_values_are_compared_by_their_distribution_and_by_concordance() -> None:
    values = np.random.default_rng(0).normal(3, 1, 1000)
    old = values_of("t", values.tolist())
    assert rules_of(change_of(values_of("t", (values + 0.05).tolist()), old, "regression")) == []
    moved = rules_of(change_of(values_of("t", (values + 2).tolist()), old, "regression"))
    assert moved == ["max_label_share_change", "max_flips"]
    shuffled = np.random.default_rng(1).permutation(values).tolist()
    assert rules_of(change_of(values_of("t", shuffled), old, "regression")) == ["max_flips"]
    constant = change_of(values_of("t", [1.0] * 100), values_of("t", [1.0] * 100), "regression")
    assert rules_of(constant) == []


def test_errors_that_were_not_there_before_count() -> None:
    assert rules_of(TableChange(1000, 400)) == ["max_error_fraction"]
    assert rules_of(TableChange(1000, 100)) == []
    assert rules_of(TableChange(60, 60)) == ["max_error_fraction"]


def test_few_articles_close_the_gate_where_more_are_asked_for() -> None:
    assert rules_of(TableChange(49)) == ["min_articles"]
    assert rules_of(TableChange(50)) == []
    assert rules_of(TableChange(0)) == []  # nothing to publish


@pytest.mark.parametrize(
    ("old", "new", "rules"),
    [
        ((0.90, 2000), (0.60, 2000), ["max_metric_drop"]),
        ((0.90, 2000), (0.88, 2000), []),
        ((0.90, 2000), (0.99, 2000), []),
        ((0.90, 20), (0.75, 20), []),  # three examples
        ((0.90, 0), (0.10, 0), []),
    ],
)
def test_metrics_may_drop_by_little_or_by_chance(
    old: tuple[float, int], new: tuple[float, int], rules: list[str]
) -> None:
    assert (
        rules_of(
            TableChange(100, metrics={"t": MetricChange("f1", *old, *new)}, tasks={"t": TaskChange("classification")})
        )
        == rules
    )


@pytest.mark.parametrize("count", [1, 5, 20])
def test_a_few_articles_never_close_the_default_gate_by_their_labels(count: int) -> None:
    change = change_of(labels_of("t", yes(count, count)), labels_of("t", yes(0, count)))
    assert judge(change, Rules()).is_open
    fresh = change_of(labels_of("t", yes(count, count)), None, usual={"t": [{"no": 100_000}]})
    assert judge(fresh, Rules()).is_open


@pytest.mark.parametrize("seed", range(20))
def test_normal_nights_pass_the_default_gate(seed: int) -> None:
    """A retrained bundle that differs on every tenth article, and new articles of a day that is unlike the others."""
    rng = random.Random(seed)
    count = rng.choice([3, 30, 300, 3000])
    share = rng.choice([0.001, 0.01, 0.1, 0.5])  # rare labels too
    old = ["yes" if rng.random() < share else "no" for _ in range(count)]
    new = [label if rng.random() < 0.9 else ("yes" if rng.random() < share else "no") for label in old]
    day = ["yes" if rng.random() < min(1.0, share * rng.uniform(0.3, 3)) else "no" for _ in range(count)]
    assert judge(change_of(labels_of("t", new), labels_of("t", old)), Rules()).is_open
    usual = [{"yes": round(1000 * share), "no": round(1000 * (1 - share))}] * 3
    assert judge(change_of(labels_of("t", day), None, usual={"t": usual}), Rules()).is_open


@given(st.lists(st.tuples(*[st.sampled_from(["a", "b", "c", None])] * 2), max_size=30), st.integers(0, 30))
def test_counts_add_up_however_the_rows_are_split(rows: list[tuple[str | None, str | None]], cut: int) -> None:
    whole, parts = TaskChange("classification"), TaskChange("classification")
    for change, slices in ((whole, [slice(None)]), (parts, [slice(cut), slice(cut, None)])):
        for part in slices:
            one = TaskChange("classification")
            one.add("t", labels_of("t", [new for new, _ in rows[part]]), labels_of("t", [old for _, old in rows[part]]))
            change.merge(one)
    both = [(old, new) for new, old in rows if old is not None and new is not None]
    for change in (whole, parts):
        assert change.num_same == len(both) == change.pairs.total()
        assert change.fresh.count == sum(new is not None and old is None for new, old in rows)
        assert change.disagreement == pytest.approx(sum(a != b for a, b in both) / max(1, len(both)))
    assert whole.old_shares == parts.old_shares
    assert whole.new_shares == parts.new_shares


def test_examples_are_few_and_name_the_article() -> None:
    change = change_of(labels_of("t", yes(50, 100)), labels_of("t", yes(0, 100), score=0.7)).tasks["t"]
    assert len(change.examples) == 5
    assert all(example["old"] == "no" and example["new"] == "yes" for example in change.examples)
    assert {example["row"] for example in change.examples} <= set(range(50))
    assert change.examples[0]["old_score"] == 0.7


def test_stability_is_symmetric_and_zero_for_equal_shares() -> None:
    old, new = {"a": 10, "b": 90}, {"a": 90, "b": 10, "c": 1}
    assert stability(old, new) == stability(new, old)
    assert stability(old, old) == 0.0
    assert stability({}, new) is None


def test_limits_can_be_set() -> None:
    change = change_of(labels_of("t", yes(946, 1000)), labels_of("t", yes(240, 1000)))
    assert judge(change, replace(Rules(), max_label_share_change=1.0, max_flips=1.0)).is_open
