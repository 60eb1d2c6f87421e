"""Reports whose numbers add up."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from mtop_batch import storage
from mtop_batch.labelling.plan.staleness import NEW_FILE
from mtop_batch.labelling.plan.work import Plan
from mtop_batch.labelling.report.run_report import RunReport, write_report
from mtop_batch.labelling.run.stages import UnitResult
from mtop_batch.table.publisher import Published
from tests.labelling.support import definition

AB = definition({"a": "1", "b": "1"})


def result(source: str, rows: int, errors: int) -> UnitResult:
    return UnitResult(
        source=source,
        rows=rows,
        labelled=rows - errors,
        errors=errors,
        cells=2 * rows,
        error_reasons={"text is null": errors},
        error_examples=[{"source": source, "row": row, "error": "text is null"} for row in range(min(errors, 5))],
        label_counts={"a": {"yes": rows - errors}, "b": {"no": rows - errors}},
        num_tokens=10 * rows,
        retries=1,
        seconds={"read": 0.5, "model": 2.0},
    )


def make_report(labels: Path) -> RunReport:
    plan = Plan(
        units=(),
        corpus="c",
        labels=str(labels),
        num_files=4,
        num_articles=140,
        cells_total=280,
        cells_planned=260,
        reasons=Counter({NEW_FILE: 260}),
        unreadable=(("bad.parquet", "not readable as Parquet"),),
        ignored_files=("notes.txt",),
        orphaned=("gone.parquet",),
    )
    return RunReport("20261120T020000Z-1a2b3c", AB, plan)


def test_a_report_adds_up(tmp_path: Path) -> None:
    report = make_report(tmp_path)
    report.add(result("x.parquet", 100, 30))
    report.add(result("y.parquet", 30, 0))
    report.add(UnitResult("z.parquet", unreadable="changed while the run was going on"))
    report.finish()
    values = report.to_dict()
    assert values["rows"] == values["labelled"] + values["errors"] == 130
    assert values["cells_planned"] == values["cells_done"] == 260
    assert values["cells_already_current"] == 20
    assert values["error_reasons"] == {"text is null": 30}
    assert values["label_counts"] == {"a": {"yes": 100}, "b": {"no": 100}}
    assert values["stage_seconds"] == {"model": 4.0, "read": 1.0}
    assert [entry["path"] for entry in values["unreadable_files"]] == ["bad.parquet", "z.parquet"]
    assert (values["status"], values["retries"], values["num_tokens"], values["units_done"]) == ("done", 2, 1300, 2)


def test_error_examples_are_few(tmp_path: Path) -> None:
    report = make_report(tmp_path)
    for number in range(100):
        report.add(result(f"{number}.parquet", 10, 10))
    assert len(report.error_examples) == 20
    assert report.error_reasons["text is null"] == 1000


def test_the_clock_stops_at_the_end(tmp_path: Path) -> None:
    report = make_report(tmp_path)
    report.add(result("x.parquet", 100, 0))
    report.finish("the storage did not answer")
    assert report.seconds == report.seconds > 0
    assert report.documents_per_s == pytest.approx(100 / report.seconds)


def test_the_summary_is_one_line_that_says_what_was_not_done(tmp_path: Path) -> None:
    report = make_report(tmp_path)
    report.add(result("x.parquet", 1100, 3))
    report.finish("the storage did not answer")
    line = report.line()
    assert "\n" not in line
    for part in ("failed", "1,100 articles", "2,200 of 260 cells done", "20 already current", "3 rows with errors"):
        assert part in line
    assert "1 source file not readable; 1 published file without a source file; the storage did not answer" in line


def test_what_a_run_published_and_removed_is_told(tmp_path: Path) -> None:
    report = make_report(tmp_path)
    assert report.to_dict()["published"] is None
    report.plan = replace(report.plan, prune=True)
    report.published = Published(
        files={"x.parquet": 100, "y.parquet": 30},
        current=["v.parquet"],
        incomplete=["z.parquet"],
        removed=["gone.parquet"],
    )
    values = report.to_dict()
    assert values["removed_files"] == values["orphaned_files"] == ["gone.parquet"]
    assert (values["published"]["rows"], values["published"]["incomplete_files"]) == (130, ["z.parquet"])
    assert "2 files published, 1 removed, 1 not published, for labels are missing" in report.line()
    assert "without a source file" not in report.line()


def test_a_report_is_written_beside_its_run_record(tmp_path: Path) -> None:
    report = make_report(tmp_path)
    uri = write_report(report)
    assert uri == str(tmp_path / "_runs" / report.run / "report.json")
    assert json.loads(storage.read_bytes(uri)) == report.to_dict() | {
        key: json.loads(storage.read_bytes(uri))[key] for key in ("seconds", "documents_per_s")
    }


def test_a_report_tells_the_speed_of_the_model_once_texts_went_through_it(tmp_path: Path) -> None:
    report = make_report(tmp_path)
    assert report.to_dict()["performance"] is None
    report.num_actors = 1
    report.add(result("a.parquet", 10, 1))
    report.actor_started()
    started = report.start_up_s
    report.actor_started()  # another one, or one in place of a lost one
    assert report.start_up_s == started
    performance = report.to_dict()["performance"]
    assert performance["num_actors"] == 1
    assert performance["tokens_per_s"] > 0
