"""The numbers of a label table: they add up, and say whose labels they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mtop_batch.cli.commands import main
from mtop_batch.errors import TaskError
from mtop_batch.labelling.plan.planner import plan_labels
from mtop_batch.table.read import read_labels
from mtop_batch.table.runs import new_run_id, write_run
from mtop_batch.table.stats import table_stats
from tests.labelling.support import articles, definition, label_corpus, run_plan, write_corpus


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    """Tasks `a` and `r`; `a` is retrained, which one of two source files has; task `d` for one partition."""
    columns = articles(5)
    columns["title"][0] = columns["body"][0] = None
    write_corpus(tmp_path / "corpus", {"date=1/x.parquet": columns, "date=2/y.parquet": articles(7, start=5)})
    label_corpus(tmp_path / "corpus", tmp_path / "labels", definition({"a": "old", "r": "1"}))
    retrained = definition({"a": "new", "r": "1"}, bundle_name="news-2")
    plan = plan_labels(str(tmp_path / "corpus"), str(tmp_path / "labels"), retrained)
    run_plan(plan, retrained, plan.units[:1])
    label_corpus(tmp_path / "corpus", tmp_path / "labels", definition({"d": "1"}), ["date=2"])
    return tmp_path / "labels"


def test_every_article_is_counted_once_for_every_task(labels: Path) -> None:
    stats = table_stats(str(labels))
    assert (stats.articles, stats.source_files) == (12, 2)
    counts = {name: (t.current, t.older, t.errors, t.missing) for name, t in stats.tasks.items()}
    assert counts == {"a": (4, 7, 1, 0), "r": (11, 0, 1, 0), "d": (7, 0, 0, 5)}
    assert {task.articles for task in stats.tasks.values()} == {12}
    assert stats.tasks["a"].coverage == pytest.approx(4 / 12)


def test_what_is_current_is_what_the_newest_run_wanted(labels: Path) -> None:
    write_run(str(labels), new_run_id(), definition({"a": "old"}), "corpus")
    stats = table_stats(str(labels), ["a"]).tasks["a"]
    assert (stats.current, stats.older) == (7, 4)


def test_shares_and_bundles_are_those_of_the_labels_shown(labels: Path) -> None:
    stats, table = table_stats(str(labels)), read_labels(str(labels))
    shown = [label for label in table["a_label"].to_pylist() if label]
    assert stats.tasks["a"].label_counts == {label: shown.count(label) for label in set(shown)}
    assert stats.tasks["a"].made_by == {("news", "old"): 7, ("news-2", "new"): 4}
    scores = [score for score in table["r_score"].to_pylist() if score is not None]
    assert stats.to_dict()["tasks"]["r"]["mean_score"] == pytest.approx(sum(scores) / 11, abs=1e-5)
    assert stats.tasks["r"].label_counts == {}


def test_label_sets_are_listed_with_their_files(labels: Path) -> None:
    sets = table_stats(str(labels)).label_sets
    assert sorted((s.tasks, s.files, s.rows) for s in sets.values()) == [
        (("a",), 1, 5),
        (("a", "r"), 2, 12),
        (("d",), 1, 7),
    ]
    for name, label_set in sets.items():
        files = (labels / "_store" / name).rglob("*.parquet")
        assert label_set.num_bytes == sum(path.stat().st_size for path in files)


def test_tasks_and_partitions_limit_what_is_counted(labels: Path) -> None:
    stats = table_stats(str(labels), ["d"], {"date": "2"})
    assert (stats.articles, list(stats.tasks), stats.tasks["d"].coverage) == (7, ["d"], 1.0)
    nothing = table_stats(str(labels), ["d"], {"date": "9"}, allow_empty=True).to_dict()
    assert (nothing["articles"], nothing["tasks"]["d"]["coverage"], nothing["tasks"]["d"]["mean_score"]) == (0, 0, None)
    with pytest.raises(TaskError, match="there is no task 'x'"):
        table_stats(str(labels), ["x"])


def test_the_command_prints_it_and_writes_it_as_json(
    labels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    with pytest.raises(SystemExit) as end:
        main(["labels", "--labels", str(labels), "--tasks", "a,d", "--json", str(tmp_path / "out.json")])
    assert end.value.code in (0, None)
    output = capsys.readouterr().out
    for part in ("12 articles of 2 source files", "4 (33.3%)", "news-2: new", "news: old", "7 (58.3%)"):
        assert part in output
    expected = table_stats(str(labels), ["a", "d"]).to_dict()
    assert json.loads((tmp_path / "out.json").read_text()) == expected
