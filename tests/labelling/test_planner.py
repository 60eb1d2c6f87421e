"""Plans of real directories: what is read, what is refused, what is only noted."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mtop_batch import storage
from mtop_batch.errors import ConfigError, DataError
from mtop_batch.labelling.plan import layouts
from mtop_batch.labelling.plan import staleness as why
from mtop_batch.labelling.plan.planner import plan_labels
from mtop_batch.labelling.plan.work import Plan
from mtop_batch.table.definition import VECTOR
from mtop_batch.table.read import read_labels
from tests.labelling.support import articles, definition, label_corpus, run_plan, small_slices, write_corpus

AB = definition({"a": "1", "b": "1"})


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Two days of articles, seven rows in all."""
    files = {"date=2026-11-19/x.parquet": articles(4), "date=2026-11-20/y z.parquet": articles(3, start=4)}
    write_corpus(tmp_path / "corpus", files)
    return tmp_path / "corpus"


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    return tmp_path / "labels"


def test_a_first_plan_has_every_cell_and_a_second_none(corpus: Path, labels: Path) -> None:
    plan = label_corpus(corpus, labels, AB)
    assert (plan.num_files, plan.num_articles, plan.cells_total, plan.cells_planned) == (2, 7, 14, 14)
    assert plan.planned_per_task == {"a": 7, "b": 7}
    again = plan_labels(str(corpus), str(labels), AB)
    assert (again.units, again.cells_current, again.num_articles) == ((), 14, 7)


def test_current_source_files_are_not_opened(corpus: Path, labels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    label_corpus(corpus, labels, AB)
    monkeypatch.setattr(layouts, "read_layout", None)
    assert plan_labels(str(corpus), str(labels), AB).cells_current == 14


def test_only_what_is_stale_is_planned_after_every_kind_of_change(corpus: Path, labels: Path) -> None:
    label_corpus(corpus, labels, AB)
    write_corpus(corpus, {"date=2026-11-20/y z.parquet": articles(5), "date=2026-11-21/new.parquet": articles(2)})
    (corpus / "date=2026-11-19" / "x.parquet").unlink()
    plan = plan_labels(str(corpus), str(labels), AB)
    assert plan.reasons == Counter({why.CONTENT_CHANGED: 10, why.NEW_FILE: 4})
    assert plan.orphaned == ("date=2026-11-19/x.parquet",)
    run_plan(plan, AB)
    retrained = definition({"a": "1", "b": "2"})
    assert plan_labels(str(corpus), str(labels), retrained).reasons == Counter({why.TASK_CHANGED: 7})


def test_a_touched_file_is_new_content(corpus: Path, labels: Path) -> None:
    label_corpus(corpus, labels, AB)
    os.utime(corpus / "date=2026-11-19" / "x.parquet", ns=(1, 1))
    assert plan_labels(str(corpus), str(labels), AB).reasons == Counter({why.CONTENT_CHANGED: 8})


def test_a_partition_limits_the_plan(corpus: Path, labels: Path) -> None:
    label_corpus(corpus, labels, AB)
    retrained = definition({"a": "2", "b": "2"})
    plan = plan_labels(str(corpus), str(labels), retrained, partitions=["date=2026-11-20"])
    assert [unit.source.path for unit in plan.units] == ["date=2026-11-20/y z.parquet"]
    assert (plan.num_articles, plan.orphaned) == (3, ())
    with pytest.raises(ConfigError, match=r"not partitioned by 'dat'; partition keys: date"):
        plan_labels(str(corpus), str(labels), AB, partitions=["dat=2026-11-20"])


def test_a_partition_that_no_file_has_is_refused_unless_it_may_be_empty(corpus: Path, labels: Path) -> None:
    label_corpus(corpus, labels, AB)
    with pytest.raises(
        ConfigError, match=r"no file of date=2025-11-20; the closest are date=2026-11-20, .*--allow-empty"
    ):
        plan_labels(str(corpus), str(labels), AB, partitions=["date=2025-11-20"])
    assert not plan_labels(str(corpus), str(labels), AB, partitions=["date=2025-11-20"], allow_empty=True).has_work
    # The files of a partition that is gone as a whole can be pruned.
    (corpus / "date=2026-11-19" / "x.parquet").unlink()
    plan = plan_labels(str(corpus), str(labels), AB, partitions=["date=2026-11-19"], prune=True)
    assert plan.removals == ("date=2026-11-19/x.parquet",)


def test_orphaned_files_are_named_in_scope_and_removed_by_pruning_runs_only(corpus: Path, labels: Path) -> None:
    write_corpus(corpus, {"date=2026-11-19/w.PQ": articles(2), "date=2026-11-21/v.parquet": articles(2)})
    label_corpus(corpus, labels, AB)
    for path in ("date=2026-11-19/w.PQ", "date=2026-11-21/v.parquet"):
        (corpus / path).unlink()

    def plan(*partitions: str, prune: bool = False) -> Plan:
        return plan_labels(str(corpus), str(labels), AB, partitions=partitions, prune=prune)

    assert plan().orphaned == ("date=2026-11-19/w.PQ.parquet", "date=2026-11-21/v.parquet")
    assert plan("date=2026-11-19").orphaned == ("date=2026-11-19/w.PQ.parquet",)
    assert plan("date=2026-11-20").orphaned == ()
    assert (plan().removals, plan(prune=True).removals) == ((), plan().orphaned)
    assert not plan().has_work
    run_plan(plan(prune=True), AB)
    assert (plan().orphaned, read_labels(str(labels)).num_rows) == ((), 7)


def test_pruning_because_of_another_corpus_than_the_last_runs_is_refused(corpus: Path, labels: Path) -> None:
    label_corpus(corpus, labels, AB)
    corpus_of_today = corpus / "date=2026-11-20"
    with pytest.raises(ConfigError, match=r"--prune would remove 2 published files.*run once without --prune"):
        plan_labels(str(corpus_of_today), str(labels), AB, prune=True)
    run_plan(plan_labels(str(corpus_of_today), str(labels), AB), AB)
    assert len(plan_labels(str(corpus_of_today), str(labels), AB, prune=True).removals) == 2


def test_what_cannot_be_listed_is_not_orphaned(corpus: Path, labels: Path) -> None:
    label_corpus(corpus, labels, AB)
    one = corpus / "date=2026-11-20" / "y z.parquet"
    assert plan_labels(str(one), str(labels), AB, prune=True).removals == ()
    (corpus / "date=2026-11-19").rename(corpus.parent / "volume")
    (corpus / "date=2026-11-19").symlink_to(corpus.parent / "not-mounted")
    assert plan_labels(str(corpus), str(labels), AB, prune=True).removals == ()
    one.unlink()
    with pytest.raises(DataError, match="check the path"):
        plan_labels(str(corpus), str(labels), AB, prune=True)


def test_what_is_left_of_a_plan_is_done_in_the_same_slices_and_published_when_it_is_whole(
    corpus: Path, labels: Path
) -> None:
    with small_slices(2):
        plan = plan_labels(str(corpus), str(labels), AB)
        assert [unit.rows for unit in plan.units] == [(0, 2), (2, 4), (0, 1), (1, 3)]
        run_plan(plan, AB, [plan.units[0], *plan.units[2:]])
        assert read_labels(str(labels))["id"].to_pylist() == ["a4", "a5", "a6"]
        rest = plan_labels(str(corpus), str(labels), AB)
        assert rest.units == plan.units[1:2]
        run_plan(rest, AB)
    assert read_labels(str(labels))["id"].to_pylist() == [f"a{n}" for n in range(7)]


def test_two_runs_at_once_label_and_publish_each_article_once(corpus: Path, labels: Path) -> None:
    with small_slices(2):
        one, two = (plan_labels(str(corpus), str(labels), AB) for _ in range(2))
        run_plan(one, AB, one.units[:3])
        run_plan(two, AB)
        run_plan(one, AB, one.units[3:])
    assert read_labels(str(labels))["id"].to_pylist() == [f"a{n}" for n in range(7)]
    rows = sum(pq.read_metadata(path).num_rows for path in (labels / "_store").rglob("*.parquet"))
    assert rows == 7


def test_old_content_stays_published_until_the_new_is_whole(corpus: Path, labels: Path) -> None:
    write_corpus(corpus, {"z.parquet": articles(4, start=10)})
    label_corpus(corpus, labels, AB)
    write_corpus(corpus, {"z.parquet": articles(4, start=20)})

    def shown() -> list[str]:
        return read_labels(str(labels))["id"].to_pylist()[-4:]

    with small_slices(2):
        plan = plan_labels(str(corpus), str(labels), AB)
        run_plan(plan, AB, plan.units[:1])
        assert shown() == ["a10", "a11", "a12", "a13"]
        label_corpus(corpus, labels, AB)
    assert shown() == ["a20", "a21", "a22", "a23"]


def test_labels_that_are_stored_but_not_published_are_only_published(corpus: Path, labels: Path) -> None:
    label_corpus(corpus, labels, AB)
    (labels / "current" / "date=2026-11-19" / "x.parquet").unlink()
    plan = plan_labels(str(corpus), str(labels), AB)
    assert (plan.units, [source.path for source in plan.to_publish]) == ((), ["date=2026-11-19/x.parquet"])
    assert plan.has_work
    run_plan(plan, AB)
    assert not plan_labels(str(corpus), str(labels), AB).has_work


def test_a_damaged_published_file_is_made_anew_without_computing(corpus: Path, labels: Path) -> None:
    label_corpus(corpus, labels, AB)
    before = read_labels(str(labels))
    (labels / "current" / "date=2026-11-19" / "x.parquet").write_bytes(b"PAR1 what is this PAR1")
    assert label_corpus(corpus, labels, AB).units == ()
    assert read_labels(str(labels)).equals(before)


def test_vectors_are_looked_for_in_the_store(corpus: Path, labels: Path) -> None:
    label_corpus(corpus, labels, AB)
    with_vectors = definition({"a": "1", "b": "1", VECTOR: "1"})
    plan = label_corpus(corpus, labels, with_vectors)
    assert (plan.planned_per_task, plan.to_publish) == ({"a": 0, "b": 0, VECTOR: 7}, ())
    assert not plan_labels(str(corpus), str(labels), with_vectors).has_work
    assert not plan_labels(str(corpus), str(labels), AB).has_work


@pytest.mark.parametrize("key", ["id", "error", "a_label"])
def test_files_below_a_partition_key_that_would_hide_a_column_are_unreadable(
    corpus: Path, labels: Path, key: str
) -> None:
    write_corpus(corpus, {f"{key}=1/v.parquet": articles(2)})
    plan = plan_labels(str(corpus), str(labels), AB)
    reason = f"its partition key '{key}' is also a column of the label table; rename the directory"
    assert plan.unreadable == ((f"{key}=1/v.parquet", reason),)
    assert plan.num_articles == 7


def test_bad_files_are_listed_and_the_others_planned(corpus: Path, labels: Path) -> None:
    (corpus / "bad.parquet").write_bytes(b"not parquet")
    (corpus / "empty.parquet").write_bytes(b"")
    (corpus / "link.parquet").symlink_to(corpus / "nowhere")
    (corpus / "notes.txt").write_text("hello")
    (corpus / "_SUCCESS").write_text("")
    write_corpus(corpus, {"other.parquet": {"key": [1], "body": ["x"]}, "z.parquet": articles(0)})
    plan = plan_labels(str(corpus), str(labels), AB)
    reasons = dict(plan.unreadable)
    assert list(reasons) == ["bad.parquet", "empty.parquet", "link.parquet", "other.parquet"]
    assert "leads nowhere" in reasons["link.parquet"]
    assert "columns: key, body" in reasons["other.parquet"]
    assert plan.ignored_files == ("notes.txt",)
    assert (plan.num_files, plan.num_articles, len(plan.units)) == (3, 7, 3)


def test_an_encrypted_file_is_a_bad_one(corpus: Path, labels: Path) -> None:
    content = (corpus / "date=2026-11-19" / "x.parquet").read_bytes()
    (corpus / "secret.parquet").write_bytes(b"PARE" + content[4:-4] + b"PARE")
    ((path, reason),) = plan_labels(str(corpus), str(labels), AB).unreadable
    assert path == "secret.parquet"
    assert "not readable as Parquet" in reason


def test_wrong_columns_everywhere_are_an_error_that_names_those_there(corpus: Path, labels: Path) -> None:
    for options, message in (
        ({"id_column": "key"}, "no id column 'key'; columns: id, title, body; name others with --id-column"),
        ({"text_columns": ("txt",)}, "no text column 'txt'"),
        ({"text_columns": ("title", "txt"), "text_columns_required": True}, "no text column 'txt'"),
    ):
        with pytest.raises(DataError, match=message):
            plan_labels(str(corpus), str(labels), definition({"a": "1"}, **options))


@pytest.mark.parametrize("columns", [("a", "b", "c"), ("a", "a"), ()])
def test_text_columns_are_one_or_two(columns: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="give one column, or two different ones"):
        definition({"a": "1"}, text_columns=columns)


def test_a_corpus_that_is_not_there_or_holds_no_parquet_is_an_error(tmp_path: Path, labels: Path) -> None:
    with pytest.raises(DataError, match="nowhere: it does not exist; check the path"):
        plan_labels(str(tmp_path / "nowhere"), str(labels), AB)
    (tmp_path / "c").mkdir()
    with pytest.raises(DataError, match="c: there is nothing in it; check the path"):
        plan_labels(str(tmp_path / "c"), str(labels), AB)
    (tmp_path / "c" / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"such as notes\.txt"):
        plan_labels(str(tmp_path / "c"), str(labels), AB)


def test_labels_and_corpus_must_lie_apart(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(corpus)
    for labels in (corpus, corpus / "labels", corpus.parent, tmp_path / "alias" / "labels"):
        with pytest.raises(ConfigError, match="lie in each other"):
            plan_labels(str(corpus), str(labels), AB)
    assert label_corpus(corpus, corpus / "_labels", AB).cells_planned == 14
    assert plan_labels(str(corpus), str(corpus / "_labels"), AB).units == ()
    assert plan_labels(str(corpus), str(tmp_path / "corpus-labels"), AB).units


def test_a_single_file_can_be_the_corpus(corpus: Path, labels: Path) -> None:
    one = corpus / "date=2026-11-19" / "x.parquet"
    plan = label_corpus(one, labels, AB)
    assert (plan.corpus, [unit.source.path for unit in plan.units]) == (str(one.parent), ["x.parquet"])
    assert plan_labels(str(one), str(labels), AB).units == ()


def test_odd_layouts_are_labelled_once(tmp_path: Path, labels: Path) -> None:
    root = tmp_path / "corpus"
    write_corpus(root, {"many.parquet": articles(500)}, row_group_size=1)
    write_corpus(root, {"ü/one.parquet": articles(1), "huge.parquet": articles(500), "none.parquet": articles(0)})
    write_corpus(root, {"huge.parquet@/many.parquet": articles(3), "two\nlines.pq": articles(2)})
    with small_slices(150):
        plan = label_corpus(root, labels, AB)
        assert plan.num_articles == 1006
        assert not plan_labels(str(root), str(labels), AB).has_work
    for place in ("_store", "current"):
        rows = sum(pq.read_metadata(path).num_rows for path in (labels / place).rglob("*.parquet"))
        assert rows == 1006


def test_damaged_label_files_are_planned_again(corpus: Path, labels: Path) -> None:
    with small_slices(2):
        label_corpus(corpus, labels, AB)
        shutil.rmtree(labels / "current")
        other, damaged = sorted((labels / "_store").rglob("x.parquet@/*"))
        for content in (damaged.read_bytes()[:-20], other.read_bytes(), b""):
            damaged.write_bytes(content)
            plan = plan_labels(str(corpus), str(labels), AB)
            assert (plan.reasons, [unit.rows for unit in plan.units]) == (Counter({why.UNFINISHED: 4}), [(2, 4)])
            assert [str(file) for file in plan.damaged] == [str(damaged.relative_to(labels))]
        run_plan(plan_labels(str(corpus), str(labels), AB), AB)
        assert not plan_labels(str(corpus), str(labels), AB).has_work
    assert read_labels(str(labels)).num_rows == 7


def test_a_label_set_of_nothing_but_damage_is_done_again(corpus: Path, labels: Path) -> None:
    label_corpus(corpus, labels, AB)
    shutil.rmtree(labels / "current")
    for path in (labels / "_store").rglob("*.parquet"):
        path.write_bytes(b"")
    plan = label_corpus(corpus, labels, AB)
    assert (plan.cells_planned, len(plan.damaged)) == (14, 2)
    assert not plan_labels(str(corpus), str(labels), AB).has_work


def test_strange_files_among_the_labels_do_no_harm(corpus: Path, labels: Path) -> None:
    label_corpus(corpus, labels, AB)
    write_corpus(labels, {"export/all.parquet": articles(2), "top.parquet": articles(2)})
    write_corpus(labels / "_store", {"export/all.parquet": articles(2), "top.parquet": articles(2)})
    (labels / "README.md").write_text("hello")
    plan = plan_labels(str(corpus), str(labels), AB)
    assert (plan.has_work, plan.orphaned) == (False, ())


def test_the_plan_writes_nothing(corpus: Path, labels: Path) -> None:
    plan_labels(str(corpus), str(labels), AB)
    assert not labels.exists()


def test_a_bundle_name_cannot_lead_out_of_the_label_table(corpus: Path, labels: Path) -> None:
    for name in ("../../evil", "_hidden", ".", "date=1"):
        wanted = definition({"a": "1"}, bundle_name=name)
        (target,) = {unit.targets[0].file.label_set for unit in plan_labels(str(corpus), str(labels), wanted).units}
        assert not storage.is_hidden(target)
        assert not set(target) & set("/=")
