"""The page of results, written from records alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mtop_batch.errors import DataError
from mtop_batch.experiments.methods import TABLE_METHODS
from mtop_batch.experiments.page import results_page
from mtop_batch.experiments.records import Records, read_records
from mtop_batch.experiments.summary import tables
from mtop_batch.experiments.write import write_results
from tests.experiments.conftest import write_records

MakeRecords = Callable[..., Records]
RESULTS = Path(__file__).parents[2] / "docs" / "results"


def test_the_committed_page_and_plots_are_those_of_the_committed_records(tmp_path: Path) -> None:
    """Write them again with `mtop reproduce news --page`."""
    copy = tmp_path / "results"
    copy.mkdir()
    for path in RESULTS.glob("*.json"):
        (copy / path.name).write_bytes(path.read_bytes())
    page = Path(write_results(str(copy)))
    assert page.read_text() == RESULTS.with_suffix(".md").read_text()
    assert {path.name for path in copy.glob("*.png")} == {path.name for path in RESULTS.glob("*.png")}


def test_the_same_records_give_the_same_page_and_plots(made_up: MakeRecords, tmp_path: Path) -> None:
    records = made_up({"mtop": 0.9, "mt-dnn": 0.8, "single-task": 0.7})
    written = []
    for name in ("a", "b"):
        write_records(records, tmp_path / name / "results")
        write_results(str(tmp_path / name / "results"))
        files = [tmp_path / name / "results.md", *sorted((tmp_path / name / "results").glob("*.png"))]
        written.append([(path.name, path.read_bytes()) for path in files])
    assert written[0] == written[1]
    assert [name for name, _ in written[0]] == ["results.md", "news-curves.png", "news-speed.png"]


def test_rows_are_medians_over_seeds_with_the_difference_to_mtop(made_up: MakeRecords) -> None:
    table = tables(made_up({"mtop": 0.95, "mt-dnn": 0.6}))[0]
    rows = {row.method: row for row in table.rows}
    assert list(rows) == list(TABLE_METHODS["news"])
    mtop, rival = rows["mtop"], rows["mt-dnn"]
    assert mtop.mean is not None
    assert rival.mean is not None
    assert mtop.mean.low <= mtop.mean.median <= mtop.mean.high
    assert mtop.difference is None
    assert rival.difference is not None
    assert rival.difference.outcome == "loss"
    assert rival.difference.seeds == 5


def test_empty_cells_say_why(made_up: MakeRecords) -> None:
    page = results_page(made_up({"mt-dnn": 0.8}, seeds=2), "results", {})
    assert "* MTOP: not run with these settings." in page
    assert "MTOP has no run with these seeds" in page
    assert "* Rows with fewer than five seeds support no claim." in page
    glue = results_page(made_up({"mtop": 0.8}, table_data="glue"), "results", {})
    assert "* QQP: not in the data, so the paper's mean covers more tasks." in glue
    nothing = results_page(Records(), "results", {})
    assert "Nothing has been run yet." in nothing


def test_other_settings_make_another_table(made_up: MakeRecords) -> None:
    records = made_up({"mtop": 0.9, "mt-dnn": 0.8})
    longer = [replace(run, spec=replace(run.spec, train={**run.spec.train, "epochs": 9})) for run in records.runs]
    fewer = [replace(run, spec=replace(run.spec, examples=10)) for run in records.runs]
    both = Records([*records.runs, *longer, *fewer], records.data, records.speeds)
    page = results_page(both, "results", {})
    assert page.count("\n### news: all examples") == 2
    assert "`epochs = 9`" in page
    assert "### news: at most 10 examples a task" in page


def test_ablations_have_a_table_where_one_was_run(made_up: MakeRecords) -> None:
    names = [table.name for table in tables(made_up({"mtop": 0.9, "mtop-rd-rd": 0.8}))]
    assert names == ["news", "ablations"]
    assert [table.name for table in tables(made_up({"mtop": 0.9}))] == ["news"]


def test_many_tasks_are_told_by_their_mean_and_by_the_largest_and_smallest(made_up: MakeRecords) -> None:
    records = made_up({"many": 0.9, "many-dypa": 0.6}, table_data="many", copies=20)
    (table,) = tables(records)
    rows = {row.method: row for row in table.rows}
    assert list(rows) == list(TABLE_METHODS["many"])
    found = rows["many-dypa"]
    assert found.tenths is not None
    largest, smallest = found.tenths
    names = [f"sport_{number}" for number in range(20)]
    assert table.data.sizes[names[0]]["train"] > table.data.sizes[names[-1]]["train"]
    for tenth, of in ((largest, names[:2]), (smallest, names[-2:])):
        assert min(found.tasks[name].low for name in of) <= tenth.low
        assert max(found.tasks[name].high for name in of) >= tenth.high
    assert rows["many"].difference is None
    assert found.difference is not None
    assert found.difference.outcome == "loss"
    page = results_page(records, "results", {})
    assert "| method | seeds | mean | T10 | B10 | worst task | best task |" in page
    assert "| method | to Prompt groups, points |" in page
    assert "20 tasks in one model, 20 of them judged." in page


def test_what_is_no_record_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"spec": 1}')
    with pytest.raises(DataError, match=r"x\.json is not a record of this version; move it away"):
        read_records(str(tmp_path))
