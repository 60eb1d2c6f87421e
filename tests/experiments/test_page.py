"""The page of results, written from records alone."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mtop_batch.errors import DataError
from mtop_batch.experiments.methods.tables import METHODS, OURS
from mtop_batch.experiments.page.page import results_page
from mtop_batch.experiments.page.plots import results_plots
from mtop_batch.experiments.page.summary import tables
from mtop_batch.experiments.page.write import write_results
from mtop_batch.experiments.runs.records import Records, read_records
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
    assert list(rows) == ["mt-dnn", "mtop"]
    mtop, rival = rows["mtop"], rows["mt-dnn"]
    assert mtop.mean.low <= mtop.mean.median <= mtop.mean.high
    assert not mtop.comparisons
    (compared,) = rival.comparisons.values()
    assert compared.difference.outcome == "loss"
    assert compared.difference.seeds == 5


def test_methods_are_compared_with_our_recipe_too(made_up: MakeRecords) -> None:
    page = results_page(made_up({"mtop": 0.95, "mt-dnn": 0.6, OURS: 0.9}), "results", {})
    title = METHODS[OURS].title
    assert page.count("| method | to MTOP, points |") == page.count(f"| method | to {title}, points |") == 1
    assert page.count("| on evaluation examples |") == 1
    alone = results_page(made_up({"mt-dnn": 0.6, OURS: 0.9}), "results", {})
    assert "| method | to MTOP, points |" not in alone
    assert f"| method | to {title}, points |" in alone


def test_plots_are_of_the_settings_with_most_methods(made_up: MakeRecords) -> None:
    records = made_up({"mtop": 0.9, "mt-dnn": 0.8})
    (larger, *_) = made_up({"mtop": 0.9}).runs
    fewer = [replace(run, spec=replace(run.spec, examples=10)) for run in records.runs]
    titles = [title for _, title, _ in results_plots(Records([larger, *fewer], records.data, records.speeds))]
    assert titles[0] == "Learning curves: news, 10 examples a task"


def test_methods_that_compute_the_same_are_as_fast(made_up: MakeRecords) -> None:
    records = made_up({"mtop": 0.9, "mtop-no-stop": 0.8, "mtop-isolated": 0.7}, table_data="glue")
    timed = [replace(speed, documents_per_s=4321.0) for speed in records.speeds if speed.method == "mtop"]
    assert len(timed) == 1
    page = results_page(replace(records, speeds=timed), "results", {})
    ablations = page[page.index("## Ablations") :]
    assert re.search(r"\| MTOP without SG \| 1 \| 4,321 \|", ablations)
    assert re.search(r"\| MTOP, isolated prompts \| 1 \| – \(not measured\) \|", page)


def test_what_is_missing_is_said(made_up: MakeRecords) -> None:
    page = results_page(made_up({"mt-dnn": 0.8}, seeds=2), "results", {})
    assert "* Not run with these settings: Single task; P-Tuning; P-Tuning v2; CA-MTL; MTOP; " in page
    assert "| MTOP |" not in page
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


def test_other_tasks_to_help_the_same_ones_make_another_table(made_up: MakeRecords) -> None:
    records = made_up({"mtop": 0.9, "mt-dnn": 0.8})
    runs = list(records.runs)
    for number in (5, 8):
        among = {"number": number, "digest": f"of {number}"}
        runs += [replace(run, spec=replace(run.spec, among=among)) for run in records.runs]
    page = results_page(Records(runs, records.data, records.speeds), "results", {})
    assert page.count("\n### news: all examples, `tiny`") == 3
    assert page.count(", judged on 3 of 5 tasks\n") == page.count(", judged on 3 of 8 tasks\n") == 1


def test_runs_that_choose_among_others_are_told_once(made_up: MakeRecords) -> None:
    """Those that they are compared with stand beside them, and not once more in the first table of the data set."""
    records = made_up({"mtop": 0.9, "mtop-threshold": 0.8})
    assert [table.name for table in tables(records)] == ["news", "auxiliary"]
    among = {"number": 5, "digest": "of five"}
    runs = [replace(run, spec=replace(run.spec, among=among)) for run in records.runs]
    assert [table.name for table in tables(replace(records, runs=runs))] == ["auxiliary"]
    assert [table.name for table in tables(replace(records, runs=runs[:5]))] == ["news"]


def test_ablations_have_a_table_where_one_was_run(made_up: MakeRecords) -> None:
    names = [table.name for table in tables(made_up({"mtop": 0.9, "mtop-rd-rd": 0.8}))]
    assert names == ["news", "ablations"]
    assert [table.name for table in tables(made_up({"mtop": 0.9}))] == ["news"]


def test_many_tasks_are_told_by_their_mean_and_by_the_largest_and_smallest(made_up: MakeRecords) -> None:
    records = made_up({"many": 0.9, "many-uniform": 0.6}, table_data="many")
    (table,) = tables(records)
    rows = {row.method: row for row in table.rows}
    assert list(rows) == ["many", "many-uniform"]
    found = rows["many-uniform"]
    assert found.tenths is not None
    largest, smallest = found.tenths
    names = [f"sport_{number}" for number in range(20)]
    assert table.data.sizes[names[0]]["train"] > table.data.sizes[names[-1]]["train"]
    for tenth, of in ((largest, names[:2]), (smallest, names[-2:])):
        assert min(found.tasks[name].low for name in of) <= tenth.low
        assert max(found.tasks[name].high for name in of) >= tenth.high
    assert not rows["many"].comparisons
    (compared,) = found.comparisons.values()
    assert compared.difference.outcome == "loss"
    page = results_page(records, "results", {})
    assert "| method | tasks | steps | seeds | mean | T10 | B10 | worst task | best task |" in page
    assert "| method | to Prompt groups, points |" in page
    assert "All are tested on the same 20 tasks." in page


def test_many_tasks_stand_beside_the_numbers_of_their_paper(made_up: MakeRecords) -> None:
    rates = {"many": 0.9, "many-alone": 0.95, "many-1000": 0.6, "many-and-large": 0.9}
    records = made_up(rates, seeds=2, table_data="many")
    numbers = next(table for table in tables(records) if table.name == "many-numbers")
    assert [row.method for row in numbers.rows if row.runs] == ["many", "many-alone", "many-1000", "many-and-large"]
    page = results_page(records, "results", {})
    assert "| *in the paper* |  |  |  | 61.50 | 72.33 | 34.40 | – | – |" in page
    assert (
        "* By mean: Each task alone > Prompt groups > Prompt groups, 1,000 tasks, in the paper Prompt groups, 1,000"
        in page
    )
    more = next(line for line in page.splitlines() if line.startswith("| Prompt groups, 1,000 tasks | 22 |"))
    assert "**" in more


def test_a_large_task_and_fewer_tasks_have_tables_of_their_own(made_up: MakeRecords) -> None:
    after = {"many-large": 0.7, "many-large-1000": 0.9}
    fewer = {f"many-of-{count}-{how}": 0.8 for count in (10, 25) for how in ("by-size", "falling", "dypa")}
    records = made_up({**after, **fewer}, seeds=2, table_data="many")
    found = [(table.name, len(table.tasks)) for table in tables(records)]
    assert found[0] == ("many-transfer", 1)
    assert sorted(found[1:]) == [("many-fewer", 2), ("many-fewer", 5)]
    page = results_page(records, "results", {})
    assert "| method | tasks | steps | seeds | large |" in page
    assert "| *in the paper* |  |  |  | 91.12 |" in page
    assert "| method | to The pretrained encoder, points |" in page
    assert page.count("## From ten tasks to a hundred") == 1
    assert "| tasks | seeds | alpha 1, width 64 | alpha 1 to 0.1, width 64 | alpha 1 to 0.1, DyPA |" in page
    assert page.index("\n| 2 | 2 |") < page.index("\n| 5 | 2 |")
    assert "| *in the paper* |  | 60.90 | 67.46 | 69.97 |" in page


def test_what_many_tasks_cost_is_told_beside_one(made_up: MakeRecords) -> None:
    records = made_up({"many": 0.9, "many-dypa": 0.8}, seeds=2, table_data="many")
    full = {"documents_per_s": 20.0, "one_task": 1.25}
    timed = [replace(speed, documents_per_s=300.0, one_task=1.5, full=full) for speed in records.speeds]
    page = results_page(replace(records, speeds=timed), "results", {})
    assert "| Attention heads, DyPA | 300 | 1.50 | 20 | 1.25 |" in page
    assert "times one task" not in results_page(records, "results", {})


def test_what_is_no_record_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"spec": 1}')
    with pytest.raises(DataError, match=r"x\.json is not a record of this version; move it away"):
        read_records(str(tmp_path))
