"""What a plan is expected to take: planned against actual."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mtop_batch import storage
from mtop_batch.labelling.plan.explain import estimate, explain_plan, plan_dict
from mtop_batch.labelling.plan.planner import plan_labels
from mtop_batch.labelling.plan.work import Plan
from mtop_batch.table.runs import new_run_id, run_uri, write_run
from tests.labelling.support import articles, definition, write_corpus

A = definition({"a": "1"})


def write_report(root: Path, rows: int, seconds: float, start_up_s: float, actors: int, **changes: Any) -> None:
    run, labels = new_run_id(), f"{root}/labels"
    write_run(labels, run, A, f"{root}/corpus")
    report = {
        "rows": rows,
        "rows_from_vectors": 0,
        "seconds": seconds,
        "documents_per_s": rows / seconds,
        "device_hours": actors * seconds / 3600,
        "performance": {"start_up_s": start_up_s},
        **changes,
    }
    storage.write_bytes(run_uri(labels, run, "report.json"), json.dumps(report).encode())


def plan_of(root: Path, count: int) -> Plan:
    write_corpus(root / "corpus", {"x.parquet": articles(count)})
    return plan_labels(f"{root}/corpus", f"{root}/labels", A)


@pytest.mark.parametrize(("before", "count"), [(100, 1000), (1000, 100), (500, 500)])
def test_the_start_is_no_part_of_the_rate(tmp_path: Path, before: int, count: int) -> None:
    """A run takes 20 s to start, then 10 articles a second: what a run of another size takes is within 15 %."""
    write_report(tmp_path, before, 20 + before / 10, 20, actors=4)
    expected = estimate(plan_of(tmp_path, count))
    assert expected is not None
    actual_s = 20 + count / 10
    assert expected.seconds == pytest.approx(actual_s, rel=0.15)
    assert expected.device_hours == pytest.approx(4 * actual_s / 3600, rel=0.15)


def test_a_plan_tells_time_device_hours_and_cost(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, 100)
    assert estimate(plan) is None
    assert plan_dict(plan, 3.0)["estimated_cost"] is None
    assert "no earlier run to estimate the time from" in explain_plan(plan, None)
    write_report(tmp_path, 10, 360, 0, actors=10)
    plan = plan_of(tmp_path, 100)
    assert "about 60 min, 10 device hours, 25.00 at 2.5 an hour" in explain_plan(plan, estimate(plan), 2.5)
    values = plan_dict(plan, 2.5)
    expected = [values[f"estimated_{what}"] for what in ("seconds", "device_hours", "cost")]
    assert expected == pytest.approx([3600.0, 10.0, 25.0])


def test_a_run_that_read_texts_otherwise_is_no_measure(tmp_path: Path) -> None:
    cut, windows = ({"max_tokens": 128, "max_windows": most, "window_overlap": 0} for most in (1, 8))
    write_report(tmp_path, 100, 40, 0, actors=1, text_limits=windows, num_tokens=60_000)
    write_report(tmp_path, 100, 10, 0, actors=1, text_limits=cut, num_tokens=9_000)
    plan = plan_of(tmp_path, 100)
    for limits, seconds, tokens in ((cut, 10, 90), (windows, 40, 600)):
        expected = estimate(replace(plan, text_limits=limits))
        assert expected is not None
        assert expected.seconds == pytest.approx(seconds)
        assert expected.tokens_per_text == tokens
    explained = explain_plan(replace(plan, text_limits=windows), expected)
    assert "long texts: up to 8 windows of 128 tokens, 600 tokens a text" in explained
    assert estimate(replace(plan, text_limits={**windows, "max_windows": 3})) is None


def test_reports_without_a_rate_are_passed_over(tmp_path: Path) -> None:
    write_report(tmp_path, 100, 10, 0, actors=1)
    write_report(tmp_path, 0, 3, 0, actors=0)
    run = new_run_id()
    write_run(f"{tmp_path}/labels", run, A, f"{tmp_path}/corpus")
    storage.write_bytes(run_uri(f"{tmp_path}/labels", run, "report.json"), b'{"published": null, "gate": {}}')
    expected = estimate(plan_of(tmp_path, 100))
    assert expected is not None
    assert expected.seconds == pytest.approx(10)
