"""Reports as HTML pages: complete, self-contained, and nothing of what files say is taken for HTML."""

from __future__ import annotations

import random
from html.parser import HTMLParser
from typing import Any

import pyarrow as pa
import pytest

from mtop_batch.html_page import escaped
from mtop_batch.labelling.report.page import comparison_page, run_page
from mtop_batch.table.gate.rules import MetricChange, Rules, TableChange, judge
from mtop_batch.table.gate.statistics import TaskChange

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</title></style><svg/onload=alert(1)>",
    "javascript:alert(1)",
    "a\nb\x00\x1b[31m\u202egnp.\ud800",
    "&lt;b&gt;",
    "x" * 5000,
)
VOID = {"meta", "br", "img"}


def rows(task: str, yes_share: float, count: int, seed: int, label: str = "yes") -> pa.Table:
    rng = random.Random(seed)
    labels = [label if rng.random() < yes_share else "no" for _ in range(count)]
    scores = [0.5 + rng.random() / 2 for _ in labels]
    return pa.table({"id": range(count), f"{task}_label": labels, f"{task}_score": pa.array(scores, pa.float32())})


def _change(share: float) -> TaskChange:
    change = TaskChange("classification", "new")
    change.add(
        "t", rows("t", share, 400, 1), rows("t", 0.24, 400, 0), source="day=1/a.parquet", replaced=("news", "old")
    )
    change.add("t", rows("t", 0.25, 100, 2), None)
    return change


def report_of(num_tasks: int, **changes: Any) -> dict[str, Any]:
    """A run in which one task has gone wrong."""
    change = TableChange(articles=1000, new_errors=20)
    usual_task, bad_task = (_change(share) for share in (0.26, 0.95))
    names = [f"task{number}" for number in range(num_tasks)]
    change.tasks = {name: bad_task if name == "task1" else usual_task for name in names}
    change.usual = dict.fromkeys(names, [{"yes": 25, "no": 75}] * 3)
    change.metrics = dict.fromkeys(names, MetricChange("accuracy", 0.9, 500, 0.89, 500))
    return {
        "run": "20261126T023000Z-1a2b3c",
        "status": "gate closed",
        "failure": None,
        "bundle": "s3://news/models/2026-11",
        "corpus": "s3://news/articles",
        "labelled": 980,
        "errors": 20,
        "cells_done": 5000,
        "cells_already_current": 10,
        "seconds": 81.5,
        "documents_per_s": 12.3,
        "published": None,
        "planned_reasons": {"task changed": 4000, "new file": 1000},
        "stage_seconds": {"read": 3.2, "tokenise": 5.0, "model": 71.0, "write": 1.5},
        "error_reasons": {"text is null": 15, "text is empty": 5},
        "error_examples": [{"source": "day=1/a.parquet", "row": 7, "error": "text is null"}],
        "unreadable_files": [{"path": "day=1/b.parquet", "reason": "not readable as Parquet"}],
        "label_counts": {f"task{number}": {"no": 375, "yes": 125} for number in range(num_tasks)},
        "gate": judge(change, Rules()).to_dict(),
        **changes,
    }


class Checked(HTMLParser):
    """Counts tags, and makes sure that each is closed by its own."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: dict[str, int] = {}
        self.attributes: set[str] = set()
        self.text = ""
        self._open: list[str] = []
        self.feed(page)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] = self.tags.get(tag, 0) + 1
        self.attributes |= {name for name, _ in attrs}
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] = self.tags.get(tag, 0) + 1
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def check(page: str) -> Checked:
    found = Checked(page)
    assert not {"script", "img", "a", "link", "iframe", "object", "form"} & found.tags.keys()
    assert not any(name.startswith("on") or name in ("href", "src") for name in found.attributes)
    assert "http://" not in page
    assert "https://" not in page
    page.encode()
    return found


def test_a_page_tells_what_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    history = [{"label_counts": {f"task{n}": {"no": 70 + run, "yes": 30 - run} for n in range(5)}} for run in range(6)]
    text = check(run_page(report_of(5), history)).text
    for part in (
        "gate closed",
        "task1: 'yes' goes from",
        "task changed",
        "tokenise",
        "text is null",
        "day=1/b.parquet",
    ):
        assert part in text
    for part in ("last 7 runs", "Scores", "Flips", "accuracy on development data: 0.9000", "12.3", "day=1/a.parquet"):
        assert part in text


def test_a_thousand_tasks_are_a_line_each_and_the_most_changed_one_comes_first() -> None:
    page = run_page(report_of(1000))
    found = check(page)
    assert len(page) < 1_000_000
    assert found.text.count("Scores") == 12
    assert found.text.index("task1: ") < found.text.index("task999")


@pytest.mark.parametrize("hostile", HOSTILE, ids=range(len(HOSTILE)))
def test_what_files_say_is_shown_and_never_taken_for_html(hostile: str) -> None:
    change = TableChange(articles=100)
    of_task = change.tasks["t"] = TaskChange("classification", "new")
    of_task.add("t", rows("t", 0.9, 300, 0, "yes"), rows("t", 0.1, 300, 1, "yes"), source=hostile)
    of_task.pairs[hostile.replace("\ud800", ""), "no"] += 5
    for example in of_task.examples:
        example |= {"id": hostile, "text": hostile, "old": hostile}
    gate = judge(change, Rules(max_metric_drop=0)).to_dict()
    report = report_of(
        2,
        run=hostile,
        status=hostile,
        failure=hostile,
        bundle=hostile,
        corpus=hostile,
        planned_reasons={hostile: 3},
        stage_seconds={hostile: 3.0},
        error_reasons={hostile: 3},
        error_examples=[{"source": hostile, "row": 1, "error": hostile}],
        unreadable_files=[{"path": hostile, "reason": hostile}],
        label_counts={"other": {hostile: 3}},
        gate=gate,
    )
    check(run_page(report, [{"label_counts": {"t": {hostile: 2}}}] * 2))
    comparison = {
        "articles": 100,
        "corpus": hostile,
        "model": hostile,
        "with": hostile,
        "tasks": gate["tasks"],
        "gate": gate,
    }
    check(comparison_page(comparison))


def test_a_run_without_a_gate_and_one_that_failed_have_pages() -> None:
    text = check(run_page(report_of(1, gate=None, status="failed", failure="storage does not answer"))).text
    assert "storage does not answer" in text
    check(run_page({"run": "r", "status": "done", "gate": report_of(0)["gate"], "published": {"files": 1, "rows": 2}}))


def test_a_page_shows_no_secrets() -> None:
    assert "***" in escaped("s3://key:secret@bucket/a failed")
    assert "secret" not in escaped("s3://key:secret@bucket/a failed")


def test_shares_of_several_labels_are_those_of_articles() -> None:
    change = TaskChange("multi-label", "new")
    old, new = (lists([["a", "b"]] * share + [["b"]] * (100 - share)) for share in (20, 90))
    change.add("t", new, old, source="x.parquet", replaced=("news", "old"))
    table = TableChange(articles=100, tasks={"t": change}, usual={"t": []})
    counts = {"label_counts": {"t": {"a": 60, "b": 120}}, "list_counts": {"t": 120}}
    page = run_page(report_of(2, gate=judge(table, Rules()).to_dict(), **counts), [counts, counts])
    check(page)
    for shown in ("a 90.0%", "b 100.0%", "a</td><td>20.0%", "a 50.0%", "&ndash;", "70</td>"):
        assert shown in page, shown


def lists(rows: list[list[str]]) -> pa.Table:
    scores = pa.array([[0.9] * len(row) for row in rows], pa.list_(pa.float32()))
    return pa.table({"id": range(len(rows)), "t_label": rows, "t_score": scores})
