"""`mtop publish` and `mtop vacuum` on a table that was labelled by two bundles: nothing is computed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mtop_batch import read_labels
from mtop_batch.cli.commands import main
from mtop_batch.engine.labelling.label import label_corpus
from mtop_batch.engine.publish import publish_table, vacuum_table
from mtop_batch.errors import ConfigError, LabelTableError, TaskError
from tests.engine.test_label import files_of, options, save_model, write_articles

pytestmark = pytest.mark.usefixtures("ray_local")

TEXTS = ["bank profit", "team wins cup", "film star", "new bank"]


def mtop(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    return int(end.value.code or 0)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two articles labelled by `old` and `new`, two by `new` alone, which are published by `new`."""
    root = tmp_path_factory.mktemp("publish")
    write_articles(f"{root}/corpus/a.parquet", TEXTS[:2])
    label_corpus(options(save_model(f"{root}/old"), str(root)))
    write_articles(f"{root}/corpus/b.parquet", TEXTS[2:], first_id=2)
    label_corpus(options(save_model(f"{root}/new", seed=1), str(root), publish=False))
    return root


@pytest.fixture
def root(labelled: Path, tmp_path: Path) -> Path:
    """A copy, with the files' times: nothing of it is stale."""
    return Path(shutil.copytree(labelled, tmp_path / "copy"))


def bundles(labels: Path) -> list[str | None]:
    shown: list[str | None] = read_labels(str(labels), provenance=True)["mood_bundle"].to_pylist()
    return shown


def test_what_a_run_does_not_publish_waits_in_the_store(root: Path) -> None:
    assert bundles(root / "labels") == ["old", "old"]
    done = publish_table(f"{root}/labels", f"{root}/new")
    assert (done["files"], done["rows"], done["incomplete_files"]) == (2, 4, [])
    assert bundles(root / "labels") == ["new"] * 4


def test_an_older_bundle_is_published_again_and_nothing_is_computed(root: Path) -> None:
    before = read_labels(f"{root}/labels")
    stored = files_of(root / "labels", "_store")
    publish_table(f"{root}/labels", f"{root}/new")
    assert mtop("publish", "--labels", f"{root}/labels", "--model", f"{root}/old", "--json", f"{root}/done.json") == 0
    done: dict[str, Any] = json.loads((root / "done.json").read_text())
    assert (done["files"], done["files_already_current"]) == (1, 0)
    assert done["incomplete_files"] == ["b.parquet"]  # the old bundle never labelled it
    assert bundles(root / "labels") == ["old", "old", "new", "new"]
    assert read_labels(f"{root}/labels").slice(0, 2).equals(before)
    assert files_of(root / "labels", "_store") == stored


def test_what_was_pruned_does_not_come_back(root: Path) -> None:
    label_corpus(options(f"{root}/new", str(root)))
    (root / "corpus" / "b.parquet").unlink()
    label_corpus(options(f"{root}/new", str(root), prune=True, force=True))
    for bundle in ("new", "old"):
        assert publish_table(f"{root}/labels", f"{root}/{bundle}", force=True)["incomplete_files"] == []
        assert read_labels(f"{root}/labels")["id"].to_pylist() == [0, 1]
    assert not [path for path in files_of(root / "labels", "_store") if "b.parquet" in path]


def test_only_the_named_tasks_are_published(root: Path) -> None:
    publish_table(f"{root}/labels", f"{root}/new")
    publish_table(f"{root}/labels", f"{root}/old", ["mood"])
    shown = read_labels(f"{root}/labels", provenance=True)
    assert shown["mood_bundle"].to_pylist()[:2] == ["old", "old"]
    assert shown["politics_bundle"].to_pylist()[:2] == ["new", "new"]


def test_wrong_names_are_refused(root: Path) -> None:
    with pytest.raises(TaskError, match="did you mean 'mood'"):
        publish_table(f"{root}/labels", tasks=["moood"])
    with pytest.raises(LabelTableError, match=r"no label table in .*run `mtop label` first"):
        publish_table(f"{root}/nothing")


def test_vacuum_removes_what_nothing_published_and_no_recent_run_wants(root: Path) -> None:
    labels = root / "labels"
    assert vacuum_table(str(labels)).startswith("0 label files removed")
    publish_table(str(labels), f"{root}/new")
    assert "1 of 3 label files can be removed" in vacuum_table(str(labels), plan_only=True, keep_runs=1)
    shown = read_labels(str(labels))
    assert mtop("vacuum", "--labels", str(labels), "--keep-runs", "1") == 0
    assert len(files_of(labels, "_store")) == 2
    assert read_labels(str(labels)).equals(shown)


def test_vacuum_asks_before_it_removes_most_of_the_store(root: Path) -> None:
    shutil.rmtree(root / "labels" / "current")
    for run in sorted((root / "labels" / "_runs").iterdir()):
        shutil.rmtree(run)
    with pytest.raises(ConfigError, match=r"3 of 3 label files .*--force"):
        vacuum_table(str(root / "labels"))
    assert vacuum_table(str(root / "labels"), force=True).startswith("3 label files removed")


def test_the_printed_view_answers_queries(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import duckdb

    assert mtop("labels", "--labels", f"{root}/labels", "--sql") == 0
    connection = duckdb.connect()
    connection.execute(capsys.readouterr().out)
    found = connection.execute("SELECT count(*), count(DISTINCT id) FROM labels").fetchone()
    assert found == (2, 2)
